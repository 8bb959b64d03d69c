"""Decoding in plain NumPy, one picture after the other: the twin of ``fastrnn.decoding``.

`initial_state` and `step` are all that the ways of decoding share; each of them is then a loop
over time steps that is meant to be read.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from . import random
from .rnn_layers import lstm_step_forward, rnn_step_forward

Params = Mapping[str, np.ndarray]
State = tuple[np.ndarray, np.ndarray]


def initial_state(params: Params, features: np.ndarray) -> State:
    """Return the state before the first word, h and c (N, H), for features (N, D)."""
    h = features @ params["W_proj"] + params["b_proj"]
    return h, np.zeros_like(h)


def step(params: Params, words: np.ndarray, state: State, lstm: bool) -> tuple[np.ndarray, State]:
    """Let words (N,) go in; return scores (N, V) of the words that may come next, and the state."""
    x, (h, c) = params["W_embed"][words], state
    if lstm:
        h, c, _ = lstm_step_forward(x, h, c, params["Wx"], params["Wh"], params["b"])
    else:
        h, _ = rnn_step_forward(x, h, params["Wx"], params["Wh"], params["b"])
    return h @ params["W_vocab"] + params["b_vocab"], (h, c)


def draw(weights: np.ndarray, uniform: float) -> int:
    """Draw an id by its weight: the first at which the sum so far passes its share `uniform`."""
    sums = np.cumsum(weights, dtype=np.float64)
    return int(np.argmax(sums > uniform * sums[-1]))


# ---- Scheduled sampling --------------------------------------------------------------------------


def mix(
    params: Params,
    features: np.ndarray,
    captions: np.ndarray,
    probability: float,
    seed: int,
    null: int,
    lstm: bool,
) -> np.ndarray:
    """Mix drawn words into captions: the inputs of scheduled sampling.

    The first input of a row is the caption's. Each later one is, with a probability, drawn from
    the model's softmax over the inputs so far; else it is the caption's. Behind the last target
    that is not ``<NULL>`` the words stay the caption's.

    Parameters
    ----------
    params : mapping of str to ndarray
        Of a `CaptioningRNN`.
    features : float ndarray, shape (N, D)
        Image features.
    captions : int ndarray, shape (N, T + 1)
        Captions from ``<START>``.
    probability : float
        That an input is drawn.
    seed : int
        64 bits. Of the uniform numbers of a row and a time step (`random.uniform`) the first
        decides whether a word is drawn, the second which one.
    null : int
        The id of ``<NULL>``.
    lstm : bool
        An LSTM, else a plain RNN.

    Returns
    -------
    int32 ndarray, shape (N, T)
        The word that goes in at each step.

    References
    ----------
    Bengio, Vinyals, Jaitly and Shazeer, "Scheduled sampling for sequence prediction with
    recurrent neural networks", 2015.
    """
    inputs = captions[:, :-1] % len(params["W_embed"])
    for n, caption in enumerate(captions):
        words = np.flatnonzero(caption[1:] != null)
        length = words[-1] + 1 if words.size else 0
        state = initial_state(params, features[n : n + 1])
        for t in range(length - 1):
            scores, state = step(params, inputs[n : n + 1, t], state, lstm)
            coin, place = random.uniform(seed, [n], [t + 1], 2)[0]
            if coin < probability:
                inputs[n, t + 1] = draw(np.exp(scores[0] - scores.max()), place)
    return inputs.astype(np.int32)

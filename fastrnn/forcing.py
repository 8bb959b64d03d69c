"""Teacher forcing: what a model computes while it reads a given caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .classifiers.rnn import CaptioningRNN
from .rnn_layers import (
    lstm_backward,
    lstm_forward,
    rnn_backward,
    rnn_forward,
    word_embedding_forward,
)
from .words import START

__all__ = ["forced_states"]

_CELLS = {"rnn": (rnn_forward, rnn_backward), "lstm": (lstm_forward, lstm_backward)}


def forced_states(
    model: CaptioningRNN,
    features: np.ndarray,
    ids: Sequence[int] | np.ndarray,
    *,
    copies: int = 1,
    lengths: np.ndarray | None = None,
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Run a model over a caption, for each of some images.

    Parameters
    ----------
    model : CaptioningRNN
        The captioning model.
    features : float ndarray (N, D)
        Features of the images. Their dtype and that of the model decide that of the result.
    ids : sequence of T - 1 ints
        The words that are read after ``<START>``.
    copies : int, optional
        Rows of each image, K, one after the other. Default 1.
    lengths : int ndarray (N * K,), optional
        The number of steps of each row, at most T. Default T for each.

    Returns
    -------
    h : ndarray (N * K, T, H)
        The hidden states: those after ``<START>``, and after each word.
    backward : callable
        Takes the gradient (N * K, T, H) of a number with respect to `h`, and returns that with
        respect to the features, (N * K, D): one for each copy.

    Notes
    -----
    The products are those of `fastrnn.rnn_layers`, whatever the `precision` of the model: they are
    not rounded to bfloat16, so that all of them have gradients.

    Raises
    ------
    ValueError, IndexError
        As the layers raise them, if a shape does not match or a word id is out of range.
    """
    p = model.params
    forward, backward = _CELLS[model.cell_type]
    vectors, _ = word_embedding_forward(
        np.array([[model.word_to_idx[START], *ids]], dtype=np.intp), p["W_embed"]
    )
    h0 = np.repeat(features @ p["W_proj"] + p["b_proj"], copies, axis=0)
    x = np.broadcast_to(vectors, (len(h0), *vectors.shape[1:]))
    h, cache = forward(x, h0, p["Wx"], p["Wh"], p["b"], lengths=lengths)
    return h, lambda dh: backward(dh, cache)[1] @ p["W_proj"].T

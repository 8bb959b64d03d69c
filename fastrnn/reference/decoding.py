"""Decoding in plain NumPy, one image at a time: the reference for ``fastrnn.decoding``.

Beam search and sampling share `Hypothesis`, `step` and `followers`. Each is then a simple loop
over time steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..seeds import draw_seed
from ..words import END, START
from . import random
from .cells import CELLS

__all__ = [
    "Hypothesis",
    "beam_search",
    "draw",
    "followers",
    "initial_state",
    "length_score",
    "log_softmax",
    "mix",
    "repeated",
    "sample",
    "step",
]

Params = Mapping[str, np.ndarray]
"""The parameters of a model by name."""
State = tuple[np.ndarray, np.ndarray]
"""The hidden state h and the cell state c, each (N, H)."""


class Hypothesis(NamedTuple):
    """A complete or partial caption."""

    words: tuple[int, ...]
    """Word ids, without ``<START>``. A finished caption ends with ``<END>``."""
    word_log_probs: tuple[float, ...]
    """Log-probability of each word given the words before it, in nats."""
    rank: float
    """Sum of `word_log_probs` minus the penalties of diverse beam search; ranks hypotheses."""
    state: State
    """Hidden and cell state h and c, each (1, H), before the last word is fed in."""

    @property
    def log_prob(self) -> float:
        """Log-probability of the whole caption."""
        return sum(self.word_log_probs)


def initial_state(params: Params, features: np.ndarray) -> State:
    """Return the initial state, h and c (N, H), for image features (N, D)."""
    h = features @ params["W_proj"] + params["b_proj"]
    return h, np.zeros_like(h)


def step(
    params: Params, words: np.ndarray, state: State, cell_type: str
) -> tuple[np.ndarray, State]:
    """Feed in words (N,); return the scores of the next words (N, V) and the new state."""
    weights = (params[name] for name in ("Wx", "Wh", "b"))
    h, c = CELLS[cell_type].step(params["W_embed"][words], *state, *weights)
    return h @ params["W_vocab"] + params["b_vocab"], (h, c)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Return the log-probabilities of scores (V,), in float64."""
    shifted = scores.astype(np.float64) - scores.max()
    return shifted - np.log(np.exp(shifted).sum())


def repeated(words: tuple[int, ...], n: int) -> set[int]:
    """Return the words that would repeat an n-gram if appended to a caption."""
    begun = words[len(words) - n + 1 :]
    places = range(len(words) - n + 1) if n > 0 else ()
    return {words[i + n - 1] for i in places if words[i : i + n - 1] == begun}


def followers(
    model: Any,
    hypothesis: Hypothesis,
    min_length: int,
    no_repeat_ngram: int,
    suppress: Iterable[str],
) -> tuple[np.ndarray, np.ndarray, State]:
    """Score every word as the next word of a hypothesis.

    Parameters
    ----------
    model : CaptioningRNN
        The NumPy or the compiled model.
    hypothesis : Hypothesis
        The caption so far.
    no_repeat_ngram : int
        Never repeat so many words in a row; 0 allows it.
    suppress : iterable of str
        Words that are never chosen.

    Returns
    -------
    scores : ndarray, shape (V,)
        Scores of the words; -inf for words that are suppressed or would repeat an n-gram, and for
        ``<END>`` before `min_length` words.
    log_probs : float64 ndarray, shape (V,)
        Log-probabilities of all words, including those with a score of -inf.
    state : tuple of ndarray
        h and c after the last word of the hypothesis is fed in.
    """
    word = hypothesis.words[-1] if hypothesis.words else model.word_to_idx[START]
    (scores,), state = step(model.params, np.array([word]), hypothesis.state, model.cell_type)
    log_probs = log_softmax(scores)
    banned = {model.word_to_idx[word] for word in suppress}
    if len(hypothesis.words) < min_length:
        banned.add(model.word_to_idx[END])
    scores[[*banned, *repeated(hypothesis.words, no_repeat_ngram)]] = -np.inf
    return scores, log_probs, state


# ---- Beam search ---------------------------------------------------------------------------------


def length_score(
    log_prob: float, length: int, length_penalty: float, length_rule: str, word_reward: float
) -> float:
    """Return the score of a finished caption (see `fastrnn.decoding.beam_search`)."""
    base = np.float64((5 + length) / 6 if length_rule == "wu" else max(length, 1))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return float(log_prob / base**length_penalty + word_reward * length)


def beam_search(
    model: Any,
    features: np.ndarray,
    width: int = 3,
    max_length: int = 30,
    *,
    length_penalty: float = 0.7,
    length_rule: str = "power",
    word_reward: float = 0.0,
    min_length: int = 1,
    no_repeat_ngram: int = 0,
    suppress: Iterable[str] = (),
    n_best: int = 1,
    groups: int = 1,
    diversity: float = 0.5,
) -> list[list[tuple[Hypothesis, float]]]:
    """Caption images by beam search.

    Parameters
    ----------
    model : CaptioningRNN
        The NumPy or the compiled model.
    features : float ndarray, shape (N, D)
        Image features.
    width, max_length, length_penalty, length_rule, word_reward, min_length, no_repeat_ngram
        See `fastrnn.decoding.beam_search`.
    suppress, n_best, groups, diversity
        See `fastrnn.decoding.beam_search`.

    Returns
    -------
    list of list of (Hypothesis, float)
        The best captions of each image and their scores, best first.
    """
    end = model.word_to_idx[END]
    share = width // groups

    def score(hypothesis: Hypothesis) -> float:
        length = len(hypothesis.words)
        return length_score(hypothesis.log_prob, length, length_penalty, length_rule, word_reward)

    def continued(hypothesis: Hypothesis, chosen: list[int]) -> list[Hypothesis]:
        scores, log_probs, state = followers(
            model, hypothesis, min_length, no_repeat_ngram, suppress
        )
        return [
            Hypothesis(
                (*hypothesis.words, word),
                (*hypothesis.word_log_probs, float(log_probs[word])),
                hypothesis.rank + float(log_probs[word]) - diversity * chosen.count(word),
                state,
            )
            for word in np.argsort(-scores, kind="stable").tolist()
            if scores[word] > -np.inf
        ]

    def search(first: Hypothesis) -> list[tuple[Hypothesis, float]]:
        live = [[first] for _ in range(groups)]
        pools: list[list[Hypothesis]] = [[] for _ in range(groups)]
        for _ in range(max_length):
            chosen: list[int] = []  # words by which earlier groups were extended at this step
            for group, pool in enumerate(pools):
                if not live[group]:
                    continue
                ranked = [new for old in live[group] for new in continued(old, chosen)]
                ranked.sort(key=lambda new: -new.rank)
                if not ranked:
                    pool += live[group]
                pool += [new for new in ranked[:share] if new.words[-1] == end]
                live[group] = [new for new in ranked if new.words[-1] != end][:share]
                if len(pool) >= share:
                    live[group] = []
                chosen += [new.words[-1] for new in live[group]]
        best = []
        for group, pool in enumerate(pools):
            found = [(hypothesis, score(hypothesis)) for hypothesis in pool + live[group]]
            best += sorted(found, key=lambda pair: -pair[1])[:share]
        return sorted(best, key=lambda pair: -pair[1])[:n_best]

    states = (initial_state(model.params, row[None]) for row in features)
    return [search(Hypothesis((), (), 0.0, state)) for state in states]


# ---- Drawn captions ------------------------------------------------------------------------------


def draw(weights: np.ndarray, uniform: float) -> int:
    """Draw an id by weight: the first whose cumulative share of all weights exceeds `uniform`."""
    sums = np.cumsum(weights, dtype=np.float64)
    return int(np.argmax(sums > uniform * sums[-1]))


def sample(
    model: Any,
    features: np.ndarray,
    max_length: int = 30,
    *,
    count: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    min_length: int = 1,
    no_repeat_ngram: int = 0,
    suppress: Iterable[str] = (),
) -> list[list[Hypothesis]]:
    """Draw captions at random from the model's softmax.

    Parameters
    ----------
    model : CaptioningRNN
        The NumPy or the compiled model.
    features : float ndarray, shape (N, D)
        Image features.
    max_length, count, temperature, top_k, top_p, seed, min_length, no_repeat_ngram, suppress
        See `fastrnn.decoding.sample`.

    Returns
    -------
    list of list of Hypothesis
        `count` captions for each image, in the order of the draws.
    """
    end = model.word_to_idx[END]

    def caption(row: int, number: int) -> Hypothesis:
        state = initial_state(model.params, features[row : row + 1])
        hypothesis = Hypothesis((), (), 0.0, state)
        for t in range(max_length):
            scores, log_probs, state = followers(
                model, hypothesis, min_length, no_repeat_ngram, suppress
            )
            if scores.max() == -np.inf:
                break
            weights = np.exp((scores.astype(np.float64) - scores.max()) / temperature)
            order = np.argsort(-scores, kind="stable")
            weights[order[top_k or len(order) :]] = 0
            sums = np.cumsum(weights[order])
            weights[order[np.argmax(sums >= top_p * sums[-1]) + 1 :]] = 0
            word = draw(weights, random.uniform(draw_seed(seed), [row], [t], count)[0, number])
            hypothesis = Hypothesis(
                (*hypothesis.words, word),
                (*hypothesis.word_log_probs, float(log_probs[word])),
                0.0,
                state,
            )
            if word == end:
                break
        return hypothesis

    return [[caption(row, number) for number in range(count)] for row in range(len(features))]


# ---- Scheduled sampling --------------------------------------------------------------------------


def mix(
    params: Params,
    features: np.ndarray,
    captions: np.ndarray,
    probability: float,
    seed: int,
    null: int,
    cell_type: str,
) -> np.ndarray:
    """Return the input words for scheduled sampling: captions with some words drawn by the model.

    The first input of a row is that of the caption. Each later input is drawn from the model's
    softmax, given the inputs before it, with the given probability; otherwise it is the word of
    the caption. Words after the last target that is not ``<NULL>`` are not replaced, nor are words
    for which the model's scores are not finite.

    Parameters
    ----------
    params : mapping of str to ndarray
        Parameters of a `CaptioningRNN`.
    features : float ndarray, shape (N, D)
        Image features.
    captions : int ndarray, shape (N, T + 1)
        Word ids of the captions, starting with ``<START>``.
    probability : float
        Probability that an input is drawn.
    seed : int
        64-bit seed of an RNG stream. For each row and time step,
        `fastrnn.reference.random.uniform` gives two numbers: the first decides whether a word is
        drawn, the second which one.
    null : int
        Id of ``<NULL>``.
    cell_type : {'rnn', 'lstm'}
        The recurrent cell.

    Returns
    -------
    int32 ndarray, shape (N, T)
        Input word of each step.

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
            scores, state = step(params, inputs[n : n + 1, t], state, cell_type)
            coin, place = random.uniform(seed, [n], [t + 1], 2)[0]
            weights = np.exp(scores[0] - scores.max())
            if coin < probability and np.isfinite(weights.sum()):
                inputs[n, t + 1] = draw(weights, place)
    return inputs.astype(np.int32)

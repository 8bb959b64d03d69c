"""Decoding: captions for the features of pictures.

`greedy` takes the best word at every step, `beam_search` looks for the best caption, in groups if
they are to differ (diverse beam search), and `sample` draws captions. All of them are batched in
the compiled core over pictures and hypotheses, and give the log-probability of every word.
Results depend neither on the number of threads nor on which pictures are decoded together, but for
rounding where these are very few. `fastrnn.reference.decoding` is the same in plain NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._core import search as _core
from .classifiers.rnn import CaptioningRNN
from .coco_utils import decode_captions
from .reference import checks

LENGTH_RULES = ("power", "wu")


@dataclass(frozen=True)
class Decoded:
    """Captions of N pictures, K for each, best first (drawn ones in the order of their draws).

    Where a search found fewer than K captions, what is missing has the log-probability -inf.

    Attributes
    ----------
    ids : int32 ndarray (N, K, T)
        Word ids, with ``<END>`` where a caption is finished, filled up with ``<NULL>``.
    word_log_probs : float64 ndarray (N, K, T)
        The model's log-probability of each word given those before it, in nats; 0 behind the
        caption. It is that of the softmax over the whole vocabulary, whatever was suppressed and
        at whatever temperature words were drawn.
    log_probs : float64 ndarray (N, K)
        Their sums.
    scores : float64 ndarray (N, K)
        What the captions are ranked by: `log_probs` with the length rule of `beam_search`.
    """

    ids: np.ndarray
    word_log_probs: np.ndarray
    log_probs: np.ndarray
    scores: np.ndarray

    def captions(self, idx_to_word: Sequence[str] | Mapping[int, str]) -> list[list[str]]:
        """Return the captions as text.

        Parameters
        ----------
        idx_to_word : sequence or mapping
            The word of each id.

        Returns
        -------
        list of list of str
            For each of the N pictures its captions, without ``<END>``; K of them, or fewer where
            fewer were found.
        """
        found = np.isfinite(self.log_probs)
        texts = decode_captions(self.ids[found], idx_to_word)
        return [
            [text.removesuffix("<END>").rstrip() for text in group]
            for group in _by_count(texts, found.sum(axis=1).tolist())
        ]


def _by_count(texts: Any, counts: list[int]) -> list[list[str]]:
    remaining = iter(texts)
    return [[next(remaining) for _ in range(count)] for count in counts]


def greedy(
    model: CaptioningRNN,
    features: np.ndarray,
    max_length: int = 30,
    *,
    no_repeat_ngram: int = 0,
    suppress_unk: bool = False,
    suppress: Iterable[str] = (),
) -> Decoded:
    """Caption pictures greedily: at each step the word with the highest score.

    Without options the words are those of ``model.sample(features, stop_at_end=True)``.

    Parameters
    ----------
    model, features, max_length, no_repeat_ngram, suppress_unk, suppress
        As of `beam_search`, which this is with a width of 1.

    Returns
    -------
    Decoded
        With K = 1.

    Raises
    ------
    ValueError, TypeError
        As `beam_search`.
    """
    return beam_search(
        model,
        features,
        1,
        max_length,
        no_repeat_ngram=no_repeat_ngram,
        suppress_unk=suppress_unk,
        suppress=suppress,
    )


def beam_search(
    model: CaptioningRNN,
    features: np.ndarray,
    width: int = 3,
    max_length: int = 30,
    *,
    length_penalty: float = 0.7,
    length_rule: str = "power",
    word_reward: float = 0.0,
    no_repeat_ngram: int = 0,
    suppress_unk: bool = False,
    suppress: Iterable[str] = (),
    n_best: int = 1,
    groups: int = 1,
    diversity: float = 0.5,
) -> Decoded:
    """Caption pictures by beam search.

    At each step all continuations of a picture's live hypotheses by one word are ranked by their
    summed log-probability (of equal ones that of the better hypothesis comes first, then the lower
    word id). Those by ``<END>`` that are among the first `width` are finished; the best `width` of
    the others live on. The search ends when `width` hypotheses are finished, or at `max_length`,
    where the live ones join them unfinished. Then the score decides. A width of 1 is greedy.

    Parameters
    ----------
    model : CaptioningRNN
        Its vocabulary needs ``<START>`` and ``<END>``.
    features : float ndarray (N, D)
        Image features.
    width : int, optional
        Live hypotheses of a picture.
    max_length : int, optional
        The most words of a caption, ``<END>`` included.
    length_penalty : float, optional
        The longer a caption, the lower its log-probability: a positive number makes up for it, 0
        does not. The length counts ``<END>``.
    length_rule : {'power', 'wu'}, optional
        The score is the log-probability divided by ``length**length_penalty``, or by
        ``((5 + length) / 6)**length_penalty`` (Wu et al. 2016, equation 14).
    word_reward : float, optional
        Added to the score for every word, in nats.
    no_repeat_ngram : int, optional
        No sequence of so many words comes twice in a caption. 0: any may.
    suppress_unk : bool, optional
        Never say ``<UNK>``.
    suppress : iterable of str, optional
        Further words never to say. Log-probabilities stay those of the whole vocabulary.
    n_best : int, optional
        How many captions of each picture to return, at most `width`.
    groups : int, optional
        Diverse beam search (Vijayakumar et al. 2016): so many groups of ``width / groups``
        hypotheses each, one after the other within a step. Each group is a search of its own, but
        for the penalty below; their finished hypotheses are ranked together.
    diversity : float, optional
        With more than one group: what a continuation loses, in nats, for each hypothesis of an
        earlier group that goes on with the same word at this step (Hamming diversity). What a
        search goes by loses it for good, the log-probability and the score do not.

    Returns
    -------
    Decoded
        With K = `n_best`.

    Raises
    ------
    ValueError
        Features that do not fit or scores that are not finite; `width`, `n_best` or `groups` less
        than 1, `n_best` above `width`, `groups` that do not divide it; a negative `max_length`,
        `no_repeat_ngram` or `diversity`; another `length_rule`; a number that is not finite; a word
        that the vocabulary lacks.
    TypeError
        A number of another kind, features that are not real numbers.
    MemoryError
        There is no memory for `width` hypotheses of `max_length` words.

    References
    ----------
    Wu et al., "Google's neural machine translation system", 2016. Vijayakumar et al., "Diverse beam
    search: decoding diverse solutions from neural sequence models", 2016.
    """
    width = _count("width", width, least=1)
    n_best = _integer("n_best", n_best, least=1)
    groups = _integer("groups", groups, least=1)
    if n_best > width:
        raise ValueError(f"n_best must be at most width = {width}, was {n_best}")
    if width % groups:
        raise ValueError(f"groups must divide width = {width}, was {groups}")
    diversity = _number("diversity", diversity)
    if diversity < 0:
        raise ValueError(f"diversity must be at least 0, was {diversity}")
    max_length = _count("max_length", max_length, least=0)
    lengths = np.arange(max_length + 1, dtype=np.float64)
    scale, reward = _length_scores(lengths, length_penalty, length_rule, word_reward)
    found = _core.beam_search(
        **_common(model, features, max_length, no_repeat_ngram, suppress_unk, suppress),
        width=width,
        groups=groups,
        n_best=n_best,
        diversity=diversity,
        scale=scale,
        reward=reward,
    )
    return _decoded(len(features), n_best, groups, max_length, found)


def sample(
    model: CaptioningRNN,
    features: np.ndarray,
    max_length: int = 30,
    *,
    count: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    no_repeat_ngram: int = 0,
    suppress_unk: bool = False,
    suppress: Iterable[str] = (),
) -> Decoded:
    """Draw captions, word by word, from the model's softmax.

    The words that remain after `top_k` and `top_p` are drawn by their weights, in the order of
    their ids: the first one at which the summed weight passes a uniform number, which is a hash of
    the seed, the picture's row, the step and the number of the draw, and of nothing else.

    Parameters
    ----------
    model, features, max_length, no_repeat_ngram, suppress_unk, suppress
        As of `beam_search`.
    count : int, optional
        Captions to draw for each picture. The first ones are the same for a larger `count`.
    temperature : float, optional
        Scores are divided by it: below 1 draws likely words more often, above 1 less often.
    top_k : int, optional
        Draw from the so many best words alone. 0: from all.
    top_p : float, optional
        Draw from the fewest best words alone that make up this part of the probability of all, or
        of the `top_k` best (nucleus sampling, Holtzman et al. 2020).
    seed : int, optional
        From 0 to 2**64 - 1.

    Returns
    -------
    Decoded
        With K = `count`, in the order of the draws; the scores are the log-probabilities.

    Raises
    ------
    ValueError
        Features that do not fit or scores that are not finite; a `temperature` not above 0, `top_p`
        outside (0, 1], a negative `top_k`, `max_length`, `no_repeat_ngram` or `seed`, a `count`
        less than 1; a word that the vocabulary lacks.
    TypeError
        A number of another kind, features that are not real numbers.

    References
    ----------
    Holtzman, Buys, Du, Forbes and Choi, "The curious case of neural text degeneration", 2020.
    """
    count = _count("count", count, least=1)
    max_length = _count("max_length", max_length, least=0)
    temperature, top_p = _number("temperature", temperature), _number("top_p", top_p)
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, was {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, was {top_p}")
    seed = _integer("seed", seed, least=0)
    if seed >= 2**64:
        raise ValueError(f"seed must be less than 2**64, was {seed}")
    found = _core.sample(
        **_common(model, features, max_length, no_repeat_ngram, suppress_unk, suppress),
        count=count,
        inverse_temperature=1 / min(max(temperature, 1e-30), 1e30),  # within the range of float32
        top_k=min(_integer("top_k", top_k, least=0), len(model.params["W_embed"])),
        top_p=top_p,
        seed=seed,
    )
    return _decoded(len(features), count, 1, max_length, found)


# ---- Arguments -----------------------------------------------------------------------------------


def _integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, was {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, was {value}")
    return int(value)


def _count(name: str, value: Any, least: int) -> int:
    """An integer that memory has to be had for."""
    value = _integer(name, value, least)
    checks.check_count(name, value)
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, (bool, np.bool_, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, was {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, was {value}")
    return float(value)


def _length_scores(
    lengths: np.ndarray, penalty: float, rule: str, reward: float
) -> tuple[np.ndarray, np.ndarray]:
    """Factor and summand that make a score of the log-probability of a caption of each length."""
    if rule not in LENGTH_RULES:
        raise ValueError(f"length_rule must be one of {', '.join(LENGTH_RULES)}, was {rule!r}")
    penalty, reward = _number("length_penalty", penalty), _number("word_reward", reward)
    base = np.maximum(lengths, 1) if rule == "power" else (5 + lengths) / 6
    return base**-penalty, reward * lengths


def _common(
    model: CaptioningRNN,
    features: np.ndarray,
    max_length: int,
    no_repeat_ngram: int,
    suppress_unk: bool,
    suppress: Iterable[str],
) -> dict[str, Any]:
    """What every way of decoding needs, as the core takes it."""
    if isinstance(suppress, str):
        raise TypeError(f"suppress must be a list of words, was {suppress!r}")
    never = [("suppress", word) for word in suppress]
    if suppress_unk:
        never.append(("suppress_unk", "<UNK>"))
    for name, word in [("decoding", "<START>"), ("decoding", "<END>"), *never]:
        if word not in model.word_to_idx:
            raise ValueError(f"{name}: word_to_idx has no {word!r}")
    V, word_to_idx = len(model.params["W_embed"]), model.word_to_idx
    for word in ("<START>", "<END>"):
        if not 0 <= word_to_idx[word] < V:
            raise ValueError(f"{word} has the id {word_to_idx[word]}; expected one in [0, {V})")
    return {
        "params": model.params,
        "features": features,
        "cell_type": model.cell_type,
        "start": word_to_idx["<START>"],
        "end": word_to_idx["<END>"],
        "null": word_to_idx["<NULL>"],
        "max_length": max_length,
        # no caption repeats what is longer than itself
        "no_repeat_ngram": min(_integer("no_repeat_ngram", no_repeat_ngram, 0), max_length + 1),
        "suppress": np.array([word_to_idx[word] for _, word in never], dtype=np.intp),
    }


def _decoded(N: int, K: int, groups: int, T: int, found: tuple[np.ndarray, ...]) -> Decoded:
    ids, word_log_probs, log_probs, scores = found
    if T == 0:  # captions without a word are certain; each group of a search has one
        log_probs[:, :groups] = scores[:, :groups] = 0
    return Decoded(
        ids.reshape(N, K, T),
        word_log_probs.reshape(N, K, T),
        log_probs.reshape(N, K),
        scores.reshape(N, K),
    )

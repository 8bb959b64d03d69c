"""Decoding: generate captions from image features.

`greedy` takes the most probable word at every step. `beam_search` searches for the most probable
captions, in groups if they should differ (diverse beam search). `sample` draws captions at random.
All three run in the compiled core, batched over images and hypotheses, and return the
log-probability of every word.

Results do not depend on the number of threads. They do not depend on which images are decoded
together either, except for rounding in very small batches. `fastrnn.reference.decoding` has the
same functions in plain NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np

from . import checks
from ._core import search as _core
from .classifiers.rnn import CaptioningRNN
from .coco_utils import decode_captions
from .seeds import draw_seed
from .words import END, NULL, START, UNK, strip_end

__all__ = ["Decoded", "LENGTH_RULES", "beam_search", "greedy", "sample"]

LENGTH_RULES = ("power", "wu")
"""Ways to compare captions of different lengths; see `beam_search`."""


@dataclass(frozen=True, repr=False)
class Decoded:
    """K captions for each of N images: best first, or in the order drawn for `sample`.

    If a search finds fewer than K captions, the missing ones have log-probability -inf.

    Attributes
    ----------
    ids : int32 ndarray (N, K, T)
        Word ids. A finished caption ends with ``<END>`` and is padded with ``<NULL>``.
    word_log_probs : float64 ndarray (N, K, T)
        Log-probability of each word given the words before it, in nats; 0 after the end of the
        caption. The softmax is over the full vocabulary at temperature 1, even if words were
        suppressed or drawn at another temperature.
    log_probs : float64 ndarray (N, K)
        Log-probability of each caption, in nats: the sum of its `word_log_probs`.
    scores : float64 ndarray (N, K)
        Ranking score of each caption: `log_probs` adjusted by the length rule of `beam_search`.
    """

    ids: np.ndarray
    word_log_probs: np.ndarray
    log_probs: np.ndarray
    scores: np.ndarray

    def __repr__(self) -> str:
        N, K, T = self.ids.shape
        counts = ((N, "image"), (K, "caption"), (T, "word"))
        images, captions, words = (f"{n:,} {name}{'' if n == 1 else 's'}" for n, name in counts)
        return f"{type(self).__name__}({images}, {captions} each, at most {words})"

    def captions(self, idx_to_word: Sequence[str] | Mapping[int, str]) -> list[list[str]]:
        """Return the captions as text.

        Parameters
        ----------
        idx_to_word : sequence or mapping of int to str
            The word of each id.

        Returns
        -------
        list of list of str
            The captions of each image, without ``<END>``: K of them, or fewer if the search found
            fewer.
        """
        found = np.isfinite(self.log_probs)
        texts = decode_captions(self.ids[found], idx_to_word)
        return [
            [strip_end(text) for text in group]
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
    min_length: int = 1,
    no_repeat_ngram: int = 0,
    suppress_unk: bool = False,
    suppress: Iterable[str] = (),
) -> Decoded:
    """Caption images greedily: take the word with the highest score at each step.

    This is `beam_search` with a width of 1. With ``min_length=0`` it gives the same words as
    ``model.sample(features, stop_at_end=True)``.

    Parameters
    ----------
    model, features, max_length, min_length, no_repeat_ngram, suppress_unk, suppress
        See `beam_search`.

    Returns
    -------
    Decoded
        With K = 1.

    Raises
    ------
    ValueError, TypeError
        See `beam_search`.
    """
    return beam_search(
        model,
        features,
        1,
        max_length,
        min_length=min_length,
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
    min_length: int = 1,
    no_repeat_ngram: int = 0,
    suppress_unk: bool = False,
    suppress: Iterable[str] = (),
    n_best: int = 1,
    groups: int = 1,
    diversity: float = 0.5,
) -> Decoded:
    """Caption images by beam search.

    At each step, every live hypothesis of an image is extended by every word of the vocabulary,
    and the extensions are ranked by summed log-probability. Ties go to the extension of the better
    hypothesis, then to the lower word id. Extensions by ``<END>`` that rank among the first
    `width` become finished hypotheses; the best `width` of the others stay live. The search ends
    when `width` hypotheses are finished, or at `max_length`, where the live hypotheses are added
    to the finished ones. Finally, these captions are ranked by score. A width of 1 is greedy
    decoding.

    Parameters
    ----------
    model : CaptioningRNN
        The captioning model. Its vocabulary must contain ``<START>`` and ``<END>``.
    features : float ndarray (N, D)
        Image features.
    width : int, optional
        Number of live hypotheses per image. Default 3.
    max_length : int, optional
        Maximum number of words in a caption, including ``<END>``. Default 30.
    length_penalty : float, optional
        Exponent of the length in the score. Longer captions have lower log-probabilities; a
        positive exponent compensates for this, 0 does not. The length includes ``<END>``.
        Default 0.7.
    length_rule : {'power', 'wu'}, optional
        'power' (default) divides the log-probability by ``length**length_penalty``, 'wu' by
        ``((5 + length) / 6)**length_penalty`` (Wu et al. 2016, equation 14). The result is the
        score.
    word_reward : float, optional
        Bonus per word added to the score, in nats. Default 0.
    min_length : int, optional
        Minimum number of words in a caption, not including ``<END>``: before that, ``<END>`` is
        never generated. The empty caption often has a higher score than any other, above all if
        the model is not trained well, so the default is 1. 0 allows empty captions.
    no_repeat_ngram : int, optional
        No n-gram of this length may occur twice in a caption. 0 (default) allows repetition.
    suppress_unk : bool, optional
        Never generate ``<UNK>``. Default False.
    suppress : iterable of str, optional
        More words never to generate. Log-probabilities are still those of the full vocabulary.
    n_best : int, optional
        Number of captions to return per image, at most `width`. Default 1.
    groups : int, optional
        Number of groups in diverse beam search (Vijayakumar et al. 2016), each with
        ``width / groups`` hypotheses. At each step the groups are extended one after the other.
        Each group is a separate search except for the penalty below. The captions of all groups
        are ranked together. Default 1.
    diversity : float, optional
        Penalty in nats, used with more than one group. An extension is penalized once for each
        hypothesis of an earlier group that was extended by the same word at this step (Hamming
        diversity). Penalties accumulate in the ranking during the search, but do not change the
        returned log-probabilities and scores. Default 0.5.

    Returns
    -------
    Decoded
        With K = `n_best`.

    Raises
    ------
    ValueError
        If `features` does not match the model or the model's scores are not finite; if `width`,
        `n_best` or `groups` is less than 1, `n_best` is greater than `width`, or `groups` does not
        divide `width`; if `max_length`, `min_length`, `no_repeat_ngram` or `diversity` is
        negative; if `length_rule` is unknown; if a number is not finite; or if the vocabulary
        lacks a required or suppressed word.
    TypeError
        If an argument is not a number of the right kind, or `features` are not real numbers.
    MemoryError
        If there is not enough memory for `width` hypotheses of `max_length` words.

    References
    ----------
    Wu et al., "Google's neural machine translation system", 2016. Vijayakumar et al., "Diverse beam
    search: decoding diverse solutions from neural sequence models", 2016.

    Examples
    --------
    >>> from fastrnn.classifiers.rnn import CaptioningRNN
    >>> from fastrnn.decoding import beam_search
    >>> words = {"<NULL>": 0, "<START>": 1, "<END>": 2, "<UNK>": 3, "a": 4, "dog": 5, "runs": 6}
    >>> np.random.seed(0)
    >>> model = CaptioningRNN(words, input_dim=8, wordvec_dim=4, hidden_dim=16, cell_type="lstm")
    >>> features = np.random.standard_normal((2, 8)).astype(np.float32)
    >>> found = beam_search(model, features, width=5, max_length=6, n_best=2)
    >>> found.ids.shape
    (2, 2, 6)
    >>> bool((found.scores[:, 0] >= found.scores[:, 1]).all())
    True
    """
    width = _count("width", width, least=1)
    n_best = _integer("n_best", n_best, least=1)
    groups = _integer("groups", groups, least=1)
    if n_best > width:
        raise ValueError(f"n_best is {n_best}; expected at most width = {width}")
    if width % groups:
        raise ValueError(f"groups is {groups}; expected a divisor of width = {width}")
    diversity = _number("diversity", diversity)
    if diversity < 0:
        raise ValueError(f"diversity is {diversity}; expected at least 0")
    max_length = _count("max_length", max_length, least=0)
    lengths = np.arange(max_length + 1, dtype=np.float64)
    scale, reward = _length_scores(lengths, length_penalty, length_rule, word_reward)
    found = _core.beam_search(
        **_common(model, features, max_length, min_length, no_repeat_ngram, suppress_unk, suppress),
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
    min_length: int = 1,
    no_repeat_ngram: int = 0,
    suppress_unk: bool = False,
    suppress: Iterable[str] = (),
    rows: np.ndarray | None = None,
) -> Decoded:
    """Draw captions at random, word by word, from the model's softmax.

    Words are drawn by inverse transform sampling: of the words that `top_k` and `top_p` keep, in
    the order of their ids, the first whose cumulative probability exceeds a uniform random number.
    That number is a hash of only the seed, the image's row in `features`, the step and the index
    of the draw. To draw from the distribution of the model itself, empty captions included, use
    ``min_length=0``.

    Parameters
    ----------
    model, features, max_length, min_length, no_repeat_ngram, suppress_unk, suppress
        See `beam_search`.
    count : int, optional
        Number of captions to draw per image. Increasing `count` does not change the first ones.
        Default 1.
    temperature : float, optional
        Scores are divided by the temperature. Values below 1 favor probable words, values above 1
        flatten the distribution. Default 1.
    top_k : int, optional
        Draw only from the `top_k` most probable words. 0 (default) draws from all words.
    top_p : float, optional
        Draw only from the smallest set of most probable words whose total probability is at least
        `top_p` (nucleus sampling, Holtzman et al. 2020). With `top_k`, it is a fraction of the
        probability of those `top_k` words. Default 1.
    seed : int, optional
        Random seed, 0 to 2**64 - 1. Default 0.
    rows : int ndarray (N,), optional
        The rows of the images in the hash, if `features` are a part of those to draw for. Default
        0 to N - 1.

    Returns
    -------
    Decoded
        With K = `count`, in the order of the draws. The scores are the log-probabilities.

    Raises
    ------
    ValueError
        If `features` does not match the model or the model's scores are not finite; if
        `temperature` is not positive, `top_p` is not in (0, 1], `count` is less than 1, or `top_k`,
        `max_length`, `min_length`, `no_repeat_ngram` or `seed` is out of range; or if the
        vocabulary lacks a required or suppressed word.
    TypeError
        If an argument is not a number of the right kind, or `features` are not real numbers.

    References
    ----------
    Holtzman, Buys, Du, Forbes and Choi, "The curious case of neural text degeneration", 2020.
    """
    count = _count("count", count, least=1)
    max_length = _count("max_length", max_length, least=0)
    temperature, top_p = _number("temperature", temperature), _number("top_p", top_p)
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; expected a number in (0, 1]")
    seed = _integer("seed", seed, least=0)
    if seed >= 2**64:
        raise ValueError(f"seed is {seed}; expected an integer in [0, 2**64)")
    found = _core.sample(
        **_common(model, features, max_length, min_length, no_repeat_ngram, suppress_unk, suppress),
        count=count,
        inverse_temperature=1 / min(max(temperature, 1e-30), 1e30),  # within the range of float32
        top_k=min(_integer("top_k", top_k, least=0), len(model.params["W_embed"])),
        top_p=top_p,
        seed=draw_seed(seed),
        rows=rows,
    )
    return _decoded(len(features), count, 1, max_length, found)


# ---- Arguments -----------------------------------------------------------------------------------


def _integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r}; expected an integer")
    value = index(value)  # once: what is checked is what is used
    if value < least:
        raise ValueError(f"{name} is {value}; expected at least {least}")
    return value


def _count(name: str, value: Any, least: int) -> int:
    """Check an integer that determines the size of an allocation."""
    value = _integer(name, value, least)
    checks.check_count(name, value)
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, (bool, np.bool_, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} is {value!r}; expected a number")
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}; expected a finite number")
    return value


def _length_scores(
    lengths: np.ndarray, penalty: float, rule: str, reward: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each length, the factor and the offset that turn log-probability into score."""
    if rule not in LENGTH_RULES:
        raise ValueError(f"length_rule is {rule!r}; expected one of {', '.join(LENGTH_RULES)}")
    penalty, reward = _number("length_penalty", penalty), _number("word_reward", reward)
    base = np.maximum(lengths, 1) if rule == "power" else (5 + lengths) / 6
    with np.errstate(over="ignore", under="ignore"):  # scores of 0 or -inf
        return base**-penalty, reward * lengths


def _common(
    model: CaptioningRNN,
    features: np.ndarray,
    max_length: int,
    min_length: int,
    no_repeat_ngram: int,
    suppress_unk: bool,
    suppress: Iterable[str],
) -> dict[str, Any]:
    """Return the arguments that all decoders share, in the form that the core takes."""
    if isinstance(suppress, str):
        raise TypeError(f"suppress is {suppress!r}; expected a list of words")
    never = [("suppress", word) for word in suppress]
    if suppress_unk:
        never.append(("suppress_unk", UNK))
    for name, word in [("decoding", START), ("decoding", END), *never]:
        if word not in model.word_to_idx:
            raise ValueError(f"{name}: word_to_idx has no {word!r}")
    V, word_to_idx = len(model.params["W_embed"]), model.word_to_idx
    for word in (START, END):
        if not 0 <= word_to_idx[word] < V:
            raise ValueError(f"{word} has the id {word_to_idx[word]}; expected one in [0, {V})")
    return {
        "params": model.params,
        "features": model.fit_features(features),
        "cell_type": model.cell_type,
        "precision": model.precision,
        "start": word_to_idx[START],
        "end": word_to_idx[END],
        "null": word_to_idx[NULL],
        "max_length": max_length,
        "min_length": min(_integer("min_length", min_length, 0), max_length),
        # an n-gram longer than the caption cannot repeat
        "no_repeat_ngram": min(_integer("no_repeat_ngram", no_repeat_ngram, 0), max_length + 1),
        "suppress": np.array([word_to_idx[word] for _, word in never], dtype=np.intp),
    }


def _decoded(N: int, K: int, groups: int, T: int, found: tuple[np.ndarray, ...]) -> Decoded:
    ids, word_log_probs, log_probs, scores = found
    if T == 0:  # the empty caption has probability 1; each group of a search returns one
        log_probs[:, :groups] = scores[:, :groups] = 0
    return Decoded(
        ids.reshape(N, K, T),
        word_log_probs.reshape(N, K, T),
        log_probs.reshape(N, K),
        scores.reshape(N, K),
    )

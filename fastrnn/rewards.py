"""CIDEr-D of captions given as word ids, fast enough for every training step.

`fastrnn.metrics` scores text with the scorers that papers use. `CiderReward` computes the same
number from word ids with sparse matrices, about ten times as fast. It is used to reward sampled
captions in reinforcement learning, and to weight training captions by their agreement with the
other captions of the same image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy import sparse

from ._core import runtime
from .words import NULL, START, UNK

__all__ = ["CiderReward"]

_ORDERS = 4
_SIGMA = 6.0  # sigma of the length penalty, in words (Vedantam, Zitnick and Parikh 2015, section 8)
# per chunk, which bounds the memory
_ROWS = 3000  # captions in agreement()
_IMAGES = 10000  # images in the counting of n-grams


class CiderReward:
    """CIDEr-D against the reference captions of a fixed set of images.

    Parameters
    ----------
    captions : int ndarray (M, T)
        Reference captions as word ids in [0, V), padded with ``<NULL>``. ``<START>`` and
        ``<NULL>`` are not counted. ``<END>`` counts as a word, so that unfinished captions score
        lower (Rennie et al. 2017, section 4.1). ``<UNK>`` in a reference matches nothing.
    image_idxs : int ndarray (M,)
        Image of each caption, in [0, images).
    images : int
        Number of images. An image may have no caption.
    word_to_idx : mapping of str to int
        The vocabulary.

    Raises
    ------
    ValueError
        If the shapes do not match, or the vocabulary has more than 55,000 words.
    IndexError
        If an entry of `image_idxs` is out of range.

    Notes
    -----
    The formula is CIDEr-D (Vedantam, Zitnick and Parikh 2015, section 8). Document frequencies of
    n-grams are counted over the images that have a caption.

    Examples
    --------
    Two captions of the first image, one of the second:

    >>> from fastrnn.rewards import CiderReward
    >>> words = {"<NULL>": 0, "<START>": 1, "<END>": 2, "a": 3, "dog": 4, "cat": 5, "runs": 6}
    >>> captions = np.array([[3, 4, 6, 2], [3, 4, 2, 0], [3, 5, 2, 0]])
    >>> reward = CiderReward(captions, np.array([0, 0, 1]), 2, words)

    "a dog", "a dog runs" and "a cat", all said of the first image:

    >>> said = np.array([[3, 4, 2, 0], [3, 4, 6, 2], [3, 5, 2, 0]])
    >>> print(reward(said, np.array([0, 0, 0])).round(2))
    [5.12 6.37 0.  ]
    """

    def __init__(
        self,
        captions: np.ndarray,
        image_idxs: np.ndarray,
        images: int,
        word_to_idx: Mapping[str, int],
    ) -> None:
        captions, image_idxs = np.asarray(captions), np.asarray(image_idxs)
        if captions.ndim != 2 or image_idxs.shape != captions.shape[:1]:
            raise ValueError(
                f"image_idxs has shape {image_idxs.shape}; expected an image for each of the "
                f"captions, whose shape is {captions.shape}"
            )
        if image_idxs.size and not 0 <= image_idxs.min() <= image_idxs.max() < images:
            wrong = image_idxs.min() if image_idxs.min() < 0 else image_idxs.max()
            raise IndexError(f"image_idxs has {wrong}; expected images from 0 to {images - 1}")
        # Base of the n-gram codes: all ids, one for <UNK> in a reference, and one for "no word".
        self._base = len(word_to_idx) + 2
        if self._base**_ORDERS >= 2**63:
            raise ValueError(f"word_to_idx has {len(word_to_idx)} words; expected at most 55,000")
        self._silent = [word_to_idx[w] for w in (NULL, START) if w in word_to_idx]
        self._captions, self._image_idxs = captions, image_idxs
        counts = np.bincount(image_idxs, minlength=images)
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self._by_image = np.argsort(image_idxs, kind="stable")
        self._log_images = math.log(max(int((counts > 0).sum()), 1))

        self._unknown = word_to_idx.get(UNK)
        known = self._known(captions)
        self._lengths = self._bigrams(known)
        # For each n: sorted codes of the G n-grams, and their idf.
        self._orders: list[tuple[np.ndarray, np.ndarray]] = []
        with ThreadPoolExecutor(1) as thread:  # beside the sorting of the next n-grams
            before = None
            for codes, numbers, start in self._count(known):
                if before is not None:
                    self._orders.append((before[0], before[1].result()))
                before = codes, thread.submit(self._idf, len(codes), numbers, start)
            assert before is not None
            self._orders.append((before[0], before[1].result()))
        runtime.trim_memory()

    def _known(self, references: np.ndarray) -> np.ndarray:
        """Return references as ids of their own for <UNK>, in as small a dtype as they fit."""
        known = references.astype(np.min_scalar_type(-self._base))
        if self._unknown is not None:
            known[known == self._unknown] = self._base - 2
        return known

    def _count(self, known: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield the n-grams of the references for n = 1 to 4.

        Each time these are the sorted codes; the number of every n-gram of the captions, its place
        among the codes; and where the numbers of each caption start. The numbers are overwritten
        after the next ones. An n-gram is numbered by the one without its last word. This sorts,
        where `numpy.unique` would look up every n-gram in a hash table.
        """
        word = ~np.isin(known, self._silent)
        # the number of the n-gram that starts at each place, or -1
        at = np.where(word, np.int32(0), np.int32(-1))
        codes, places, most = np.zeros(1, np.int64), known.shape[1], np.count_nonzero(word)
        # Large arrays are allocated once: the memory of many smaller ones would not be given back.
        keys, scratch = np.empty(most, np.int64), np.empty((4, most), np.int32)
        for n in range(1, _ORDERS + 1):
            width = max(places - n + 1, 0)
            whole = (at[:, :width] >= 0) & word[:, n - 1 :]
            start = np.zeros(len(known) + 1, np.int64)
            np.cumsum(np.count_nonzero(whole, axis=1), out=start[1:])
            key = keys[: start[-1]]
            key[:] = at[:, :width][whole]
            key *= self._base
            key += known[:, n - 1 :][whole]
            numbers = scratch[2 + n % 2, : len(key)]
            values = _number(key, len(codes) * self._base, numbers, scratch[:2, : len(key)])
            prefix, last = np.divmod(values, self._base)
            codes = codes[prefix] * self._base + last
            at = at[:, :width]
            at[~whole] = -1
            at[whole] = numbers
            del whole
            runtime.trim_memory()
            yield codes, numbers, start

    def _idf(self, count: int, numbers: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Return the logarithm of images over those in whose captions each n-gram occurs."""
        images = len(self._first) - 1
        times = np.zeros(count, np.int64)
        for image in range(0, images, _IMAGES):
            ends = self._first[image], self._first[min(image + _IMAGES, images)]
            captions = self._by_image[slice(*ends)]
            counts = start[captions + 1] - start[captions]
            row = np.repeat(np.arange(len(captions)), counts)
            shift = start[captions] - np.cumsum(counts) + counts
            said = self._image_idxs[captions].astype(np.int64)[row]
            said *= count
            said += numbers[np.arange(len(row)) + shift[row]]
            said.sort()
            times += np.bincount(said[_is_new(said)] % max(count, 1), minlength=count)
        return self._log_images - np.log(times)

    def _bigrams(self, ids: np.ndarray) -> np.ndarray:
        """Return caption lengths as CIDEr-D counts them: the number of bigrams."""
        return np.maximum((~np.isin(ids, self._silent)).sum(axis=1) - 1, 0)

    def _ngrams(self, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the row and the code of every n-gram, for n = 1 to 4."""
        count, length = ids.shape
        word = ~np.isin(ids, self._silent)
        for n in range(1, _ORDERS + 1):
            width = max(length - n + 1, 0)
            code, whole = np.zeros((count, width), np.int64), np.ones((count, width), bool)
            for k in range(n):
                code = code * self._base + ids[:, k : k + width]
                whole &= word[:, k : k + width]
            row, place = np.nonzero(whole)
            yield row, code[row, place]

    def __call__(self, ids: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Score captions against the references of their images.

        Parameters
        ----------
        ids : int ndarray (N, T)
            Captions as word ids. A finished caption ends with ``<END>`` and is padded with
            ``<NULL>``.
        images : int ndarray (N,)
            Image of each caption.

        Returns
        -------
        float64 ndarray (N,)
            CIDEr-D of each caption; 0 for an image without references.
        """
        row, against = self._pairs(np.asarray(images))
        scores = np.bincount(row, self._compare(ids, row, against), len(ids))
        return scores / np.maximum(np.bincount(row, minlength=len(ids)), 1)

    def _pairs(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return all pairs (p, m) in which caption m is a reference of ``images[p]``."""
        counts = self._first[images + 1] - self._first[images]
        row = np.repeat(np.arange(len(images)), counts)
        within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        return row, self._by_image[self._first[images][row] + within]

    def agreement(self) -> np.ndarray:
        """Score each reference caption against the other captions of its image.

        Returns
        -------
        float64 ndarray (M,)
            CIDEr-D of each caption. A caption that is the only one of its image gets the mean
            score of the captions that are not.
        """
        others = np.diff(self._first)[self._image_idxs] - 1
        scores = np.zeros(len(others))
        # the captions of an image together, since they are each other's references
        ends = self._first[np.searchsorted(self._first, np.arange(0, len(others), _ROWS))]
        chunks = np.split(self._by_image, np.unique(ends))

        def score(rows: np.ndarray) -> None:
            rows = np.sort(rows)
            row, against = self._pairs(self._image_idxs[rows])
            other = against != rows[row]
            found = self._compare(self._captions[rows], row[other], against[other], rows)
            scores[rows] = np.bincount(row[other], found, len(rows))

        with ThreadPoolExecutor(runtime.get_threads()) as threads:
            for _ in threads.map(score, chunks):
                pass
        runtime.trim_memory()
        known = others > 0
        scores[known] /= others[known]
        scores[~known] = scores[known].mean() if known.any() else 0.0
        return scores

    def _compare(
        self, ids: np.ndarray, row: np.ndarray, against: np.ndarray, own: np.ndarray | None = None
    ) -> np.ndarray:
        """Return, for each p, CIDEr-D of caption ``ids[row[p]]`` with one reference, against[p].

        If the captions are references themselves, and all of `against` are among them, `own` says
        which, in ascending order; then it is faster.
        """
        ids = np.asarray(ids).astype(np.int64)
        scores = np.zeros(len(row))
        if own is None:
            needed, which = np.unique(against, return_inverse=True)
        else:
            needed, which = own, np.searchsorted(own, against)
        texts = self._known(self._captions[needed]).astype(np.int64)
        for (codes, idf), (at, code), (theirs_at, theirs_code) in zip(
            self._orders, self._ngrams(ids), self._ngrams(texts), strict=True
        ):
            if not len(codes):
                continue
            theirs_place = np.searchsorted(codes, theirs_code)
            if own is None:
                place = np.minimum(np.searchsorted(codes, code), len(codes) - 1)
            else:
                place = theirs_place
            known = codes[place] == code  # <UNK> has another code in a reference
            weights = _weigh(idf, at[known], place[known], len(ids))
            # n-grams that occur in no reference count in the norm, with the largest idf
            at, code = at[~known], code[~known]
            by_code = np.lexsort((code, at))
            first = np.flatnonzero(_is_new(at[by_code]) | _is_new(code[by_code]))
            times = np.diff(first, append=len(by_code))
            squares = np.bincount(at[by_code[first]], (times * self._log_images) ** 2, len(ids))
            mine = np.sqrt(_norms(weights) ** 2 + squares)
            references = _weigh(idf, theirs_at, theirs_place, len(needed))
            theirs = references[which]
            both = weights[row].minimum(theirs).multiply(theirs)
            norm = mine[row] * _norms(references)[which]
            dots = np.asarray(both.sum(axis=1)).ravel()
            scores += np.divide(dots, norm, out=np.zeros_like(dots), where=norm > 0)
        change = self._bigrams(ids)[row] - self._lengths[against]
        return scores * np.exp(-(change**2) / (2 * _SIGMA**2)) * (10 / _ORDERS)


def _weigh(idf: np.ndarray, row: np.ndarray, column: np.ndarray, rows: int) -> sparse.csr_matrix:
    """Return the tf-idf matrix (rows, G) of captions that have these n-grams."""
    return sparse.csr_matrix((idf[column], (row, column)), (rows, len(idf)))


def _is_new(values: np.ndarray) -> np.ndarray:
    """Return where values differ from the one before."""
    new = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    return new


def _number(key: np.ndarray, bound: int, number: np.ndarray, scratch: np.ndarray) -> np.ndarray:
    """Return the sorted distinct keys, int64 in [0, `bound`); `number` receives that of each.

    It is `numpy.unique` with ``return_inverse``, in less time and memory. `scratch` (2, keys) is
    memory to use, and `key` is overwritten.
    """
    place, rank = scratch
    bits = len(key).bit_length()
    if bound.bit_length() + bits < 64:
        # Keys with their places in the low bits: sorting is twice as fast as argsort.
        key <<= bits
        place[:] = np.arange(len(key), dtype=place.dtype)
        key |= place
        key.sort()
        np.bitwise_and(key, (1 << bits) - 1, out=place, casting="unsafe")
        key >>= bits
    else:
        place[:] = np.argsort(key)
        key[:] = key[place]
    first = _is_new(key)
    np.cumsum(first, out=rank)
    rank -= 1
    number[place] = rank
    return key[first]


def _norms(weights: sparse.csr_matrix) -> np.ndarray:
    return np.sqrt(np.asarray(weights.multiply(weights).sum(axis=1)).ravel())

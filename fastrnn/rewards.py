"""CIDEr-D of captions given as word ids, fast enough for every training step.

`fastrnn.metrics` scores text with the scorers that papers use. `CiderReward` computes the same
number from word ids with sparse matrices, about ten times as fast. It is used to reward sampled
captions in reinforcement learning, and to weight training captions by their agreement with the
other captions of the same image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from scipy import sparse

from .words import NULL, START, UNK

__all__ = ["CiderReward"]

_ORDERS = 4
_SIGMA = 6.0  # sigma of the length penalty, in words (Vedantam, Zitnick and Parikh 2015, section 8)
_ROWS = 5000  # captions per chunk in agreement(), which bounds the memory


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

        known = captions.astype(np.int64)
        if UNK in word_to_idx:
            known[known == word_to_idx[UNK]] = self._base - 2
        self._lengths = self._bigrams(known)
        # For each n: sorted codes of the G n-grams, their idf, tf-idf matrix (M, G), its row norms.
        self._orders = []
        for row, code in self._ngrams(known):
            codes, column = np.unique(code, return_inverse=True)
            said = np.unique(image_idxs[row] * np.int64(len(codes)) + column) % max(len(codes), 1)
            idf = self._log_images - np.log(np.bincount(said, minlength=len(codes)))
            shape = len(captions), len(codes)
            weights = sparse.csr_matrix((idf[column], (row, column)), shape)
            self._orders.append((codes, idf, weights, _norms(weights)))

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
        for first in range(0, len(others), _ROWS):
            rows = np.arange(first, min(first + _ROWS, len(others)))
            row, against = self._pairs(self._image_idxs[rows])
            other = against != rows[row]
            found = self._compare(self._captions[rows], row[other], against[other])
            scores[rows] = np.bincount(row[other], found, len(rows))
        known = others > 0
        scores[known] /= others[known]
        scores[~known] = scores[known].mean() if known.any() else 0.0
        return scores

    def _compare(self, ids: np.ndarray, row: np.ndarray, against: np.ndarray) -> np.ndarray:
        """Return, for each p, CIDEr-D of caption ``ids[row[p]]`` with one reference, against[p]."""
        ids = np.asarray(ids).astype(np.int64)
        scores = np.zeros(len(row))
        for (codes, idf, references, norms), (at, code) in zip(
            self._orders, self._ngrams(ids), strict=True
        ):
            if not len(codes):
                continue
            place = np.minimum(np.searchsorted(codes, code), len(codes) - 1)
            known = codes[place] == code
            weights = sparse.csr_matrix(
                (idf[place[known]], (at[known], place[known])), (len(ids), len(codes))
            )
            # n-grams that occur in no reference count in the norm, with the largest idf
            strange, times = np.unique(
                np.stack([at[~known], code[~known]]), axis=1, return_counts=True
            )
            squares = np.bincount(strange[0], (times * self._log_images) ** 2, len(ids))
            mine = np.sqrt(_norms(weights) ** 2 + squares)
            theirs = references[against]
            both = weights[row].minimum(theirs).multiply(theirs)
            norm = mine[row] * norms[against]
            dots = np.asarray(both.sum(axis=1)).ravel()
            scores += np.divide(dots, norm, out=np.zeros_like(dots), where=norm > 0)
        change = self._bigrams(ids)[row] - self._lengths[against]
        return scores * np.exp(-(change**2) / (2 * _SIGMA**2)) * (10 / _ORDERS)


def _norms(weights: sparse.csr_matrix) -> np.ndarray:
    return np.sqrt(np.asarray(weights.multiply(weights).sum(axis=1)).ravel())

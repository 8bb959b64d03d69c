"""CIDEr-D of captions that are word ids, quick enough to be asked at every training step.

`fastrnn.metrics` measures text with the scorers that papers use. Here is the same number for ids,
by sparse matrices: some ten times as fast, for training that draws captions and rewards them, and
for weighing training captions by how far they agree with one another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from scipy import sparse

from .words import NULL, START, UNK

_ORDERS = 4
_SIGMA = 6.0  # of the length penalty, in words; Vedantam, Zitnick and Parikh 2015, section 8
_ROWS = 5000  # captions that are compared at a time, which bounds the memory


class CiderReward:
    """The captions of a set of images, read once, and the measuring of others against them.

    Parameters
    ----------
    captions : int ndarray (M, T)
        Word ids in [0, V), filled up with ``<NULL>``; ``<START>`` in column 0 is left out.
        ``<END>`` counts as a word, so that captions which break off are worth less (Rennie et al.
        2017, 4.1). ``<UNK>`` in them matches nothing.
    image_idxs : int ndarray (M,)
        The image of each, in [0, images).
    images : int
        How many images there are; some may have no caption.
    word_to_idx : mapping of str to int
        The vocabulary.

    Raises
    ------
    ValueError
        Shapes that do not fit, or a vocabulary of more than 55,000 words.
    IndexError
        An image out of range.

    Notes
    -----
    The formula is CIDEr-D's (Vedantam, Zitnick and Parikh 2015, section 8), with the frequencies of
    n-grams over the images that have a caption.
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
        # ids, and one more for what <UNK> in a reference stands for, and one for "no word"
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
        # for each order: the n-grams' codes, sorted; their weights; tf-idf (M, G); its rows' norms
        self._orders = []
        for row, code in self._ngrams(known):
            codes, column = np.unique(code, return_inverse=True)
            said = np.unique(image_idxs[row] * np.int64(len(codes)) + column) % max(len(codes), 1)
            idf = self._log_images - np.log(np.bincount(said, minlength=len(codes)))
            shape = len(captions), len(codes)
            weights = sparse.csr_matrix((idf[column], (row, column)), shape)
            self._orders.append((codes, idf, weights, _norms(weights)))

    def _bigrams(self, ids: np.ndarray) -> np.ndarray:
        """How long captions are as CIDEr-D counts: in pairs of words."""
        return np.maximum((~np.isin(ids, self._silent)).sum(axis=1) - 1, 0)

    def _ngrams(self, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each order, the rows and the codes of all n-grams."""
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
        """Measure captions of images.

        Parameters
        ----------
        ids : int ndarray (N, T)
            Word ids, ``<END>`` among them where a caption is finished, filled up with ``<NULL>``.
        images : int ndarray (N,)
            The image of each.

        Returns
        -------
        float64 ndarray (N,)
            CIDEr-D of each; 0 for an image without captions.
        """
        row, against = self._pairs(np.asarray(images))
        scores = np.bincount(row, self._compare(ids, row, against), len(ids))
        return scores / np.maximum(np.bincount(row, minlength=len(ids)), 1)

    def _pairs(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The captions of each image: p for images[p], and the caption's row, for all of them."""
        counts = self._first[images + 1] - self._first[images]
        row = np.repeat(np.arange(len(images)), counts)
        within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        return row, self._by_image[self._first[images][row] + within]

    def agreement(self) -> np.ndarray:
        """Measure each of the captions against the others of its image.

        Returns
        -------
        float64 ndarray (M,)
            CIDEr-D; where an image has one caption, the mean of all the other captions'.
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
        """CIDEr-D of caption row[p] of `ids` against reference against[p] alone, for each p."""
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
            # n-grams that no reference has count in the norm: each is as rare as can be
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

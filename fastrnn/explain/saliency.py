"""Saliency: which pixels of an image made a model say the words of its caption."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..classifiers.rnn import CaptioningRNN
from ..messages import warn
from ..vision.images import normalise, open_image, square_pixels
from ..words import END, NULL, SPECIAL_WORDS, START
from .gradients import pixel_gradients, pixel_values

if TYPE_CHECKING:
    from ..captioner import Captioner

METHODS = ("plain", "smooth", "integrated")
"""Ways to compute a saliency map; see `saliency`."""
_FIRST = 5
"""Intervals of the path at first. Each is three times as wide as the one before: networks whose
images are normalised change fastest near gray, at less than a tenth of the way."""
_SPLITS = 6
"""Intervals of the path that are divided at a time, at most."""
_COPIES = 8
"""Copies with noise whose gradients are in memory at a time."""


@dataclass(frozen=True)
class Saliency:
    """A map of the image for each word of a caption.

    Attributes
    ----------
    maps : float32 ndarray (T, S, S)
        For 'plain' and 'smooth', the largest absolute gradient of the word's log-probability over
        the channels of a pixel, as in the course. For 'integrated', the part of the change of the
        log-probability from the baseline to the image that is due to the pixel: positive where it
        made the word more probable.
    words : list of T str
        The words.
    image : uint8 ndarray (S, S, 3)
        The part of the image that the network sees.
    steps : list of T ints
        The place of each word in the caption, from 0.
    caption : list of str
        The whole caption, without ``<END>``.
    log_probs : float64 ndarray (T,)
        Log-probability of each word, in nats.
    changes : float64 ndarray (T,) or None
        For 'integrated', the log-probability of each word minus that on the baseline.
    errors : float64 ndarray (T,) or None
        For 'integrated', the sum of each map minus `changes`.
    resolution : float64 ndarray (T,) or None
        For 'integrated', what rounding to float32 leaves open of `changes`, in nats: twice the
        difference between two implementations of the network. Where the tolerance is less, this
        is the bound of the error.
    method : str
        The method.
    passes : int
        Number of images on which gradients were computed.
    """

    maps: np.ndarray = field(repr=False)
    words: list[str]
    image: np.ndarray = field(repr=False)
    steps: list[int] = field(default_factory=list)
    caption: list[str] = field(default_factory=list)
    log_probs: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    changes: np.ndarray | None = field(default=None, repr=False)
    errors: np.ndarray | None = field(default=None, repr=False)
    resolution: np.ndarray | None = field(default=None, repr=False)
    method: str = "plain"
    passes: int = 1


def saliency(
    captioner: Captioner,
    image: Any,
    caption: Any = None,
    method: str = "plain",
    *,
    steps: Sequence[int] | None = None,
    samples: int = 16,
    noise: float = 0.1,
    seed: int = 0,
    tolerance: float = 0.01,
    max_passes: int = 1024,
) -> Saliency:
    """Show which pixels made the model say each word of a caption.

    The gradient of each word's log-probability goes through the recurrent network by our BPTT,
    through the PCA, and through the network by PyTorch.

    Parameters
    ----------
    captioner : Captioner
        The model with its network, which may not be an ONNX model.
    image : path, bytes, binary file, PIL.Image.Image or uint8 ndarray
        The image, see `fastrnn.vision.images.open_image`.
    caption : str, ImageCaption or sequence of int, optional
        The caption whose words are explained: text, a caption of `captioner`, or word ids without
        ``<START>``. By default the greedy caption of the image.
    method : {'plain', 'smooth', 'integrated'}, optional
        'plain' (default) takes the gradient at the image (Simonyan et al. 2013); 'smooth' the mean
        gradient at copies with noise (SmoothGrad, Smilkov et al. 2017); 'integrated' the integral
        of the gradient from a uniformly gray image to the image, times the difference (integrated
        gradients, Sundararajan et al. 2017).
    steps : sequence of int, optional
        The words to explain, by their place in the caption from 0. By default all.
    samples : int, optional
        Copies with noise for 'smooth'. Default 16.
    noise : float, optional
        Standard deviation of the noise for 'smooth', as a share of the range of the pixels.
        Default 0.1.
    seed : int, optional
        Seed of the noise. Default 0.
    tolerance : float, optional
        Largest error of the sum of a map of 'integrated', as a share of the change of the word's
        log-probability. Intervals of the path are divided until it is reached. Where it would be
        less than `Saliency.resolution`, that is the largest error instead. Default 0.01: 1 %.
    max_passes : int, optional
        Largest number of images on which gradients are computed for 'integrated', at least 3.
        Default 1024. The words of a photograph's caption, whose log-probabilities changed by 0.04
        to 3 nats, needed 81 to 333 with EfficientNet-Lite0 and a tolerance of 0.01.

    Returns
    -------
    Saliency

    Warns
    -----
    RuntimeWarning
        If `max_passes` is not enough for `tolerance`.

    Raises
    ------
    ImportError
        If PyTorch is missing.
    ValueError
        If the image cannot be read, the network has no gradients, the caption has a word that the
        model does not know, or an option is out of range.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected {', '.join(METHODS)}")
    for name, value, least in (("samples", samples, 1), ("max_passes", max_passes, 3)):
        if value < least:
            raise ValueError(f"{name} is {value}; expected at least {least}")
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise is {noise}; expected at least 0")
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; expected a positive number")
    pixels = network_pixels(captioner, image)
    ids = caption_ids(captioner, pixels, caption)
    T = len(ids)
    chosen = list(range(T)) if steps is None else [int(step) for step in steps]
    wrong = next((step for step in chosen if not 0 <= step < T), None)
    if wrong is not None:
        raise ValueError(f"steps has {wrong}; expected words of a caption of {T}, from 0")
    x = prepared(captioner, pixels)
    names = [captioner.model.idx_to_word[idx] for idx in ids]
    about: dict[str, Any] = {
        "words": [names[step] for step in chosen], "image": pixels, "steps": chosen,
        "caption": names, "method": method,
    }  # fmt: skip
    if not chosen:
        empty = np.empty((0, *pixels.shape[:2]), np.float32)
        return Saliency(maps=empty, **about)
    if method == "integrated":
        return Saliency(**_integrated(captioner, x, ids, chosen, tolerance, max_passes), **about)
    values, gradients = pixel_gradients(captioner, x[None], ids, steps=chosen)
    passes = 1
    if method == "smooth":
        gradients = _smooth(captioner, x, ids, chosen, samples, noise, seed)
        passes = samples
    maps = np.abs(gradients[0]).max(axis=1).astype(np.float32)
    return Saliency(maps=maps, log_probs=values[0].astype(np.float64), passes=passes, **about)


def _smooth(
    captioner: Captioner, x: np.ndarray, ids: Sequence[int], steps: Sequence[int], samples: int,
    noise: float, seed: int,
) -> np.ndarray:  # fmt: skip
    """Return the mean gradient (1, K, 3, S, S) at copies of an image with noise."""
    random = np.random.default_rng(seed)
    std = np.asarray(captioner.network.preprocessing.std, dtype=np.float64)
    scale = (noise * 255 / std)[:, None, None]
    total: Any = 0
    for first in range(0, samples, _COPIES):
        shape = (min(_COPIES, samples - first), *x.shape)
        noisy = (x + scale * random.standard_normal(shape)).astype(x.dtype)
        total = total + pixel_gradients(captioner, noisy, ids, steps=steps)[1].sum(axis=0)
    return total[None] / samples


def _integrated(
    captioner: Captioner, x: np.ndarray, ids: Sequence[int], steps: Sequence[int],
    tolerance: float, max_passes: int,
) -> dict[str, Any]:  # fmt: skip
    """Integrate gradients along the line from gray to an image, until their sum is right.

    Each interval of the line has three gradients, and a rule that is exact for cubic polynomials.
    The true change of the log-probability over an interval is known from its ends, so the
    intervals with the largest errors can be divided: into three, so that the gradients serve again.
    """
    difference = x  # from gray, which is 0 for the network

    def at(places: Sequence[float]) -> np.ndarray:
        return np.stack([difference * x.dtype.type(place) for place in places])

    def values_at(places: Sequence[float], chosen: Sequence[int] = steps) -> list[np.ndarray]:
        found = pixel_values(captioner, at(places), ids, steps=chosen)
        return list(found.astype(np.float64))

    def maps_at(
        places: Sequence[float], chosen: Sequence[int] = steps
    ) -> tuple[list[np.ndarray], np.ndarray]:
        values, gradients = pixel_gradients(captioner, at(places), ids, steps=chosen)
        maps = list(np.einsum("nkcij,cij->nkij", gradients, difference))
        return maps, values.astype(np.float64)

    edges = [0.0, *(3.0**-k for k in reversed(range(min(_FIRST, max_passes // 3))))]
    ends = values_at(edges)
    places = [a + (b - a) * share for a, b in pairwise(edges) for share in _PLACES]
    maps, values = maps_at(places)
    parts = [
        _Part(edges[i], edges[i + 1], ends[i], ends[i + 1], maps[3 * i : 3 * i + 3])
        for i in range(len(edges) - 1)
    ]
    passes = len(places)
    changes = ends[-1] - ends[0]
    # The gradients come from another implementation of the network than the values at the ends.
    # Of the same image, they differ by what float32 leaves open: twice that for two ends.
    rounding = np.abs(values - values_at(places)).max(axis=0)
    spacing = np.finfo(np.float32).eps * np.abs([ends[0], ends[-1]]).max(axis=0)
    resolution = 2 * np.maximum(rounding, spacing)
    allowed = np.maximum(tolerance * np.abs(changes), resolution)
    sums = np.empty((len(steps), *x.shape[1:]), np.float32)
    left = np.arange(len(steps))  # the words whose sums are not right yet
    while True:
        errors = np.sum([part.error for part in parts], axis=0)
        last = passes + 6 > max_passes
        done = np.full(len(left), True) if last else np.abs(errors) <= allowed[left]
        for k in np.flatnonzero(done).tolist():
            sums[left[k]] = np.sum([part.integral(k) for part in parts], axis=0)
        left = left[~done]
        if not len(left):
            break
        for part in parts:
            part.keep(~done)
        parts, divided = _split_off(parts, allowed[left], (max_passes - passes) // 6)
        inner = [part.start + part.width * k / 3 for part in divided for k in (1, 2)]
        outer = [
            part.start + part.width * (k + share) / 3
            for part in divided for k in range(3) for share in (_PLACES[0], _PLACES[2])
        ]  # fmt: skip
        chosen = [steps[k] for k in left]
        between, (maps, _) = values_at(inner, chosen), maps_at(outer, chosen)
        for i, part in enumerate(divided):
            parts += part.divide(inner[2 * i :][:2], between[2 * i :][:2], maps[6 * i :][:6])
        passes += len(outer)
    errors = sums.sum(axis=(1, 2), dtype=np.float64) - changes
    if (np.abs(errors) > 1.01 * allowed + spacing).any():  # float32 rounds the sum of a map
        worst = int(np.argmax(np.abs(errors) / allowed))
        warn(
            f"integrated gradients of word {steps[worst] + 1} sum to "
            f"{changes[worst] + errors[worst]:.4g} after {passes} images; the log-probability "
            f"changes by {changes[worst]:.4g}",
            RuntimeWarning,
        )
    return {
        "maps": sums, "log_probs": ends[-1], "changes": changes, "errors": errors,
        "resolution": resolution, "passes": passes,
    }  # fmt: skip


_PLACES, _WEIGHTS = (1 / 6, 1 / 2, 5 / 6), (3 / 8, 1 / 4, 3 / 8)
"""Where the gradients of an interval are, and their weights: Maclaurin's open rule."""


@dataclass(eq=False)
class _Part:
    """An interval of the line: its ends, the values there, and the maps at `_PLACES`."""

    start: float
    end: float
    first: np.ndarray
    last: np.ndarray
    maps: Sequence[np.ndarray]

    def __post_init__(self) -> None:
        self.width = self.end - self.start
        totals = [each.sum(axis=(1, 2), dtype=np.float64) for each in self.maps]
        self.error: np.ndarray = self.width * np.dot(_WEIGHTS, totals) - (self.last - self.first)

    def integral(self, k: int) -> np.ndarray:
        """Return the map of a word over the interval."""
        first, second, third = (w * each[k] for w, each in zip(_WEIGHTS, self.maps, strict=True))
        return self.width * (first + second + third)

    def keep(self, words: np.ndarray) -> None:
        """Forget the other words."""
        if words.all():
            return
        self.first, self.last, self.error = self.first[words], self.last[words], self.error[words]
        self.maps = [each[words] for each in self.maps]

    def divide(
        self, inner: Sequence[float], values: Sequence[np.ndarray], maps: Sequence[np.ndarray]
    ) -> list[_Part]:
        edges = [self.start, *inner, self.end]
        ends = [self.first, *values, self.last]
        return [
            _Part(
                edges[i], edges[i + 1], ends[i], ends[i + 1],
                (maps[2 * i], self.maps[i], maps[2 * i + 1]),
            )
            for i in range(3)
        ]  # fmt: skip


def _split_off(
    parts: list[_Part], allowed: np.ndarray, most: int
) -> tuple[list[_Part], list[_Part]]:
    """Return the other intervals, and those with the largest errors, which are to be divided.

    They are the fewest without which the errors would be half of those that are allowed.
    """
    shares = np.array([(np.abs(part.error) / allowed).max() for part in parts])
    order = np.argsort(-shares)
    rest = shares.sum() - np.cumsum(shares[order])
    count = min(1 + int(np.count_nonzero(rest > 0.5)), _SPLITS, most, len(parts))
    return [parts[i] for i in order[count:]], [parts[i] for i in order[:count]]


# -- Images and captions


def network_pixels(captioner: Captioner, image: Any) -> np.ndarray:
    """Read an image, and return the part that the network sees, uint8 (S, S, 3)."""
    preprocessing = captioner.network.preprocessing
    return np.array(square_pixels(open_image(image), preprocessing))


def prepared(captioner: Captioner, pixels: np.ndarray) -> np.ndarray:
    """Return the network's input (3, S, S) for pixels (S, S, 3): uint8, or RGB floats."""
    size = len(pixels)
    out = np.empty((3, size, size), np.float32)
    normalise(pixels, captioner.network.preprocessing, out)
    return out


def caption_ids(captioner: Captioner, pixels: np.ndarray, caption: Any = None) -> list[int]:
    """Return the word ids of a caption without ``<START>`` and ``<END>``; see `saliency`."""
    model = captioner.model
    known = model.word_to_idx
    if caption is None:
        caption = captioner([pixels])[0].captions[0]
    if isinstance(caption, str):
        found = [known_word(model, word, "caption") for word in caption.lower().split()]
    else:
        found = [int(idx) for idx in getattr(caption, "ids", caption)]
        wrong = next((idx for idx in found if idx not in model.idx_to_word), None)
        if wrong is not None:
            raise ValueError(f"caption has the word id {wrong}; expected one of the vocabulary")
    left_out = {known.get(word) for word in (NULL, START, END)}
    return [idx for idx in found if idx not in left_out]


def known_word(model: CaptioningRNN, word: str, name: str = "word") -> int:
    """Return the id of a word.

    Raises
    ------
    ValueError
        If it is not in the vocabulary, or is a special word.
    """
    if word in SPECIAL_WORDS or word not in model.word_to_idx:
        raise ValueError(
            f"{name} has {word!r}; expected words of the model's vocabulary "
            f"({len(model.word_to_idx):,} words)"
        )
    return model.word_to_idx[word]

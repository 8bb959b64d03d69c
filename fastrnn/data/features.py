"""Features of pictures: maps of colour and outline, pooled and normalised, then PCA.

The same function serves any picture, drawn here or not: pixels in, a vector out. Eight channels
look for a hue each, 45 degrees apart and overlapping; grey excites none of them. From the map of
a channel come

* its area, centroid and second moments (Hu 1962): how much, where, and how far spread;
* the mean of the 3rd and 4th circular harmonics of the gradient's direction over the outlines in
  it, which tell triangles and squares from round things, and its compactness, perimeter^2 / area;

and from all that is not grey the Euler number by the bit quads of Gray (1971): how many things.
Moments and means are quotients over the channel's own area or outline (divisive normalisation), so
that form and place do not depend on size. `PCA` makes the features of these.
"""

from __future__ import annotations

import os

import numpy as np

from ..files import read_npz, write_npz

_HUES = 8
_SIZE = _HUES * 13 + 1


def _chroma_and_hues(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Chroma (n, h, w), stretched to 0..1, and the maps of the channels (n, 8, h, w)."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    alpha = red - 0.5 * (green + blue)
    beta = np.float32(np.sqrt(0.75)) * (green - blue)
    chroma = np.clip((np.sqrt(alpha * alpha + beta * beta) - 0.18) / 0.25, 0, 1)
    hue = np.arctan2(beta, alpha) * np.float32(_HUES / (2 * np.pi))
    channels = np.arange(_HUES, dtype=np.float32)[:, None, None]
    away = np.abs(hue[:, None] - channels)
    away = np.minimum(away, np.abs(away - _HUES))  # the hues make a circle
    # Full response up to 15 degrees from the channel's hue, none beyond 45.
    return chroma, chroma[:, None] * np.clip(1.5 * (1 - away), 0, 1)


def _outline(chroma: np.ndarray) -> np.ndarray:
    """Gradient strength and its 3rd and 4th harmonics, (n, h, w, 5)."""
    down, right = np.gradient(chroma, axis=(1, 2))
    strength = np.sqrt(right * right + down * down)
    turn = ((right + 1j * down) / np.maximum(strength, 1e-6)).astype(np.complex64)
    third = turn * turn * turn
    parts = (part for power in (third, third * turn) for part in (power.real, power.imag))
    return np.stack([strength, *(strength * part for part in parts)], axis=-1)


def _euler_number(chroma: np.ndarray) -> np.ndarray:
    """Things minus holes over the last two axes: vertices less edges plus faces."""
    on = np.clip(3 * chroma - 1, 0, 1)
    down, right = on[..., 1:, :] * on[..., :-1, :], on[..., 1:] * on[..., :-1]
    faces = right[..., 1:, :] * right[..., :-1, :]
    vertices, *edges, squares = (part.sum(axis=(-2, -1)) for part in (on, down, right, faces))
    return vertices - sum(edges) + squares


def _moments(height: int, width: int) -> np.ndarray:
    """1, x, y, x^2, y^2 and xy at every pixel, from -1 to 1 across the picture; (h * w, 6)."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], -1).reshape(-1, 6).astype("f4")


def describe_pictures(images: np.ndarray, batch: int = 16) -> np.ndarray:
    """Pool the colours and outlines of pictures.

    Parameters
    ----------
    images : ndarray (N, H, W, 3) uint8
        RGB, at least 2 pixels high and wide.
    batch : int, optional
        Pictures worked on at a time; bounds the memory.

    Returns
    -------
    ndarray (N, 105) float32

    Raises
    ------
    ValueError
        `images` has another shape.
    TypeError
        `images` are not uint8.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or min(images.shape[1:3]) < 2:
        raise ValueError(
            f"images has shape {images.shape}; expected (N, H, W, 3) with H and W at least 2"
        )
    if images.dtype != np.uint8:
        raise TypeError(f"images has dtype {images.dtype}; expected uint8")
    count, height, width, _ = images.shape
    moments = _moments(height, width)
    pixels = height * width
    # What is much less than this counts as nothing: 0.7 % of the area, a line half a side long.
    least_area, least_outline = 0.007 * pixels, 0.2 * np.sqrt(pixels)
    found = np.empty((count, _SIZE), np.float32)
    for start in range(0, count, batch):
        rgb = images[start : start + batch].astype(np.float32) / np.float32(255)
        n = len(rgb)
        chroma, maps = _chroma_and_hues(rgb)
        flat = maps.reshape(n, _HUES, pixels)
        place = flat @ moments
        area = place[..., :1]
        edges = flat @ _outline(chroma).reshape(n, pixels, 5)
        strength = edges[..., :1]
        presence = area / (area + least_area)
        parts = [
            place[..., 1:] / (area + least_area) * 2,
            edges[..., 1:] / (strength + least_outline) * 2,
            presence * strength**2 / (area + least_area) / 4,
            presence,
            np.sqrt(area / pixels) * 5,
            strength / (strength + least_outline),
        ]
        found[start : start + n, :-1] = np.concatenate(parts, axis=2).reshape(n, -1)
        found[start : start + n, -1] = _euler_number(chroma)
    return found


class PCA:
    """Principal components, scaled to unit deviation.

    Attributes
    ----------
    mean : ndarray (D,) float32
    components : ndarray (K, D) float32
        Rows by falling variance; each is divided by the deviation along it, but by no less than
        `floor` of the largest, so that what is next to nothing is not blown up.
    """

    def __init__(self, mean: np.ndarray, components: np.ndarray) -> None:
        self.mean = mean
        self.components = components

    @classmethod
    def fit(cls, x: np.ndarray, size: int, floor: float = 0.01) -> PCA:
        """Find the components of `x` (N, D); there are min(size, D) of them.

        Raises
        ------
        ValueError
            `x` is empty or not a matrix, or `size` is less than 1.
        """
        if x.ndim != 2 or not x.size:
            raise ValueError(f"x has shape {x.shape}; expected (N, D), neither of them 0")
        if size < 1:
            raise ValueError(f"size is {size}; expected at least 1")
        mean = x.mean(axis=0, dtype=np.float64)
        centred = x - mean
        variance, vectors = np.linalg.eigh(centred.T @ centred / len(x))
        order = np.argsort(variance)[::-1][:size]
        deviation = np.sqrt(np.maximum(variance[order], 0))
        scale = np.maximum(deviation, max(floor * deviation[0], np.finfo(np.float32).tiny))
        # A component is found up to its sign; the largest entry is made positive.
        vectors = vectors[:, order]
        signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(order))])
        components = (vectors * signs / scale).T
        return cls(mean.astype(np.float32), np.ascontiguousarray(components, np.float32))

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Project `x` (N, D) to (N, K) float32."""
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise ValueError(f"x has shape {x.shape}; expected (N, {len(self.mean)})")
        return ((x - self.mean) @ self.components.T).astype(np.float32)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `mean` and `components` to an npz file."""
        write_npz(path, {"mean": self.mean, "components": self.components})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PCA:
        """Read what `save` wrote."""
        arrays = read_npz(path)
        try:
            mean, components = arrays["mean"], arrays["components"]
        except KeyError as error:
            raise ValueError(f"{os.fspath(path)}: has no {error}; no components there") from None
        if components.ndim != 2 or not components.size or mean.shape != components.shape[1:]:
            raise ValueError(
                f"{os.fspath(path)}: components has shape {components.shape}, mean {mean.shape}; "
                "expected (K, D) and (D,), neither of them 0"
            )
        for name, array in (("mean", mean), ("components", components)):
            if array.dtype.kind != "f":
                raise ValueError(f"{os.fspath(path)}: {name} is {array.dtype}; expected floats")
        return cls(mean, components)


def features_of(images: np.ndarray, pca: PCA) -> np.ndarray:
    """Turn pictures (N, H, W, 3) uint8 into the features (N, K) float32 that a model reads."""
    return pca.transform(describe_pictures(images))

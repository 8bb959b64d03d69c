"""Image features of colored shapes: color and outline statistics.

The features are computed from pixels alone, so they work for any image. Eight overlapping channels
respond to hues 45 degrees apart; gray excites none of them. Each channel gives

* area, centroid and second moments (Hu 1962): how much of the color there is, where, and how far
  it spreads;
* the mean 3rd and 4th circular harmonics of the gradient direction along its outlines, which
  separate triangles and squares from circles, and the compactness, perimeter^2 / area.

All that is not gray gives one more feature, the Euler number by the bit quads of Gray (1971), which
counts objects. Moments and means are divided by the channel's own area or outline length (divisive
normalization), so that shape and position do not depend on size. `fastrnn.data.pca.PCA` reduces
these features to the ones that a model is trained on.
"""

from __future__ import annotations

import numpy as np

from ..pca import PCA

_HUES = 8
_SIZE = _HUES * 13 + 1
"""Number of features of an image."""


def _chroma_and_hues(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the chroma (n, h, w), scaled to [0, 1], and the channels (n, 8, h, w)."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    alpha = red - 0.5 * (green + blue)
    beta = np.float32(np.sqrt(0.75)) * (green - blue)
    chroma = np.clip((np.sqrt(alpha * alpha + beta * beta) - 0.18) / 0.25, 0, 1)
    hue = np.arctan2(beta, alpha) * np.float32(_HUES / (2 * np.pi))
    channels = np.arange(_HUES, dtype=np.float32)[:, None, None]
    away = np.abs(hue[:, None] - channels)
    away = np.minimum(away, np.abs(away - _HUES))  # hues are circular
    # Full response up to 15 degrees from the channel's hue, falling to none at 45 degrees.
    return chroma, chroma[:, None] * np.clip(1.5 * (1 - away), 0, 1)


def _outline(chroma: np.ndarray) -> np.ndarray:
    """Return the gradient magnitude and its 3rd and 4th circular harmonics, (n, h, w, 5)."""
    down, right = np.gradient(chroma, axis=(1, 2))
    strength = np.sqrt(right * right + down * down)
    turn = ((right + 1j * down) / np.maximum(strength, 1e-6)).astype(np.complex64)
    third = turn * turn * turn
    parts = (part for power in (third, third * turn) for part in (power.real, power.imag))
    return np.stack([strength, *(strength * part for part in parts)], axis=-1)


def _euler_number(chroma: np.ndarray) -> np.ndarray:
    """Return objects minus holes over the last two axes: vertices - edges + faces."""
    on = np.clip(3 * chroma - 1, 0, 1)
    down, right = on[..., 1:, :] * on[..., :-1, :], on[..., 1:] * on[..., :-1]
    faces = right[..., 1:, :] * right[..., :-1, :]
    vertices, *edges, squares = (part.sum(axis=(-2, -1)) for part in (on, down, right, faces))
    return vertices - sum(edges) + squares


def _moments(height: int, width: int) -> np.ndarray:
    """Return 1, x, y, x^2, y^2 and xy of each pixel, with x and y in [-1, 1]; (h * w, 6)."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], -1).reshape(-1, 6).astype("f4")


def describe_pictures(images: np.ndarray, batch: int = 16) -> np.ndarray:
    """Compute color and outline statistics of images.

    Parameters
    ----------
    images : uint8 ndarray (N, H, W, 3)
        RGB images, at least 2 pixels high and wide.
    batch : int, optional
        Number of images processed at a time, which limits the memory used. Default 16.

    Returns
    -------
    float32 ndarray (N, 105)
        13 features for each of 8 hues, and the Euler number.

    Raises
    ------
    ValueError
        If `images` does not have this shape.
    TypeError
        If `images` does not have dtype uint8.
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
    # Features fade to 0 for areas below 0.7 % of the image and very short outlines: noise.
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


def features_of(images: np.ndarray, pca: PCA) -> np.ndarray:
    """Compute the features of a scene data set, float32 (N, K), of uint8 images (N, H, W, 3)."""
    return pca.transform(describe_pictures(images))

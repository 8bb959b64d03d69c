"""Image utilities: download, load, blur, and preprocess for two versions of the course.

`preprocess_image` and `deprocess_image` support both versions. With a mean image, they do what the
2016 assignment does. Without one, they normalize for SqueezeNet, as all later assignments do.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from .data.pictures import loaded_picture
from .files import open_file
from .vision.images import ImageError, check_pixels, read_picture

__all__ = [
    "SQUEEZENET_MEAN",
    "SQUEEZENET_STD",
    "blur_image",
    "deprocess_image",
    "image_from_url",
    "load_image",
    "np",
    "preprocess_image",
]

SQUEEZENET_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
"""Mean of the channels R, G, B of ImageNet, for pixels from 0 to 1."""
SQUEEZENET_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
"""Standard deviation of these channels."""

_TIMEOUT_SECONDS = 30
_MAX_ASPECT = 16
"""Ratio of an image's sides up to which `load_image` enlarges it to any size."""


def blur_image(X: np.ndarray) -> np.ndarray:
    """Blur images slightly, as a regularizer for image generation.

    Parameters
    ----------
    X : ndarray (N, C, H, W)
        Images.

    Returns
    -------
    ndarray (N, C, H, W)
        Each channel convolved with ``[[1, 2, 1], [2, 188, 2], [1, 2, 1]] / 200``, with zero
        padding. Float dtypes are kept, others become float64.

    Raises
    ------
    ValueError
        If `X` is not four-dimensional.
    """
    X = np.asarray(X)
    if X.ndim != 4:
        raise ValueError(f"X has shape {X.shape}; expected (N, C, H, W)")
    if X.dtype.kind != "f":
        X = X.astype(np.float64)
    height, width = X.shape[2:]
    padded = np.pad(X, ((0, 0), (0, 0), (1, 1), (1, 1)))

    def shifted(down: int, right: int) -> np.ndarray:
        return padded[:, :, down : down + height, right : right + width]

    corners = shifted(0, 0) + shifted(0, 2) + shifted(2, 0) + shifted(2, 2)
    edges = shifted(0, 1) + shifted(1, 0) + shifted(1, 2) + shifted(2, 1)
    return (corners + 2 * edges + 188 * X) / 200


def preprocess_image(
    img: np.ndarray, mean_img: np.ndarray | None = None, mean: str = "image"
) -> np.ndarray:
    """Convert an image to a network input.

    Parameters
    ----------
    img : ndarray (H, W, 3)
        Pixel values, 0 to 255.
    mean_img : ndarray (3, H, W), optional
        Mean image of the 2016 assignment. If given, the result is that of the 2016 assignment.
    mean : {'image', 'pixel', 'none'}, optional
        What to subtract in the 2016 version: `mean_img`, its mean over all pixels, or nothing.
        Default 'image'.

    Returns
    -------
    float32 ndarray
        Without `mean_img`, shape (H, W, 3): the pixels scaled to [0, 1], minus SQUEEZENET_MEAN,
        divided by SQUEEZENET_STD. With `mean_img`, shape (1, 3, H, W): the pixels minus the mean.

    Raises
    ------
    ValueError
        If `img` does not have shape (H, W, 3), `mean` is unknown, or `mean` needs `mean_img`.
    """
    img = np.asarray(img)
    if img.ndim != 3 or img.shape[2] != 3:
        raise ValueError(f"img has shape {img.shape}; expected (H, W, 3)")
    if mean_img is None and mean == "image":
        return (img.astype(np.float32) / 255 - SQUEEZENET_MEAN) / SQUEEZENET_STD
    offset = _mean_offset(mean_img, mean)
    return (img.astype(np.float32).transpose(2, 0, 1)[None] - offset).astype(np.float32)


def deprocess_image(
    img: np.ndarray,
    rescale: Any = False,
    mean: str = "image",
    renorm: bool = False,
    *,
    mean_img: np.ndarray | None = None,
) -> np.ndarray:
    """Convert a network input back to an image; the inverse of `preprocess_image`.

    Parameters
    ----------
    img : ndarray
        Network input of shape (H, W, 3) or, with a mean image, (3, H, W) or (1, 3, H, W).
    rescale : bool or ndarray (3, H, W), optional
        True stretches the values to the full range 0..255. An array is taken as the mean image,
        because it is the second argument in the 2016 signature
        ``deprocess_image(img, mean_img, mean, renorm)``. Default False.
    mean : {'image', 'pixel', 'none'}, optional
        What to add in the 2016 version: the mean image, its mean over all pixels, or nothing.
        Default 'image'.
    renorm : bool, optional
        In the 2016 version, True stretches the values to the full range 0..255. Default False.
    mean_img : ndarray (3, H, W), optional
        Mean image, as a keyword argument.

    Returns
    -------
    uint8 ndarray (H, W, 3)
        Pixel values.

    Raises
    ------
    ValueError
        If `img` has none of these shapes, `mean` is unknown, or `mean` needs `mean_img`.
    """
    img = np.asarray(img)
    if mean_img is None and not isinstance(rescale, (bool, np.bool_, int)):
        mean_img, rescale = rescale, False
    if mean_img is None and mean == "image":
        if img.ndim != 3 or img.shape[2] != 3:
            raise ValueError(f"img has shape {img.shape}; expected (H, W, 3)")
        pixels, stretch = 255 * (img * SQUEEZENET_STD + SQUEEZENET_MEAN), bool(rescale)
    else:
        shape = img.shape
        if img.ndim == 4 and shape[0] == 1:
            img = img[0]
        if img.ndim != 3 or img.shape[0] != 3:
            raise ValueError(f"img has shape {shape}; expected (3, H, W) or (1, 3, H, W)")
        pixels, stretch = (img + _mean_offset(mean_img, mean)).transpose(1, 2, 0), renorm
    if stretch:
        low, high = pixels.min(), pixels.max()
        pixels = 255 * (pixels - low) / (high - low if high > low else 1)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def image_from_url(url: str | os.PathLike[str]) -> np.ndarray | None:
    """Read an image from a URL or from a local file.

    Parameters
    ----------
    url : str or path
        ``http:``, ``https:``, ``ftp:``, ``file:`` or ``data:`` URL, or the path of a local file. A
        file that is not there is looked for in the data directory that
        `fastrnn.coco_utils.load_coco_data` or `fastrnn.training.read_training_data` read last, and
        in the folder of images that it names.
        An element of the ``urls`` of a data set, which is a ``numpy.str_``, is looked for only
        there, if a data set was loaded: unless it is an absolute path, it cannot name another file.

    Returns
    -------
    uint8 ndarray or None
        Pixel values: (H, W) for a grayscale image, (H, W, 4) for one with an alpha channel, else
        (H, W, 3). If the image cannot be fetched, the reason is printed and None is returned, as
        in the course.

    Raises
    ------
    OSError
        If the content is not an image.
    """
    of_data = isinstance(url, np.str_)
    url = str(os.fspath(url))
    try:
        # A single letter before the colon is a Windows drive, not a URL scheme.
        if len(urlsplit(url).scheme) > 1:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
                content = response.read()
        else:
            with _local_file(url, of_data).open("rb") as file:
                content = file.read()
    except urllib.error.HTTPError as error:
        print("HTTP Error: ", error.code, url)
        return None
    except urllib.error.URLError as error:
        print("URL Error: ", error.reason, url)
        return None
    except OSError as error:
        print("URL Error: ", error.strerror or error, url)
        return None
    return _decode_pixels(content, url[:200])


def _local_file(name: str, of_data: bool) -> Path:
    """Return the path of a picture: as given, or in the data directory that was loaded."""
    path = Path(name)
    if path.is_absolute() or (not of_data and path.exists()):
        return path
    found, places = loaded_picture(name)
    if found is None and places:
        looked = " or ".join(map(str, places if of_data else [*places, Path.cwd()]))
        raise FileNotFoundError(f"no such file in {looked}:")
    return found or path


def load_image(filename: str | os.PathLike[str], size: int | None = None) -> np.ndarray:
    """Load an image from disk.

    Parameters
    ----------
    filename : path
        Image file.
    size : int, optional
        Resize so that the shorter side has this many pixels, keeping the aspect ratio.

    Returns
    -------
    uint8 ndarray
        Pixel values: (H, W) for a grayscale image, (H, W, 4) for one with an alpha channel, else
        (H, W, 3).

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    OSError
        If the file is not an image.
    ValueError
        If `size` is less than 1.
    """
    if size is not None and size < 1:
        raise ValueError(f"size is {size}; expected at least 1")
    with open_file(filename) as file:
        content = file.read()
    return _decode_pixels(content, os.fspath(filename), size)


def _mean_offset(mean_img: np.ndarray | None, mean: str) -> np.ndarray | float:
    if mean == "none":
        return 0.0
    if mean not in ("image", "pixel"):
        raise ValueError(f"mean is {mean!r}; expected 'image', 'pixel' or 'none'")
    if mean_img is None:
        raise ValueError(f"mean_img is None; expected shape (3, H, W), as mean is {mean!r}")
    mean_img = np.asarray(mean_img)
    if mean_img.ndim != 3 or mean_img.shape[0] != 3:
        raise ValueError(f"mean_img has shape {mean_img.shape}; expected (3, H, W)")
    return mean_img.mean(axis=(1, 2), keepdims=True) if mean == "pixel" else mean_img


def _decode_pixels(content: bytes, name: str, size: int | None = None) -> np.ndarray:
    # Installed with matplotlib; imported here because few callers need it.
    from PIL.Image import Resampling

    try:
        # The bytes of the file alone limit the pixels, and the EXIF orientation is not applied.
        with read_picture(content, name=name, max_pixels=None) as picture:
            # Convert palette indices, CMYK and other modes to RGB, so that they can be plotted.
            image = picture if picture.mode in ("L", "RGB", "RGBA") else picture.convert("RGB")
            if size is not None:
                scale = size / min(image.size)
                width, height = (max(1, round(side * scale)) for side in image.size)
                if width * height > _MAX_ASPECT * size**2:
                    check_pixels(width, height, len(content))
                image = image.resize((width, height), Resampling.BILINEAR)
            return np.array(image)
    except ImageError as error:
        raise OSError(str(error)) from error

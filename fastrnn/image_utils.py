"""Pictures in and out: fetch, load, blur, and the pre-processing of two course generations.

`preprocess_image` and `deprocess_image` serve both: with the mean image of the 2016 assignment
they do what that assignment did, without it they normalise for SqueezeNet as every later one.
"""

from __future__ import annotations

import io
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from .files import in_a_line, open_file

SQUEEZENET_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
SQUEEZENET_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF")
"""The kinds of pictures that are read. Pillow knows more, and starts Ghostscript for some."""

_TIMEOUT_SECONDS = 30


def blur_image(X: np.ndarray) -> np.ndarray:
    """Blur images very gently, as a regulariser for image generation.

    Parameters
    ----------
    X : ndarray (N, C, H, W)
        Images.

    Returns
    -------
    ndarray (N, C, H, W)
        Each channel convolved with ``[[1, 2, 1], [2, 188, 2], [1, 2, 1]] / 200``; zeros are
        assumed beyond the border. Float dtypes are kept, others become float64.

    Raises
    ------
    ValueError
        `X` has not four axes.
    """
    X = np.asarray(X)
    if X.ndim != 4:
        raise ValueError(f"X must have shape (N, C, H, W), was {X.shape}")
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
    """Make a picture into the input of a network.

    Parameters
    ----------
    img : ndarray (H, W, 3)
        Pixels, 0 to 255.
    mean_img : ndarray (3, H, W), optional
        The mean image of the 2016 assignment; its presence asks for that year's result.
    mean : {'image', 'pixel', 'none'}, optional
        With `mean_img`: subtract it, or its mean over all pixels, or nothing.

    Returns
    -------
    float32 ndarray
        Without `mean_img`, (H, W, 3): scaled to [0, 1], less SQUEEZENET_MEAN, over SQUEEZENET_STD.
        With it, (1, 3, H, W): the pixels less the mean.

    Raises
    ------
    ValueError
        `img` has not the shape (H, W, 3), or `mean` is none of the three names.
    """
    img = np.asarray(img)
    if img.ndim != 3 or img.shape[2] != 3:
        raise ValueError(f"img must have shape (H, W, 3), was {img.shape}")
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
    """Make the input of a network into a picture again: the inverse of `preprocess_image`.

    Parameters
    ----------
    img : ndarray
        (H, W, 3), or with a mean image (3, H, W) or (1, 3, H, W).
    rescale : bool or ndarray (3, H, W), optional
        A bool: stretch the values to the whole range. An array: the mean image, which stands in
        this place in the 2016 signature ``deprocess_image(img, mean_img, mean, renorm)``.
    mean : {'image', 'pixel', 'none'}, optional
        With a mean image: add it, or its mean over all pixels, or nothing.
    renorm : bool, optional
        With a mean image: stretch the values to the whole range.
    mean_img : ndarray (3, H, W), optional
        The mean image by name.

    Returns
    -------
    uint8 ndarray (H, W, 3)

    Raises
    ------
    ValueError
        `img` has a shape that fits neither form, or `mean` is none of the three names.
    """
    img = np.asarray(img)
    if mean_img is None and not isinstance(rescale, (bool, np.bool_, int)):
        mean_img, rescale = rescale, False
    if mean_img is None and mean == "image":
        if img.ndim != 3 or img.shape[2] != 3:
            raise ValueError(f"img must have shape (H, W, 3), was {img.shape}")
        pixels, stretch = 255 * (img * SQUEEZENET_STD + SQUEEZENET_MEAN), bool(rescale)
    else:
        shape = img.shape
        if img.ndim == 4 and shape[0] == 1:
            img = img[0]
        if img.ndim != 3 or img.shape[0] != 3:
            raise ValueError(f"img must have shape (3, H, W) or (1, 3, H, W), was {shape}")
        pixels, stretch = (img + _mean_offset(mean_img, mean)).transpose(1, 2, 0), renorm
    if stretch:
        low, high = pixels.min(), pixels.max()
        pixels = 255 * (pixels - low) / (high - low if high > low else 1)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def image_from_url(url: str | os.PathLike[str]) -> np.ndarray | None:
    """Read a picture from a URL or from a file.

    Parameters
    ----------
    url : str or path
        ``http:``, ``https:``, ``ftp:``, ``file:`` or ``data:`` URL, or the path of a local file
        (relative to the working directory, as any path).

    Returns
    -------
    uint8 ndarray or None
        Pixels, (H, W, 3) for colour and (H, W) for grey. None where nothing could be fetched; the
        reason is printed.

    Raises
    ------
    OSError
        What was fetched is no picture.
    """
    url = os.fspath(url)
    try:
        # One letter before the colon is a drive, not a scheme.
        if len(urlsplit(url).scheme) > 1:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
                content = response.read()
        else:
            with Path(url).open("rb") as file:
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


def load_image(filename: str | os.PathLike[str], size: int | None = None) -> np.ndarray:
    """Load a picture from disk.

    Parameters
    ----------
    filename : path
        The file.
    size : int, optional
        Resize so that the shorter side has this many pixels, keeping the proportions.

    Returns
    -------
    uint8 ndarray
        Pixels, (H, W, 3) for colour and (H, W) for grey.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    OSError
        The file is no picture.
    ValueError
        `size` is less than 1.
    """
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1, was {size}")
    with open_file(filename) as file:
        content = file.read()
    return _decode_pixels(content, os.fspath(filename), size)


def _mean_offset(mean_img: np.ndarray | None, mean: str) -> np.ndarray | float:
    if mean == "none":
        return 0.0
    if mean not in ("image", "pixel"):
        raise ValueError(f"mean must be 'image', 'pixel' or 'none', was {mean!r}")
    if mean_img is None:
        raise ValueError(f"mean={mean!r} needs mean_img of shape (3, H, W), was None")
    mean_img = np.asarray(mean_img)
    if mean_img.ndim != 3 or mean_img.shape[0] != 3:
        raise ValueError(f"mean_img must have shape (3, H, W), was {mean_img.shape}")
    return mean_img.mean(axis=(1, 2), keepdims=True) if mean == "pixel" else mean_img


def _decode_pixels(content: bytes, name: str, size: int | None = None) -> np.ndarray:
    from PIL import Image  # comes with matplotlib; importing it costs what few callers need

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            # Palette indices and printers' colours are no pixel values that anyone could plot.
            image = picture if picture.mode in ("L", "RGB", "RGBA") else picture.convert("RGB")
            if size is not None:
                scale = size / min(image.size)
                image = image.resize(
                    (max(1, round(image.width * scale)), max(1, round(image.height * scale))),
                    Image.Resampling.BILINEAR,
                )
            return np.array(image)
    except Exception as error:  # damaged pictures meet SyntaxError, struct.error and others
        raise OSError(f"{name}: cannot be read as a picture ({in_a_line(error)})") from error

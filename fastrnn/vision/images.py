"""Read photographs from any source: safely, upright and in RGB, and prepare them for a network.

This is the only module that opens images. Pillow is imported by the functions that need it.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import one_line, open_file

__all__ = [
    "IMAGE_FORMATS",
    "IMAGE_SUFFIXES",
    "ImageError",
    "MAX_PIXELS",
    "Preprocessing",
    "check_pixels",
    "find_images",
    "image_name",
    "normalise",
    "open_image",
    "prepare_file",
    "prepare_image",
    "read_picture",
    "square_pixels",
]

if TYPE_CHECKING:
    from PIL import Image

IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF")
"""Formats of images that are read. For others, such as EPS, Pillow starts other programs."""
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm",
    ".webp", ".tif", ".tiff",
})  # fmt: skip
"""Ends of the names by which files of a folder are taken for images, in lower case."""
MAX_PIXELS = 89_478_485
"""Pixels that an image may have. From here on, Pillow warns."""

_MAX_UNBACKED = 1 << 24
"""Number of pixels that an image may always have, even in a small file."""
_MAX_EXPANSION = 1 << 10
"""Largest number of pixels per byte in the file of a larger image; photos have less than 100."""
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


class ImageError(ValueError):
    """An image cannot be read; the message begins with its name."""


def check_pixels(width: int, height: int, file_size: int) -> None:
    """Raise ValueError for an image with far more pixels than its file can describe."""
    if width * height > _MAX_UNBACKED + _MAX_EXPANSION * file_size:
        raise ValueError(
            f"has {width} x {height} pixels in a file of {file_size} bytes; expected fewer"
        )


def image_name(source: Any) -> str:
    """Return the name of an image in messages: its path, or what it is."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"image of {len(source)} bytes"
    name = getattr(source, "name", None) or getattr(source, "filename", None)
    return str(name) if name else f"image ({type(source).__name__})"


@contextlib.contextmanager
def read_picture(
    source: Any, *, name: str | None = None, max_pixels: int | None = MAX_PIXELS
) -> Iterator[Image.Image]:
    """Open an image as Pillow stores it, after checking its format and size.

    Parameters
    ----------
    source : path, bytes or binary file
        The image.
    name : str, optional
        Its name in messages; by default that of `image_name`.
    max_pixels : int or None
        Largest number of pixels; None if only the size of the file limits them.

    Yields
    ------
    PIL.Image.Image
        The image, in its own mode, not yet decoded. Whatever fails while it is used in the
        ``with`` block becomes an `ImageError`.

    Raises
    ------
    OSError
        If the file does not exist or cannot be opened.
    ImageError
        If it is not an image of `IMAGE_FORMATS`, is damaged or has too many pixels.
    """
    from PIL import Image, UnidentifiedImageError

    name = image_name(source) if name is None else name
    with contextlib.ExitStack() as stack:
        if isinstance(source, (str, os.PathLike)):
            content: Any = stack.enter_context(open_file(source))
            size = os.fstat(content.fileno()).st_size
        else:
            data = source if isinstance(source, (bytes, bytearray, memoryview)) else source.read()
            content, size = io.BytesIO(data), len(data)
        try:
            if not size:
                raise ValueError("the file is empty")
            with Image.open(content, formats=IMAGE_FORMATS) as picture:
                _check_size(picture, size, max_pixels)
                yield picture
        except UnidentifiedImageError as error:
            wanted = ", ".join(IMAGE_FORMATS)
            raise ImageError(
                f"{name}: cannot be read as an image; expected one of {wanted}"
            ) from error
        except Image.DecompressionBombError as error:
            raise ImageError(
                f"{name}: has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; expected "
                f"at most {max_pixels or MAX_PIXELS:,}"
            ) from error
        except Exception as error:  # Pillow raises SyntaxError, struct.error and others
            raise ImageError(f"{name}: cannot be read as an image ({one_line(error)})") from error


def _check_size(picture: Image.Image, file_size: int, max_pixels: int | None) -> None:
    check_pixels(*picture.size, file_size)
    if max_pixels is not None and picture.width * picture.height > max_pixels:
        raise ValueError(
            f"has {picture.width} x {picture.height} pixels; expected at most {max_pixels:,}"
        )


def open_image(
    source: Any,
    *,
    max_pixels: int = MAX_PIXELS,
    size: int | None = None,
    name: str | None = None,
) -> Image.Image:
    """Read an image as a person sees it: upright, in RGB.

    Parameters
    ----------
    source : path, bytes, binary file, PIL.Image.Image or uint8 ndarray
        The image. An array has shape (H, W), (H, W, 3) or (H, W, 4).
    max_pixels : int, optional
        Largest number of pixels. Default `MAX_PIXELS`.
    size : int, optional
        The caller needs only this many pixels along each side. A JPEG file of more than twice
        that is decoded at a half, a quarter or an eighth of its size, which is several times
        faster; it still has at least twice as many pixels along each side.
    name : str, optional
        Name of the image in messages; by default that of `image_name`.

    Returns
    -------
    PIL.Image.Image
        A new image in mode RGB: turned as its EXIF orientation says; palettes, CMYK and 16 bits
        converted; transparent parts laid over white; the first frame of an animation.

    Raises
    ------
    OSError
        If the file does not exist or cannot be opened.
    ImageError
        If it is not an image of `IMAGE_FORMATS`, is damaged or has too many pixels. The message
        begins with its name.
    TypeError
        If `source` is none of these.
    """
    from PIL import Image

    name = image_name(source) if name is None else name
    if isinstance(source, np.ndarray):
        channels = source.shape[2:] if source.ndim == 3 else ()
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or channels not in (
            (), (3,), (4,)
        ) or not source.size:  # fmt: skip
            raise ImageError(
                f"{name}: has shape {source.shape} and dtype {source.dtype}; expected uint8 of "
                "shape (H, W), (H, W, 3) or (H, W, 4)"
            )
        source = Image.fromarray(source)
    if isinstance(source, Image.Image):
        try:
            if not source.width * source.height or source.width * source.height > max_pixels:
                raise ValueError(
                    f"has {source.width} x {source.height} pixels; expected 1 to {max_pixels:,}"
                )
            return _as_seen(source)
        except Exception as error:  # Pillow raises SyntaxError, struct.error and others
            raise ImageError(f"{name}: cannot be read as an image ({one_line(error)})") from error
    if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) and not hasattr(
        source, "read"
    ):
        raise TypeError(
            f"source is {type(source).__name__}; expected a path, bytes, a binary file, an image "
            "of Pillow or a uint8 array"
        )
    with read_picture(source, name=name, max_pixels=max_pixels) as picture:
        if size is not None:
            picture.draft("RGB", (2 * size, 2 * size))
        return _as_seen(picture)


def _as_seen(picture: Image.Image, *, copy: bool = True) -> Image.Image:
    """Return an image in RGB, upright; a new one with `copy`."""
    from PIL import Image

    if picture.mode in _DEEP_MODES:
        image = Image.fromarray(_to_bytes(np.asarray(picture))).convert("RGB")
    elif "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info:
        above = picture.convert("RGBA")
        image = Image.new("RGBA", above.size, (255, 255, 255, 255))
        image.alpha_composite(above)
        image = image.convert("RGB")
    else:
        image = picture.convert("RGB") if copy or picture.mode != "RGB" else picture
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(_orientation(picture))
    return image if turn is None else image.transpose(turn)


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 if there is none."""
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF data do not make the pixels unreadable
        return 1


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Return gray values of 16 bits, 32 bits or floats as uint8."""
    highest = values.max()
    if not np.isfinite(highest) or not np.isfinite(values.min()):
        raise ValueError("has pixels that are not finite")
    if values.dtype.kind == "f" and highest <= 1:
        scale = 255.0
    elif values.dtype.itemsize == 2 or highest > 255:
        scale = 255 / 65535
    else:
        scale = 1.0
    if highest * scale > 255.5:
        raise ValueError(f"has pixels up to {highest:g}; expected at most 65535")
    return np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)


def find_images(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    others: list[Path] | None = None,
) -> list[Path]:
    """List the images in files and folders.

    Parameters
    ----------
    paths : path or iterable of paths
        Files are taken as they are. Folders are searched, with the folders in them, for names
        with the ends `IMAGE_SUFFIXES`. Hidden files are left out.
    others : list of Path, optional
        Receives the other files in the folders.

    Returns
    -------
    list of Path
        In the order of `paths`; the images of a folder are sorted by name.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    ValueError
        If a folder has no images.
    """
    found: list[Path] = []
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        path = Path(path)
        if not path.is_dir():
            path.stat()  # raises FileNotFoundError
            found.append(path)
            continue
        inside = [
            file
            for file in sorted(path.rglob("*"))
            if not any(part.startswith(".") for part in file.relative_to(path).parts)
            and not file.is_dir()
        ]
        images = [file for file in inside if file.suffix.lower() in IMAGE_SUFFIXES]
        if others is not None:
            others += [file for file in inside if file.suffix.lower() not in IMAGE_SUFFIXES]
        if not images:
            raise ValueError(
                f"{path}: no images; expected files that end in .jpg, .png, .gif, .bmp, .ppm, "
                ".webp or .tif"
            )
        found += images
    return found


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a network.

    The largest square in the middle of the image is resized to `size` x `size` pixels, and each
    channel becomes ``(pixel - mean) / std``, with pixels from 0 to 255.

    Attributes
    ----------
    size : int
        Width and height of the input.
    mean, std : tuple of three floats
        For each channel, in the order of `channels`.
    channels : {'RGB', 'BGR'}
        Their order.
    resize : {'bicubic', 'bilinear'}
        The filter.
    crop : {'centre'}
        The part of the image.
    """

    size: int = 224
    mean: tuple[float, float, float] = (127.0, 127.0, 127.0)
    std: tuple[float, float, float] = (128.0, 128.0, 128.0)
    channels: str = "RGB"
    resize: str = "bicubic"
    crop: str = "centre"

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ValueError(f"size is {self.size!r}; expected at least 1")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(np.isfinite(values)) or (
                name == "std" and min(values) <= 0
            ):  # fmt: skip
                raise ValueError(
                    f"{name} is {list(values)}; expected three "
                    f"{'positive ' if name == 'std' else ''}numbers"
                )
            object.__setattr__(self, name, tuple(float(value) for value in values))
        for name, words in (
            ("channels", ("RGB", "BGR")),
            ("resize", ("bicubic", "bilinear")),
            ("crop", ("centre",)),
        ):
            if getattr(self, name) not in words:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; expected {' or '.join(words)}"
                )

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON stores them."""
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in fields(self)
            for value in [getattr(self, field.name)]
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Return what `as_dict` made a dictionary of.

        Parameters
        ----------
        values : mapping
            Every attribute with its value.

        Returns
        -------
        Preprocessing
            The preprocessing.

        Raises
        ------
        ValueError
            If an entry is missing, unknown or has a wrong value.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping) or sorted(values) != sorted(names):
            raise ValueError(f"preprocessing is {values!r}; expected {', '.join(names)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"preprocessing is {values!r} ({one_line(error)})") from None


def square_pixels(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Return the middle of an image in RGB, resized, as uint8 (S, S, 3)."""
    return np.asarray(_square(image, preprocessing))


def _square(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    from PIL import Image

    side, size = min(image.size), preprocessing.size
    if image.size == (size, size):
        return image
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize(
        (size, size),
        Image.Resampling[preprocessing.resize.upper()],
        box=(left, top, left + side, top + side),
        reducing_gap=3.0,
    )


def normalise(pixels: np.ndarray, preprocessing: Preprocessing, out: np.ndarray) -> None:
    """Write pixels, uint8 RGB (..., S, S, 3), as network input, float32 (..., 3, S, S)."""
    for channel, letter in enumerate(preprocessing.channels):
        _normalise(
            pixels[..., "RGB".index(letter)], preprocessing, channel, out[..., channel, :, :]
        )


def _normalise(
    pixels: np.ndarray, preprocessing: Preprocessing, channel: int, out: np.ndarray
) -> None:
    mean, scale = preprocessing.mean[channel], 1 / preprocessing.std[channel]
    np.subtract(pixels, np.float32(mean), out=out, dtype=np.float32)
    np.multiply(out, np.float32(scale), out=out)


def prepare_image(
    image: Image.Image, preprocessing: Preprocessing, out: np.ndarray | None = None
) -> np.ndarray:
    """Turn an image in RGB into the input of a network.

    Parameters
    ----------
    image : PIL.Image.Image
        An image in mode RGB, as `open_image` returns it.
    preprocessing : Preprocessing
        What to do.
    out : float32 ndarray (3, S, S), optional
        Where to write the result.

    Returns
    -------
    float32 ndarray (3, S, S)
        The input: `out`, if it was given.
    """
    size = preprocessing.size
    if out is None:
        out = np.empty((3, size, size), np.float32)
    # As `normalise` of `square_pixels`, but Pillow gives single bands twice as fast.
    bands = _square(image, preprocessing).split()
    for channel, letter in enumerate(preprocessing.channels):
        pixels = np.frombuffer(bands["RGB".index(letter)].tobytes(), np.uint8)
        _normalise(pixels.reshape(size, size), preprocessing, channel, out[channel])
    return out


def prepare_file(
    path: str | os.PathLike[str], preprocessing: Preprocessing, out: np.ndarray
) -> None:
    """Read an image file and write the input of a network, float32 (3, S, S), to `out`.

    As `open_image` with the size of the input and `prepare_image`, without a copy of the image.

    Parameters
    ----------
    path : path
        The image file.
    preprocessing : Preprocessing
        What to do.
    out : float32 ndarray (3, S, S)
        Where to write the result.

    Raises
    ------
    OSError, ImageError
        As `open_image`.
    """
    with read_picture(path) as picture:
        picture.draft("RGB", (2 * preprocessing.size, 2 * preprocessing.size))
        prepare_image(_as_seen(picture, copy=False), preprocessing, out)

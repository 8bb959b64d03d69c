"""Opening photographs of every kind, listing them, and preparing them for a network."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fastrnn.vision.images import (
    ImageError,
    Preprocessing,
    find_images,
    normalise,
    open_image,
    prepare_image,
    square_pixels,
)


@pytest.fixture
def pixels(rng) -> np.ndarray:
    return rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def shown(source: object, **options: object) -> np.ndarray:
    image = open_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def png(width: int, height: int, padding: int = 0) -> bytes:
    """A PNG file that claims a size, with next to no content."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        sealed = kind + content
        return struct.pack(">I", len(content)) + sealed + struct.pack(">I", zlib.crc32(sealed))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content + bytes(padding)


def test_every_source_gives_the_same_pixels(pixels, tmp_path):
    image = Image.fromarray(pixels)
    path = tmp_path / "a.png"
    image.save(path)
    for source in (
        path,
        str(path),
        path.read_bytes(),
        io.BytesIO(path.read_bytes()),
        image,
        pixels,
    ):
        np.testing.assert_array_equal(shown(source), pixels)
    with path.open("rb") as file:
        np.testing.assert_array_equal(shown(file), pixels)
    opened = open_image(image)
    opened.putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) == tuple(pixels[0, 0])


def test_gray_bits_and_palettes(pixels):
    gray = pixels[..., 0]
    np.testing.assert_array_equal(shown(gray), np.repeat(gray[..., None], 3, 2))
    np.testing.assert_array_equal(shown(encoded(Image.fromarray(gray)))[..., 2], gray)
    bits = Image.fromarray((gray > 99).astype(np.uint8) * 255).convert("1")
    np.testing.assert_array_equal(shown(encoded(bits))[..., 1], (gray > 99) * 255)
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    np.testing.assert_array_equal(shown(encoded(palette)), [[[255, 0, 0], [0, 0, 255]]])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits(kind):
    deep = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    got = shown(encoded(Image.fromarray(deep), kind))
    np.testing.assert_array_equal(got[..., 0], np.arange(256).reshape(16, 16))
    np.testing.assert_array_equal(got[..., 0], got[..., 2])


def test_floats_and_wide_integers():
    floats = Image.fromarray(np.array([[0, 0.5, 1]], np.float32))
    np.testing.assert_array_equal(shown(encoded(floats, "TIFF"))[0, :, 0], [0, 128, 255])
    large = Image.fromarray(np.array([[0, 257, 65535]], np.int32))
    np.testing.assert_array_equal(shown(encoded(large, "TIFF"))[0, :, 0], [0, 1, 255])
    small = Image.fromarray(np.array([[0, 7, 255]], np.int32))
    np.testing.assert_array_equal(shown(encoded(small, "TIFF"))[0, :, 0], [0, 7, 255])
    for strange in (np.array([[np.nan, 1]], np.float32), np.array([[0, 1 << 20]], np.int32)):
        with pytest.raises(ImageError, match="pixels"):
            open_image(encoded(Image.fromarray(strange), "TIFF"))


def test_cmyk():
    for kind in ("JPEG", "TIFF"):
        got = shown(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), kind))
        np.testing.assert_allclose(got[8, 8], [255, 0, 0], atol=4)


def test_what_is_transparent_lies_over_white():
    image = Image.new("RGBA", (3, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 51))
    np.testing.assert_array_equal(
        shown(encoded(image)), [[[200, 0, 0], [255, 255, 255], [204, 204, 204]]]
    )
    np.testing.assert_array_equal(shown(np.asarray(image)), shown(encoded(image)))
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    got = shown(encoded(palette, transparency=0))
    np.testing.assert_array_equal(got, [[[255, 255, 255], [0, 0, 255]]])
    gray = shown(encoded(Image.new("LA", (1, 1), (100, 0))))
    np.testing.assert_array_equal(gray, [[[255, 255, 255]]])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_exif_orientation(pixels, orientation, mode):
    array = pixels if mode == "RGB" else pixels[..., 0].astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(array), "PNG", exif=exif)
    peer = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    peer = peer if mode == "RGB" else np.repeat((peer // 257)[..., None], 3, 2)
    np.testing.assert_array_equal(shown(content), peer)
    assert (shown(content).shape == pixels.shape) == (orientation < 5)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_matter(pixels):
    content = encoded(Image.fromarray(pixels), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(shown(content), pixels)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_frame_of_animations(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(content)).n_frames == 3
    np.testing.assert_array_equal(shown(content)[4, 4], [255, 0, 0])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"no picture", "expected one of JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "expected one of JPEG, PNG"),
        (png(30_000, 30_000), "has more than 178,956,970 pixels"),
        (png(9_000, 9_000), "9000 x 9000 pixels in a file"),
        (png(30_000, 30_000, padding=1 << 20), "178,956,970"),
        (png(8, 8), ""),
    ],
    ids=["empty", "text", "eps", "huge", "large", "huge-padded", "cut"],
)
def test_hostile_files_are_named(tmp_path, content, problem):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError) as error:
        open_image(path)
    assert str(error.value).startswith(f"{path}: ")
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_truncated_at_every_place(rng):
    """A photograph that is cut short is refused, never filled up with gray."""
    smooth = np.linspace(0, 255, 40 * 40 * 3).reshape(40, 40, 3).astype(np.uint8)
    for kind in ("JPEG", "PNG", "GIF"):
        content = encoded(Image.fromarray(smooth), kind)
        for end in range(0, len(content) - 30, 40):
            with pytest.raises(ImageError, match="x: "):
                open_image(content[:end], name="x")


def test_largest_number_of_pixels(pixels):
    content = encoded(Image.fromarray(pixels))
    assert open_image(content, max_pixels=54).size == (9, 6)
    for source in (content, pixels):
        with pytest.raises(ImageError, match="9 x 6 pixels"):
            open_image(source, max_pixels=53)


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8)]
)
def test_arrays_that_are_no_images(array):
    with pytest.raises(ImageError, match=r"has shape .* expected uint8"):
        open_image(array)


def test_no_file_and_no_source(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "none.png")
    with pytest.raises(OSError, match="regular file"):
        open_image(tmp_path)
    with pytest.raises(TypeError, match="source is int"):
        open_image(7)


def test_large_jpegs_are_decoded_smaller():
    place = np.linspace(0, 9, 1600)
    waves = (127 + 120 * np.sin(place[:, None]) * np.cos(place[None, :1200])).astype(np.uint8)
    content = encoded(Image.fromarray(waves).convert("RGB"), "JPEG", quality=95)
    small = open_image(content, size=100)
    assert small.size == (300, 400)
    assert open_image(content).size == (1200, 1600)
    how = Preprocessing(size=100)
    one, other = (prepare_image(image, how) * 128 for image in (small, open_image(content)))
    assert np.abs(one - other).max() < 3


def test_input_of_a_network(pixels, rng):
    same = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
    got = prepare_image(open_image(same), Preprocessing())
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, ((same - 127.0) / 128).transpose(2, 0, 1))
    # The middle of what is wider is cut out, then resized.
    wide = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    middle = wide.crop((10, 0, 50, 40)).resize((32, 32), Image.Resampling.BICUBIC)
    how = Preprocessing(size=32, mean=(1, 2, 3), std=(4, 5, 6), channels="BGR")
    expected = (np.asarray(middle)[..., ::-1] - [1.0, 2, 3]) / [4, 5, 6]
    got = prepare_image(wide, how)
    # The filter sees a little of what is beside the square.
    np.testing.assert_allclose(got[..., 2:-2], expected.transpose(2, 0, 1)[..., 2:-2], atol=1e-5)
    np.testing.assert_array_equal(square_pixels(wide, how)[:, 2:-2], np.asarray(middle)[:, 2:-2])
    both = np.empty_like(got)
    normalise(square_pixels(wide, how), how, both)
    np.testing.assert_array_equal(both, got)
    bar = Image.new("RGB", (1, 60_000), (10, 20, 30))
    np.testing.assert_allclose(
        prepare_image(bar, Preprocessing(size=8))[:, 0, 0], (np.array([10, 20, 30]) - 127) / 128
    )


def test_preprocessing_is_kept_in_json_and_checked():
    how = Preprocessing(size=240, channels="BGR", mean=(103.9, 116.8, 123.7), std=(1, 1, 1))
    assert Preprocessing.from_dict(how.as_dict()) == how
    for name, value in [
        ("size", 0), ("size", 2.5), ("mean", [1, 2]), ("std", [1, 1, 0]), ("channels", "RBG"),
        ("resize", "none"), ("crop", "left"), ("mean", "abc"), ("std", None),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=name):
            Preprocessing.from_dict({**how.as_dict(), name: value})
    with pytest.raises(ValueError, match="expected size"):
        Preprocessing.from_dict({"size": 3})


def test_find_images(tmp_path):
    for name in ("b.JPG", "a.png", "sub/c.webp", "notes.txt", ".hidden.jpg", ".x/d.jpg", "z/n.csv"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    others: list[Path] = []
    found = find_images([tmp_path / "notes.txt", tmp_path], others=others)
    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == ["notes.txt", "a.png", "b.JPG", "sub/c.webp"]
    assert [path.name for path in others] == ["notes.txt", "n.csv"]
    assert find_images(tmp_path / "sub") == [tmp_path / "sub" / "c.webp"]
    with pytest.raises(ValueError, match="no images"):
        find_images(tmp_path / "z")
    with pytest.raises(FileNotFoundError):
        find_images(tmp_path / "none")


def test_importing_it_loads_no_heavy_package():
    code = (
        "import sys, fastrnn.vision.images; "
        "print([m for m in ('PIL', 'torch', 'onnxruntime', 'onnx', 'h5py') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr

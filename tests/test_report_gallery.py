"""Previews of pictures in the gallery of the page."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from fastrnn.report import gallery


def opened(preview: tuple[str, bool] | None) -> Image.Image:
    assert preview is not None
    return Image.open(io.BytesIO(base64.b64decode(preview[0].partition(",")[2])))


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("b.png", "JPEG")])
def test_a_preview_opens_its_picture_once(tmp_path, monkeypatch, rng, name, kind):
    """A photograph, which a large PNG is taken for, becomes a JPEG."""
    side = 1500 if name.startswith("b") else 800
    pixels = np.zeros((side, side // 2, 3), np.uint8)
    if name.startswith("b"):
        pixels[:] = rng.integers(0, 256, pixels.shape)
    Image.fromarray(pixels).save(tmp_path / name)
    count, real = [], Image.open
    monkeypatch.setattr(
        Image, "open", lambda *given, **more: count.append(1) or real(*given, **more)
    )
    preview = gallery._preview(tmp_path / name)
    assert len(count) == 1
    image = opened(preview)
    assert (image.format, image.size) == (kind, (160, 320))


def test_a_preview_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (2000, 1000)).save(tmp_path / "a.jpg", exif=exif)
    assert opened(gallery._preview(tmp_path / "a.jpg")).size == (160, 320)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_has_no_preview(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert gallery._preview(tmp_path / "a.png") is None
    assert gallery._preview(tmp_path / "gone.png") is None

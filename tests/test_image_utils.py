"""Images: download, load, blur, and preprocess for both versions of the course."""

from __future__ import annotations

import errno
import http.server
import threading

import numpy as np
import pytest
from PIL import Image

from fastrnn.image_utils import (
    SQUEEZENET_MEAN,
    SQUEEZENET_STD,
    blur_image,
    deprocess_image,
    image_from_url,
    load_image,
    preprocess_image,
)


@pytest.fixture
def picture(tmp_path, rng):
    """The path of a small PNG file, and its pixels."""
    pixels = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png", pixels


@pytest.fixture
def server(picture):
    """The URL of a local web server that serves only the image."""
    content = picture[0].read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/picture.png"
            self.send_response(200 if found else 404)
            self.end_headers()
            if found:
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_from_the_web(server, picture, capsys):
    got = image_from_url(f"{server}/picture.png")
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, picture[1])
    assert image_from_url(f"{server}/other.png") is None
    assert capsys.readouterr().out == f"HTTP Error:  404 {server}/other.png\n"


def test_from_files(picture, monkeypatch):
    path, pixels = picture
    monkeypatch.chdir(path.parent)
    for url in (path.as_uri(), str(path), path, "picture.png"):
        np.testing.assert_array_equal(image_from_url(url), pixels)


def test_what_cannot_be_fetched_is_printed(tmp_path, capsys):
    absent = tmp_path / "absent.png"
    assert image_from_url(str(absent)) is None
    assert capsys.readouterr().out == f"URL Error:  No such file or directory {absent}\n"
    assert image_from_url(absent.as_uri()) is None
    assert capsys.readouterr().out.startswith("URL Error:  ")


def test_timeout_is_printed(monkeypatch, capsys):
    def slow(url, timeout):
        assert timeout > 0
        raise TimeoutError(errno.ETIMEDOUT, "timed out")

    monkeypatch.setattr("urllib.request.urlopen", slow)
    assert image_from_url("http://example.invalid/x.jpg") is None
    assert capsys.readouterr().out == "URL Error:  timed out http://example.invalid/x.jpg\n"


@pytest.mark.parametrize(
    ("mode", "shape"), [("L", (3, 5)), ("RGBA", (3, 5, 4)), ("P", (3, 5, 3)), ("CMYK", (3, 5, 3))]
)
def test_modes(tmp_path, mode, shape):
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    Image.new("RGB", (5, 3), (255, 0, 0)).convert(mode).save(path)
    got = load_image(path)
    assert got.shape == shape and got.dtype == np.uint8
    if len(shape) == 3:
        np.testing.assert_array_equal(got[0, 0, :3], [255, 0, 0])


def test_load_image(picture):
    path, pixels = picture
    np.testing.assert_array_equal(load_image(path), pixels)
    assert load_image(str(path), size=2).shape == (2, 3, 3)
    assert load_image(path, size=8).shape == (8, 12, 3)
    with pytest.raises(ValueError, match=r"size.*0"):
        load_image(path, size=0)


def test_a_narrow_image_is_not_enlarged_without_bounds(tmp_path):
    """Its longer side grows by the same factor as its shorter one."""
    path = tmp_path / "narrow.png"
    Image.new("L", (1, 2_000_000)).save(path)
    assert load_image(path).shape == (2_000_000, 1)
    assert load_image(path, size=2).shape == (4_000_000, 2)
    with pytest.raises(OSError, match=rf"{path}: .*has 5 x 10000000 pixels .*; expected fewer"):
        load_image(path, size=5)
    Image.new("L", (10, 160)).save(path)
    assert load_image(path, size=1200).shape == (19_200, 1200)
    with pytest.raises(FileNotFoundError):
        load_image(path.with_name("absent.png"))
    path.write_text("no picture")
    with pytest.raises(OSError):
        load_image(path)


def test_blur_weights():
    X = np.zeros((1, 2, 5, 5))
    X[0, 0, 2, 2] = 200
    out = blur_image(X)
    np.testing.assert_allclose(out[0, 0, 1:4, 1:4], [[1, 2, 1], [2, 188, 2], [1, 2, 1]])
    assert out[0, 1].max() == 0 and out.sum() == pytest.approx(200)
    corner = np.zeros((1, 1, 3, 3), dtype=np.float32)
    corner[..., 0, 0] = 200
    out = blur_image(corner)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[0, 0], [[188, 2, 0], [2, 1, 0], [0, 0, 0]])
    assert blur_image(np.full((1, 1, 3, 3), 200, dtype=np.uint8))[0, 0, 1, 1] == 200
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        blur_image(np.zeros((3, 3)))


def test_squeezenet_normalisation(picture):
    _, pixels = picture
    x = preprocess_image(pixels)
    assert x.dtype == np.float32 and x.shape == pixels.shape
    expected = (pixels / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(x, expected, atol=2e-6)
    back = deprocess_image(x)
    assert back.dtype == np.uint8
    assert np.abs(back.astype(int) - pixels).max() <= 1
    np.testing.assert_allclose(SQUEEZENET_MEAN, [0.485, 0.456, 0.406])
    np.testing.assert_allclose(SQUEEZENET_STD, [0.229, 0.224, 0.225])


def test_deprocess_clips_or_rescales():
    x = preprocess_image(np.array([[[0, 128, 255]]], dtype=np.uint8)) * 4
    clipped = deprocess_image(x)
    assert clipped.min() == 0 and clipped.max() == 255
    x = preprocess_image(np.array([[[100, 100, 100], [110, 105, 120]]], dtype=np.uint8))
    for stretched in (deprocess_image(x, True), deprocess_image(x, rescale=True)):
        assert stretched.min() == 0 and stretched.max() >= 254
        assert abs(int(stretched[0, 1, 0]) - 127) <= 1


@pytest.mark.parametrize("mean", ["image", "pixel", "none"])
def test_the_2016_signature(picture, rng, mean):
    _, pixels = picture
    mean_img = rng.uniform(0, 255, (3, 4, 6)).astype(np.float32)
    offset = {"image": mean_img, "pixel": mean_img.mean((1, 2), keepdims=True), "none": 0}[mean]
    x = preprocess_image(pixels, mean_img, mean)
    assert x.shape == (1, 3, 4, 6) and x.dtype == np.float32
    np.testing.assert_allclose(x[0], pixels.transpose(2, 0, 1) - offset, rtol=1e-5, atol=1e-4)
    for back in (
        deprocess_image(x, mean_img, mean),
        deprocess_image(x[0], mean_img, mean=mean),
        deprocess_image(x, mean_img=mean_img, mean=mean),
    ):
        assert back.dtype == np.uint8 and back.shape == pixels.shape
        assert np.abs(back.astype(int) - pixels).max() <= 1
    stretched = deprocess_image(x, mean_img, mean, renorm=True)
    assert stretched.min() == 0 and stretched.max() == 255


def test_pre_processing_refuses():
    pixels, mean_img = np.zeros((4, 6, 3)), np.zeros((3, 4, 6))
    with pytest.raises(ValueError, match="'median'"):
        preprocess_image(pixels, mean_img, "median")
    with pytest.raises(ValueError, match="mean_img is None"):
        preprocess_image(pixels, mean="pixel")
    with pytest.raises(ValueError, match=r"img.*\(4, 6\)"):
        preprocess_image(pixels[..., 0])
    with pytest.raises(ValueError, match=r"img.*\(3, 4, 6\)"):
        deprocess_image(mean_img)
    with pytest.raises(ValueError, match=r"img.*\(4, 6, 3\)"):
        deprocess_image(pixels, mean_img)
    with pytest.raises(ValueError, match=r"mean_img.*\(3,\)"):
        deprocess_image(mean_img, np.zeros(3))

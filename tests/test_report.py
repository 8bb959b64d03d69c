"""The plot and the page: whole, self-contained, and safe with any text."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastrnn.report import Sample, draw_loss, find_picture, samples_page

HISTORY = [
    {"step": 5, "epoch": 0.5, "loss": 3.0, "learning_rate": 0.1},
    {"step": 10, "epoch": 1.0, "loss": 2.0, "learning_rate": 0.1},
    {"step": 10, "epoch": 1, "loss": 2.5, "val_loss": 2.2, "val_perplexity": 9.0},
]


class Reader(HTMLParser):
    """Collects tags, and checks that what is opened is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data


def opened(uri: str) -> Image.Image:
    kind, _, data = uri.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert kind == f"data:image/{image.format.lower()}"
    return image


@pytest.mark.parametrize("history", [HISTORY, HISTORY[:2], HISTORY[2:], []])
def test_plot_is_a_picture_with_something_on_it(history):
    light, dark = (
        np.asarray(Image.open(io.BytesIO(draw_loss(history, theme))).convert("L"), float)
        for theme in ("light", "dark")
    )
    assert light.shape == (600, 1200)
    assert light.mean() > 220
    assert dark.mean() < 60
    assert light.std() > 5


def test_plot_shows_validation_in_its_own_colour():
    def orange(history: list[dict]) -> int:
        rgb = np.asarray(Image.open(io.BytesIO(draw_loss(history))).convert("RGB"), int)
        return int((rgb[..., 0] - rgb[..., 2] > 60).sum())

    assert orange(HISTORY[:2]) == 0
    assert orange(HISTORY) > 50


def test_page(tmp_path: Path):
    small = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    Image.fromarray(small).save(tmp_path / "small one.png")
    Image.fromarray(np.full((400, 800, 3), 99, np.uint8)).save(tmp_path / "large.jpg")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    samples = [
        Sample("a <b> & a", ["one", "one", '"two"'], "small one.png", True),
        Sample("large", ["x"], "large.jpg", False),
        Sample("no file", ["y"], "http://example.org/<a>.jpg"),
        Sample("", [], "broken.png"),
        Sample("by uri", [], (tmp_path / "small one.png").as_uri()),
    ]
    page = samples_page("Run <1>", "about", {"BLEU": "0.9"}, samples, tmp_path, HISTORY)
    reader = Reader(page)
    for text in ("Run <1>", "a <b> & a", '"two"', "http://example.org/<a>.jpg", "(no words)"):
        assert text in reader.text
    assert reader.text.count("✓ true") == 1
    assert reader.text.count("✗ false") == 1
    assert reader.text.count("one") == 1, "a reference is shown once"
    # Nothing to fetch: every source is in the page.
    sources = [a[key] for _, a in reader.tags for key in ("src", "srcset", "href") if key in a]
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"url\(|@import|<script|<link", page)
    _dark, _light, first, large, by_uri = (opened(source) for source in sources)
    np.testing.assert_array_equal(np.asarray(first), small)
    np.testing.assert_array_equal(np.asarray(by_uri), small)
    assert large.size == (320, 160)
    shown = [a.get("class") for tag, a in reader.tags if tag == "img"]
    assert shown == ["plot", "pixels", None, "pixels"]


def test_page_without_anything(tmp_path: Path):
    reader = Reader(samples_page("Run", "", {}, [], tmp_path, []))
    assert "img" not in [tag for tag, _ in reader.tags]


def test_find_picture(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"")
    assert find_picture("a.png", tmp_path) == tmp_path / "a.png"
    for url in ("", "b.png", "http://a.png", "https://host/a.png", "data:a.png", "."):
        assert find_picture(url, tmp_path) is None

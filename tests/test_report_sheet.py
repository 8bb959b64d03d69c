"""The contact sheet: where pictures and captions are, and that every text fits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastrnn.report import sheet
from fastrnn.report.sheet import MAX_PICTURES, SHEET_PICTURE, make_sheet, write_sheet


@dataclass
class Caption:
    text: str


@dataclass
class Item:
    """What the sheet needs of an image with its captions."""

    name: str
    captions: list[Caption]
    preview: Image.Image | None


RED, GREEN, BLUE = (200, 30, 30), (30, 160, 40), (30, 60, 200)


def item(color=RED, size=(320, 240), texts=("a dog",), name="folder/dog.jpg"):
    return Item(name, [Caption(text) for text in texts], Image.new("RGB", size, color))


def box_of(image, color):
    """Left, top, width and height of what has a color."""
    rows, columns = np.nonzero((np.asarray(image) == color).all(axis=2))
    left, top = columns.min(), rows.min()
    return left, top, columns.max() - left + 1, rows.max() - top + 1


def ink(image, box):
    """The number of dark pixels in a box (left, top, right, bottom)."""
    return int((np.asarray(image.crop(box)).max(axis=2) < 128).sum())


def test_pictures_keep_their_shapes_and_lie_in_a_grid():
    drawn = make_sheet([item(RED), item(GREEN, (150, 300)), item(BLUE, (640, 160))])
    assert drawn.mode == "RGB"
    red, green, blue = (box_of(drawn, color) for color in (RED, GREEN, BLUE))
    assert red[2:] == (320, 240)
    assert green[2:] == (160, 320)
    assert blue[2:] == (320, 80)
    # Each is in the middle of its column and of the row, which is as high as its highest picture.
    middles = [(left + width / 2, top + height / 2) for left, top, width, height in
               (red, green, blue)]  # fmt: skip
    step = middles[1][0] - middles[0][0]
    assert step == middles[2][0] - middles[1][0] > SHEET_PICTURE
    assert len({middle for _, middle in middles}) == 1


def test_row_of_landscapes_is_as_high_as_they_are():
    drawn = make_sheet([item(RED), item(GREEN)])
    assert drawn.height < 240 + 150


def test_small_pictures_are_enlarged_without_smoothing():
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = RED
    pixels[16:] = GREEN
    tiny = Item("a", [Caption("a")], Image.fromarray(pixels))
    drawn = make_sheet([tiny])
    assert box_of(drawn, RED)[2:] == box_of(drawn, GREEN)[2:] == (320, 160)


@pytest.mark.parametrize(
    ("count", "columns"), [(1, 1), (2, 2), (3, 3), (4, 2), (9, 3), (48, 6), (400, 18)]
)
def test_grid_is_about_square(count, columns):
    drawn = make_sheet([item(RED, (32, 32))] * count)
    assert drawn.width == 64 + columns * SHEET_PICTURE + (columns - 1) * 24


def test_caption_and_name_are_below_their_picture():
    drawn = make_sheet([item(RED, texts=("a dog",)), item(GREEN, texts=("",), name="")])
    left, top, width, height = box_of(drawn, RED)
    assert ink(drawn, (left, top + height, left + width, drawn.height)) > 50
    assert ink(drawn, (0, 0, drawn.width, top)) == 0
    # Next to the texts there is nothing.
    assert ink(drawn, (left + width, 0, left + width + 24, drawn.height)) == 0


def lines_of(drawn, color=RED):
    """The rows of text below the picture: how many there are with a gap in between."""
    left, top, width, height = box_of(drawn, color)
    below = np.asarray(drawn.crop((left, top + height, left + width, drawn.height)))
    dark = (below.max(axis=2) < 190).any(axis=1)
    return int((np.diff(dark.astype(int)) == 1).sum())


def test_every_caption_is_drawn():
    assert lines_of(make_sheet([item(texts=("a dog",), name="a")])) == 2
    assert lines_of(make_sheet([item(texts=("a dog", "a cat", "a cow"), name="a")])) == 4


def test_title_is_above_the_pictures():
    drawn = make_sheet([item()], title="runs/mine, beam 3")
    assert ink(drawn, (0, 0, drawn.width, box_of(drawn, RED)[1])) > 50


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a dog runs", 1),
        ("a brown dog runs through the high grass of a wide field", 2),
        ("word " * 200, 6),
        ("w" * 60, 3),
        ("ένας σκύλος τρέχει", 1),
    ],
)
def test_captions_are_wrapped_within_the_column(text, lines):
    found = sheet._Lines.wrap(text, "best", SHEET_PICTURE, 6)
    assert len(found.lines) == lines
    assert all(sheet._measure(line, "best") <= SHEET_PICTURE for line in found.lines)
    whole = "".join(found.lines).replace(" ", "")
    if lines == 6:
        assert whole.endswith("…")
        assert text.replace(" ", "").startswith(whole[:-1])
    else:
        assert whole == text.replace(" ", "")


def test_nothing_is_drawn_outside_the_column():
    texts = ("w" * 300, "word " * 100, "mmm " * 100)
    drawn = make_sheet([item(RED, texts=texts, name="m" * 300), item(GREEN)])
    left, _, width, _ = box_of(drawn, RED)
    edge = np.asarray(drawn.crop((left + width + 1, 0, left + width + 23, drawn.height)))
    assert (edge == 255).all()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("holiday/dog.jpg", "dog.jpg"),
        ("https://host.example/a/dog.jpg", "dog.jpg"),
        ("C:\\photos\\dog.jpg", "dog.jpg"),
        ("Größe ελληνικά фото.jpg", "Größe ελληνικά фото.jpg"),
        ("bad\x1b[2J\x00\n.jpg", "bad\ufffd[2J\ufffd .jpg"),
        ("bytes \udcff.jpg", "bytes \ufffd.jpg"),
        ("x" * 500 + "1.jpg", "…"),
    ],
)
def test_names_that_are_shown(name, shown):
    cell = sheet._make_cell(item(name=name))
    [line] = cell.texts[-1].lines
    assert sheet._measure(line, "name") <= SHEET_PICTURE
    if shown == "…":
        assert "…" in line
        assert line.endswith("x1.jpg")
    else:
        assert line == shown
    make_sheet([item(name=name)])


def test_every_script_is_drawn_or_escaped(monkeypatch):
    """Without a font that has them, names still differ; with one, its glyphs are used."""
    monkeypatch.setattr(sheet, "_system_fonts", list)
    sheet._font_for.cache_clear()
    try:
        assert sheet._clean("写真1 𝕏😀𐀀") == "\\u5199\\u771f1 𝕏😀\\U00010000"
    finally:
        sheet._font_for.cache_clear()


def test_text_is_split_between_fonts(monkeypatch):
    """A second font draws what the first one has not; accents stay with their letters."""
    main = sheet._main_font()
    other = main.replace("DejaVuSans.ttf", "STIXSizOneSymReg.ttf")
    real = sheet._characters
    taken = {ord("é"), ord("ß")}
    monkeypatch.setattr(
        sheet, "_characters", lambda path: real(main) - taken if path == main else taken
    )
    monkeypatch.setattr(sheet, "_system_fonts", lambda: [other])
    sheet._font_for.cache_clear()
    try:
        runs = [(run, font.path) for run, font in sheet._runs("ab é\u0301ß c", 12)]
    finally:
        sheet._font_for.cache_clear()
    assert [run for run, _ in runs] == ["ab ", "é\u0301ß ", "c"]
    assert [path for _, path in runs] == [main, other, main]


def test_sheet_is_written_whole(tmp_path):
    path = tmp_path / "sheet.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"dog\.jpg: has no preview"):
        write_sheet(path, [Item("dog.jpg", [Caption("a dog")], None)])
    assert path.read_bytes() == b"old"
    write_sheet(path, [item()])
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]
    with Image.open(path) as written:
        assert written.format == "PNG"
        assert np.array_equal(np.asarray(written), np.asarray(make_sheet([item()])))


def test_sheet_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "sheet.png"
    path.write_bytes(b"old")

    def save(self, file, *_):
        write = file.write if hasattr(file, "write") else Path(file).write_bytes
        write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match="No space left"):
        write_sheet(path, [item()])
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("sheet.png", b"old")]


@pytest.mark.parametrize("count", [0, MAX_PICTURES + 1])
def test_number_of_pictures_is_bounded(count):
    with pytest.raises(ValueError, match=f"items has {count} entries; expected 1 to 400"):
        make_sheet([item()] * count)

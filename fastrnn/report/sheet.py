"""A contact sheet: pictures in a grid, each with its captions below it."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_aside

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

    from ..captioner import Captioned

SHEET_PICTURE = 320
"""Largest width and height of a picture on the sheet, in pixels."""
MAX_PICTURES = 400
"""Largest number of pictures on a sheet."""

_PIXEL_ART = 96
"""Pictures up to this size are enlarged without smoothing."""
_MARGIN, _BETWEEN, _BELOW = 32, 24, 34
"""Pixels at the edges of the sheet, between columns, and below each row."""
_LINES = 6
"""Largest number of lines of a caption."""
_PAPER, _MAT = "#ffffff", "#f1f1ee"
_COLORS = {"title": "#1f2430", "best": "#1f2430", "other": "#697386", "name": "#8a91a0"}
_SIZES = {"title": 22, "best": 17, "other": 14, "name": 12}


def make_sheet(items: Sequence[Captioned], title: str = "") -> Image.Image:
    """Draw a contact sheet.

    Parameters
    ----------
    items : sequence of Captioned
        The images, each with a ``preview`` of at least `SHEET_PICTURE` pixels, or all there are.
    title : str, optional
        A line above the pictures.

    Returns
    -------
    PIL.Image.Image
        In RGB. The pictures keep their shapes. Below each are its captions, best first, and the
        name of its file.

    Raises
    ------
    ValueError
        If there are no items or more than `MAX_PICTURES`, or if one has no preview.
    """
    from PIL import Image, ImageDraw

    if not 1 <= len(items) <= MAX_PICTURES:
        raise ValueError(f"items has {len(items)} entries; expected 1 to {MAX_PICTURES}")
    columns = len(items) if len(items) <= 3 else ceil(sqrt(len(items) * 0.75))
    cells = [_make_cell(item) for item in items]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    step = SHEET_PICTURE + _BETWEEN
    width = 2 * _MARGIN + columns * step - _BETWEEN
    heading = _Lines.wrap(title, "title", width - 2 * _MARGIN, 2) if title else _Lines("title", [])
    top = _MARGIN + (heading.height + 16 if title else 0)
    boxes = [max(cell.picture.height for cell in row) for row in rows]
    heights = [
        box + max(sum(lines.height for lines in cell.texts) + cell.gaps for cell in row) + _BELOW
        for box, row in zip(boxes, rows, strict=True)
    ]
    sheet = Image.new("RGB", (width, top + sum(heights) - _BELOW + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    heading.draw(pen, _MARGIN, _MARGIN)
    for row, box, height in zip(rows, boxes, heights, strict=True):
        for column, cell in enumerate(row):
            cell.draw(sheet, pen, _MARGIN + column * step, top, box)
        top += height
    return sheet


def write_sheet(path: str | os.PathLike[str], items: Sequence[Captioned], title: str = "") -> None:
    """Draw a contact sheet and write it as a PNG file.

    Parameters
    ----------
    path : path
        The file. An existing file is replaced.
    items, title
        As for `make_sheet`.

    Raises
    ------
    OSError
        If the file cannot be written.
    ValueError
        See `make_sheet`.
    """
    sheet = make_sheet(items, title)
    write_aside(path, lambda file: sheet.save(file, "png"))


# -- one picture with its captions


@dataclass(frozen=True)
class _Cell:
    picture: Image.Image
    texts: list[_Lines]

    @property
    def gaps(self) -> int:
        """The pixels above each text: fewer between captions."""
        return 10 + 4 * (len(self.texts) - 1)

    def draw(
        self, sheet: Image.Image, pen: ImageDraw.ImageDraw, left: int, top: int, box: int
    ) -> None:
        pen.rectangle((left, top, left + SHEET_PICTURE - 1, top + box - 1), fill=_MAT)
        across, down = SHEET_PICTURE - self.picture.width, box - self.picture.height
        sheet.paste(self.picture, (left + across // 2, top + down // 2))
        top += box + 10
        for lines in self.texts:
            lines.draw(pen, left, top)
            top += lines.height + 4


def _make_cell(item: Captioned) -> _Cell:
    if item.preview is None:
        raise ValueError(f"{item.name}: has no preview; expected a picture to draw")
    texts = []
    for rank, caption in enumerate(item.captions):
        kind = "best" if rank == 0 else "other"
        texts.append(_Lines.wrap(caption.text or "(no words)", kind, SHEET_PICTURE, _LINES))
    name = item.name.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or item.name
    texts.append(_Lines("name", [_shorten(_clean(name), "name", SHEET_PICTURE)]))
    return _Cell(_fit(item.preview), texts)


def _fit(picture: Image.Image) -> Image.Image:
    """Return a picture as large as its place, in its own shape."""
    from PIL import Image

    longest = max(picture.size)
    scale = SHEET_PICTURE / longest
    how = Image.Resampling.LANCZOS
    if longest <= _PIXEL_ART:
        scale, how = SHEET_PICTURE // longest, Image.Resampling.NEAREST
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture if size == picture.size else picture.resize(size, how)


# -- text


@dataclass(frozen=True)
class _Lines:
    """Lines of one kind of text."""

    kind: str
    lines: list[str]

    @property
    def spacing(self) -> int:
        return round(_SIZES[self.kind] * 1.35)

    @property
    def height(self) -> int:
        return self.spacing * len(self.lines)

    @classmethod
    def wrap(cls, text: str, kind: str, width: int, most: int) -> _Lines:
        lines = list(_wrap(_clean(text), lambda line: _measure(line, kind) <= width))
        if len(lines) > most:
            rest = " ".join(lines[most - 1 :])
            lines = [*lines[: most - 1], _shorten(rest, kind, width, at_end=True)]
        return cls(kind, lines)

    def draw(self, pen: ImageDraw.ImageDraw, left: int, top: int) -> None:
        size, color = _SIZES[self.kind], _COLORS[self.kind]
        for number, line in enumerate(self.lines):
            x, baseline = float(left), top + self.spacing * number + size
            for run, font in _runs(line, size):
                pen.text((x, baseline), run, fill=color, font=font, anchor="ls")
                x += font.getlength(run)


def _wrap(text: str, fits: Callable[[str], bool]) -> Iterator[str]:
    """Break text at blanks, and within words that are wider than a line."""
    line = ""
    for word in text.split():
        if line and fits(f"{line} {word}"):
            line = f"{line} {word}"
            continue
        if line:
            yield line
        line = word
        while not fits(line):
            start = _longest(line, fits)
            yield line[:start]
            line = line[start:]
    if line:
        yield line


def _longest(text: str, fits: Callable[[str], bool]) -> int:
    """Return how many characters of text fit, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(text[:middle]) else (low, middle - 1)
    while low > 1 and low < len(text) and _joins(text[low]):
        low -= 1
    return low


def _shorten(text: str, kind: str, width: int, at_end: bool = False) -> str:
    """Leave out the end of text, or its middle, so that it fits into a line."""
    if _measure(text, kind) <= width:
        return text

    def cut(kept: int) -> str:
        tail = 0 if at_end else kept // 2
        return text[: kept - tail].rstrip() + "…" + (text[-tail:] if tail else "")

    low, high = 0, len(text) - 1
    while low < high:
        middle = (low + high + 1) // 2
        fits = _measure(cut(middle), kind) <= width
        low, high = (middle, high) if fits else (low, middle - 1)
    return cut(low)


def _clean(text: str) -> str:
    """Return text without control characters and without what no font can draw."""
    cleaned = []
    for character in " ".join(text.split()):
        if unicodedata.category(character) in ("Cc", "Cs", "Co", "Cn"):
            cleaned.append("\N{REPLACEMENT CHARACTER}")
        elif character.isascii() or _joins(character) or _font_for(character) is not None:
            cleaned.append(character)
        else:  # as in a string of Python, which tells names apart where boxes would not
            code = ord(character)
            cleaned.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return "".join(cleaned)


def _joins(character: str) -> bool:
    """Return whether a character is drawn together with the one before it."""
    return unicodedata.category(character) in ("Mn", "Me", "Mc", "Cf")


@lru_cache(maxsize=4096)
def _measure(text: str, kind: str) -> float:
    return sum(font.getlength(run) for run, font in _runs(text, _SIZES[kind]))


def _runs(text: str, size: int) -> Iterator[tuple[str, ImageFont.FreeTypeFont]]:
    """Split text into the longest parts that one font can draw."""
    start, current = 0, _main_font()
    for place, character in enumerate(text):
        if character.isascii() or _joins(character):
            wanted = _main_font() if character.isalnum() else current
        else:
            wanted = _font_for(character) or _main_font()
        if wanted != current:
            if place > start:
                yield text[start:place], _load(current, size)
            start, current = place, wanted
    if start < len(text):
        yield text[start:], _load(current, size)


@cache
def _load(path: str, size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(path, size)


@cache
def _main_font() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


@cache
def _font_for(character: str) -> str | None:
    """Return the first font that has a character; None if there is none."""
    for path in (_main_font(), *_system_fonts()):
        if ord(character) in _characters(path):
            return path
    return None


@cache
def _system_fonts() -> list[str]:
    """Return the fonts of the system, those of regular weight first."""
    from matplotlib.font_manager import findSystemFonts

    def order(path: str) -> tuple[bool, str]:
        name = Path(path).stem.lower()
        return any(word in name for word in ("bold", "italic", "oblique", "mono")), name

    return sorted(findSystemFonts(), key=order)


@cache
def _characters(path: str) -> frozenset[int]:
    """Return the characters that a font has; none if it cannot be drawn with."""
    from matplotlib.ft2font import FT2Font

    try:
        font: Any = FT2Font(path)
        _load(path, 16).getlength("x")
        return frozenset(font.get_charmap())
    except Exception:  # fonts of bitmaps alone, damaged ones and others
        return frozenset()

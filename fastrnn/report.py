"""What a run leaves to look at: a plot of the loss, and captions beside their pictures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

_THEMES = {
    "light": {"paper": "#ffffff", "ink": "#1f2430", "soft": "#697386", "line": "#e3e6ec",
              "train": "#3557a5", "val": "#d1603d"},
    "dark": {"paper": "#1b1f27", "ink": "#e8eaf0", "soft": "#98a1b3", "line": "#303644",
             "train": "#8fb0f5", "val": "#f0936f"},
}  # fmt: skip
_MOST_PIXELS = 320
"""Pictures larger than this are scaled down for the page."""


@dataclass(frozen=True)
class Sample:
    """A caption to show.

    Attributes
    ----------
    caption : str
        What the model says.
    references : sequence of str
        What people said.
    url : str
        Where the picture is.
    true : bool or None
        Whether the caption is true of the picture; None where nobody can tell.
    """

    caption: str
    references: Sequence[str]
    url: str = ""
    true: bool | None = None


def draw_loss(history: Sequence[Mapping[str, Any]], theme: str = "light") -> bytes:
    """Draw the loss over the epochs.

    Parameters
    ----------
    history : sequence of dict
        As `fastrnn.training.Trainer.history`.
    theme : {'light', 'dark'}, optional

    Returns
    -------
    bytes
        A PNG file, 1200 by 600 pixels.
    """
    color = _THEMES[theme]
    epochs = [record for record in history if "val_loss" in record]
    steps = [record for record in history if "val_loss" not in record]
    figure = Figure(figsize=(8, 4), dpi=150, layout="constrained", facecolor=color["paper"])
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=color["paper"])
    at, loss = [r["epoch"] for r in steps], [r["loss"] for r in steps]
    axes.plot(at, loss, color=color["train"], lw=1.5, label="training")
    known = [r for r in epochs if r["val_loss"] is not None]
    if known:
        at, loss = [r["epoch"] for r in known], [r["val_loss"] for r in known]
        axes.plot(at, loss, color=color["val"], lw=1.5, marker="o", ms=4, label="validation")
    axes.set_xlabel("epoch", color=color["ink"])
    axes.set_ylabel("loss, nats per word", color=color["ink"])
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=color["line"], lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=color["soft"], length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(color["soft"])
    axes.legend(frameon=False, labelcolor=color["ink"])
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def find_picture(url: str, directory: Path) -> Path | None:
    """Return the file that a URL names, or None where it is not one on this machine.

    Parameters
    ----------
    url : str
        ``file://...``, or a path, which may be relative to `directory`.
    directory : Path
        The data set's.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        path = Path(unquote(parts.path))
    elif parts.scheme or not url:
        return None
    else:
        path = Path(directory, url)
    return path if path.is_file() else None


def _embedded(file: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file).decode('ascii')}"


def _picture(path: Path) -> tuple[str, bool] | None:
    """Read a picture as a data URI, and whether it is so small that its pixels should be seen."""
    try:
        with Image.open(path) as picture:
            drawn = picture.format == "PNG"
            image = picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None  # a picture that cannot be read is a picture that is not there
    image.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
    kind = "png" if drawn else "jpeg"
    file = io.BytesIO()
    image.save(file, format=kind, quality=85)
    return _embedded(file.getvalue(), kind), max(image.size) <= 96


_STYLE = """
:root { color-scheme: light dark; --paper: #f4f5f8; --card: #ffffff; --ink: #1f2430;
  --soft: #5d6678; --line: #e3e6ec; --good: #17794a; --bad: #b3312c; }
@media (prefers-color-scheme: dark) { :root { --paper: #12151b; --card: #1b1f27; --ink: #e8eaf0;
  --soft: #a0a9ba; --line: #303644; --good: #5fcf97; --bad: #ff8f86; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 28px 16px 48px; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 36px 0 12px; }
.about { color: var(--soft); margin: 6px 0 20px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px;
  margin: 0 0 16px; }
.figures div, .card, .plot { background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; }
.figures div { padding: 12px 16px; display: flex; flex-direction: column-reverse; }
.figures dt { color: var(--soft); font-size: .85rem; }
.figures dd { margin: 0; font-size: 1.5rem; font-weight: 650; line-height: 1.2;
  font-variant-numeric: tabular-nums; }
.plot { display: block; width: 100%; height: auto; max-width: 800px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 16px; }
.card { margin: 0; overflow: hidden; }
.card img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; }
.card img.pixels { image-rendering: pixelated; }
.card div { padding: 12px 14px 14px; }
.said { margin: 0 0 8px; font-weight: 600; line-height: 1.35; }
.mark { font-size: .8rem; font-weight: 650; white-space: nowrap; }
.true { color: var(--good); }
.false { color: var(--bad); }
ul { margin: 0; padding: 0; list-style: none; color: var(--soft); font-size: .875rem;
  line-height: 1.4; }
li { padding: 4px 0; border-top: 1px solid var(--line); overflow-wrap: anywhere; }
.url { color: var(--soft); font-size: .8rem; overflow-wrap: anywhere; margin: 0 0 8px; }
@media (max-width: 520px) { .figures { grid-template-columns: 1fr 1fr; } }
"""


def samples_page(
    title: str,
    about: str,
    figures: Mapping[str, str],
    samples: Sequence[Sample],
    directory: Path,
    history: Sequence[Mapping[str, Any]],
) -> str:
    """Write one HTML page that needs nothing but itself: figures, the loss, captions, pictures.

    Parameters
    ----------
    title, about : str
        The heading, and a sentence under it.
    figures : mapping of str to str
        Names and values to show large.
    samples : sequence of Sample
        Pictures that are files are embedded; of others only the URL is shown.
    directory : Path
        What relative URLs start from.
    history : sequence of dict
        For the plot; without any there is none.

    Returns
    -------
    str
    """
    text = html.escape
    lines = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>",
        f'<h1>{text(title)}</h1>\n<p class="about">{text(about)}</p>\n<dl class="figures">',
        *(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in figures.items()),
        "</dl>",
    ]
    if history:
        light, dark = (_embedded(draw_loss(history, theme)) for theme in _THEMES)
        lines += [
            f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">',
            f'<img class="plot" width="1200" height="600" alt="Loss by epoch" src="{light}">',
            "</picture>",
        ]
    lines.append('<h2>Captions of unseen pictures</h2>\n<div class="cards">')
    for sample in samples:
        lines.append('<article class="card">')
        path = find_picture(sample.url, directory)
        found = None if path is None else _picture(path)
        if found:
            source, small = found
            shown = ' class="pixels"' if small else ""
            lines.append(f'<img{shown} alt="{text(sample.caption)}" src="{source}">')
        lines.append(f'<div><p class="said">{text(sample.caption) or "(no words)"}')
        if sample.true is not None:
            word, sign = ("true", "✓") if sample.true else ("false", "✗")
            lines.append(f'<span class="mark {word}">{sign} {word}</span>')
        lines.append("</p>")
        if not found and sample.url:
            lines.append(f'<p class="url">{text(sample.url)}</p>')
        known = dict.fromkeys(sample.references)
        lines += ["<ul>", *(f"<li>{text(reference)}</li>" for reference in known)]
        lines.append("</ul></div></article>")
    lines.append("</div>\n</main>\n</body>\n</html>\n")
    return "\n".join(lines)

"""What a run leaves to look at: a plot of the loss, and a page of curves, captions and pictures.

The page is one HTML file that fetches nothing: style, script, data and pictures lie in it. Its
parts are in ``page/``; this module gathers what they show.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import io
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image

from . import __version__
from .checkpoint import (
    HISTORY_FILE,
    MODEL_FILE,
    SETTINGS_FILE,
    describe_mismatch,
    load_model,
)
from .classifiers.rnn import CaptioningRNN
from .data.scenes.dataset import read_scenes
from .data.scenes.language import caption_is_true
from .decoding import Decoded, beam_search, greedy
from .files import open_file, parse_json, read_json, write_text
from .metrics import METRIC_NAMES, CaptionScorer
from .training import Run, read_run, references_of

PAGE_FILE = "report.html"
_METRICS_FILE = "metrics.json"
_COLORS = {
    "paper": "#ffffff", "ink": "#1f2430", "soft": "#697386", "line": "#e3e6ec",
    "train": "#3557a5", "val": "#d1603d",
}  # fmt: skip
"""Of the plot."""
_MOST_PIXELS = 320
"""Pictures larger than this are scaled down for the page."""
_MOST_POINTS = 800
"""Points of one curve; more of them are averaged in groups."""
_NUMBERS = (
    "step", "epoch", "loss", "reward", "learning_rate", "val_loss", "val_perplexity", "val_bleu_4",
    "val_cider", "captions_per_second", "seconds", "validation_seconds", "bleu_1", "true_share",
    "distinct_captions", "images",
)  # fmt: skip
"""Of a line of the history or of the metrics."""


def draw_loss(history: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw the loss over the epochs.

    Parameters
    ----------
    history : sequence of dict
        As `fastrnn.training.Trainer.history`.

    Returns
    -------
    bytes
        A PNG file, 1200 by 600 pixels.
    """
    # matplotlib takes its time to load, and the page does without.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [record for record in history if "val_loss" in record]
    steps = [record for record in history if "val_loss" not in record]
    figure = Figure(figsize=(8, 4), dpi=150, layout="constrained", facecolor=_COLORS["paper"])
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=_COLORS["paper"])
    taught = [r for r in steps if r["loss"] is not None]
    at, loss = [r["epoch"] for r in taught], [r["loss"] for r in taught]
    axes.plot(at, loss, color=_COLORS["train"], lw=1.5, label="training")
    known = [r for r in epochs if r["val_loss"] is not None]
    if known:
        at, loss = [r["epoch"] for r in known], [r["val_loss"] for r in known]
        axes.plot(at, loss, color=_COLORS["val"], lw=1.5, marker="o", ms=4, label="validation")
    axes.set_xlabel("epoch", color=_COLORS["ink"])
    axes.set_ylabel("loss, nats per word", color=_COLORS["ink"])
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=_COLORS["line"], lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_COLORS["soft"], length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_COLORS["soft"])
    axes.legend(frameon=False, labelcolor=_COLORS["ink"])
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
    try:
        parts = urlsplit(url)
    except ValueError:  # "http://[": no address at all
        return None
    if parts.scheme == "file":
        path = Path(unquote(parts.path))
    elif parts.scheme or not url:
        return None
    else:
        path = Path(directory, url)
    try:
        return path if path.is_file() else None
    except (OSError, ValueError):  # a name too long, or with a null byte in it
        return None


def read_history(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read ``history.jsonl``, a JSON object per line.

    Parameters
    ----------
    path : path
        The file. One that is not there is an empty history, and a last line without its end, as
        a training that is just writing leaves it, is left out.

    Returns
    -------
    list of dict

    Raises
    ------
    ValueError
        A line is no JSON object; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        return []
    history = []
    with open_file(path) as file:
        whole = file.read().decode("utf-8", errors="replace").split("\n")[:-1]
    for number, line in enumerate(whole, 1):
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        if not _is_record(record):
            raise ValueError(f"{path}: line {number} is no record of a history: {line[:60]!r}")
        history.append(record)
    return history


def _is_measured(found: Mapping[str, Any]) -> bool:
    """Whether what the page counts with is a finite or infinite number, or unknown."""
    return all(
        found.get(name) is None
        or isinstance(found[name], float)
        or (type(found[name]) is int and abs(found[name]) < 2**63)
        for name in _NUMBERS
    )


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or not _is_measured(record):
        return False
    return record.get("epoch") is not None and math.isfinite(record["epoch"])


def _read_object(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds a {type(found).__name__}; expected a JSON object")
    return found


class Report:
    """All that the page of a run shows.

    Parameters
    ----------
    run : path
        The directory that ``fastrnn train`` writes.
    directory : path, optional
        The data set; by default the one that the settings name. Without any, the page shows the
        curves alone, and says so.
    data : mapping, optional
        The data set as `fastrnn.coco_utils.load_coco_data` returns it, where it has been read
        already. References are its ``val_references``, a list of captions for each image, where it
        has them, else the captions of the layout.
    images : int, optional
        Validation images on the page, at most, evenly spread over all of them.
    pictures : int, optional
        How many of them are shown as pictures, at most: the best, the worst, and some between.
    beam : int, optional
        Width of the beam search; 1 shows greedy captions alone.

    Raises
    ------
    FileNotFoundError
        There is no such directory.
    ValueError
        It is no run, or `images`, `pictures` or `beam` are out of range.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        *,
        directory: str | os.PathLike[str] | None = None,
        data: Mapping[str, Any] | None = None,
        images: int = 1000,
        pictures: int = 96,
        beam: int = 3,
    ) -> None:
        for name, value, least in (("images", images, 0), ("pictures", pictures, 0),
                                   ("beam", beam, 1)):  # fmt: skip
            if value < least:
                raise ValueError(f"{name} is {value}; expected at least {least}")
        self.run = Path(run)
        self._made_of: Run = read_run(run)
        self._directory = None if directory is None else Path(directory)
        self._data = data
        self._most_images, self._most_pictures, self._beam = images, pictures, beam
        self._seen: dict[str, tuple[int, int, int] | None] = {}
        self._history: list[dict[str, Any]] = []
        self._metrics: dict[str, Any] = {}
        self._gallery = _Gallery()

    @property
    def finished(self) -> bool:
        """Whether the training has come to its end, as its metrics tell that it writes last."""
        metrics, history = self._seen.get(_METRICS_FILE), self._seen.get(HISTORY_FILE)
        return metrics is not None and (history is None or metrics[0] >= history[0])

    def read(self) -> bool:
        """Read what the run holds by now; return whether it is anything new.

        Raises
        ------
        OSError, ValueError
            A file of the run or of the data is damaged, or they do not fit one another.
        """
        names = (SETTINGS_FILE, HISTORY_FILE, _METRICS_FILE, MODEL_FILE)
        found = {name: _stamp(self.run / name) for name in names}
        if found == self._seen:
            return False
        changed = {name for name in names if found[name] != self._seen.get(name, ())}
        if SETTINGS_FILE in changed:
            self._made_of = read_run(self.run)
        if HISTORY_FILE in changed:
            self._history = read_history(self.run / HISTORY_FILE)
        if _METRICS_FILE in changed:
            path = self.run / _METRICS_FILE
            self._metrics = _read_object(path) if found[_METRICS_FILE] else {}
            if not _is_measured(self._metrics):
                raise ValueError(f"{path}: holds what are no metrics of a run")
        if MODEL_FILE in changed:
            self._gallery = self._read_gallery() if found[MODEL_FILE] else _Gallery(
                ["There is no model yet: captions come with the first one that is saved."]
            )  # fmt: skip
        self._seen = found
        return True

    def _read_gallery(self) -> _Gallery:
        directory = self._directory or self._made_of.data_directory
        if self._data is None:
            if directory is None or (self._directory is None and not directory.is_dir()):
                lost = "does not say where its data is" if directory is None else (
                    f"has its data no longer at {directory}"
                )  # fmt: skip
                return _Gallery([f"This run {lost}: no captions here. "
                                 "fastrnn report --data DIR says where it is."])  # fmt: skip
            self._data = self._made_of.read_data(directory)
        model = load_model(self.run)
        if not all(np.isfinite(w).all() for w in model.params.values()):
            return _Gallery(["The model's weights are not finite: it has no captions to show."])
        return _gallery(
            model, self._data, directory or self.run,
            self._most_images, self._most_pictures, self._beam,
        )  # fmt: skip

    def page(self, reload: float | None = None) -> str:
        """Return the page as HTML.

        Parameters
        ----------
        reload : float, optional
            Seconds after which the page loads itself again, and stays where it was; by default
            it does not.
        """
        parts = importlib.resources.files("fastrnn").joinpath("page")
        style, script, frame = (
            parts.joinpath(f"report.{kind}").read_text("utf-8") for kind in ("css", "js", "html")
        )
        gallery, settings = self._gallery, self._made_of.settings
        title = self.run.resolve().name
        shown = {
            "status": self.status,
            "notes": gallery.notes,
            "figures": self._figures(),
            "curves": _curves(self._history),
            "tables": [*gallery.tables, *_tables(self._history, self._metrics, settings)],
            "methods": gallery.methods,
            "images": gallery.images,
            "reload": reload,
            "made": f"fastrnn {__version__}, {time.strftime('%Y-%m-%d %H:%M:%S')}",
        }
        # Nothing in the page can be fetched or run but what was put there on purpose.
        policy = (
            f"default-src 'none'; img-src data:; style-src {_source(style)}; "
            f"script-src {_source(script)}; base-uri 'none'; form-action 'none'"
        )
        values = {
            "policy": html.escape(policy, quote=False),
            "title": html.escape(title),
            "about": html.escape(self._about()),
            "style": style,
            "script": script,
            "data": _embedded_json(shown),
        }
        return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], frame)

    def _about(self) -> str:
        settings = self._made_of.settings
        parts = [str(settings.get("cell", "")).upper()]
        parts += [
            f"{name} {settings[key]}"
            for key, name in (("hidden_dim", "hidden"), ("wordvec_dim", "word vectors"))
            if settings.get(key)
        ]
        if settings.get("data"):
            parts.append(f"data {settings['data']}")
        return ", ".join(part for part in parts if part)

    @property
    def status(self) -> str:
        """How far the training is, in a sentence."""
        done = sum("val_loss" in record for record in self._history)
        wanted = self._made_of.config.all_epochs
        if self.finished:
            best = self._metrics.get("epoch")
            model = f"; the model is that of epoch {best}" if best else ""
            return f"Finished after {done} of {wanted} epoch{'' if wanted == 1 else 's'}{model}."
        if not self._history:
            return "Nothing is recorded yet."
        now = max(float(record["epoch"]) for record in self._history)
        return f"At epoch {now:.3g} of {wanted}."

    def _figures(self) -> list[tuple[str, str]]:
        """The few numbers to show large: of the model at the end, else of the last epoch."""
        metrics = self._metrics
        last: Mapping[str, Any] = next((r for r in self._history[::-1] if "val_loss" in r), {})
        found = []

        def add(name: str, value: Any, form: str, scale: float = 1) -> None:
            if value is not None:
                found.append((name, format(value * scale, form)))

        for method, figures in self._gallery.figures.items():
            add(f"BLEU-4, {method}", figures.get("bleu_4"), ".1f", 100)
            add(f"CIDEr, {method}", figures.get("cider"), ".1f", 100)
        if not found:
            add("BLEU-4", last.get("val_bleu_4"), ".1f", 100)
            add("CIDEr", last.get("val_cider"), ".1f", 100)
        if not found:
            add("unigram BLEU", metrics.get("bleu_1"), ".3f")
        add("true captions", metrics.get("true_share"), ".1%")
        perplexity = metrics.get("val_perplexity", last.get("val_perplexity"))
        add("validation perplexity", perplexity, ".2f")
        if metrics.get("distinct_captions") is not None and metrics.get("images"):
            found.append((f"distinct captions of {metrics['images']:,}",
                          f"{metrics['distinct_captions']:,}"))  # fmt: skip
        speed = metrics.get("captions_per_second", last.get("captions_per_second"))
        add("captions/s in training", speed, ",.0f")
        return found


class _Gallery:
    """Captions and what belongs to them; empty where there are none, with notes that say why."""

    def __init__(self, notes: Sequence[str] = ()) -> None:
        self.notes = list(notes)
        self.methods: list[str] = []
        self.images: list[dict[str, Any]] = []
        self.figures: dict[str, dict[str, Any]] = {}
        self.tables: list[dict[str, Any]] = []


def write_report(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Path:
    """Write the page of a run.

    Parameters
    ----------
    run : path
        The run directory.
    out : path, optional
        The file; by default ``report.html`` in the run directory.
    **options
        As for `Report`.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OSError, ValueError
        As `Report` and `Report.read`, or the file cannot be written.
    """
    report = Report(run, **options)
    report.read()
    out = report.run / PAGE_FILE if out is None else Path(out)
    write_text(out, report.page())
    return out


def watch_report(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    seconds: float = 5.0,
    on_write: Callable[[Path, str], None] | None = None,
    **options: Any,
) -> Path:
    """Write the page of a run again whenever the run has grown, until the training is finished.

    Parameters
    ----------
    run, out, **options
        As for `write_report`.
    seconds : float, optional
        Time from one look at the run to the next; the open page reloads as often.
    on_write : callable, optional
        Called as ``on_write(out, status)`` each time that the page was written; the status says
        how far the training is.

    Returns
    -------
    Path
        The file, which from now on stays as it is, and does not reload.

    Raises
    ------
    OSError, ValueError
        As `write_report`.
    KeyboardInterrupt
        After an interrupt; the page stays, and no longer reloads.
    """
    if not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(f"seconds is {seconds}; expected a positive number")
    report = Report(run, **options)
    out = report.run / PAGE_FILE if out is None else Path(out)
    written = False
    try:
        while True:
            if report.read():
                write_text(out, report.page(None if report.finished else seconds))
                written = True
                if on_write is not None:
                    on_write(out, report.status)
            if report.finished:
                return out
            time.sleep(seconds)
    except BaseException:
        if written:
            write_text(out, report.page())
        raise


# -- what is on the page


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What tells one state of a file from the next; None without the file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _source(text: str) -> str:
    """The name of an inline style or script in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode()}'"


def _embedded_json(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends that or begins a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _points(records: Sequence[Mapping[str, Any]], name: str, scale: float = 1.0) -> list:
    known = [
        (float(record["epoch"]), float(record[name]) * scale)
        for record in records
        if record.get(name) is not None and math.isfinite(record[name])
    ]
    if len(known) > _MOST_POINTS:
        # The curve at half of its last epoch would be news; the end of each group is where it is.
        parts = np.array_split(np.asarray(known), _MOST_POINTS)
        known = [(float(part[-1, 0]), float(part[:, 1].mean())) for part in parts]
    return [[float(f"{x:.6g}"), float(f"{y:.6g}")] for x, y in known]


def _curves(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    epochs = [record for record in history if "val_loss" in record]
    steps = [record for record in history if "val_loss" not in record] or epochs

    def line(name: str, points: list, dots: bool = True) -> dict[str, Any]:
        return {"name": name, "points": points, "dots": dots}

    train = line("training", _points(steps, "loss"), dots=False)
    rewards = _points(steps, "reward", 100)
    curves = [
        ("Loss, nats per word", "least", [train, line("validation", _points(epochs, "val_loss"))]),
        ("Validation BLEU-4, greedy", "most",
         [line("BLEU-4", _points(epochs, "val_bleu_4", 100))]),
        ("Validation CIDEr, greedy", "most",
         [line("CIDEr", _points(epochs, "val_cider", 100)),
          *([line("drawn in training", rewards, dots=False)] if rewards else [])]),
        ("Learning rate", None, [line("rate", _points(steps, "learning_rate"), dots=False)]),
        ("Captions per second", None,
         [line("captions/s", _points(epochs, "captions_per_second"))]),
    ]  # fmt: skip
    return [
        {"title": title, "best": best, "lines": lines, "first": number == 0, "zero": best is None}
        for number, (title, best, lines) in enumerate(curves)
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return value if isinstance(value, str) else json.dumps(value)


def _tables(
    history: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> list[dict[str, Any]]:
    tables = []
    if metrics:
        rows = [[name, _shown(value)] for name, value in metrics.items()]
        tables.append({"id": "measured", "title": "Metrics at the end of training", "columns": [],
                       "rows": rows, "numbers": True, "open": False})  # fmt: skip
    epochs = [record for record in history if "val_loss" in record]
    if epochs:
        names = list(dict.fromkeys(name for record in epochs for name in record))
        names.remove("epoch")
        rows = [[_shown(r["epoch"]), *(_shown(r.get(name)) for name in names)] for r in epochs]
        columns = ["epoch", *(name.replace("_", " ") for name in names)]
        tables.append({"id": "epochs", "title": "Every epoch in numbers", "columns": columns,
                       "rows": rows, "numbers": True, "open": False})  # fmt: skip
    rows = [[name, _shown(value)] for name, value in settings.items()]
    tables.append({"id": "settings", "title": "Settings", "columns": [], "rows": rows,
                   "numbers": False, "open": False})  # fmt: skip
    return tables


def _gallery(
    model: CaptioningRNN,
    data: Mapping[str, Any],
    directory: Path,
    most_images: int,
    most_pictures: int,
    beam: int,
) -> _Gallery:
    """Caption validation images, and hold the captions against the references."""
    mismatch = describe_mismatch(model, data)
    if mismatch:
        raise ValueError(f"{directory}: {mismatch}")
    gallery = _Gallery()
    total = len(data["val_features"])
    # Evenly spread, and all of them where they are few.
    rows = np.unique(np.linspace(0, total - 1, min(most_images, total)).round().astype(int))
    if not len(rows):
        gallery.notes.append("There are no validation images, so no captions to show.")
        return gallery
    features = data["val_features"][rows]
    urls = [str(data["val_urls"][row]) for row in rows]
    known = references_of(data)
    references = [list(dict.fromkeys(known[row])) for row in rows]
    scenes = read_scenes(directory)
    scenes = None if scenes is None or len(scenes) != total else [scenes[row] for row in rows]

    found: dict[str, Decoded] = {"greedy": greedy(model, features)}
    if beam > 1:
        found[f"beam {beam}"] = beam_search(model, features, beam)
    gallery.methods = list(found)
    said = [_captions(decoded, model, scenes) for decoded in found.values()]
    _measure(gallery, said, references, total)
    gallery.images = [
        {
            "name": url or f"image {row}",
            "link": url if re.match(r"https?://", url, re.I) else None,
            "picture": None,
            "pixels": False,
            "references": references[number],
            "said": [captions[number] for captions in said],
        }
        for number, (row, url) in enumerate(zip(rows.tolist(), urls, strict=True))
    ]
    _show_pictures(gallery, [find_picture(url, directory) for url in urls], most_pictures)
    return gallery


def _captions(
    decoded: Decoded, model: CaptioningRNN, scenes: Sequence[Any] | None
) -> list[dict[str, Any]]:
    """Split the best caption of every image into words with their probabilities."""
    null, end = model.word_to_idx["<NULL>"], model.word_to_idx["<END>"]
    captions = []
    for number, (ids, logs) in enumerate(
        zip(decoded.ids[:, 0].tolist(), decoded.word_log_probs[:, 0].tolist(), strict=True)
    ):
        taken = [(idx, log) for idx, log in zip(ids, logs, strict=True) if idx != null]
        words = [[model.idx_to_word[idx], round(math.exp(log), 4)] for idx, log in taken]
        mean = math.exp(sum(log for _, log in taken) / len(taken)) if taken else 0.0
        ended = words.pop()[1] if taken and taken[-1][0] == end else None
        text = " ".join(model.idx_to_word[idx] for idx, _ in taken if idx != end)
        captions.append({
            "words": words,
            "end": ended,
            "probability": round(mean, 5),
            "cider": None,
            "true": None if scenes is None else caption_is_true(text, scenes[number]),
        })  # fmt: skip
    return captions


def _measure(
    gallery: _Gallery,
    said: Sequence[Sequence[dict[str, Any]]],
    references: Sequence[Sequence[str]],
    total: int,
) -> None:
    """Hold captions against references: a table for all, CIDEr for each image."""
    judged = [number for number, known in enumerate(references) if known]
    if not judged:
        gallery.notes.append("The validation images have no references to hold captions against.")
        return
    scorer = CaptionScorer([references[number] for number in judged])
    if scorer.missing:
        gallery.notes.append(f"Some figures are left out here: {scorer.missing}")
    for method, captions in zip(gallery.methods, said, strict=True):
        texts = [" ".join(word for word, _ in captions[number]["words"]) for number in judged]
        figures = scorer.evaluate(texts)
        gallery.figures[method] = figures
        if figures["cider"] is None:
            continue
        for number, value in zip(judged, scorer.cider(texts)[1].tolist(), strict=True):
            captions[number]["cider"] = round(value, 4)
    rows = []
    for name, label in METRIC_NAMES.items():
        values = [value for f in gallery.figures.values() if (value := f.get(name)) is not None]
        if len(values) == len(gallery.methods):
            rows.append([label, *(f"{100 * value:.1f}" for value in values)])
    whole = f"all {total:,}" if len(judged) == total else f"{len(judged):,} of {total:,}"
    gallery.tables.append({
        "id": "metrics", "title": f"Metrics on {whole} validation images, times 100",
        "columns": ["", *gallery.methods], "rows": rows, "numbers": True, "open": True,
    })  # fmt: skip


def _show_pictures(gallery: _Gallery, paths: Sequence[Path | None], most: int) -> None:
    """Embed pictures: where there are too many, the best, the worst, and some between."""
    there = [number for number, path in enumerate(paths) if path is not None]
    if len(there) > most:

        def worth(number: int) -> float:
            said = gallery.images[number]["said"][-1]
            return said["probability"] if said["cider"] is None else said["cider"]

        there.sort(key=worth)
        third = most // 3
        best, worst = there[len(there) - third :], there[:third]
        between = there[third : len(there) - third]
        middle = np.linspace(0, len(between) - 1, most - 2 * third).round().astype(int)
        there = [*best, *worst, *(between[place] for place in middle)]
    for number in there:
        path = paths[number]
        shown = None if path is None else _picture(path)
        if shown is not None:
            gallery.images[number]["picture"], gallery.images[number]["pixels"] = shown


def _picture(path: Path) -> tuple[str, bool] | None:
    """Read a picture as a data URI, and whether it is so small that its pixels should be seen."""
    try:
        with Image.open(path) as picture:
            drawn = picture.format == "PNG"
            picture.draft("RGB", (_MOST_PIXELS, _MOST_PIXELS))
            image = picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None  # a picture that cannot be read is a picture that is not there
    image.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
    kind = "png" if drawn else "jpeg"
    file = io.BytesIO()
    image.save(file, format=kind, quality=85)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f"data:image/{kind};base64,{data}", max(image.size) <= 96

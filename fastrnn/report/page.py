"""The HTML page of a run: one file that loads nothing else.

Style, script, data and previews are embedded. ``page.html``, ``page.css`` and ``page.js`` show
what `Report` collects.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..checkpoint import load_model
from ..classifiers.rnn import CaptioningRNN
from ..data.layout import named_directory
from ..decoding import Decoded
from ..evaluation import shown_perplexity
from ..files import write_text
from ..runlock import in_use
from ..runs import (
    HISTORY_FILE,
    METRICS_FILE,
    MODEL_FILE,
    REPORT_FILE,
    SCENE_DIRECTORY,
    SETTINGS_FILE,
    epoch_records,
    read_history,
    read_metrics,
)
from ..training import Run, read_run
from .curves import curves_of
from .explanations import explanations_of_run
from .gallery import Gallery, make_gallery
from .tables import tables_of_run
from .template import fill_template, read_part


class Report:
    """Everything that the page of a run shows.

    Parameters
    ----------
    run : path
        The run directory.
    directory : path, optional
        The data directory. The default is the one in the settings of the run. If the data cannot
        be found there, the page has no captions.
    data : mapping, optional
        The data set, if it is in memory already; see `fastrnn.coco_utils.load_coco_data`. If it
        has ``val_references``, a list of captions for each image, these are the references.
    model : CaptioningRNN, optional
        The model of the run, if it is in memory already.
    greedy : Decoded, optional
        The greedy captions of all validation images, if they are already known.
    images : int, optional
        Largest number of validation images on the page, evenly spread over the validation set.
        Default 1000.
    pictures : int, optional
        Largest number of images with a preview: the best, the worst, and some others. Default 96.
    beam : int, optional
        Width of the beam search; 1 shows greedy captions only. Default 3.
    explain : int, optional
        Number of validation images whose captions are explained by maps, see `fastrnn.explain`.
        This needs PyTorch, the images, and a run that knows how its features were made. Default 0.
    suppress_unk : bool, optional
        Never generate ``<UNK>``. Default True.
    progress : callable, optional
        Called while captions are generated, see `fastrnn.evaluation.decode_images`.

    Raises
    ------
    FileNotFoundError
        If the run directory does not exist.
    ValueError
        If it is not a run directory, or if `images`, `pictures`, `beam` or `explain` is out of
        range.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        *,
        directory: str | os.PathLike[str] | None = None,
        data: Mapping[str, Any] | None = None,
        model: CaptioningRNN | None = None,
        greedy: Decoded | None = None,
        images: int = 1000,
        pictures: int = 96,
        beam: int = 3,
        explain: int = 0,
        suppress_unk: bool = True,
        progress: Callable[[int, int], Any] | None = None,
    ) -> None:
        for name, value, least in (("images", images, 0), ("pictures", pictures, 0),
                                   ("beam", beam, 1), ("explain", explain, 0)):  # fmt: skip
            if value < least:
                raise ValueError(f"{name} is {value}; expected at least {least}")
        self.run: Path = Path(run)
        self._settings: Run = read_run(run)
        self._directory = None if directory is None else Path(directory)
        self._data, self._model, self._greedy = data, model, greedy
        self._images, self._pictures, self._beam = images, pictures, beam
        self._explain, self._explanations = explain, ""
        self._suppress_unk, self._progress = suppress_unk, progress
        self._stamps: dict[str, tuple[int, int, int] | None] = {}
        self._history: list[dict[str, Any]] = []
        self._metrics: dict[str, Any] = {}
        self._gallery = Gallery()
        self._in_use = False

    @property
    def finished(self) -> bool:
        """Whether training has finished: it writes the metrics last."""
        metrics, history = self._stamps.get(METRICS_FILE), self._stamps.get(HISTORY_FILE)
        return metrics is not None and (history is None or metrics[0] >= history[0])

    def read(self) -> bool:
        """Read the files of the run that have changed since the last call.

        Returns
        -------
        bool
            Whether any file has changed, or training has started or ended.

        Raises
        ------
        OSError, ValueError
            If a file of the run or of the data set is damaged, or the files do not match.
        """
        names = (SETTINGS_FILE, HISTORY_FILE, METRICS_FILE, MODEL_FILE)
        stamps = {name: _stamp(self.run / name) for name in names}
        was, self._in_use = self._in_use, in_use(self.run)
        if stamps == self._stamps and self._in_use == was:
            return False
        changed = {name for name in names if stamps[name] != self._stamps.get(name, ())}
        if SETTINGS_FILE in changed:
            self._settings = read_run(self.run)
        if HISTORY_FILE in changed:
            self._history = read_history(self.run)
        if METRICS_FILE in changed:
            self._metrics = read_metrics(self.run)
        if MODEL_FILE in changed:
            self._gallery = self._read_gallery(stamps[MODEL_FILE] is not None)
        self._stamps = stamps
        return True

    def _read_gallery(self, has_model: bool) -> Gallery:
        if not has_model:
            return Gallery(["There is no model yet. Captions appear when the first one is saved."])
        directory = self._directory or self._settings.data_directory or named_directory()
        if self._data is None:
            if directory is None:
                return Gallery(["The settings of this run do not name a data directory, so there "
                                "are no captions. Use fastrnn report --data DIR."])  # fmt: skip
            if self._directory is None and not directory.is_dir():
                return Gallery([f"The data directory {directory} does not exist, so there are no "
                                "captions. Use fastrnn report --data DIR."])  # fmt: skip
            self._data = self._settings.read_data(directory)
        model = self._model or load_model(self.run)
        if not all(np.isfinite(w).all() for w in model.params.values()):
            return Gallery(["The model has weights that are not finite, so it has no captions."])
        gallery = make_gallery(
            model, self._data, directory or self.run, images=self._images,
            pictures=self._pictures, beam=self._beam, greedy=self._greedy,
            suppress_unk=self._suppress_unk, progress=self._progress,
        )  # fmt: skip
        if self._explain:
            self._explanations, note = explanations_of_run(
                self.run, self._data, directory or self.run, self._explain
            )
            gallery.notes += [note] if note else []
        return gallery

    def page(self, reload: float | None = None) -> str:
        """Return the page as HTML.

        Parameters
        ----------
        reload : float, optional
            Seconds after which the page reloads itself. By default it does not.

        Returns
        -------
        str
            One HTML file without external parts.
        """
        gallery = self._gallery
        title = self.run.resolve().name
        shown = {
            "status": self.status,
            "notes": gallery.notes,
            "figures": self._figures(),
            "curves": curves_of(self._history),
            "tables": [
                *gallery.tables,
                *tables_of_run(self._history, self._metrics, self._settings.settings),
            ],
            "methods": gallery.methods,
            "images": gallery.images,
            "shape": gallery.shape,
            "reload": reload,
            "made": f"fastrnn {__version__}, {time.strftime('%Y-%m-%d %H:%M:%S')}",
        }
        values = {
            "explanations": self._explanations
            and (
                '<section aria-labelledby="why"><h2 id="why">Why it says so</h2>'
                f"{self._explanations}</section>"
            ),
            "data": _embedded_json(shown),
        }
        return fill_template("page.html", title, self._about(), read_part("page.js"), values)

    def _about(self) -> str:
        """Return a line about the model and the data."""
        settings = self._settings.settings
        parts = [str(settings.get("cell", "")).upper()]
        parts += [
            f"{name} {settings[key]}"
            for key, name in (("hidden_dim", "hidden size"), ("wordvec_dim", "word vector size"))
            if settings.get(key)
        ]
        if self._settings.data_directory == self.run.resolve() / SCENE_DIRECTORY:
            parts.append("drawn scenes")
        elif settings.get("data"):
            parts.append(f"data {settings['data']}")
        return ", ".join(part for part in parts if part)

    @property
    def status(self) -> str:
        """The progress of training, as a sentence."""
        total = self._settings.config.all_epochs
        if self.finished:
            done = len(epoch_records(self._history))
            best = self._metrics.get("epoch")
            model = f" The model is from epoch {best}." if best else ""
            return f"Finished after {done} of {total} epoch{'' if total == 1 else 's'}.{model}"
        if not self._history:
            return "No training steps have been recorded yet."
        epoch = max(float(record["epoch"]) for record in self._history)
        doing = "Training, epoch" if self._in_use else "Stopped after epoch"
        return f"{doing} {epoch:.3g} of {total}."

    def _figures(self) -> list[tuple[str, str]]:
        """Return the numbers to show large: of the final model, or else of the last epoch."""
        metrics = self._metrics
        epochs = epoch_records(self._history)
        last: Mapping[str, Any] = epochs[-1] if epochs else {}
        figures: list[tuple[str, str]] = []

        def add(name: str, value: Any, form: str, scale: float = 1) -> None:
            if value is not None:
                figures.append((name, format(value * scale, form)))

        for method, measured in self._gallery.metrics.items():
            add(f"BLEU-4, {method}", measured.get("bleu_4"), ".1f", 100)
            add(f"CIDEr, {method}", measured.get("cider"), ".1f", 100)
        if not figures:
            add("BLEU-4", last.get("val_bleu_4"), ".1f", 100)
            add("CIDEr", last.get("val_cider"), ".1f", 100)
        if not figures:
            add("BLEU-1", metrics.get("bleu_1"), ".1f", 100)
        add("true captions", metrics.get("true_share"), ".1%")
        perplexity = metrics.get("val_perplexity", last.get("val_perplexity"))
        if perplexity is not None:
            figures.append(("validation perplexity", shown_perplexity(perplexity)))
        if metrics.get("distinct_captions") is not None and metrics.get("images"):
            name = f"distinct captions of {metrics['images']:,}"
            figures.append((name, f"{metrics['distinct_captions']:,}"))
        speed = metrics.get("captions_per_second", last.get("captions_per_second"))
        add("training captions/s", speed, ",.0f")
        return figures


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
        The file. Default ``report.html`` in the run directory.
    **options
        See `Report`.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OSError, ValueError
        See `Report` and `Report.read`; or if the file cannot be written.
    """
    report = Report(run, **options)
    report.read()
    out = report.run / REPORT_FILE if out is None else Path(out)
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
    """Write the page of a run again whenever the run changes, until training has finished.

    Parameters
    ----------
    run, out, **options
        See `write_report`.
    seconds : float, optional
        Time between two checks of the run, and between two reloads of the open page. Default 5.
    on_write : callable, optional
        Called as ``on_write(out, status)`` after each write, with the progress of training.

    Returns
    -------
    Path
        The file. It no longer reloads itself.

    Raises
    ------
    OSError, ValueError
        See `write_report`.
    KeyboardInterrupt
        After an interrupt. The page stays, and no longer reloads itself.
    """
    if not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(f"seconds is {seconds}; expected a positive number")
    report = Report(run, **options)
    out = report.run / REPORT_FILE if out is None else Path(out)
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


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is replaced; None if there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _embedded_json(value: Any) -> str:
    """Return JSON that is safe in a script element: it cannot end it or start a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

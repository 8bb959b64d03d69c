"""Several runs side by side: a row of figures for each, and a chart of their validation."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.layout import CAPTIONS_FILE, VOCABULARY_FILE
from ..runs import epoch_records, read_history, read_metrics
from ..training import Run, read_run
from .plot import COLORS, name_panel, points_of, set_up

__all__ = ["ComparedRun", "compare_runs", "draw_comparison"]

_LINES = ("#3557a5", "#d1603d", "#2f8f6b", "#8a5bb0", "#b8902c", "#c14d7f", "#4c9fc0", "#6b7280")
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))


@dataclass(frozen=True)
class ComparedRun:
    """What a comparison shows of a run; figures that are not known are None.

    Attributes
    ----------
    name : str
        The run directory.
    model : str
        The cell and the hidden size.
    data : str
        The data directory, or "drawn scenes"; with ``max_train`` also how many captions.
    data_id : str
        Equal for equal vocabularies and captions, wherever they are.
    epochs, of_epochs : float and int
        Epochs that are done, and those of the whole training.
    finished : bool
        Whether the run has its final metrics.
    epoch : int or None
        The epoch whose model the figures are of.
    val_loss, perplexity, bleu_4, cider : float or None
        Of the final model if the run is finished. Otherwise of the epoch with the best CIDEr, or
        else with the lowest loss, on the images that are used after each epoch.
    seconds : float or None
        Time of training, validation included.
    captions_per_second : float or None
        Speed of training.
    loss_curve, cider_curve : list of (float, float)
        The validation loss, and the validation CIDEr times 100, by epoch.
    """

    name: str
    model: str
    data: str
    data_id: str = field(repr=False)
    epochs: float
    of_epochs: int
    finished: bool
    epoch: int | None
    val_loss: float | None
    perplexity: float | None
    bleu_4: float | None
    cider: float | None
    seconds: float | None
    captions_per_second: float | None
    loss_curve: list[tuple[float, float]] = field(repr=False)
    cider_curve: list[tuple[float, float]] = field(repr=False)


def compare_runs(runs: Sequence[str | os.PathLike[str]]) -> list[ComparedRun]:
    """Read the figures of runs; training may not be finished, or not even begun.

    Parameters
    ----------
    runs : sequence of paths
        Run directories.

    Returns
    -------
    list of ComparedRun
        In the order of `runs`.

    Raises
    ------
    OSError, ValueError
        If a path is not a run directory, or a file of a run is damaged.
    """
    return [_read(Path(run)) for run in runs]


def _read(place: Path) -> ComparedRun:
    run = read_run(place)
    history, metrics = read_history(place), read_metrics(place)
    records = epoch_records(history)
    measured: dict[str, Any] = {**metrics}
    if records and "val_loss" not in metrics:  # `Trainer.fit` leaves the final model unmeasured
        best = max(records, key=lambda r: (r.get("val_cider") or 0.0, -(r.get("val_loss") or 0.0)))
        chosen = (r for r in records if r["epoch"] == metrics.get("epoch"))
        best = next(chosen, best)
        measured = {name.removeprefix("val_"): value for name, value in best.items()}
        measured["val_loss"], measured["val_perplexity"] = (
            best.get("val_loss"), best.get("val_perplexity")
        )  # fmt: skip
        measured.update(metrics)
    times = [
        r["seconds"] + (r.get("validation_seconds") or 0.0) for r in records if r.get("seconds")
    ]
    settings = run.settings
    model = str(settings.get("cell") or "?").upper()
    if settings.get("hidden_dim"):
        model += f" {settings['hidden_dim']}"
    data, data_id = _data_of(run)
    seconds = metrics.get("seconds") if metrics else None
    return ComparedRun(
        name=os.fspath(place), model=model, data=data, data_id=data_id,
        epochs=max((float(r.get("epoch") or 0.0) for r in history), default=0.0),
        of_epochs=run.config.all_epochs, finished=bool(metrics), epoch=measured.get("epoch"),
        val_loss=measured.get("val_loss"), perplexity=measured.get("val_perplexity"),
        bleu_4=measured.get("bleu_4"), cider=measured.get("cider"),
        seconds=seconds if seconds is not None else (sum(times) or None),
        captions_per_second=measured.get("captions_per_second"),
        loss_curve=points_of(records, "val_loss"), cider_curve=points_of(records, "val_cider", 100),
    )  # fmt: skip


def _data_of(run: Run) -> tuple[str, str]:
    """Return the name of the data of a run, and what is equal for equal data."""
    place = run.data_directory
    if place is None:
        return "in memory", f"memory {run.directory}"
    drawn = run.directory.resolve() in place.resolve().parents
    most = run.settings.get("max_train")
    part = "" if most is None else f" ({most} captions)"
    digest = hashlib.sha256(repr(most).encode())
    try:
        for name in (VOCABULARY_FILE, CAPTIONS_FILE):
            with (place / name).open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
    except OSError:  # moved or removed: the path is all that is known
        return str(place), str(place)
    return ("drawn scenes" if drawn else str(place)) + part, digest.hexdigest()


def draw_comparison(runs: Sequence[ComparedRun]) -> bytes:
    """Draw the validation loss of runs by epoch and, if it is known, their validation CIDEr.

    Parameters
    ----------
    runs : sequence of ComparedRun
        As `compare_runs` returns them.

    Returns
    -------
    bytes
        A PNG file, 1200 pixels wide.
    """
    # matplotlib takes long to import, and the table does not need it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = short_names([run.name for run in runs])
    panels = [("Validation loss in nats per word", [run.loss_curve for run in runs])]
    if any(run.cider_curve for run in runs):
        panels.append(("Validation CIDEr x 100 (greedy)", [run.cider_curve for run in runs]))
    rows = -(-len(runs) // 4)  # of the legend
    figure = Figure(
        figsize=(8, 3.2 * len(panels) + 0.25 * rows), dpi=150, layout="constrained",
        facecolor=COLORS["background"],
    )  # fmt: skip
    FigureCanvasAgg(figure)
    drawn = figure.subplots(len(panels), 1, sharex=True, squeeze=False).ravel()
    last = max((run.epochs for run in runs), default=0.0) or 1.0
    for axes, (title, curves) in zip(drawn, panels, strict=True):
        set_up(axes)
        name_panel(axes, title)
        for number, (name, curve) in enumerate(zip(names, curves, strict=True)):
            style = _DASHES[number // len(_LINES) % len(_DASHES)]
            # A run without points still has its place in the legend.
            x, y = zip(*curve, strict=True) if curve else ((), ())
            axes.plot(
                x, y, color=_LINES[number % len(_LINES)], ls=style, lw=1.5, marker="o", ms=4,
                label=name if curve else f"{name} (nothing yet)",
            )  # fmt: skip
    drawn[-1].set_xlim(-0.02 * last, 1.02 * last)
    drawn[-1].set_xlabel("epoch", color=COLORS["text"])
    figure.legend(
        *drawn[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(runs), 4),
        frameon=False, labelcolor=COLORS["text"], fontsize=9,
    )  # fmt: skip
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def short_names(paths: Sequence[str]) -> list[str]:
    """Return paths without the directories that they have in common."""
    absolute = [Path(path).resolve() for path in paths]
    if len(set(absolute)) < 2:
        return [path.name for path in absolute]
    common = Path(os.path.commonpath(absolute))
    return [
        path.relative_to(common).as_posix() if path != common else path.name for path in absolute
    ]

"""The plot of the loss and, if there are any, of the rewards."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..runs import epoch_records, step_records

__all__ = ["draw_loss"]

COLORS = {
    "background": "#ffffff", "text": "#1f2430", "ticks": "#697386", "grid": "#e3e6ec",
    "training": "#3557a5", "validation": "#d1603d", "rewards": "#f4f1e8",
}  # fmt: skip
_LEAST_SHARE = 0.45
"""Share of the loss axis that the later three quarters of the training get at least."""


def draw_loss(history: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw the training and the validation loss over the epochs.

    The axis of the loss shows the range of the later training in detail: if the loss has fallen a
    lot in the first steps, it is logarithmic. Reward epochs are shaded; they do not minimise the
    loss, so a second plot has what they maximise, the CIDEr-D of the captions drawn, and the CIDEr
    of the validation captions.

    Parameters
    ----------
    history : sequence of dict
        The history of a run, as in `fastrnn.training.Trainer.history`.

    Returns
    -------
    bytes
        A PNG file, 1200 pixels wide and 600 high, or 900 with rewards.
    """
    # matplotlib takes long to import, and the page does not need it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps, epochs = step_records(history), epoch_records(history)
    rewards = points_of(steps, "reward", 100)
    rows = 2 if rewards else 1
    figure = Figure(
        figsize=(8, 4 if rows == 1 else 6), dpi=150, layout="constrained",
        facecolor=COLORS["background"],
    )  # fmt: skip
    FigureCanvasAgg(figure)
    panels = figure.subplots(
        rows, 1, sharex=True, squeeze=False, height_ratios=[3, 2][:rows]
    ).ravel()  # fmt: skip

    training, validation = points_of(steps, "loss"), points_of(epochs, "val_loss")
    best = min(validation, key=lambda point: point[1], default=None)
    set_up(panels[0])
    _draw(panels[0], training, validation)
    title = f"Loss in nats per word{_scale_loss(panels[0], training, validation)}"
    if best is not None:
        title += f": validation {best[1]:.3f} at best, in epoch {best[0]:.0f}"
    name_panel(panels[0], title)
    if rewards:
        cider = points_of(epochs, "val_cider", 100)
        set_up(panels[1])
        name_panel(panels[1], "CIDEr x 100 of generated captions, which the reward epochs maximise")
        _draw(panels[1], rewards, cider, "training (drawn captions)", "validation (greedy)")
        _mark_rewards(panels, rewards, steps)
    for axes in panels:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, labelcolor=COLORS["text"], fontsize=9)
    last = max((float(r["epoch"]) for r in history if r.get("epoch") is not None), default=1.0)
    panels[-1].set_xlabel("epoch", color=COLORS["text"])
    panels[-1].set_xlim(-0.02 * last, 1.02 * last)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def points_of(
    records: Sequence[Mapping[str, Any]], name: str, scale: float = 1.0
) -> list[tuple[float, float]]:
    """Return the points (epoch, value) of the records that have a finite value."""
    return [
        (float(record["epoch"]), float(record[name]) * scale)
        for record in records
        if record.get(name) is not None and math.isfinite(record[name])
    ]


def name_panel(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=COLORS["text"])


def set_up(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_facecolor(COLORS["background"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=COLORS["grid"], lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=COLORS["ticks"], which="both", length=0, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(COLORS["ticks"])
    axes.margins(y=0.08)


def _draw(
    axes: Any,
    training: list[tuple[float, float]],
    validation: list[tuple[float, float]],
    *names: str,
) -> None:
    """Draw the line of the training, and that of the validation with a dot for each epoch."""
    names = names or ("training", "validation")
    if training:
        axes.plot(*zip(*training, strict=True), color=COLORS["training"], lw=1.2, label=names[0])
    if validation:
        axes.plot(
            *zip(*validation, strict=True), color=COLORS["validation"], lw=1.5, marker="o", ms=4,
            label=names[1],
        )  # fmt: skip


def _scale_loss(
    axes: Any, training: list[tuple[float, float]], validation: list[tuple[float, float]]
) -> str:
    """Use a logarithmic axis where the first losses would leave little room for the others.

    Return what the title says about it.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

    values = np.array([value for _, value in training + validation])
    if not len(values):
        return ""
    low, high = float(values.min()), float(values.max())
    last = max(epoch for epoch, _ in training + validation)
    later = [value for epoch, value in training + validation if epoch >= last / 4]
    if low <= 0 or max(later) - low >= _LEAST_SHARE * (high - low):
        return ""
    axes.set_yscale("log")
    # The decades of a logarithmic axis are too few ticks: take the most round numbers in them that
    # have room.
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 2, 5), (1,)):
        ticks = [m * 10.0**e for e in exponents for m in mantissas if low <= m * 10.0**e <= high]
        if len(ticks) <= 9:
            break
    if len(ticks) < 3:
        ticks = [float(tick) for tick in MaxNLocator(6).tick_values(low, high)]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    return " (logarithmic axis)"


def _mark_rewards(
    panels: Any, rewards: list[tuple[float, float]], steps: Sequence[Mapping[str, Any]]
) -> None:
    """Shade the reward epochs, and say in the plot of the loss why its training line ends."""
    begin = max((r["epoch"] for r in steps if r.get("loss") is not None), default=0.0)
    for axes in panels:
        axes.axvspan(begin, rewards[-1][0], color=COLORS["rewards"], lw=0, zorder=0)
        axes.axvline(begin, color=COLORS["ticks"], lw=0.8, ls=(0, (4, 3)), zorder=1)
    # Few reward epochs have no room for the text; the loss leaves room above, after its fall.
    left = begin > 0.5 * rewards[-1][0]
    panels[0].annotate(
        f"reward epochs: CIDEr is trained, not the loss{' →' if left else ''}",
        (begin, 1 if left else 0),
        xycoords=("data", "axes fraction"), xytext=(-6, -6) if left else (6, 6),
        textcoords="offset points", fontsize=8, color=COLORS["ticks"],
        ha="right" if left else "left", va="top" if left else "bottom",
    )  # fmt: skip

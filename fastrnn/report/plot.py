"""The plot of the loss."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from ..runs import epoch_records, step_records

_COLORS = {
    "background": "#ffffff", "text": "#1f2430", "ticks": "#697386", "grid": "#e3e6ec",
    "training": "#3557a5", "validation": "#d1603d",
}  # fmt: skip


def draw_loss(history: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw the training and validation loss over the epochs.

    Parameters
    ----------
    history : sequence of dict
        The history of a run, as in `fastrnn.training.Trainer.history`.

    Returns
    -------
    bytes
        A PNG file, 1200 by 600 pixels.
    """
    # matplotlib takes long to import, and the page does not need it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4), dpi=150, layout="constrained", facecolor=_COLORS["background"])
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=_COLORS["background"])
    training = [r for r in step_records(history) if r.get("loss") is not None]
    epochs, losses = [r["epoch"] for r in training], [r["loss"] for r in training]
    axes.plot(epochs, losses, color=_COLORS["training"], lw=1.5, label="training")
    validation = [r for r in epoch_records(history) if r["val_loss"] is not None]
    if validation:
        epochs, losses = [r["epoch"] for r in validation], [r["val_loss"] for r in validation]
        axes.plot(
            epochs, losses, color=_COLORS["validation"], lw=1.5, marker="o", ms=4,
            label="validation",
        )  # fmt: skip
    axes.set_xlabel("epoch", color=_COLORS["text"])
    axes.set_ylabel("loss (nats per word)", color=_COLORS["text"])
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=_COLORS["grid"], lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_COLORS["ticks"], length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_COLORS["ticks"])
    axes.legend(frameon=False, labelcolor=_COLORS["text"])
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()

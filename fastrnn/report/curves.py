"""The curves of the page: points of the loss, the metrics and the learning rate by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..runs import epoch_records, step_records

_MAX_POINTS = 800
"""Points of a curve. Longer curves are averaged in groups."""


def curves_of(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the curves of a history, as the script of the page draws them.

    Parameters
    ----------
    history : sequence of dict
        The history of a run.

    Returns
    -------
    list of dict
        ``title``; ``best``, which is "least" or "most" if the least or the greatest value is the
        best; ``lines``, each with its ``name``, ``points`` [epoch, value], and ``dots``, whether
        to mark the points; ``first``, whether to draw the curve large; and ``zero``, whether the
        axis includes zero.
    """
    epochs = epoch_records(history)
    steps = step_records(history) or epochs

    def line(name: str, points: list[Any], dots: bool = True) -> dict[str, Any]:
        return {"name": name, "points": points, "dots": dots}

    loss = [
        line("training", _points(steps, "loss"), dots=False),
        line("validation", _points(epochs, "val_loss")),
    ]
    bleu = [line("BLEU-4", _points(epochs, "val_bleu_4", 100))]
    cider = [line("CIDEr", _points(epochs, "val_cider", 100))]
    rewards = _points(steps, "reward", 100)
    if rewards:
        cider.append(line("training reward", rewards, dots=False))
    rate = [line("learning rate", _points(steps, "learning_rate"), dots=False)]
    speed = [line("captions/s", _points(epochs, "captions_per_second"))]
    return [
        {"title": title, "best": best, "lines": lines, "first": first, "zero": best is None}
        for title, best, lines, first in (
            ("Loss (nats per word)", "least", loss, True),
            ("Validation BLEU-4 (greedy)", "most", bleu, False),
            ("Validation CIDEr (greedy)", "most", cider, False),
            ("Learning rate", None, rate, False),
            ("Captions per second", None, speed, False),
        )
    ]


def _points(
    records: Sequence[Mapping[str, Any]], name: str, scale: float = 1.0
) -> list[list[float]]:
    points = [
        (float(record["epoch"]), float(record[name]) * scale)
        for record in records
        if record.get(name) is not None and math.isfinite(float(record[name]) * scale)
    ]
    if len(points) > _MAX_POINTS:
        # A group is drawn at its last epoch, so that the curve never shows a loss too early.
        groups = np.array_split(np.asarray(points), _MAX_POINTS)
        points = [(float(group[-1, 0]), float(group[:, 1].mean())) for group in groups]
    return [[float(f"{x:.6g}"), float(f"{y:.6g}")] for x, y in points]

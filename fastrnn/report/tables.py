"""The tables of the page: final metrics, history by epoch, settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..metrics import METRIC_NAMES
from ..runs import epoch_records
from ..training.config import ModelConfig, TrainConfig, option_of

_HELP = {
    field.name: option_of(field).help
    for config in (ModelConfig, TrainConfig)
    for field in dataclasses.fields(config)
}
"""What each setting means, in the words of the command line."""
_SCALE = "; scores ×100"


def table(
    name: str,
    title: str,
    rows: Sequence[Sequence[str]],
    *,
    columns: Sequence[str] = (),
    numbers: bool = True,
    opened: bool = False,
) -> dict[str, Any]:
    """Return a table, as the script of the page shows it.

    Parameters
    ----------
    name : str
        Its HTML id.
    title : str
        Its title.
    rows : sequence of sequences of str
        The cells. The first of a row is its heading.
    columns : sequence of str, optional
        The headings of the columns. By default there are none.
    numbers : bool, optional
        Whether to align the cells as numbers. Default True.
    opened : bool, optional
        Whether the table is unfolded at first. Default False.

    Returns
    -------
    dict
    """
    return {
        "id": name, "title": title, "columns": list(columns), "rows": [list(row) for row in rows],
        "numbers": numbers, "open": opened,
    }  # fmt: skip


def tables_of_run(
    history: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return the tables of a run's history, metrics and settings."""
    tables = []
    if metrics:
        rows = [[_spaced(name), _cell(value, name)] for name, value in metrics.items()]
        title = f"Final metrics, on all validation images{_SCALE if _scores(metrics) else ''}"
        tables.append(table("final-metrics", title, rows))
    epochs = epoch_records(history)
    if epochs:
        names = list(dict.fromkeys(name for record in epochs for name in record))
        names.remove("epoch")
        rows = [[_cell(r["epoch"]), *(_cell(r.get(name), name) for name in names)] for r in epochs]
        columns = ["epoch", *map(_spaced, names)]
        title = _epochs_title(settings) + (_SCALE if _scores(names) else "")
        tables.append(table("epochs", title, rows, columns=columns))
    rows = [[_spaced(name), _cell(value), _HELP.get(name, "")] for name, value in settings.items()]
    tables.append(table("settings", "Settings", rows, numbers=False))
    return tables


def _epochs_title(settings: Mapping[str, Any]) -> str:
    """Say how much of the validation data was used after each epoch: not all, by default."""
    parts = [
        f"{measure} on at most {settings[name]:,} validation {what}"
        for name, measure, what in (
            ("val_captions", "loss", "captions"),
            ("val_images", "BLEU-4 and CIDEr", "images"),
        )
        if settings.get(name)
    ]
    return f"History by epoch ({', '.join(parts)})" if parts else "History by epoch"


def _scores(names: Iterable[str]) -> bool:
    return any(_score_of(name) for name in names)


def _score_of(name: str) -> str | None:
    """Return the label of a metric that is shown times 100, as everywhere on the page."""
    if name == "reward":  # the mean CIDEr-D of drawn captions
        return "training reward"
    label = METRIC_NAMES.get(name.removeprefix("val_"))
    return f"validation {label}" if label and name.startswith("val_") else label


def _spaced(name: str) -> str:
    return _score_of(name) or name.replace("_", " ")


def _cell(value: Any, name: str = "") -> str:
    if value is None:
        return "-"
    if isinstance(value, float) and _score_of(name):
        return f"{100 * value:.1f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return value if isinstance(value, str) else json.dumps(value)

"""The run directory: the names of its files, its settings, its history and its metrics.

The layout of a run directory is defined here, except for the content of a checkpoint
(`fastrnn.checkpoint`) and the lock (``fastrnn.runlock``).
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .classifiers.rnn import MODEL_FILE
from .files import open_file, parse_json, read_json, write_json, write_text
from .vision import PCA_FILE, SOURCE_FILE

__all__ = [
    "CHECKPOINT_DIRECTORY",
    "EVENT_DIRECTORY",
    "HISTORY_FILE",
    "METRICS_FILE",
    "MODEL_FILE",
    "PLOT_FILE",
    "REPORT_FILE",
    "ROWS_FILE",
    "RUN_FILES",
    "SCENE_DIRECTORY",
    "SETTINGS_FILE",
    "SETTINGS_FORMAT",
    "checkpoint_path",
    "checkpoint_steps",
    "clear_run",
    "epoch_records",
    "is_epoch_record",
    "is_run",
    "read_history",
    "read_metrics",
    "read_rows",
    "read_settings",
    "remove_checkpoints",
    "step_records",
    "write_history",
    "write_metrics",
    "write_rows",
    "write_settings",
]

SETTINGS_FILE = "settings.json"
"""The settings of the run, and where its data are."""
ROWS_FILE = "train_rows.json"
"""Which captions were trained on, if `fastrnn.coco_utils.load_coco_data` drew them."""
HISTORY_FILE = "history.jsonl"
"""The history: a JSON object per line."""
METRICS_FILE = "metrics.json"
"""Metrics of the best model, written when training has finished."""
PLOT_FILE = "loss.png"
"""The plot of the loss."""
REPORT_FILE = "report.html"
"""The page about the run."""
RUN_FILES = (
    SETTINGS_FILE, ROWS_FILE, MODEL_FILE, HISTORY_FILE, METRICS_FILE, PLOT_FILE, REPORT_FILE,
    SOURCE_FILE, PCA_FILE,
)  # fmt: skip
"""The files that a run consists of, besides its directories."""
CHECKPOINT_DIRECTORY = "checkpoints"
"""The directory of the checkpoints."""
EVENT_DIRECTORY = "tensorboard"
"""The directory of TensorBoard's logs."""
SCENE_DIRECTORY = "data"
"""The data set of drawn scenes, if no data set was given."""

SETTINGS_FORMAT = 2
"""Version of the layout of ``settings.json``; files without a version are flat."""
_SECTIONS = {
    "data": {"data": "directory", "drawn": "drawn", "raw_features": "raw_features",
             "max_train": "max_train"},
    "model": {"cell": "cell", "hidden_dim": "hidden_dim", "wordvec_dim": "wordvec_dim",
              "bias_start": "bias_start", "forget_bias": "forget_bias",
              "embed_scale": "embed_scale"},
    "training": {"recipe": "recipe"},
    "machine": {"threads": "threads", "isa": "isa"},
}  # fmt: skip
"""The sections of ``settings.json``: the name of each setting in Python, and in the file."""
_OTHER = "other"
"""The section of the settings that a caller of `Trainer` adds."""
_NUMBERS = (
    "step", "epoch", "loss", "reward", "learning_rate", "val_loss", "val_perplexity", "val_bleu_4",
    "val_cider", "captions_per_second", "seconds", "validation_seconds", "bleu_1", "true_share",
    "distinct_captions", "images",
)  # fmt: skip
"""Names in the history and in the metrics whose values are numbers or None."""


# -- checkpoints


def checkpoint_path(run: str | os.PathLike[str], step: int) -> Path:
    """Return the path of the checkpoint after a step."""
    return Path(run, CHECKPOINT_DIRECTORY, f"step-{step:08}.npz")


def checkpoint_steps(run: str | os.PathLike[str]) -> list[int]:
    """Return the steps after which there is a checkpoint, in increasing order."""
    found = (
        re.fullmatch(r"step-(\d{8,})\.npz", p.name)
        for p in Path(run, CHECKPOINT_DIRECTORY).glob("*.npz")
    )
    return sorted(int(match[1]) for match in found if match)


def remove_checkpoints(run: str | os.PathLike[str], keep: Collection[int]) -> None:
    """Remove all checkpoints except those after the steps in `keep`."""
    for step in checkpoint_steps(run):
        if step not in keep:
            checkpoint_path(run, step).unlink(missing_ok=True)


# -- settings


def is_run(directory: str | os.PathLike[str]) -> bool:
    """Return whether a directory is a run directory."""
    try:
        return "fastrnn" in read_json(Path(directory, SETTINGS_FILE))
    except (OSError, ValueError, TypeError):
        return False


def clear_run(run: str | os.PathLike[str]) -> None:
    """Remove the files of an old run, so that they are not mistaken for files of a new run.

    Other files stay. The settings also stay until they are replaced, because without them the
    directory would not be recognised as a run directory.
    """
    run = Path(run)
    remove_checkpoints(run, keep=())
    for name in RUN_FILES:
        if name != SETTINGS_FILE:
            (run / name).unlink(missing_ok=True)
    for events in (run / EVENT_DIRECTORY).glob("events.out.tfevents.*"):
        events.unlink()


def write_settings(
    run: str | os.PathLike[str], settings: Mapping[str, Any], training: Mapping[str, Any]
) -> None:
    """Write the settings of a run.

    Parameters
    ----------
    run : path
        The run directory.
    settings : mapping
        Settings of the data, the model and the machine, by name (flat), and any others.
    training : mapping
        The fields of the training configuration.
    """
    rest = {name: value for name, value in settings.items() if name not in training}
    version = rest.pop("fastrnn", __version__)
    nested: dict[str, Any] = {"fastrnn": version, "format": SETTINGS_FORMAT}
    for section, names in _SECTIONS.items():
        nested[section] = {key: rest.pop(name) for name, key in names.items() if name in rest}
    nested["training"].update(training)
    if rest:
        nested[_OTHER] = rest
    write_json(Path(run, SETTINGS_FILE), nested)


def read_settings(run: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the settings of a run.

    Parameters
    ----------
    run : path
        The run directory.

    Returns
    -------
    dict
        All settings by name, without sections: ``data`` is the data directory. The names are the
        same for files of every format.

    Raises
    ------
    FileNotFoundError
        There is no such directory.
    ValueError
        It is not a run directory, or its settings cannot be read.
    """
    directory = Path(run)
    path = directory / SETTINGS_FILE
    if not directory.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such run directory", str(directory))
    if not path.is_file():
        raise ValueError(f"{directory}: is not a run directory; it has no {SETTINGS_FILE}")
    found = read_json(path)
    if not isinstance(found, dict) or "fastrnn" not in found:
        raise ValueError(
            f"{directory}: is not a run directory; its {SETTINGS_FILE} is not from fastrnn"
        )
    if "format" not in found:
        return found
    if found["format"] != SETTINGS_FORMAT:
        raise ValueError(
            f"{path}: format is {found['format']!r:.60}; this fastrnn reads formats up to "
            f"{SETTINGS_FORMAT}"
        )
    settings: dict[str, Any] = {"fastrnn": found["fastrnn"]}
    for section in (*_SECTIONS, _OTHER):
        values = found.get(section, {})
        if not isinstance(values, dict):
            raise ValueError(f"{path}: {section} is {values!r:.60}; expected a JSON object")
        names = {key: name for name, key in _SECTIONS.get(section, {}).items()}
        for key, value in values.items():
            settings[str(names.get(key, key))] = value
    return settings


# -- the captions that were drawn


def write_rows(run: str | os.PathLike[str], rows: Sequence[int]) -> None:
    """Write which training captions of its data directory a run is trained on."""
    write_json(Path(run, ROWS_FILE), list(map(int, rows)))


def read_rows(run: str | os.PathLike[str]) -> list[int] | None:
    """Read which training captions of its data directory a run is trained on.

    Parameters
    ----------
    run : path
        The run directory.

    Returns
    -------
    list of int or None
        Their rows, in order and perhaps repeated; None if nothing is written about them.

    Raises
    ------
    ValueError
        The file does not hold a list of integers of at least 0.
    """
    path = Path(run, ROWS_FILE)
    try:
        found = read_json(path)
    except FileNotFoundError:
        return None
    if not isinstance(found, list):
        raise ValueError(f"{path}: holds a {type(found).__name__}; expected a JSON array")
    for row in found:
        if type(row) is not int or not 0 <= row < 2**63:
            raise ValueError(f"{path}: holds {row!r:.60}; expected rows of captions, from 0")
    return found


# -- history


def is_epoch_record(record: Mapping[str, Any]) -> bool:
    """Return whether a record of the history is about an epoch, and not about some steps."""
    # Records in memory, in checkpoints and in older files do not name their kind.
    return record["kind"] == "epoch" if "kind" in record else "val_loss" in record


def epoch_records(history: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the records that are about an epoch: one for each epoch, with its validation."""
    return [record for record in history if is_epoch_record(record)]


def step_records(history: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the records that are about some steps of an epoch."""
    return [record for record in history if not is_epoch_record(record)]


def write_history(run: str | os.PathLike[str], history: Sequence[Mapping[str, Any]]) -> None:
    """Write the history of a run, a JSON object per line, each with its ``kind`` first."""
    lines = []
    for record in history:
        kind = "epoch" if is_epoch_record(record) else "steps"
        lines.append(json.dumps({"kind": kind, **record}) + "\n")
    write_text(Path(run, HISTORY_FILE), "".join(lines))


def read_history(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read ``history.jsonl``, a JSON object per line.

    Parameters
    ----------
    path : path
        The file, or its run directory. A missing file is an empty history. A last line without a
        newline is left out, because a running training may not have finished it.

    Returns
    -------
    list of dict
        The records as in `fastrnn.training.Trainer.history`. `epoch_records` and `step_records`
        select the two kinds.

    Raises
    ------
    ValueError
        A line is not a record of the history; the message has its number.
    """
    path = Path(path)
    if path.is_dir():
        path /= HISTORY_FILE
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
            raise ValueError(f"{path}: line {number} is not a record of the history: {line[:60]!r}")
        record.pop("kind", None)  # as in Trainer.history, where the keys tell the kind
        history.append(record)
    return history


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or not _has_numbers(record):
        return False
    if record.get("kind", "steps") not in ("steps", "epoch"):
        return False
    if record.get("kind") == "epoch" and "val_loss" not in record:
        return False
    return record.get("epoch") is not None and math.isfinite(record["epoch"])


def _has_numbers(found: Mapping[str, Any]) -> bool:
    """Return whether everything that should be a number is a finite or infinite one, or None."""
    return all(
        found.get(name) is None
        or isinstance(found[name], float)
        or (type(found[name]) is int and abs(found[name]) < 2**63)
        for name in _NUMBERS
    )


# -- metrics


def write_metrics(run: str | os.PathLike[str], metrics: Mapping[str, Any]) -> None:
    """Write the metrics of a finished run."""
    write_json(Path(run, METRICS_FILE), metrics)


def read_metrics(run: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the metrics of a run.

    Parameters
    ----------
    run : path
        The run directory.

    Returns
    -------
    dict
        What ``metrics.json`` holds; empty if there is no such file.

    Raises
    ------
    ValueError
        The file does not hold metrics.
    """
    path = Path(run, METRICS_FILE)
    try:
        found = read_json(path)
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds a {type(found).__name__}; expected a JSON object")
    if not _has_numbers(found):
        raise ValueError(f"{path}: has values that are not numbers; expected the metrics of a run")
    return found

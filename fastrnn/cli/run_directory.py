"""The run directory of a new training: choose it, create it, draw its scenes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fastrnn

from .. import runs
from ..files import is_unfinished
from ..runlock import HOLDER_FILE, LOCK_FILE, RunLock
from ..terminal import say
from ..training import TrainConfig
from ..training.recipes import SCENES


def free_directory(arguments: argparse.Namespace, cell: str) -> Path:
    """Choose the run directory; refuse one that must not be written to."""
    if arguments.out is None:
        name = f"{time.strftime('%Y-%m-%d')}-{cell}"
        out, number = Path("runs", name), 1
        while out.exists():
            number += 1
            out = Path("runs", f"{name}-{number}")
        return out
    out = Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out is {out}, a file; expected a directory")
    locks = (LOCK_FILE, HOLDER_FILE)
    if not out.is_dir() or all(is_unfinished(p) or p.name in locks for p in out.iterdir()):
        return out
    if not arguments.force:
        raise ValueError(
            f"--out is {out}, which exists; choose another, resume the run with --resume, or "
            "replace it with --force"
        )
    if not runs.is_run(out):
        raise ValueError(f"--out is {out}, which is not a run; --force replaces only runs")
    return out


def make_directory(
    out: Path,
    arguments: argparse.Namespace,
    settings: Mapping[str, Any],
    config: TrainConfig,
    locks: contextlib.ExitStack,
) -> RunLock:
    """Create the run directory or remove the old run from it, unless another process uses it."""
    lock = locks.enter_context(RunLock(out))
    if not arguments.force and (out / runs.SETTINGS_FILE).exists():
        raise ValueError(f"--out is {out}, where another process has just started a run")
    if arguments.force and runs.is_run(out):
        runs.clear_run(out)
    runs.write_settings(out, settings, dataclasses.asdict(config))
    return lock


def draw_scenes(directory: Path, seed: int) -> None:
    from ..data.scenes.dataset import write_scenes  # loads Pillow

    say(f"drawing {SCENES['num_train'] + SCENES['num_val']:,} scenes")
    write_scenes(directory, **SCENES, seed=seed, threads=fastrnn.get_num_threads())

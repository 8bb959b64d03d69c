"""Checks when a run is resumed: which settings may change, and whether the data are the same."""

from __future__ import annotations

import dataclasses
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import ArgumentError
from ..runs import SETTINGS_FILE
from .config import CHANGEABLE_ON_RESUME, TrainConfig
from .run import Run


def fingerprint(data: Mapping[str, Any]) -> dict[str, int]:
    """Return checksums of the arrays that training and validation depend on."""
    return {
        name: zlib.crc32(np.ascontiguousarray(data[name]).view(np.uint8).data)
        for split in ("train", "val")
        for name in (f"{split}_captions", f"{split}_image_idxs", f"{split}_features")
        if name in data and np.size(data[name])
    }


def changed_config(run: Run, changes: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration of a run with changes.

    Raises
    ------
    ArgumentError
        A change would make it another run.
    """
    for name in changes:
        if name not in CHANGEABLE_ON_RESUME:
            raise ArgumentError(
                name,
                f"cannot change when a run is resumed; it is {run.settings.get(name)!r}, and only "
                f"{', '.join(CHANGEABLE_ON_RESUME)} may change",
            )
    return dataclasses.replace(run.config, **changes)


def check_same_run(
    about: Mapping[str, Any],
    config: TrainConfig,
    data_checksums: Mapping[str, int],
    steps_per_epoch: int,
    run: Path,
) -> None:
    """Check that settings and data are those that a checkpoint was trained with.

    Raises
    ------
    ValueError
        They are not, or the run has already done more epochs than the settings have.
    """
    now = dataclasses.asdict(config)
    for name, was in about["config"].items():
        if name not in CHANGEABLE_ON_RESUME and now.get(name) != was:
            raise ValueError(
                f"{name} is {now.get(name)!r} in {SETTINGS_FILE}, but {was!r} in the checkpoint; "
                "the settings of a run must not change"
            )
    for name, was in about["data"].items():
        if data_checksums.get(name) != was:
            raise ValueError(f"{name} is not what the run {run} was trained on")
    if config.all_epochs * steps_per_epoch < about["step"]:
        done = about["step"] / steps_per_epoch
        problem = f"{config.all_epochs}; the run has done {done:.4g}"
        if config.reward_epochs:
            raise ValueError(f"epochs and reward_epochs are {problem}")
        raise ArgumentError("epochs", f"is {problem}")


def check_lengths(
    config: TrainConfig, before: TrainConfig, step: int, steps_per_epoch: int
) -> None:
    """Check a new number of epochs; warn if it changes the learning rates of the steps to come.

    Raises
    ------
    ArgumentError
        `epochs` changes after the first of the reward epochs.

    Warns
    -----
    UserWarning
        A schedule depends on the number of epochs.
    """
    longer, was = config.epochs, before.epochs
    rewarding = step > before.epochs * steps_per_epoch
    if rewarding and longer != was:
        raise ArgumentError(
            "epochs",
            f"is {longer}; expected {was}, because the run is in its reward epochs already; "
            "reward_epochs may change",
        )
    if rewarding and config.reward_epochs != before.reward_epochs:
        _warn(
            f"reward_epochs is {config.reward_epochs}, was {before.reward_epochs}: the learning "
            "rate"
        )
    if step and longer != was and config.schedule == "cosine":
        _warn(f"epochs is {longer}, was {was}: the learning rate")
    elif step and longer != was and config.scheduled_sampling:
        _warn(f"epochs is {longer}, was {was}: scheduled sampling")


def _warn(about: str) -> None:
    warnings.warn(f"{about} continues as in a run of the new length", stacklevel=4)

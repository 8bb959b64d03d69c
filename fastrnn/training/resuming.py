"""Checks when a run is resumed: which settings may change, and whether the data are the same."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import ArgumentError
from ..messages import warn
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


def changed_config(
    run: Run, changes: Mapping[str, Any], restart_epoch: float | None = None
) -> TrainConfig:
    """Return the configuration of a run with changes.

    Parameters
    ----------
    run : Run
    changes : mapping
        New values of fields.
    restart_epoch : float, optional
        The number of epochs that are done, if the schedule of the learning rate starts again.

    Raises
    ------
    ArgumentError
        A change would make it another run, or there is nothing to start again.
    """
    for name in changes:
        if name not in CHANGEABLE_ON_RESUME:
            raise ArgumentError(
                name,
                f"cannot change when a run is resumed; it is {run.settings.get(name)!r}, and only "
                f"{', '.join(CHANGEABLE_ON_RESUME)} may change",
            )
    config = dataclasses.replace(run.config, **changes)
    if not restart_epoch:
        return config
    if restart_epoch >= config.all_epochs:
        raise ArgumentError(
            "restart_schedule",
            f"needs more epochs: the run has done {restart_epoch:.4g} of {config.all_epochs}",
        )
    if config.schedule == "constant" and restart_epoch < config.epochs:
        raise ArgumentError(
            "restart_schedule", "is True; expected False, because the learning rate is constant"
        )
    return dataclasses.replace(config, restart_epoch=restart_epoch)


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
        if name not in (*CHANGEABLE_ON_RESUME, "restart_epoch") and now.get(name) != was:
            raise ValueError(
                f"{name} is {now.get(name)!r} in {SETTINGS_FILE}, but {was!r} in the checkpoint; "
                "the settings of a run must not change"
            )
    for name, was in about["data"].items():
        if data_checksums.get(name) != was:
            raise ValueError(
                f"{name} is not what the run {run} was trained on; expected the data that it was "
                "started with"
            )
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
        `epochs` changes after the first of the reward epochs; or a learning rate that falls to 0
        would rise, because there are more epochs, and the schedule does not start again.

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
    restarts = config.restart_epoch != before.restart_epoch
    if rewarding:
        _check_wave("reward_epochs", config.reward_epochs, before.reward_epochs, restarts)
    elif step and config.schedule == "cosine":
        _check_wave("epochs", longer, was, restarts)
    if step and longer != was and config.scheduled_sampling:
        _warn(f"epochs is {longer}, was {was}: scheduled sampling")


def _check_wave(name: str, longer: int, was: int, restarts: bool) -> None:
    """Check the length of half a cosine wave that has begun."""
    if restarts or longer == was:
        return
    if longer > was:
        raise ArgumentError(
            name,
            f"is {longer}, was {was}: the learning rate, which falls to 0 along a cosine, would "
            "jump up; restart_schedule=True (--restart-schedule) lets it start again and fall over "
            "the epochs that are left",
        )
    _warn(f"{name} is {longer}, was {was}: the learning rate")


def _warn(about: str) -> None:
    warn(f"{about} continues as in a run of the new length")

"""Writing to the run directory: checkpoints in the background, the best model, the history."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .. import runs
from ..checkpoint import Checkpoint, read_checkpoint
from ..files import make_directory, read_sealed, remove_unfinished, write_sealed
from ..messages import warn
from ..runlock import RunLock
from ..runs import checkpoint_path, checkpoint_steps


class Saver:
    """Writes the state of a training to its run directory.

    Parameters
    ----------
    run : Path or None
        The run directory; None for a training that writes nothing.

    Attributes
    ----------
    run : Path or None
    saved_step : int
        The step of the newest checkpoint that was written by this object, -1 before the first.
    newest_known : int
        The step of the newest checkpoint in the run directory that this object knows about.
    """

    def __init__(self, run: Path | None) -> None:
        self.run = run
        self.saved_step = -1
        self.newest_known: int = -1
        self._lock: RunLock | None = None
        self._writer: ThreadPoolExecutor | None = None
        self._saving: Future[None] | None = None
        self._copies: dict[str, np.ndarray] = {}
        self._unwritten: tuple[Path, Callable[[], None]] | None = None  # the save that failed

    def __getstate__(self) -> dict[str, Any]:
        """Leave threads and locks out of copies and pickles."""
        self.settle()
        return {**self.__dict__, "_writer": None, "_lock": None, "_copies": {}, "_unwritten": None}

    # -- the directory

    def lock(self) -> contextlib.AbstractContextManager[Any]:
        """Return the lock of the run directory, for ``with``; it does nothing without one."""
        if self.run is None:
            return contextlib.nullcontext()
        if self._lock is None or self._lock.run != self.run:
            self._lock = RunLock(self.run)
        return self._lock

    def use_lock(self, lock: RunLock) -> None:
        """Write to the run directory of a lock, which the caller may hold already."""
        self.run, self._lock = lock.run, lock

    @property
    def is_last(self) -> bool:
        """Whether the directory is free after this use of the lock: no caller goes on with it."""
        return self._lock is not None and self._lock.times == 1

    def open(self, step: int) -> None:
        """Prepare the run directory for a trainer that has taken some steps.

        Raises
        ------
        ValueError
            Another trainer has saved a later step.
        """
        run = self._directory
        make_directory(run / runs.CHECKPOINT_DIRECTORY)
        for directory in (run, run / runs.CHECKPOINT_DIRECTORY):
            remove_unfinished(directory)
        self._check_not_behind(step)

    def _check_not_behind(self, step: int) -> None:
        """Refuse to overwrite what another trainer has saved in the meantime."""
        newest = max(checkpoint_steps(self._directory), default=-1)
        if newest > self.newest_known:
            raise ValueError(
                f"{self._directory} has reached step {newest}, but this trainer was made "
                f"at step {step}; resume the run again"
            )

    def restore_best(self, best: Mapping[str, Any]) -> None:
        """Write the best model again, from its checkpoint, if its file is missing or damaged."""
        run = self._directory
        try:
            read_sealed(run / runs.MODEL_FILE)
        except (FileNotFoundError, ValueError):
            pass
        else:
            return
        try:
            checkpoint = read_checkpoint(checkpoint_path(run, best["step"]))
        except (FileNotFoundError, ValueError) as error:
            warn(f"the best model so far is lost ({error})")
        else:
            checkpoint.model.save(run / runs.MODEL_FILE)

    # -- checkpoints

    def save(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Path:
        """Write a checkpoint, the history in it, and the model if it is the best; return its path.

        Raises
        ------
        ValueError
            There is no run directory, or another trainer has saved a later step there.
        OSError
            The directory cannot be written; older checkpoints are as they were.
        """
        path = checkpoint_path(self._directory, checkpoint.about["step"])
        self.settle()
        with self.lock():
            self._check_not_behind(checkpoint.about["step"])
            self.write_again()
            self._prepare(checkpoint, settings)()
        return path

    def save_in_background(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
        """Start a `save` while training goes on; `settle` raises its error."""
        self.settle()
        self.write_again()
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "fastrnn checkpoint")
        self._saving = self._writer.submit(self._prepare(checkpoint, settings))

    def write_again(self) -> None:
        """Repeat the last save if it failed, because it may have been the best model."""
        if self._unwritten is not None and self._unwritten[0] == self.run:
            self._unwritten[1]()

    def settle(self, wait: bool = True) -> None:
        """Wait for the background save and re-raise its error; or only check whether it is done."""
        if self._saving is not None and (wait or self._saving.done()):
            saving, self._saving = self._saving, None
            saving.result()

    @property
    def _directory(self) -> Path:
        if self.run is None:
            raise ValueError("run is None; expected a run directory to save to")
        return self.run

    def _prepare(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Callable[[], None]:
        """Copy a checkpoint, and return a function that writes the copy."""
        run, about = self._directory, checkpoint.about
        step, best, config = about["step"], about["best"], about["config"]
        history = list(about["history"])
        arrays = self._copy(checkpoint.to_arrays())
        model = {name: arrays[name] for name in checkpoint.model.to_arrays()}
        self.newest_known = max(self.newest_known, step)

        def write() -> None:
            make_directory(run / runs.CHECKPOINT_DIRECTORY)
            # The first checkpoint cannot be resumed without settings. They may also have been
            # removed together with the directory.
            if not checkpoint_steps(run) or not (run / runs.SETTINGS_FILE).exists():
                runs.write_settings(run, settings, config)
            # The model first: if the process is killed in between, training resumes from an older
            # checkpoint and reaches the same model again.
            if best is not None and best["step"] == step:
                write_sealed(run / runs.MODEL_FILE, model)
            write_sealed(checkpoint_path(run, step), arrays)
            # Checkpoints newer than this one were damaged when training was resumed.
            older = [known for known in checkpoint_steps(run) if known <= step]
            keep = set(older[-config["keep_last"] :])
            if best is not None:
                keep.add(best["step"])
            runs.remove_checkpoints(run, keep)
            runs.write_history(run, history)
            self.saved_step, self._unwritten = step, None

        self._unwritten = run, write
        return write

    def _copy(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Copy arrays into the memory of the last copy where it fits.

        Writing to new pages would take longer than the copy itself.
        """
        copies = {}
        for name, array in arrays.items():
            copied = self._copies.get(name)
            if copied is None or (copied.shape, copied.dtype) != (array.shape, array.dtype):
                copied = np.empty_like(array)
            np.copyto(copied, array)
            copies[name] = copied
        self._copies = copies
        return copies

"""SIGINT and SIGTERM: finish the step, save, and stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A signal stopped the training.

    Attributes
    ----------
    signal : int
        The number of the signal.
    step : int
        The number of steps that were taken.
    run : Path or None
        The run directory, if it has a checkpoint of this step.
    """

    def __init__(self, number: int, step: int, run: Path | None) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.signal = number
        self.step = step
        self.run = run


class Signals:
    """Remember the first SIGINT or SIGTERM; raise `Interrupted` at the second.

    Only Python's default handlers are replaced, and only in the main thread.

    Parameters
    ----------
    step : callable
        Returns the number of steps that were taken.

    Attributes
    ----------
    caught : int or None
        The number of the first signal.
    """

    def __init__(self, step: Callable[[], int]) -> None:
        self.caught: int | None = None
        self._step = step
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number, default in (
                (signal.SIGINT, signal.default_int_handler),
                (signal.SIGTERM, signal.SIG_DFL),
            ):
                if signal.getsignal(number) == default:
                    self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            raise Interrupted(number, self._step(), None)
        self.caught = number

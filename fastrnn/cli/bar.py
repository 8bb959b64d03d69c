"""Progress of a command that goes through images or bytes."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from ..terminal import columns, duration, is_terminal

BYTES = "B"
"""The unit whose numbers are shown in MB."""
_WIDE = 60
"""Columns in which a bar fits beside the numbers."""


class Bar:
    """A bar on stderr if that is a terminal, otherwise a line every 30 seconds.

    It appears with the first call, so that nothing is shown of work that is done already.

    Parameters
    ----------
    what : str
        What is done, such as "features".
    unit : str
        What is counted, such as "images"; or `BYTES`.
    total : int, optional
        How many there are, if it is known.
    lines : bool, optional
        Whether to print lines, to stdout, where there is no terminal. Default True.
    """

    EVERY = 30.0

    def __init__(self, what: str, unit: str, total: int | None = None, *, lines: bool = True):
        self._what, self._unit, self._total, self._lines = what, unit, total, lines
        self._bar: Any = None
        self._first: int | None = None
        self._began = self._spoke = 0.0

    @property
    def began(self) -> bool:
        """Whether there was a first call."""
        return self._first is not None

    def __call__(self, done: int, total: int | None = None) -> None:
        """Show how many are done, and of how many if that is known only now."""
        self._total = self._total if total is None else total
        if self._first is None:
            self._first = done
            self._began = self._spoke = time.perf_counter()
            if is_terminal(sys.stderr):
                self._bar = self._make_bar(done, sys.stderr)
        elif self._bar is not None:
            self._bar.total = self._total
            self._bar.update(done - self._bar.n)
        elif self._lines and time.perf_counter() - self._spoke > self.EVERY:
            self._spoke = time.perf_counter()
            print(self._line(done, (done - self._first) / (self._spoke - self._began)), flush=True)

    def _make_bar(self, done: int, file: TextIO) -> Any:
        from tqdm import tqdm  # loading it takes a tenth of the start of a command

        if self._total is None:
            form = "{desc} {n_fmt}, {rate_fmt}, {elapsed} gone"
        elif (columns(file) or _WIDE) < _WIDE:
            form = "{desc} {percentage:3.0f}%, {remaining} left"
        else:
            form = "{desc} {percentage:3.0f}%|{bar}| {rate_fmt}, {elapsed} gone, {remaining} left"
        return tqdm(
            desc=self._what, total=self._total, initial=done, file=file, bar_format=form,
            unit=self._unit if self._unit == BYTES else f" {self._unit}",
            unit_scale=self._unit == BYTES, dynamic_ncols=True, smoothing=0.05, leave=False,
        )  # fmt: skip

    def _line(self, done: int, rate: float) -> str:
        text = f"{self._what}: {self._amount(done)}"
        if self._total is not None:
            text += f" of {self._amount(self._total)}"
        text += " MB" if self._unit == BYTES else f" {self._unit}"
        if rate > 0:
            text += f", {rate / 1e6:,.1f} MB/s" if self._unit == BYTES else (
                f", {rate:,.1f} {self._unit}/s"
            )  # fmt: skip
            if self._total is not None:
                text += f", {duration((self._total - done) / rate)} left"
        return text

    def _amount(self, number: int) -> str:
        return f"{number / 1e6:,.1f}" if self._unit == BYTES else f"{number:,}"

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

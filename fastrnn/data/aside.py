"""Data directories that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any, TypeVar

import filelock

from ..files import make_directory, move_directory
from .layout import CAPTIONS_FILE

_Own = TypeVar("_Own", bound="AsideDirectory")


class AsideDirectory:
    """A data directory that is made beside its place, and renamed when it is whole.

    For ``with``: when the block ends without `move`, what was written is removed, unless it is to
    be kept for another try. Two processes cannot make the same directory.

    Parameters
    ----------
    out : path
        The directory to make, with the directories above it.
    command : str
        What makes it, for the names of hidden files.
    force : bool, optional
        Whether a data directory that exists is replaced (default: refuse).

    Attributes
    ----------
    aside : Path
        The directory to write to.
    keep : bool
        Whether what was written is kept when the block ends early. Default False.

    Raises
    ------
    ValueError
        If `out` exists and is not to be replaced, or another process is writing it.
    OSError
        If it cannot be written.
    """

    def __init__(
        self, out: str | os.PathLike[str], command: str = "prepare", *, force: bool = False
    ) -> None:
        self.out: Path = Path(out)
        # The name of a path such as "." is known only then.
        place = self.out.resolve()
        self.aside: Path = place.parent / f".{place.name}.{command}"
        self.keep = False
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"{self.out}: is a file; expected a directory to be made")
        if self.out.is_dir() and any(self.out.iterdir()):
            if not force:
                raise ValueError(
                    f"{self.out}: exists; expected a new directory (--force replaces a data set)"
                )
            if not (self.out / CAPTIONS_FILE).is_file():
                raise ValueError(f"{self.out}: is not a data set; --force replaces only data sets")
        above = next(path for path in place.parents if path.exists())
        if not above.is_dir():
            raise ValueError(f"{above}: is a file; expected a directory for {self.out}")
        self._lock = filelock.FileLock(place.parent / f".{place.name}.{command}.lock", timeout=0)
        self._finished = False

    def __enter__(self: _Own) -> _Own:
        make_directory(Path(self._lock.lock_file).parent)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise ValueError(f"{self.out}: is being written by another process") from None
        try:
            self.aside.mkdir(exist_ok=True)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            if self._finished or not self.keep:
                shutil.rmtree(self.aside, ignore_errors=True)
        finally:
            with contextlib.suppress(OSError):
                Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()

    def move(self, source: Path) -> None:
        """Flush a whole directory in `aside`, or `aside` itself, and move it to its place."""
        move_directory(source, self.out)
        self._finished = True

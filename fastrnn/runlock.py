"""The lock of a run directory: one process at a time trains there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from pathlib import Path
from types import TracebackType

import filelock

from .files import make_directory, write_text

LOCK_FILE = ".lock"
HOLDER_FILE = ".lock-holder"


class RunInUseError(ValueError):
    """A run directory is in use by another process, or by another trainer of this process."""


class RunLock:
    """The lock of a run directory, for ``with``; its holder may acquire it several times.

    It is the operating system's lock on the file ``.lock``, so it is released when the process
    ends, even if it is killed. A forked child neither holds nor releases it. ``.lock-holder`` names
    the process that holds it.

    Parameters
    ----------
    run : path
        The run directory; it is created if it does not exist.
    """

    def __init__(self, run: str | os.PathLike[str]) -> None:
        self.run: Path = Path(run)
        self._place = self.run.absolute()  # even if the working directory changes
        self._make()

    def _make(self) -> None:
        self._lock = filelock.FileLock(self._place / LOCK_FILE, timeout=0, thread_local=False)
        self._process = os.getpid()

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __reduce__(self) -> tuple[type[RunLock], tuple[Path]]:
        """A copy is a lock that is not acquired."""
        return type(self), (self._place,)

    def acquire(self) -> None:
        """Acquire the lock; its holder may acquire it again.

        Raises
        ------
        RunInUseError
            Another process or trainer holds it; the message says which process.
        OSError
            The directory cannot be written.
        """
        if self._process != os.getpid():  # a forked child: the lock is the parent's
            self._make()
        held = self._lock.is_locked
        try:
            make_directory(self._place)
            self._lock.acquire()
        except filelock.Timeout:
            raise RunInUseError(
                f"{self.run} is in use by {_holder(self._place)}; wait for it or stop it"
            ) from None
        except OSError as error:
            about = f"the run directory cannot be locked ({error.strerror or error})"
            raise OSError(error.errno or errno.EIO, about, str(self.run)) from error
        if not held:
            holder = {"host": socket.gethostname(), "process": os.getpid()}
            try:
                write_text(self._place / HOLDER_FILE, json.dumps(holder))
            except BaseException:
                self.release()
                raise

    @property
    def times(self) -> int:
        """How many times this process has acquired it, and not released it."""
        return self._lock.lock_counter if self._process == os.getpid() else 0

    def release(self) -> None:
        """Undo one `acquire`."""
        if self._process != os.getpid() or not self._lock.is_locked:
            return
        if self._lock.lock_counter == 1:
            # filelock creates a new file if the one that it waits for has been removed
            for name in (HOLDER_FILE, LOCK_FILE):
                with contextlib.suppress(OSError):
                    (self._place / name).unlink()
        self._lock.release()


def in_use(run: str | os.PathLike[str]) -> bool:
    """Return whether a process trains in a run directory now.

    Nothing is made there. If the lock is free, it is taken for a moment to see that.
    """
    lock = Path(run, LOCK_FILE)
    if not lock.exists():  # it is removed when the lock is released
        return False
    try:
        with filelock.FileLock(lock, timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # it cannot be opened, but was left by some process
        return True


def _holder(run: Path) -> str:
    """Return who holds a lock, in words."""
    try:
        about = json.loads((run / HOLDER_FILE).read_bytes()[:4096])
        holder = f"process {about['process']} on {about['host']}"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "another process"
    # The file may be damaged or not ours: show only a name that fits in one line.
    return holder if holder.isprintable() and len(holder) <= 300 else "another process"

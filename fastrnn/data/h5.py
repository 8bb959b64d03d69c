"""HDF5 files: read by a process of its own, and written atomically.

HDF5 trusts the structure of a file. Over a damaged one it can run without end, take all of the
memory or crash. So a second process opens files, with limits on its time and memory, and sends the
arrays; see `fastrnn.data.h5_process`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from ..files import one_line, write_aside

SECONDS = 5.0
"""Of the processor, that HDF5 may take for any file; more is allowed for large ones."""
MEMORY = 1 << 28
"""Bytes that HDF5 may take for any file; a good one needs a few million."""

HAS_PROCESSES = hasattr(os, "posix_spawn")
"""Whether a second process reads the files; on Windows this process does."""


class H5Reader:
    """Reads h5 files in a process of its own, which lives as long as the ``with`` block."""

    def __init__(self) -> None:
        self._process = 0

    def __enter__(self) -> H5Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def read(
        self, path: str, dtypes: Mapping[str, np.dtype] | None = None
    ) -> dict[str, np.ndarray]:
        """Read every dataset in the root group of an HDF5 file.

        Parameters
        ----------
        path : str
            The file.
        dtypes : mapping of str to dtype, optional
            What floating-point datasets of these names are converted to while they are read. One
            that has the dtype in the file already, in one piece, is mapped into memory instead:
            the system reads its pages when they are used, and changes are not written to the file.

        Returns
        -------
        dict of str to ndarray
            The arrays by name, in the byte order of the machine.

        Raises
        ------
        OSError
            If the file is damaged or is not an HDF5 file, or if no process can be started. The
            message names the file.
        ValueError
            If a dataset is not numbers, is a link or stored in other files, has other filters than
            gzip, shuffle and fletcher32, claims far more than the file can hold, or has finite
            values that its new dtype cannot hold. The message names the file and the dataset.

        Notes
        -----
        Time and memory are in proportion to the size of the file, whatever its content.
        """
        found: dict[str, np.ndarray] = {}
        dtypes = dtypes or {}
        name, dtype, left = "", np.dtype(np.uint8), np.empty(0, np.uint8)
        for item in self._frames(path, mapped={key: d.str for key, d in dtypes.items()}):
            if isinstance(item, np.ndarray):
                values = item.view(dtype)
                _convert(path, name, values, left[: values.size])
                left = left[values.size :]
                continue
            name, dtype, shape = item["dataset"], np.dtype(item["dtype"]), tuple(item["shape"])
            if "offset" in item:
                array = np.memmap(path, dtype, "c", item["offset"], shape).view(np.ndarray)
            else:
                # The size of the array has been checked.
                array = np.empty(shape, dtypes.get(name, dtype) if dtype.kind == "f" else dtype)
            found[name], left = array, array.reshape(-1)
        return found

    def shapes(self, path: str) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Return the shape and dtype of every dataset in the root group, without its values.

        Parameters and errors are those of `read`; datasets of any dtype are listed.
        """
        abouts = self._frames(path, values=False)
        return {
            item["dataset"]: (tuple(item["shape"]), np.dtype(item["dtype"]))
            for item in abouts
            if isinstance(item, dict)
        }

    def blocks(self, path: str, name: str) -> Iterator[np.ndarray]:
        """Yield a dataset in blocks of some rows, about 4 MiB each.

        Parameters
        ----------
        path : str
            The file.
        name : str
            A dataset of one axis or more.

        Yields
        ------
        ndarray (rows, ...)
            The next rows. There are no blocks if there is no such dataset.

        Raises
        ------
        OSError, ValueError
            As `read` does.
        """
        row: tuple[int, ...] = ()
        dtype: np.dtype = np.dtype(np.uint8)
        for item in self._frames(path, name):
            if isinstance(item, dict):
                row, dtype = tuple(item["shape"][1:]), np.dtype(item["dtype"])
            else:
                yield item.view(dtype).reshape(-1, *row)

    def _frames(
        self,
        path: str,
        name: str | None = None,
        *,
        values: bool = True,
        mapped: Mapping[str, str] | None = None,
    ) -> Iterator[dict[str, Any] | np.ndarray]:
        """Yield what each dataset is, each time followed by its values in blocks of bytes."""
        ask = self._ask if HAS_PROCESSES else _read_here
        answers = ask(path, name, values, mapped)
        at_end = False
        try:
            for item in answers:
                if isinstance(item, np.ndarray) or "error" not in item:
                    yield item
                    continue
                at_end = True
                if item["error"] is not None:
                    raise _error(path, item)
        except _EndedError as error:
            raise OSError(f"{path} cannot be read, {error}") from None
        finally:
            if not at_end:  # the rest of the answer is of no use
                self._end()

    def _start(self) -> None:
        code = "import sys; sys.path += sys.argv[1:]; import h5_process; h5_process.main()"
        arguments = [sys.executable or "", "-I", "-B", "-c", code, *_places()]
        requests, self._requests = _open_pipe()
        self._answers, answers = _open_pipe()
        try:
            self._process = os.posix_spawn(
                arguments[0],
                arguments,
                # Threads of a BLAS would be started, and never used.
                {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, requests.fileno(), 0),
                    (os.POSIX_SPAWN_DUP2, answers.fileno(), 1),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
                setpgroup=0,  # Ctrl-C is for this process, which then ends the other
            )
        except (OSError, ValueError) as error:
            self._requests.close()
            self._answers.close()
            raise _EndedError(f"for want of a process of its own ({one_line(error)})") from None
        finally:
            requests.close()
            answers.close()
        try:
            self._take_about(self._take_header()[1])
        except _EndedError:
            raise _EndedError(
                "for want of a process of its own "
                f"({sys.executable!r:.200} does not start as a Python with h5py)"
            ) from None

    def _ask(
        self, path: str, name: str | None, values: bool, mapped: Mapping[str, str] | None
    ) -> Iterator[dict[str, Any] | np.ndarray]:
        """Send a request and yield the answer."""
        if not self._process:
            self._start()
        place = os.fsencode(Path(path).absolute())
        request = [place.hex(), name, values, mapped, SECONDS, MEMORY]
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            raise self._ended() from None
        left = 0
        while True:
            kind, size = self._take_header()
            if kind == b"a":
                yield (item := self._take_about(size))
                if "error" in item:
                    return
                left = math.prod(item["shape"]) * np.dtype(item["dtype"]).itemsize
            else:
                if kind != b"v" or size > left:
                    raise self._ended()
                block = np.empty(size, np.uint8)
                self._fill(block.data)
                left -= size
                yield block

    def _take_about(self, size: int) -> dict[str, Any]:
        content = bytearray(size if size < 1 << 20 else 0)
        self._fill(memoryview(content))
        try:
            return json.loads(content)
        except ValueError:
            raise self._ended() from None

    def _take_header(self) -> tuple[bytes, int]:
        header = bytearray(9)
        self._fill(memoryview(header))
        return bytes(header[:1]), int.from_bytes(header[1:], "little")

    def _fill(self, view: memoryview) -> None:
        while view:
            count = self._answers.readinto(view)
            if not count:
                raise self._ended()
            view = view[count:]

    def _ended(self) -> _EndedError:
        """End the process, if it has not ended, and return what is to be said of it."""
        status = self._end()
        if status == -signal.SIGXCPU:
            return _EndedError("damaged: HDF5 does not come to an end with it")
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return _EndedError(f"damaged or not an HDF5 file (HDF5's process ended {how})")

    def _end(self) -> int:
        """End the process, if there is one; return how it ended, if it did so by itself."""
        process, self._process = self._process, 0
        if not process:
            return 0
        self._requests.close()
        self._answers.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)  # it has nothing to lose
        try:
            return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        except ChildProcessError:  # where SIGCHLD is ignored
            return 0


def _read_here(
    path: str, name: str | None, values: bool, mapped: Mapping[str, str] | None
) -> Iterator[dict[str, Any] | np.ndarray]:
    """Read in this process, where the system cannot start another one with pipes (Windows)."""
    from . import h5_process

    return h5_process.read(path, lambda memory, work: None, name, values, mapped)


def _convert(path: str, name: str, values: np.ndarray, out: np.ndarray) -> None:
    try:
        with np.errstate(over="raise"):
            np.copyto(out, values, casting="same_kind")
    except FloatingPointError:
        raise ValueError(
            f"{path}: dataset {name!r} has values beyond {np.finfo(out.dtype).max:g}; expected "
            f"values that {out.dtype} can hold"
        ) from None


def _error(path: str, about: Mapping[str, Any]) -> OSError | ValueError:
    where = path if about["dataset"] is None else f"{path}: dataset {about['dataset']!r:.60}"
    message = one_line(about["message"])
    if about["error"] == "value":
        return ValueError(f"{where} {message}")
    return OSError(f"{where} cannot be read, damaged or not an HDF5 file ({message})")


class _EndedError(Exception):
    """The process is gone, or was never there."""


def _places() -> list[str]:
    """Where the process finds its own module, and NumPy and h5py as they are here."""
    spec = importlib.util.find_spec("h5py")
    if spec is None or spec.origin is None:
        raise ImportError("fastrnn reads h5 files with h5py, which is not installed")
    files = [np.__file__, spec.origin]
    return [
        *dict.fromkeys(str(Path(file).parents[1]) for file in files),
        str(Path(__file__).parent),
    ]


def _open_pipe() -> tuple[FileIO, FileIO]:
    """Open a pipe, with numbers beyond those of the standard streams, which may be closed."""
    import fcntl  # not on Windows

    ends = []
    for low in os.pipe():
        ends.append(fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 3))
        os.close(low)
    if hasattr(fcntl, "F_SETPIPE_SZ"):  # on Linux, where pipes are small at first
        with contextlib.suppress(OSError):
            fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 1 << 20)
    return FileIO(ends[0], "rb"), FileIO(ends[1], "wb")


def write_h5(path: str | os.PathLike[str], datasets: Mapping[str, np.ndarray]) -> None:
    """Write arrays as the datasets of an HDF5 file, atomically."""
    import h5py

    def write(file: BinaryIO) -> None:
        with h5py.File(file, "w") as h5:
            for name, array in datasets.items():
                h5[name] = array

    write_aside(path, write)

"""Features of many images: decoded beside computing, resumed after an interruption.

Rows are appended to a file aside, ``NAME.partial``: a line of JSON that says what they belong to,
and then for each image a checksum and its features. An unreadable image has NaN. The features are
written to the file asked for once they are complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Semaphore
from typing import Any, BinaryIO

import numpy as np

from ..files import open_file, write_aside
from .images import ImageError, prepare_file
from .networks import Network

__all__ = ["Extraction", "FEATURES", "extract_features", "partial_file"]

FEATURES = "features"
"""The name of the dataset in the files that `extract_features` writes."""
_FORMAT = 1
_FLUSH_SECONDS, _SYNC_SECONDS = 1.0, 20.0
_CHUNK_BYTES = 1 << 24


@dataclass
class Extraction:
    """What `extract_features` did.

    Attributes
    ----------
    rows : list of int
        For each row of the file the number of its image.
    unreadable : list of (Path, str)
        Images that have no row, and why.
    resumed : int
        Number of images that an earlier, interrupted call had computed.
    width : int
        Number of features.
    """

    rows: list[int]
    width: int
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    resumed: int = 0


def partial_file(out: str | os.PathLike[str]) -> Path:
    """Return the file in which the rows for `out` are kept until they are complete."""
    path = Path(out)
    return path.with_name(f"{path.name}.partial")


def extract_features(
    images: Sequence[str | os.PathLike[str]],
    network: Network,
    out: str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    progress: Callable[[int, int], Any] | None = None,
    resume: bool = True,
    stop_at_unreadable: bool = False,
    keep: bool = False,
) -> Extraction:
    """Compute the features of image files and write them to an HDF5 file.

    Parameters
    ----------
    images : sequence of paths
        N image files.
    network : Network
        The network; its threads are used for decoding, resizing and computing.
    out : path
        The file to write: a dataset ``features``, float32 (rows, D), with a row for each readable
        image, in the order of `images`. An existing file is replaced when all are computed.
    batch_size : int, optional
        Number of images that a thread computes at a time. Default ``network.chunk``.
    progress : callable, optional
        Called as ``progress(done, N)`` from this thread, at first with what was done before.
    resume : bool, optional
        Go on where an interrupted call with the same images and the same network was stopped
        (default), or start over.
    stop_at_unreadable : bool, optional
        Raise the error of the first unreadable image instead of leaving it out.
    keep : bool, optional
        Keep the file aside, `partial_file`, also when all is done: the next call copies from it.

    Returns
    -------
    Extraction
        The rows that were written and the images that were left out.

    Raises
    ------
    ImageError
        If no image is readable or, with `stop_at_unreadable`, an image is not.
    OSError
        If the file cannot be written, or another process is writing it.
    ValueError
        If there are no images, or `batch_size` is less than 1.
    """
    paths = [Path(image) for image in images]
    if not paths:
        raise ValueError("images is empty; expected at least one")
    size = network.chunk if batch_size is None else batch_size
    if size < 1:
        raise ValueError(f"batch_size is {size}; expected at least 1")
    width, out = network.width, Path(out)
    with _Partial(partial_file(out), _identity(paths, network), width) as partial:
        done = partial.restore(len(paths)) if resume else partial.clear()
        found = Extraction([], width, resumed=done)
        if progress is not None:
            progress(done, len(paths))
        # Images that could not be read before are tried again, in their places.
        again = np.flatnonzero(np.isnan(partial.rows(done)[:, 0])) if done else np.arange(0)
        todo = [*again.tolist(), *range(done, len(paths))]
        place = 0
        for batch, problems in _computed([paths[number] for number in todo], network, size):
            numbers = todo[place : place + len(batch)]
            place += len(batch)
            for number, problem in problems.items():
                if stop_at_unreadable:
                    raise problem
                path = paths[numbers[number]]
                found.unreadable.append((path, _why(problem, path)))
            partial.put(numbers, batch)
            if progress is not None:
                progress(done + max(place - len(again), 0), len(paths))
        found.resumed -= len(again)
        rows = partial.rows(len(paths))
        missing = {path for path, _ in found.unreadable}
        found.rows = [number for number, path in enumerate(paths) if path not in missing]
        if not found.rows:
            path, why = found.unreadable[0]
            partial.remove()
            raise ImageError(f"{path}: {why}; none of the {len(paths)} images is readable")
        _write(out, rows, found.rows, width)
        if not keep:
            partial.remove()
    return found


def _why(problem: Exception, path: Path) -> str:
    """Return the message of an error without the name of the image."""
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return str(problem).removeprefix(f"{path}: ")


def _identity(paths: Sequence[Path], network: Network) -> str:
    """Return a digest of the images, by names, sizes and times, and of the network."""
    digest = hashlib.sha256()
    about = [
        _FORMAT, network.name, network.layer, network.digest, network.width,
        network.preprocessing.as_dict(),
    ]  # fmt: skip
    digest.update(json.dumps(about).encode())
    for path in paths:
        try:
            status = path.stat()
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:  # reported when it is read
            state = "absent"
        digest.update(f"\0{path.absolute()}\0{state}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _computed(
    paths: Sequence[Path], network: Network, size: int
) -> Iterator[tuple[np.ndarray, dict[int, Exception]]]:
    """Yield the features of each batch in order, NaN for images that cannot be read, and why."""
    preprocessing, side = network.preprocessing, network.preprocessing.size
    # PyTorch has threads of its own: beside the one that computes, the others decode.
    computing = Semaphore(network.concurrency)

    def compute(batch: Sequence[Path]) -> tuple[np.ndarray, dict[int, Exception]]:
        pixels = np.empty((len(batch), 3, side, side), np.float32)
        problems: dict[int, Exception] = {}
        for number, path in enumerate(batch):
            try:
                prepare_file(path, preprocessing, pixels[number])
            except (OSError, ImageError) as error:
                problems[number] = error
        features = np.full((len(batch), network.width), np.nan, np.float32)
        readable = [number for number in range(len(batch)) if number not in problems]
        if readable:
            with computing:
                features[readable] = network.features_of_chunk(
                    pixels[readable] if problems else pixels
                )
        for number in readable:
            if not np.isfinite(features[number]).all():
                features[number] = np.nan
                problems[number] = ImageError(f"{batch[number]}: its features are not finite")
        return features, problems

    # More of them would take the caches from each other.
    workers = network.threads
    with ThreadPoolExecutor(workers, thread_name_prefix="features") as pool:
        waiting: deque[Future[tuple[np.ndarray, dict[int, Exception]]]] = deque()
        starts = iter(range(0, len(paths), size))
        try:
            for start in starts:
                batch = paths[start : start + size]
                _read_ahead(batch)
                waiting.append(pool.submit(compute, batch))
                if len(waiting) > 3 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _read_ahead(paths: Sequence[Path]) -> None:
    """Ask the system to read files into memory, where it can do so without waiting for them."""
    if hasattr(os, "posix_fadvise"):
        for path in paths:
            # An error is reported when the image is read.
            with contextlib.suppress(OSError), open_file(path) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _write(out: Path, rows: np.ndarray, chosen: Sequence[int], width: int) -> None:
    import h5py  # takes a twentieth of the start of every command

    step = max(_CHUNK_BYTES // (4 * width), 1)

    def write(file: BinaryIO) -> None:
        with h5py.File(file, "w") as h5:
            target = h5.create_dataset(FEATURES, (len(chosen), width), "<f4")
            for start in range(0, len(chosen), step):
                part = chosen[start : start + step]
                target[start : start + len(part)] = rows[part]

    write_aside(out, write)


def _lock(file: BinaryIO) -> None:
    """Lock a file for this process, or raise OSError; without an effect on Windows."""
    with contextlib.suppress(ImportError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class _Partial:
    """The file aside, locked while it is used."""

    def __init__(self, path: Path, identity: str, width: int) -> None:
        self.path, self._width = path, width
        head = {"format": _FORMAT, "identity": identity, "width": width}
        self._head = json.dumps(head).encode() + b"\n"
        # The checksum also tells a row that was written from one that is zero after a crash.
        self._dtype = np.dtype([("checksum", "<u4"), ("row", "<f4", (width,))])
        self._flushed = self._synced = time.monotonic()
        self._next = -1  # the row at which the file stands, once one has been written

    def __enter__(self) -> _Partial:
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            self._file = os.fdopen(handle, "r+b")
            try:
                _lock(self._file)
            except OSError:
                self._file.close()
                raise OSError(
                    f"{self.path}: another process is computing these features; expected none"
                ) from None
            # Another process may have finished, and removed the file, before the lock.
            with contextlib.suppress(FileNotFoundError):
                if self.path.stat().st_ino == os.fstat(handle).st_ino:
                    break
            self._file.close()
        return self

    def __exit__(self, *error: object) -> None:
        # What is computed is kept also when an error stops the call, a full disk apart.
        with contextlib.suppress(OSError):
            self._file.close()

    def restore(self, limit: int) -> int:
        """Return the number of rows that are whole; cut off what follows them."""
        if self._file.read(len(self._head)) != self._head:
            return self.clear()
        whole = (self.path.stat().st_size - len(self._head)) // self._dtype.itemsize
        count = min(whole, limit)
        done = count
        step = max(_CHUNK_BYTES // self._dtype.itemsize, 1)
        for start in range(0, count, step):
            part = self._records(count)[start : start + step]
            sums = np.array([zlib.crc32(row) for row in part["row"]], "<u4")
            wrong = np.flatnonzero(sums != part["checksum"])
            if len(wrong):
                done = start + int(wrong[0])
                break
        self.cut(done)
        return done

    def clear(self) -> int:
        """Start over."""
        self._file.seek(0)
        self._file.truncate()
        self._file.write(self._head)
        self._file.flush()
        return 0

    def cut(self, count: int) -> None:
        """Keep the first rows only."""
        self._file.seek(len(self._head) + count * self._dtype.itemsize)
        self._file.truncate()

    def put(self, numbers: Sequence[int], rows: np.ndarray) -> None:
        """Write rows: the next ones, or some that are there already."""
        records = np.zeros(len(rows), self._dtype)
        records["row"] = rows
        records["checksum"] = [zlib.crc32(row.tobytes()) for row in rows]
        step = self._dtype.itemsize
        for number, record in zip(numbers, records, strict=True):
            if number != self._next:
                self._file.seek(len(self._head) + number * step)
            self._file.write(record.tobytes())
            self._next = number + 1
        now = time.monotonic()
        if now - self._flushed > _FLUSH_SECONDS:
            self._file.flush()
            self._flushed = now
            if now - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = now

    def _records(self, count: int) -> np.ndarray:
        self._file.flush()
        return np.memmap(self.path, self._dtype, "r", len(self._head), (count,))

    def rows(self, count: int) -> np.ndarray:
        """Return the first rows, as a view of the file."""
        return self._records(count)["row"]

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink()

"""Atomic file writes, and npz files with a checksum.

Each file is written to a temporary file in the same directory, flushed to disk and then renamed,
so that a crash never leaves a partial file. Arrays are stored in npz files without pickle.
`write_sealed` adds a checksum of the arrays, and `read_sealed` verifies it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

CHECKSUM = "checksum"
_UNFINISHED = ".unfinished"
_CHUNK = 1 << 20
_CANNOT_FLUSH = (
    errno.EACCES, errno.EBADF, errno.EINVAL, errno.EISDIR, errno.ENOSYS, errno.ENOTSUP, errno.EPERM,
)  # fmt: skip
"""Errors of systems that cannot flush a directory; other errors are disk faults."""


def write_aside(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> None:
    """Write a file atomically: to a temporary file in the same directory, which is then renamed.

    Parameters
    ----------
    path : path
        File to write. An existing file is replaced; if anything fails, it stays unchanged.
    write : callable
        Called with the open binary file; writes the content.

    Raises
    ------
    OSError
        If the directory is not writable, the disk is full, or `path` exists and is not a regular
        file. The error names `path`.
    """
    write_all_aside({Path(path): write})


def write_all_aside(files: Mapping[Path, Callable[[BinaryIO], Any]]) -> None:
    """Write files that belong together: as `write_aside`, and none is renamed before all are there.

    Parameters
    ----------
    files : mapping of Path to callable
        What writes each file, see `write_aside`.

    Raises
    ------
    OSError
        See `write_aside`. If it is raised before all files are written, they all stay unchanged.
    """
    asides: dict[Path, Path] = {}
    path = Path()
    try:
        for path, write in files.items():
            if path.exists() and not path.is_file():
                raise OSError(errno.EINVAL, "exists and is not a regular file")
            handle, asides[path] = create_aside(path)
            with os.fdopen(handle, "w+b") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        directories = dict.fromkeys(path.parent for path in asides)
        for path in list(asides):
            asides[path].replace(path)
            del asides[path]
        for directory in directories:
            _flush_directory(directory)
    except BaseException as error:
        for aside in asides.values():
            with contextlib.suppress(OSError):  # report the first error, not this one
                aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _about(path, error) from error
        raise


def create_aside(path: Path) -> tuple[int, Path]:
    """Create a temporary file to be renamed to `path`; return its file descriptor and its path.

    The file has the permissions of any new file. The operating system applies the umask, since
    Python can read the umask only by changing it for all threads.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        aside = path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}{_UNFINISHED}")
        try:
            return os.open(aside, flags, 0o666), aside
        except FileExistsError:
            continue


def _about(path: Path, error: OSError) -> OSError:
    """Return `error` with `path` as its file name instead of the temporary file."""
    return OSError(error.errno or errno.EIO, error.strerror or str(error), str(path))


def _flush_directory(directory: Path) -> None:
    # A rename is on disk only after the directory is flushed. Some file systems and platforms do
    # not support this; nothing more can be done there.
    try:
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise


def make_directory(path: str | os.PathLike[str]) -> None:
    """Create a directory and its missing parents, and flush their names to the disk."""
    path = Path(path)
    if not path.is_dir():
        if path.parent != path:
            make_directory(path.parent)
        path.mkdir(exist_ok=True)
        try:
            _flush_directory(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                path.rmdir()  # so that the next call flushes it
            raise _about(path, error) from error


def move_directory(source: str | os.PathLike[str], place: str | os.PathLike[str]) -> None:
    """Flush the files of a directory to the disk, and rename it; an old one at `place` is removed.

    Parameters
    ----------
    source : path
        The directory, whole. Its files are flushed, not those of directories in it.
    place : path
        Where it is to be, in the same file system. If a directory with files is there, it is
        renamed first and removed afterwards.
    """
    source, place = Path(source), Path(place).resolve()
    for path in source.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _flush_directory(source)
    old = None
    if place.is_dir() and any(place.iterdir()):
        old = place.with_name(f".{place.name}.{secrets.token_hex(8)}{_UNFINISHED}")
        place.rename(old)
    try:
        source.rename(place)  # an empty directory is replaced
    except BaseException:
        if old is not None:
            old.rename(place)
        raise
    _flush_directory(place.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def is_unfinished(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a temporary file of `write_aside`, left by a killed process."""
    name = Path(path).name
    return name.startswith(".") and name.endswith(_UNFINISHED)


def remove_unfinished(directory: str | os.PathLike[str]) -> None:
    """Remove temporary files of `write_aside` that killed processes left in a directory."""
    for path in filter(is_unfinished, Path(directory).iterdir()):
        path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically; see `write_aside`."""
    write_aside(path, lambda file: file.write(text.encode("utf-8")))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file atomically; see `write_aside`."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading in binary mode.

    Raises
    ------
    OSError
        If the file cannot be read, or is a directory, a pipe or a device (which could block).
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    # The path may have become a pipe since the check. Opening a pipe without a writer would block.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
    with open_file(path) as file:
        return file.read()


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a UTF-8 text file, with or without a byte order mark.

    Raises
    ------
    OSError
        If the file does not exist or cannot be read.
    ValueError
        If the file is not UTF-8. The message names the file.
    """
    try:
        return _read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error})") from None


def parse_json(text: str) -> Any:
    """Parse JSON text.

    Raises
    ------
    ValueError
        If the text is not JSON, is nested too deeply, or has an object with a duplicate key.
    """
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make the dict of a JSON object, for ``object_pairs_hook``.

    Raises
    ------
    ValueError
        If a key is there twice.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"an object has the key {twice!r} twice")
    return found


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises
    ------
    OSError
        If the file does not exist or cannot be read.
    ValueError
        If the file is not valid JSON. The message names the file.
    """
    try:
        return parse_json(_read_bytes(path).decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None


def one_line(error: object) -> str:
    """Return the message of another library's exception in one line, cut to 300 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def is_text(text: str) -> bool:
    """Return whether a string can be encoded as UTF-8: it has no unpaired surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to an npz file atomically, without pickle.

    Raises
    ------
    OSError
        See `write_aside`.
    TypeError
        If an array holds Python objects.
    """
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise TypeError(f"array {name!r} holds Python objects; expected numbers or text")

    def write(file: BinaryIO) -> None:
        # The bytes of numpy.savez, which leaves the archive open after an error before NumPy 2.
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)

    write_aside(path, write)


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read all arrays of an npz file.

    Parameters
    ----------
    path : path
        An uncompressed npz file.

    Returns
    -------
    dict of str to ndarray
        The arrays by name.

    Raises
    ------
    OSError
        If the file does not exist or the system cannot read it. Its content may be intact.
    ValueError
        If the file is damaged, is not an npz file, or holds Python objects.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    arrays: dict[str, np.ndarray] = {}
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            # If a system error occurs while zipfile searches the file's directory, zipfile says
            # that it is not a zip file. So read that part first.
            file.seek(max(size - (1 << 17), 0))
            file.read()
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                if sum(member.file_size for member in members) > size:
                    raise ValueError("its arrays are larger than the file")
                for member in members:
                    name = member.filename.removesuffix(".npy")
                    if name in arrays:
                        raise ValueError(f"has {name!r} twice")
                    arrays[name] = _read_array(archive, member)
    except Exception as error:  # zipfile and numpy raise many types for damaged files
        # A damaged file can make zipfile seek before its beginning, which gives EINVAL.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise _about(path, error) from error
        raise ValueError(f"{path}: damaged, or not an npz file ({one_line(error)})") from None
    return arrays


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read one array of an npz file, after checking its size against the size in the file."""
    about = f"array {member.filename!r}"
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{about} is compressed; expected it as numpy.savez writes it")
    with archive.open(member) as file:
        headers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        version = np.lib.format.read_magic(file)
        if version not in headers:
            raise ValueError(f"{about} has npy format {version}; expected (1, 0) or (2, 0)")
        shape, by_columns, dtype = headers[version](file)
        if dtype.kind not in "biufcUSM":
            raise ValueError(f"{about} has dtype {dtype}; expected numbers or text")
        size = math.prod(shape)
        if min(shape, default=0) < 0 or size * dtype.itemsize != member.file_size - file.tell():
            raise ValueError(f"{about} of shape {shape} and dtype {dtype} has the wrong size")
        if dtype.itemsize == 0:
            raise ValueError(f"{about} has dtype {dtype}; expected items of at least 1 byte")
        array = np.empty(size, dtype)
        if size:
            content, start = array.view(np.uint8), 0
            while chunk := file.read(min(_CHUNK, content.size - start)):
                content[start : start + len(chunk)] = np.frombuffer(chunk, np.uint8)
                start += len(chunk)
            if start < content.size:
                raise EOFError(f"{about} is cut short")
        if file.read(1):
            raise ValueError(f"{about} is followed by extra bytes")
    if dtype.kind == "U" and size and array.view(dtype.str[0] + "u4").max() > sys.maxunicode:
        raise ValueError(f"{about} holds invalid Unicode text")
    return array.reshape(shape, order="F" if by_columns else "C")


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and bytes of arrays, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        if array.size:
            digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_sealed(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays and their checksum to an npz file atomically; see `write_npz`."""
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    write_npz(path, {**arrays, CHECKSUM: np.array(checksum(arrays))})


def read_sealed(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the arrays of a file written by `write_sealed` and verify their checksum.

    Parameters
    ----------
    path : path
        A file written by `write_sealed`.

    Returns
    -------
    dict of str to ndarray
        The arrays by name, without the checksum.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is damaged, or was not written by `write_sealed`.
    """
    arrays = read_npz(path)
    wanted = arrays.pop(CHECKSUM, None)
    if wanted is None or wanted.shape or wanted.dtype.kind != "U":
        raise ValueError(f"{path}: has no checksum; expected a file written by fastrnn")
    if str(wanted) != checksum(arrays):
        raise ValueError(f"{path}: damaged; its checksum does not match its content")
    return arrays

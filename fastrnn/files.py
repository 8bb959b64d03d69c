"""Files that are whole or not there at all, and arrays that say when they are damaged.

Everything is written beside its place, flushed to the disk and moved there in one step. Arrays go
into npz files without pickle; `write_sealed` puts a checksum of the content beside them, which
`read_sealed` holds against what it reads.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
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
"""What systems say that cannot flush a directory; anything else is a fault of the disk."""


def write_aside(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> None:
    """Write a file beside its place, flush it to the disk, and move it there in one step.

    Parameters
    ----------
    path : path
        The file; an old one is replaced, or stays as it was if anything fails.
    write : callable
        Called with the open binary file.

    Raises
    ------
    OSError
        If the directory cannot be written, the disk is full, or `path` is there as something else
        than a file; it names `path`.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "is no file, and is not replaced by one")
        handle, aside = create_aside(path)
    except OSError as error:
        raise _about(path, error) from error
    try:
        with os.fdopen(handle, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _flush_directory(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # what went wrong first is what is told
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _about(path, error) from error
        raise


def create_aside(path: Path) -> tuple[int, Path]:
    """Create the file that is to become `path`; return it, open, and its name for the time being.

    It is as readable as any new file, because the system itself applies the umask: to ask for the
    umask is to change it, for all threads.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        aside = path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}{_UNFINISHED}")
        try:
            return os.open(aside, flags, 0o666), aside
        except FileExistsError:
            continue


def _about(path: Path, error: OSError) -> OSError:
    """Return `error` as one about the file that was to be written, not the one beside it."""
    return OSError(error.errno or errno.EIO, error.strerror or str(error), str(path))


def _flush_directory(directory: Path) -> None:
    # The new name is on the disk once the directory is. Not every file system and not every
    # platform can do it; then the name is as safe as it can be.
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
    """Make a directory, and those above it, if need be, and flush their names to the disk."""
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


def is_unfinished(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is what `write_aside` leaves when its process is killed."""
    name = Path(path).name
    return name.startswith(".") and name.endswith(_UNFINISHED)


def remove_unfinished(directory: str | os.PathLike[str]) -> None:
    """Remove what `write_aside` left in a directory when its process was killed."""
    for path in filter(is_unfinished, Path(directory).iterdir()):
        path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    write_aside(path, lambda file: file.write(text.encode("utf-8")))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading.

    Raises
    ------
    OSError
        It cannot be read, or is none but a directory, a pipe or a device: these are not waited for.
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise OSError(errno.EINVAL, "is no file", str(path))
    # It may have become a pipe by now, which without a writer would never open.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "is no file", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
    with open_file(path) as file:
        return file.read()


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises
    ------
    OSError
        It cannot be read, or is not there.
    ValueError
        It is not UTF-8; the message names it.
    """
    try:
        return _read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error})") from None


def parse_json(text: str) -> Any:
    """Return what JSON stands for.

    Raises
    ------
    ValueError
        It is no JSON, is nested too deeply to be read, or an object names something twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"an object has {twice!r} twice")
    return found


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises
    ------
    OSError
        It cannot be read, or is not there.
    ValueError
        It holds no JSON; the message names it.
    """
    try:
        return parse_json(_read_bytes(path).decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None


def is_text(text: str) -> bool:
    """Return whether a string is text that a file can hold: no half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to an npz file, whole or not at all; no objects, so no pickle."""
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise TypeError(f"array {name!r} holds Python objects; it should hold numbers or text")
    named: dict[str, Any] = dict(arrays)
    write_aside(path, lambda file: np.savez(file, **named))


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read all arrays of an npz file.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict of str to ndarray

    Raises
    ------
    OSError
        There is no such file, or the system cannot read it: that says nothing of its content.
    ValueError
        The file is damaged, is no npz file, or holds Python objects.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    arrays: dict[str, np.ndarray] = {}
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            # Where zipfile looks for its directory, it would take an error of the system for the
            # lack of one.
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
    except Exception as error:  # whatever zipfile or numpy meet in there
        # EINVAL comes of a damaged file that has zipfile look before its beginning.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise _about(path, error) from error
        raise ValueError(f"{path}: damaged, or no npz file ({error})") from None
    return arrays


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read an array of an npz file, once it is known to be as large as the file says it is."""
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
            raise ValueError(f"{about} has the npy format {version}")
        shape, by_columns, dtype = headers[version](file)
        if dtype.kind not in "biufcUSM":
            raise ValueError(f"{about} has dtype {dtype}; expected numbers or text")
        size = math.prod(shape)
        if min(shape, default=0) < 0 or size * dtype.itemsize != member.file_size - file.tell():
            raise ValueError(f"{about} of shape {shape} and dtype {dtype} is not all there")
        if dtype.itemsize == 0:
            raise ValueError(f"{about} has dtype {dtype}, which holds nothing")
        array = np.empty(size, dtype)
        if size:
            content, start = array.view(np.uint8), 0
            while chunk := file.read(min(_CHUNK, content.size - start)):
                content[start : start + len(chunk)] = np.frombuffer(chunk, np.uint8)
                start += len(chunk)
            if start < content.size:
                raise EOFError(f"{about} is cut short")
        if file.read(1):
            raise ValueError(f"{about} has something behind it")
    if dtype.kind == "U" and size and array.view(dtype.str[0] + "u4").max() > sys.maxunicode:
        raise ValueError(f"{about} holds what is no text")
    return array.reshape(shape, order="F" if by_columns else "C")


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of arrays: of their names, dtypes, shapes and bytes, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        if array.size:
            digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_sealed(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays and their checksum to an npz file, whole or not at all."""
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    write_npz(path, {**arrays, CHECKSUM: np.array(checksum(arrays))})


def read_sealed(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the arrays of a file that `write_sealed` wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict of str to ndarray
        Without the checksum.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is damaged, or was written by something else.
    """
    arrays = read_npz(path)
    wanted = arrays.pop(CHECKSUM, None)
    if wanted is None or wanted.shape or wanted.dtype.kind != "U":
        raise ValueError(f"{path}: has no checksum; not a file of fastrnn's")
    if str(wanted) != checksum(arrays):
        raise ValueError(f"{path}: damaged; its content does not have its checksum")
    return arrays

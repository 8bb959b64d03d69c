"""Files that are whole or not there at all, and arrays that say when they are damaged.

Everything is written beside its place, flushed to the disk and moved there in one step. Arrays go
into npz files without pickle; `write_sealed` puts a checksum of the content beside them, which
`read_sealed` holds against what it reads.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

CHECKSUM = "checksum"
_UNFINISHED = ".unfinished"


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
        If the directory cannot be written or the disk is full; it names `path`.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(_UNFINISHED, f".{path.name}.", path.parent)
    except OSError as error:
        raise _about(path, error) from error
    aside = Path(name)
    try:
        with os.fdopen(handle, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner reads; a result is as readable as any new file.
        umask = os.umask(0)
        os.umask(umask)
        aside.chmod(0o666 & ~umask)
        aside.replace(path)
        _flush_directory(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise _about(path, error) from error
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _about(path: Path, error: OSError) -> OSError:
    """Return `error` as one about the file that was to be written, not the one beside it."""
    return OSError(error.errno or errno.EIO, error.strerror or str(error), str(path))


def _flush_directory(directory: Path) -> None:
    # The new name is on the disk once the directory is. Not every file system and not every
    # platform can do it; then the name is as safe as it can be.
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


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
        return json.loads(Path(path).read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None


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
    FileNotFoundError
        There is no such file.
    ValueError
        The file is damaged, is no npz file, or holds Python objects.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    try:
        # An array alone would come back as it is, so it is the archive that is asked for.
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
        with np.load(path, allow_pickle=False) as npz:
            return {name.removesuffix(".npy"): npz[name] for name in names}
    except PermissionError:
        raise
    except (
        ValueError, EOFError, OSError, KeyError, AttributeError, MemoryError, SyntaxError,
        NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise ValueError(f"{path}: damaged, or no npz file ({error})") from None


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
    if wanted is None:
        raise ValueError(f"{path}: has no checksum; not a file of fastrnn's")
    if str(wanted) != checksum(arrays):
        raise ValueError(f"{path}: damaged; its content does not have its checksum")
    return arrays

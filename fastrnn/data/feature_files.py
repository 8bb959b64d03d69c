"""Features of images as people have them: npy, npz and h5 files, or a folder of npy files.

`FeatureFiles` reads them in blocks of rows, and `NameIndex` finds the row, or the photograph, of
an image by its name.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..files import one_line, open_file, read_npz
from .annotations import read_names
from .layout import dataset_shapes, read_blocks

__all__ = ["FeatureFiles", "NameIndex"]

_BLOCK = 1 << 24
"""Bytes of features that are read at once."""


_LONGEST_HEADER = 1 << 16


class NameIndex:
    """Finds things that have names or paths by what annotations call them.

    A name is found as it is; else by its last part, with and without the suffix, if one thing
    alone has it.

    Parameters
    ----------
    names : iterable of str
        Names or paths, with slashes, all different.
    what : str
        What the names are of, for messages.
    """

    def __init__(self, names: Iterable[str], what: str) -> None:
        self.names: list[str] = list(names)
        self._what = what
        self._exact: dict[str, int] = {}
        self._looser: dict[str, list[int]] = {}
        for row, name in enumerate(self.names):
            if name in self._exact:
                raise ValueError(f"{what} has {name!r:.60} twice; expected every name once")
            self._exact[name] = row
            last = _last_part(name)
            for key in {last, _stem(last)}:
                self._looser.setdefault(key, []).append(row)

    def exact(self, name: str) -> int | None:
        """Return the row of a name as it is; None if it is not there."""
        return self._exact.get(name)

    def find(self, *names: str | None) -> int | None:
        """Return the row of the first of some names that is there.

        Parameters
        ----------
        *names : str or None
            Names or paths of the same thing; None stands for none. The last part of a path is
            enough, with or without its ending.

        Returns
        -------
        int or None
            The row; None if none of the names is there.

        Raises
        ------
        ValueError
            If several things have the last part of the name.
        """
        for name in filter(None, names):
            if name in self._exact:
                return self._exact[name]
            last = _last_part(name)
            for key in (last, _stem(last)):
                rows = self._looser.get(key, [])
                if len(rows) > 1:
                    first, second = (self.names[row] for row in rows[:2])
                    raise ValueError(
                        f"{self._what} has {first!r:.60} and {second!r:.60} for the image "
                        f"{name!r:.60}; expected one"
                    )
                if rows:
                    return rows[0]
        return None


def _last_part(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1]


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122 (a name, not a path of this system)


class FeatureFiles:
    """The rows of one or several files of features, one after the other.

    Parameters
    ----------
    paths : sequence of path
        npy files (N, D); npz files with one array (N, D), perhaps with the array ``names``, or with
        a vector (D,) for each image under its name; h5 files with the dataset ``features`` (N, D);
        or folders with an npy file (D,) for each image.
    names : sequence of str, optional
        The image of each row, where the files do not say. By default, they are read from NAME.txt
        beside NAME.npy or NAME.h5, if there is one, as ``fastrnn features`` writes it.

    Attributes
    ----------
    names : list of str or None
        The image of each row; None if it is not known.
    count, width : int
        Number of rows, and of features in each.

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If one does not hold floats of this shape, or the names do not fit the rows.
    """

    def __init__(
        self, paths: Sequence[str | os.PathLike[str]], names: Sequence[str] | None = None
    ) -> None:
        self.paths: list[Path] = [Path(path) for path in paths]
        if not self.paths:
            raise ValueError("paths is empty; expected at least one file")
        self._parts: list[Any] = [_open_part(path) for path in self.paths]
        self.count: int = sum(part.count for part in self._parts)
        self.width: int = self._parts[0].width
        for part in self._parts:
            if part.width != self.width:
                raise ValueError(
                    f"{part.path}: has {part.width} features in a row; expected {self.width}, as "
                    f"in {self._parts[0].path}"
                )
        if names is not None:
            if len(names) != self.count:
                raise ValueError(
                    f"{self}: has {self.count} rows; expected {len(names)}, one for each name"
                )
            self.names: list[str] | None = list(names)
        elif all(part.names is not None for part in self._parts):
            self.names = [name for part in self._parts for name in part.names]
        else:
            self.names = None

    def __str__(self) -> str:
        first, *others = map(str, self.paths)
        return f"{first} and {len(others)} more" if others else first

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the rows in blocks.

        Yields
        ------
        first : int
            The number of the first row of the block.
        block : float32 ndarray (rows, D)
            The rows.

        Raises
        ------
        OSError
            If a file cannot be read.
        ValueError
            If a feature is not a finite number in float32; the message has the file and the row.
        """
        start = 0
        for part in self._parts:
            first = start
            for block in part.blocks(max(_BLOCK // (8 * self.width), 1)):
                with np.errstate(over="ignore", invalid="ignore"):
                    found = np.ascontiguousarray(block, np.float32)
                finite = np.isfinite(found)
                if not finite.all():
                    row, column = np.argwhere(~finite)[0]
                    number = start + int(row)
                    name = f" ({self.names[number]:.60})" if self.names is not None else ""
                    raise ValueError(
                        f"{part.path}: row {number - first}{name} has {block[row, column]} at "
                        f"{column}; expected finite numbers"
                    )
                yield start, found
                start += len(found)


def _open_part(path: Path) -> Any:
    if path.is_dir():
        return _Folder(path)
    kinds = {".npy": _Npy, ".npz": _Npz, ".h5": _H5, ".hdf5": _H5}
    if path.suffix.lower() not in kinds:
        raise ValueError(
            f"{path}: is no file of features; expected npy, npz, h5 or a folder of npy"
        )
    return kinds[path.suffix.lower()](path)


def _check_shape(path: Path, what: str, shape: Sequence[int], dtype: np.dtype, ndim: int) -> None:
    if len(shape) != ndim or not math.prod(shape):
        wanted = "(images, features)" if ndim == 2 else "(features,)"
        raise ValueError(f"{path}: {what}has shape {tuple(shape)}; expected {wanted}, none of it 0")
    if dtype.kind != "f":
        raise ValueError(f"{path}: {what}has dtype {dtype}; expected floats")


# -- npy


def _npy_header(path: Path, file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of an npy file, and check it against the size of the file."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0,
    }  # fmt: skip
    # A header can say that it is 4 GB long.
    start = io.BytesIO(file.read(_LONGEST_HEADER))
    try:
        version = np.lib.format.read_magic(start)
        if version not in readers:
            raise ValueError(f"npy format {version}")
        shape, by_columns, dtype = readers[version](start)
    except Exception as error:  # NumPy raises many types for a damaged header
        raise ValueError(f"{path}: damaged, or not an npy file ({one_line(error)})") from None
    file.seek(start.tell())
    size = os.fstat(file.fileno()).st_size - file.tell()
    if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
        raise ValueError(
            f"{path}: has shape {shape} and dtype {dtype} in {size} bytes; expected as many as it "
            "needs"
        )
    return shape, by_columns, dtype


def _names_beside(path: Path, count: int) -> list[str] | None:
    """Read the list of images that `fastrnn features` writes beside a file."""
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return None
    names = read_names(beside)
    if len(names) != count:
        raise ValueError(f"{beside}: has {len(names)} names; expected {count}, the rows of {path}")
    return names


class _Npy:
    def __init__(self, path: Path) -> None:
        self.path = path
        with open_file(path) as file:
            shape, self._by_columns, self._dtype = _npy_header(path, file)
            self._start = file.tell()
        _check_shape(path, "", shape, self._dtype, 2)
        self.count, self.width = shape
        self.names = _names_beside(path, self.count)

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        rows = self.count if self._by_columns else rows
        with open_file(self.path) as file:
            file.seek(self._start)
            for start in range(0, self.count, rows):
                shape = (min(rows, self.count - start), self.width)
                content = file.read(math.prod(shape) * self._dtype.itemsize)
                if len(content) != math.prod(shape) * self._dtype.itemsize:
                    raise ValueError(f"{self.path}: is cut short; expected {self.count} rows")
                order: Any = "F" if self._by_columns else "C"
                yield np.frombuffer(content, self._dtype).reshape(shape, order=order)


class _Folder:
    """An npy file for each image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = sorted(p for p in path.rglob("*.npy") if not p.name.startswith("."))
        if not self._files:
            raise ValueError(f"{path}: has no npy files; expected one for each image")
        self.names = [file.relative_to(path).with_suffix("").as_posix() for file in self._files]
        self.count = len(self._files)
        self.width = len(self._read(self._files[0]))

    @staticmethod
    def _read(path: Path) -> np.ndarray:
        with open_file(path) as file:
            shape, _, dtype = _npy_header(path, file)
            if len(shape) == 2 and shape[0] == 1:
                shape = shape[1:]
            _check_shape(path, "", shape, dtype, 1)
            return np.frombuffer(file.read(shape[0] * dtype.itemsize), dtype)

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        for start in range(0, self.count, rows):
            found = []
            for file in self._files[start : start + rows]:
                found.append(self._read(file))
                if len(found[-1]) != self.width:
                    raise ValueError(
                        f"{file}: has {len(found[-1])} features; expected {self.width}, as in "
                        f"{self._files[0]}"
                    )
            yield np.stack(found)


class _Npz:
    def __init__(self, path: Path) -> None:
        self.path = path
        arrays = read_npz(path)
        tables = [name for name, array in arrays.items() if array.ndim == 2]
        key = "features" if "features" in tables else tables[0] if len(tables) == 1 else None
        self.names: list[str] | None = None
        if key is not None:
            self._array = arrays[key]
            _check_shape(path, f"array {key!r} ", self._array.shape, self._array.dtype, 2)
            names = arrays.get("names")
            if names is not None:
                if names.ndim != 1 or names.dtype.kind != "U" or len(names) != len(self._array):
                    raise ValueError(
                        f"{path}: array 'names' has shape {names.shape} and dtype {names.dtype}; "
                        f"expected ({len(self._array)},) and text"
                    )
                self.names = names.tolist()
        elif arrays and not tables:
            first = next(iter(arrays))
            for name, array in arrays.items():
                _check_shape(path, f"array {name!r:.60} ", array.shape, array.dtype, 1)
                if len(array) != len(arrays[first]):
                    raise ValueError(
                        f"{path}: array {name!r:.60} has {len(array)} features; expected "
                        f"{len(arrays[first])}, as {first!r:.60} has"
                    )
            self.names, self._array = list(arrays), np.stack(list(arrays.values()))
        else:
            raise ValueError(
                f"{path}: has {len(tables)} arrays of two axes; expected 'features', or a vector "
                "for each image"
            )
        self.count, self.width = self._array.shape

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        for start in range(0, self.count, rows):
            yield self._array[start : start + rows]


class _H5:
    def __init__(self, path: Path) -> None:
        self.path = path
        shapes = dataset_shapes(path)
        tables = [
            name for name, (shape, dtype) in shapes.items() if len(shape) == 2 and dtype.kind == "f"
        ]
        if "features" in shapes:
            self._name = "features"
        elif len(tables) == 1:
            self._name = tables[0]
        else:
            raise ValueError(f"{path}: dataset 'features' is missing")
        shape, dtype = shapes[self._name]
        _check_shape(path, f"dataset {self._name!r:.60} ", shape, dtype, 2)
        self.count, self.width = shape
        self.names = _names_beside(path, self.count)

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        return read_blocks(self.path, self._name)

"""Principal component analysis of image features."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from ..files import one_line, open_file, read_npz, write_aside, write_npz
from .h5 import H5Reader

__all__ = ["PCA", "PCAFileError"]

_FEATURES = "features"
_PART_BYTES = 1 << 26
"""Size of what is read at a time, in float64."""


class _Features:
    """Features (N, D) of floats in an HDF5 or npy file, which are read in parts."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._array: np.ndarray | None = None
        try:
            with open_file(path) as file:
                is_npy = file.read(6) == b"\x93NUMPY"
            if is_npy:
                self._array = np.load(self._path, mmap_mode="r", allow_pickle=False)
                self.shape, dtype = self._array.shape, self._array.dtype
            else:
                with H5Reader() as h5:
                    shapes = h5.shapes(self._path)
                if _FEATURES not in shapes:
                    raise ValueError(f"dataset {_FEATURES!r} is missing")
                self.shape, dtype = shapes[_FEATURES]
            if len(self.shape) != 2 or 0 in self.shape or dtype.kind != "f":
                raise ValueError(f"it has shape {self.shape} and dtype {dtype}")
        except FileNotFoundError:
            raise
        except Exception as error:  # NumPy raises many types for damaged files
            raise ValueError(
                f"{path}: not a file of features ({one_line(error)}); expected the dataset "
                "features, or an array, of floats (N, D)"
            ) from error

    def parts(self, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Yield all rows, or those of `rows` in increasing order, in parts of bounded size."""
        start = 0
        for block in self._blocks():
            stop = start + len(block)
            if rows is None:
                yield block
            else:
                first, last = np.searchsorted(rows, (start, stop))
                if first < last:
                    yield block[rows[first:last] - start]
            start = stop

    def _blocks(self) -> Iterator[np.ndarray]:
        if self._array is None:
            with H5Reader() as h5:
                yield from h5.blocks(self._path, _FEATURES)
        else:
            step = max(_PART_BYTES // (8 * self.shape[1]), 1)
            for start in range(0, len(self._array), step):
                yield np.asarray(self._array[start : start + step])


class PCAFileError(ValueError):
    """The file of a PCA is damaged, or is another one; the message begins with its path."""


class PCA:
    """Principal components, scaled so that the projections have unit standard deviation.

    Attributes
    ----------
    mean : float32 ndarray (D,)
        Mean of the features.
    components : float32 ndarray (K, D)
        Principal components by decreasing variance. Each is divided by the standard deviation
        along it, but never by less than `floor` times the largest deviation, so that components
        of almost no variance are not amplified.
    """

    def __init__(self, mean: np.ndarray, components: np.ndarray) -> None:
        self.mean = mean
        self.components = components

    def __repr__(self) -> str:
        size, width = self.components.shape
        return f"{type(self).__name__}({width:,} to {size:,} features)"

    @classmethod
    def fit(cls, x: np.ndarray, size: int, floor: float = 0.01) -> PCA:
        """Fit the components.

        Parameters
        ----------
        x : float ndarray (N, D)
            Features.
        size : int
            Number of components, K; at most D are found.
        floor : float, optional
            Smallest divisor, as a fraction of the largest deviation. Default 0.01.

        Returns
        -------
        PCA

        Raises
        ------
        ValueError
            If `x` is empty or is not a matrix, or if `size` is less than 1.
        """
        if x.ndim != 2 or not x.size:
            raise ValueError(f"x has shape {x.shape}; expected (N, D), neither of them 0")
        if size < 1:
            raise ValueError(f"size is {size}; expected at least 1")
        mean = x.mean(axis=0, dtype=np.float64)
        centered = x - mean
        return cls._of_covariance(mean, centered.T @ centered / len(x), size, floor)

    @classmethod
    def _of_covariance(
        cls, mean: np.ndarray, covariance: np.ndarray, size: int, floor: float
    ) -> PCA:
        variance, vectors = np.linalg.eigh(covariance)
        order = np.argsort(variance)[::-1][:size]
        deviation = np.sqrt(np.maximum(variance[order], 0))
        scale = np.maximum(deviation, max(floor * deviation[0], np.finfo(np.float32).tiny))
        # The sign of an eigenvector is arbitrary: make its largest entry positive.
        vectors = vectors[:, order]
        signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(order))])
        components = (vectors * signs / scale).T
        return cls(mean.astype(np.float32), np.ascontiguousarray(components, np.float32))

    @classmethod
    def fit_file(
        cls,
        path: str | os.PathLike[str],
        size: int,
        floor: float = 0.01,
        *,
        rows: np.ndarray | None = None,
    ) -> PCA:
        """Fit the components to the features in a file, which need not fit in memory.

        Parameters
        ----------
        path : path
            An HDF5 file with the dataset ``features``, or a npy file: floats (N, D).
        size, floor
            As for `fit`.
        rows : int ndarray, optional
            The rows to fit to, in increasing order, such as those of the training part. Default
            all.

        Returns
        -------
        PCA
            That of `fit`, up to rounding.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it has no such features, a value is not finite, or `size` is less than 1.

        Notes
        -----
        The file is read twice: for the mean, and for the covariance, which takes 8 D^2 bytes, and
        three times as much for its eigenvectors.
        """
        from scipy.linalg.blas import dsyrk  # loading it takes as long as all of NumPy

        if size < 1:
            raise ValueError(f"size is {size}; expected at least 1")
        source = _Features(path)
        total_rows, width = source.shape
        chosen = None if rows is None else np.asarray(rows)
        if chosen is not None and (not len(chosen) or chosen[0] < 0 or chosen[-1] >= total_rows):
            raise ValueError(
                f"{path}: rows has {len(chosen)} numbers; expected some from 0 to {total_rows - 1}"
            )
        count = total_rows if chosen is None else len(chosen)
        total = np.zeros(width)
        for part in source.parts(chosen):
            total += part.sum(axis=0, dtype=np.float64)
        mean = total / count
        if not np.isfinite(mean).all():
            raise ValueError(f"{path}: features has values that are not finite")
        # One triangle is enough; SciPy's function takes and returns arrays by columns.
        covariance = np.zeros((width, width), order="F")
        for part in source.parts(chosen):
            centered = part - mean
            covariance = dsyrk(1 / count, centered.T, 1.0, covariance, overwrite_c=1)
        return cls._of_covariance(mean, covariance.T, size, floor)

    def transform_file(
        self, path: str | os.PathLike[str], out: str | os.PathLike[str]
    ) -> tuple[int, int]:
        """Project the features in a file, which need not fit in memory, and write an HDF5 file.

        Parameters
        ----------
        path : path
            An HDF5 file with the dataset ``features``, or a npy file: floats (N, D).
        out : path
            The file to write, atomically: the dataset ``features``, float32 (N, K).

        Returns
        -------
        tuple of int
            N and K.

        Raises
        ------
        OSError
            If a file cannot be read or written.
        ValueError
            If the features have another width than the PCA.
        """
        source = _Features(path)
        count, width = source.shape
        if width != len(self.mean):
            raise ValueError(
                f"{path}: features has shape {source.shape}; expected (N, {len(self.mean)}), "
                "as the PCA has"
            )

        def write(file: BinaryIO) -> None:
            import h5py

            with h5py.File(file, "w") as h5:
                target = h5.create_dataset(_FEATURES, (count, len(self.components)), "<f4")
                start = 0
                for part in source.parts():
                    target[start : start + len(part)] = self.transform(part)
                    start += len(part)

        write_aside(out, write)
        return count, len(self.components)

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Project features (N, D) to float32 (N, K)."""
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise ValueError(f"x has shape {x.shape}; expected (N, {len(self.mean)})")
        return ((x - self.mean) @ self.components.T).astype(np.float32)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `mean` and `components` to an npz file."""
        write_npz(path, {"mean": self.mean, "components": self.components})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PCA:
        """Read a file that `save` wrote.

        Parameters
        ----------
        path : path
            The npz file.

        Returns
        -------
        PCA
            Equal to the one that was saved.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        PCAFileError
            If it is damaged, or is not such a file.
        """
        path = os.fspath(path)
        try:
            arrays = read_npz(path)
        except ValueError as error:
            raise PCAFileError(str(error)) from None
        try:
            mean, components = arrays["mean"], arrays["components"]
        except KeyError as error:
            raise PCAFileError(f"{path}: {error} is missing; expected a file of PCA.save") from None
        if components.ndim != 2 or not components.size or mean.shape != components.shape[1:]:
            raise PCAFileError(
                f"{path}: components has shape {components.shape} and mean {mean.shape}; expected "
                "(K, D) and (D,), not empty"
            )
        for name, array in (("mean", mean), ("components", components)):
            if array.dtype.kind != "f":
                raise PCAFileError(f"{path}: {name} has dtype {array.dtype}; expected floats")
        return cls(mean, components)

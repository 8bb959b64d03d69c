"""Principal component analysis of image features."""

from __future__ import annotations

import os

import numpy as np

from ..files import read_npz, write_npz


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
        variance, vectors = np.linalg.eigh(centered.T @ centered / len(x))
        order = np.argsort(variance)[::-1][:size]
        deviation = np.sqrt(np.maximum(variance[order], 0))
        scale = np.maximum(deviation, max(floor * deviation[0], np.finfo(np.float32).tiny))
        # The sign of an eigenvector is arbitrary: make its largest entry positive.
        vectors = vectors[:, order]
        signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(order))])
        components = (vectors * signs / scale).T
        return cls(mean.astype(np.float32), np.ascontiguousarray(components, np.float32))

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

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is damaged, or is not such a file.
        """
        path = os.fspath(path)
        arrays = read_npz(path)
        try:
            mean, components = arrays["mean"], arrays["components"]
        except KeyError as error:
            raise ValueError(f"{path}: {error} is missing; expected a file of PCA.save") from None
        if components.ndim != 2 or not components.size or mean.shape != components.shape[1:]:
            raise ValueError(
                f"{path}: components has shape {components.shape} and mean {mean.shape}; expected "
                "(K, D) and (D,), not empty"
            )
        for name, array in (("mean", mean), ("components", components)):
            if array.dtype.kind != "f":
                raise ValueError(f"{path}: {name} has dtype {array.dtype}; expected floats")
        return cls(mean, components)

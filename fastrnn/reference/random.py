"""Counter-based random numbers in plain NumPy: the reference for ``src_c/random.h``.

A random number is a hash of a seed, the row of the batch, the time step and the unit. There is no
state between draws, so results do not depend on the order in which rows are processed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..seeds import EMBED, MIX, VOCAB, stream_seed

__all__ = ["EMBED", "MIX", "VOCAB", "dropout_mask", "stream_seed", "uniform"]


def _mix(x: np.ndarray) -> np.ndarray:
    """Hash 32-bit integers so that each output bit depends on all input bits."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x21F0AAAD)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x735A2D97)
    return x ^ (x >> np.uint32(15))


def uniform(seed: int, row: ArrayLike, t: ArrayLike, units: int) -> np.ndarray:
    """Draw uniform random numbers.

    Parameters
    ----------
    seed : int
        64-bit seed.
    row, t : int array_like
        Rows of the batch and time steps, broadcast against each other.
    units : int
        Number of random numbers for each pair of row and time step.

    Returns
    -------
    ndarray of float64, shape (..., units)
        Multiples of 2**-24 in [0, 1). The leading axes are the broadcast shape of `row` and `t`.
    """
    row, t = np.broadcast_arrays(np.asarray(row, np.uint32), np.asarray(t, np.uint32))
    key = _mix(np.full(row.shape, seed % 2**32, np.uint32))
    key = _mix(key ^ np.uint32(seed >> 32))
    key = _mix(_mix(key ^ row) ^ t)
    unit = np.arange(units, dtype=np.uint32) * np.uint32(0x9E3779B9)
    return (_mix(key[..., None] + unit) >> np.uint32(8)) * 2.0**-24


def dropout_mask(seed: int, N: int, T: int, units: int, rate: float) -> np.ndarray:
    """Return an inverted dropout mask: 0 with probability `rate`, else 1 / (1 - rate).

    Parameters
    ----------
    seed : int
        64-bit seed of an RNG stream.
    N, T, units : int
        Numbers of rows, time steps and units.
    rate : float
        Dropout probability, in [0, 1).

    Returns
    -------
    ndarray of float64, shape (N, T, units)
        The mask.

    References
    ----------
    Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout: a simple way to
    prevent neural networks from overfitting", 2014, section 10 (scaling while training).
    """
    kept = uniform(seed, np.arange(N)[:, None], np.arange(T)[None], units) >= rate
    return kept / (1 - rate)

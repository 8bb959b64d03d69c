"""Random numbers that depend on their place alone: the twin of ``src_c/random.h``.

A draw is a hash of a seed, a row of the batch, a time step and a unit. Nothing is carried from
one draw to the next, so the order in which rows are worked on changes nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..seeds import EMBED, MIX, VOCAB, stream_seed

__all__ = ["EMBED", "MIX", "VOCAB", "dropout_mask", "stream_seed", "uniform"]


def _mix(x: np.ndarray) -> np.ndarray:
    """Mix 32 bits so that each depends on all."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x21F0AAAD)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x735A2D97)
    return x ^ (x >> np.uint32(15))


def uniform(seed: int, row: ArrayLike, t: ArrayLike, units: int) -> np.ndarray:
    """Draw uniform numbers.

    Parameters
    ----------
    seed : int
        64 bits.
    row, t : int array_like
        Rows of the batch and time steps; they are broadcast to a common shape.
    units : int
        How many numbers are drawn at each place.

    Returns
    -------
    ndarray of float64, the common shape of `row` and `t`, then `units`
        Multiples of 2**-24 in [0, 1).
    """
    row, t = np.broadcast_arrays(np.asarray(row, np.uint32), np.asarray(t, np.uint32))
    key = _mix(np.full(row.shape, seed % 2**32, np.uint32))
    key = _mix(key ^ np.uint32(seed >> 32))
    key = _mix(_mix(key ^ row) ^ t)
    unit = np.arange(units, dtype=np.uint32) * np.uint32(0x9E3779B9)
    return (_mix(key[..., None] + unit) >> np.uint32(8)) * 2.0**-24


def dropout_mask(seed: int, N: int, T: int, units: int, rate: float) -> np.ndarray:
    """Return the mask of inverted dropout: 0 with probability `rate`, else 1 / (1 - rate).

    Parameters
    ----------
    seed : int
        Of a stream.
    N, T, units : int
        Rows, time steps, and units of each.
    rate : float
        In [0, 1).

    Returns
    -------
    ndarray of float64, shape (N, T, units)

    References
    ----------
    Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout: a simple way to
    prevent neural networks from overfitting", 2014, section 10 (scaling while training).
    """
    kept = uniform(seed, np.arange(N)[:, None], np.arange(T)[None], units) >= rate
    return kept / (1 - rate)

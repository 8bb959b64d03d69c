"""Scaled dot-product attention over a grid, and an LSTM with it, in plain NumPy.

The reference for `fastrnn.attention`, whose shapes and words it shares.
"""

import math
from typing import Any

import numpy as np

from .. import checks as _checks
from . import gates as _gates

__all__ = [
    "attention_backward",
    "attention_forward",
    "attention_step_backward",
    "attention_step_forward",
    "dot_product_attention",
]


def _places(A: np.ndarray) -> np.ndarray:
    """Return a grid (N, H, ...) as (N, H, P)."""
    return A.reshape(*A.shape[:2], math.prod(A.shape[2:]))


def _scale(H: int) -> float:
    return 1 / math.sqrt(max(H, 1))


def _attend(prev_h: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of the places (N, H, P) by the weights (N, P), and the weights."""
    scores = _scale(prev_h.shape[1]) * np.einsum("nh,nhp->np", prev_h, places)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("np,nhp->nh", weights, places), weights


def dot_product_attention(prev_h: np.ndarray, A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scaled dot-product attention; see `fastrnn.attention.dot_product_attention`."""
    prev_h, A = _checks.dot_product_attention(prev_h, A)
    attn, weights = _attend(prev_h, _places(A))
    return attn, weights.reshape(len(A), *A.shape[2:])


def attention_step_forward(
    x: np.ndarray,
    prev_h: np.ndarray,
    prev_c: np.ndarray,
    A: np.ndarray,
    Wx: np.ndarray,
    Wh: np.ndarray,
    Wattn: np.ndarray,
    b: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, tuple[Any, ...]]:
    """One time step; see `fastrnn.attention.attention_step_forward`."""
    x, prev_h, prev_c, A, Wx, Wh, Wattn, b = _checks.attention_step_forward(
        x, prev_h, prev_c, A, Wx, Wh, Wattn, b
    )
    attn, weights = _attend(prev_h, _places(A))
    a = x @ Wx + prev_h @ Wh + attn @ Wattn + b
    next_h, next_c, kept = _gates.lstm_gates(a, prev_h, prev_c)
    return next_h, next_c, (x, prev_h, A, Wx, Wh, Wattn, attn, weights, kept)


def attention_step_backward(
    dnext_h: np.ndarray, dnext_c: np.ndarray, cache: tuple[Any, ...]
) -> tuple[np.ndarray, ...]:
    """Gradients of `attention_step_forward`; see `fastrnn.attention.attention_step_backward`."""
    x, prev_h, A, Wx, Wh, Wattn, attn, weights, kept = cache
    dnext_h, dnext_c, attn = _checks.as_floats(dnext_h=dnext_h, dnext_c=dnext_c, attn=attn)
    N, H = attn.shape
    _checks.match_shapes({"N": N, "H": H}, dnext_h=(dnext_h, "N H"), dnext_c=(dnext_c, "N H"))

    da, _, dprev_c = _gates.lstm_gates_backward(dnext_h, dnext_c, kept)
    dattn, places = da @ Wattn.T, _places(A)
    # attn = sum over p of weights[p] * places[p]
    dweights = np.einsum("nh,nhp->np", dattn, places)
    dplaces = np.einsum("nh,np->nhp", dattn, weights)
    # weights = softmax(scores), scores = scale * prev_h . places
    mean = (weights * dweights).sum(axis=1, keepdims=True)
    dscores = _scale(H) * (weights * (dweights - mean))
    dplaces += np.einsum("nh,np->nhp", prev_h, dscores)
    dprev_h = da @ Wh.T + np.einsum("np,nhp->nh", dscores, places)
    return (
        da @ Wx.T, dprev_h, dprev_c, dplaces.reshape(A.shape), x.T @ da, prev_h.T @ da, attn.T @ da,
        da.sum(axis=0),
    )  # fmt: skip


def attention_forward(
    x: np.ndarray,
    A: np.ndarray,
    Wx: np.ndarray,
    Wh: np.ndarray,
    Wattn: np.ndarray,
    b: np.ndarray,
    *,
    lengths: np.ndarray | None = None,
) -> tuple[np.ndarray, tuple[Any, ...]]:
    """Whole sequences; see `fastrnn.attention.attention_forward`."""
    x, A, Wx, Wh, Wattn, b = _checks.attention_forward(x, A, Wx, Wh, Wattn, b)
    (N, T, _), H = x.shape, A.shape[1]
    lengths = _checks.as_lengths(lengths, N, T)

    h = np.zeros((N, T, H), dtype=x.dtype)
    state = _places(A).mean(axis=2)
    cell = state.copy()
    steps = []
    for t in range(T):
        rows = np.flatnonzero(lengths > t)  # rows that have not ended
        state[rows], cell[rows], step = attention_step_forward(
            x[rows, t], state[rows], cell[rows], A[rows], Wx, Wh, Wattn, b
        )
        h[rows, t] = state[rows]
        steps.append((rows, step))
    return h, (steps, x.shape, A.shape, Wx, Wh, Wattn)


def attention_backward(dh: np.ndarray, cache: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
    """Gradients of `attention_forward`; see `fastrnn.attention.attention_backward`."""
    steps, (N, T, D), grid, Wx, Wh, Wattn = cache
    H = Wh.shape[0]
    dh, Wx, Wh, Wattn = _checks.as_floats(dh=dh, Wx=Wx, Wh=Wh, Wattn=Wattn)
    _checks.match_shapes({"N": N, "T": T, "H": H}, dh=(dh, "N T H"))

    dx, dA = np.zeros((N, T, D), dtype=dh.dtype), np.zeros(grid, dtype=dh.dtype)
    dstate, dcell = np.zeros((2, N, H), dtype=dh.dtype)
    weights = [np.zeros_like(w) for w in (Wx, Wh, Wattn)] + [np.zeros_like(Wh, shape=4 * H)]
    for t in reversed(range(T)):
        rows, step = steps[t]
        dx[rows, t], dstate[rows], dcell[rows], dA_t, *found = attention_step_backward(
            dh[rows, t] + dstate[rows], dcell[rows], step
        )
        dA[rows] += dA_t
        for total, gradient in zip(weights, found, strict=True):
            total += gradient
    # The initial states are means of the places.
    dplaces = _places(dA)
    dplaces += (dstate + dcell)[:, :, None] / dplaces.shape[2]
    dWx, dWh, dWattn, db = weights
    return dx, dA, dWx, dWh, dWattn, db

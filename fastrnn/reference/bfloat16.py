"""Matrix products in bfloat16, and the layers that use them: what ``precision="bfloat16"`` means.

A matrix product rounds its two operands to bfloat16. A product of two bfloat16 numbers is exact in
float32, and the sums are float32. All else is float32: weights, biases, states, gates, the softmax,
the gradient of a bias (a sum, not a product) and the optimizer's moments. In the captioner, the
projection of the image features is float32, too: features may be large and differ little.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = [
    "affine_backward",
    "affine_forward",
    "multiply",
    "round_to_bfloat16",
    "sequence_backward",
    "sequence_forward",
]


def round_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Round float32 numbers to bfloat16, which has their exponents and 8 significant bits.

    Parameters
    ----------
    x : float32 ndarray
        Numbers.

    Returns
    -------
    float32 ndarray
        The nearest numbers whose lower 16 bits are zero; halfway cases go to the one whose last
        bit is even. Numbers past the largest bfloat16 become infinite. Denormals become zero, as
        the processor's instruction (VDPBF16PS) treats them. NaN stays NaN.
    """
    bits = np.asarray(x, dtype=np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    nearest = (bits + (np.uint32(0x7FFF) + odd)) & np.uint32(0xFFFF0000)
    denormal = (bits & np.uint32(0x7F800000)) == 0
    nearest = np.where(denormal, bits & np.uint32(0x80000000), nearest)
    quiet = (bits | np.uint32(0x00400000)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), quiet, nearest).view(np.float32)


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the product of float32 matrices ``a`` (M, K) and ``b`` (K, N) in bfloat16.

    Parameters
    ----------
    a : float32 ndarray, shape (M, K)
        Left operand.
    b : float32 ndarray, shape (K, N)
        Right operand.

    Returns
    -------
    float32 ndarray, shape (M, N)
        Product of the rounded operands. The order of the sums is not specified.
    """
    return round_to_bfloat16(a) @ round_to_bfloat16(b)


def affine_forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, tuple[Any, ...]]:
    """Affine layer ``x w + b`` over the last axis of `x`.

    Parameters
    ----------
    x : float32 ndarray, shape (..., D)
        Inputs.
    w : float32 ndarray, shape (D, M)
        Weights.
    b : float32 ndarray, shape (M,)
        Biases.

    Returns
    -------
    out : float32 ndarray, shape (..., M)
        Outputs.
    cache : tuple
        ``(x, w, b)``, for `affine_backward`.
    """
    rows = x.reshape(math.prod(x.shape[:-1]), len(w))
    return multiply(rows, w).reshape(*x.shape[:-1], w.shape[1]) + b, (x, w, b)


def affine_backward(dout: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `affine_forward`.

    Parameters
    ----------
    dout : float32 ndarray, shape (..., M)
        Gradient of the loss with respect to the output.
    cache : tuple
        Cache returned by `affine_forward`.

    Returns
    -------
    dx : float32 ndarray, shape (..., D)
        Gradient of the inputs.
    dw : float32 ndarray, shape (D, M)
        Gradient of the weights.
    db : float32 ndarray, shape (M,)
        Gradient of the biases: the sum of `dout`, which is not rounded.
    """
    x, w, _ = cache
    N = math.prod(x.shape[:-1])
    rows, drows = x.reshape(N, len(w)), dout.reshape(N, w.shape[1])
    return multiply(drows, w.T).reshape(x.shape), multiply(rows.T, drows), drows.sum(axis=0)


def sequence_forward(
    gates: Callable[..., Any],
    inputs: np.ndarray,
    h0: np.ndarray,
    Wh: np.ndarray,
    lengths: np.ndarray,
) -> tuple[np.ndarray, tuple[Any, ...]]:
    """Run a recurrent cell over whole sequences, from a zero cell state.

    Parameters
    ----------
    gates : function
        What follows the products of a step (`fastrnn.reference.gates`).
    inputs : float32 ndarray, shape (N, T, G)
        Product of the input of each step with Wx, plus b.
    h0 : float32 ndarray, shape (N, H)
        Initial hidden state.
    Wh : float32 ndarray, shape (H, G)
        Hidden-to-hidden weights.
    lengths : ndarray of int, shape (N,)
        Number of steps in each row.

    Returns
    -------
    h : float32 ndarray, shape (N, T, H)
        Hidden state after each step; zero for steps ``t >= lengths[n]``.
    cache : tuple
        Values needed by `sequence_backward`.
    """
    N, T, _ = inputs.shape
    h = np.zeros((N, T, h0.shape[1]), dtype=np.float32)
    state, cell = h0.copy(), np.zeros_like(h0)
    steps = []
    for t in range(T):
        rows = np.flatnonzero(lengths > t)
        before = state[rows]
        a = inputs[rows, t] + multiply(before, Wh)
        state[rows], cell[rows], kept = gates(a, before, cell[rows])
        h[rows, t] = state[rows]
        steps.append((rows, before, kept))
    return h, (steps, inputs.shape, Wh)


def sequence_backward(
    gates_backward: Callable[..., Any], dh: np.ndarray, cache: tuple[Any, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `sequence_forward`.

    Parameters
    ----------
    gates_backward : function
        The gradients of the gates.
    dh : float32 ndarray, shape (N, T, H)
        Gradient of the loss with respect to each hidden state, not counting its effect through
        later steps.
    cache : tuple
        Cache returned by `sequence_forward`.

    Returns
    -------
    dinputs : float32 ndarray, shape (N, T, G)
        Gradient of `inputs`; zero for steps ``t >= lengths[n]``.
    dh0 : float32 ndarray, shape (N, H)
        Gradient of the initial hidden state.
    dWh : float32 ndarray, shape (H, G)
        Gradient of the hidden-to-hidden weights.
    db : float32 ndarray, shape (G,)
        Sum of `dinputs` over all steps: the gradient of a bias in `inputs`.
    """
    steps, (N, T, G), Wh = cache
    H = len(Wh)
    dinputs = np.zeros((N, T, G), dtype=np.float32)
    dstate, dcell = np.zeros((2, N, H), dtype=np.float32)
    dWh, db = np.zeros_like(Wh), np.zeros(G, dtype=np.float32)
    for t in reversed(range(T)):
        rows, before, kept = steps[t]
        da, direct, dcell[rows] = gates_backward(dh[rows, t] + dstate[rows], dcell[rows], kept)
        dinputs[rows, t], dstate[rows] = da, direct + multiply(da, Wh.T)
        dWh += multiply(before.T, da)
        db += da.sum(axis=0)
    return dinputs, dstate, dWh, db

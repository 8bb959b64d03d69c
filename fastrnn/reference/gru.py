"""The gated recurrent unit in plain NumPy, in the form of cuDNN and `torch.nn.GRU`.

The reset gate is applied after the product with the previous state (Cho et al., 2014, apply it
before)::

    r = sigmoid(x Wx_r + prev_h Wh_r + b_r)
    z = sigmoid(x Wx_z + prev_h Wh_z + b_z)
    n = tanh(x Wx_n + b_n + r * (prev_h Wh_n + b_hn))
    next_h = (1 - z) * n + z * prev_h

The 3H axis of the weights holds one block of H per gate, in the order **r, z, n** (reset, update,
candidate), as in torch. The 4H axis of the biases holds b_r, b_z, b_n and b_hn: the gates r and z
only ever see the sum of torch's two biases, the candidate sees them apart.

Shapes, dtypes, errors and caches are those of `fastrnn.reference.rnn_layers`.
"""

from typing import Any

import numpy as np

from .. import checks as _checks
from .gates import sigmoid

__all__ = ["gru_backward", "gru_forward", "gru_step_backward", "gru_step_forward"]


def gru_step_forward(
    x: np.ndarray, prev_h: np.ndarray, Wx: np.ndarray, Wh: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, tuple[Any, ...]]:
    """One time step of a GRU.

    Parameters
    ----------
    x : ndarray, shape (N, D)
        Input of this step.
    prev_h : ndarray, shape (N, H)
        Hidden state before the step.
    Wx : ndarray, shape (D, 3H)
        Input-to-hidden weights; blocks r, z, n.
    Wh : ndarray, shape (H, 3H)
        Hidden-to-hidden weights; blocks r, z, n.
    b : ndarray, shape (4H,)
        Biases; blocks b_r, b_z, b_n, b_hn.

    Returns
    -------
    next_h : ndarray, shape (N, H)
        Hidden state after the step.
    cache : tuple
        Values needed by `gru_step_backward`.

    Raises
    ------
    TypeError
        If the common dtype is neither float32 nor float64.
    ValueError
        If the shapes do not match.
    """
    x, prev_h, Wx, Wh, b = _checks.as_floats(x=x, prev_h=prev_h, Wx=Wx, Wh=Wh, b=b)
    _checks.match_shapes(
        x=(x, "N D"), prev_h=(prev_h, "N H"), Wx=(Wx, "D 3H"), Wh=(Wh, "H 3H"), b=(b, "4H")
    )
    H = prev_h.shape[1]
    x_r, x_z, x_n = np.split(x @ Wx + b[: 3 * H], 3, axis=1)
    h_r, h_z, h_n = np.split(prev_h @ Wh, 3, axis=1)
    h_n = h_n + b[3 * H :]
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    n = np.tanh(x_n + r * h_n)
    return (1 - z) * n + z * prev_h, (x, prev_h, Wx, Wh, r, z, n, h_n)


def gru_step_backward(
    dnext_h: np.ndarray, cache: tuple[Any, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `gru_step_forward`.

    Parameters
    ----------
    dnext_h : ndarray, shape (N, H)
        Gradient of the loss with respect to the next hidden state.
    cache : tuple
        Cache returned by `gru_step_forward`.

    Returns
    -------
    dx, dprev_h, dWx, dWh, db : ndarray
        Gradients of the arguments of `gru_step_forward`, in their shapes.

    Raises
    ------
    TypeError
        If the common dtype of `dnext_h` and the cache is neither float32 nor float64.
    ValueError
        If `dnext_h` does not have the shape of the next hidden state.
    """
    x, prev_h, Wx, Wh, r, z, n, h_n = cache
    dnext_h, n = _checks.as_floats(dnext_h=dnext_h, n=n)
    N, H = n.shape
    _checks.match_shapes({"N": N, "H": H}, dnext_h=(dnext_h, "N H"))

    da_n = dnext_h * (1 - z) * (1 - n * n)
    da_z = dnext_h * (prev_h - n) * z * (1 - z)
    da_r = da_n * h_n * r * (1 - r)
    dh_n = da_n * r
    # the two products differ in their third block: the reset gate stands between n and h Wh
    dinput = np.concatenate((da_r, da_z, da_n), axis=1)
    dproduct = np.concatenate((da_r, da_z, dh_n), axis=1)
    db = np.concatenate((dinput.sum(axis=0), dh_n.sum(axis=0)))
    dprev_h = dproduct @ Wh.T + dnext_h * z
    return dinput @ Wx.T, dprev_h, x.T @ dinput, prev_h.T @ dproduct, db


def gru_forward(
    x: np.ndarray,
    h0: np.ndarray,
    Wx: np.ndarray,
    Wh: np.ndarray,
    b: np.ndarray,
    *,
    lengths: np.ndarray | None = None,
) -> tuple[np.ndarray, tuple[Any, ...]]:
    """Run a GRU over whole sequences: T steps of `gru_step_forward`.

    Parameters
    ----------
    x : ndarray, shape (N, T, D)
        Inputs.
    h0 : ndarray, shape (N, H)
        Initial hidden state.
    Wx, Wh, b : ndarray
        As for `gru_step_forward`.
    lengths : ndarray of int, shape (N,), optional
        Number of steps in each row, 0..T. By default, every row has T steps.

    Returns
    -------
    h : ndarray, shape (N, T, H)
        Hidden state after each step; zero for steps ``t >= lengths[n]``.
    cache : tuple
        Values needed by `gru_backward`.

    Raises
    ------
    TypeError
        If the common dtype is neither float32 nor float64, or `lengths` are not integers.
    ValueError
        If the shapes do not match, or a length is not in 0..T.
    """
    x, h0, Wx, Wh, b = _checks.as_floats(x=x, h0=h0, Wx=Wx, Wh=Wh, b=b)
    _checks.match_shapes(
        x=(x, "N T D"), h0=(h0, "N H"), Wx=(Wx, "D 3H"), Wh=(Wh, "H 3H"), b=(b, "4H")
    )
    (N, T, _), H = x.shape, h0.shape[1]
    lengths = _checks.as_lengths(lengths, N, T)
    h = np.zeros((N, T, H), dtype=x.dtype)
    state = h0.copy()
    steps = []
    for t in range(T):
        rows = np.flatnonzero(lengths > t)  # rows that have not ended
        state[rows], step = gru_step_forward(x[rows, t], state[rows], Wx, Wh, b)
        h[rows, t] = state[rows]
        steps.append((rows, step))
    return h, (steps, x.shape, Wx, Wh)


def gru_backward(
    dh: np.ndarray, cache: tuple[Any, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `gru_forward`: back-propagation through time.

    Parameters
    ----------
    dh : ndarray, shape (N, T, H)
        Gradient of the loss with respect to each hidden state, not counting its effect through
        later steps. Values at steps ``t >= lengths[n]`` are ignored.
    cache : tuple
        Cache returned by `gru_forward`.

    Returns
    -------
    dx, dh0, dWx, dWh, db : ndarray
        Gradients of the arguments of `gru_forward`, in their shapes; dx is zero for steps
        ``t >= lengths[n]``.

    Raises
    ------
    TypeError
        If the common dtype of `dh` and the cache is neither float32 nor float64.
    ValueError
        If `dh` does not have the shape of the hidden states.
    """
    steps, (N, T, D), Wx, Wh = cache
    H = Wh.shape[0]
    dh, Wx, Wh = _checks.as_floats(dh=dh, Wx=Wx, Wh=Wh)
    _checks.match_shapes({"N": N, "T": T, "H": H}, dh=(dh, "N T H"))

    dx = np.zeros((N, T, D), dtype=dh.dtype)
    dstate = np.zeros((N, H), dtype=dh.dtype)
    dWx, dWh, db = np.zeros_like(Wx), np.zeros_like(Wh), np.zeros_like(Wh, shape=4 * H)
    for t in reversed(range(T)):
        rows, step = steps[t]
        dx[rows, t], dstate[rows], dWx_t, dWh_t, db_t = gru_step_backward(
            dh[rows, t] + dstate[rows], step
        )
        dWx += dWx_t
        dWh += dWh_t
        db += db_t
    return dx, dstate, dWx, dWh, db

"""What follows the matrix products of a step of a recurrent cell, forward and backward.

For every cell, ``h, c, kept = gates(a, prev_h, prev_c)`` gives the next state for pre-activations
``a = x Wx + prev_h Wh + b``, and ``da, dprev_h, dprev_c = gates_backward(dh, dc, kept)`` the
gradients: dprev_h is the part that does not pass through `a`.
"""

import numpy as np

from .. import checks

__all__ = ["lstm_gates", "lstm_gates_backward", "rnn_gates", "rnn_gates_backward", "sigmoid"]

_Gradients = tuple[np.ndarray, "np.ndarray | float", np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Logistic sigmoid ``1 / (1 + exp(-x))``, computed without overflow for any `x`.

    Parameters
    ----------
    x : array_like, any shape
        Input.

    Returns
    -------
    ndarray, shape of `x`
        Values in [0, 1]; NaN stays NaN.

    Raises
    ------
    TypeError
        If the dtype of `x` is neither float32 nor float64 nor an integer dtype.
    """
    (x,) = checks.as_floats(x=x)
    with np.errstate(under="ignore"):
        z = np.exp(-np.abs(x))
        one = np.ones_like(z)  # in NumPy 1.26, 1 + z of a single float32 would be float64
        return np.where(x < 0, z, one) / (one + z)


def rnn_gates(
    a: np.ndarray, prev_h: np.ndarray, prev_c: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Return the next h of a vanilla RNN, `prev_c`, and values for the gradients."""
    next_h = np.tanh(a)
    # a copy, so that the caller may change the returned state in place
    return next_h, prev_c, (next_h.copy(),)


def rnn_gates_backward(
    dnext_h: np.ndarray, dnext_c: np.ndarray, kept: tuple[np.ndarray, ...]
) -> _Gradients:
    """Return the gradients of `rnn_gates`; h does not depend on `prev_h` but through `a`."""
    (next_h,) = kept
    return dnext_h * (1 - next_h * next_h), 0.0, dnext_c  # tanh' = 1 - tanh^2


def lstm_gates(
    a: np.ndarray, prev_h: np.ndarray, prev_c: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Return the next h and c of an LSTM, and values for the gradients."""
    a_i, a_f, a_o, a_g = np.split(a, 4, axis=1)
    i, f, o, g = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o), np.tanh(a_g)
    next_c = f * prev_c + i * g
    tanh_c = np.tanh(next_c)
    next_h = o * tanh_c
    return next_h, next_c, (prev_c, i, f, o, g, tanh_c)


def lstm_gates_backward(
    dnext_h: np.ndarray, dnext_c: np.ndarray, kept: tuple[np.ndarray, ...]
) -> _Gradients:
    """Return the gradients of `lstm_gates`; h does not depend on `prev_h` but through `a`."""
    prev_c, i, f, o, g, tanh_c = kept
    dc = dnext_c + dnext_h * o * (1 - tanh_c * tanh_c)
    da_i = dc * g * i * (1 - i)  # sigmoid' = sigmoid (1 - sigmoid)
    da_f = dc * prev_c * f * (1 - f)
    da_o = dnext_h * tanh_c * o * (1 - o)
    da_g = dc * i * (1 - g * g)
    return np.concatenate((da_i, da_f, da_o, da_g), axis=1), 0.0, dc * f

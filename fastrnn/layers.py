"""The layers of CS231n's ``layers.py`` that captioning needs: affine, ReLU and two losses.

The affine layer and the softmax loss run in the compiled core. ReLU and the SVM loss are plain
NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import checks as _checks
from ._core import layers as _core

__all__ = [
    "affine_backward",
    "affine_forward",
    "np",
    "relu_backward",
    "relu_forward",
    "softmax_loss",
    "svm_loss",
]


def affine_forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, tuple[Any, ...]]:
    """Affine (fully connected) layer: ``out = x w + b``.

    Parameters
    ----------
    x : ndarray, shape (N, d_1, ..., d_k)
        Inputs. Each row is flattened to a vector of length D = d_1 * ... * d_k.
    w : ndarray, shape (D, M)
        Weights.
    b : ndarray, shape (M,)
        Biases.

    Returns
    -------
    out : ndarray, shape (N, M)
        Outputs, in the common dtype of the arguments.
    cache : tuple
        ``(x, w, b)``, for `affine_backward`.

    Raises
    ------
    TypeError
        If the common dtype of the arguments is neither float32 nor float64.
    ValueError
        If the shapes do not match.
    """
    return _core.affine_forward(x, w, b)


def affine_backward(
    dout: np.ndarray, cache: tuple[Any, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `affine_forward`: ``dx = dout w'``, ``dw = x' dout``, ``db = sum_n dout``.

    Parameters
    ----------
    dout : ndarray, shape (N, M)
        Gradient of the loss with respect to the output.
    cache : tuple
        Cache returned by `affine_forward`.

    Returns
    -------
    dx : ndarray, shape (N, d_1, ..., d_k)
        Gradient of the inputs.
    dw : ndarray, shape (D, M)
        Gradient of the weights.
    db : ndarray, shape (M,)
        Gradient of the biases.

    Raises
    ------
    TypeError
        If the common dtype of `dout` and the cache is neither float32 nor float64, or `cache` is
        not a tuple.
    ValueError
        If `dout` does not have the shape of the output, or `cache` comes from another function.
    """
    return _core.affine_backward(dout, cache)


def relu_forward(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rectified linear unit: ``out = max(0, x)``. NaN stays NaN.

    Parameters
    ----------
    x : ndarray, any shape
        Inputs.

    Returns
    -------
    out : ndarray, shape of `x`
        Outputs.
    cache : ndarray
        `x`, for `relu_backward`.

    Raises
    ------
    TypeError
        If the dtype of `x` is neither float32 nor float64 nor an integer dtype.
    """
    (x,) = _checks.as_floats(x=x)
    return np.maximum(x, 0), x


def relu_backward(dout: np.ndarray, cache: np.ndarray) -> np.ndarray:
    """Gradient of `relu_forward`: `dout` where the input was positive, else 0.

    Parameters
    ----------
    dout : ndarray, shape of x
        Gradient of the loss with respect to the output.
    cache : ndarray
        Cache returned by `relu_forward`.

    Returns
    -------
    dx : ndarray, shape of x
        Gradient of the inputs; equal to `dout` where the input was NaN.

    Raises
    ------
    TypeError
        If the common dtype of `dout` and the cache is neither float32 nor float64.
    ValueError
        If `dout` does not have the shape of the output.
    """
    dout, x = _checks.as_floats(dout=dout, x=cache)
    if dout.shape != x.shape:
        raise ValueError(f"dout has shape {dout.shape}; expected {x.shape}")
    dx = dout.copy()
    dx[x <= 0] = 0
    return dx


def softmax_loss(x: np.ndarray, y: np.ndarray) -> tuple[np.float64, np.ndarray]:
    """Softmax cross-entropy loss, averaged over the batch.

    ``loss = -1/N sum_n log(exp(x[n, y_n]) / sum_c exp(x[n, c]))``

    Parameters
    ----------
    x : ndarray, shape (N, C)
        Scores.
    y : ndarray of int, shape (N,)
        Correct class of each row, in ``[-C, C)``; negative ids count from the end, as in NumPy.

    Returns
    -------
    loss : float64
        Loss in nats; 0.0 for an empty batch.
    dx : ndarray, shape (N, C)
        Gradient of the scores, in the dtype of `x`.

    Raises
    ------
    TypeError
        If `x` does not have a float32, float64 or integer dtype, or `y` an integer dtype.
    ValueError
        If the shapes do not match.
    IndexError
        If `y` contains an id outside ``[-C, C)``.
    """
    return _core.softmax_loss(x, y)


def svm_loss(x: np.ndarray, y: np.ndarray) -> tuple[np.float64, np.ndarray]:
    """Multiclass hinge loss with margin 1, averaged over the batch.

    ``loss = 1/N sum_n sum_{c != y_n} max(0, x[n, c] - x[n, y_n] + 1)``
    (Weston and Watkins, 1999).

    Parameters
    ----------
    x : ndarray, shape (N, C)
        Scores.
    y : ndarray of int, shape (N,)
        Correct class of each row, in ``[-C, C)``; negative ids count from the end, as in NumPy.

    Returns
    -------
    loss : float64
        Loss; 0.0 for an empty batch.
    dx : ndarray, shape (N, C)
        Gradient of the scores, in the dtype of `x`.

    Raises
    ------
    TypeError
        If `x` does not have a float32, float64 or integer dtype, or `y` an integer dtype.
    ValueError
        If the shapes do not match.
    IndexError
        If `y` contains an id outside ``[-C, C)``.
    """
    x, y = _checks.class_loss(x, y)
    N = len(x)
    if N == 0:
        return np.float64(0.0), np.zeros_like(x)

    row = np.arange(N)
    margins = np.maximum(x - x[row, y][:, None] + 1, 0)
    margins[row, y] = 0
    loss = margins.sum(dtype=np.float64) / N
    dx = (margins > 0).astype(x.dtype)
    dx[row, y] -= dx.sum(axis=1)
    dx /= N
    return loss, dx

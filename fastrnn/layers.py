"""The layers of CS231n's ``layers.py`` that captioning needs: affine, ReLU and two losses.

The affine layer and the softmax loss run in the compiled core. ReLU and the SVM loss are the NumPy
versions from `fastrnn.reference`.
"""

from __future__ import annotations

import numpy as np

from ._core import layers as _core
from .reference.layers import relu_backward, relu_forward, svm_loss

__all__ = [
    "affine_backward",
    "affine_forward",
    "np",
    "relu_backward",
    "relu_forward",
    "softmax_loss",
    "svm_loss",
]


def affine_forward(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, tuple]:
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


def affine_backward(dout: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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

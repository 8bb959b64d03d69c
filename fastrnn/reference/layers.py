"""Layers of a feed-forward network and two losses, in NumPy: the twin of ``fastrnn.layers``.

Every ``*_forward`` returns its output and a cache, every ``*_backward`` takes the gradient of
the loss with respect to that output and the cache, and returns the gradients of the inputs.

dtypes: float32 stays float32, float64 stays float64, a mix follows NumPy's promotion, and
integers count as float64. Letters in shapes: N rows of a batch, D inputs, M outputs, C classes.
"""

import numpy as np

from .. import checks as _checks


def affine_forward(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, tuple]:
    """Affine map of each row: ``out = x w + b``.

    Parameters
    ----------
    x : ndarray, shape (N, d_1, ..., d_k)
        Inputs; each row is read as a vector of D = d_1 * ... * d_k numbers.
    w : ndarray, shape (D, M)
        Weights.
    b : ndarray, shape (M,)
        Biases.

    Returns
    -------
    out : ndarray, shape (N, M)
        Outputs.
    cache : tuple
        ``(x, w, b)``, for `affine_backward`.

    Raises
    ------
    TypeError
        If the common dtype of the arguments is neither float32 nor float64.
    ValueError
        If the shapes do not fit each other.
    """
    x, w, b = _checks.as_floats(x=x, w=w, b=b)
    if x.ndim == 0:
        raise ValueError("x has shape (); expected (N, d_1, ..., d_k)")
    rows = x.reshape(x.shape[0], int(np.prod(x.shape[1:])))
    _checks.match_shapes({"D": rows.shape[1]}, w=(w, "D M"), b=(b, "M"))
    return rows @ w + b, (x, w, b)


def affine_backward(dout: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `affine_forward`.

    Parameters
    ----------
    dout : ndarray, shape (N, M)
        Gradient of the loss with respect to the output.
    cache : tuple
        From `affine_forward`.

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
        no tuple.
    ValueError
        If `dout` does not have the shape of the output, or `cache` is that of another function.
    """
    x, w, _ = _checks.parts_of(cache, "x w b")
    dout, x, w = _checks.as_floats(dout=dout, x=x, w=w)
    if x.ndim == 0:
        raise ValueError("x has shape (); expected (N, d_1, ..., d_k)")
    rows = x.reshape(x.shape[0], int(np.prod(x.shape[1:])))
    _checks.match_shapes({"N": len(rows), "D": rows.shape[1]}, w=(w, "D M"), dout=(dout, "N M"))
    return (dout @ w.T).reshape(x.shape), rows.T @ dout, dout.sum(axis=0)


def relu_forward(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rectifier ``out = max(0, x)``; NaN stays NaN.

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
    """Gradient of `relu_forward`: `dout` where the input was above zero, else 0.

    Parameters
    ----------
    dout : ndarray, shape of x
        Gradient of the loss with respect to the output.
    cache : ndarray
        From `relu_forward`.

    Returns
    -------
    dx : ndarray, shape of x
        Gradient of the inputs. Where the input was NaN, `dout` flows through.

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
    """Cross-entropy of the softmax of scores, averaged over the batch.

    ``loss = -1/N sum_n log(exp(x[n, y_n]) / sum_c exp(x[n, c]))``

    Parameters
    ----------
    x : ndarray, shape (N, C)
        Scores.
    y : ndarray of int, shape (N,)
        The right class of each row; negative ids count from the end, as in NumPy.

    Returns
    -------
    loss : float64
        Loss in nats; 0.0 for an empty batch.
    dx : ndarray, shape (N, C)
        Gradient of the scores.

    Raises
    ------
    TypeError
        If `x` is not floating or `y` not integer.
    ValueError
        If the shapes do not fit each other.
    IndexError
        If `y` holds an id outside ``[-C, C)``.
    """
    (x,) = _checks.as_floats(x=x)
    (y,) = _checks.as_integers(y=y)
    N, C = _checks.match_shapes(x=(x, "N C"), y=(y, "N")).values()
    _checks.check_ids("y", y, C)
    if N == 0:
        return np.float64(0.0), np.zeros_like(x)

    row = np.arange(N)
    # The largest score of a row is subtracted so that exp() cannot overflow.
    shifted = x - x.max(axis=1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    loss = -log_probs[row, y].sum(dtype=np.float64) / N
    dx = np.exp(log_probs)
    dx[row, y] -= 1
    dx /= N
    return loss, dx


def svm_loss(x: np.ndarray, y: np.ndarray) -> tuple[np.float64, np.ndarray]:
    """Multiclass hinge loss with margin 1, averaged over the batch.

    ``loss = 1/N sum_n sum_{c != y_n} max(0, x[n, c] - x[n, y_n] + 1)``
    (Weston and Watkins, 1999).

    Parameters
    ----------
    x : ndarray, shape (N, C)
        Scores.
    y : ndarray of int, shape (N,)
        The right class of each row; negative ids count from the end, as in NumPy.

    Returns
    -------
    loss : float64
        Loss; 0.0 for an empty batch.
    dx : ndarray, shape (N, C)
        Gradient of the scores.

    Raises
    ------
    TypeError
        If `x` is not floating or `y` not integer.
    ValueError
        If the shapes do not fit each other.
    IndexError
        If `y` holds an id outside ``[-C, C)``.
    """
    (x,) = _checks.as_floats(x=x)
    (y,) = _checks.as_integers(y=y)
    N, C = _checks.match_shapes(x=(x, "N C"), y=(y, "N")).values()
    _checks.check_ids("y", y, C)
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

"""Numerical gradients by central differences, for checking analytic gradients.

The derivative with respect to one entry of x is ``(f(x + h) - f(x - h)) / 2h``, with a truncation
error of order h^2 and a rounding error of order eps / h. Each function changes x in place, one
entry at a time, and restores it. So f may also be a closure over x that ignores its argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import randrange
from typing import Any

import numpy as np

__all__ = [
    "eval_numerical_gradient",
    "eval_numerical_gradient_array",
    "eval_numerical_gradient_blobs",
    "eval_numerical_gradient_net",
    "grad_check_sparse",
    "np",
]


def eval_numerical_gradient(
    f: Callable[[np.ndarray], Any], x: np.ndarray, verbose: bool = True, h: float = 1e-5
) -> np.ndarray:
    """Return the numerical gradient of a scalar function.

    Parameters
    ----------
    f : callable
        Called as ``f(x)``; returns a scalar.
    x : float ndarray, any shape
        Point at which to evaluate the gradient. It is changed during the call and restored.
    verbose : bool, optional
        Print each index and its derivative. Default True.
    h : float, optional
        Step size. Default 1e-5.

    Returns
    -------
    ndarray
        The gradient, with the shape and dtype of x.

    Raises
    ------
    TypeError
        If `x` is not an ndarray with a float dtype (integers cannot hold a step of h).
    """
    _check_point("x", x)
    grad = np.zeros_like(x)
    for ix in np.ndindex(x.shape):
        above, below = _both_sides(lambda: f(x), x, ix, h)
        grad[ix] = (above - below) / (2 * h)
        if verbose:
            print(ix, grad[ix])
    return grad


def eval_numerical_gradient_array(
    f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, df: np.ndarray, h: float = 1e-5
) -> np.ndarray:
    """Return the numerical gradient of ``sum(f(x) * df)`` for an array-valued function.

    Parameters
    ----------
    f : callable
        Called as ``f(x)``; returns an array. It may reuse one output buffer for all calls.
    x : float ndarray, any shape
        Point at which to evaluate the gradient. It is changed during the call and restored.
    df : ndarray
        Upstream gradient, with the shape of ``f(x)``.
    h : float, optional
        Step size. Default 1e-5.

    Returns
    -------
    ndarray
        The gradient, with the shape and dtype of x.

    Raises
    ------
    TypeError
        If `x` is not an ndarray with a float dtype.

    Examples
    --------
    >>> x = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> dx = eval_numerical_gradient_array(lambda x: x**2, x, np.ones_like(x))
    >>> print(dx.round(6))
    [[2. 4.]
     [6. 8.]]
    """
    _check_point("x", x)
    grad = np.zeros_like(x)
    for ix in np.ndindex(x.shape):
        above, below = _both_sides(lambda: f(x), x, ix, h)
        grad[ix] = np.sum((above - below) * df) / (2 * h)
    return grad


def eval_numerical_gradient_blobs(
    f: Callable[..., Any], inputs: Sequence[Any], output: Any, h: float = 1e-5
) -> list[np.ndarray]:
    """Return the numerical gradients of a function that writes its result into a blob.

    Parameters
    ----------
    f : callable
        Called as ``f(*inputs, output)``; stores its result in ``output.vals``.
    inputs : sequence of blobs
        Each blob has float arrays ``vals`` and ``diffs`` of the same shape.
    output : blob
        Its ``diffs`` are the upstream gradient.
    h : float, optional
        Step size. Default 1e-5.

    Returns
    -------
    list of ndarray
        One gradient per input, with the shape of its ``diffs``.

    Raises
    ------
    TypeError
        If the ``vals`` of an input are not an ndarray with a float dtype.
    """

    def run() -> np.ndarray:
        f(*inputs, output)
        return output.vals

    numeric_diffs = []
    for number, blob in enumerate(inputs):
        _check_point(f"inputs[{number}].vals", blob.vals)
        diff = np.zeros_like(blob.diffs)
        for ix in np.ndindex(blob.vals.shape):
            above, below = _both_sides(run, blob.vals, ix, h)
            diff[ix] = np.sum((above - below) * output.diffs) / (2 * h)
        numeric_diffs.append(diff)
    return numeric_diffs


def eval_numerical_gradient_net(
    net: Any, inputs: Sequence[Any], output: Any, h: float = 1e-5
) -> list[np.ndarray]:
    """Return the numerical gradients of a net.

    Parameters
    ----------
    net : object
        Its method ``forward()`` reads `inputs` and writes `output`.
    inputs, output, h
        See `eval_numerical_gradient_blobs`.

    Returns
    -------
    list of ndarray
        One gradient per input, with the shape of its ``diffs``.

    Raises
    ------
    TypeError
        If the ``vals`` of an input are not an ndarray with a float dtype.
    """
    return eval_numerical_gradient_blobs(lambda *_: net.forward(), inputs, output, h=h)


def grad_check_sparse(
    f: Callable[[np.ndarray], Any],
    x: np.ndarray,
    analytic_grad: np.ndarray,
    num_checks: int = 10,
    h: float = 1e-5,
) -> None:
    """Print the numerical and the analytic derivative at random entries of x.

    The entries are drawn by Python's ``random`` module.

    Parameters
    ----------
    f : callable
        Called as ``f(x)``; returns a scalar.
    x : float ndarray, any shape
        Point at which to evaluate the gradient. It is changed during the call and restored.
    analytic_grad : ndarray
        Gradient to check, with the shape of x.
    num_checks : int, optional
        Number of entries to check. Default 10.
    h : float, optional
        Step size. Default 1e-5.

    Raises
    ------
    TypeError
        If `x` is not an ndarray with a float dtype.
    """
    _check_point("x", x)
    for _ in range(num_checks):
        ix = tuple(randrange(m) for m in x.shape)
        above, below = _both_sides(lambda: f(x), x, ix, h)
        numerical, analytic = float(above - below) / (2 * h), float(analytic_grad[ix])
        scale = abs(numerical) + abs(analytic)
        error = abs(numerical - analytic) / scale if scale != 0 else 0.0
        print(f"numerical: {numerical:f} analytic: {analytic:f}, relative error: {error:e}")


def _check_point(name: str, x: Any) -> None:
    if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
        kind = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise TypeError(f"{name} is {kind}; expected an ndarray of floats")


def _both_sides(
    run: Callable[[], Any], x: np.ndarray, ix: tuple[int, ...], h: float
) -> tuple[np.ndarray, np.ndarray]:
    """Evaluate `run` with ``x[ix]`` plus h and minus h; x is restored even if `run` raises."""
    oldval = x[ix]
    try:
        x[ix] = oldval + h
        above = np.copy(run())
        x[ix] = oldval - h
        below = np.copy(run())
    finally:
        x[ix] = oldval
    return above, below

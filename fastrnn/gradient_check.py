"""Numeric gradients by central differences, to hold against analytic ones.

The derivative along one entry of x is ``(f(x + h) - f(x - h)) / 2h``, with an error of order h^2
(plus rounding of order eps / h). Every function changes its argument in place, one entry at a
time, and puts the old value back: f may therefore close over the array instead of taking it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import randrange
from typing import Any

import numpy as np


def eval_numerical_gradient(
    f: Callable[[np.ndarray], Any], x: np.ndarray, verbose: bool = True, h: float = 1e-5
) -> np.ndarray:
    """Return the numeric gradient of a scalar function.

    Parameters
    ----------
    f : callable
        Takes x, returns a scalar.
    x : float ndarray, any shape
        The point. Changed in place during the call, restored at its end.
    verbose : bool, optional
        Print each index with its derivative.
    h : float, optional
        Half the width of the difference.

    Returns
    -------
    ndarray
        The gradient, of x's shape and dtype.

    Raises
    ------
    TypeError
        `x` is no ndarray of floats (a step of h would be lost in it).
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
    """Return the numeric gradient of ``sum(f(x) * df)`` for an array-valued function.

    Parameters
    ----------
    f : callable
        Takes x, returns an array; it may return the same buffer every time.
    x : float ndarray, any shape
        The point. Changed in place during the call, restored at its end.
    df : ndarray
        The upstream gradient, of the shape of ``f(x)``.
    h : float, optional
        Half the width of the difference.

    Returns
    -------
    ndarray
        The gradient, of x's shape and dtype.

    Raises
    ------
    TypeError
        `x` is no ndarray of floats.
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
    """Return the numeric gradients of a function that writes its result into a blob.

    Parameters
    ----------
    f : callable
        Called as ``f(*inputs, output)``; stores its result in ``output.vals``.
    inputs : sequence of blobs
        A blob has float arrays ``vals`` and ``diffs`` of one shape.
    output : blob
        Its ``diffs`` are the upstream gradient.
    h : float, optional
        Half the width of the difference.

    Returns
    -------
    list of ndarray
        One gradient per input, of the shape of its ``diffs``.

    Raises
    ------
    TypeError
        The ``vals`` of an input are no ndarray of floats.
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
    """Return the numeric gradients of a net whose ``forward()`` reads `inputs`, fills `output`.

    Parameters and result are those of `eval_numerical_gradient_blobs`.
    """
    return eval_numerical_gradient_blobs(lambda *_: net.forward(), inputs, output, h=h)


def grad_check_sparse(
    f: Callable[[np.ndarray], Any],
    x: np.ndarray,
    analytic_grad: np.ndarray,
    num_checks: int = 10,
    h: float = 1e-5,
) -> None:
    """Print numeric beside analytic derivative at entries drawn by Python's ``random``.

    Parameters
    ----------
    f : callable
        Takes x, returns a scalar.
    x : float ndarray, any shape
        The point. Changed in place during the call, restored at its end.
    analytic_grad : ndarray
        The gradient to be checked, of x's shape.
    num_checks : int, optional
        How many entries to try.
    h : float, optional
        Half the width of the difference.

    Raises
    ------
    TypeError
        `x` is no ndarray of floats.
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
        raise TypeError(f"{name} must be an ndarray of floats to be changed in place, was {kind}")


def _both_sides(
    run: Callable[[], Any], x: np.ndarray, ix: tuple[int, ...], h: float
) -> tuple[np.ndarray, np.ndarray]:
    """Evaluate with ``x[ix]`` moved up and down by h; x is restored even where `run` raises."""
    oldval = x[ix]
    try:
        x[ix] = oldval + h
        above = np.copy(run())
        x[ix] = oldval - h
        below = np.copy(run())
    finally:
        x[ix] = oldval
    return above, below

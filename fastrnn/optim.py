"""CS231n's ``optim.py`` over the compiled core: one fused pass over a parameter and its state.

Each rule is ``rule(w, dw, config=None) -> (w, config)``. The weights are changed in place and
returned; what the rule has to remember (learning rate, moments, step count) lives in the
dictionary `config`, which is filled with defaults where a key is missing. The arithmetic and
the state have the dtype of `w`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ._core import optim as _core
from .reference import checks as _checks


def _stepped(step: Callable[..., Any], w: np.ndarray, dw: np.ndarray, **states: Any) -> Any:
    """Run ``step(w, dw, *states)`` on arrays that the core takes as they are.

    Where `w` is not contiguous a copy is stepped and written back; a state that is None becomes
    zeros.
    """
    w, dw = _checks.as_weights(w, dw)
    arrays = []
    for name, state in states.items():
        state = np.zeros_like(w, order="C") if state is None else np.asarray(state, dtype=w.dtype)
        if state.shape != w.shape:
            raise ValueError(f"{name} has shape {state.shape}; expected the shape of w, {w.shape}")
        arrays.append(np.require(state, requirements=["C", "A"]))
    stepped = w if w.flags.carray else np.require(w, requirements=["C", "A"])
    found = step(stepped, np.require(dw, requirements=["C", "A"]), *arrays)
    if stepped is not w:
        w[...] = stepped
    return found


def sgd(
    w: np.ndarray, dw: np.ndarray, config: dict | None = None, *, in_place: bool = False
) -> tuple[np.ndarray, dict]:
    """Stochastic gradient descent: ``w -= learning_rate * dw``.

    Parameters
    ----------
    w : ndarray of float32 or float64, any shape
        Weights, changed in place.
    dw : ndarray, shape of `w`
        Gradient of the loss with respect to `w`.
    config : dict, optional
        ``learning_rate`` (default 1e-2).
    in_place : bool, default False
        Without effect here, as there is no state.

    Returns
    -------
    w : ndarray
        The same array, after the step.
    config : dict
        The same dictionary (a new one if `config` was None).

    Raises
    ------
    TypeError
        If `w` is no float32 or float64 array, or `dw` is not numeric.
    ValueError
        If the shapes differ, or `w` is read-only.
    """
    config = {} if config is None else config
    rate = config.setdefault("learning_rate", 1e-2)
    if _core.sgd(w, dw, rate) is None:
        _stepped(lambda w, dw: _core.sgd(w, dw, rate), w, dw)
    return w, config


def sgd_momentum(
    w: np.ndarray, dw: np.ndarray, config: dict | None = None, *, in_place: bool = False
) -> tuple[np.ndarray, dict]:
    """Gradient descent with momentum: ``v = mu v - learning_rate dw; w += v``.

    Parameters
    ----------
    w : ndarray of float32 or float64, any shape
        Weights, changed in place.
    dw : ndarray, shape of `w`
        Gradient of the loss with respect to `w`.
    config : dict, optional
        ``learning_rate`` (default 1e-2), ``momentum`` mu (default 0.9), ``velocity`` v (shape
        of `w`, default zeros).
    in_place : bool, default False
        Change the arrays of the state in place, too, rather than put new ones into `config`.

    Returns
    -------
    w : ndarray
        The same array, after the step.
    config : dict
        The same dictionary (a new one if `config` was None), with the new velocity.

    Raises
    ------
    TypeError
        If `w` is no float32 or float64 array, or `dw` is not numeric.
    ValueError
        If the shapes differ, or `w` is read-only.

    References
    ----------
    Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in
    deep learning", 2013, equations 1 and 2.
    """
    config = {} if config is None else config
    rate = config.setdefault("learning_rate", 1e-2)
    momentum = config.setdefault("momentum", 0.9)
    velocity = config.get("velocity")

    def step(w: np.ndarray, dw: np.ndarray, velocity: Any) -> Any:
        return _core.sgd_momentum(w, dw, velocity, rate, momentum, in_place)

    following = None if velocity is None else step(w, dw, velocity)
    if following is None:
        following = _stepped(step, w, dw, velocity=velocity)
    config["velocity"] = following
    return w, config


def rmsprop(
    w: np.ndarray, dw: np.ndarray, config: dict | None = None, *, in_place: bool = False
) -> tuple[np.ndarray, dict]:
    """RMSProp: a step divided by the root of a running mean of squared gradients.

    ``cache = rho cache + (1 - rho) dw^2; w -= learning_rate dw / (sqrt(cache) + epsilon)``

    Parameters
    ----------
    w : ndarray of float32 or float64, any shape
        Weights, changed in place.
    dw : ndarray, shape of `w`
        Gradient of the loss with respect to `w`.
    config : dict, optional
        ``learning_rate`` (default 1e-2), ``decay_rate`` rho (default 0.99), ``epsilon``
        (default 1e-8), ``cache`` (shape of `w`, default zeros).
    in_place : bool, default False
        Change the arrays of the state in place, too, rather than put new ones into `config`.

    Returns
    -------
    w : ndarray
        The same array, after the step.
    config : dict
        The same dictionary (a new one if `config` was None), with the new cache.

    Raises
    ------
    TypeError
        If `w` is no float32 or float64 array, or `dw` is not numeric.
    ValueError
        If the shapes differ, or `w` is read-only.

    References
    ----------
    Tieleman and Hinton, "Lecture 6.5: rmsprop", Neural Networks for Machine Learning, 2012.
    """
    config = {} if config is None else config
    rate = config.setdefault("learning_rate", 1e-2)
    decay_rate = config.setdefault("decay_rate", 0.99)
    epsilon = config.setdefault("epsilon", 1e-8)
    cache = config.get("cache")

    def step(w: np.ndarray, dw: np.ndarray, cache: Any) -> Any:
        return _core.rmsprop(w, dw, cache, rate, decay_rate, epsilon, in_place)

    following = None if cache is None else step(w, dw, cache)
    config["cache"] = _stepped(step, w, dw, cache=cache) if following is None else following
    return w, config


def adam(
    w: np.ndarray, dw: np.ndarray, config: dict | None = None, *, in_place: bool = False
) -> tuple[np.ndarray, dict]:
    """Adam, in the form in which the bias correction is folded into the step size.

    ``t += 1; m = beta1 m + (1 - beta1) dw; v = beta2 v + (1 - beta2) dw^2``
    ``alpha = learning_rate sqrt(1 - beta2^t) / (1 - beta1^t); w -= alpha m / (sqrt(v) + epsilon)``

    Parameters
    ----------
    w : ndarray of float32 or float64, any shape
        Weights, changed in place.
    dw : ndarray, shape of `w`
        Gradient of the loss with respect to `w`.
    config : dict, optional
        ``learning_rate`` (default 1e-3), ``beta1`` (0.9), ``beta2`` (0.999), ``epsilon``
        (1e-8), ``m`` and ``v`` (shape of `w`, zeros), ``t`` (steps taken, 0).
    in_place : bool, default False
        Change the arrays of the state in place, too, rather than put new ones into `config`.

    Returns
    -------
    w : ndarray
        The same array, after the step.
    config : dict
        The same dictionary (a new one if `config` was None), with the new ``m``, ``v``, ``t``.

    Raises
    ------
    TypeError
        If `w` is no float32 or float64 array, or `dw` is not numeric.
    ValueError
        If the shapes differ, or `w` is read-only.

    Notes
    -----
    Epsilon is added to the root of the uncorrected `v`, as in the last paragraph of section 2
    of the paper; with the corrected `v` of its algorithm 1 epsilon would act differently.

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", 2015.
    """
    return _adam(w, dw, config, 0.0, in_place)


def adamw(
    w: np.ndarray, dw: np.ndarray, config: dict | None = None, *, in_place: bool = False
) -> tuple[np.ndarray, dict]:
    """Adam with decoupled weight decay: ``w -= learning_rate weight_decay w``, then `adam`'s step.

    Parameters
    ----------
    w : ndarray of float32 or float64, any shape
        Weights, changed in place.
    dw : ndarray, shape of `w`
        Gradient of the loss with respect to `w`.
    config : dict, optional
        `adam`'s, and ``weight_decay`` (default 1e-2).
    in_place : bool, default False
        Change the arrays of the state in place, too, rather than put new ones into `config`.

    Returns
    -------
    w : ndarray
        The same array, after the step.
    config : dict
        The same dictionary (a new one if `config` was None), with the new state.

    Raises
    ------
    TypeError
        If `w` is no float32 or float64 array, or `dw` is not numeric.
    ValueError
        If the shapes differ, or `w` is read-only.

    References
    ----------
    Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, algorithm 2; the decay
    is multiplied by the learning rate, as PyTorch's AdamW has it.
    """
    config = {} if config is None else config
    return _adam(w, dw, config, config.setdefault("weight_decay", 1e-2), in_place)


def _adam(
    w: np.ndarray, dw: np.ndarray, config: dict | None, weight_decay: float, in_place: bool
) -> tuple[np.ndarray, dict]:
    config = {} if config is None else config
    rate = config.setdefault("learning_rate", 1e-3)
    beta1, beta2 = config.setdefault("beta1", 0.9), config.setdefault("beta2", 0.999)
    epsilon = config.setdefault("epsilon", 1e-8)
    t = config.setdefault("t", 0) + 1
    m, v = config.get("m"), config.get("v")
    alpha = rate * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
    keep = 1 - rate * weight_decay

    def step(w: np.ndarray, dw: np.ndarray, m: Any, v: Any) -> Any:
        return _core.adam(w, dw, m, v, alpha, beta1, beta2, epsilon, keep, in_place)

    moments = None if m is None or v is None else step(w, dw, m, v)
    config["m"], config["v"] = _stepped(step, w, dw, m=m, v=v) if moments is None else moments
    config["t"] = t
    return w, config


IN_PLACE_RULES = (sgd, sgd_momentum, rmsprop, adam, adamw)


def clip_by_value(grads: Mapping[str, np.ndarray], limit: float) -> None:
    """Clip every element of every gradient to ``[-limit, limit]``, in place.

    Parameters
    ----------
    grads : mapping of str to ndarray of float32 or float64
        Changed in place.
    limit : float
        Positive.

    Raises
    ------
    TypeError
        If a gradient is no array of float32 or float64.
    ValueError
        If `limit` is not positive, or a gradient is read-only.
    """
    _checks.check_gradients(grads, limit)
    for grad in grads.values():
        if _core.clip(grad, limit) is None:
            np.clip(grad, -limit, limit, out=grad)


def clip_by_norm(grads: Mapping[str, np.ndarray], limit: float) -> float:
    """Scale all gradients, in place, so that the norm over all of them is at most `limit`.

    Parameters
    ----------
    grads : mapping of str to ndarray of float32 or float64
        Changed in place, where the norm exceeds `limit`.
    limit : float
        Positive.

    Returns
    -------
    float
        The norm before: the root of the sum of all squares, added up in float64.

    Raises
    ------
    TypeError
        If a gradient is no array of float32 or float64.
    ValueError
        If `limit` is not positive, or a gradient is read-only.

    References
    ----------
    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013,
    algorithm 1.
    """
    _checks.check_gradients(grads, limit)
    squares = 0.0
    for grad in grads.values():
        squares += _core.sum_of_squares(np.require(grad, requirements=["C", "A"]))
    norm = squares**0.5
    if norm > limit:
        for grad in grads.values():
            if _core.scale(grad, limit / norm) is None:
                grad *= limit / norm
    return norm


def average(mean: np.ndarray, w: np.ndarray, rate: float) -> np.ndarray:
    """Move an average towards new weights, in place: ``mean += rate (w - mean)``.

    Parameters
    ----------
    mean : ndarray of float32 or float64, any shape
        Changed in place.
    w : ndarray, shape of `mean`
        The new weights.
    rate : float
        1 - decay of an exponential moving average; 1 / n for the mean of n.

    Returns
    -------
    ndarray
        `mean`.

    Raises
    ------
    TypeError
        If `mean` is no float32 or float64 array, or `w` is not numeric.
    ValueError
        If the shapes differ, or `mean` is read-only.

    References
    ----------
    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992.
    """
    if _core.average(mean, w, rate) is None:
        mean, w = _checks.as_weights(mean, w, ("mean", "w"))
        mean += rate * (w - mean)
    return mean

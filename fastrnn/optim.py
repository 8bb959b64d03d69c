"""CS231n's ``optim.py`` over the compiled core: one fused pass over a parameter and its state.

Each rule is ``rule(w, dw, config=None) -> (w, config)``. The weights are changed in place and
returned; what the rule has to remember (learning rate, moments, step count) lives in the
dictionary `config`, which is filled with defaults where a key is missing. The arithmetic and
the state have the dtype of `w`.
"""

import numpy as np

from ._core import optim as _core
from .reference import checks as _checks


def _checked(w: np.ndarray, dw: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `w`, `dw` and the array to step: `w` itself, or a contiguous copy to write back."""
    w, dw = _checks.as_weights(w, dw)
    if not w.flags.writeable:
        raise ValueError("w is read-only; expected an array that can be changed in place")
    dw = np.require(dw, requirements=["C", "A"])
    return w, dw, w if w.flags.carray else np.require(w, requirements=["C", "A"])


def _state(config: dict, key: str, w: np.ndarray) -> np.ndarray:
    """Return a state of the shape and the dtype of `w`, zeros where there is none yet."""
    state = config.get(key)
    if state is None:
        return np.zeros_like(w, order="C")
    state = np.require(state, dtype=w.dtype, requirements=["C", "A"])
    if state.shape != w.shape:
        raise ValueError(f"{key} has shape {state.shape}; expected the shape of w, {w.shape}")
    return state


def _written(w: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Return `w`, with what was stepped in a copy written back."""
    if step is not w:
        w[...] = step
    return w


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
    w, dw, step = _checked(w, dw)
    config = {} if config is None else config
    config.setdefault("learning_rate", 1e-2)

    _core.sgd(step, dw, float(config["learning_rate"]))
    return _written(w, step), config


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
    w, dw, step = _checked(w, dw)
    config = {} if config is None else config
    config.setdefault("learning_rate", 1e-2)
    config.setdefault("momentum", 0.9)
    velocity = _state(config, "velocity", w)

    v = velocity if in_place else np.empty_like(velocity)
    _core.sgd_momentum(
        step, dw, velocity, v, float(config["learning_rate"]), float(config["momentum"])
    )
    config["velocity"] = v
    return _written(w, step), config


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
    w, dw, step = _checked(w, dw)
    config = {} if config is None else config
    config.setdefault("learning_rate", 1e-2)
    config.setdefault("decay_rate", 0.99)
    config.setdefault("epsilon", 1e-8)
    cache = _state(config, "cache", w)

    following = cache if in_place else np.empty_like(cache)
    rates = (float(config[key]) for key in ("learning_rate", "decay_rate", "epsilon"))
    _core.rmsprop(step, dw, cache, following, *rates)
    config["cache"] = following
    return _written(w, step), config


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
    w, dw, step = _checked(w, dw)
    config = {} if config is None else config
    config.setdefault("learning_rate", 1e-3)
    config.setdefault("beta1", 0.9)
    config.setdefault("beta2", 0.999)
    config.setdefault("epsilon", 1e-8)
    config.setdefault("t", 0)
    m, v = _state(config, "m", w), _state(config, "v", w)

    beta1, beta2 = float(config["beta1"]), float(config["beta2"])
    t = config["t"] + 1
    alpha = float(config["learning_rate"]) * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
    next_m, next_v = (m, v) if in_place else (np.empty_like(m), np.empty_like(v))
    epsilon = float(config["epsilon"])
    _core.adam(step, dw, m, v, next_m, next_v, alpha, beta1, beta2, epsilon)
    config["m"], config["v"], config["t"] = next_m, next_v, t
    return _written(w, step), config


IN_PLACE_RULES = (sgd, sgd_momentum, rmsprop, adam)

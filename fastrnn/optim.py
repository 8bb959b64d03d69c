"""CS231n's ``optim.py`` on the compiled core: one fused pass over a parameter and its state.

Each update rule is ``rule(w, dw, config=None) -> (w, config)``. The weights `w` are updated in
place and returned. The dictionary `config` holds the hyperparameters and the state (learning rate,
moments, step count); missing keys are set to their defaults. The arithmetic and the state have the
dtype of `w`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import checks as _checks
from ._core import optim as _core

__all__ = [
    "IN_PLACE_RULES",
    "adam",
    "adamw",
    "average",
    "average_all",
    "clip_by_norm",
    "clip_by_value",
    "np",
    "rmsprop",
    "sgd",
    "sgd_momentum",
    "update_all",
]


def _stepped(
    step: Callable[..., tuple[np.ndarray, ...]],
    w: np.ndarray,
    dw: np.ndarray,
    in_place: bool,
    **states: Any,
) -> tuple[np.ndarray, ...]:
    """Run ``step(w, dw, *states, in_place)`` of the core; return the new states.

    The core takes C-contiguous arrays of one dtype that share no memory, and no subclasses. Other
    arrays are copied first, and the results are copied back.
    """
    if _core.fits(w, (dw, *states.values()), in_place):
        return step(w, dw, *states.values(), in_place)
    w, dw = _checks.as_weights(w, dw)
    copies = [_copied(_checks.as_state(name, state, w)) for name, state in states.items()]
    for name, state in states.items():
        if in_place and isinstance(state, np.ndarray) and not state.flags.writeable:
            raise ValueError(f"{name} is read-only; expected an array that can be changed in place")
    plain, masked = np.asarray(w), isinstance(w, np.ma.MaskedArray)
    stepped = plain if _core.fits(plain) and not masked else _copied(plain)
    found = step(stepped, _copied(dw), *copies, False)
    if stepped is not plain:
        # masked elements keep their values, as with NumPy's operators
        np.copyto(plain, stepped, where=~np.ma.getmaskarray(w) if masked else True)
    return tuple(
        _kept(state, new) if in_place else new
        for state, new in zip(states.values(), found, strict=True)
    )


def _plain(a: Any) -> Any:
    """View a subclass as a plain ndarray, except a masked array, whose mask is needed."""
    if type(a) is np.ndarray or not isinstance(a, np.ndarray) or isinstance(a, np.ma.MaskedArray):
        return a
    return a.view(np.ndarray)


def _copied(a: np.ndarray) -> np.ndarray:
    """Return a C-contiguous copy that is a plain ndarray, as the core requires."""
    return np.array(a, order="C", subok=False)


def _kept(state: Any, new: np.ndarray) -> np.ndarray:
    """Copy the new state into the old state's array if that is an array of the same dtype."""
    if not isinstance(state, np.ndarray) or state.dtype != new.dtype:
        return new
    np.copyto(np.asarray(state), new)
    return state


def sgd(
    w: np.ndarray, dw: np.ndarray, config: dict[str, Any] | None = None, *, in_place: bool = False
) -> tuple[np.ndarray, dict[str, Any]]:
    """Stochastic gradient descent: ``w -= learning_rate * dw``.

    Parameters
    ----------
    w : ndarray of float32 or float64, any shape
        Weights, updated in place.
    dw : ndarray, shape of `w`
        Gradient of the loss with respect to `w`.
    config : dict, optional
        ``learning_rate`` (default 1e-2).
    in_place : bool, default False
        Has no effect: `sgd` has no state.

    Returns
    -------
    w : ndarray
        The same array, updated.
    config : dict
        The same dictionary (a new one if `config` was None).

    Raises
    ------
    TypeError
        If `w` is not a float32 or float64 array, or `dw` is not numeric.
    ValueError
        If the shapes differ, or `w` is read-only.
    """
    config = {} if config is None else config
    rate = float(config.setdefault("learning_rate", 1e-2))
    _stepped(lambda w, dw, _: _core.sgd(w, dw, rate), w, dw, in_place)
    return w, config


def sgd_momentum(
    w: np.ndarray, dw: np.ndarray, config: dict[str, Any] | None = None, *, in_place: bool = False
) -> tuple[np.ndarray, dict[str, Any]]:
    """Gradient descent with momentum: ``v = mu v - learning_rate dw; w += v``.

    Parameters
    ----------
    w : ndarray of float32 or float64, any shape
        Weights, updated in place.
    dw : ndarray, shape of `w`
        Gradient of the loss with respect to `w`.
    config : dict, optional
        ``learning_rate`` (default 1e-2), ``momentum`` mu (default 0.9), ``velocity`` v (shape
        of `w`, default zeros).
    in_place : bool, default False
        Update the state arrays in place instead of putting new arrays into `config`. A state
        array with another dtype than `w` is still replaced by a new one with the dtype of `w`.

    Returns
    -------
    w : ndarray
        The same array, updated.
    config : dict
        The same dictionary (a new one if `config` was None), with the updated ``velocity``.

    Raises
    ------
    TypeError
        If `w` is not a float32 or float64 array, or `dw` is not numeric.
    ValueError
        If the shapes differ, or `w` or a state array to be updated in place is read-only.

    References
    ----------
    Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in
    deep learning", 2013, equations 1 and 2.
    """
    config = {} if config is None else config
    rate = float(config.setdefault("learning_rate", 1e-2))
    momentum = float(config.setdefault("momentum", 0.9))

    def step(w: np.ndarray, dw: np.ndarray, velocity: np.ndarray, in_place: bool) -> Any:
        return _core.sgd_momentum(w, dw, velocity, rate, momentum, in_place)

    (config["velocity"],) = _stepped(step, w, dw, in_place, velocity=config.get("velocity"))
    return w, config


def rmsprop(
    w: np.ndarray, dw: np.ndarray, config: dict[str, Any] | None = None, *, in_place: bool = False
) -> tuple[np.ndarray, dict[str, Any]]:
    """RMSProp: divide each step by the root of a running mean of squared gradients.

    ``cache = rho cache + (1 - rho) dw^2; w -= learning_rate dw / (sqrt(cache) + epsilon)``

    Parameters
    ----------
    w : ndarray of float32 or float64, any shape
        Weights, updated in place.
    dw : ndarray, shape of `w`
        Gradient of the loss with respect to `w`.
    config : dict, optional
        ``learning_rate`` (default 1e-2), ``decay_rate`` rho (default 0.99), ``epsilon``
        (default 1e-8), ``cache`` (shape of `w`, default zeros).
    in_place : bool, default False
        Update the state arrays in place instead of putting new arrays into `config`. A state
        array with another dtype than `w` is still replaced by a new one with the dtype of `w`.

    Returns
    -------
    w : ndarray
        The same array, updated.
    config : dict
        The same dictionary (a new one if `config` was None), with the updated ``cache``.

    Raises
    ------
    TypeError
        If `w` is not a float32 or float64 array, or `dw` is not numeric.
    ValueError
        If the shapes differ, or `w` or a state array to be updated in place is read-only.

    References
    ----------
    Tieleman and Hinton, "Lecture 6.5: rmsprop", Neural Networks for Machine Learning, 2012.
    """
    config = {} if config is None else config
    rate = float(config.setdefault("learning_rate", 1e-2))
    decay_rate = float(config.setdefault("decay_rate", 0.99))
    epsilon = float(config.setdefault("epsilon", 1e-8))

    def step(w: np.ndarray, dw: np.ndarray, cache: np.ndarray, in_place: bool) -> Any:
        return _core.rmsprop(w, dw, cache, rate, decay_rate, epsilon, in_place)

    (config["cache"],) = _stepped(step, w, dw, in_place, cache=config.get("cache"))
    return w, config


def adam(
    w: np.ndarray, dw: np.ndarray, config: dict[str, Any] | None = None, *, in_place: bool = False
) -> tuple[np.ndarray, dict[str, Any]]:
    """Adam, with the bias correction folded into the step size.

    ``t += 1; m = beta1 m + (1 - beta1) dw; v = beta2 v + (1 - beta2) dw^2``
    ``alpha = learning_rate sqrt(1 - beta2^t) / (1 - beta1^t); w -= alpha m / (sqrt(v) + epsilon)``

    Parameters
    ----------
    w : ndarray of float32 or float64, any shape
        Weights, updated in place.
    dw : ndarray, shape of `w`
        Gradient of the loss with respect to `w`.
    config : dict, optional
        ``learning_rate`` (default 1e-3), ``beta1`` (0.9), ``beta2`` (0.999), ``epsilon``
        (1e-8), ``m`` and ``v`` (shape of `w`, zeros), ``t`` (steps taken, 0).
    in_place : bool, default False
        Update the state arrays in place instead of putting new arrays into `config`. A state
        array with another dtype than `w` is still replaced by a new one with the dtype of `w`.

    Returns
    -------
    w : ndarray
        The same array, updated.
    config : dict
        The same dictionary (a new one if `config` was None), with the updated ``m``, ``v``, ``t``.

    Raises
    ------
    TypeError
        If `w` is not a float32 or float64 array, or `dw` is not numeric.
    ValueError
        If the shapes differ, or `w` or a state array to be updated in place is read-only.

    Notes
    -----
    Epsilon is added to the square root of the uncorrected `v`, as in the last paragraph of
    section 2 of the paper. Algorithm 1 of the paper adds it to the root of the bias-corrected `v`,
    which gives slightly different steps.

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", 2015.

    Examples
    --------
    The first step is as long as the learning rate, whatever the gradient:

    >>> from fastrnn.optim import adam
    >>> w, dw = np.ones(3), np.array([0.5, -0.1, 0.0])
    >>> w, config = adam(w, dw, {"learning_rate": 0.1})
    >>> print(w.round(3), config["t"])
    [0.9 1.1 1. ] 1
    """
    return _adam(w, dw, config, 0.0, in_place)


def adamw(
    w: np.ndarray, dw: np.ndarray, config: dict[str, Any] | None = None, *, in_place: bool = False
) -> tuple[np.ndarray, dict[str, Any]]:
    """Adam with decoupled weight decay: ``w -= learning_rate weight_decay w``, then `adam`'s step.

    Parameters
    ----------
    w : ndarray of float32 or float64, any shape
        Weights, updated in place.
    dw : ndarray, shape of `w`
        Gradient of the loss with respect to `w`.
    config : dict, optional
        The keys of `adam`, and ``weight_decay`` (default 1e-2).
    in_place : bool, default False
        Update the state arrays in place instead of putting new arrays into `config`. A state
        array with another dtype than `w` is still replaced by a new one with the dtype of `w`.

    Returns
    -------
    w : ndarray
        The same array, updated.
    config : dict
        The same dictionary (a new one if `config` was None), with the updated state.

    Raises
    ------
    TypeError
        If `w` is not a float32 or float64 array, or `dw` is not numeric.
    ValueError
        If the shapes differ, or `w` or a state array to be updated in place is read-only.

    References
    ----------
    Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, algorithm 2; the decay
    is multiplied by the learning rate, as in PyTorch's AdamW.
    """
    config = {} if config is None else config
    return _adam(w, dw, config, float(config.setdefault("weight_decay", 1e-2)), in_place)


def _adam(
    w: np.ndarray,
    dw: np.ndarray,
    config: dict[str, Any] | None,
    weight_decay: float,
    in_place: bool,
) -> tuple[np.ndarray, dict[str, Any]]:
    config = {} if config is None else config
    rates, t = _adam_rates(config, weight_decay)

    def step(w: np.ndarray, dw: np.ndarray, m: np.ndarray, v: np.ndarray, in_place: bool) -> Any:
        return _core.adam(w, dw, m, v, *rates, in_place)

    moments = _stepped(step, w, dw, in_place, m=config.get("m"), v=config.get("v"))
    (config["m"], config["v"]), config["t"] = moments, t
    return w, config


def _adam_rates(
    config: dict[str, Any], weight_decay: float
) -> tuple[tuple[float, float, float, float, float], int]:
    """Return alpha, beta1, beta2, epsilon and the factor of the weights; and the next t."""
    rate = float(config.setdefault("learning_rate", 1e-3))
    beta1 = float(config.setdefault("beta1", 0.9))
    beta2 = float(config.setdefault("beta2", 0.999))
    epsilon = float(config.setdefault("epsilon", 1e-8))
    t = config.setdefault("t", 0) + 1
    alpha = rate * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
    return (alpha, beta1, beta2, epsilon, 1 - rate * weight_decay), t


IN_PLACE_RULES = (sgd, sgd_momentum, rmsprop, adam, adamw)
"""The update rules that take the keyword ``in_place``."""


def update_all(
    rule: Callable[..., tuple[np.ndarray, dict[str, Any]]],
    params: dict[str, np.ndarray],
    grads: Mapping[str, np.ndarray],
    configs: dict[str, dict[str, Any]],
) -> None:
    """Update all parameters in place by one rule, with the same bits as one by one.

    Adam's steps are shared out among the threads together: most parameters are too small for
    threads of their own.

    Parameters
    ----------
    rule : callable
        One of `IN_PLACE_RULES`.
    params : dict of str to ndarray
        Weights, updated in place.
    grads : mapping of str to ndarray
        The gradient of each.
    configs : dict of str to dict
        The hyperparameters and the state of each, as for the rule.

    Raises
    ------
    KeyError
        A parameter has no gradient or no config.
    TypeError, ValueError
        As the rule.
    """
    if rule in (adam, adamw) and all("m" in configs[name] for name in params):
        arrays = [(w, grads[n], configs[n]["m"], configs[n].get("v")) for n, w in params.items()]
        if _core.fit_together(arrays):
            rates, steps = [], []
            for name in params:
                config = configs[name]
                decay = float(config.setdefault("weight_decay", 1e-2)) if rule is adamw else 0.0
                rate, t = _adam_rates(config, decay)
                rates.append(rate)
                steps.append(t)
            _core.adam_each(arrays, rates)
            for name, t in zip(params, steps, strict=True):
                configs[name]["t"] = t
            return
    for name, w in params.items():
        params[name], configs[name] = rule(w, grads[name], configs[name], in_place=True)


def clip_by_value(grads: Mapping[str, np.ndarray], limit: float) -> None:
    """Clip every element of every gradient to ``[-limit, limit]``, in place.

    Parameters
    ----------
    grads : mapping of str to ndarray of float32 or float64
        Gradients, clipped in place.
    limit : float
        Largest absolute value of an element; must be positive.

    Raises
    ------
    TypeError
        If a gradient is not a float32 or float64 array.
    ValueError
        If `limit` is not positive, or a gradient is read-only.
    """
    _checks.check_gradients(grads, limit)
    for grad in map(_plain, grads.values()):
        if _core.fits(grad):
            _core.clip(grad, limit)
        else:
            np.clip(grad, -limit, limit, out=grad)


def clip_by_norm(grads: Mapping[str, np.ndarray], limit: float) -> float:
    """Scale all gradients in place so that their joint L2 norm is at most `limit`.

    Parameters
    ----------
    grads : mapping of str to ndarray of float32 or float64
        Gradients, scaled in place if their norm exceeds `limit`.
    limit : float
        Largest norm; must be positive.

    Returns
    -------
    float
        The norm before scaling: the root of the sum of all squares, computed in float64.

    Raises
    ------
    TypeError
        If a gradient is not a float32 or float64 array.
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
        squares += _core.sum_of_squares(np.require(np.asarray(grad), requirements=["C", "A"]))
    norm = squares**0.5
    if norm > limit:
        for grad in map(_plain, grads.values()):
            if _core.fits(grad):
                _core.scale(grad, limit / norm)
            else:
                grad *= limit / norm
    return norm


def average(mean: np.ndarray, w: np.ndarray, rate: float) -> np.ndarray:
    """Update a running average of weights in place: ``mean += rate (w - mean)``.

    Parameters
    ----------
    mean : ndarray of float32 or float64, any shape
        Running average, updated in place.
    w : ndarray, shape of `mean`
        New weights.
    rate : float
        Weight of `w` in the new average: 1 - decay for an exponential moving average, 1 / n at
        the n-th update for the arithmetic mean.

    Returns
    -------
    ndarray
        The same array as `mean`.

    Raises
    ------
    TypeError
        If `mean` is not a float32 or float64 array, or `w` is not numeric.
    ValueError
        If the shapes differ, or `mean` is read-only.

    References
    ----------
    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992.
    """
    plain, other = _plain(mean), _plain(w)
    if _core.fits(plain, (other,)):
        _core.average(plain, other, rate)
    else:
        mean, w = _checks.as_weights(mean, w, ("mean", "w"))
        mean += rate * (w - mean)
    return mean


def average_all(
    means: Mapping[str, np.ndarray], params: Mapping[str, np.ndarray], rate: float
) -> None:
    """Update the running averages of all parameters in place, see `average`.

    Parameters
    ----------
    means : mapping of str to ndarray
        Running averages, updated in place.
    params : mapping of str to ndarray
        New weights of the same names.
    rate : float
        As for `average`.

    Raises
    ------
    KeyError
        A parameter has no average.
    TypeError, ValueError
        As `average`.
    """
    arrays = [(means[name], w) for name, w in params.items()]
    if _core.fit_together(arrays):
        _core.average_each(arrays, rate)
        return
    for mean, w in arrays:
        average(mean, w, rate)

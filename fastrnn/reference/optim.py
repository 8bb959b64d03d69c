"""Update rules in plain NumPy: the reference for ``fastrnn.optim``.

Each update rule is ``rule(w, dw, config=None) -> (w, config)``. The weights `w` are updated in
place and returned. The dictionary `config` holds the hyperparameters and the state (learning rate,
moments, step count); missing keys are set to their defaults. The arithmetic and the state have the
dtype of `w`.
"""

from typing import Any

import numpy as np

from .. import checks as _checks

__all__ = [
    "np",
    "adam",
    "adamw",
    "average",
    "clip_by_norm",
    "clip_by_value",
    "rmsprop",
    "sgd",
    "sgd_momentum",
]


def sgd(
    w: np.ndarray, dw: np.ndarray, config: dict[str, Any] | None = None
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
    w, dw = _checks.as_weights(w, dw)
    config = {} if config is None else config
    config.setdefault("learning_rate", 1e-2)

    w -= float(config["learning_rate"]) * dw
    return w, config


def sgd_momentum(
    w: np.ndarray, dw: np.ndarray, config: dict[str, Any] | None = None
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
        If the shapes differ, or `w` is read-only.

    References
    ----------
    Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in
    deep learning", 2013, equations 1 and 2.
    """
    w, dw = _checks.as_weights(w, dw)
    config = {} if config is None else config
    config.setdefault("learning_rate", 1e-2)
    config.setdefault("momentum", 0.9)
    velocity = _checks.as_state("velocity", config.get("velocity"), w)

    v = float(config["momentum"]) * velocity - float(config["learning_rate"]) * dw
    w += v
    config["velocity"] = v
    return w, config


def rmsprop(
    w: np.ndarray, dw: np.ndarray, config: dict[str, Any] | None = None
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
        If the shapes differ, or `w` is read-only.

    References
    ----------
    Tieleman and Hinton, "Lecture 6.5: rmsprop", Neural Networks for Machine Learning, 2012.
    """
    w, dw = _checks.as_weights(w, dw)
    config = {} if config is None else config
    config.setdefault("learning_rate", 1e-2)
    config.setdefault("decay_rate", 0.99)
    config.setdefault("epsilon", 1e-8)
    cache = _checks.as_state("cache", config.get("cache"), w)

    rho = float(config["decay_rate"])
    cache = rho * cache + (1 - rho) * dw * dw
    w -= float(config["learning_rate"]) * dw / (np.sqrt(cache) + float(config["epsilon"]))
    config["cache"] = cache
    return w, config


def adam(
    w: np.ndarray, dw: np.ndarray, config: dict[str, Any] | None = None
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
        If the shapes differ, or `w` is read-only.

    Notes
    -----
    Epsilon is added to the square root of the uncorrected `v`, as in the last paragraph of
    section 2 of the paper. Algorithm 1 of the paper adds it to the root of the bias-corrected `v`,
    which gives slightly different steps.

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", 2015.
    """
    return _adam(w, dw, config, 0.0)


def _adam(
    w: np.ndarray, dw: np.ndarray, config: dict[str, Any] | None, weight_decay: float
) -> tuple[np.ndarray, dict[str, Any]]:
    w, dw = _checks.as_weights(w, dw)
    config = {} if config is None else config
    config.setdefault("learning_rate", 1e-3)
    config.setdefault("beta1", 0.9)
    config.setdefault("beta2", 0.999)
    config.setdefault("epsilon", 1e-8)
    config.setdefault("t", 0)
    m, v = (_checks.as_state(name, config.get(name), w) for name in ("m", "v"))

    rate, epsilon = float(config["learning_rate"]), float(config["epsilon"])
    beta1, beta2 = float(config["beta1"]), float(config["beta2"])
    t = config["t"] + 1
    m = beta1 * m + (1 - beta1) * dw
    v = beta2 * v + (1 - beta2) * dw * dw
    alpha = rate * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
    if weight_decay:
        w *= 1 - rate * weight_decay
    w -= alpha * m / (np.sqrt(v) + epsilon)
    config["m"], config["v"], config["t"] = m, v, t
    return w, config


def adamw(
    w: np.ndarray, dw: np.ndarray, config: dict[str, Any] | None = None
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
        If the shapes differ, or `w` is read-only.

    References
    ----------
    Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, algorithm 2; the decay
    is multiplied by the learning rate, as in PyTorch's AdamW.
    """
    config = {} if config is None else config
    return _adam(w, dw, config, float(config.setdefault("weight_decay", 1e-2)))


def clip_by_value(grads: dict[str, np.ndarray], limit: float) -> None:
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
    for grad in grads.values():
        np.clip(grad, -limit, limit, out=grad)


def clip_by_norm(grads: dict[str, np.ndarray], limit: float) -> float:
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
    squares = (np.asarray(grad, dtype=np.float64) ** 2 for grad in grads.values())
    norm = float(np.sqrt(sum(square.sum() for square in squares)))
    if norm > limit:
        for grad in grads.values():
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
    mean, w = _checks.as_weights(mean, w, ("mean", "w"))
    mean += rate * (w - mean)
    return mean

"""Prepared calls of every public layer and update rule, with arguments of a given shape."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from .data import draw_captions
from .shapes import Shape

LAYERS = (
    "rnn_step_forward",
    "rnn_step_backward",
    "rnn_forward",
    "rnn_backward",
    "lstm_step_forward",
    "lstm_step_backward",
    "lstm_forward",
    "lstm_backward",
    "word_embedding_forward",
    "word_embedding_backward",
    "temporal_affine_forward",
    "temporal_affine_backward",
    "temporal_softmax_loss",
    "affine_forward",
    "affine_backward",
)
RULES = ("sgd", "sgd_momentum", "rmsprop", "adam")
SINGLE_STEPS = tuple(name for name in LAYERS if "_step_" in name)


def library(name: str) -> SimpleNamespace:
    """Return the layers and update rules of 'fastrnn' or of 'reference', its NumPy version."""
    if name == "fastrnn":
        from fastrnn import optim, rnn_layers
    else:
        from fastrnn.reference import optim, rnn_layers
    found = {key: getattr(rnn_layers, key, None) for key in LAYERS}
    if name != "fastrnn":
        from fastrnn.reference import layers

        found.update(affine_forward=layers.affine_forward, affine_backward=layers.affine_backward)
    return SimpleNamespace(**found, **{rule: getattr(optim, rule) for rule in RULES})


def prepare(functions: Any, name: str, shape: Shape, dtype: str) -> Callable[[], object]:
    """Return a callable that calls one function with random arguments drawn in advance.

    Parameters
    ----------
    functions : object
        Object with the functions as attributes, as returned by `library`.
    name : str
        One of `LAYERS` or `RULES`. A backward pass gets the cache of its forward pass.
    shape : Shape
        Sizes of the arguments. An update rule gets weights of shape (H, 4H).
    dtype : {'float32', 'float64'}
        dtype of all floating-point arguments.

    Returns
    -------
    callable
        Takes no arguments and may be called many times.
    """
    rng = np.random.default_rng(231)
    N, T, D, H, V = shape.N, shape.T, shape.D, shape.H, shape.V

    def normal(*size: int, scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(size) * scale).astype(dtype)

    def cell(gates: int, *first: np.ndarray) -> tuple[np.ndarray, ...]:
        Wx, Wh = normal(D, gates, scale=D**-0.5), normal(H, gates, scale=H**-0.5)
        return (*first, Wx, Wh, normal(gates))

    function = getattr(functions, name)
    if name in RULES:
        w, dw, config = normal(H, 4 * H), normal(H, 4 * H), {"learning_rate": 1e-6}
        return lambda: function(w, dw, config)

    captions = draw_captions(shape, N)
    operation = name.removesuffix("_forward").removesuffix("_backward")
    arguments = {
        "rnn_step": lambda: cell(H, normal(N, D), normal(N, H)),
        "rnn": lambda: cell(H, normal(N, T, D), normal(N, H)),
        "lstm_step": lambda: cell(4 * H, normal(N, D), normal(N, H), normal(N, H)),
        "lstm": lambda: cell(4 * H, normal(N, T, D), normal(N, H)),
        "word_embedding": lambda: (captions[:, :-1], normal(V, D)),
        "temporal_affine": lambda: (normal(N, T, H), normal(H, V, scale=H**-0.5), normal(V)),
        "temporal_softmax_loss": lambda: (normal(N, T, V), captions[:, 1:], captions[:, 1:] != 0),
        "affine": lambda: (normal(N, D), normal(D, H, scale=D**-0.5), normal(H)),
    }[operation]()
    if not name.endswith("_backward"):
        return lambda: function(*arguments)
    *outputs, cache = getattr(functions, f"{operation}_forward")(*arguments)
    upstream = [normal(*out.shape) for out in outputs]
    return lambda: function(*upstream, cache)

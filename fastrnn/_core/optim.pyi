from typing import Any

from numpy import ndarray

def sgd(w: Any, dw: Any, learning_rate: float) -> bool | None: ...
def sgd_momentum(
    w: Any, dw: Any, velocity: Any, learning_rate: float, momentum: float, in_place: bool
) -> ndarray | None: ...
def rmsprop(
    w: Any,
    dw: Any,
    cache: Any,
    learning_rate: float,
    decay_rate: float,
    epsilon: float,
    in_place: bool,
) -> ndarray | None: ...
def adam(
    w: Any,
    dw: Any,
    m: Any,
    v: Any,
    alpha: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    keep: float,
    in_place: bool,
) -> tuple[ndarray, ndarray] | None: ...
def clip(x: Any, limit: float) -> bool | None: ...
def scale(x: Any, factor: float) -> bool | None: ...
def average(mean: Any, w: Any, rate: float) -> bool | None: ...
def sum_of_squares(x: ndarray) -> float: ...

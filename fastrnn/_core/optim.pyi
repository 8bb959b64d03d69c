from typing import Any

from numpy import ndarray

def fits(w: Any, others: tuple[Any, ...] = ..., in_place: bool = ...) -> bool: ...
def sgd(w: ndarray, dw: ndarray, learning_rate: float) -> tuple[()]: ...
def sgd_momentum(
    w: ndarray,
    dw: ndarray,
    velocity: ndarray,
    learning_rate: float,
    momentum: float,
    in_place: bool,
) -> tuple[ndarray]: ...
def rmsprop(
    w: ndarray,
    dw: ndarray,
    cache: ndarray,
    learning_rate: float,
    decay_rate: float,
    epsilon: float,
    in_place: bool,
) -> tuple[ndarray]: ...
def adam(
    w: ndarray,
    dw: ndarray,
    m: ndarray,
    v: ndarray,
    alpha: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    keep: float,
    in_place: bool,
) -> tuple[ndarray, ndarray]: ...
def fit_together(updates: list[Any]) -> bool: ...
def adam_each(arrays: list[Any], rates: list[Any]) -> None: ...
def average_each(arrays: list[Any], rate: float) -> None: ...
def clip(x: ndarray, limit: float) -> None: ...
def scale(x: ndarray, factor: float) -> None: ...
def average(mean: ndarray, w: ndarray, rate: float) -> None: ...
def sum_of_squares(x: ndarray) -> float: ...

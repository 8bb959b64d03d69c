from numpy import ndarray

def sgd(w: ndarray, dw: ndarray, learning_rate: float) -> None: ...
def sgd_momentum(
    w: ndarray,
    dw: ndarray,
    velocity: ndarray,
    out: ndarray,
    learning_rate: float,
    momentum: float,
) -> None: ...
def rmsprop(
    w: ndarray,
    dw: ndarray,
    cache: ndarray,
    out: ndarray,
    learning_rate: float,
    decay_rate: float,
    epsilon: float,
) -> None: ...
def adam(
    w: ndarray,
    dw: ndarray,
    m: ndarray,
    v: ndarray,
    out_m: ndarray,
    out_v: ndarray,
    alpha: float,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> None: ...

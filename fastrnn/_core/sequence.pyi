from numpy import ndarray
from numpy.typing import ArrayLike

class ForwardCache: ...

def rnn_forward(
    x: ArrayLike,
    h0: ArrayLike,
    Wx: ArrayLike,
    Wh: ArrayLike,
    b: ArrayLike,
    lengths: ArrayLike | None = None,
    precision: str = "float32",
) -> tuple[ndarray, ForwardCache]: ...
def rnn_backward(
    dh: ArrayLike, cache: object
) -> tuple[ndarray, ndarray, ndarray, ndarray, ndarray]: ...
def lstm_forward(
    x: ArrayLike,
    h0: ArrayLike,
    Wx: ArrayLike,
    Wh: ArrayLike,
    b: ArrayLike,
    lengths: ArrayLike | None = None,
    precision: str = "float32",
) -> tuple[ndarray, ForwardCache]: ...
def lstm_backward(
    dh: ArrayLike, cache: object
) -> tuple[ndarray, ndarray, ndarray, ndarray, ndarray]: ...
def rnn_step_forward(
    x: ArrayLike, prev_h: ArrayLike, Wx: ArrayLike, Wh: ArrayLike, b: ArrayLike
) -> tuple[ndarray, ForwardCache]: ...
def rnn_step_backward(
    dnext_h: ArrayLike, cache: object
) -> tuple[ndarray, ndarray, ndarray, ndarray, ndarray]: ...
def lstm_step_forward(
    x: ArrayLike,
    prev_h: ArrayLike,
    prev_c: ArrayLike,
    Wx: ArrayLike,
    Wh: ArrayLike,
    b: ArrayLike,
) -> tuple[ndarray, ndarray, ForwardCache]: ...
def lstm_step_backward(
    dnext_h: ArrayLike, dnext_c: ArrayLike, cache: object
) -> tuple[ndarray, ndarray, ndarray, ndarray, ndarray, ndarray]: ...

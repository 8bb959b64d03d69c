from numpy import ndarray
from numpy.typing import ArrayLike

class AttentionCache: ...

def attention_forward(
    x: ArrayLike,
    A: ArrayLike,
    Wx: ArrayLike,
    Wh: ArrayLike,
    Wattn: ArrayLike,
    b: ArrayLike,
    lengths: ArrayLike | None = None,
) -> tuple[ndarray, AttentionCache]: ...
def attention_backward(
    dh: ArrayLike, cache: object
) -> tuple[ndarray, ndarray, ndarray, ndarray, ndarray, ndarray]: ...
def attention_step_forward(
    x: ArrayLike,
    prev_h: ArrayLike,
    prev_c: ArrayLike,
    A: ArrayLike,
    Wx: ArrayLike,
    Wh: ArrayLike,
    Wattn: ArrayLike,
    b: ArrayLike,
) -> tuple[ndarray, ndarray, AttentionCache]: ...
def attention_step_backward(
    dnext_h: ArrayLike, dnext_c: ArrayLike, cache: object
) -> tuple[ndarray, ndarray, ndarray, ndarray, ndarray, ndarray, ndarray, ndarray]: ...
def dot_product_attention(prev_h: ArrayLike, A: ArrayLike) -> tuple[ndarray, ndarray]: ...

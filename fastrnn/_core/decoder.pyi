from collections.abc import Mapping

from numpy import ndarray
from numpy.typing import ArrayLike

def sample(
    params: Mapping[str, ArrayLike],
    features: ArrayLike,
    lstm: bool,
    start: int,
    end: int | None,
    null: int,
    max_length: int,
) -> ndarray: ...
def mix(
    params: Mapping[str, ArrayLike],
    features: ArrayLike,
    captions: ArrayLike,
    probability: float,
    seed: int,
    null: int,
    lstm: bool,
) -> ndarray: ...
def beam_search(
    params: Mapping[str, ArrayLike],
    features: ArrayLike,
    lstm: bool,
    start: int,
    end: int,
    null: int,
    max_length: int,
    width: int,
    groups: int,
    n_best: int,
    diversity: float,
    no_repeat_ngram: int,
    suppress: ArrayLike,
    scale: ndarray,
    reward: ndarray,
) -> tuple[ndarray, ndarray, ndarray, ndarray]: ...
def draw(
    params: Mapping[str, ArrayLike],
    features: ArrayLike,
    lstm: bool,
    start: int,
    end: int,
    null: int,
    max_length: int,
    count: int,
    inverse_temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    no_repeat_ngram: int,
    suppress: ArrayLike,
) -> tuple[ndarray, ndarray, ndarray, ndarray]: ...

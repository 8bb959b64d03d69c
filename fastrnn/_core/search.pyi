from collections.abc import Mapping

from numpy import ndarray
from numpy.typing import ArrayLike

def beam_search(
    params: Mapping[str, ArrayLike],
    features: ArrayLike,
    cell_type: str,
    start: int,
    end: int,
    null: int,
    max_length: int,
    width: int,
    groups: int,
    n_best: int,
    diversity: float,
    min_length: int,
    no_repeat_ngram: int,
    suppress: ArrayLike,
    scale: ndarray,
    reward: ndarray,
    precision: str = "float32",
) -> tuple[ndarray, ndarray, ndarray, ndarray]: ...
def sample(
    params: Mapping[str, ArrayLike],
    features: ArrayLike,
    cell_type: str,
    start: int,
    end: int,
    null: int,
    max_length: int,
    count: int,
    inverse_temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    min_length: int,
    no_repeat_ngram: int,
    suppress: ArrayLike,
    precision: str = "float32",
    rows: ndarray | None = None,
) -> tuple[ndarray, ndarray, ndarray, ndarray]: ...

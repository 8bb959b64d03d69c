from collections.abc import Mapping

from numpy import ndarray
from numpy.typing import ArrayLike

def sample(
    params: Mapping[str, ArrayLike],
    features: ArrayLike,
    start: int,
    end: int | None,
    captions: ndarray,
    lstm: bool,
) -> None: ...
def mix(
    params: Mapping[str, ArrayLike],
    features: ArrayLike,
    captions: ArrayLike,
    probability: float,
    seed: int,
    null: int,
    lstm: bool,
) -> ndarray: ...

from collections.abc import Mapping

from numpy import ndarray
from numpy.typing import ArrayLike

def mix(
    params: Mapping[str, ArrayLike],
    features: ArrayLike,
    captions: ArrayLike,
    probability: float,
    seed: int,
    null: int,
    cell_type: str,
    precision: str = "float32",
    rows: ndarray | None = None,
) -> ndarray: ...

from collections.abc import Mapping

from numpy import ndarray
from numpy.typing import ArrayLike

def decode(
    params: Mapping[str, ArrayLike],
    features: ArrayLike,
    cell_type: str,
    start: int,
    end: int | None,
    null: int,
    max_length: int,
    precision: str = "float32",
) -> ndarray: ...

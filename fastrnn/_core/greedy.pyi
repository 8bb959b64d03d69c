from collections.abc import Mapping

from numpy import ndarray
from numpy.typing import ArrayLike

def decode(
    params: Mapping[str, ArrayLike],
    features: ArrayLike,
    start: int,
    end: int | None,
    captions: ndarray,
    cell_type: str,
) -> None: ...

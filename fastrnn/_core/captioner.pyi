from collections.abc import Mapping

from numpy import float64, ndarray
from numpy.typing import ArrayLike

from .kernels import Workspace

NAMES: tuple[str, ...]
PHASE_NAMES: tuple[str, ...]

def profile(reset: bool = True) -> dict[str, float]: ...
def loss(
    params: Mapping[str, ArrayLike],
    features: ArrayLike,
    captions: ArrayLike,
    null: int,
    lstm: bool,
    workspace: Workspace | None = None,
    grads: dict[str, ndarray] | None = None,
) -> tuple[float64, dict[str, ndarray]]: ...
def sample(
    params: Mapping[str, ArrayLike],
    features: ArrayLike,
    start: int,
    end: int | None,
    captions: ndarray,
    lstm: bool,
) -> None: ...

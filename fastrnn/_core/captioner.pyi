from collections.abc import Callable, Mapping

from numpy import float64, ndarray
from numpy.typing import ArrayLike

from .runtime import Workspace

PHASE_NAMES: tuple[str, ...]
SERIAL_PHASES: tuple[str, ...]

def profile(reset: bool = True) -> dict[str, float]: ...
def loss(
    params: Mapping[str, ArrayLike],
    features: ArrayLike,
    captions: ArrayLike,
    null: int,
    cell_type: str,
    workspace: Workspace | None = None,
    grads: dict[str, ndarray] | None = None,
    weights: ndarray | None = None,
    inputs: ndarray | None = None,
    embed_dropout: float = 0,
    embed_seed: int = 0,
    vocab_dropout: float = 0,
    vocab_seed: int = 0,
    label_smoothing: float = 0,
    precision: str = "float32",
    rows: ndarray | None = None,
    batch_rows: int | None = None,
    ready: Callable[[tuple[str, ...]], None] | None = None,
) -> tuple[float64, dict[str, ndarray]]: ...
def word_log_probs(
    params: Mapping[str, ArrayLike],
    features: ArrayLike,
    captions: ArrayLike,
    null: int,
    cell_type: str,
    workspace: Workspace | None = None,
    precision: str = "float32",
) -> ndarray: ...

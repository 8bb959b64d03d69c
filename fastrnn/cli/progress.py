"""Former place of what `fastrnn.terminal` and `fastrnn.training.progress` have now."""

from __future__ import annotations

from ..terminal import duration
from ..training.progress import model_size

__all__ = ["duration", "model_size"]

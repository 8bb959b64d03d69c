"""The trainer behind ``fastrnn train``: random epochs, Adam, validation, checkpoints, a history.

`Trainer` uses every caption once per epoch, in a new random order. All random numbers of a step
depend only on the seed and the number of the step, so a stopped training can be resumed with the
same results to the bit. `start_model` creates a model with initial weights that fit the data,
`read_run` reads the settings of a run, and `evaluate` measures captions.
"""

from __future__ import annotations

from ..evaluation import caption_images, evaluate, loss_per_word, references_of
from .config import (
    CHANGEABLE_ON_RESUME,
    HARMLESS,
    MONITORS,
    SCHEDULES,
    ModelConfig,
    TrainConfig,
)
from .objectives import CaptionObjective, RewardObjective
from .recipes import RECIPES
from .run import Run, read_run, read_training_data
from .signals import Interrupted
from .start import feature_scale, start_model
from .trainer import Trainer, seconds_since

__all__ = [
    "CHANGEABLE_ON_RESUME",
    "HARMLESS",
    "MONITORS",
    "RECIPES",
    "SCHEDULES",
    "CaptionObjective",
    "Interrupted",
    "ModelConfig",
    "RewardObjective",
    "Run",
    "TrainConfig",
    "Trainer",
    "caption_images",
    "evaluate",
    "feature_scale",
    "loss_per_word",
    "read_run",
    "read_training_data",
    "references_of",
    "seconds_since",
    "start_model",
]

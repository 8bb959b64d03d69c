"""The trainer behind ``fastrnn train``: random epochs, Adam, validation, checkpoints, a history.

`Trainer` uses every caption once per epoch, in a new random order. All random numbers of a step
depend only on the seed and the number of the step, so a stopped training can be resumed with the
same results to the bit. `start_model` creates a model with initial weights that fit the data, and
`read_run` reads the settings of a run. `fastrnn.evaluation` measures captions.
"""

from __future__ import annotations

from .config import ModelConfig, TrainConfig
from .recipes import RECIPES, Recipe
from .run import Run, read_run, read_training_data
from .signals import Interrupted
from .start import start_model
from .trainer import Trainer

__all__ = [
    "RECIPES",
    "Interrupted",
    "ModelConfig",
    "Recipe",
    "Run",
    "TrainConfig",
    "Trainer",
    "read_run",
    "read_training_data",
    "start_model",
]

"""Settings that work well: for known data sets, and as the defaults of ``fastrnn train``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Settings that work well together.

    Attributes
    ----------
    model : dict
        Arguments of `start_model`.
    training : dict
        Arguments of `TrainConfig`.

    Examples
    --------
    >>> from fastrnn.training import RECIPES, TrainConfig
    >>> TrainConfig(**RECIPES["coco"].training | {"epochs": 3}).epochs
    3
    """

    model: dict[str, Any]
    training: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """`model` and `training` together, in a new dict."""
        return {**self.model, **self.training}


RECIPES: dict[str, Recipe] = {
    "flickr8k": Recipe(
        model={"hidden_dim": 768, "wordvec_dim": 256},
        training={
            "epochs": 6,
            "batch_size": 100,
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "clip_norm": 5.0,
            "feature_noise": 0.5,
            "embed_dropout": 0.3,
            "vocab_dropout": 0.5,
            "weight_decay": 0.05,
            "consensus": 1.0,
            "weight_average": 0.999,
            "reward_epochs": 3,
            "val_captions": 500,
            "val_images": 1000,
        },
    ),
    "coco": Recipe(
        model={"hidden_dim": 512, "wordvec_dim": 256},
        training={
            "epochs": 10,
            "batch_size": 100,
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "clip_norm": 5.0,
            "embed_dropout": 0.3,
            "vocab_dropout": 0.5,
            "consensus": 1.0,
            "weight_average": 0.999,
            "reward_epochs": 3,
            "val_captions": 500,
            "val_images": 1000,
        },
    ),
}
"""For known data sets, by name."""

SCENES: dict[str, Any] = {"num_train": 12000, "num_val": 1000}
"""The number of scenes that are drawn if no data set is given."""
SCENE_DEFAULTS = Recipe(
    model={"hidden_dim": 160, "wordvec_dim": 64},
    training={
        "batch_size": 200,
        "epochs": 12,
        "learning_rate": 1e-2,
        "schedule": "cosine",
        "feature_noise": 0.12,
        "clip_norm": 5.0,
        # A scene has many true captions, but only five references. So CIDEr can fall while the
        # share of true captions rises.
        "monitor": "loss",
    },
)
"""``fastrnn train`` on drawn scenes."""
DATA_DEFAULTS = Recipe(
    model={"hidden_dim": 512, "wordvec_dim": 256},
    training={
        "batch_size": 100,
        "epochs": 5,
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "feature_noise": 0.5,
        "clip_norm": 5.0,
    },
)
"""``fastrnn train`` on a data set without a recipe."""

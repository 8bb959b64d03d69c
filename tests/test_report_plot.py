"""The plot of the loss."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fastrnn.report import draw_loss

HISTORY = [
    {"step": 5, "epoch": 0.5, "loss": 3.0, "learning_rate": 0.1},
    {"step": 10, "epoch": 1.0, "loss": 2.0, "learning_rate": 0.1},
    {"step": 10, "epoch": 1, "loss": 2.5, "learning_rate": 0.1, "val_loss": 2.2,
     "val_perplexity": 9.0, "val_bleu_4": 0.1, "val_cider": 0.25, "captions_per_second": 1000.0},
    {"step": 15, "epoch": 1.5, "loss": 1.5, "learning_rate": 0.05},
    {"step": 20, "epoch": 2.0, "loss": 1.25, "learning_rate": 0.05},
    {"step": 20, "epoch": 2, "loss": 1.4, "learning_rate": 0.05, "val_loss": 2.4,
     "val_perplexity": 11.0, "val_bleu_4": 0.15, "val_cider": 0.375, "captions_per_second": 1100.0},
]  # fmt: skip


@pytest.mark.parametrize("history", [HISTORY, HISTORY[:2], HISTORY[2:3], [], [{"epoch": 0.5}]])
def test_plot_is_a_picture_with_something_on_it(history):
    light = np.asarray(Image.open(io.BytesIO(draw_loss(history))).convert("L"), float)
    assert light.shape == (600, 1200)
    assert light.mean() > 220
    assert light.std() > 5


def test_plot_shows_validation_in_its_own_colour():
    def orange(history: list[dict]) -> int:
        rgb = np.asarray(Image.open(io.BytesIO(draw_loss(history))).convert("RGB"), int)
        return int((rgb[..., 0] - rgb[..., 2] > 60).sum())

    assert orange(HISTORY[:2]) == 0
    assert orange(HISTORY) > 50

"""The plot of the loss."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from run_history import HISTORY

from fastrnn.report import draw_loss


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

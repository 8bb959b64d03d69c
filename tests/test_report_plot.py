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


REWARDED = [
    *HISTORY,
    {"step": 25, "epoch": 2.5, "loss": None, "reward": 0.4, "learning_rate": 1e-4},
    {"step": 30, "epoch": 3.0, "loss": None, "reward": 0.5, "learning_rate": 1e-4},
    {"step": 30, "epoch": 3, "loss": None, "reward": 0.45, "learning_rate": 1e-4, "val_loss": 2.9,
     "val_perplexity": 18.0, "val_bleu_4": 0.16, "val_cider": 0.4, "captions_per_second": 900.0},
]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch):
    """Draw a history; return the axes of the plots, whose image was written."""
    figures: list = []
    from matplotlib.figure import Figure

    save = Figure.savefig

    def keep(figure: Figure, *arguments: object, **options: object) -> None:
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(history: list[dict]) -> list:
        draw_loss(history)
        return figures[-1].axes

    return draw


def falling(first: float, last: float, epochs: int = 4) -> list[dict]:
    """A history whose loss falls fast at first, as that of nearly every training."""
    progress = np.linspace(0.05, epochs, 20 * epochs)
    losses = last + (first - last) * np.exp(-4 * progress) + 0.3 * last * np.exp(-0.5 * progress)
    points = zip(progress.tolist(), losses.tolist(), strict=True)
    return [{"step": i, "epoch": p, "loss": loss} for i, (p, loss) in enumerate(points)]


@pytest.mark.parametrize(("first", "last"), [(9.0, 2.4), (2.1, 0.45), (3.2, 3.0), (0.3, 0.002)])
def test_the_plot_is_filled_by_the_loss(drawn, first, last):
    (axes,) = drawn(falling(first, last))
    low, high = axes.get_ylim()
    to_axes = axes.transData + axes.transAxes.inverted()
    points = to_axes.transform(axes.lines[0].get_xydata())
    # The line uses the height of the plot, and nothing touches the frame.
    assert points[:, 1].min() < 0.12
    assert points[:, 1].max() > 0.88
    assert (points > 0.005).all() and (points < 0.995).all()
    # The last three quarters of the training are not squeezed into a corner.
    later = points[len(points) // 4 :, 1]
    assert np.ptp(later) > 0.04
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert 3 <= len(ticks) <= 15


def test_the_plot_has_a_title_with_the_best_loss(drawn):
    (axes,) = drawn(HISTORY)
    assert axes.get_title("left") == ("Loss in nats per word: validation 2.200 at best, in epoch 1")
    (axes,) = drawn(falling(9.0, 2.4))
    assert axes.get_title("left") == "Loss in nats per word (logarithmic axis)"


def test_where_rewards_begin_is_said_and_what_they_maximise_is_drawn(drawn):
    loss, cider = drawn(REWARDED)
    assert [line.get_label() for line in cider.lines[:2]] == [
        "training (drawn captions)", "validation (greedy)",
    ]  # fmt: skip
    assert cider.lines[0].get_xydata().tolist() == [[2.5, 40.0], [3.0, 50.0]]
    assert cider.lines[1].get_xydata()[:, 1].tolist() == [25.0, 37.5, 40.0]
    assert [text.get_text() for text in loss.texts] == [
        "reward epochs: CIDEr is trained, not the loss →"
    ]
    assert loss.texts[0].xy[0] == 2.0
    assert loss.lines[0].get_xydata()[-1].tolist() == [2.0, 1.25]
    assert Image.open(io.BytesIO(draw_loss(REWARDED))).size == (1200, 900)
    # A run whose resumed part has only rewards.
    assert Image.open(io.BytesIO(draw_loss(REWARDED[6:]))).size == (1200, 900)

"""Validation: the best epoch, patience, and the metric that decides."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

import numpy as np
import pytest
from coco_layout import write_layout

from fastrnn.checkpoint import checkpoint_path, checkpoint_steps
from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.evaluation import caption_images
from fastrnn.metrics import CaptionScorer
from fastrnn.runs import epoch_records
from fastrnn.training import TrainConfig, Trainer, start_model


@pytest.fixture
def data(tmp_path: Path) -> dict:
    write_layout(tmp_path)
    return read_captioning_directory(tmp_path)


def scored(monkeypatch: pytest.MonkeyPatch, scores: list[dict]) -> None:
    """Give these scores to the validations, one after the other."""
    following = iter(scores)

    def evaluate(self: CaptionScorer, captions: list[str], **_: bool) -> dict:
        return {"bleu_4": 0.1, **next(following)}

    monkeypatch.setattr(CaptionScorer, "evaluate", evaluate)


def test_patience(data, monkeypatch, tmp_path):
    values = [0.1, 0.3, 0.2, 0.25, 0.31, 0.2, 0.3, 0.1, 0.5]
    scored(monkeypatch, [{"cider": value} for value in values])
    config = TrainConfig(epochs=9, batch_size=18, patience=3, keep_last=1)
    trainer = Trainer(start_model(data, "rnn", 4, 5), data, config, run=tmp_path / "r")
    history = trainer.fit()
    assert trainer.finished
    assert [r["val_cider"] for r in epoch_records(history)] == values[:8]
    assert {k: trainer.best[k] for k in ("monitor", "value", "epoch", "step")} == {
        "monitor": "cider", "value": 0.31, "epoch": 5, "step": 10,
    }  # fmt: skip
    # The best is kept beside the newest, and is the run's model.
    assert checkpoint_steps(tmp_path / "r") == [10, 16]
    best = CaptioningRNN.load(checkpoint_path(tmp_path / "r", 10))
    kept = CaptioningRNN.load(tmp_path / "r")
    for name, w in best.params.items():
        np.testing.assert_array_equal(kept.params[name], w)
    assert not np.array_equal(kept.params["W_vocab"], trainer.model.params["W_vocab"])


def test_patience_goes_on_where_it_was(data, monkeypatch, tmp_path):
    scored(monkeypatch, [{"cider": value} for value in [0.4, 0.3, 0.2, 0.1, 0.5]])
    config = TrainConfig(epochs=9, batch_size=18, patience=3, keep_last=1)

    def stop(trainer: Trainer, record: dict) -> None:
        if record["epoch"] == 3:
            trainer.stop()

    model = start_model(data, "rnn", 4, 5)
    Trainer(model, data, config, run=tmp_path / "r", on_epoch=stop).fit()
    trainer = Trainer.resume(tmp_path / "r", data)
    trainer.fit()
    assert trainer.step == 8
    assert trainer.best["epoch"] == 1
    assert checkpoint_steps(tmp_path / "r") == [2, 8]


@pytest.mark.parametrize(("monitor", "best"), [("cider", 1), ("bleu_4", 3), ("loss", 4)])
def test_monitors(data, monkeypatch, monitor, best):
    scored(
        monkeypatch,
        [{"cider": c, "bleu_4": b} for c, b in [(0.4, 0.1), (0.3, 0.2), (0.2, 0.3), (0.1, 0.2)]],
    )
    config = TrainConfig(epochs=4, batch_size=18, monitor=monitor, learning_rate=1e-3)
    trainer = Trainer(start_model(data, "rnn", 4, 5), data, config)
    losses = [r["val_loss"] for r in epoch_records(trainer.fit())]
    if monitor == "loss":
        best = 1 + int(np.argmin(losses))
    assert trainer.best["epoch"] == best


def test_each_epoch_of_rewards_is_a_gain_where_the_loss_decides(data):
    config = TrainConfig(epochs=3, monitor="loss", reward_epochs=2, reward_rate=0.1, patience=1)
    trainer = Trainer(start_model(data, "lstm", 8, 8), data, config)
    history = epoch_records(trainer.fit())
    assert history[-1]["val_loss"] > history[2]["val_loss"]
    assert trainer.best["epoch"] == 5


def test_loss_takes_the_place_of_a_metric_that_is_missing(data, monkeypatch):
    scored(monkeypatch, [{"cider": None}] * 3)
    trainer = Trainer(start_model(data, "rnn", 4, 5), data, TrainConfig(epochs=3))
    with pytest.warns(UserWarning, match="monitor is 'cider', which cannot be computed") as said:
        line = inspect.currentframe().f_lineno + 1
        trainer.fit()
    assert [(each.filename, each.lineno) for each in said] == [(__file__, line)]
    assert trainer.best["monitor"] == "loss"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # who wants no captions wants no warning about them
        trainer = Trainer(start_model(data, "rnn", 4, 5), data, TrainConfig(val_images=0))
        trainer.fit()
    assert trainer.best["monitor"] == "loss"


def test_own_references(data):
    data["val_references"] = [["a cat on the mat"]] * 4 + [[]]
    seen: list[tuple[dict, list[str]]] = []
    trainer = Trainer(
        start_model(data, "rnn", 4, 5), data, TrainConfig(epochs=1),
        on_validation=lambda _, metrics, captions: seen.append((metrics, captions)),
    )  # fmt: skip
    trainer.fit()
    ((metrics, captions),) = seen
    assert captions == caption_images(trainer.model, data["val_features"][:4], 8)
    assert (
        metrics["bleu_4"] == CaptionScorer(data["val_references"][:4]).evaluate(captions)["bleu_4"]
    )

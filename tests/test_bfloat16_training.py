"""Models and training with ``precision="bfloat16"``: files, trainer, solver and commands."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
from commands import refused, run
from training_helpers import untimed

from fastrnn.captioning_solver import CaptioningSolver
from fastrnn.checkpoint import checkpoint_path, load_model, read_checkpoint
from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.files import read_sealed, write_sealed
from fastrnn.forcing import forced_states
from fastrnn.runs import read_settings
from fastrnn.training import TrainConfig, Trainer, start_model

SMALL = ["--hidden-dim", "8", "--wordvec-dim", "4", "--epochs", "2", "--batch-size", "10"]
CONFIG = TrainConfig(
    epochs=4, batch_size=7, learning_rate=0.02, precision="bfloat16", vocab_dropout=0.2,
    scheduled_sampling=0.2, weight_average=0.9, reward_epochs=1, keep_last=9,
)  # fmt: skip


@pytest.fixture
def data(data_dir: Path) -> dict:
    return read_captioning_directory(data_dir)


def small_model(data: dict, dtype=np.float32) -> CaptioningRNN:
    return start_model(data, "lstm", 6, 9, seed=1, dtype=dtype)


# ---- Files ---------------------------------------------------------------------------------------


def test_model_file_keeps_the_precision(data: dict, tmp_path: Path) -> None:
    model, path = small_model(data), tmp_path / "model.npz"
    model.save(path)
    assert "precision" not in read_sealed(path)  # older versions wrote the same file
    assert CaptioningRNN.load(path).precision == "float32"
    model.precision = "bfloat16"
    model.save(path)
    again = CaptioningRNN.load(path)
    assert again.precision == "bfloat16"
    features = data["val_features"]
    np.testing.assert_array_equal(again.sample(features, 5), model.sample(features, 5))
    assert copy.deepcopy(again).precision == "bfloat16"
    assert pickle.loads(pickle.dumps(again)).precision == "bfloat16"


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [("f4", "float16"), ("f4", ""), ("f8", "bfloat16"), ("f4", np.zeros(3)), ("f4", 7)],
)
def test_file_with_another_precision_is_refused(data, tmp_path, dtype, precision) -> None:
    arrays = {**small_model(data, dtype).to_arrays(), "precision": np.array(precision)}
    path = tmp_path / "model.npz"
    write_sealed(path, arrays)
    with pytest.raises(ValueError, match=r"model\.npz: is not a model of fastrnn .*precision"):
        CaptioningRNN.load(path)


def test_model_with_an_unknown_precision_is_not_saved(data: dict, tmp_path: Path) -> None:
    model = small_model(data)
    model.precision = "half"
    with pytest.raises(ValueError, match="precision is 'half'"):
        model.save(tmp_path / "model.npz")
    assert not (tmp_path / "model.npz").exists()


# ---- Training ------------------------------------------------------------------------------------


def test_trainer_trains_in_bfloat16(data: dict, tmp_path: Path) -> None:
    trainer = Trainer(small_model(data), data, CONFIG, run=tmp_path / "run")
    trainer.fit()
    losses = [record["loss"] for record in trainer.history if "val_loss" in record]
    assert losses[3] < losses[0]
    assert trainer.model.precision == load_model(tmp_path / "run").precision == "bfloat16"
    assert all(w.dtype == np.float32 for w in trainer.model.params.values())
    single = TrainConfig(**{**vars(CONFIG), "precision": "float32"})
    other = Trainer(small_model(data), data, single)
    other.fit()
    assert other.model.precision == "float32"
    first, second = trainer.history[0]["loss"], other.history[0]["loss"]
    assert first != second and first == pytest.approx(second, rel=0.01)


def test_resumed_run_ends_with_the_same_bits(data: dict, tmp_path: Path) -> None:
    whole = Trainer(small_model(data), data, CONFIG, run=tmp_path / "whole")
    whole.fit()
    stopped = Trainer(
        small_model(data), data, CONFIG, run=tmp_path / "run",
        on_step=lambda trainer, _: trainer.step == 9 and trainer.stop(),
    )  # fmt: skip
    stopped.fit()
    assert read_checkpoint(checkpoint_path(tmp_path / "run", 9)).model.precision == "bfloat16"
    resumed = Trainer.resume(tmp_path / "run", data)
    assert resumed.config.precision == resumed.model.precision == "bfloat16"
    resumed.fit()
    assert untimed(resumed.history) == untimed(whole.history)
    for name, w in whole.model.params.items():
        np.testing.assert_array_equal(resumed.model.params[name], w)


def test_model_of_float64_is_refused(data: dict) -> None:
    with pytest.raises(TypeError, match="precision is 'bfloat16', but the dtype is float64"):
        Trainer(small_model(data, np.float64), data, CONFIG)
    with pytest.raises(ValueError, match="precision is 'half'"):
        TrainConfig(precision="half")


def test_solver_follows_the_model(data: dict) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        model = small_model(data)
        model.precision = precision
        np.random.seed(3)
        solver = CaptioningSolver(
            model, data, update_rule="adam", num_epochs=2, batch_size=5, verbose=False
        )
        solver.train()
        losses.append(solver.loss_history)
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.02)


# ---- Commands ------------------------------------------------------------------------------------


def test_alternatives_and_gradients_are_computed_in_float32(data: dict) -> None:
    """The documentation says so, of `Captioner.alternatives` and of `fastrnn.explain`."""
    model = start_model(data, "lstm", 32, 64)
    features, ids = data["val_features"][:2], [4, 5, 6]
    found = {}
    for precision in ("float32", "bfloat16"):
        model.precision = precision
        h, backward = forced_states(model, features, ids)
        found[precision] = h, backward(h)
    for one, other in zip(*found.values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_commands(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    options = ["--data", data_dir, "--out", out, "--precision", "bfloat16", "--no-report"]
    options += ["--schedule", "constant"]
    assert run("train", *options, *SMALL) == 0
    assert read_settings(out)["precision"] == "bfloat16"
    assert load_model(out).precision == "bfloat16"
    assert run("evaluate", out, "--data", data_dir) == 0
    assert run("train", "--resume", out, "--epochs", "3") == 0
    assert load_model(out).precision == "bfloat16"
    said = refused(capsys, "train", "--resume", out, "--precision", "float32")
    assert "--precision" in said
    said = refused(capsys, "train", "--data", data_dir, "--out", tmp_path / "x", "--precision", "8")
    assert "--precision" in said and "bfloat16" in said

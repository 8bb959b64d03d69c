"""The run directory: what training writes there, and how it is resumed."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
from pathlib import Path

import numpy as np
import pytest
from coco_layout import write_layout
from training_helpers import untimed

import fastrnn.training.saving
from fastrnn.checkpoint import checkpoint_path, checkpoint_steps, read_checkpoint
from fastrnn.checks import ArgumentError
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.runs import epoch_records, read_history
from fastrnn.training import (
    TrainConfig,
    Trainer,
    read_run,
    start_model,
)


@pytest.fixture
def data(tmp_path: Path) -> dict:
    write_layout(tmp_path)
    return read_captioning_directory(tmp_path)


def test_run_directory_from_code(data, tmp_path):
    """Five lines of code: the files that they write, and resuming from them."""
    model = start_model(data, "lstm", 4, 5)
    config = TrainConfig(epochs=2, batch_size=10, save_every=3, weight_average=0.9)
    data = dict(data)  # which do not know where they were read from
    Trainer(model, data, config, run=tmp_path / "r").fit()
    assert {p.name for p in (tmp_path / "r").iterdir()} == {
        "settings.json", "history.jsonl", "metrics.json", "model.npz", "checkpoints",
    }  # fmt: skip
    run = read_run(tmp_path / "r")
    assert run.config == config
    assert run.data_directory is None
    assert (run.settings["cell"], run.settings["hidden_dim"]) == ("lstm", 5)
    with pytest.raises(ValueError, match="has no data directory in its settings"):
        Trainer.resume(tmp_path / "r")
    with pytest.raises(ValueError, match=r"has checkpoints; .* Trainer\.resume"):
        Trainer(model, data, config, run=tmp_path / "r")

    trainer = Trainer.resume(tmp_path / "r", data, epochs=4)
    assert trainer.step == 8
    trainer.fit()
    whole = Trainer(
        start_model(data, "lstm", 4, 5), data,
        TrainConfig(epochs=4, batch_size=10, weight_average=0.9),
    )  # fmt: skip
    whole.fit()
    for name, w in whole.model.params.items():
        np.testing.assert_array_equal(trainer.model.params[name], w)
    assert untimed(trainer.history) == untimed(whole.history)
    lines = (tmp_path / "r" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == 4 * ["steps", "epoch"]
    assert read_history(tmp_path / "r") == trainer.history
    assert read_run(tmp_path / "r").config.epochs == 4


def test_a_checkpoint_that_cannot_be_written_stops_the_training(data, tmp_path, monkeypatch):
    write, model = fastrnn.training.saving.write_sealed, start_model(data, "lstm", 4, 5)

    def until_full(path, arrays):
        if path.name == checkpoint_path(path.parent.parent, 6).name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, arrays)

    monkeypatch.setattr("fastrnn.training.saving.write_sealed", until_full)
    config = TrainConfig(epochs=50, batch_size=12, val_captions=0, val_images=0)
    trainer = Trainer(model, data, config, run=tmp_path / "run")
    with pytest.raises(OSError, match="No space left"):
        trainer.fit()
    assert 6 <= trainer.step < 150
    assert checkpoint_steps(tmp_path / "run") == [0, 3]
    monkeypatch.undo()
    resumed = Trainer.resume(tmp_path / "run", data, epochs=2)
    assert resumed.step == 3
    resumed.fit()
    assert resumed.step == 6


def test_stop_and_go_on(data, tmp_path):
    trainer = Trainer(
        start_model(data, "lstm", 4, 5), data, TrainConfig(epochs=2, batch_size=10),
        run=tmp_path / "r", on_step=lambda t, record: t.step == 5 and t.stop(),
    )  # fmt: skip
    trainer.fit()
    assert (trainer.step, trainer.finished) == (5, False)
    assert checkpoint_steps(tmp_path / "r")[-1] == 5
    trainer.fit()
    assert trainer.finished


def test_a_cosine_that_falls_does_not_rise_unless_it_is_told_to(data, tmp_path):
    config = TrainConfig(epochs=2, batch_size=10, schedule="cosine", val_captions=0, val_images=0)
    trainer = Trainer(
        start_model(data, "rnn", 4, 5), data, config, run=tmp_path / "r",
        on_step=lambda t, record: t.step == 6 and t.stop(),
    )  # fmt: skip
    trainer.fit()
    kept = (tmp_path / "r" / "settings.json").read_bytes()
    refused = r"^epochs is 4, was 2: the learning rate, .* jump up; restart_schedule=True"
    with pytest.raises(ArgumentError, match=refused):  # in the middle
        Trainer.resume(tmp_path / "r", data, epochs=4)
    Trainer.resume(tmp_path / "r", data).fit()
    with pytest.raises(ArgumentError, match=refused):  # at its end
        Trainer.resume(tmp_path / "r", data, epochs=4)
    with pytest.raises(
        ArgumentError, match=r"^restart_schedule needs more epochs: the run has done 2 of 2$"
    ):
        Trainer.resume(tmp_path / "r", data, restart_schedule=True)
    assert (tmp_path / "r" / "settings.json").read_bytes() == kept

    rates: list[float] = []
    trainer = Trainer.resume(
        tmp_path / "r", data, epochs=5, restart_schedule=True,
        on_step=lambda t, record: rates.append(record["learning_rate"]) or (
            t.step == 13 and t.stop()
        ),
    )  # fmt: skip
    trainer.fit()
    # It goes on as it was told, without being told again.
    trainer = Trainer.resume(tmp_path / "r", data)
    trainer.on_step = lambda _, record: rates.append(record["learning_rate"])
    trainer.fit()
    assert read_run(tmp_path / "r").config.restart_epoch == 2
    assert rates == pytest.approx([0.001 * (1 + math.cos(math.pi * i / 12)) / 2 for i in range(12)])


def test_a_restart_holds_even_if_nothing_was_saved_after_it(data, tmp_path):
    config = TrainConfig(epochs=1, batch_size=10, schedule="cosine", val_captions=0, val_images=0)
    Trainer(start_model(data, "rnn", 4, 5), data, config, run=tmp_path / "r").fit()

    def fail(*_: object) -> None:
        raise OSError("the power fails")

    trainer = Trainer.resume(tmp_path / "r", data, epochs=3, restart_schedule=True, on_step=fail)
    with pytest.raises(OSError, match="the power fails"):
        trainer.fit()
    assert checkpoint_steps(tmp_path / "r")[-1] == 4
    rates: list[float] = []
    trainer = Trainer.resume(tmp_path / "r", data)
    trainer.on_step = lambda _, record: rates.append(record["learning_rate"])
    trainer.fit()
    assert rates == pytest.approx([0.001 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)])


def test_what_has_nothing_to_restart(data, tmp_path):
    config = TrainConfig(epochs=1, batch_size=10, val_captions=0, val_images=0)
    Trainer(start_model(data, "rnn", 4, 5), data, config, run=tmp_path / "r").fit()
    with pytest.raises(ArgumentError, match=r"^restart_schedule is True; expected False, because"):
        Trainer.resume(tmp_path / "r", data, epochs=2, restart_schedule=True)


def test_fewer_epochs_let_a_cosine_fall_faster(data, tmp_path):
    config = TrainConfig(epochs=9, batch_size=10, schedule="cosine", val_captions=0, val_images=0)
    trainer = Trainer(
        start_model(data, "rnn", 4, 5), data, config, run=tmp_path / "r",
        on_step=lambda t, record: t.step == 4 and t.stop(),
    )  # fmt: skip
    trainer.fit()
    with pytest.warns(UserWarning, match="epochs is 2, was 9: the learning rate continues as in"):
        trainer = Trainer.resume(tmp_path / "r", data, epochs=2)
    rates: list[float] = []
    trainer.on_step = lambda _, record: rates.append(record["learning_rate"])
    trainer.fit()
    assert rates == pytest.approx(
        [0.001 * (1 + math.cos(math.pi * (4 + i) / 8)) / 2 for i in range(4)]
    )


def test_epochs_of_rewards_are_added_and_others_stay(data, tmp_path):
    config = TrainConfig(epochs=1, batch_size=12, reward_epochs=1, val_captions=0, val_images=0)
    model = start_model(data, "lstm", 4, 5)
    Trainer(model, data, config, run=tmp_path / "run").fit()
    with pytest.raises(
        ValueError, match=r"^epochs is 2; expected 1, because the run is in its reward epochs"
    ):
        Trainer.resume(tmp_path / "run", data, epochs=2)
    with pytest.raises(ValueError, match=r"^epochs is 1; the run has done 2"):
        Trainer.resume(tmp_path / "run", data, reward_epochs=0)
    with pytest.raises(ArgumentError, match=r"^reward_epochs is 2, was 1: the learning rate"):
        Trainer.resume(tmp_path / "run", data, reward_epochs=2)
    trainer = Trainer.resume(tmp_path / "run", data, reward_epochs=2, restart_schedule=True)
    rates: list[float] = []
    trainer.on_step = lambda _, record: rates.append(record["learning_rate"])
    assert [r["epoch"] for r in epoch_records(trainer.fit())] == [1, 2, 3]
    assert rates == pytest.approx([2e-4 * (1 + math.cos(math.pi * i / 3)) / 2 for i in range(3)])


def test_only_the_same_run_is_resumed(data, tmp_path):
    run = tmp_path / "r"
    config = TrainConfig(epochs=2, batch_size=10)
    Trainer(start_model(data, "lstm", 4, 5), data, config, run=run).fit()
    with pytest.raises(ValueError, match=r"learning_rate cannot change .* 0\.001"):
        Trainer.resume(run, data, learning_rate=0.1)
    with pytest.raises(ValueError, match="epochs is 1; the run has done 2"):
        Trainer.resume(run, data, epochs=1)
    other = {**data, "train_captions": data["train_captions"][::-1]}
    with pytest.raises(
        ValueError, match=r"train_captions is not what the run .* was started with$"
    ):
        Trainer.resume(run, other)
    with pytest.raises(ValueError, match="features has shape"):
        Trainer.resume(run, {**data, "train_features": data["train_features"][:, :5]})
    settings = json.loads((run / "settings.json").read_text())
    settings["training"]["batch_size"] = 9
    (run / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"batch_size is 9 in settings\.json, but 10"):
        Trainer.resume(run, data)


def test_no_run(data, tmp_path):
    with pytest.raises(FileNotFoundError):
        read_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"not a run directory; it has no settings\.json"):
        read_run(tmp_path)
    for text, wanted in (
        ("{", "not a JSON file"),
        ("[]", "not a run directory"),
        ('{"editor": "vi"}', "not a run directory"),
        ('{"fastrnn": "0.1", "epochs": 0}', "epochs is 0"),
    ):
        (tmp_path / "settings.json").write_text(text)
        with pytest.raises(ValueError, match=wanted):
            Trainer.resume(tmp_path, data)
    (tmp_path / "settings.json").write_text('{"fastrnn": "0.1"}')
    with pytest.raises(ValueError, match="has no checkpoint"):
        Trainer.resume(tmp_path, data)


def test_falls_back_to_the_previous_checkpoint(data, tmp_path):
    run = tmp_path / "r"
    config = TrainConfig(epochs=3, batch_size=10, keep_last=3)
    whole = Trainer(start_model(data, "lstm", 4, 5), data, config, run=run)
    whole.fit()
    newest = checkpoint_path(run, 12)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    previous = checkpoint_path(run, 8)
    with pytest.warns(UserWarning, match=rf"{newest.name}.*resuming from step 8"):
        trainer = Trainer.resume(run, data)
    assert trainer.step == 8
    trainer.fit()
    for name, w in whole.model.params.items():
        np.testing.assert_array_equal(trainer.model.params[name], w)
    read_checkpoint(newest)
    for path in (newest, previous, checkpoint_path(run, 4)):
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="has no undamaged checkpoint"):
        Trainer.resume(run, data)


def test_a_run_with_flat_settings_is_resumed(data, tmp_path):
    """Those of versions before settings had sections."""
    config = TrainConfig(epochs=2, batch_size=10)
    made = Trainer(start_model(data, "lstm", 4, 5), data, config, run=tmp_path, settings={"a": 1})
    made.fit()
    flat = {
        "fastrnn": "0.1.0", "data": None, "a": 1, "cell": "lstm", "hidden_dim": 5,
        "wordvec_dim": 4, **dataclasses.asdict(config), "threads": 1, "isa": "avx2",
    }  # fmt: skip
    (tmp_path / "settings.json").write_text(json.dumps(flat))
    run = read_run(tmp_path)
    assert (run.config, run.settings) == (config, flat)
    trainer = Trainer.resume(tmp_path, data, epochs=3)
    trainer.fit()
    assert trainer.step == 12
    found = json.loads((tmp_path / "settings.json").read_text())
    assert (found["format"], found["training"]["epochs"], found["other"]) == (2, 3, {"a": 1})
    assert found["model"] == {"cell": "lstm", "hidden_dim": 5, "wordvec_dim": 4}

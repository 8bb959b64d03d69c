"""What a person sees during training: the plan, lines, and a bar."""

from __future__ import annotations

import copy
import io
import os
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import run
from training_helpers import recorder, untimed

from fastrnn.coco_utils import load_coco_data
from fastrnn.training import Interrupted, TrainConfig, Trainer, progress, start_model
from fastrnn.training import trainer as trainer_module
from fastrnn.training.progress import (
    CAPTIONS,
    REWARDS,
    VALIDATION,
    Pace,
    Progress,
    describe_plan,
    is_watched,
)

pytestmark = pytest.mark.usefixtures("elsewhere")
SMALL = ["--hidden-dim", "8", "--wordvec-dim", "4", "--epochs", "2", "--batch-size", "10"]


def test_plain_lines_where_there_is_no_terminal(data_dir: Path, capsys):
    assert run("train", "--data", data_dir, "--out", "r", *SMALL) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "\r" not in said.out
    lines = [line for line in said.out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    for line in lines:
        assert re.fullmatch(
            r"epoch \d/2  loss [\d.]+  validation [\d.]+  perplexity [\d.]+"
            r"(  BLEU-4 [\d.]+)?(  CIDEr [\d.]+)?  [\d,]+ captions/s  0:\d\d left",
            line,
        )


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "a few seconds"), (9.9, "a few seconds"), (10, "about 0:10")]
)
def test_a_short_time_is_no_number(seconds, said, capsys):
    progress.show_time(seconds)
    assert capsys.readouterr().out == f"time     {said}, estimated from a few trial steps\n"


def trainer_of(epochs: int, reward_epochs: int, step: int = 0) -> SimpleNamespace:
    config = TrainConfig(epochs=epochs, reward_epochs=reward_epochs)
    return SimpleNamespace(
        data={"train_captions": [0] * 600}, config=config, step=step, steps_per_epoch=6
    )


def test_what_is_left_of_a_training(monkeypatch, capsys):
    """A run that is resumed after one of two epochs; earlier work does not count for the speed."""
    clock = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[-1])
    trainer = trainer_of(2, 0, step=6)
    shown = Progress(trainer, Pace())
    for now, seen in ((120.0, 700), (140.0, 800), (150.0, 900)):
        clock.append(now)
        trainer.step += 1
        shown.on_step(trainer, {"captions": seen, "loss": 2.0, "epoch": seen / 600})
    # A line every half a minute: 200 captions took 40 seconds, and 400 are left.
    assert capsys.readouterr().out == "epoch 1.33/2  loss 2.000  5 captions/s  1:20 left\n"


def test_the_time_left_counts_rewards_and_validation_by_their_own_pace():
    config, pace = TrainConfig(epochs=2, reward_epochs=3), Pace()
    assert pace.left(config, 10, 0) == 0
    for what, seconds in ((CAPTIONS, 1.0), (REWARDS, 5.0), (VALIDATION, 20.0)):
        pace.add(what, seconds)
    assert pace.left(config, 10, 0) == 20 * 1 + 30 * 5 + 5 * 20
    assert pace.left(config, 10, 15) == 5 * 1 + 30 * 5 + 4 * 20
    assert pace.left(config, 10, 20) == 30 * 5 + 3 * 20
    assert pace.left(config, 10, 49) == 1 * 5 + 1 * 20
    assert pace.left(config, 10, 50) == 0
    pace.add(CAPTIONS, -60.0)  # the clock jumped
    assert pace.left(config, 10, 10) == 10 * 0.5 + 30 * 5 + 4 * 20
    # It follows the machine.
    for _ in range(2000):
        pace.add(REWARDS, 2.0)
    assert pace.left(config, 10, 49) == pytest.approx(2 + 20, rel=0.01)


@pytest.mark.parametrize(
    ("fields", "step", "text"),
    [
        ({"epochs": 12}, 0, "12 epochs: 12 x 300 = 3,600 steps"),
        (
            {"epochs": 1, "reward_epochs": 3}, 0,
            "1 epoch on captions, then 3 with rewards: 4 x 300 = 1,200 steps",
        ),
        ({"epochs": 2}, 301, "2 epochs: 2 x 300 = 600 steps, 301 of them done"),
        (
            {"epochs": 9, "patience": 1}, 0,
            "9 epochs: 9 x 300 = 2,700 steps; it stops after 1 epoch without improvement",
        ),
    ],
)  # fmt: skip
def test_the_plan_in_words(fields, step, text):
    assert describe_plan(TrainConfig(**fields), 300, step) == text


def test_the_plan_comes_before_the_first_step(data_dir: Path, capsys):
    options = ["--recipe", "coco", "--epochs", 1, *SMALL[:4], "--batch-size", 10]
    assert run("train", "--data", data_dir, "--out", "r", "--no-report", *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "recipe   coco, with --hidden-dim 8 instead of 512, --wordvec-dim 4 instead of 256, "
        "--epochs 1 instead of 10, --batch-size 10 instead of 100"
    )
    assert [line.split()[0] for line in lines[1:5]] == ["data", "words", "model", "runs"]
    assert lines[1].startswith("data     data: 36 captions of 12 images, 7 features")
    assert lines[5] == ("plan     1 epoch on captions, then 3 with rewards: 4 x 4 = 16 steps")
    assert lines[6] == "time     a few seconds, estimated from a few trial steps"
    assert lines[7].startswith("epoch 1/4  loss")
    assert lines[8].startswith("epoch 2/4  reward")


def test_steps_on_trial_change_nothing(data_dir: Path, capsys):
    data = load_coco_data(data_dir)
    config = TrainConfig(
        epochs=2, batch_size=10, reward_epochs=1, embed_dropout=0.2, feature_noise=0.1,
        weight_average=0.9, scheduled_sampling=0.2, consensus=1.0, bucket_by_length=True,
    )  # fmt: skip
    trainers = [Trainer(start_model(data, "lstm", 4, 5), data, config) for _ in range(2)]
    histories = [
        untimed(trainer.fit(verbose=verbose))
        for trainer, verbose in zip(trainers, (True, False), strict=True)
    ]
    assert histories[0] == histories[1]
    for name, w in trainers[0].model.params.items():
        np.testing.assert_array_equal(trainers[1].model.params[name], w)


def test_fit_says_what_the_command_line_says(data_dir: Path, monkeypatch, capsys):
    data = load_coco_data(data_dir)
    capsys.readouterr()
    config = TrainConfig(epochs=2, batch_size=10)

    def fit(verbose: bool | None) -> list[str]:
        Trainer(start_model(data, "lstm", 4, 8), data, config).fit(verbose)
        said = capsys.readouterr()
        assert said.err == ""
        return said.out.splitlines()

    lines = fit(True)
    options = ["--epochs", 2, "--batch-size", 10, "--schedule", "constant", "--feature-noise", 0]
    arguments = [*SMALL[:4], *options, "--clip-norm", 0, "--no-report"]
    assert run("train", "--data", data_dir, "--out", "r", *arguments) == 0
    command = capsys.readouterr().out.splitlines()

    def without_times(lines: list[str]) -> list[str]:
        return [re.sub(r"[\d,.:]+ (captions/s|left)|about [\d:]+", "", line) for line in lines]

    assert without_times(command)[: len(lines)] == without_times(lines)
    assert len(lines) == 8
    # Nobody watches the output of a test; a person does in a terminal or in a notebook.
    assert fit(False) == fit(None) == []
    monkeypatch.setattr(trainer_module, "is_watched", lambda: True)
    assert without_times(fit(None)) == without_times(lines)
    assert fit(False) == []


def test_who_reads_what_is_printed(monkeypatch):
    assert not is_watched()
    monkeypatch.setattr(sys, "stderr", Terminal())  # as when output goes to a file, or in a doctest
    assert not is_watched()
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert is_watched()


def test_a_copy_that_is_made_during_training_shows_nothing(data_dir: Path, capsys):
    data = load_coco_data(data_dir)
    copies: list[Trainer] = []
    trainer = Trainer(
        start_model(data, "lstm", 4, 5), data, TrainConfig(epochs=1, batch_size=10),
        on_step=lambda trainer, record: copies.append(copy.copy(trainer)),
    )  # fmt: skip
    trainer.fit(verbose=True)
    capsys.readouterr()
    copies[0].on_step = None
    copies[0].fit(verbose=False)
    assert capsys.readouterr().out == ""


def test_an_interrupt_during_the_trial_steps_stops_before_the_first(data_dir, tmp_path, capsys):
    data = load_coco_data(data_dir)
    model = recorder(data)
    loss, calls = model.loss, []

    def interrupted(*arguments: object, **options: object) -> object:
        if not calls:
            os.kill(os.getpid(), signal.SIGINT)
        calls.append(1)
        return loss(*arguments, **options)

    model.loss = interrupted
    config = TrainConfig(epochs=1, batch_size=10, reward_epochs=1)
    trainer = Trainer(model, data, config, run=tmp_path / "r")
    trainer._learner.network.loss = interrupted
    with pytest.raises(Interrupted, match=r"after step 0$"):
        trainer.fit(verbose=True)
    assert (trainer.step, len(calls)) == (0, 1)
    assert "time" not in [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    Trainer.resume(tmp_path / "r", data).fit()


def test_nothing_is_left_to_plan(data_dir: Path, capsys):
    data = load_coco_data(data_dir)
    config = TrainConfig(epochs=1, batch_size=10)
    trainer = Trainer(start_model(data, "lstm", 4, 5), data, config)
    trainer.fit()
    capsys.readouterr()
    trainer.fit(verbose=True)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "plan     1 epoch: 1 x 4 = 4 steps, 4 of them done"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [30, 40, 60, 90, 140])
def test_the_bar_keeps_the_time_left_and_the_loss(width, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    trainer = trainer_of(2, 0)
    pace = Pace()
    pace.add(CAPTIONS, 7.0)
    shown = Progress(trainer, pace)
    shown._bar.dynamic_ncols = lambda file: (width, 24)
    shown.on_step(trainer, {"captions": 300, "loss": 2.0, "epoch": 0.5})
    line = str(shown._bar)
    shown.close()
    assert len(line) <= width
    assert re.search(r"25%.* \d:\d\d left, loss 2.000$", line)
    assert ("|" in line) == (width >= 38)
    assert ("captions/s" in line) == (width >= 58)
    assert ("gone" in line) == (width >= 84)


def test_lines_are_folded_in_a_narrow_terminal(data_dir: Path):
    """The whole command in a terminal of 40 columns."""
    pexpect = pytest.importorskip("pexpect")
    arguments = ["-m", "fastrnn", "train", "--data", "data", "--out", "r", *SMALL]
    environment = {**os.environ, "FASTRNN_NUM_THREADS": "1"}
    environment.pop("COLUMNS", None)
    said, status = pexpect.run(
        f"{sys.executable} {' '.join(arguments)}", cwd=str(data_dir.parent), env=environment,
        withexitstatus=True, timeout=60, dimensions=(24, 40),
    )  # fmt: skip
    assert status == 0, said
    text = re.sub(r"\x1b\[[A-Z]|\r\n", "\n", said.decode())
    drawn = [part for line in text.split("\n") for part in line.split("\r")]
    assert [line for line in drawn if len(line) > 40 and " " in line.strip()] == []
    assert any("left, loss" in line for line in drawn)
    lines = [line.split("\r")[-1] for line in text.split("\n")]
    assert "  says: " in "\n".join(lines)
    first = next(i for i, line in enumerate(lines) if line.startswith("epoch 1/2"))
    assert re.fullmatch(r"epoch 1/2  loss [\d.]+  validation [\d.]+", lines[first])
    assert lines[first + 1].startswith("  perplexity")


def test_a_notebook_has_a_bar_in_an_output_of_its_own(data_dir: Path, tmp_path: Path):
    nbclient, nbformat = map(pytest.importorskip, ("nbclient", "nbformat"))
    pytest.importorskip("ipykernel")
    code = """
from fastrnn.coco_utils import load_coco_data
from fastrnn.training import Interrupted, TrainConfig, Trainer, start_model
data = load_coco_data("data")
Trainer(start_model(data, "lstm", 4, 5), data, TrainConfig(epochs=3, batch_size=10)).fit();
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(
        notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = notebook.cells[0].outputs
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "\r" not in text
    assert [line.split()[1] for line in text.splitlines() if line.startswith("epoch")] == [
        "1/3", "2/3", "3/3",
    ]  # fmt: skip
    assert "plan     3 epochs: 3 x 4 = 12 steps" in text
    # What is saved with the notebook is the last state of the bar: nothing.
    assert [o.data["text/plain"] for o in outputs if o.output_type == "display_data"] == [""]


def test_bar_on_a_terminal(data_dir: Path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run("train", "--data", data_dir, "--out", "r", *SMALL) == 0
    bar = terminal.getvalue()
    assert "\r" in bar
    for wanted in ("captions/s", "left", "loss", "%"):
        assert wanted in bar

"""Progress output during training."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from coco_layout import write_layout
from commands import run

from fastrnn.cli import progress

SMALL = ["--hidden-dim", "8", "--wordvec-dim", "4", "--epochs", "2", "--batch-size", "10"]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    write_layout(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs land in the test's own directory, also those without --out."""
    monkeypatch.chdir(tmp_path)


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


def test_what_is_left_of_a_training(monkeypatch, capsys):
    """A run that is resumed after one of two epochs; earlier work does not count for the speed."""
    clock = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[-1])
    trainer = SimpleNamespace(
        data={"train_captions": [0] * 600}, config=SimpleNamespace(all_epochs=2), step=6,
        steps_per_epoch=6,
    )  # fmt: skip
    bar = progress.Progress(trainer)
    for now, seen in ((120.0, 700), (140.0, 800), (150.0, 900)):
        clock.append(now)
        bar.on_step(trainer, {"captions": seen, "loss": 2.0, "epoch": seen / 600})
    # A line every half a minute: 200 captions took 40 seconds, and 400 are left.
    assert capsys.readouterr().out == "epoch 1.33/2  loss 2.000  5 captions/s  1:20 left\n"


def test_bar_on_a_terminal(data_dir: Path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run("train", "--data", data_dir, "--out", "r", *SMALL) == 0
    bar = terminal.getvalue()
    assert "\r" in bar
    for wanted in ("captions/s", "left", "loss", "%"):
        assert wanted in bar

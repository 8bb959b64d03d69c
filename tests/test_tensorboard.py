"""The contents of the TensorBoard event files."""

from __future__ import annotations

import importlib
import math
import re
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from coco_layout import write_layout

pytest.importorskip("tensorboardX")
from tensorboardX.proto.event_pb2 import Event, SessionLog

from fastrnn import cli
from fastrnn.extras import install_command
from fastrnn.runs import is_epoch_record
from fastrnn.tensorboard import TensorBoardLogger

HISTORY = [
    {"step": 5, "epoch": 0.5, "loss": 3.0, "learning_rate": 0.5},
    {"step": 10, "epoch": 1.0, "loss": 2.0, "learning_rate": 0.25},
    {"step": 10, "epoch": 1, "loss": 2.5, "learning_rate": 0.25, "val_loss": 2.25,
     "val_perplexity": 9.5, "val_bleu_4": 0.125, "val_cider": None, "captions_per_second": 1000.0,
     "seconds": 2.0, "validation_seconds": 0.5},
]  # fmt: skip
CAPTIONS = ["a dog", "a <b>cat</b> *on* the_mat", "", "not written"]


def log(directory: Path, history: list[dict], **options: int) -> None:
    """Call the callbacks as a trainer does."""
    trainer = SimpleNamespace(history=[])
    with TensorBoardLogger(directory, captions=3, **options) as logger:
        for record in history:
            trainer.history.append(record)
            if is_epoch_record(record):
                logger.on_validation(trainer, record, CAPTIONS)
                logger.on_epoch(trainer, record)
            else:
                logger.on_step(trainer, {"step": record["step"], "loss": 99.0})


def events(directory: Path) -> Iterator[Event]:
    """Read all event files."""
    for file in sorted(directory.iterdir()):
        data, place = file.read_bytes(), 0
        while place < len(data):
            # A record is its length, a checksum of that, the event, a checksum of that.
            (length,) = struct.unpack_from("<Q", data, place)
            yield Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length


def says(event: Event) -> bool:
    return any(value.HasField("tensor") for value in event.summary.value)


def read(directory: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, str]]:
    """Return the scalars and the texts of all event files."""
    scalars, texts = defaultdict(list), {}
    for event in events(directory):
        for value in event.summary.value:
            if value.HasField("tensor"):
                texts[value.tag] = value.tensor.string_val[0].decode("utf-8")
            else:
                scalars[value.tag].append((event.step, value.simple_value))
    return dict(scalars), texts


WANTED = {
    "loss/training": [(5, 3.0), (10, 2.0)],
    "loss/validation": [(10, 2.25)],
    "training/learning_rate": [(5, 0.5), (10, 0.25)],
    "validation/perplexity": [(10, 9.5)],
    "validation/BLEU-4": [(10, 0.125)],
    "training/captions_per_second": [(10, 1000.0)],
    "training/seconds": [(10, 2.0)],
    "validation/seconds": [(10, 0.5)],
}


def test_history_and_captions(tmp_path: Path):
    log(tmp_path, HISTORY)
    scalars, texts = read(tmp_path)
    assert scalars == WANTED
    (text,) = texts.values()
    assert text.splitlines() == [
        "1. a dog", r"2. a \<b\>cat\</b\> \*on\* the\_mat", "3. (no words)",
    ]  # fmt: skip


def test_what_is_not_finite_or_was_not_said_is_left_out(tmp_path: Path):
    trainer = SimpleNamespace(history=[{**HISTORY[0], "loss": math.inf}])
    with TensorBoardLogger(tmp_path) as logger:
        logger.on_step(trainer, {})
        trainer.history += [HISTORY[1], {**HISTORY[2], "val_loss": math.nan}]
        logger.on_validation(trainer, {}, CAPTIONS)
        logger.on_epoch(trainer, trainer.history[-1])
        # No validation, no captions: those of the epoch before are not said again.
        trainer.history.append({**HISTORY[2], "step": 20})
        logger.on_epoch(trainer, trainer.history[-1])
    scalars, _ = read(tmp_path)
    assert scalars["loss/training"] == [(10, 2.0)]
    assert scalars["loss/validation"] == [(20, 2.25)]
    assert [event.step for event in events(tmp_path) if says(event)] == [10]


def test_resumed_training_writes_what_is_new(tmp_path: Path):
    log(tmp_path, HISTORY[:1])
    log(tmp_path, HISTORY, first_step=5)
    scalars, _ = read(tmp_path)
    assert scalars == WANTED
    # TensorBoard hides what an earlier file has from the step on at which a later one starts.
    starts = [e.step for e in events(tmp_path) if e.session_log.status == SessionLog.START]
    assert starts == [6]


def test_command(tmp_path: Path, capsys):
    write_layout(tmp_path / "data")
    out = tmp_path / "run"
    small = ["--hidden-dim", "8", "--wordvec-dim", "4", "--batch-size", "10", "--no-report"]

    def train(*arguments: object) -> tuple[dict[str, list[tuple[int, float]]], dict[str, str]]:
        assert cli.main(["train", "--tensorboard", *map(str, arguments)]) == 0
        return read(out / "tensorboard")

    scalars, texts = train("--data", tmp_path / "data", "--out", out, "--epochs", 1, *small)
    assert [step for step, _ in scalars["loss/validation"]] == [4]
    assert len(texts) == 1
    # A resumed run goes on in the same place, and one that is replaced leaves nothing there.
    scalars, _ = train("--resume", out, "--epochs", 3, "--restart-schedule")
    assert [step for step, _ in scalars["loss/validation"]] == [4, 8, 12]
    again = ["--data", tmp_path / "data", "--out", out, "--epochs", 2, "--force", *small]
    scalars, _ = train(*again)
    assert [step for step, _ in scalars["loss/validation"]] == [4, 8]


def test_without_a_writer(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in [n for n in sys.modules if n.startswith(("tensorboardX", "torch.utils.tensorboa"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.delitem(sys.modules, "fastrnn.tensorboard")
    with pytest.raises(ImportError, match=re.escape(install_command("tensorboard"))):
        importlib.import_module("fastrnn.tensorboard")
    assert cli.main(["train", "--tensorboard"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fastrnn: error: ")
    assert said.count("\n") == 1
    assert install_command("tensorboard") in said
    assert not list(tmp_path.iterdir()), "nothing has begun"


def test_bad_arguments(tmp_path: Path):
    for name in ("captions", "first_step"):
        with pytest.raises(ValueError, match=f"^{name} is -1"):
            TensorBoardLogger(tmp_path, **{name: -1})

"""Measure what ``fastrnn train --recipe coco`` does besides its steps, at the size of COCO.

`bench.full_coco` writes the data and starts this module in a process of its own, which trains for
some minutes, then validates and saves, and prints what each part took. An epoch is extrapolated
from that by counts.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from .data import COCO_IMAGES, COCO_ROWS, read_captions, shared_data, vocabulary
from .peak import peak_bytes
from .shapes import Shape

VAL_ROWS, VAL_IMAGES = 195954, 40504
FEATURES = {"pca": 512, "raw": 4096}


def write_coco(directory: Path, kind: str) -> str:
    """Write a data set with the sizes of COCO 2014, unless it is there; return what it is.

    The captions are real COCO captions if available, repeated to the number of rows; images and
    features are random.
    """
    from fastrnn.data.h5 import write_h5
    from fastrnn.data.layout import CAPTIONS_FILE, VOCABULARY_FILE, features_file, urls_file

    found = read_captions(Shape("full", 100, 16, 256, 512), COCO_ROWS + VAL_ROWS)
    rng = np.random.default_rng(231)
    sizes = {"train": (COCO_ROWS, COCO_IMAGES), "val": (VAL_ROWS, VAL_IMAGES)}
    directory.mkdir(parents=True, exist_ok=True)
    datasets, first = {}, 0
    for split, (rows, images) in sizes.items():
        each = np.concatenate([np.arange(images), rng.integers(0, images, rows - images)])
        rng.shuffle(each)
        datasets[f"{split}_captions"] = found.captions[first : first + rows]
        datasets[f"{split}_image_idxs"] = each.astype(np.int32)
        first += rows
        path = directory / features_file(split, kind == "pca")
        if not path.exists():
            values = rng.standard_normal((images, FEATURES[kind]), dtype=np.float32)
            write_h5(path, {"features": values})
        urls = (
            f"http://farm0.staticflickr.com/0000/{n:010d}_0123456789_z.jpg" for n in range(images)
        )
        (directory / urls_file(split)).write_text("\n".join(urls) + "\n")
    write_h5(directory / CAPTIONS_FILE, datasets)
    real = shared_data() / "coco" / VOCABULARY_FILE
    words = vocabulary(1004)
    content = {"word_to_idx": words, "idx_to_word": list(words)}
    text = real.read_text() if real.is_file() else json.dumps(content)
    (directory / VOCABULARY_FILE).write_text(text)
    return found.source


class Enough(BaseException):
    """The training has run for long enough."""


class Clock:
    """Adds up the seconds in functions, without those in functions that it also times."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = 0.0

    def time(self, owner: Any, name: str, label: str) -> None:
        """Time a function or method from now on."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            outer, self._inner = self._inner, 0.0
            began = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                taken = time.perf_counter() - began
                self.seconds[label] += taken - self._inner
                self._inner = outer + taken

        setattr(owner, name, timed)


def train(options: list[str], started: float, seconds: float) -> dict[str, Any]:
    """Train by the command line for some seconds; return what each part took.

    Parameters
    ----------
    options : list of str
        Of ``fastrnn train``.
    started : float
        When the process was started, as `time.time` counts.
    seconds : float
        The time for training steps.
    """
    from fastrnn.classifiers.rnn import CaptioningRNN
    from fastrnn.cli.main import main
    from fastrnn.training import run, trainer
    from fastrnn.training.learner import Learner
    from fastrnn.training.objectives import CaptionObjective
    from fastrnn.training.trainer import Trainer

    clock, found = Clock(), {}
    clock.time(run, "read_captioning_directory", "reading")
    advance = Trainer._advance
    began, steps = 0.0, 0

    def advance_and_look(self: Trainer) -> None:
        nonlocal began, steps
        if not steps:
            found["start_seconds"] = time.time() - started
            found["reading_seconds"] = clock.seconds.pop("reading", 0.0)
            found["data_bytes"] = sum(
                each.nbytes for each in self.data.values() if isinstance(each, np.ndarray)
            )
            clock.seconds.clear()
            clock.time(CaptioningRNN, "loss", "step")
            clock.time(Learner, "update", "step")
            clock.time(CaptionObjective, "_noisy_features", "features of a batch")
            clock.time(CaptionObjective, "batches", "shuffling and bucketing")
            began = time.perf_counter()
        advance(self)
        steps += 1
        if time.perf_counter() - began >= seconds:
            found.update(look(self, clock, time.perf_counter() - began, steps))
            raise Enough

    trainer.Trainer._advance = advance_and_look  # type: ignore[method-assign]
    with contextlib.suppress(Enough), contextlib.redirect_stdout(io.StringIO()):
        main(["train", *options])
    found["peak_bytes"] = peak_bytes()
    return found


def look(trainer: Any, clock: Clock, wall: float, steps: int) -> dict[str, Any]:
    """Validate and save a training that has taken some steps; return what an epoch takes."""
    spent = dict(clock.seconds)
    spent["between steps"] = wall - sum(spent.values())
    epoch = trainer.steps_per_epoch
    shuffling = spent.pop("shuffling and bucketing", 0.0)  # once in an epoch
    parts = {name: value * epoch / steps for name, value in spent.items()}
    parts["shuffling and bucketing"] = shuffling

    def seconds_of(call: Any, times: int = 3) -> float:
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    parts["validation"] = seconds_of(trainer._measure)
    # as long as it is at the end of the run
    records = trainer.config.all_epochs * (epoch // trainer.config.record_every + 1)
    trainer.history[:] = (trainer.history * (records // max(len(trainer.history), 1) + 1))[:records]
    # in the background, but all of it is counted
    parts["checkpoint and history"] = seconds_of(trainer.save)
    return {
        "steps": steps,
        "seconds": wall,
        "captions_per_second": len(trainer.data["train_captions"]) * steps / epoch / wall,
        "epochs": trainer.config.all_epochs,
        "epoch_seconds": parts,
        "features": f"{trainer.data['train_features'].dtype}, "
        f"{' x '.join(map(str, trainer.data['train_features'].shape))}",
    }


def shares(found: dict[str, Any]) -> dict[str, float]:
    """Return the percentage of an epoch in each part; the start is divided among the epochs."""
    parts = {**found["epoch_seconds"], "start": found["start_seconds"] / found["epochs"]}
    whole = sum(parts.values())
    return {name: 100 * value / whole for name, value in parts.items()}


if __name__ == "__main__":
    answer = sys.stdout
    result = train(sys.argv[3:], float(sys.argv[1]), float(sys.argv[2]))
    json.dump(result, answer)

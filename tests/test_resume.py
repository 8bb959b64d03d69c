"""Runs that are killed and resumed end with the same bits."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from coco_layout import write_layout

from fastrnn.checkpoint import checkpoint_path, checkpoint_steps, load_model, read_checkpoint
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.evaluation import caption_images
from fastrnn.files import read_sealed
from fastrnn.runs import read_history

KILLS = 20
# Everything that has a state or draws random numbers. Checkpoints are written most of the time.
OPTIONS = shlex.split(
    "--epochs 20 --reward-epochs 10 --batch-size 6 --hidden-dim 12 --wordvec-dim 8 --seed 3 "
    "--lr 0.02 --schedule exponential --lr-decay 0.9 --warmup-steps 5 --clip-norm 1 "
    "--weight-decay 0.01 --embed-dropout 0.2 --vocab-dropout 0.3 --label-smoothing 0.1 "
    "--scheduled-sampling 0.2 --feature-noise 0.2 --consensus 1 --weight-average 0.95 "
    "--bucket-by-length --save-every 2 --record-every 4 --no-report"
)


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "fastrnn", "train", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "FASTRNN_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for_training(process: subprocess.Popen[str]) -> None:
    """Wait until the last line before training is printed."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("runs on"):
            return


def finish(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


def without_times(record: dict) -> dict:
    return {
        name: value
        for name, value in record.items()
        if name not in ("seconds", "captions_per_second", "validation_seconds")
    }


def result(run: Path, data: dict) -> dict:
    """The results of a run, except for the times."""
    newest = checkpoint_path(run, checkpoint_steps(run)[-1])
    about = dict(read_checkpoint(newest).about)
    del about["seconds"]
    history = read_history(run)
    assert about["history"] == history
    about["history"] = [*map(without_times, history)]
    metrics = without_times(json.loads((run / "metrics.json").read_text()))
    arrays = {f"{newest.name}/{name}": a for name, a in read_sealed(newest).items()}
    arrays |= {f"model/{name}": a for name, a in read_sealed(run / "model.npz").items()}
    return {
        "about": about,
        "metrics": metrics,
        "captions": caption_images(load_model(run), data["val_features"], 8),
        "arrays": {name: a for name, a in arrays.items() if not name.endswith("/about")},
        "files": sorted(str(p.relative_to(run)) for p in run.rglob("*")),
    }


def test_killed_and_resumed_is_never_stopped(tmp_path: Path):
    directory = tmp_path / "data"
    write_layout(directory)
    data = read_captioning_directory(directory)

    whole = tmp_path / "whole"
    process = start("--data", directory, "--out", whole, *OPTIONS)
    wait_for_training(process)
    began = time.perf_counter()
    finish(process)
    seconds = time.perf_counter() - began
    wanted = result(whole, data)
    assert wanted["about"]["step"] == 180

    # Each process lives for a short time, so that half of them fit into one training at the present
    # speed of this machine. If one still finishes, the remaining kills are done on another run.
    rng = np.random.default_rng()
    kills, runs = 0, 0
    steps = []
    while kills < KILLS:
        runs += 1
        run = tmp_path / f"killed{runs}"
        process = start("--data", directory, "--out", run, *OPTIONS)
        while kills < KILLS:
            wait_for_training(process)
            try:
                process.wait(rng.uniform(0, 2.6 * seconds / KILLS))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            process.communicate()
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL
            kills += 1
            steps.append(checkpoint_steps(run)[-1] if checkpoint_steps(run) else None)
            process = start("--resume", run, "--no-report")
        finish(process)
        found = result(run, data)
        for name, array in wanted["arrays"].items():
            np.testing.assert_array_equal(found["arrays"][name], array, err_msg=f"{name} {steps}")
        assert found == {**wanted, "arrays": found["arrays"]}, steps
    assert len(set(steps)) > 3, "the run was killed at different moments"

"""Train for an epoch at the size of COCO: ``python -m bench.full_coco``.

The data are 400135 captions (real COCO captions if available, repeated to that number) of 82783
images with 512 random features each. They train `CaptioningSolver` with Adam. The report has the
captions per second, the time of an epoch, the share of each operation, and the peak memory beyond
a bare import and the data. Random features take as much time as real ones, but the losses are not
meaningful.

``--train pca`` measures the command line instead: ``fastrnn train --recipe coco`` on files of that
size, with features of 512 numbers (``raw``: 4096). It runs for some minutes, and says how long it
is from the start to the first step, and which share of an epoch is not its steps.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from . import coco_training, machine, report
from .data import COCO_IMAGES, COCO_ROWS, read_captions, vocabulary
from .peak import peak_bytes
from .shapes import Shape

MB = 1e6
WARM = 2  # warm-up steps, not timed
PROFILED = 5  # profiled steps, for the share of each operation
AROUND = ("optim", "coco_utils")  # modules whose public functions run outside the loss


def bare_import_bytes() -> int:
    """Return the peak resident set size of a process that only imports fastrnn, in bytes."""
    program = "import fastrnn; from bench.peak import peak_bytes; print(peak_bytes())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).resolve().parents[1],
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    return int(done.stdout)


def full_data(shape: Shape) -> tuple[dict[str, Any], str]:
    """Return training data with the sizes of COCO, and the source of its captions."""
    found = read_captions(shape, COCO_ROWS)
    rng = np.random.default_rng(231)
    words = vocabulary(shape.V)
    data = {
        "train_captions": found.captions,
        "train_image_idxs": rng.integers(0, COCO_IMAGES, COCO_ROWS, dtype=np.int32),
        "train_features": rng.standard_normal((COCO_IMAGES, shape.F), dtype=np.float32),
        "train_urls": np.full(COCO_IMAGES, "images/000000000000.jpg", dtype="<U63"),
        "word_to_idx": words,
        "idx_to_word": list(words),
    }
    return data, found.source


def shares(solver: Any) -> dict[str, float]:
    """Return the percentage of a step's time in each operation, largest first.

    The phases of the loss are timed by the core, other public functions by Python's profiler.
    """
    from fastrnn._core import captioner

    profiler = cProfile.Profile()
    captioner.profile()  # reset the core's timers
    start = time.perf_counter()
    profiler.enable()
    for _ in range(PROFILED):
        solver._step()
    profiler.disable()
    whole = time.perf_counter() - start
    seconds: dict[str, float] = captioner.profile()
    for (file, _, name), (_, _, _, inclusive, _) in pstats.Stats(profiler).stats.items():
        path = Path(file)
        if path.parent.name != "fastrnn" or path.stem not in AROUND or name.startswith("_"):
            continue
        # skip nested functions: their time is included in that of their caller
        if hasattr(import_module(f"fastrnn.{path.stem}"), name):
            seconds[name] = seconds.get(name, 0.0) + inclusive
    seconds["the rest"] = whole - sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return {name: 100 * value / whole for name, value in ordered}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.full_coco",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, help="stop after this many and extrapolate")
    parser.add_argument("--json", help="also write the report to this file; - is standard output")
    parser.add_argument("--cell", choices=("rnn", "lstm"), default="lstm", help="recurrent cell")
    parser.add_argument(
        "--train", choices=tuple(coco_training.FEATURES), metavar="{pca,raw}",
        help="measure fastrnn train --recipe coco with these features",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, default=Path(tempfile.gettempdir(), "fastrnn-coco"),
        help="with --train, where the files are, or are written if they are not there",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=180, help="with --train, how long to take steps"
    )
    parser.add_argument("--features-dtype", help="with --train, that of fastrnn train")
    for name, default, what in (
        ("hidden", 512, "number of hidden units"),
        ("wordvec", 256, "size of the word vectors"),
        ("batch", 100, "number of captions in a minibatch"),
        ("threads", min(2, machine.processors()), "number of threads"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=what)
    options = parser.parse_args(arguments)
    for name in ("steps", "hidden", "wordvec", "batch", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}; expected at least 1")
    if options.batch > COCO_ROWS:
        parser.error(f"--batch is {options.batch}; expected at most {COCO_ROWS}")
    return options


def measure_training(options: argparse.Namespace) -> int:
    """Measure the command line in a process of its own; return the exit status."""
    source = coco_training.write_coco(options.data, options.train)
    bare = bare_import_bytes()
    others = machine.Others()
    with tempfile.TemporaryDirectory() as out:
        chosen = ["--data", str(options.data), "--recipe", "coco", "--out", str(Path(out, "run"))]
        chosen += ["--threads", str(options.threads)]
        if options.train == "raw":
            chosen.append("--raw-features")
        if options.features_dtype:
            chosen += ["--features-dtype", options.features_dtype]
        done = subprocess.run(
            [sys.executable, "-m", "bench.coco_training", repr(time.time()), str(options.seconds)]
            + chosen,
            cwd=Path(__file__).resolve().parents[1], stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
    found = json.loads(done.stdout)
    found["others"] = others.average()
    found["captions"], found["options"] = source, chosen[2:4] + chosen[8:]
    found["shares"] = coco_training.shares(found)
    found["memory_mb"] = {
        "peak": found["peak_bytes"] / MB,
        "bare_import": bare / MB,
        "data": found["data_bytes"] / MB,
        "over": (found["peak_bytes"] - bare - found["data_bytes"]) / MB,
    }
    print(training_text(found))
    if options.json:
        report.write_whole(Path(options.json), json.dumps(found, indent=1).encode() + b"\n")
    return 0


def training_text(found: dict[str, Any]) -> str:
    """Return the report of `measure_training`."""
    memory, parts = found["memory_mb"], found["epoch_seconds"]
    whole = sum(parts.values())
    lines = [
        f"fastrnn train {' '.join(found['options'])}: {COCO_ROWS} captions: {found['captions']}; "
        f"features: {found['features']}",
        f"start to first step {found['start_seconds']:.1f} s, of which reading "
        f"{found['reading_seconds']:.1f} s",
        f"{found['steps']} steps in {found['seconds']:.0f} s, "
        f"{found['captions_per_second']:.0f} captions/s; an epoch would take {whole:.0f} s:",
    ]
    seconds = {**parts, "start": found["start_seconds"] / found["epochs"]}
    lines += [
        f"{share:7.2f} %  {seconds[name]:8.2f} s  {name}"
        + (f" (divided among {found['epochs']} epochs)" if name == "start" else "")
        for name, share in sorted(found["shares"].items(), key=lambda item: -item[1])
    ]
    other = 100 - found["shares"]["step"]
    lines += [
        f"all but the steps: {other:.2f} %; with the whole start in one epoch "
        f"{100 - 100 * parts['step'] / (whole + found['start_seconds']):.2f} %",
        f"peak memory {memory['peak']:.0f} MB = bare import {memory['bare_import']:.0f} + data "
        f"{memory['data']:.0f} + training {memory['over']:.0f}",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    options = parse(arguments)
    if options.train:
        return measure_training(options)
    bare = bare_import_bytes()

    import fastrnn
    from fastrnn.captioning_solver import CaptioningSolver
    from fastrnn.classifiers.rnn import CaptioningRNN

    fastrnn.set_num_threads(options.threads)
    shape = Shape("full", options.batch, 16, options.wordvec, options.hidden)
    data, source = full_data(shape)
    data_bytes = sum(value.nbytes for value in data.values() if isinstance(value, np.ndarray))
    np.random.seed(231)
    model = CaptioningRNN(data["word_to_idx"], shape.F, shape.D, shape.H, options.cell, np.float32)
    solver = CaptioningSolver(
        model,
        data,
        update_rule="adam",
        optim_config={"learning_rate": 1e-3},
        batch_size=shape.N,
        num_epochs=1,
        verbose=False,
    )
    epoch = COCO_ROWS // shape.N
    steps = min(options.steps or epoch, epoch)

    def say(line: str) -> None:
        print(line, file=sys.stderr if options.json == "-" else sys.stdout, flush=True)

    say(f"{COCO_ROWS} captions: {source}; {COCO_IMAGES} images: random features of {shape.F}")
    for _ in range(WARM):
        solver._step()
    start = time.perf_counter()
    for step in range(1, steps + 1):
        solver._step()
        if step % 500 == 0:
            rate = step * shape.N / (time.perf_counter() - start)
            say(f"step {step} / {steps}: loss {solver.loss_history[-1]:.3f}, {rate:.0f} captions/s")
    seconds = time.perf_counter() - start
    peak = peak_bytes()
    found = {
        "machine": machine.describe(),
        "captions": source,
        "features": f"random, {COCO_IMAGES} x {shape.F}",
        "cell": options.cell,
        "shape": f"{shape.N}/{shape.D}/{shape.H}",
        "steps": steps,
        "seconds": seconds,
        "captions_per_second": steps * shape.N / seconds,
        "epoch_seconds": seconds * epoch / steps,
        "projected": steps < epoch,
        "loss": [float(solver.loss_history[0]), float(solver.loss_history[-1])],
        "memory_mb": {
            "peak": peak / MB,
            "bare_import": bare / MB,
            "data": data_bytes / MB,
            "over": (peak - bare - data_bytes) / MB,
        },
        "shares": shares(solver),
    }
    memory = found["memory_mb"]
    say(
        f"{options.cell} {found['shape']}, {options.threads} threads: {steps} steps in "
        f"{seconds:.1f} s, {found['captions_per_second']:.0f} captions/s; an epoch of {epoch} "
        f"steps {'would take' if found['projected'] else 'took'} {found['epoch_seconds']:.0f} s"
    )
    say(
        f"peak memory {memory['peak']:.0f} MB = bare import {memory['bare_import']:.0f} + data "
        f"{memory['data']:.0f} + training {memory['over']:.0f}"
    )
    for name, share in found["shares"].items():
        say(f"{share:6.1f} %  {name}")
    if options.json == "-":
        json.dump(found, sys.stdout)
    elif options.json:
        report.write_whole(Path(options.json), json.dumps(found, indent=1).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

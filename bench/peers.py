"""Compare fastrnn with its NumPy reference, PyTorch and JAX: ``python -m bench.peers``.

Each contender runs in a separate process. The contenders take turns in blocks of calls, in
alternating order. A pause between blocks keeps the spinning threads of one library from slowing
the next. The minimum and the median of all calls are reported; ratios are ratios of medians. All
contenders draw the same minibatches from the same captions and start with the same weights.

The section ``busy`` measures steps with and without another program, which keeps one of the
processors busy, in alternating blocks.

With ``--isa avx2`` every contender keeps to AVX2, as on a machine without AVX-512. Then bfloat16 is
not measured, which needs AVX512_BF16 to be fast.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import calls, machine, report, work
from .contenders import CONTENDERS
from .data import draw_batch, draw_pool
from .shapes import LAYERS, ROUNDED_STEPS, SHAPES, STEPS, Shape

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = ("step", "busy", "layer", "embedding", "calls", "sample", "memory")
CLOSE = 10.0  # seconds to wait for the process of a contender to end


@dataclass(frozen=True)
class Plan:
    """Durations and numbers of calls of the measurements.

    Attributes
    ----------
    blocks : int
        Number of blocks of calls for each contender.
    seconds : float
        Approximate duration of a block.
    least : int
        Minimum number of timed calls in a block.
    warm : int
        Number of warm-up calls in a block, which refill caches and raise the clock after the pause.
    pause : float
        Pause before each block, in seconds.
    brief : float
        Pause before each block if calls take microseconds, in seconds. NumPy's BLAS spins for
        about 30 ms.
    tick : float
        Calls shorter than this many seconds are timed in groups that take about as long.
    trained : int
        Number of training steps of the model for decoding with stop_at_end.
    memory_steps : int
        Number of training steps of the run whose memory is measured.
    """

    blocks: int = 8
    seconds: float = 0.5
    least: int = 3
    warm: int = 1
    pause: float = 0.3
    brief: float = 0.06
    tick: float = 5e-4
    trained: int = 400
    memory_steps: int = 60


QUICK = Plan(
    blocks=2, seconds=0.03, least=1, warm=0, pause=0.05, brief=0.03, trained=10, memory_steps=4
)


@contextlib.contextmanager
def busy_processor(which: int) -> Iterator[None]:
    """Keep one of the processors busy by another program, which does nothing."""
    command = [sys.executable, "-c", "while True: pass"]
    with subprocess.Popen(command) as program:
        try:
            if hasattr(os, "sched_setaffinity"):
                allowed = sorted(os.sched_getaffinity(program.pid))
                os.sched_setaffinity(program.pid, {allowed[which % len(allowed)]})
            yield
        finally:
            program.kill()


class Absent(Exception):
    """The contender's library is not installed."""


class Contender:
    """The process of one contender, and the communication with it.

    It imports packages from the directory `place` first, if that is given, and keeps to the
    instruction set `isa` (see `machine.ISA_VARIABLES`).
    """

    def __init__(
        self, name: str, threads: int, place: Path | None = None, isa: str | None = None
    ) -> None:
        self.name = name
        variables = dict.fromkeys(machine.THREAD_VARIABLES, str(threads))
        variables |= machine.ISA_VARIABLES[isa] if isa else {}
        first = [] if place is None else [str(place)]
        path = os.pathsep.join([*first, str(ROOT), os.environ.get("PYTHONPATH", "")])
        path = path.rstrip(os.pathsep)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.contenders", name, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=place,  # Python looks there even before PYTHONPATH
            env={**os.environ, **variables, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        )
        self.facts: dict[str, Any] = {}

    def greet(self) -> None:
        """Wait until the library is loaded."""
        first = self._read()
        if "absent" in first:
            raise Absent(first["absent"])
        self.facts = first["facts"]

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: its process ended with {self.process.wait()}")
        found = json.loads(line)
        if "error" in found:
            raise RuntimeError(f"{self.name}: {found['error']}")
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(CLOSE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Race:
    """The running contenders and their results so far."""

    plan: Plan
    threads: int
    isa: str | None = None
    contenders: dict[str, Contender] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    peak: dict[str, dict[str, float]] = field(default_factory=dict)

    def enter(self, names: list[str]) -> None:
        """Start the processes, and record the contenders whose library is not installed."""
        started = {name: Contender(name, self.threads, isa=self.isa) for name in names}
        for name, contender in started.items():
            try:
                contender.greet()
            except Absent as reason:
                contender.close()
                self.absent[name] = str(reason)
            else:
                self.contenders[name] = contender

    def leave(self) -> None:
        """End the processes."""
        for contender in self.contenders.values():
            contender.close()

    def measure_peak(self) -> None:
        """Measure the FMA peak of one and of all threads; keep the best over repeated calls."""
        if "fastrnn" not in self.contenders:
            return
        seconds = min(0.1, self.plan.seconds)
        for dtype in ("float32", "float64", *(() if self.isa else ("bfloat16",))):
            best = self.peak.setdefault(dtype, {})
            for threads in sorted({1, self.threads}):
                found = self.contenders["fastrnn"].ask(
                    "peak", arguments={"dtype": dtype, "threads": threads, "seconds": seconds}
                )["flops"]
                best[str(threads)] = max(found, best.get(str(threads), 0.0))

    def run(
        self,
        names: list[str],
        section: str,
        label: str,
        kind: str,
        arguments: dict[str, Any],
        *,
        flop: float | None = None,
        dtype: str = "float32",
        brief: bool = False,
        busy: bool = False,
    ) -> None:
        """Measure one job on the given contenders, in alternating blocks, and append the rows.

        A `brief` job takes microseconds. It is measured in short blocks with short pauses. With
        `busy`, each block is followed by one beside a program that keeps a processor busy.
        """
        entered = [name for name in names if name in self.contenders]
        pace, opened = {}, {}
        for name in entered:
            contender = self.contenders[name]
            opened[name] = contender.ask(
                "open", kind=kind, arguments=arguments, settle=brief or self.plan.warm > 0
            )
            inner = math.ceil(self.plan.tick / max(opened[name]["seconds"], 1e-9))
            call = inner * opened[name]["seconds"]
            block = 0.1 * self.plan.seconds if brief else self.plan.seconds
            pace[name] = inner, max(self.plan.least, min(1000, int(block / call)))
        labels = (label, report.beside(label)) if busy else (label,)
        times: dict[tuple[str, str], list[float]] = {
            (which, name): [] for which in labels for name in entered
        }
        for block in range(self.plan.blocks):
            for name in entered if block % 2 == 0 else reversed(entered):
                inner, steps = pace[name]
                for which in labels:
                    with busy_processor(block) if which != label else contextlib.nullcontext():
                        time.sleep(self.plan.brief if brief else self.plan.pause)
                        found = self.contenders[name].ask(
                            "run", seed=block, warm=self.plan.warm, steps=steps, inner=inner
                        )
                    times[which, name] += found["seconds"]
        for which, name in times:
            median = statistics.median(times[which, name])
            row = {
                "section": section,
                "label": which,
                "dtype": dtype,
                "contender": name,
                "ms_min": 1e3 * min(times[which, name]),
                "ms_median": 1e3 * median,
                "calls": len(times[which, name]),
                "gflop": None if flop is None else flop / 1e9,
                "gflops": None if flop is None else flop / median / 1e9,
                "percent_of_peak": None,
                "loss": opened[name]["loss"],
                "facts": opened[name]["facts"],
            }
            self.rows.append(row)
        for name in entered:
            self.contenders[name].ask("close")
        for which in labels:
            medians = {name: 1e3 * statistics.median(times[which, name]) for name in entered}
            report.progress(which, medians)

    def finish(self) -> None:
        """Compute every rate as a percentage of the FMA peak of all threads."""
        for row in self.rows:
            best = self.peak.get(row["dtype"], {}).get(str(self.threads))
            if best and row["gflops"] is not None:
                row["percent_of_peak"] = 100 * row["gflops"] * 1e9 / best


def average_work(shape: Shape, cell: str, batches: int = 32) -> float:
    """Return the mean of `work.step_work` over minibatches drawn as the contenders draw them."""
    data, _ = draw_pool(shape)
    np.random.seed(0)
    drawn = [draw_batch(data, shape.N)[0] for _ in range(batches)]
    return statistics.fmean(work.step_work(captions, shape, cell) for captions in drawn)


def run_steps(race: Race, steps: list[tuple[str, str]], precision: str = "float32") -> None:
    """Measure whole training steps. In bfloat16, torch uses autocast."""
    names = ["fastrnn", "reference", "torch padded", "torch packed", "jax"]
    if precision == "bfloat16":
        names = ["fastrnn", "torch padded", "torch packed"]
    for name, cell in steps:
        shape = SHAPES[name]
        arguments = {"shape": asdict(shape), "cell": cell, "precision": precision}
        label = labelled(f"{cell.upper()} {shape.sizes}", precision)
        flop = average_work(shape, cell)
        race.run(names, "step", label, "step", arguments, flop=flop, dtype=precision)


def run_busy(race: Race, shapes: list[Shape]) -> None:
    """Measure training steps beside another program that keeps one processor busy."""
    names = ["fastrnn", "torch padded", "torch packed"]
    for shape in shapes:
        arguments = {"shape": asdict(shape), "cell": "lstm"}
        flop = average_work(shape, "lstm")
        race.run(names, "busy", f"LSTM {shape.sizes}", "step", arguments, flop=flop, busy=True)


def labelled(label: str, precision: str) -> str:
    """Return the label of a job in a precision."""
    return label if precision == "float32" else f"{label} {precision}"


def run_layers(race: Race, layers: list[tuple[str, str]]) -> None:
    """Measure dense LSTM layers, forward and backward."""
    every = ["fastrnn", "reference", "torch padded", "jax"]
    for name, dtype in layers:
        names = ["fastrnn", "torch padded"] if dtype == "bfloat16" else every
        shape = SHAPES[name]
        arguments = {"shape": asdict(shape), "cell": "lstm", "dtype": dtype}
        label = f"lstm {shape.sizes} {dtype}"
        flop = work.layer_work(shape, "lstm")
        race.run(names, "layer", label, "layer", arguments, flop=flop, dtype=dtype)


def run_embedding(race: Race, shape: Shape) -> None:
    """Measure the scatter-add of a minibatch's gradient to the gradient of the word vectors."""
    names = ["fastrnn", "add.at", "sort+reduceat", "torch padded"]
    label = f"word_embedding_backward {shape.N}x{shape.T}x{shape.D}"
    race.run(names, "embedding", label, "embedding", {"shape": asdict(shape)})


def run_calls(race: Race, shapes: list[Shape]) -> None:
    """Measure all layers and rules at the tiny shape, and single steps at the given shapes."""
    tiny = SHAPES["tiny"]
    jobs = [(tiny, function) for function in (*calls.LAYERS, *calls.RULES)]
    for shape in shapes:
        single = Shape(f"{shape.name} N=1", 1, shape.T, shape.D, shape.H, shape.V, shape.F)
        jobs += [(s, f) for s in (shape, single) for f in calls.SINGLE_STEPS]
    for shape, function in jobs:
        arguments = {"shape": asdict(shape), "function": function}
        label = f"{function} {shape.name}"
        race.run(["fastrnn", "reference"], "calls", label, "call", arguments, brief=True)
    for cell in ("rnn", "lstm"):
        arguments = {"shape": asdict(tiny), "cell": cell}
        label = f"CaptioningSolver._step {cell} tiny"
        race.run(["fastrnn", "reference"], "calls", label, "step", arguments, brief=True)


def run_samples(
    race: Race, shape: Shape, rounded: bool = True, images: int = 1000, steps: int = 17
) -> None:
    """Measure greedy decoding: many images, many images with stop_at_end, and a single image.

    `rounded`: in bfloat16, too.
    """
    names = ["fastrnn", "torch padded"]
    jobs = [((images, 0), "float32"), ((images, race.plan.trained), "float32"), ((1, 0), "float32")]
    jobs += [((images, 0), "bfloat16"), ((1, 0), "bfloat16")] if rounded else []
    for (count, trained), precision in jobs:
        arguments = {"shape": asdict(shape), "images": count, "steps": steps}
        arguments |= {"trained": trained, "precision": precision}
        label = f"sample {count} x {steps}" + (" stop_at_end" if trained else "")
        # with stop_at_end, the work depends on the model
        flop = None if trained else work.sample_work(shape, "lstm", count, steps)
        race.run(
            names, "sample", labelled(label, precision), "sample", arguments, flop=flop,
            dtype=precision,
        )  # fmt: skip


def measure_memory(plan: Plan, threads: int) -> dict[str, Any]:
    """Run `bench.full_coco` in another process and return its report."""
    command = [sys.executable, "-m", "bench.full_coco", "--steps", str(plan.memory_steps)]
    found = subprocess.run(
        [*command, "--threads", str(threads), "--json", "-"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(found.stdout)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--json", type=Path, help="write the results here, and a chart next to it")
    parser.add_argument("--quick", action="store_true", help="quick look: too few calls to quote")
    parser.add_argument(
        "--threads", type=int, default=min(2, machine.processors()), help="threads per contender"
    )
    parser.add_argument(
        "--isa",
        choices=list(machine.ISA_VARIABLES),
        help="instruction set that every contender keeps to; without bfloat16",
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        choices=list(SHAPES),
        metavar="SHAPE",
        help=f"shapes to measure instead of the default ones: {', '.join(SHAPES)}",
    )
    parser.add_argument(
        "--contenders",
        nargs="+",
        default=list(CONTENDERS),
        choices=list(CONTENDERS),
        metavar="NAME",
        help="contenders to measure",
    )
    parser.add_argument(
        "--sections",
        nargs="+",
        default=list(SECTIONS),
        choices=SECTIONS,
        metavar="SECTION",
        help="sections to measure",
    )
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads is {options.threads}; expected at least 1")
    if options.json is not None and not options.json.resolve().parent.is_dir():
        parser.error(f"--json: no such directory: {options.json.resolve().parent}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    options = parse(arguments)
    plan = QUICK if options.quick else Plan()
    steps, rounded, layers = list(STEPS), list(ROUNDED_STEPS), list(LAYERS)
    first, single = SHAPES["coco"], [SHAPES["cs231n"], SHAPES["coco"]]
    if options.shapes:
        steps = [(name, cell) for name in options.shapes for cell in ("lstm", "rnn")]
        rounded = steps
        dtypes = ("float32", "float64", "bfloat16")
        layers = [(name, dtype) for dtype in dtypes for name in options.shapes]
        first, single = SHAPES[options.shapes[0]], []
    if options.isa:
        rounded, layers = [], [(name, dtype) for name, dtype in layers if dtype != "bfloat16"]
    race = Race(plan, options.threads, options.isa)
    others = machine.Others()
    memory = None
    try:
        race.enter(options.contenders)
        race.measure_peak()
        if "step" in options.sections:
            run_steps(race, steps)
            run_steps(race, rounded, "bfloat16")
        if "busy" in options.sections:
            run_busy(race, [first])
        if "layer" in options.sections:
            race.measure_peak()
            run_layers(race, layers)
        if "embedding" in options.sections:
            run_embedding(race, first)
        if "calls" in options.sections:
            run_calls(race, single)
        if "sample" in options.sections:
            run_samples(race, first, rounded=not options.isa)
        race.measure_peak()
    finally:
        race.leave()
    race.finish()
    if "memory" in options.sections:
        memory = measure_memory(plan, options.threads)
    described = race.contenders["fastrnn"].facts if "fastrnn" in race.contenders else {}
    result = {
        "format": 1,
        "quick": options.quick,
        "threads": options.threads,
        "isa": options.isa,
        "date": time.strftime("%Y-%m-%d"),
        "others": others.average(),
        "machine": described,
        "versions": {name: c.facts for name, c in race.contenders.items()},
        "absent": race.absent,
        "plan": asdict(plan),
        "peak": race.peak,
        "rows": race.rows,
        "memory": memory,
        "goals": report.goals(race.rows, memory, options.isa),
    }
    print(report.text(result))
    if options.json is not None:
        report.write_whole(options.json, json.dumps(result, indent=1).encode() + b"\n")
        chart = options.json.with_suffix(".png")
        report.write_chart(chart, result)
        print(f"\nwrote {options.json} and {chart}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

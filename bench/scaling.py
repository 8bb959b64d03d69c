"""Predict a training step on many cores from measured pieces: ``python -m bench.scaling``.

The pieces of a step are measured in one thread, in turns with whole steps in one thread and in all
threads of this machine (`bench.pieces`). A model puts them together for 1 to 64 cores
(`bench.scaling_model`). The report has each piece, the prediction beside what was measured here,
and which pieces lose most where cores are many. The bandwidth of all cores together and the cost of
a parallel region cannot be measured here for more cores than there are: they are given by options,
or assumed, and the report says which.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import machine, report
from .pieces import Stepper, calling_adam, describe, measure_machine
from .scaling_model import Machine, Piece, bottlenecks, serial_share, step_time
from .shapes import SHAPES, STEPS

CORES = (1, 2, 4, 8, 16, 32, 64)
BANDWIDTH = 200.0  # GB/s of a server's socket with eight channels of DDR4-3200
CROWD = 16  # threads that are timed on this machine, whatever it has


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one shape; return the result, which is written as JSON."""
    import fastrnn

    shape = SHAPES[options.shape]
    stepper = Stepper(shape, options.cell)
    counts = sorted({1, options.threads})
    whole: dict[int, list[float]] = {count: [] for count in (*counts, CROWD)}
    found: list[dict[str, float]] = []
    for count in counts:
        fastrnn.set_num_threads(count)
        for _ in range(3):
            stepper.whole()
    others = machine.Others()
    for _ in range(options.blocks):
        fastrnn.set_num_threads(1)
        found += [stepper.pieces() for _ in range(options.steps)]
        for count in whole:
            fastrnn.set_num_threads(count)
            stepper.whole()  # wakes the threads
            whole[count] += [stepper.whole() for _ in range(options.steps)]
    fastrnn.set_num_threads(options.threads)
    seconds = {name: undisturbed([each[name] for each in found]) for name in found[0]}
    bandwidth = 1e9 * options.bandwidth
    fork = None if options.fork_join is None else 1e-6 * options.fork_join
    known = measure_machine(bandwidth, fork)
    pieces = describe(
        shape, options.cell, seconds, stepper.work(), calling_adam(stepper.solver.model.params)
    )
    crowd = whole.pop(CROWD)
    return {
        "format": 1,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine.describe(),
        "others": others.average(),
        "shape": options.shape,
        "cell": options.cell,
        "captions": stepper.source,
        "model": asdict(known),
        "given": {"bandwidth": options.bandwidth, "fork_join": options.fork_join},
        "pieces": [asdict(piece) for piece in pieces],
        "first_pass_of_adam": stepper.first_pass(),
        "serial_share": serial_share(pieces),
        "measured": {count: summary(times) for count, times in whole.items()},
        "crowd": {"threads": CROWD, **summary(crowd)},
        "predicted": predict(pieces, known),
    }


def summary(times: list[float]) -> dict[str, float]:
    """Return the median, the minimum and what `undisturbed` returns."""
    return {
        "median": statistics.median(times), "min": min(times), "undisturbed": undisturbed(times),
    }  # fmt: skip


def undisturbed(times: list[float]) -> float:
    """Return the lower quartile: other programs disturb fewer of these times than of the others."""
    return statistics.quantiles(times, n=4)[0] if len(times) > 1 else times[0]


def predict(pieces: list[Piece], known: Machine) -> list[dict[str, Any]]:
    """Return the step on each number of cores, and what loses most there."""
    one = step_time(pieces, 1, known)
    return [
        {
            "cores": cores,
            "seconds": (seconds := step_time(pieces, cores, known)),
            "speedup": one / seconds,
            "efficiency": one / seconds / cores,
            "losses": [
                {"piece": name, "seconds": lost}
                for name, lost in bottlenecks(pieces, cores, known)[:3]
            ],
        }
        for cores in CORES
    ]


def text(result: dict[str, Any]) -> str:
    """Return the report."""
    about, known = result["machine"], result["model"]
    one = sum(piece["seconds"] for piece in result["pieces"])
    shape = SHAPES[result["shape"]]
    lines = [
        f"{result['cell'].upper()} {shape.sizes}, {result['captions']}; {about['cpu']}, "
        f"{about['processors']} processors, {about['isa']}",
        "",
        report.table(
            ["piece", "us in one thread", "%", "shares", "MB"],
            [
                [
                    piece["name"],
                    f"{1e6 * piece['seconds']:,.0f}",
                    f"{100 * piece['seconds'] / one:.2f}",
                    shares_of(piece),
                    f"{piece['bytes'] / 1e6:.1f}" if piece["cuts"] else "",
                ]
                for piece in result["pieces"]
            ],
        ),
        "",
        f"serial parts together: {100 * result['serial_share']:.2f} % of a step in one thread; "
        f"once, Adam's first pass: {1e6 * result['first_pass_of_adam']:,.0f} us",
        f"fork and join of two threads: {1e6 * known['fork_join']:.1f} us"
        + ("" if result["given"]["fork_join"] is None else " (given)")
        + f"; bandwidth: {known['bandwidth_per_core'] / 1e9:.0f} GB/s a core, "
        f"{known['bandwidth'] / 1e9:.0f} GB/s of all (given)",
        "",
        report.table(
            ["cores", "predicted ms", "measured ms", "off", "speedup", "efficiency", "loses most"],
            [row_of(row, result["measured"]) for row in result["predicted"]],
        ),
    ]
    busiest = max(int(count) for count in result["measured"])
    crowd = result["crowd"]
    ratio = crowd["median"] / result["measured"][busiest]["median"]
    if result["others"] is not None and result["others"] > 0.1:
        lines.append(f"\nother programs kept {result['others']:.1f} processors busy")
    lines += [
        "",
        f"{crowd['threads']} threads on {about['processors']} processors: "
        f"{1e3 * crowd['median']:.1f} ms in the median, {ratio:.2f} times that of {busiest}",
    ]
    return "\n".join(lines)


def shares_of(piece: dict[str, Any]) -> str:
    """Return into how many shares a piece is cut, from which number of threads on."""
    if not piece["cuts"]:
        return "serial"
    counts = [(cut["threads"], cut["shares"]) for cut in piece["cuts"]]
    if len(counts) > 2:
        return "by demand"
    first, *rest = counts
    return ", ".join([f"{first[1]}", *(f"{shares} from {p} threads" for p, shares in rest)])


def row_of(row: dict[str, Any], measured: dict[Any, Any]) -> list[str]:
    """Return a row of the table of predictions."""
    found = measured.get(row["cores"])
    off = row["seconds"] / found["undisturbed"] - 1 if found else 0.0
    worst = row["losses"][0]
    return [
        str(row["cores"]),
        f"{1e3 * row['seconds']:.1f}",
        f"{1e3 * found['undisturbed']:.1f}" if found else "",
        f"{100 * off:+.1f} %" if found else "",
        f"{row['speedup']:.1f}",
        f"{100 * row['efficiency']:.0f} %",
        f"{worst['piece']} ({1e3 * worst['seconds']:.1f} ms)" if row["cores"] > 1 else "",
    ]


def write_plot(path: Path, result: dict[str, Any]) -> None:
    """Draw the speedup that is predicted, and what was measured."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cores = [row["cores"] for row in result["predicted"]]
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    ax.plot(cores, cores, color="#bbbbbb", linewidth=0.8, label="perfect")
    ax.plot(
        cores, [row["speedup"] for row in result["predicted"]],
        color=report.COLOURS["fastrnn"], marker="o", label="predicted",
    )  # fmt: skip
    one = result["measured"][1]["undisturbed"]
    measured = {int(count): one / each["undisturbed"] for count, each in result["measured"].items()}
    ax.plot(list(measured), list(measured.values()), "k+", markersize=12, label="measured here")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xticks(cores, [str(count) for count in cores])
    ax.set_yticks(cores, [str(count) for count in cores])
    ax.set_xlabel("cores")
    ax.set_ylabel("speedup of a training step")
    shape = SHAPES[result["shape"]]
    ax.set_title(f"{result['cell'].upper()} {shape.sizes}", loc="left", fontsize=11)
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    image = io.BytesIO()
    figure.savefig(image, format=path.suffix.removeprefix(".") or "png", dpi=150)
    plt.close(figure)
    report.write_whole(path, image.getvalue())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.scaling",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    cells = sorted({cell for _, cell in STEPS})
    parser.add_argument("--shape", choices=list(SHAPES), default="coco", help="sizes of the model")
    parser.add_argument("--cell", choices=cells, default="lstm", help="recurrent cell")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--plot", type=Path, help="draw the prediction into this file")
    for name, default, what in (
        ("blocks", 8, "blocks of steps, in turns"),
        ("steps", 5, "steps in a block"),
        ("threads", min(2, machine.processors()), "threads to measure besides one"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=what)
    parser.add_argument(
        "--bandwidth", type=float, default=BANDWIDTH, metavar="GB/S",
        help="bandwidth of the memory of the machine to predict",
    )  # fmt: skip
    parser.add_argument(
        "--fork-join", type=float, metavar="US",
        help="microseconds of an empty parallel region of two threads; measured by default",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    for name in ("blocks", "steps", "threads", "bandwidth", "fork_join"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} is {value}; expected more than 0")
    for path in (options.json, options.plot):
        if path is not None and not path.resolve().parent.is_dir():
            parser.error(f"no such directory: {path.resolve().parent}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    options = parse(arguments)
    result = measure(options)
    print(text(result))
    if options.json is not None:
        report.write_whole(options.json, json.dumps(result, indent=1).encode() + b"\n")
    if options.plot is not None:
        write_plot(options.plot, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())

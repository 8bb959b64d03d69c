"""Compare the speed of two revisions: ``python -m bench.compare REV [REV]``.

Both revisions are built and installed in directories of their own. In each block, two new processes
take turns, one for each revision, with the same minibatches; who is first alternates. A block gives
one ratio of times for each case, and all blocks together give its confidence interval
(`bench.verdict`). The cases and the code that times them are those of this checkout, for both.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tqdm import tqdm

from . import calls, machine, report, revisions, verdict
from .peers import Contender
from .shapes import LAYERS, ROUNDED_STEPS, SHAPES, STEPS

SIDES = ("before", "after")
ALIKE = 1e-3  # relative difference of the first losses above which the work is not the same
SLOWED = 0.03  # the slow-down that --self-check puts in
FOUND, FALSE_ALARMS = 0.9, 0.05  # shares of the tries that --self-check wants


@dataclass(frozen=True)
class Case:
    """A job of `bench.contenders`, by the name of its kind, and its arguments."""

    kind: str
    arguments: dict[str, Any]


def all_cases() -> dict[str, Case]:
    """Return all cases by name."""
    sizes = {name: asdict(shape) for name, shape in SHAPES.items()}
    found: dict[str, Case] = {}
    steps = [(*step, "float32") for step in (*STEPS, ("tiny", "lstm"), ("tiny", "rnn"))]
    steps += [(*step, "bfloat16") for step in ROUNDED_STEPS]
    for shape, cell, precision in steps:
        arguments = {"shape": sizes[shape], "cell": cell, "precision": precision}
        found[f"step {cell} {shape} {precision}"] = Case("step", arguments)
    for shape, dtype in LAYERS:
        arguments = {"shape": sizes[shape], "cell": "lstm", "dtype": dtype}
        found[f"layer lstm {shape} {dtype}"] = Case("layer", arguments)
    found["embedding coco"] = Case("embedding", {"shape": sizes["coco"]})
    for images in (1000, 1):
        arguments = {"shape": sizes["coco"], "images": images, "steps": 17}
        found[f"sample {images}"] = Case("sample", arguments)
    for shape in ("tiny", "coco"):
        for function in (*calls.LAYERS, *calls.RULES):
            arguments = {"shape": sizes[shape], "function": function}
            found[f"call {function} {shape}"] = Case("call", arguments)
    return found


CASES = all_cases()
DEFAULT = (
    "step lstm cs231n float32",
    "step lstm coco float32",
    "step rnn coco float32",
    "layer lstm cs231n float64",
    "sample 1000",
    "step lstm tiny float32",
)


@dataclass(frozen=True)
class Plan:
    """Durations and numbers of the measurements.

    Attributes
    ----------
    blocks : int
        Number of blocks, each with two new processes.
    turns : int
        Number of turns of each process for each case in a block.
    seconds : float
        Approximate duration of a turn.
    most : int
        Maximum number of timed calls in a turn.
    pause : float
        Pause before each turn, in seconds, in which the threads of the other process go to sleep.
    tick : float
        Calls shorter than this many seconds are timed in groups that take about as long.
    """

    blocks: int = 24
    turns: int = 12
    seconds: float = 0.07
    most: int = 50
    pause: float = 0.02
    tick: float = 5e-4


QUICK = Plan(blocks=verdict.LEAST, turns=2, seconds=0.005, most=3)


@dataclass
class Record:
    """What was measured of one case.

    Attributes
    ----------
    logs : list of float
        `verdict.block_ratio` of each block.
    times : tuple of list of float
        Seconds of all calls before and after.
    losses : tuple of list of float
        Loss of the first training step in each block, before and after.
    failed : dict
        For a case that a side cannot run, its error.
    """

    logs: list[float] = field(default_factory=list)
    times: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    losses: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    failed: dict[str, str] = field(default_factory=dict)


def in_turn(number: int) -> tuple[int, int]:
    """Return the order of the sides, which alternates."""
    return (0, 1) if number % 2 == 0 else (1, 0)


def run_case(pair: list[Contender], case: Case, plan: Plan, block: int, slow: float) -> Record:
    """Measure one case in one block."""
    found = Record()
    opened: list[float] = []
    for side in in_turn(block):
        try:
            answer = pair[side].ask(
                "open", kind=case.kind, arguments=case.arguments, slow=slow if side else 0.0
            )
        except RuntimeError as error:
            if pair[side].process.poll() is not None:
                raise
            found.failed[SIDES[side]] = str(error)
            continue
        opened.append(answer["seconds"])
        if answer["loss"] is not None:
            found.losses[side].append(answer["loss"])
    if not found.failed:
        inner = math.ceil(plan.tick / max(min(opened), 1e-9))
        steps = max(1, min(plan.most, round(plan.seconds / (inner * min(opened)))))
        turns: tuple[list[float], list[float]] = ([], [])
        for turn in range(plan.turns):
            for side in in_turn(block // 2 + turn):
                time.sleep(plan.pause)
                seed = block * plan.turns + turn
                seconds = pair[side].ask("run", seed=seed, warm=inner, steps=steps, inner=inner)[
                    "seconds"
                ]
                turns[side].append(statistics.median(seconds))
                found.times[side].extend(seconds)
        found.logs.append(verdict.block_ratio(*turns))
    for contender in pair:
        contender.ask("close")
    return found


@dataclass
class Comparison:
    """Two installed revisions, and what was measured of them."""

    places: tuple[Path, Path]
    threads: int
    records: dict[str, Record] = field(default_factory=dict)
    facts: list[dict[str, Any]] = field(default_factory=list)
    others: float | None = None

    def run(self, names: list[str], plan: Plan, slow: float = 0.0) -> dict[str, verdict.Verdict]:
        """Measure cases, and judge those that both sides can run.

        With `slow`, the second side takes longer by that share on purpose.
        """
        others = machine.Others()
        self.records = {name: Record() for name in names}
        for block in tqdm(range(plan.blocks), "blocks", leave=False, disable=None):
            first = block % len(names)
            self._run_block([*names[first:], *names[:first]], plan, block, slow)
        self.others = others.average()
        judged = [name for name in names if not self.records[name].failed]
        return {name: verdict.judge(self.records[name].logs, len(judged)) for name in judged}

    def _run_block(self, names: list[str], plan: Plan, block: int, slow: float) -> None:
        """Run one block on new copies of the installed files.

        Where a file lies in memory changes the speed of its code, by 5 % for calls of microseconds,
        and it stays there from process to process. So each block has copies of its own.
        """
        order = in_turn(block)
        started: dict[int, Contender] = {}
        with tempfile.TemporaryDirectory(prefix="block") as folder:
            names_of_places = in_turn(block // 4)
            places = [Path(folder).resolve() / str(name) for name in names_of_places]
            for side in sorted((0, 1), key=lambda side: names_of_places[side]):
                shutil.copytree(self.places[side], places[side])
            try:
                for side in order:
                    started[side] = Contender("fastrnn", self.threads, places[side])
                for side in order:
                    started[side].name = SIDES[side]
                    started[side].greet()
                self._run_pair([started[0], started[1]], names, plan, block, slow)
            finally:
                for contender in started.values():
                    contender.close()

    def _run_pair(
        self, pair: list[Contender], names: list[str], plan: Plan, block: int, slow: float
    ) -> None:
        self.facts = [contender.facts for contender in pair]
        for name in names:
            record = self.records[name]
            if record.failed:
                continue
            found = run_case(pair, CASES[name], plan, block, slow)
            record.failed |= found.failed
            record.logs += found.logs
            for side in (0, 1):
                record.times[side].extend(found.times[side])
                record.losses[side].extend(found.losses[side])

    def warnings(self) -> list[str]:
        """Return what the reader of the verdicts should know."""
        found = []
        for name, record in self.records.items():
            found += [f"{name}: not compared. {error}" for error in record.failed.values()]
            before, after = record.losses
            if before and after and abs(before[0] - after[0]) > ALIKE * abs(before[0]):
                found.append(
                    f"{name}: the first losses differ, so the work differs too: "
                    f"{before[0]:.6g} and {after[0]:.6g}."
                )
        if (self.others or 0) > report.BUSY:
            found.append(f"Other programs kept {self.others:.2g} processors busy meanwhile.")
        return found


def percent(share: float) -> str:
    """Return '1 %' for 0.01."""
    return f"{100 * share:.3g} %"


def summary(comparison: Comparison, verdicts: dict[str, verdict.Verdict], tolerance: float) -> str:
    """Return the table of verdicts, warnings, and which cases are too slow."""
    lines = []
    for name, found in verdicts.items():
        times = [f"{1e3 * statistics.median(t):.4g}" for t in comparison.records[name].times]
        interval = f"{found.low:.3f} to {found.high:.3f}"
        lines.append([name, *times, f"{found.ratio:.3f}", interval, found.word])
    heads = ["Case", "before, ms", "after, ms", "ratio", "interval", ""]
    parts = []
    if lines:
        parts.append(aligned([heads, *lines]))
        every = "The interval holds" if len(lines) == 1 else "All intervals hold together"
        parts.append(
            "\nThe ratio is after / before, from paired blocks; the times are medians. "
            f"{every} with {percent(verdict.CONFIDENCE)} confidence."
        )
    parts += comparison.warnings()
    parts += [
        f"{name}: could be up to {percent(found.high - 1)} slower; more --blocks or a quieter "
        "machine would tell."
        for name, found in verdicts.items()
        if found.word == "same" and found.high > 1 + max(SLOWED, tolerance)
    ]
    slow = [name for name, found in verdicts.items() if found.exceeds(tolerance)]
    limit = percent(tolerance)
    parts.append(f"slower by more than {limit}: {', '.join(slow) if slow else 'none'}")
    return "\n".join(parts)


def aligned(rows: list[list[str]]) -> str:
    """Return rows of text as a Markdown table whose columns also line up in a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    left = {0, len(widths) - 1}
    padded = (
        [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def benchmark_json(
    comparison: Comparison,
    verdicts: dict[str, verdict.Verdict],
    revision: revisions.Revision,
    side: int,
) -> dict[str, Any]:
    """Return the times of one side in the form of pytest-benchmark's ``--benchmark-json``."""
    import pytest_benchmark
    from pytest_benchmark.plugin import pytest_benchmark_generate_machine_info
    from pytest_benchmark.stats import Stats

    benchmarks = []
    for name, found in verdicts.items():
        stats = Stats()
        for seconds in comparison.records[name].times[side]:
            stats.update(seconds)
        benchmarks.append(
            {
                "group": name,
                "name": name,
                "fullname": f"bench/compare.py::{name}",
                "params": None,
                "param": None,
                "extra_info": {"side": SIDES[side], **asdict(found), "verdict": found.word},
                "options": {},
                "stats": {**stats.as_dict(), "data": stats.data, "iterations": 1},
            }
        )
    committed, authored = revisions.dates(revision)
    return {
        "machine_info": {
            **pytest_benchmark_generate_machine_info(),
            "fastrnn": comparison.facts[side],
        },
        "commit_info": {
            "id": revision.commit,
            "time": committed,
            "author_time": authored,
            "dirty": revision.name == revisions.WORKING_TREE,
            "project": "fastrnn",
            "branch": revision.name,
        },
        "benchmarks": benchmarks,
        "datetime": datetime.now(timezone.utc).isoformat(),
        "version": pytest_benchmark.__version__,
    }


def self_check(comparison: Comparison, names: list[str], plan: Plan, options: Any) -> int:
    """Compare a revision with itself many times, as it is and slowed on purpose."""
    tries = {0.0: options.tries, SLOWED: math.ceil(options.tries / 2)}
    counts = {}
    for slow, count in tries.items():
        hits = 0
        for number in range(count):
            found = comparison.run(names, plan, slow)
            if not found:
                raise RuntimeError("; ".join(comparison.warnings()))
            # an alarm if any case is slower; found if every case is
            told = [one.exceeds(options.tolerance) for one in found.values()]
            hits += all(told) if slow else any(told)
            what = f"slowed by {percent(slow)}" if slow else "the same"
            ratios = ", ".join(
                f"{one.ratio:.3f} ({one.low:.3f} to {one.high:.3f}) {one.word}"
                for one in found.values()
            )
            print(f"{what}, try {number + 1}: {ratios}", flush=True)
        counts[slow] = hits
    alarms, seen = counts[0.0], counts[SLOWED]
    print(f"false alarms: {alarms} of {tries[0.0]}, wanted at most {percent(FALSE_ALARMS)}")
    print(f"{percent(SLOWED)} found: {seen} of {tries[SLOWED]}, wanted at least {percent(FOUND)}")
    good = alarms <= FALSE_ALARMS * tries[0.0] and seen >= FOUND * tries[SLOWED]
    return 0 if good else 1


def chosen(patterns: list[str] | None) -> list[str]:
    """Return the names of the cases that match a pattern; ValueError if one matches none."""
    if not patterns:
        return list(DEFAULT)
    found: dict[str, None] = {}
    for pattern in patterns:
        names = [name for name in CASES if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            raise ValueError(f"no case is called {pattern!r}; --list prints their names")
        found |= dict.fromkeys(names)
    return list(found)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare",
        description=__doc__.partition(":")[0] + ".",
        epilog="Exit status: 0 if no case is slower by more than the tolerance, 1 if one is, 2 if "
        "the comparison failed.",
    )
    parser.add_argument(
        "revisions",
        nargs="*",
        metavar="REV",
        help="the revision before, and the one after (default: the working tree, with what is not "
        "committed)",
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        metavar="CASE",
        help=f"names or patterns of cases, as 'step*' (default: {', '.join(DEFAULT)})",
    )
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="slow-down that is no failure (default: 0.01, which is 1 %%)",
    )
    parser.add_argument(
        "--blocks", type=int, metavar="N", help=f"number of blocks (default: {Plan().blocks})"
    )
    parser.add_argument("--quick", action="store_true", help="quick look: no verdict to rely on")
    parser.add_argument(
        "--threads",
        type=int,
        default=min(2, machine.processors()),
        metavar="N",
        help="threads of each process (default: %(default)s)",
    )
    parser.add_argument(
        "--benchmark-json",
        type=Path,
        metavar="DIR",
        help="keep the times of both revisions in this directory, as pytest-benchmark's JSON",
    )
    parser.add_argument(
        "--self-check",
        action="store_true",
        help="compare one revision (default: HEAD) with itself --tries times, and half as often "
        f"with itself slowed by {percent(SLOWED).replace('%', '%%')} on purpose; status 1 if more "
        f"than {percent(FALSE_ALARMS).replace('%', '%%')} are false alarms or less than "
        f"{percent(FOUND).replace('%', '%%')} are found",
    )
    parser.add_argument(
        "--tries", type=int, default=20, metavar="N", help="for --self-check (default: 20)"
    )
    options = parser.parse_args(arguments)
    try:
        options.names = chosen(options.cases)
    except ValueError as error:
        parser.error(f"--cases: {error}")
    if not options.list and not options.self_check and len(options.revisions) not in (1, 2):
        parser.error(f"{len(options.revisions)} revisions; expected 1 or 2")
    if options.self_check and len(options.revisions) > 1:
        parser.error(f"{len(options.revisions)} revisions; --self-check takes 1")
    if options.self_check and options.benchmark_json:
        parser.error("--benchmark-json does not go with --self-check")
    for name, least in (("threads", 1), ("tries", 1), ("blocks", verdict.LEAST)):
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"--{name} is {value}; expected at least {least}")
    if not 0 <= options.tolerance < math.inf:
        parser.error(f"--tolerance is {options.tolerance}; expected a share of at least 0")
    if options.benchmark_json is not None:
        try:
            import pytest_benchmark  # noqa: F401
        except ImportError:
            parser.error("--benchmark-json needs pytest-benchmark: pip install 'fastrnn[bench]'")
        try:
            options.benchmark_json.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--benchmark-json: {error}")
    return options


def compare(options: argparse.Namespace) -> int:
    """Build, measure and print; return the exit status."""
    plan = QUICK if options.quick else Plan()
    if options.blocks is not None:
        plan = replace(plan, blocks=options.blocks)
    if options.self_check:
        pair = [revisions.find(*options.revisions or ["HEAD"])] * 2
    else:
        pair = [revisions.find(name) for name in options.revisions]
        if len(pair) == 1:
            pair.append(revisions.working_tree())
    with tempfile.TemporaryDirectory(prefix="compare") as folder:
        places = revisions.install_both(*pair, Path(folder).resolve())
        comparison = Comparison(places, options.threads)
        if options.self_check:
            return self_check(comparison, options.names, plan, options)
        verdicts = comparison.run(options.names, plan)
    for side, revision in zip(SIDES, pair, strict=True):
        print(f"{side}: {revision.name} ({revision.commit[:10]})")
    if options.quick:
        print("From a --quick run: no verdict to rely on.")
    print(summary(comparison, verdicts, options.tolerance))
    if options.benchmark_json is not None:
        for side, revision in enumerate(pair):
            path = options.benchmark_json / f"{SIDES[side]}-{revision.commit[:10]}.json"
            content = benchmark_json(comparison, verdicts, revision, side)
            report.write_whole(path, json.dumps(content, indent=1).encode() + b"\n")
            print(f"wrote {path}")
    # a case that only the old revision can run is a failure, a new one is not
    if not verdicts or any("after" in record.failed for record in comparison.records.values()):
        return 2
    return int(any(found.exceeds(options.tolerance) for found in verdicts.values()))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status."""
    options = parse(arguments)
    if options.list:
        print("\n".join(CASES))
        return 0
    try:
        return compare(options)
    except (revisions.BuildError, RuntimeError) as error:
        print(f"python -m bench.compare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

"""``fastrnn compare``: one table and one chart of several runs."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..evaluation import shown_perplexity
from ..files import write_aside, write_json
from ..terminal import columns, duration, say, say_facts
from .options import add_force, check_file

if TYPE_CHECKING:
    from ..report.comparison import ComparedRun

_GAP = "  "
_UNKNOWN = "-"


def add_parser(commands: Any) -> Any:
    """Add the command; return its parser."""
    parser = commands.add_parser(
        "compare",
        help="compare runs: one table and one chart",
        description="Compare runs: epochs, validation loss, perplexity, BLEU-4, CIDEr, time and "
        "speed. Figures of a finished run are those of its final model on all validation images; "
        "of another run, those of its best epoch so far. A star marks the best of a column, "
        "if all runs have the same data.",
        epilog="example: fastrnn compare runs/rnn runs/lstm --out compare.png",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run directory of fastrnn train")
    parser.add_argument(
        "--out", metavar="FILE.png",
        help="draw the validation loss and the validation CIDEr by epoch",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write the figures and curves to this file")
    add_force(parser)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    check_file("--out", arguments.out, suffix=".png", force=arguments.force)
    check_file("--json", arguments.json, force=arguments.force)
    # Here, because the other commands do not need them.
    from ..report.comparison import compare_runs, draw_comparison, short_names

    found = compare_runs(arguments.runs)
    _show(short_names(arguments.runs), found)
    data = dict.fromkeys(each.data_id for each in found)
    if len(data) > 1:
        known = [next(each.data for each in found if each.data_id == one) for one in data]
        say(
            f"note: the runs have {len(data)} different data sets ({', '.join(known)}), so their "
            "figures cannot be compared"
        )
    if arguments.json is not None:
        write_json(arguments.json, [dataclasses.asdict(each) for each in found])
    if arguments.out is not None:
        picture = draw_comparison(found)
        write_aside(arguments.out, lambda file: file.write(picture))
        say(f"written to {arguments.out}")
    return 0


def _show(names: Sequence[str], runs: Sequence[ComparedRun]) -> None:
    """Print a table, or a block for each run if the terminal is too narrow for it."""
    heads = ["run", "model", "epochs", "val loss", "perplexity", "BLEU-4", "CIDEr", "time",
             "captions/s"]  # fmt: skip
    table = [
        [
            name, each.model, _epochs(each), _number(each.val_loss, ".3f"),
            _number(each.perplexity, shown_perplexity), _number(each.bleu_4, ".1f", 100),
            _number(each.cider, ".1f", 100), _number(each.seconds, duration),
            _number(each.captions_per_second, ",.0f"),
        ]
        for name, each in zip(names, runs, strict=True)
    ]  # fmt: skip
    one_data_set = len({each.data_id for each in runs}) == 1
    for column, value, best in (
        (3, "val_loss", min), (4, "perplexity", min), (5, "bleu_4", max), (6, "cider", max),
    ):  # fmt: skip
        values = [v for each in runs if (v := getattr(each, value)) is not None]
        for row, each in zip(table, runs, strict=True):
            is_best = one_data_set and len(values) > 1 and getattr(each, value) == best(values)
            row[column] += "*" if is_best else " "
    widths = [max(map(len, column)) for column in zip(heads, *table, strict=True)]
    room = columns(sys.stdout)
    if room is not None and sum(widths) + len(_GAP) * (len(widths) - 1) > room:
        for row in table:
            say(row[0])
            say_facts(dict(zip(heads[1:], (cell.strip() for cell in row[1:]), strict=True)), 12)
            print()
        return
    for row in (heads, *table):
        cells = [f"{cell:<{width}}" if n < 2 else f"{cell:>{width}}"
                 for n, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        print(_GAP.join(cells).rstrip())


def _epochs(run: ComparedRun) -> str:
    text = f"{run.epochs:.3g}/{run.of_epochs}"
    return text if run.finished else f"{text} so far"


def _number(value: float | None, form: str | Callable[[float], str], scale: float = 1) -> str:
    if value is None:
        return _UNKNOWN
    return form(value) if callable(form) else format(value * scale, form)

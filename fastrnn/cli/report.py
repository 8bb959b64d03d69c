"""``fastrnn report``: write the page of a run."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ..terminal import say
from .bar import Bar
from .options import (
    add_allow_unk,
    add_float,
    add_force,
    add_integer,
    add_threads,
    check_file,
    use_threads,
)


def add_parser(commands: Any) -> Any:
    """Add the command; return its parser."""
    parser = commands.add_parser(
        "report",
        help="write a page of curves and captions",
        description="Write an HTML page about a run: curves, validation images with their "
        "captions, the best and the worst captions, settings and metrics. It is a single file and "
        "needs no network.",
        epilog="example: fastrnn report runs/flickr8k --watch",
    )
    parser.add_argument("of_run", metavar="RUN", help="a run directory of fastrnn train")
    parser.add_argument(
        "--out", metavar="FILE", help="the page (default: report.html in the run directory)"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="the data directory, if it has moved (default: the run's)"
    )
    add_integer(
        parser, "--beam", default=3,
        help="beam width; 1: greedy captions only (default: %(default)s)",
    )  # fmt: skip
    add_allow_unk(parser)
    add_integer(
        parser, "--images", at_least=0, default=1000,
        help="largest number of validation images on the page (default: %(default)s)",
    )  # fmt: skip
    add_integer(
        parser, "--pictures", at_least=0, default=96,
        help="largest number of them that are shown as pictures (default: %(default)s)",
    )  # fmt: skip
    add_integer(
        parser, "--explain", at_least=0, default=0,
        help="explain the captions of N validation images by maps of what the model looked at; "
        'needs the extra "vision" and the images (default: %(default)s)',
    )  # fmt: skip
    parser.add_argument(
        "--watch", action="store_true",
        help="update the page until training has finished; an open page reloads itself "
        "(default: write it once)",
    )  # fmt: skip
    add_float(
        parser, "--every", at_least=0.1, metavar="SECONDS",
        help="with --watch, time between two checks of the run (default: 5)",
    )  # fmt: skip
    add_force(parser)
    add_threads(parser)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from ..report import watch_report, write_report

    check_file("--out", arguments.out, force=arguments.force)
    if arguments.every is not None and not arguments.watch:
        raise ValueError("--every needs --watch")
    use_threads(arguments)
    options = {
        "directory": arguments.data,
        "images": arguments.images,
        "pictures": arguments.pictures,
        "beam": arguments.beam,
        "explain": arguments.explain,
        "suppress_unk": not arguments.allow_unk,
    }
    if not arguments.watch:
        bar = Bar("captions", "images")
        try:
            out = write_report(arguments.of_run, arguments.out, progress=bar, **options)
        finally:
            bar.close()
        say(f"{out}: {out.stat().st_size / 1e3:,.0f} kB")
        return 0

    def on_write(out: Path, status: str) -> None:
        say(f"{time.strftime('%H:%M:%S')}  {out}  {status}")

    seconds = arguments.every or 5.0
    watch_report(arguments.of_run, arguments.out, seconds=seconds, on_write=on_write, **options)
    return 0

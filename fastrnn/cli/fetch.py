"""``fastrnn fetch``: download the course's data set, or another one in its layout."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import ArgumentError
from ..data.layout import COURSE_URL
from .bar import BYTES, Bar
from .options import add_float, flag_of

if TYPE_CHECKING:
    from ..data.fetch import Progress

DIRECTORY = "coco_captioning"


def add_parser(commands: Any) -> Any:
    """Add the command; return its parser."""
    parser = commands.add_parser(
        "fetch",
        help="download the data set of CS231n's assignment",
        description="Download a zip archive with a data directory and unpack it. A download that "
        "broke off goes on with the same command.",
        epilog="example: fastrnn fetch --out coco",
    )
    parser.add_argument(
        "--url", metavar="URL", default=COURSE_URL, help="the archive (default: %(default)s)"
    )
    parser.add_argument(
        "--sha256", metavar="HEX", help="the SHA-256 that it must have (default: not checked)"
    )
    parser.add_argument(
        "--out", metavar="DIR", default=DIRECTORY,
        help="the data directory to make (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--force", action="store_true", help="replace a data directory (default: refuse)"
    )
    add_float(
        parser, "--timeout", at_least=0.1, default=30.0,
        help="seconds without an answer after which it is tried again (default: %(default)g)",
    )  # fmt: skip
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from ..data.fetch import FetchError, fetch_directory

    out = Path(arguments.out)
    again = "the same command goes on from there"
    shown: list[Bar] = []

    def begin(what: str) -> Progress:
        for bar in shown:
            bar.close()
        bar = Bar(what, BYTES)
        shown.append(bar)

        def progress(done: int, total: int | None) -> None:
            if done and not bar.began:
                print(f"{what}: goes on at {done / 1e6:,.1f} MB", file=sys.stderr)
            bar(done, total)

        return progress

    try:
        figures = fetch_directory(
            out, arguments.url, sha256=arguments.sha256, force=arguments.force, progress=begin,
            timeout=arguments.timeout,
        )  # fmt: skip
    except ArgumentError as error:
        raise ValueError(f"{flag_of(error.name)} {error.problem}") from None
    except FetchError as error:
        raise FetchError(f"{error}; {again}") from None
    except KeyboardInterrupt:
        print(f"fastrnn: stopped; {again}", file=sys.stderr)
        raise
    finally:
        for bar in shown:
            bar.close()
    for split in ("train", "val"):
        images, captions = figures[f"{split}_images"], figures[f"{split}_captions"]
        print(f"{split:<6} {images:,} images, {captions:,} captions")
    print(f"words  {figures['words']:,}")
    print(f"written to {out}")
    print(f"next: fastrnn train --data {shlex.quote(str(out))} --recipe coco")
    return 0

"""``fastrnn fetch``: download the course's data set, or another one in its layout."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from ..data.layout import COURSE_URL
from .options import add_float
from .progress import duration

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
    shown: list[_Progress] = []

    def begin(what: str) -> _Progress:
        for progress in shown:
            progress.close()
        shown.append(_Progress(what))
        return shown[-1]

    try:
        figures = fetch_directory(
            out, arguments.url, sha256=arguments.sha256, force=arguments.force, progress=begin,
            timeout=arguments.timeout,
        )  # fmt: skip
    except FetchError as error:
        raise FetchError(f"{error}; {again}") from None
    except KeyboardInterrupt:
        print(f"fastrnn: stopped; {again}", file=sys.stderr)
        raise
    finally:
        for progress in shown:
            progress.close()
    for split in ("train", "val"):
        images, captions = figures[f"{split}_images"], figures[f"{split}_captions"]
        print(f"{split:<6} {images:,} images, {captions:,} captions")
    print(f"words  {figures['words']:,}")
    print(f"written to {out}")
    print(f"next: fastrnn train --data {shlex.quote(str(out))} --recipe coco")
    return 0


class _Progress:
    """A bar on a terminal, else a line now and then."""

    EVERY = 30.0

    def __init__(self, what: str) -> None:
        self._what, self._bar = what, None
        self._began = self._spoke = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int | None) -> None:
        if self._first is None:
            self._first = done
            if done:
                print(f"{self._what}: goes on at {done / 1e6:,.1f} MB", file=sys.stderr)
        if sys.stderr.isatty():
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(
                    desc=self._what, total=total, initial=done, unit="B", unit_scale=True,
                    dynamic_ncols=True, leave=False,
                )  # fmt: skip
            assert self._bar is not None
            self._bar.total = total
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._spoke > self.EVERY:
            self._spoke = time.monotonic()
            rate = (done - self._first) / (self._spoke - self._began)
            text = f"{self._what}: {done / 1e6:,.1f} MB"
            if total:
                left = duration((total - done) / rate) if rate > 0 else "unknown time"
                text += f" of {total / 1e6:,.1f} MB, {left} left"
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

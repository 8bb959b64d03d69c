"""``fastrnn caption``: captions for photographs, from files, folders and URLs."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from ..files import one_line, write_aside
from ..terminal import columns, fold, is_terminal, say
from .bar import Bar
from .options import (
    Choice,
    add_decoding,
    add_force,
    add_integer,
    add_threads,
    check_file,
    decoding_of,
    flag_of,
    use_threads,
)

FORMATS = ("text", "json", "jsonl", "csv")
SOME_FAILED = 1
"""Exit status if some images could be captioned and others could not."""
NONE_CAPTIONED = 2
"""Exit status if there is no caption at all: that of any bad input."""


def add_parser(commands: Any) -> Any:
    """Add the command; return its parser."""
    parser = commands.add_parser(
        "caption",
        help="caption photographs",
        description="Caption photographs with the model of a run. The run must know how the "
        "features of its images were made, as after `fastrnn prepare --images`. An image that "
        "cannot be read is named on stderr, and the others are captioned; the exit status is then "
        "1, or 2 if no image is left.",
        epilog="example: fastrnn caption runs/mine holiday/ --beam 5 --n-best 3 --sheet "
        "holiday.png",
    )
    parser.add_argument("run_directory", metavar="RUN", help="a run directory, or a model in it")
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+",
        help="an image, a folder of images (with the folders in it), or an http or https URL",
    )  # fmt: skip
    how = parser.add_argument_group("decoding")
    add_decoding(how)
    add_integer(
        how, "--n-best", default=1,
        help="captions of each image, at most --beam, with their scores (default: %(default)s)",
    )  # fmt: skip
    add_threads(how)

    where = parser.add_argument_group("results")
    where.add_argument(
        "--format", action=Choice, words=FORMATS, default="text",
        help="what is printed: JSON has the probability of each word, CSV that of each caption "
        "(default: %(default)s)",
    )  # fmt: skip
    where.add_argument("--out", metavar="FILE", help="write the captions to this file instead")
    where.add_argument(
        "--sheet", metavar="FILE.png", help="draw the pictures with their captions (at most 400)"
    )
    add_force(where)

    source = parser.add_argument_group("images")
    source.add_argument(
        "--network", metavar="FILE.onnx",
        help="where the network of the run's features is now, if it is an ONNX file",
    )  # fmt: skip
    source.add_argument(
        "--allow-private", action="store_true",
        help="fetch URLs from this machine and its network, too",
    )  # fmt: skip
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    if arguments.n_best > arguments.beam:
        raise ValueError(
            f"--n-best is {arguments.n_best}; expected at most --beam, which is {arguments.beam}"
        )
    check_file("--out", arguments.out, force=arguments.force)
    check_file("--sheet", arguments.sheet, suffix=".png", force=arguments.force)
    use_threads(arguments)
    # Here, because the other commands do not need them.
    from ..captioner import Captioned, Captioner

    failures = _Failures()
    images = _find_images(arguments.images, arguments.allow_private, failures)
    if not images:
        return failures.tell(0)
    captioner = Captioner.load(arguments.run_directory, onnx=arguments.network)
    preview, most = None, 0
    if arguments.sheet is not None:
        from ..report.sheet import MAX_PICTURES, SHEET_PICTURE

        preview, most = SHEET_PICTURE, MAX_PICTURES
    captioned = captioner.each(
        [image for _, image in images],
        names=[name for name, _ in images],
        n_best=arguments.n_best,
        preview=preview,
        failed=failures,
        **decoding_of(arguments),
    )
    count, pictures = 0, list[Captioned]()
    to_file = arguments.out is not None
    # Captions on a terminal are progress enough.
    shows = len(images) > 1 and (to_file or not is_terminal(sys.stdout))
    bar = Bar("captions", "images", len(images), lines=to_file)
    with _output(arguments.out) as file, contextlib.closing(bar):
        write = _writer(arguments.format, arguments.n_best, file)
        if shows:
            bar(0)
        for item in captioned:
            write(item)
            count += 1
            if len(pictures) < most:
                pictures.append(item)
            if shows:
                bar(count + failures.count)
        write(None)
    if arguments.out is not None:
        say(f"written to {arguments.out}: the captions of {_images(count)}")
    if pictures:
        _write_sheet(arguments, pictures, count)
    return failures.tell(count)


def _write_sheet(arguments: argparse.Namespace, pictures: list[Any], count: int) -> None:
    from ..report.sheet import write_sheet

    decoding = "greedy" if arguments.beam == 1 else f"beam {arguments.beam}"
    write_sheet(arguments.sheet, pictures, f"{arguments.run_directory}, {decoding}")
    # On stdout there are captions, unless they are written to a file.
    where = sys.stderr if arguments.out is None else sys.stdout
    shown = _images(count) if len(pictures) == count else f"the first {_images(len(pictures))}"
    say(f"written to {arguments.sheet}: {shown}", file=where)


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


# -- images


class _Failures:
    """Names the images that cannot be captioned, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, name: str, error: Exception) -> None:
        message = getattr(error, "strerror", None) or one_line(error)
        if not message.startswith(name):
            message = f"{name}: {message}"
        self.count += 1
        sys.stdout.flush()
        _print(f"fastrnn: {_visible(message)}", sys.stderr)

    def tell(self, captioned: int) -> int:
        """Say how many there were; return the exit status."""
        if not self.count:
            return 0
        total = self.count + captioned
        print(f"fastrnn: {self.count:,} of {_images(total)} not captioned", file=sys.stderr)
        return SOME_FAILED if captioned else NONE_CAPTIONED


def _find_images(
    places: list[str], allow_private: bool, failures: _Failures
) -> list[tuple[str, Any]]:
    """Return the name of each image, and the image or what fetches it."""
    from ..remote import RemoteError, fetch_image, is_url
    from ..vision.images import find_images

    def fetch(url: str) -> bytes:
        try:
            return fetch_image(url, allow_private=allow_private)
        except RemoteError as error:
            if error.allowed_by is None:
                raise
            raise OSError(f"{error.about}, or {flag_of(error.allowed_by)}") from None

    found: list[tuple[str, Any]] = []
    for place in places:
        if is_url(place):
            found.append((place, partial(fetch, place)))
        elif not Path(place).is_dir():
            found.append((place, Path(place)))
        else:
            try:
                found += [(str(path), path) for path in find_images(place)]
            except (OSError, ValueError) as error:
                failures(place, error)
    return found


# -- results


@contextlib.contextmanager
def _output(path: str | None) -> Iterator[TextIO]:
    """Give a file to write to: stdout, or one that is renamed to `path` when it is whole."""
    if path is None:
        yield sys.stdout
        return
    file = io.StringIO(newline="")
    yield file
    content = file.getvalue().encode("utf-8", "backslashreplace")
    write_aside(path, lambda binary: binary.write(content))


def _writer(form: str, n_best: int, file: TextIO) -> Callable[[Any], None]:
    """Return what writes an image with its captions to a file, and at the end takes None."""
    ascii_only = (file.encoding or "utf-8").lower().replace("-", "") != "utf8"

    def as_json(item: Any) -> str:
        return json.dumps(item.as_dict(), ensure_ascii=ascii_only)

    def text(item: Any) -> None:
        if item is None:
            return
        name = _visible(item.name)
        width = columns(file)
        if n_best == 1:
            _print(fold(f"{name}: {item.caption}", width, 2), file)
            return
        _print(name, file)
        for caption in item.captions:
            _print(fold(f"  {caption.score:7.3f}  {caption.text}", width, 11), file)

    def jsonl(item: Any) -> None:
        if item is not None:
            _print(as_json(item), file)

    started = False

    def whole_json(item: Any) -> None:
        nonlocal started
        before = ",\n" if started else "[\n"
        started = True
        if item is None:
            _print("\n]" if before == ",\n" else "[]", file)
        else:
            _print(before + as_json(item), file, end="")

    def comma_separated(item: Any) -> None:
        nonlocal started
        line = io.StringIO()
        rows = csv.writer(line, lineterminator="\n")
        if not started:
            rows.writerow(["image", "rank", "caption", "log_prob", "score"])
            started = True
        for rank, caption in enumerate(item.captions if item else (), 1):
            rows.writerow([item.name, rank, caption.text, caption.log_prob, caption.score])
        _print(line.getvalue(), file, end="")

    writers = {"text": text, "json": whole_json, "jsonl": jsonl, "csv": comma_separated}
    return writers[form]


def _visible(text: str) -> str:
    """Return text in one line, without what could control a terminal."""
    kept = {"\N{ZERO WIDTH JOINER}", "\N{ZERO WIDTH NON-JOINER}"}  # in names of many scripts
    return "".join(
        c if c.isprintable() or c in kept or 0xDC80 <= ord(c) <= 0xDCFF else "?" for c in text
    )


def _print(text: str, file: TextIO, end: str = "\n") -> None:
    """Print text, with escapes for the characters that the file cannot hold."""
    encoding = file.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, end=end)
    if file is sys.stdout:
        file.flush()  # so that a caption is seen when it is there

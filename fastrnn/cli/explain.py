"""``fastrnn explain``: show why a model says what it says about an image."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastrnn

from ..explain.saliency import METHODS
from .options import Choice, add_float, add_integer, add_threads, use_threads

if TYPE_CHECKING:
    from ..explain import Saliency

PAGE, NUMBERS = "index.html", "explanation.json"


def add_parser(commands: Any) -> Any:
    """Add the command; return its parser."""
    parser = commands.add_parser(
        "explain",
        help="show why a model says what it says about an image",
        description="Show which pixels made the model say each word of an image's caption, change "
        "the image until it says another word, or make an image for a word: by gradients of the "
        "words through the captioner, the PCA and the network. Writes PNG files, the numbers as "
        f"{NUMBERS}, and a page, {PAGE}.",
        epilog="example: fastrnn explain runs/flickr8k dog.jpg --method integrated --fool cat "
        "--out why",
    )
    parser.add_argument("of_run", metavar="RUN", help="a run directory, or a model file in it")
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    parser.add_argument(
        "--out", metavar="DIR", required=True,
        help="where the files are written: a new or empty directory, or an earlier explanation, "
        "which is replaced",
    )  # fmt: skip
    what = parser.add_argument_group("the words")
    what.add_argument(
        "--caption", metavar="TEXT",
        help="explain this caption (default: the model's own, greedy)",
    )  # fmt: skip
    what.add_argument(
        "--word", metavar="N|WORD", action="append", default=[],
        help="explain only this word, or the N-th; may be repeated (default: all)",
    )  # fmt: skip
    what.add_argument(
        "--method", action=Choice, words=METHODS, default="smooth",
        help="plain: the gradient at the image; smooth: its mean over copies with noise; "
        "integrated: integrated gradients from gray, whose sum is the change of the "
        "log-probability (default: %(default)s)",
    )  # fmt: skip
    add_integer(what, "--samples", help="copies with noise for smooth (default: 16)")
    add_float(
        what, "--tolerance", metavar="PERCENT",
        help="largest error of these sums for integrated, in percent of the change; less takes "
        "longer (default: 1)",
    )  # fmt: skip
    made = parser.add_argument_group("images made by gradients")
    made.add_argument(
        "--fool", metavar="WORD", action="append", default=[],
        help="change the image as little as possible until the model says this word; may be "
        "repeated",
    )  # fmt: skip
    add_float(
        made, "--bound", at_least=0, metavar="LEVELS",
        help="largest change for --fool: root mean square, in levels of 255 (default: 8)",
    )  # fmt: skip
    made.add_argument(
        "--visualise", metavar="WORD", action="append", default=[],
        help="make an image that maximises the score of this word; may be repeated",
    )  # fmt: skip
    add_integer(made, "--iterations", help="gradient steps for --visualise (default: 100)")
    add_integer(made, "--seed", at_least=0, default=0, help="seed of all noise (default: 0)")
    add_threads(parser)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    # Nothing is written before everything is known.
    out = Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out is {out}; expected a directory")
    if out.is_dir() and not (out / NUMBERS).is_file() and any(out.iterdir()):
        raise ValueError(
            f"--out is {out}, which has other files; expected a new or empty directory, or an "
            "earlier explanation, which is replaced"
        )
    for option, value, needs in (
        ("--bound", arguments.bound, arguments.fool),
        ("--iterations", arguments.iterations, arguments.visualise),
        ("--samples", arguments.samples, arguments.method == "smooth"),
        ("--tolerance", arguments.tolerance, arguments.method == "integrated"),
    ):
        if value is not None and not needs:
            other = {
                "--bound": "--fool", "--iterations": "--visualise", "--samples": "--method smooth"
            }.get(option, "--method integrated")  # fmt: skip
            raise ValueError(f"{option} needs {other}")
    if arguments.tolerance is not None and not 0 < arguments.tolerance <= 100:
        raise ValueError(
            f"--tolerance is {arguments.tolerance:g}; expected more than 0 and at most 100 percent"
        )
    tolerance = (arguments.tolerance or 1.0) / 100
    use_threads(arguments)

    from ..captioner import Captioner
    from ..explain import fool, saliency, visualise
    from ..explain.saliency import caption_ids, known_word, network_pixels
    from ..files import make_directory, write_json
    from ..report.explanations import (
        Explanation,
        explain_class,
        remove_other_pictures,
        write_page,
        write_pictures,
    )

    captioner = Captioner.load(arguments.of_run, threads=fastrnn.get_num_threads())
    captioner.network.module  # noqa: B018  raises an error if there are no gradients
    if arguments.threads is not None:
        import torch

        torch.set_num_threads(arguments.threads)
    model = captioner.model
    for option in ("fool", "visualise"):
        for word in getattr(arguments, option):
            known_word(model, word, f"--{option}")
    pixels = network_pixels(captioner, arguments.image)
    ids = caption_ids(captioner, pixels, arguments.caption)
    names = [model.idx_to_word[idx] for idx in ids]
    steps = [step for choice in arguments.word for step in _steps(choice, names)]

    began = time.perf_counter()
    found = saliency(
        captioner, pixels, ids, arguments.method, steps=list(dict.fromkeys(steps)) or None,
        samples=arguments.samples or 16, seed=arguments.seed, tolerance=tolerance,
    )  # fmt: skip
    about = Explanation(
        str(arguments.image), " ".join(names), found, explain_class(captioner, pixels)
    )
    print(f"{'caption':<12}{about.caption}")
    print(
        f"{'method':<12}{found.method}: {found.passes} image{'' if found.passes == 1 else 's'}, "
        f"{time.perf_counter() - began:.1f} s\n"
    )
    _show(found, tolerance)
    print(flush=True)
    for word in arguments.fool:
        made = fool(
            captioner, pixels, word, bound=8.0 if arguments.bound is None else arguments.bound
        )
        about.fooling.append(made)
        print(f"{'fool':<12}{word}: {made.before}")
        print(f"{'':<12}{'':<{len(word)}}  {made.after}")
        print(
            f"{'':<12}changed by {made.change:.2f} of 255 levels (root mean square), at most "
            f"{made.largest}",
            flush=True,
        )
    for word in arguments.visualise:
        drawn = visualise(
            captioner, word, num_iterations=arguments.iterations or 100, seed=arguments.seed
        )
        about.visualisations.append(drawn)
        print(f"{'visualise':<12}{word}: {drawn.caption}", flush=True)

    make_directory(out)
    said = write_pictures(out, about)
    for entry in said["fooling"]:  # of the file, as whoever opens it sees it
        caption = captioner([out / entry["image"]])[0].captions[0]
        if entry["word"] not in caption.words:
            raise ValueError(
                f"{out / entry['image']}: the caption is {caption.text!r}; expected one with "
                f"{entry['word']!r}"
            )
    write_json(out / NUMBERS, {"run": str(arguments.of_run), **said})
    write_page(
        out / PAGE, [about], title=f"Why “{about.caption or '(no words)'}”?",
        about=f"{arguments.image}, captioned by {arguments.of_run}",
    )  # fmt: skip
    remove_other_pictures(out, said)
    print(f"written to {out / PAGE}")
    return 0


def _steps(choice: str, words: list[str]) -> list[int]:
    """Return the places of a word in a caption, from 0, for its number from 1 or the word."""
    found = [step for step, word in enumerate(words) if word == choice.lower()]
    if not found and choice.isdecimal() and 1 <= int(choice) <= len(words):
        found = [int(choice) - 1]
    if not found:
        raise ValueError(
            f"--word is {choice!r}; expected a word of {' '.join(words)!r}, or its number, 1 to "
            f"{len(words)}"
        )
    return found


def _show(found: Saliency, tolerance: float) -> None:
    """Print the words with their probabilities and, for integrated gradients, their sums."""
    for k, word in enumerate(found.words):
        line = f"{found.steps[k] + 1:>3} {word:<14} log-probability {found.log_probs[k]:8.3f}"
        if found.changes is not None and found.errors is not None:
            line += (
                f"   since gray {found.changes[k]:+8.3f}   sum of the map "
                f"{found.changes[k] + found.errors[k]:+8.3f}"
            )
            if found.resolution is not None and (
                found.resolution[k] > tolerance * abs(found.changes[k])
            ):
                line += f" (rounding: {found.resolution[k]:.1g})"
        print(line)

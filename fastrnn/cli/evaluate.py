"""``fastrnn evaluate``: measure a model on a split of a data set."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from ..checkpoint import load_model
from ..classifiers.rnn import CaptioningRNN
from ..data.layout import SPLITS, VOCABULARY_FILE, named_directory, read_captioning_directory
from ..evaluation import Evaluator, find_references
from ..files import write_json
from ..metrics import METRIC_NAMES, diversity
from ..terminal import say, say_facts, shown_path
from ..training import read_run
from ..training.progress import model_size
from ..training.trainer import seconds_since
from .bar import Bar
from .options import (
    Choice,
    add_decoding,
    add_force,
    add_integer,
    add_threads,
    check_file,
    decoding_of,
    use_threads,
)

NO_WORDS = "(no words)"
"""What is printed for an empty caption."""
_WIDTH = 12
"""Columns of the names."""


def add_parser(commands: Any) -> Any:
    """Add the command; return its parser."""
    parser = commands.add_parser(
        "evaluate",
        help="measure a captioner: BLEU, ROUGE-L, CIDEr",
        description="Caption the images of a split and compare the captions with references "
        "written by people: BLEU, ROUGE-L and CIDEr as in COCO's evaluation, without Java.",
        epilog="example: fastrnn evaluate runs/flickr8k --beam 3 --results captions.json",
    )
    what = parser.add_argument_group("model and data")
    what.add_argument("model", metavar="RUN", help="a run directory, or a model file (npz)")
    what.add_argument(
        "--data", metavar="DIR",
        help="a data set in CS231n's h5 layout (default: the run's, else what the environment "
        "variable FASTRNN_DATA names)",
    )  # fmt: skip
    what.add_argument(
        "--raw-features", action="store_true", default=None,
        help="read the features before PCA (default: as the run did)",
    )  # fmt: skip
    what.add_argument(
        "--split", action=Choice, words=(*SPLITS, "test"), default="val",
        help="the images to caption (default: %(default)s)",
    )  # fmt: skip
    add_integer(what, "--limit", help="only the first N images (default: all)")
    what.add_argument(
        "--references", metavar="FILE.json",
        help="captions by people: {file name: [captions]}, COCO's annotations, or a list of lists "
        "(default: <split>_references.json of the data, else the captions in its h5 file)",
    )  # fmt: skip

    how = parser.add_argument_group("decoding")
    add_decoding(how)
    add_threads(how)

    where = parser.add_argument_group("results")
    where.add_argument("--json", metavar="FILE", help="write the metrics to this file")
    where.add_argument(
        "--results", metavar="FILE.json",
        help="write the captions to this file in COCO's result format; image_id is the image's "
        "row in the data",
    )  # fmt: skip
    add_force(where)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    check_file("--json", arguments.json, force=arguments.force)
    check_file("--results", arguments.results, force=arguments.force)
    use_threads(arguments)
    model, directory, data = _read(arguments)
    split = arguments.split
    urls = data[f"{split}_urls"].tolist()
    references, source = find_references(data, directory, split, arguments.references)
    total = len(data[f"{split}_features"])
    count = min(arguments.limit or total, total)
    evaluator = Evaluator(data, split, images=range(count), references=references)
    if not evaluator.judged:
        raise ValueError(f"{source}: has no captions of the images that are to be evaluated")

    # All that is known before the captions are made: with a wide beam, they take long.
    judged = len(evaluator.judged)
    decoding = "greedy" if arguments.beam == 1 else f"beam {arguments.beam}"
    facts = {
        "model": f"{arguments.model} ({model_size(model)})",
        "data": f"{shown_path(directory)}, {split}: {count:,} images",
        "references": f"{source}: {sum(map(len, evaluator.references)):,} captions"
        + (f" of {judged:,} of the images" if judged < count else ""),
    }
    say_facts(facts, _WIDTH)
    without_meteor = evaluator.missing_meteor
    for note in (evaluator.missing, without_meteor):
        if note is not None:
            say(f"note: {note}")

    began = time.perf_counter()
    bar = Bar("captions", "images", count)
    try:
        captions = evaluator.caption(model, progress=bar, **decoding_of(arguments))
    finally:
        bar.close()
    seconds = seconds_since(began)
    rate = f"{decoding}: {seconds:.2f} s, {count / seconds:,.0f} captions/s"
    say_facts({"decoding": rate}, _WIDTH)

    metrics = evaluator.score(captions)
    metrics["meteor"] = None if without_meteor else evaluator.meteor(captions)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        varied = diversity(captions)

    print()
    for name, label in METRIC_NAMES.items():
        value = metrics[name]
        if value is not None:
            print(f"{label:<{_WIDTH}}{100 * value:5.1f}")
    print()
    often = varied["most_common"] or NO_WORDS
    found = {
        "distinct": f"{varied['distinct_captions']:,} of {count:,} captions",
        "words used": f"{varied['vocabulary_used']:,} of {len(model.word_to_idx):,}",
        "length": f"{varied['mean_length']:.1f} words",
        "most often": f"{often} ({varied['most_common_share']:.1%})",
    }
    say_facts(found, _WIDTH)
    for warning in caught:
        say(f"fastrnn: warning: {warning.message}", file=sys.stderr)

    if arguments.json is not None:
        about = {
            "model": str(arguments.model), "data": str(directory), "split": split,
            "references": source, "beam": arguments.beam, "max_length": arguments.max_length,
            "min_length": arguments.min_length, "length_penalty": arguments.length_penalty,
            "no_repeat_ngram": arguments.no_repeat_ngram,
            "suppress_unk": not arguments.allow_unk, "images_with_references": judged,
            "seconds": seconds,
        }  # fmt: skip
        write_json(arguments.json, {**about, **metrics, **varied})
    if arguments.results is not None:
        rows = [
            {"image_id": row, "caption": caption, "file_name": url}
            for row, (caption, url) in enumerate(zip(captions, urls[:count], strict=True))
        ]
        write_json(arguments.results, rows)
    return 0


def _read(arguments: argparse.Namespace) -> tuple[CaptioningRNN, Path, dict[str, Any]]:
    """Read the model and data that fit it."""
    place = Path(arguments.model)
    known = read_run(place) if place.is_dir() else None
    model = load_model(place)
    data_place = arguments.data or (known and known.data_directory) or named_directory()
    if data_place is None:
        raise ValueError(f"--data is needed: {place} does not say what it was trained on")
    directory = Path(data_place)
    raw = arguments.raw_features or bool(known and known.settings.get("raw_features"))
    splits = tuple(dict.fromkeys((*SPLITS, arguments.split)))
    data = read_captioning_directory(directory, pca_features=not raw, splits=splits)
    if dict(model.word_to_idx) != data["word_to_idx"]:
        raise ValueError(
            f"{directory / VOCABULARY_FILE}: is not the vocabulary of {place} "
            f"({len(data['word_to_idx']):,} words, {len(model.word_to_idx):,} in the model)"
        )
    width, expected = data["val_features"].shape[1], model.params["W_proj"].shape[0]
    if width != expected:
        raise ValueError(
            f"{directory}: has {width} features{'' if raw else ' after PCA'}; {place} expects "
            f"{expected}" + ("" if raw else " (perhaps --raw-features)")
        )
    return model, directory, data

"""``fastrnn prepare``: from annotations and photographs or features to a data directory."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checks import ArgumentError
from ..data.layout import VOCABULARY_FILE
from .bar import Bar
from .features import add_network, network_of
from .options import Choice, add_float, add_integer, add_threads, flag_of, use_threads

LARGE = 200_000
"""Captions from which a data set is rather like COCO than like Flickr8k."""
SHOWN = 5
"""How many names of images are printed; all of them are in prepared.json."""


def add_parser(commands: Any) -> Any:
    """Add the command; return its parser."""
    parser = commands.add_parser(
        "prepare",
        help="make a data directory from captions and photographs or features",
        description="Make a data directory from captions (COCO's or Karpathy's JSON, token files "
        "of Flickr8k and Flickr30k, CSV, TSV, JSON, JSON Lines) and photographs, or features that "
        "you have. An image is in one split with all of its captions.",
        epilog="example: fastrnn prepare captions.json --images photos/ --out data",
    )
    what = parser.add_argument_group("captions")
    what.add_argument(
        "annotations", metavar="ANNOTATIONS", nargs="+", help="files of images and their captions"
    )
    for split in ("val", "test"):
        what.add_argument(
            f"--{split}", metavar="FILE", action="append", default=[],
            help=f"a file of the images of {split} and their captions; those of ANNOTATIONS are "
            "for training then",
        )  # fmt: skip
    what.add_argument(
        "--format", action=Choice, words=("json", "jsonl", "csv", "tsv", "flickr"),
        help="the format of the files (default: by name and first line)",
    )  # fmt: skip
    for column in ("image", "caption", "split"):
        what.add_argument(
            f"--{column}-column", metavar="NAME",
            help=f"the column or key of the {column}, or the number of a column (default: a usual "
            "name)",
        )  # fmt: skip

    splits = parser.add_argument_group("splits", "default: those of the captions' file")
    for split in ("train", "val", "test"):
        splits.add_argument(
            f"--{split}-images", metavar="FILE",
            help=f"a file with the name of an image of {split} on each line",
        )  # fmt: skip
    for split, otherwise in (("val", "0.1, if nothing says which images"), ("test", "0")):
        add_float(
            splits, f"--{split}-fraction", at_least=0,
            help=f"part of the images for {split}, drawn at random (default: {otherwise})",
        )  # fmt: skip
    add_integer(splits, "--seed", at_least=0, default=0, help="of that draw (default: %(default)s)")

    words = parser.add_argument_group("words")
    words.add_argument(
        "--tokens", action=Choice, words=("coco", "blank"), default="coco",
        help="split captions as COCO's evaluation does, or at blanks (default: %(default)s)",
    )  # fmt: skip
    add_integer(
        words, "--min-count",
        help="words that are rarer in the training captions become <UNK> (default: 5; with "
        "--vocab-size 1)",
    )  # fmt: skip
    add_integer(words, "--vocab-size", help="keep the N most frequent words (default: all)")
    words.add_argument(
        "--vocab", metavar="FILE",
        help=f"the words of an earlier data directory, or its {VOCABULARY_FILE}: to train its "
        "models further, or to test them on other images",
    )  # fmt: skip
    add_integer(
        words, "--max-length", default=15,
        help="cut captions to this many words (default: %(default)s)",
    )  # fmt: skip

    features = parser.add_argument_group("features")
    features.add_argument(
        "--images", metavar="DIR", help="the folder of the photographs; folders in it are searched"
    )
    features.add_argument(
        "--features", metavar="FILE", nargs="+",
        help="features that you have: npy, npz or h5 files, or folders with an npy file for each "
        "image (default: computed from the photographs)",
    )  # fmt: skip
    features.add_argument(
        "--feature-names", metavar="FILE", nargs="+",
        help="files with the image of each row of --features on a line (default: the names in the "
        "files; else the order of the captions' file)",
    )  # fmt: skip
    network = parser.add_argument_group("network for the photographs")
    add_network(network)
    add_integer(network, "--batch-size", help="images that a thread computes at a time")
    add_threads(network)
    add_integer(
        features, "--pca",
        help="keep N principal components, fitted on the training images (default: no PCA)",
    )  # fmt: skip
    features.add_argument(
        "--pca-file", metavar="FILE",
        help="the components of an earlier data directory (its pca.npz) instead",
    )  # fmt: skip

    where = parser.add_argument_group("results")
    where.add_argument("--out", metavar="DIR", required=True, help="the data directory to make")
    where.add_argument(
        "--force", action="store_true", help="replace a data directory (default: refuse)"
    )
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from ..data.pca import PCA
    from ..data.prepare import SplitOptions, WordOptions, prepare_directory

    use_threads(arguments)
    _check(arguments)
    words = WordOptions(
        tokens=arguments.tokens,
        min_count=arguments.min_count,
        vocab_size=arguments.vocab_size,
        words=_words(arguments.vocab),
        max_length=arguments.max_length,
    )
    splits = SplitOptions(arguments.val_fraction, arguments.test_fraction, arguments.seed)
    components = arguments.pca
    if arguments.pca_file is not None:
        components = PCA.load(arguments.pca_file)
    bar = _Photographs()
    try:
        record = prepare_directory(
            arguments.out, _sources(arguments, bar), words, splits, components=components,
            force=arguments.force,
        )  # fmt: skip
    except ArgumentError as error:
        raise ValueError(f"{flag_of(error.name)} {error.problem}") from None
    except KeyboardInterrupt:
        if bar.began:
            bar.close()
            print("fastrnn: features are kept; the same command goes on", file=sys.stderr)
        raise
    finally:
        bar.close()
    _tell(record)
    print(f"written to {arguments.out}")
    if train := record["splits"]["train"]["captions"]:
        recipe = "flickr8k" if train < LARGE else "coco"
        print(f"next: fastrnn train --data {shlex.quote(arguments.out)} --recipe {recipe}")
    else:
        print(f"next: fastrnn evaluate RUN --data {shlex.quote(arguments.out)}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that contradict each other, before files are read."""
    lists = [s for s in ("train", "val", "test") if getattr(arguments, f"{s}_images") is not None]
    fractions = arguments.val_fraction is not None or arguments.test_fraction is not None
    files = bool(arguments.val or arguments.test)
    if (len(lists) > 0) + fractions + files > 1:
        raise ValueError(
            "splits are given in several ways; expected files (--val FILE), lists (--val-images "
            "FILE) or fractions (--val-fraction X)"
        )
    if arguments.features is None and arguments.images is None:
        raise ValueError("prepare needs --images DIR or --features FILE")
    if arguments.features is not None:
        for name in ("network", "onnx", "layer", "mean", "std", "channels", "engine"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name} computes features; expected it without --features")
    if arguments.feature_names and not arguments.features:
        raise ValueError("--feature-names needs --features")
    if arguments.pca is not None and arguments.pca_file is not None:
        raise ValueError("--pca and --pca-file are both given; expected one of them")
    if arguments.vocab and (arguments.min_count or arguments.vocab_size):
        raise ValueError("--vocab has all words; expected no --min-count and no --vocab-size")


def _words(place: str | None) -> list[str] | None:
    from ..data.layout import read_vocabulary

    if place is None:
        return None
    path = Path(place)
    return read_vocabulary(str(path / VOCABULARY_FILE if path.is_dir() else path))["idx_to_word"]


class _Photographs(Bar):
    """A bar that first says how many photographs there are."""

    def __init__(self) -> None:
        super().__init__("features", "images")

    def __call__(self, done: int, total: int | None = None) -> None:
        if not self.began:
            print(f"photographs: {total:,}" + f", {done:,} are done" * bool(done), flush=True)
        super().__call__(done, total)


def _sources(arguments: argparse.Namespace, bar: Bar) -> Any:
    """Read the annotations, and look at the features."""
    from ..data.annotations import Annotations, Columns, read_annotations, read_names
    from ..data.feature_files import FeatureFiles
    from ..data.prepare import Sources

    annotations = Annotations()
    columns = Columns(arguments.image_column, arguments.caption_column, arguments.split_column)
    by_file = arguments.val or arguments.test
    for split, paths in (
        ("train" if by_file else None, arguments.annotations),
        ("val", arguments.val),
        ("test", arguments.test),
    ):
        for path in paths:
            read_annotations(
                path, annotations, form=arguments.format, split=split, columns=columns,
                tokens=arguments.tokens == "blank",
            )  # fmt: skip
    lists = {
        split: read_names(path)
        for split in ("train", "val", "test")
        if (path := getattr(arguments, f"{split}_images")) is not None
    }
    features = None
    if arguments.features is not None:
        names = None
        if arguments.feature_names is not None:
            names = [name for path in arguments.feature_names for name in read_names(path)]
        features = FeatureFiles(arguments.features, names)
    network = None if features is not None else network_of(arguments)
    return Sources(
        annotations, lists, None if arguments.images is None else Path(arguments.images), features,
        network, arguments.batch_size, bar,
    )  # fmt: skip


# -- what is printed


def _tell(record: Mapping[str, Any]) -> None:
    """Print the statistics."""
    facts = [("read", source) for source in record["annotations"]]
    for split, figures in record["splits"].items():
        share = figures["unknown"] / max(figures["kept"], 1)
        text = (
            f"{figures['images']:,} images, {figures['captions']:,} captions, "
            f"{figures['tokens']:,} tokens, {figures['types']:,} types, {share:.2%} <UNK>"
        )
        facts.append((split, text))
    train = record["splits"]["train"]
    if record["given_words"]:
        rule = "of the earlier data directory"
    else:
        rule = f"{record['words'] - 4:,} of {train['types']:,} types"
        rule += f" (seen {record['min_count']} times or more)" if record["min_count"] > 1 else ""
    facts.append(("words", f"{record['words']:,}: the four special words and {rule}"))
    cut = sum(figures["cut"] for figures in record["splits"].values())
    longest = max(figures["longest"] for figures in record["splits"].values())
    limit = record["max_length"]
    facts.append(("cut", f"{cut:,} captions, at {limit} words; the longest has {longest}"))
    facts.append(("features", f"{record['width']:,} an image"))
    for name, value in facts:
        print(f"{name:<9} {value}")
    empty = sum(figures["empty"] for figures in record["splits"].values())
    if empty:
        print(f"captions without a word: {empty:,}")
    for what, names in {**record["left_out"], "captions of unknown images": [*record["orphans"]],
                        "unreadable photographs": [*record["unreadable"]]}.items():  # fmt: skip
        if names:
            print(f"{what}: {len(names):,} ({_some(names)})")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more (prepared.json has all)" * (len(names) > SHOWN)
    return ", ".join(names[:SHOWN]) + more

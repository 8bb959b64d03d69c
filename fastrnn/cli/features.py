"""``fastrnn features``: photographs to features."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.pca import PCA
from ..files import make_directory, write_text
from ..terminal import duration
from ..vision.extract import Extraction, extract_features, partial_file
from ..vision.images import find_images
from ..vision.networks import DEFAULT_NETWORK, ENGINES, NETWORKS, Network, load_network
from ..vision.source import PCA_FILE, SOURCE_FILE, FeatureSource
from .bar import Bar
from .options import Choice, add_integer, add_threads, check_file, use_threads

_NAMED = 10
"""How many unreadable images are named in the last lines; all of them are in a file."""


def add_parser(commands: Any) -> Any:
    """Add the command; return its parser."""
    parser = commands.add_parser(
        "features",
        help="turn photographs into features by a CNN",
        description="Compute the features of photographs by a convolutional network, one row an "
        "image, and write them to an HDF5 file. Beside it, NAME.txt lists the image of each row, "
        "and features.json describes how they were made. If the command is stopped, the same "
        "command goes on where it was.",
        epilog="example: fastrnn features photos/ --out data/train.h5 --pca 512",
    )
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="image files, and folders with images"
    )
    parser.add_argument("--out", metavar="FILE", required=True, help="the file to write (h5)")
    network = parser.add_argument_group("network")
    add_network(network)
    add_threads(network)
    pca = parser.add_argument_group("PCA")
    add_integer(
        pca, "--pca",
        help=f"fit a PCA of N components to these features, which should be those of the training "
        f"part; write it to {PCA_FILE} and the projected features to NAME_pca.h5",
    )  # fmt: skip
    pca.add_argument(
        "--pca-file",
        metavar="FILE",
        help="apply a PCA that was fitted before, and write the projected features to NAME_pca.h5",
    )
    how = parser.add_argument_group("run")
    add_integer(how, "--batch-size", help="images that a thread computes at a time")
    how.add_argument(
        "--restart", action="store_true",
        help="start over instead of going on where the command was stopped",
    )  # fmt: skip
    how.add_argument(
        "--strict", action="store_true",
        help="end at the first image that cannot be read (default: name it, and go on without it)",
    )  # fmt: skip
    parser.set_defaults(run=run)
    return parser


def add_network(group: Any) -> None:
    """Add the options of `network_of`."""
    group.add_argument(
        "--network", action=Choice, words=NETWORKS,
        help=f"the network (default: {DEFAULT_NETWORK})",
    )  # fmt: skip
    group.add_argument("--onnx", metavar="FILE", help="an ONNX model instead")
    group.add_argument(
        "--layer", metavar="NAME",
        help="the output, inner tensor or node of the ONNX model that gives the features (default: "
        "its first output)",
    )  # fmt: skip
    add_preprocessing(group)
    group.add_argument(
        "--engine", action=Choice, words=ENGINES,
        help=f"what computes (default: {ENGINES[0]}, which is faster)",
    )  # fmt: skip


def add_preprocessing(group: Any) -> None:
    """Add the options of how images become the input of an ONNX model."""
    for name, default in (("mean", "127,127,127"), ("std", "128,128,128")):
        group.add_argument(
            f"--{name}", metavar="R,G,B", type=_three,
            help=f"{name} of the input channels of an ONNX model, for pixels from 0 to 255 "
            f"(default: {default})",
        )  # fmt: skip
    group.add_argument(
        "--channels", action=Choice, words=("RGB", "BGR"),
        help="order of the input channels of an ONNX model, --mean and --std (default: RGB)",
    )  # fmt: skip


def _three(text: str) -> tuple[float, float, float]:
    try:
        first, second, third = (float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {text!r}; expected three numbers") from None
    return first, second, third


def network_of(arguments: argparse.Namespace) -> Network:
    """Load the network that the options name."""
    if arguments.onnx is None:
        for name in ("layer", "mean", "std", "channels"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name} needs --onnx")
        return load_network(arguments.network or DEFAULT_NETWORK, engine=arguments.engine)
    if arguments.network is not None:
        raise ValueError(f"--network is {arguments.network}; expected none with --onnx")
    given = {
        name: value
        for name in ("mean", "std", "channels")
        if (value := getattr(arguments, name)) is not None
    }
    return load_network(
        onnx=arguments.onnx, layer=arguments.layer, engine=arguments.engine, changes=given
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    began = time.perf_counter()
    use_threads(arguments)
    check_file("--out", arguments.out, suffix=".h5", directory_is_made=True)
    out = Path(arguments.out)
    if arguments.pca is not None and arguments.pca_file is not None:
        raise ValueError("--pca is given; expected it without --pca-file")
    others: list[Path] = []
    images = find_images(arguments.images, others=others)
    fitted = None if arguments.pca_file is None else PCA.load(arguments.pca_file)
    network = network_of(arguments)
    source = FeatureSource.of(network, pca=fitted, images=_folder(arguments.images))
    _check_directory(source, out, arguments.pca)
    most = min(network.width, len(images))
    if arguments.pca is not None and arguments.pca > most:
        raise ValueError(
            f"--pca is {arguments.pca}; expected at most {most}, for {len(images):,} images of "
            f"{network.width} features"
        )
    print(
        f"network  {network.name}, {network.layer}: {network.width} features, {network.engine}, "
        f"threads: {network.threads}"
    )
    print(f"images   {len(images):,}{_and_others(others)}", flush=True)
    make_directory(out.parent)
    bar, started = Bar("features", "images", len(images)), time.perf_counter()
    try:
        found = extract_features(
            images, network, out, batch_size=arguments.batch_size, progress=bar,
            resume=not arguments.restart, stop_at_unreadable=arguments.strict, keep=True,
        )  # fmt: skip
    except KeyboardInterrupt:
        bar.close()
        print(f"fastrnn: kept in {partial_file(out)}; the same command goes on", file=sys.stderr)
        raise
    finally:
        bar.close()
    rate = (len(images) - found.resumed) / (time.perf_counter() - started)
    _tell(found, images, out)
    resumed = f"; {found.resumed:,} were there" if found.resumed else ""
    print(f"written  {out}: {len(found.rows):,} rows of {found.width} features{resumed}")
    if arguments.pca is not None:
        fitted = PCA.fit_file(out, arguments.pca)
        source = FeatureSource.of(network, pca=fitted, images=source.images)
    if fitted is not None:
        projected = out.with_name(f"{out.stem}_pca.h5")
        rows, components = fitted.transform_file(out, projected)
        print(f"written  {projected}: {rows:,} rows of {components} components")
    source.write(out.parent)
    for file in (SOURCE_FILE, PCA_FILE) if fitted is not None else (SOURCE_FILE,):
        print(f"written  {out.parent / file}")
    # Kept until now, so that a PCA that was interrupted does not cost the features.
    partial_file(out).unlink(missing_ok=True)
    print(f"time     {duration(time.perf_counter() - began)}, {rate:,.1f} images/s")
    return 0


def _folder(given: Sequence[str]) -> Path | None:
    """Return the folder of the images, if there is one."""
    return Path(given[0]) if len(given) == 1 and Path(given[0]).is_dir() else None


def _and_others(others: Sequence[Path]) -> str:
    if not others:
        return ""
    named = ", ".join(path.name for path in others[:3]) + (", ..." if len(others) > 3 else "")
    return f"; left out {len(others):,} other files: {named}"


def _check_directory(source: FeatureSource, out: Path, components: int | None) -> None:
    """Refuse a directory that describes other features than those to be written."""
    there = FeatureSource.read(out.parent)
    if there is None:
        return
    path, one = out.parent / SOURCE_FILE, "choose another directory for --out"
    for name in ("network", "layer", "digest", "preprocessing"):
        had, has = getattr(there, name), getattr(source, name)
        if had != has:
            raise ValueError(f"{path}: {name} is {had}; expected {has} ({one})")
    if there.pca is None or out.exists():
        return
    # Another PCA would not fit the features that were projected before.
    if components is not None:
        raise ValueError(
            f"{path}: describes a PCA; expected --pca-file {out.parent / PCA_FILE}, or {one}"
        )
    if source.pca is None or source.describe()["pca"] != there.describe()["pca"]:
        raise ValueError(
            f"{path}: describes another PCA; expected --pca-file {out.parent / PCA_FILE}, or {one}"
        )


def _tell(found: Extraction, images: Sequence[Path], out: Path) -> None:
    """Write the image of each row, and name the images that could not be read."""
    listed = out.with_suffix(".txt")
    write_text(listed, "".join(f"{images[row]}\n" for row in found.rows))
    print(f"written  {listed}: the image of each row")
    for path, why in found.unreadable[:_NAMED]:
        print(f"fastrnn: warning: left out {path}: {why}", file=sys.stderr)
    more = len(found.unreadable) - _NAMED
    if found.unreadable:
        lost = out.with_name(f"{out.stem}_unreadable.txt")
        write_text(lost, "".join(f"{path}: {why}\n" for path, why in found.unreadable))
        rest = f" {more:,} more;" if more > 0 else ""
        print(
            f"fastrnn: warning:{rest} {lost} names all {len(found.unreadable):,} unreadable images",
            file=sys.stderr,
        )

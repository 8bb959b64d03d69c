"""Images a second: the pipeline from files to features, and its engine by itself.

    python -m bench.features PHOTOS [--images 2000] [--network efficientnet-lite0] [--threads N]

The photographs are repeated to the number of images. Two things are measured in turns, in blocks,
so that what else runs on the machine slows both down:

engine    the network on ready tensors in memory: the images decoded, resized and normalised before
pipeline  `extract_features`: files read, decoded, resized, normalised, computed and written

Their ratio is that of the two medians. ``--engines`` compares the engines instead.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastrnn.vision.extract import extract_features
from fastrnn.vision.images import find_images, open_image, prepare_image
from fastrnn.vision.networks import ENGINES, NETWORKS, Network, load_network


def rates(run: dict[str, Callable[[], None]], count: int, blocks: int) -> dict[str, list[float]]:
    """Return the images a second of each way in each block, after one block that does not count."""
    found: dict[str, list[float]] = {name: [] for name in run}
    for block in range(blocks + 1):
        # What came first in one block comes last in the next.
        for name in sorted(run, reverse=bool(block % 2)):
            began = time.perf_counter()
            run[name]()
            if block:
                found[name].append(count / (time.perf_counter() - began))
    return found


def ready_tensors(network: Network, files: list[Path]) -> np.ndarray:
    """Return the inputs of the network, (N, 3, S, S)."""
    how = network.preprocessing
    return np.stack([prepare_image(open_image(file, size=how.size), how) for file in files])


def show(found: dict[str, list[float]]) -> None:
    """Print the median and the range of each way."""
    for name, values in found.items():
        print(
            f"{name:<12} {statistics.median(values):7.1f} images/s "
            f"(blocks: {min(values):.1f} to {max(values):.1f})"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--blocks", type=int, default=5, help="pairs of measurements")
    parser.add_argument("--network", choices=NETWORKS, default=NETWORKS[0])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--engines", action="store_true", help="compare the engines")
    arguments = parser.parse_args()
    photos = find_images(arguments.photos)
    files = [*itertools.islice(itertools.cycle(photos), arguments.images)]

    def load(engine: str) -> Network:
        return load_network(arguments.network, engine=engine, threads=arguments.threads)

    network = load(ENGINES[0])
    tensors = ready_tensors(network, photos)
    print(
        f"{network.name}, threads: {network.threads}, {len(photos)} photographs repeated to "
        f"{len(files)}"
    )

    def compute(network: Network) -> None:
        for start in range(0, len(files), len(tensors)):
            network.features(tensors[: len(files) - start])

    if arguments.engines:
        engines = {engine: load(engine) for engine in ENGINES}
        ways = {name: (lambda of=of: compute(of)) for name, of in engines.items()}
        show(rates(ways, len(files), arguments.blocks))
        return
    with tempfile.TemporaryDirectory() as place, contextlib.suppress(KeyboardInterrupt):
        out = Path(place, "features.h5")

        def extract() -> None:
            extract_features(files, network, out, resume=False)

        ways = {"engine": lambda: compute(network), "pipeline": extract}
        found = rates(ways, len(files), arguments.blocks)
        show(found)
        ratio = statistics.median(
            pipeline / engine
            for pipeline, engine in zip(found["pipeline"], found["engine"], strict=True)
        )
        print(f"pipeline / engine: {ratio:.3f} (median of {arguments.blocks} pairs)")


if __name__ == "__main__":
    main()

"""Images a second: the pipeline from files to features, and its engine by itself.

    python -m bench.features PHOTOS [--images 2000] [--network efficientnet-lite0] [--threads N]

The photographs are repeated to the number of images. Three things are measured in turns, in
blocks, so that what else runs on the machine slows all of them down:

engine    the engine by itself, called with one batch of ready tensors after the other: images that
          were decoded, resized and normalised before; of several batch sizes the fastest
parallel  the same tensors by `Network.features`, which computes several small batches at a time
pipeline  `extract_features`: files read, decoded, resized, normalised, computed and written

The ratios are medians of those of the blocks. ``--engines`` compares the engines instead.
"""

from __future__ import annotations

import argparse
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

BATCH_SIZES = (1, 2, 4, 8, 16, 32)


def rates(run: dict[str, Callable[[], object]], count: int, blocks: int) -> dict[str, list[float]]:
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

    def in_parallel(network: Network) -> None:
        for start in range(0, len(files), len(tensors)):
            network.features(tensors[: len(files) - start])

    alone = load(ENGINES[0])

    def one_by_one(size: int, count: int) -> None:
        alone.chunk = size  # so that a batch is computed at once, by all threads
        for start in range(0, count, size):
            first = start % (len(tensors) - size + 1)
            alone.features(tensors[first : first + size])

    if arguments.engines:
        engines = {engine: load(engine) for engine in ENGINES}
        ways = {name: (lambda of=of: in_parallel(of)) for name, of in engines.items()}
        show(rates(ways, len(files), arguments.blocks))
        return
    sizes = [size for size in BATCH_SIZES if size <= len(tensors)]
    some = min(len(files), 256)
    by_size = rates(
        {f"{size:3}": (lambda size=size: one_by_one(size, some)) for size in sizes}, some, 3
    )
    best = int(max(by_size, key=lambda size: statistics.median(by_size[size])))
    print(f"the engine by itself is fastest in batches of {best}")
    with tempfile.TemporaryDirectory() as place:
        out = Path(place, "features.h5")
        ways = {
            "engine": lambda: one_by_one(best, len(files)),
            "parallel": lambda: in_parallel(network),
            "pipeline": lambda: extract_features(files, network, out, resume=False),
        }
        found = rates(ways, len(files), arguments.blocks)
    show(found)
    for name in ("engine", "parallel"):
        pairs = zip(found["pipeline"], found[name], strict=True)
        ratio = statistics.median(pipeline / other for pipeline, other in pairs)
        print(f"pipeline / {name}: {ratio:.3f} (median of {arguments.blocks} blocks)")


if __name__ == "__main__":
    main()

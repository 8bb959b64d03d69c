"""Small networks for the tests of what is around a network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.data.pca import PCA
from fastrnn.vision.images import Preprocessing, open_image, prepare_image
from fastrnn.vision.networks import Network

SIDE = 8


def features_of(network: Network, images: Sequence[Any], pca: PCA | None = None) -> np.ndarray:
    """The features of images by a network, after a PCA, without what the package adds to that."""
    prepared = [prepare_image(open_image(image), network.preprocessing) for image in images]
    found = network.features(np.stack(prepared))
    return found if pca is None else pca.transform(found)


class MeanNetwork(Network):
    """Its features are the mean of each channel of the input; it counts its images."""

    def __init__(self, *, threads: int = 2, chunk: int = 2, digest: str = "0") -> None:
        self.images = self.now = self.most = 0
        self.lock = threading.Lock()
        self.before: Callable[[np.ndarray], Any] = lambda batch: None
        super().__init__(
            name="onnx", layer="mean", width=3, preprocessing=Preprocessing(size=SIDE),
            digest=f"sha256:{digest * 64}", engine="onnxruntime", threads=threads, chunk=chunk,
            run=self._means,
        )  # fmt: skip

    def _means(self, batch: np.ndarray) -> np.ndarray:
        with self.lock:
            self.images += len(batch)
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            self.before(batch)
            return batch.mean(axis=(2, 3))
        finally:
            with self.lock:
                self.now -= 1


def write_onnx(
    path: Path,
    *,
    shape: tuple[Any, ...] = ("N", 3, SIDE, SIDE),
    inputs: int = 1,
    last: str = "Identity",
) -> dict[str, np.ndarray]:
    """Write a model: convolution "conv", ReLU "maps", mean "pool", Gemm "scores"; return weights.

    A last node goes from "scores" to the output "out".
    """
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(5)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "fc": rng.standard_normal((4, 5)).astype(np.float32),
        "b": rng.standard_normal(5).astype(np.float32),
    }
    first = "pixels"
    nodes = []
    if shape[-1] == 3:
        nodes.append(helper.make_node("Transpose", ["pixels"], ["nchw"], perm=[0, 3, 1, 2]))
        first = "nchw"
    nodes += [
        helper.make_node("Conv", [first, "w"], ["conv"], "first_node", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["maps"]),
        helper.make_node("GlobalAveragePool", ["maps"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["pool"]),
        helper.make_node("Gemm", ["pool", "fc", "b"], ["scores"]),
        helper.make_node(last, ["scores"], ["out"]),
    ]
    kind = TensorProto.INT64 if last == "Shape" else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "small",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name in ["pixels", "more"][:inputs]
        ],
        [helper.make_tensor_value_info("out", kind, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return weights


def layers_of(weights: dict[str, np.ndarray], batch: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the layers of `write_onnx`'s model by SciPy."""
    from scipy.signal import correlate

    maps = np.stack([
        [correlate(np.pad(image, ((0, 0), (1, 1), (1, 1))), kernel, "valid")[0]
         for kernel in weights["w"]]
        for image in batch
    ])  # fmt: skip
    pool = np.maximum(maps, 0).mean(axis=(2, 3))
    return {
        "conv": maps.mean(axis=(2, 3)),
        "pool": pool,
        "out": pool @ weights["fc"] + weights["b"],
    }

"""Runs for photographs with a tiny ONNX network, whose features NumPy computes just as well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fastrnn.classifiers.rnn import MODEL_FILE, CaptioningRNN, seeded_model
from fastrnn.data.pca import PCA
from fastrnn.runs import write_settings
from fastrnn.vision.images import Preprocessing
from fastrnn.vision.networks import load_network
from fastrnn.vision.source import FeatureSource

SIZE, WIDTH, COMPONENTS = 8, 12, 5
WORDS = ["<NULL>", "<START>", "<END>", "<UNK>", "a", "dog", "cat", "runs", "sits", "on", "grass"]
PREPROCESSING = Preprocessing(size=SIZE, mean=(100, 110, 120), std=(50, 60, 70))


def write_network(path: Path, *, pool: int = 4, sign: float = 1.0) -> Path:
    """Write an ONNX model: means over `pool` x `pool` pixels, times `sign`."""
    from onnx import TensorProto, helper

    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", "D"])
    nodes = [
        helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[pool, pool],
                         strides=[pool, pool]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Mul", ["flat", "sign"], ["features"]),
    ]  # fmt: skip
    factor = helper.make_tensor("sign", TensorProto.FLOAT, [], [sign])
    graph = helper.make_graph(nodes, "means", [images], [features], [factor])
    opset = [helper.make_opsetid("", 17)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    )
    return path


def features_of(pixels: np.ndarray) -> np.ndarray:
    """The features of pictures (N, 8, 8, 3), in NumPy alone."""
    values = pixels.astype(np.float64)
    values = (values - PREPROCESSING.mean) / PREPROCESSING.std
    means = values.reshape(-1, 2, 4, 2, 4, 3).mean(axis=(2, 4))
    return means.transpose(0, 3, 1, 2).reshape(-1, WIDTH)


def make_model(input_dim: int = COMPONENTS, cell_type: str = "lstm", seed: int = 3):
    """A model whose captions differ from picture to picture."""
    words = {word: number for number, word in enumerate(WORDS)}
    model: CaptioningRNN = seeded_model(words, input_dim, 7, 9, cell_type, np.float64, seed=seed)
    rng = np.random.default_rng(seed)
    for name, w in model.params.items():
        model.params[name] = rng.normal(size=w.shape) * (1.0 if w.ndim == 2 else 0.3)
    model.params["b_vocab"][[0, 1]] = -20  # as after training: these are never generated
    return model


def make_pca() -> PCA:
    return PCA.fit(features_of(draw_pixels(40, seed=9)), COMPONENTS)


def write_run(
    directory: Path,
    *,
    pca: PCA | None = None,
    cell_type: str = "lstm",
    model: CaptioningRNN | None = None,
    raw: bool = False,
    **settings: object,
) -> Path:
    """Write a run directory as training leaves it, with its ONNX model beside it."""
    directory.mkdir()
    file = write_network(directory.with_name(f"{directory.name}.onnx"))
    network = load_network(onnx=file, layer="features", preprocessing=PREPROCESSING)
    FeatureSource.of(network, pca=pca).write(directory)
    if model is None:
        width = WIDTH if pca is None or raw else COMPONENTS
        model = make_model(width, cell_type)
    model.save(directory / MODEL_FILE)
    write_settings(directory, {"raw_features": raw, **settings}, {})
    return directory


def draw_pixels(count: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def write_photos(directory: Path, pixels: np.ndarray) -> list[Path]:
    """Write pictures without loss, of the size of the network."""
    directory.mkdir(exist_ok=True)
    paths = [directory / f"photo{number:02}.png" for number in range(len(pixels))]
    for path, picture in zip(paths, pixels, strict=True):
        Image.fromarray(picture).save(path)
    return paths

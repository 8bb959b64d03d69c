"""Tiny captioners whose gradients are smooth: for the tests of `fastrnn.explain`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastrnn.captioner import Captioner
from fastrnn.classifiers.rnn import CaptioningRNN, seeded_model
from fastrnn.data.pca import PCA
from fastrnn.vision.images import Preprocessing
from fastrnn.vision.networks import Network

SIZE, WIDTH, CLASSES = 12, 10, 5
WORDS = ["<NULL>", "<START>", "<END>", "<UNK>", "a", "dog", "cat", "runs", "sits", "red"]
VOCABULARY = {word: idx for idx, word in enumerate(WORDS)}


class Pooled(torch.nn.Module):
    """Two convolutions, each with a smooth non-linearity, and the mean over H and W."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.layers = torch.nn.Sequential(
                torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.Softplus(),
                torch.nn.Conv2d(8, WIDTH, 3, padding=1), torch.nn.Tanh(),
            )  # fmt: skip
            self.head = torch.nn.Linear(WIDTH, CLASSES)
        self.to(dtype).eval().requires_grad_(False)
        for layer in (self.layers[0], self.layers[2]):
            layer.weight *= 4

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.layers(pixels).mean((2, 3))


def tiny_network(dtype: Any = np.float32) -> Network:
    module = Pooled(torch.float64 if dtype == np.float64 else torch.float32)

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(batch)).numpy()

    network = Network(
        name="tiny", layer="pool", width=WIDTH, preprocessing=Preprocessing(size=SIZE),
        digest="sha256:" + 64 * "0", engine="torch", threads=1, run=run, chunk=8,
        classify=lambda batch: module.head(torch.from_numpy(run(batch))).numpy(),
        make_module=lambda: module,
    )  # fmt: skip
    network._checked = np.ascontiguousarray  # float64 as well
    return network


def tiny_model(cell_type: str = "lstm", dtype: Any = np.float64) -> CaptioningRNN:
    model = seeded_model(VOCABULARY, 6, 7, 8, cell_type, dtype, seed=1)
    wider = {"W_embed": 30, "Wh": 2 if cell_type == "rnn" else 5, "W_vocab": 6}
    for name, scale in wider.items():
        model.params[name] *= scale
    model.params["b_vocab"][:4] -= (40, 40, 2, 40)
    return model


def tiny_captioner(
    cell_type: str = "lstm", dtype: Any = np.float32, contrast: float = 4
) -> Captioner:
    """A captioner of images of 12 x 12 pixels: 10 features, 6 after PCA, 10 words."""
    network = tiny_network(dtype)
    gray = network.features(np.zeros((1, 3, SIZE, SIZE), dtype))[0]
    components = np.random.default_rng(5).normal(size=(6, WIDTH)).astype(dtype)
    return Captioner(tiny_model(cell_type, dtype), network, PCA(gray, contrast * components))


def tiny_image(seed: int = 0) -> np.ndarray:
    """A picture of smooth colours, uint8 (12, 12, 3)."""
    random = np.random.default_rng(seed)
    coarse = random.integers(20, 236, size=(4, 4, 3))
    return np.repeat(np.repeat(coarse, 3, axis=0), 3, axis=1).astype(np.uint8)

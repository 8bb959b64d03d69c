"""Captions, minibatches and initial weights, the same for every contender.

If the shared data is available, the captions are real COCO captions. Otherwise they are synthetic:
drawn with a fixed seed, with the lengths of COCO's captions and words that follow Zipf's law.
`CaptionSet.source` says which.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .shapes import GATES, Shape

NULL, START, END, UNK = range(4)
COCO_ROWS = 400135
COCO_IMAGES = 82783
POOL = 20000  # number of captions to draw minibatches from
_FILE = "coco/train_captions_first272108.h5"
_T, _V = 16, 1004

# Numbers of COCO's 272108 training captions with 0, 1, ..., 16 words, counting <END>, not <START>.
LENGTHS = (0, 0, 0, 0, 0, 0, 1, 9, 2381, 49044, 62081, 59931, 42716, 26810, 15540, 8704, 4891)


@dataclass(frozen=True)
class CaptionSet:
    """Captions, int32 (rows, T + 1), and a description of their source."""

    captions: np.ndarray
    source: str


def shared_data() -> Path:
    """Return $FASTRNN_SHARED_DATA, or ``../shared/data`` relative to the project directory."""
    beside = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    return Path(os.environ.get("FASTRNN_SHARED_DATA", beside))


def read_captions(shape: Shape, rows: int) -> CaptionSet:
    """Return real or synthetic captions.

    Parameters
    ----------
    shape : Shape
        Sizes of the model. Real captions are used only for COCO's sizes, T = 16 and V = 1004.
    rows : int
        Number of captions. If there are fewer real captions, they are repeated.

    Returns
    -------
    CaptionSet
        Each caption has T + 1 ids in [0, V): ``<START>``, words, ``<END>``, then ``<NULL>``.
    """
    path = shared_data() / _FILE
    if (shape.T, shape.V) != (_T, _V) or not path.is_file():
        source = "synthetic captions (COCO's lengths, Zipf's words)"
        return CaptionSet(draw_captions(shape, rows), source)
    captions = np.empty((rows, _T + 1), dtype=np.int32)
    with h5py.File(path, "r") as file:
        real = file["train_captions"]
        for first in range(0, rows, len(real)):
            part = captions[first : first + len(real)]
            real.read_direct(part, np.s_[: len(part)])
    repeated = f", the first {len(real)} repeated" if rows > len(real) else ""
    return CaptionSet(captions, f"real COCO captions{repeated}")


def draw_captions(shape: Shape, rows: int) -> np.ndarray:
    """Draw synthetic captions with a fixed seed, with COCO's lengths and Zipf's law for words."""
    rng = np.random.default_rng(231)
    shares = np.array(LENGTHS) / sum(LENGTHS)
    lengths = rng.choice(len(LENGTHS), size=rows, p=shares)
    lengths = np.maximum(1, np.ceil(lengths * shape.T / _T)).astype(int)
    rank = np.arange(1, shape.V - UNK)
    words = rng.choice(rank, size=(rows, shape.T), p=(1 / rank) / (1 / rank).sum()) + UNK
    place = np.arange(shape.T)
    words[place == lengths[:, None] - 1] = END
    words[place >= lengths[:, None]] = NULL
    return np.column_stack([np.full(rows, START), words]).astype(np.int32)


def vocabulary(V: int) -> dict[str, int]:
    """Return a vocabulary of V words that starts with the four special words, as COCO's does."""
    words = ["<NULL>", "<START>", "<END>", "<UNK>", *(f"word{i}" for i in range(4, V))]
    return {word: i for i, word in enumerate(words)}


def draw_pool(shape: Shape, rows: int = POOL) -> tuple[dict[str, Any], str]:
    """Return training data with the keys of ``load_coco_data``, and the source of its captions.

    The features of an image are a fixed random projection of the words in its caption. So a model
    can learn to give different images different captions, and to end them.
    """
    found = read_captions(shape, rows)
    projection = np.random.default_rng(232).standard_normal((shape.V, shape.F), dtype=np.float32)
    projection[[NULL, START, END]] = 0
    features = np.zeros((rows, shape.F), dtype=np.float32)
    for t in range(1, shape.T + 1):
        features += projection[found.captions[:, t]]
    features /= np.sqrt(shape.T)
    words = vocabulary(shape.V)
    data = {
        "train_captions": found.captions,
        "train_image_idxs": np.arange(rows, dtype=np.int32),
        "train_features": features,
        "train_urls": np.array([f"images/{i:06d}.jpg" for i in range(rows)]),
        "word_to_idx": words,
        "idx_to_word": list(words),
    }
    return data, found.source


def draw_batch(data: dict[str, Any], N: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw captions and features with the same random draw as ``sample_coco_minibatch``.

    The processes of the other libraries call this function, as they must not load fastrnn's core
    and its threads.
    """
    rows = np.random.choice(len(data["train_captions"]), N)
    return data["train_captions"][rows], data["train_features"][data["train_image_idxs"][rows]]


def first_params(shape: Shape, cell: str) -> dict[str, np.ndarray]:
    """Draw float32 parameters as ``CaptioningRNN`` does after ``np.random.seed(231)``."""
    np.random.seed(231)
    N_gates = GATES[cell] * shape.H
    return {
        name: values.astype(np.float32)
        for name, values in {
            "W_embed": np.random.randn(shape.V, shape.D) / 100,
            "W_proj": np.random.randn(shape.F, shape.H) / np.sqrt(shape.F),
            "b_proj": np.zeros(shape.H),
            "Wx": np.random.randn(shape.D, N_gates) / np.sqrt(shape.D),
            "Wh": np.random.randn(shape.H, N_gates) / np.sqrt(shape.H),
            "b": np.zeros(N_gates),
            "W_vocab": np.random.randn(shape.H, shape.V) / np.sqrt(shape.H),
            "b_vocab": np.zeros(shape.V),
        }.items()
    }

"""Write a small captioning data set in CS231n's file layout, for tests to read and to damage."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

WORDS = ["<NULL>", "<START>", "<END>", "<UNK>", "a", "cat", "dog", "on", "the", "mat", "sofa"]
NUM_IMAGES = {"train": 12, "val": 5}
CAPTIONS_EACH = 3
CAPTION_LENGTH = 9  # ids per caption, including <START>, <END> and <NULL>
PCA_DIM, FULL_DIM = 7, 10


def draw_captions(rng: np.random.Generator, num: int) -> np.ndarray:
    """Draw captions of <START>, 1 to 7 words and <END>, padded with <NULL>."""
    captions = np.zeros((num, CAPTION_LENGTH), dtype=np.int32)
    for row in captions:
        length = rng.integers(1, CAPTION_LENGTH - 1)
        row[0] = 1
        row[1 : 1 + length] = rng.integers(3, len(WORDS), size=length)
        row[1 + length] = 2
    return captions


def write_layout(base_dir: Path, seed: int = 231) -> dict[str, np.ndarray]:
    """Write all files of the layout; return the arrays that were written to the h5 files."""
    rng = np.random.default_rng(seed)
    base_dir.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for split, num_images in NUM_IMAGES.items():
        idxs = np.repeat(np.arange(num_images, dtype=np.int32), CAPTIONS_EACH)
        arrays[f"{split}_captions"] = draw_captions(rng, len(idxs))
        arrays[f"{split}_image_idxs"] = rng.permutation(idxs)
    with h5py.File(base_dir / "coco2014_captions.h5", "w") as file:
        for name, values in arrays.items():
            file[name] = values
    for split, num_images in NUM_IMAGES.items():
        for suffix, dim in (("_pca", PCA_DIM), ("", FULL_DIM)):
            features = rng.standard_normal((num_images, dim)).astype(np.float32)
            arrays[f"{split}_features{suffix}"] = features
            with h5py.File(base_dir / f"{split}2014_vgg16_fc7{suffix}.h5", "w") as file:
                file["features"] = features
        urls = []
        for number in range(num_images):
            picture = base_dir / f"{split}{number}.png"
            Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)).save(picture)
            urls.append(picture.as_uri())
        (base_dir / f"{split}2014_urls.txt").write_text("".join(f"{url} \n" for url in urls))
    vocab = {"idx_to_word": WORDS, "word_to_idx": {word: i for i, word in enumerate(WORDS)}}
    (base_dir / "coco2014_vocab.json").write_text(json.dumps(vocab))
    return arrays

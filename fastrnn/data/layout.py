"""Writing a captioning data set in CS231n's h5 layout."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from ..files import write_aside, write_json, write_text
from ..words import SPECIAL_WORDS


def write_h5(path: str | os.PathLike[str], datasets: Mapping[str, np.ndarray]) -> None:
    """Write arrays as the datasets of an HDF5 file, whole or not at all."""

    def write(file: BinaryIO) -> None:
        with h5py.File(file, "w") as h5:
            for name, array in datasets.items():
                h5[name] = array

    write_aside(path, write)


def encode_captions(
    captions: Sequence[str], word_to_idx: Mapping[str, int], max_words: int
) -> np.ndarray:
    """Turn captions into rows of word ids.

    Parameters
    ----------
    captions : sequence of str
        Words separated by spaces.
    word_to_idx : mapping
        With the four of :data:`SPECIAL_WORDS`.
    max_words : int
        Longer captions are cut.

    Returns
    -------
    ndarray, (len(captions), max_words + 2) int32
        ``<START>``, the words, ``<END>``, then ``<NULL>``; unknown words are ``<UNK>``.
    """
    null, start, end, unknown = (word_to_idx[word] for word in SPECIAL_WORDS)
    ids = np.full((len(captions), max_words + 2), null, dtype=np.int32)
    for row, caption in zip(ids, captions, strict=True):
        words = [word_to_idx.get(word, unknown) for word in caption.split()[:max_words]]
        row[: len(words) + 2] = [start, *words, end]
    return ids


def write_captioning_directory(
    directory: str | os.PathLike[str],
    words: Sequence[str],
    captions: Mapping[str, Sequence[Sequence[str]]],
    features: Mapping[str, np.ndarray],
    pca_features: Mapping[str, np.ndarray],
    urls: Mapping[str, Sequence[str]],
) -> None:
    """Write a data set that :func:`fastrnn.coco_utils.load_coco_data` reads.

    Parameters
    ----------
    directory : path
        Exists.
    words : sequence of str
        The vocabulary without :data:`SPECIAL_WORDS`, which are put before it.
    captions : mapping of split to lists of captions, one list per image
        The splits are "train" and "val".
    features, pca_features : mapping of split to ndarray (images, D) float32
        Before and after PCA.
    urls : mapping of split to a URL, or a path relative to `directory`, per image
    """
    directory = Path(directory)
    idx_to_word = [*SPECIAL_WORDS, *words]
    word_to_idx = {word: i for i, word in enumerate(idx_to_word)}
    longest = max(len(caption.split()) for s in captions.values() for c in s for caption in c)
    datasets = {}
    for split, by_image in captions.items():
        flat = [caption for image in by_image for caption in image]
        datasets[f"{split}_captions"] = encode_captions(flat, word_to_idx, longest)
        datasets[f"{split}_image_idxs"] = np.repeat(
            np.arange(len(by_image), dtype=np.int32), [len(image) for image in by_image]
        )
        write_h5(directory / f"{split}2014_vgg16_fc7.h5", {"features": features[split]})
        write_h5(directory / f"{split}2014_vgg16_fc7_pca.h5", {"features": pca_features[split]})
        write_text(directory / f"{split}2014_urls.txt", "".join(f"{u}\n" for u in urls[split]))
    write_h5(directory / "coco2014_captions.h5", datasets)
    write_json(
        directory / "coco2014_vocab.json", {"idx_to_word": idx_to_word, "word_to_idx": word_to_idx}
    )

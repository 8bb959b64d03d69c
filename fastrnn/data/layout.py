"""Writing a captioning data set in CS231n's h5 layout, and writing any file whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

SPECIAL_WORDS = ("<NULL>", "<START>", "<END>", "<UNK>")


def write_aside(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> None:
    """Write a file beside its place, flush it to the disk, and move it there in one step.

    Parameters
    ----------
    path : path
        The file; an old one is replaced, or stays as it was if anything fails.
    write : callable
        Called with the open binary file.

    Raises
    ------
    OSError
        If the directory cannot be written or the disk is full.
    """
    path = Path(path)
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner reads; a result is as readable as any new file.
        umask = os.umask(0)
        os.umask(umask)
        Path(aside).chmod(0o666 & ~umask)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    write_aside(path, lambda file: file.write(text.encode("utf-8")))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to an npz file, whole or not at all; no objects, so no pickle."""
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise TypeError(f"array {name!r} holds Python objects; it should hold numbers or text")
    named: dict[str, Any] = dict(arrays)
    write_aside(path, lambda file: np.savez(file, **named))


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

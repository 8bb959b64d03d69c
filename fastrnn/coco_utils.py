"""Captions, image features and vocabulary in CS231n's h5 layout: read, sample, decode.

A data directory holds ``coco2014_captions.h5``, ``{train,val}2014_vgg16_fc7[_pca].h5``,
``coco2014_vocab.json`` and ``{train,val}2014_urls.txt``. The names are COCO's, the pictures need
not be: any data set written this way is read.
"""

from __future__ import annotations

import errno
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .files import is_text, read_json, read_text
from .words import END, NULL

BASE_DIR = str(Path(__file__).resolve().parent / "datasets" / "coco_captioning")

# Where the course's own download script puts the data, seen from its notebooks.
_COURSE_DIR = str(Path("cs231n", "datasets", "coco_captioning"))

_SPLITS = ("train", "val")
_MOST_UNWRITTEN = 1 << 24
_MOST_COMPRESSED = 1100
"""What a byte in a file can stand for: deflate comes to 1032."""


def load_coco_data(
    base_dir: str | os.PathLike[str] = BASE_DIR,
    max_train: int | None = None,
    pca_features: bool = True,
) -> dict[str, Any]:
    """Read a captioning data set from a directory in CS231n's layout.

    Parameters
    ----------
    base_dir : path, optional
        The directory. The default is ``datasets/coco_captioning`` beside this module; where that
        does not exist, ``cs231n/datasets/coco_captioning`` in the working directory is read.
    max_train : int, optional
        Keep this many training captions, drawn with replacement by the global ``np.random``
        (one ``randint`` call). Features and URLs stay whole.
    pca_features : bool, optional
        True reads ``*_vgg16_fc7_pca.h5``, False reads ``*_vgg16_fc7.h5``.

    Returns
    -------
    dict
        ``{train,val}_captions`` int (captions, words), ``{train,val}_image_idxs`` int (captions,),
        and whatever else the caption file holds; ``{train,val}_features`` float (images, D);
        ``idx_to_word`` list of str, ``word_to_idx`` dict; ``{train,val}_urls`` str (images,).

    Raises
    ------
    FileNotFoundError
        A file is missing; the message has its path.
    OSError
        A file is cut short or is no HDF5 file.
    ValueError
        A dataset is missing, has the wrong rank or dtype, or holds image indices or word ids that
        point outside the features, the URLs or the vocabulary; or `max_train` is negative.
    """
    defaulted = os.fspath(base_dir) == BASE_DIR
    if defaulted and not Path(BASE_DIR).is_dir() and Path(_COURSE_DIR).is_dir():
        base_dir = _COURSE_DIR
    print("base dir ", os.fspath(base_dir))
    return read_captioning_directory(base_dir, max_train, pca_features)


def read_captioning_directory(
    base_dir: str | os.PathLike[str],
    max_train: int | None = None,
    pca_features: bool = True,
) -> dict[str, Any]:
    """Do what `load_coco_data` does for exactly `base_dir`, and print nothing."""
    base_dir = os.fspath(base_dir)
    if max_train is not None and max_train < 0:
        raise ValueError(f"max_train must be at least 0, was {max_train}")

    def place(name: str) -> str:
        return str(Path(base_dir, name))

    captions_path = place("coco2014_captions.h5")
    vocab_path = place("coco2014_vocab.json")
    data: dict[str, Any] = _read_h5(captions_path)

    suffix = "_pca" if pca_features else ""
    for split in _SPLITS:
        path = place(f"{split}2014_vgg16_fc7{suffix}.h5")
        data[f"{split}_features"] = _require_features(path, _read_h5(path))
    if data["train_features"].shape[1] != data["val_features"].shape[1]:
        raise ValueError(
            f"{path}: dataset 'features' has shape {data['val_features'].shape}, but the train "
            f"features are {data['train_features'].shape[1]} wide"
        )

    data.update(_read_vocabulary(vocab_path))
    for split in _SPLITS:
        data[f"{split}_urls"] = _read_lines(place(f"{split}2014_urls.txt"))

    for split in _SPLITS:
        _check_captions(captions_path, data, split)

    if max_train is not None:
        num_train = data["train_captions"].shape[0]
        mask = np.random.randint(num_train, size=max_train)
        data["train_captions"] = data["train_captions"][mask]
        data["train_image_idxs"] = data["train_image_idxs"][mask]
    return data


def sample_coco_minibatch(
    data: Mapping[str, Any], batch_size: int = 100, split: str = "train"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw captions with replacement, each with its image's features and URL.

    Parameters
    ----------
    data : mapping
        As `load_coco_data` returns it.
    batch_size : int, optional
        N, the number of captions.
    split : {'train', 'val'}, optional
        The part of the data to draw from.

    Returns
    -------
    captions : int ndarray (N, words)
    image_features : float ndarray (N, D)
    urls : str ndarray (N,)

    Notes
    -----
    One ``np.random.choice(captions, batch_size)`` on the global generator per call, so that a
    seeded run draws the batches that the course's code draws.
    """
    split_size = data[f"{split}_captions"].shape[0]
    mask = np.random.choice(split_size, batch_size)
    image_idxs = data[f"{split}_image_idxs"][mask]
    return (
        data[f"{split}_captions"][mask],
        data[f"{split}_features"][image_idxs],
        data[f"{split}_urls"][image_idxs],
    )


def decode_captions(
    captions: np.ndarray, idx_to_word: Sequence[str] | Mapping[int, str]
) -> str | list[str]:
    """Turn word ids into text.

    ``<NULL>`` is dropped, ``<START>`` is kept, and a caption ends with its first ``<END>``.

    Parameters
    ----------
    captions : int ndarray (T,) or (N, T)
        Word ids.
    idx_to_word : sequence or mapping
        The word of each id.

    Returns
    -------
    str or list of str
        One string for one row of ids, a list of N strings for N rows.

    Raises
    ------
    TypeError
        `captions` are not integers.
    ValueError
        `captions` has neither one nor two axes.
    IndexError, KeyError
        An id has no word (in a sequence, in a mapping).
    """
    ids = np.asarray(captions)
    if ids.ndim not in (1, 2):
        raise ValueError(f"captions must have shape (T,) or (N, T), was {ids.shape}")
    if ids.dtype.kind not in "iu" and ids.size:
        raise TypeError(f"captions must be integers, dtype was {ids.dtype}")
    if ids.ndim == 1:
        return _decode(ids.tolist(), idx_to_word)
    return [_decode(row, idx_to_word) for row in ids.tolist()]


def _decode(row: list[int], idx_to_word: Any) -> str:
    words = []
    for idx in row:
        try:
            word = idx_to_word[idx]
        except (IndexError, KeyError) as error:
            raise type(error)(
                f"captions hold word id {idx}, which is not among the {len(idx_to_word)} of "
                "idx_to_word"
            ) from None
        if word != NULL:
            words.append(word)
        if word == END:
            break
    return " ".join(words)


def _missing(path: str) -> FileNotFoundError:
    what = "no such data file" if Path(path).parent.is_dir() else "no such data directory"
    return FileNotFoundError(errno.ENOENT, what, path)


def _read_h5(path: str) -> dict[str, np.ndarray]:
    """Read every dataset at the top of an HDF5 file."""
    if not Path(path).is_file():
        raise _missing(path)
    # A file cut short fails on opening or, where only its data is gone, on reading; damaged
    # metadata surfaces from h5py as RuntimeError, KeyError and others.
    found = {}
    where = path
    try:
        with h5py.File(path, "r") as file:
            for name in file:
                where = f"{path}: dataset {name!r}"
                # What lies in another file is not read, whatever this one says of it.
                if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                    raise ValueError("is a link")
                node = file[name]
                if isinstance(node, h5py.Dataset):
                    found[name] = _read_dataset(node, Path(path).stat().st_size)
    except ValueError as error:
        raise ValueError(f"{where} {error}") from None
    except Exception as error:
        raise OSError(f"{where} cannot be read, damaged or no HDF5 file ({error})") from error
    return found


def _read_dataset(node: h5py.Dataset, size: int) -> np.ndarray:
    """Read a dataset that is all in its file, and not out of proportion to what is there."""
    if node.dtype.kind not in "biufcS":
        raise ValueError(f"has dtype {node.dtype}, must hold numbers")
    if node.external or node.is_virtual:
        raise ValueError("lies in other files")
    # Chunks that were never written cost nothing in a file, and compressed ones a thousandth.
    claimed = math.prod(node.shape or ()) * node.dtype.itemsize
    there = min(node.id.get_storage_size(), size)
    if claimed > _MOST_UNWRITTEN + _MOST_COMPRESSED * there:
        raise ValueError(f"has shape {node.shape}, but only {there} bytes")
    values = np.asarray(node[()])
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _require(
    path: str, found: Mapping[str, np.ndarray], name: str, ndim: int, kinds: str
) -> np.ndarray:
    if name not in found:
        raise ValueError(f"{path}: dataset {name!r} is missing")
    values = found[name]
    if values.ndim != ndim:
        raise ValueError(
            f"{path}: dataset {name!r} must have {ndim} axes, its shape is {values.shape}"
        )
    if values.dtype.kind not in kinds:
        wanted = "floats" if kinds == "f" else "integers"
        raise ValueError(
            f"{path}: dataset {name!r} must hold {wanted}, its dtype is {values.dtype}"
        )
    return values


def _require_features(path: str, found: Mapping[str, np.ndarray]) -> np.ndarray:
    return _require(path, found, "features", 2, "f")


def _check_captions(path: str, data: Mapping[str, Any], split: str) -> None:
    """Refuse what indexing would meet only later: in training, or wrapped round by a sign."""
    captions = _require(path, data, f"{split}_captions", 2, "iu")
    image_idxs = _require(path, data, f"{split}_image_idxs", 1, "iu")
    if len(captions) != len(image_idxs):
        raise ValueError(
            f"{path}: dataset '{split}_image_idxs' has {len(image_idxs)} entries for "
            f"{len(captions)} captions"
        )
    features, urls = data[f"{split}_features"], data[f"{split}_urls"]
    for values, name, what, bound in (
        (captions, f"{split}_captions", "word id", len(data["word_to_idx"])),
        (image_idxs, f"{split}_image_idxs", "image index", min(len(features), len(urls))),
    ):
        if values.size == 0:
            continue
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= bound:
            raise ValueError(
                f"{path}: dataset {name!r} holds the {what} {low if low < 0 else high}, "
                f"outside [0, {bound})"
            )


def _read_vocabulary(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise _missing(path)
    vocab = read_json(path)
    if not isinstance(vocab, dict):
        raise ValueError(f"{path}: must be a JSON object, was a {type(vocab).__name__}")
    for key, kind in (("idx_to_word", list), ("word_to_idx", dict)):
        if not isinstance(vocab.get(key), kind):
            raise ValueError(f"{path}: {key!r} must be there as a JSON {_JSON_NAMES[kind]}")
    words, ids = vocab["idx_to_word"], vocab["word_to_idx"]
    if len(words) != len(ids):
        raise ValueError(f"{path}: 'idx_to_word' has {len(words)} words, 'word_to_idx' {len(ids)}")
    for idx, word in enumerate(words):
        # True == 1 == 1.0, but only one of them is an id.
        if not isinstance(word, str) or type(ids.get(word)) is not int or ids[word] != idx:
            raise ValueError(
                f"{path}: 'idx_to_word' says {word!r} at {idx}, which 'word_to_idx' does not say"
            )
        if "\0" in word or not is_text(word):
            raise ValueError(f"{path}: 'idx_to_word' has {word!r} at {idx}, which is no text")
    return vocab


_JSON_NAMES = {list: "array", dict: "object"}


def _read_lines(path: str) -> np.ndarray:
    if not Path(path).is_file():
        raise _missing(path)
    # As in a file that is open for reading, only newlines end a line.
    lines = [line.strip() for line in io.StringIO(read_text(path), newline=None)]
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise ValueError(f"{path}: line {number} has a null character")
    longest = max(map(len, lines), default=0)
    # Every element of the array takes as much room as the longest.
    if len(lines) * longest > _MOST_UNWRITTEN + 100 * sum(map(len, lines)):
        raise ValueError(f"{path}: has a line of {longest} characters among {len(lines)}")
    # An empty list would make a float array; URLs are text whatever their number.
    return np.asarray(lines, dtype=np.str_)

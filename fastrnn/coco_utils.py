"""CS231n's ``coco_utils.py``: load a captioning data set, sample minibatches, decode captions.

The files are read by `fastrnn.data.layout`, which describes them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .data.layout import DATA_VARIABLE, named_directory, read_captioning_directory
from .data.pictures import remember_directory
from .words import END, NULL

__all__ = [
    "BASE_DIR",
    "decode_captions",
    "load_coco_data",
    "np",
    "read_captioning_directory",
    "sample_coco_minibatch",
]

BASE_DIR = str(Path(__file__).resolve().parent / "datasets" / "coco_captioning")
"""The directory of data in the package itself, where the course has it.

:meta hide-value:
"""

# Where the course's download script puts the data, relative to its notebooks.
_COURSE_DIR = str(Path("cs231n", "datasets", "coco_captioning"))


def load_coco_data(
    base_dir: str | os.PathLike[str] = BASE_DIR,
    max_train: int | None = None,
    pca_features: bool = True,
    features_dtype: str | None = None,
) -> dict[str, Any]:
    """Load a captioning data set from a directory in CS231n's layout.

    Parameters
    ----------
    base_dir : path, optional
        The data directory. The default is the one that the environment variable ``FASTRNN_DATA``
        names; without it, ``datasets/coco_captioning`` next to this module or, if that does not
        exist, ``cs231n/datasets/coco_captioning`` in the working directory.
    max_train : int, optional
        Keep this many training captions, drawn with replacement from the global ``np.random``
        (one ``randint`` call). By default all are kept. Features and URLs are always complete.
    pca_features : bool, optional
        True (default) reads ``*_vgg16_fc7_pca.h5``, False reads ``*_vgg16_fc7.h5``.
    features_dtype : {'float16', 'float32'}, optional
        The dtype to keep the features in; by default that of the file. float16 takes half of the
        memory and rounds the features to 11 bits, unless the file has float16 already, see
        `read_captioning_directory`.

    Returns
    -------
    dict
        For each split, train and val: ``{split}_captions``, int ndarray (captions, words);
        ``{split}_image_idxs``, int ndarray (captions,), the image of each caption;
        ``{split}_features``, float ndarray (images, D); and ``{split}_urls``, str ndarray
        (images,). Also ``idx_to_word``, list of str; ``word_to_idx``, dict; and any other datasets
        in the caption file. The dict remembers where it was read from, in the attribute
        ``directory``, so that a run that is trained on it can be evaluated. And
        `fastrnn.image_utils.image_from_url` finds the pictures of the data set that was loaded
        last.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message has its path. Without `base_dir`, if there is no data
        directory; the message has all places that were looked in.
    OSError
        If a file is truncated or is not an HDF5 file.
    ValueError
        If a dataset is missing, has the wrong number of axes or the wrong dtype, or contains image
        indices or word ids outside the features, the URLs or the vocabulary; if `max_train` is
        negative; or if `features_dtype` is another dtype or cannot hold the features.
    """
    if os.fspath(base_dir) == BASE_DIR:
        base_dir = _default_directory()
    print("base dir ", os.fspath(base_dir))
    data = read_captioning_directory(
        base_dir, max_train, pca_features, features_dtype=features_dtype
    )
    remember_directory(base_dir)
    return data


def _default_directory() -> str:
    named = named_directory()
    if named is not None:
        return str(named)
    for place in (BASE_DIR, _COURSE_DIR):
        if Path(place).is_dir():
            return place
    raise FileNotFoundError(
        f"no data directory: looked for {BASE_DIR} and for {Path(_COURSE_DIR).absolute()}, and "
        f"{DATA_VARIABLE} is not set; give base_dir, or set {DATA_VARIABLE} to a data directory "
        "(`fastrnn fetch` downloads the course's, `fastrnn prepare` makes one of your own images)"
    )


def sample_coco_minibatch(
    data: Mapping[str, Any], batch_size: int = 100, split: str = "train"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a minibatch of captions with replacement, with their image features and URLs.

    Parameters
    ----------
    data : mapping
        A data set from `load_coco_data`.
    batch_size : int, optional
        Number of captions, N. Default 100.
    split : {'train', 'val'}, optional
        The split to draw from, or another one that the data have. Default 'train'.

    Returns
    -------
    captions : int ndarray (N, words)
        Word ids.
    image_features : float ndarray (N, D)
        Features of the image of each caption.
    urls : str ndarray (N,)
        URL of the image of each caption.

    Raises
    ------
    ValueError
        If the data have no such split; the message has those that they have.

    Notes
    -----
    Each call makes one ``np.random.choice(captions, batch_size)`` call on the global generator, so
    a seeded run draws the same minibatches as the course's code.
    """
    if not _has_split(data, split):
        known = [
            name.removesuffix("_captions")
            for name in data
            if name.endswith("_captions") and _has_split(data, name.removesuffix("_captions"))
        ]
        raise ValueError(
            f"split is {split!r}; expected {' or '.join(map(repr, known)) or 'data with a split'}"
        )
    split_size = data[f"{split}_captions"].shape[0]
    mask = np.random.choice(split_size, batch_size)
    image_idxs = data[f"{split}_image_idxs"][mask]
    return (
        data[f"{split}_captions"][mask],
        data[f"{split}_features"][image_idxs],
        data[f"{split}_urls"][image_idxs],
    )


def _has_split(data: Mapping[str, Any], split: str) -> bool:
    return all(f"{split}_{name}" in data for name in ("captions", "image_idxs", "features", "urls"))


def decode_captions(
    captions: np.ndarray, idx_to_word: Sequence[str] | Mapping[int, str]
) -> str | list[str]:
    """Convert word ids to text.

    ``<NULL>`` is left out, ``<START>`` is kept, and a caption ends with its first ``<END>``.

    Parameters
    ----------
    captions : int ndarray (T,) or (N, T)
        Word ids.
    idx_to_word : sequence or mapping of int to str
        The word of each id.

    Returns
    -------
    str or list of str
        The caption, or a list of N captions: words separated by spaces.

    Raises
    ------
    TypeError
        If `captions` are not integers.
    ValueError
        If `captions` does not have one or two axes.
    IndexError, KeyError
        If `idx_to_word` (a sequence, a mapping) has no word for an id.

    Examples
    --------
    >>> from fastrnn.coco_utils import decode_captions
    >>> words = ["<NULL>", "<START>", "<END>", "<UNK>", "a", "dog"]
    >>> decode_captions(np.array([1, 4, 5, 2, 0]), words)
    '<START> a dog <END>'
    """
    ids = np.asarray(captions)
    if ids.ndim not in (1, 2):
        raise ValueError(f"captions has shape {ids.shape}; expected (T,) or (N, T)")
    if ids.dtype.kind not in "iu" and ids.size:
        raise TypeError(f"captions has dtype {ids.dtype}; expected integers")
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
                f"captions contains the word id {idx}; expected one of the {len(idx_to_word)} ids "
                "of idx_to_word"
            ) from None
        if word != NULL:
            words.append(word)
        if word == END:
            break
    return " ".join(words)

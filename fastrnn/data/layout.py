"""Captioning data sets in CS231n's file layout: names of the files, reading and writing.

A data directory holds ``coco2014_captions.h5``, ``{train,val}2014_vgg16_fc7[_pca].h5``,
``coco2014_vocab.json`` and ``{train,val}2014_urls.txt``. The names are COCO's, but any data set
can be stored this way.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import environment
from ..files import is_text, read_json, read_text, write_json, write_text
from ..words import SPECIAL_WORDS
from .h5 import H5Reader, write_h5

__all__ = [
    "CAPTIONS_FILE",
    "COURSE_URL",
    "CaptioningData",
    "SPLITS",
    "VOCABULARY_FILE",
    "dataset_shapes",
    "encode_captions",
    "features_file",
    "named_directory",
    "read_blocks",
    "read_captioning_directory",
    "read_vocabulary",
    "urls_file",
    "write_captioning_directory",
]

SPLITS = ("train", "val")
"""Every data set has these splits; some have a split "test", too."""
CAPTIONS_FILE = "coco2014_captions.h5"
"""The captions of a data directory, and which image each belongs to."""
VOCABULARY_FILE = "coco2014_vocab.json"
"""The words of a data directory."""
COURSE_URL = "http://cs231n.stanford.edu/coco_captioning.zip"
"""The archive of CS231n's captioning assignment: COCO 2014 with features of VGG-16."""

DATA_VARIABLE = environment.DATA
"""The environment variable that names a data directory, where none is given."""

_MAX_UNBACKED = 1 << 24
"""Bytes that the lines of a file may always use in memory, even if the file is small."""


def features_file(split: str, pca: bool = True) -> str:
    """Return the name of the file with the features of a split, after PCA or before it."""
    return f"{split}2014_vgg16_fc7{'_pca' if pca else ''}.h5"


def urls_file(split: str) -> str:
    """Return the name of the file with the image URLs of a split."""
    return f"{split}2014_urls.txt"


def named_directory() -> Path | None:
    """Return the data directory that the environment variable ``FASTRNN_DATA`` names.

    Returns
    -------
    Path or None
        None if the variable is not set, or empty.

    Raises
    ------
    FileNotFoundError
        If there is no such directory.
    """
    place = environment.value_of(DATA_VARIABLE)
    if not place:
        return None
    if not Path(place).is_dir():
        raise FileNotFoundError(environment.refusal(DATA_VARIABLE, "a data directory"))
    return Path(place)


# -- Reading


class CaptioningData(dict[str, Any]):
    """A captioning data set: a dict that remembers where it was read from.

    Its entries are described at `fastrnn.coco_utils.load_coco_data`. Copies by ``copy`` and pickles
    remember the same; ``dict(data)`` and ``{**data}`` are plain dicts. If features are replaced,
    they are no longer those of the directory, and it is forgotten.

    Attributes
    ----------
    directory : Path or None
        The data directory, as an absolute path; None if the data were not read from one.
    raw_features : bool
        Whether the features are those before PCA.
    max_train : int or None
        The number of training captions that were asked for.
    train_rows : ndarray or None
        The rows of these captions in the data directory, if they were drawn from the global
        ``np.random``. A run keeps them, since they cannot be drawn again.
    """

    directory: Path | None = None
    raw_features: bool = False
    max_train: int | None = None
    train_rows: np.ndarray | None = None

    def keep_captions(self, rows: np.ndarray) -> None:
        """Keep these rows of the training captions."""
        for name in ("train_captions", "train_image_idxs"):
            self[name] = self[name][rows]

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        if str(name).endswith("_features"):
            self.directory = None

    def copy(self) -> CaptioningData:
        """Return a shallow copy that remembers the same."""
        return _remembering(self, self.__dict__)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let copies and pickles remember the same."""
        return _remembering, (dict(self), dict(self.__dict__))


def _remembering(entries: Mapping[str, Any], memory: Mapping[str, Any]) -> CaptioningData:
    data = CaptioningData(entries)
    data.__dict__.update(memory)
    return data


def read_captioning_directory(
    base_dir: str | os.PathLike[str],
    max_train: int | None = None,
    pca_features: bool = True,
    splits: Sequence[str] = SPLITS,
) -> CaptioningData:
    """Read a captioning data set from a directory.

    Parameters
    ----------
    base_dir : path
        The data directory.
    max_train : int, optional
        Keep this many training captions, drawn with replacement from the global ``np.random``
        (one ``randint`` call). By default all are kept. Features and URLs are always complete.
    pca_features : bool, optional
        Whether to read the features after PCA (default) or before it.
    splits : sequence of str, optional
        The splits whose features and URLs are read, and whose captions are checked: train, val
        and, by default not, test.

    Returns
    -------
    CaptioningData
        A dict, see `fastrnn.coco_utils.load_coco_data`, that remembers the directory.

    Raises
    ------
    FileNotFoundError
        If the directory or a file is missing; the message has its path.
    NotADirectoryError
        If `base_dir` is a file.
    OSError
        If a file is truncated or is not an HDF5 file.
    ValueError
        If a dataset is missing, has the wrong number of axes or the wrong dtype, or contains image
        indices or word ids outside the features, the URLs or the vocabulary; or if `max_train` is
        negative.

    Notes
    -----
    Datasets can be chunked, and compressed with gzip, with or without the filters shuffle and
    fletcher32. Other filters, links and data in other files are refused. A second Python process
    opens the h5 files, since HDF5 may not survive a damaged one.
    """
    if max_train is not None and max_train < 0:
        raise ValueError(f"max_train is {max_train}; expected at least 0")

    def path_of(name: str) -> str:
        return str(Path(base_dir, name))

    captions_path = path_of(CAPTIONS_FILE)
    with H5Reader() as h5:
        _check_file(captions_path)
        data = CaptioningData(h5.read(captions_path))
        for split in splits:
            path = path_of(features_file(split, pca_features))
            _check_file(path)
            found = _require(path, h5.read(path), "features", 2, "f")
            data[f"{split}_features"] = found
            width = data[f"{splits[0]}_features"].shape[1]
            if found.shape[1] != width:
                raise ValueError(
                    f"{path}: dataset 'features' has shape {found.shape}; expected {width} "
                    f"columns, as in the {splits[0]} features"
                )
    data.update(read_vocabulary(path_of(VOCABULARY_FILE)))
    for split in splits:
        data[f"{split}_urls"] = _read_lines(path_of(urls_file(split)))
    for split in splits:
        _check_captions(captions_path, data, split)

    if max_train is not None:
        rows = np.random.randint(data["train_captions"].shape[0], size=max_train)
        data.keep_captions(rows)
        data.max_train, data.train_rows = max_train, rows
    data.directory = Path(base_dir).absolute()
    data.raw_features = not pca_features
    return data


def _check_file(path: str) -> None:
    if Path(path).is_file():
        return
    directory = Path(path).parent
    if not directory.exists():
        raise FileNotFoundError(errno.ENOENT, "no such data directory", str(directory))
    if not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "not a data directory but a file", str(directory))
    raise FileNotFoundError(errno.ENOENT, "no such data file", path)


def dataset_shapes(path: str | os.PathLike[str]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return the shapes and dtypes of the datasets in the root group of an HDF5 file.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    dict of str to tuple
        The shape and the dtype of each dataset.

    Raises
    ------
    OSError, ValueError
        As `read_captioning_directory` raises them.
    """
    path = os.fspath(path)
    _check_file(path)
    with H5Reader() as h5:
        return h5.shapes(path)


def read_blocks(path: str | os.PathLike[str], name: str) -> Iterator[np.ndarray]:
    """Yield a dataset of an HDF5 file in blocks of rows, about 4 MiB each.

    Parameters
    ----------
    path : path
        The file.
    name : str
        The dataset.

    Yields
    ------
    ndarray
        The next rows.

    Raises
    ------
    OSError, ValueError
        As `read_captioning_directory` raises them.
    """
    path = os.fspath(path)
    _check_file(path)
    with H5Reader() as h5:
        yield from h5.blocks(path, name)


def _require(
    path: str, found: Mapping[str, np.ndarray], name: str, ndim: int, kinds: str
) -> np.ndarray:
    """Return a dataset after checking its number of axes and the kind of its dtype."""
    if name not in found:
        raise ValueError(f"{path}: dataset {name!r} is missing")
    values = found[name]
    if values.ndim != ndim:
        raise ValueError(
            f"{path}: dataset {name!r} has shape {values.shape}; expected {ndim} "
            f"{'axis' if ndim == 1 else 'axes'}"
        )
    if values.dtype.kind not in kinds:
        wanted = "floats" if kinds == "f" else "integers"
        raise ValueError(f"{path}: dataset {name!r} has dtype {values.dtype}; expected {wanted}")
    return values


def _check_captions(path: str, data: Mapping[str, Any], split: str) -> None:
    """Check captions and image indices: NumPy would accept negative ones."""
    captions = _require(path, data, f"{split}_captions", 2, "iu")
    image_idxs = _require(path, data, f"{split}_image_idxs", 1, "iu")
    if len(captions) != len(image_idxs):
        raise ValueError(
            f"{path}: dataset '{split}_image_idxs' has {len(image_idxs)} entries; expected "
            f"{len(captions)}, one for each caption"
        )
    num_words = len(data["word_to_idx"])
    num_images = min(len(data[f"{split}_features"]), len(data[f"{split}_urls"]))
    for values, name, what, bound in (
        (captions, f"{split}_captions", "word id", num_words),
        (image_idxs, f"{split}_image_idxs", "image index", num_images),
    ):
        if values.size == 0:
            continue
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= bound:
            raise ValueError(
                f"{path}: dataset {name!r} contains the {what} {low if low < 0 else high}; "
                f"expected numbers in [0, {bound})"
            )


def read_vocabulary(path: str) -> dict[str, Any]:
    """Read the words of a data directory.

    Parameters
    ----------
    path : str
        Its ``coco2014_vocab.json``.

    Returns
    -------
    dict
        ``idx_to_word``, a list, and ``word_to_idx``, a dict, which fit each other.

    Raises
    ------
    OSError, ValueError
        As `read_captioning_directory` raises them.
    """
    _check_file(path)
    vocab = read_json(path)
    if not isinstance(vocab, dict):
        raise ValueError(f"{path}: contains a {type(vocab).__name__}; expected a JSON object")
    for key, kind, called in (("idx_to_word", list, "array"), ("word_to_idx", dict, "object")):
        if key not in vocab:
            raise ValueError(f"{path}: {key!r} is missing; expected a JSON {called}")
        if not isinstance(vocab[key], kind):
            found = type(vocab[key]).__name__
            raise ValueError(f"{path}: {key!r} is a {found}; expected a JSON {called}")
    words, ids = vocab["idx_to_word"], vocab["word_to_idx"]
    if len(words) != len(ids):
        raise ValueError(
            f"{path}: 'word_to_idx' has {len(ids)} words; expected {len(words)}, as in "
            "'idx_to_word'"
        )
    for idx, word in enumerate(words):
        # True == 1 == 1.0, but only an int is an id.
        if not isinstance(word, str) or type(ids.get(word)) is not int or ids[word] != idx:
            raise ValueError(
                f"{path}: 'idx_to_word' has {word!r:.60} at {idx}; expected the word with this "
                "id in 'word_to_idx'"
            )
        if "\0" in word or not is_text(word):
            raise ValueError(f"{path}: 'idx_to_word' has {word!r:.60} at {idx}; expected text")
    return vocab


def _read_lines(path: str) -> np.ndarray:
    _check_file(path)
    # str.splitlines would also split at form feeds and other separators.
    lines = [line.strip() for line in io.StringIO(read_text(path), newline=None)]
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise ValueError(f"{path}: line {number} has a null character; expected text")
    longest = max(map(len, lines), default=0)
    # In a NumPy array, every string takes as much memory as the longest.
    if len(lines) * longest > _MAX_UNBACKED + 100 * sum(map(len, lines)):
        raise ValueError(
            f"{path}: has a line of {longest} characters among {len(lines)} lines; expected lines "
            "of similar length"
        )
    # From an empty list, NumPy would make a float array without the dtype.
    return np.asarray(lines, dtype=np.str_)


# -- Writing


def encode_captions(
    captions: Sequence[str], word_to_idx: Mapping[str, int], max_words: int
) -> np.ndarray:
    """Convert captions to rows of word ids.

    Parameters
    ----------
    captions : sequence of str
        Words separated by spaces.
    word_to_idx : mapping of str to int
        The vocabulary. It must contain all of `fastrnn.words.SPECIAL_WORDS`.
    max_words : int
        Longer captions are cut to this many words.

    Returns
    -------
    int32 ndarray (len(captions), max_words + 2)
        ``<START>``, the words and ``<END>``, padded with ``<NULL>``. Words that are not in the
        vocabulary become ``<UNK>``.
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
    """Write a captioning data set to a directory.

    Parameters
    ----------
    directory : path
        An existing directory.
    words : sequence of str
        The vocabulary without the special words, which are added before it.
    captions : mapping of str to sequence of sequences of str
        For each split ("train" and "val"), the captions of each image.
    features, pca_features : mapping of str to float32 ndarray (images, D)
        For each split, the features before and after PCA.
    urls : mapping of str to sequence of str
        For each split, the URL of each image, or its path relative to `directory`.
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
        write_h5(directory / features_file(split, pca=False), {"features": features[split]})
        write_h5(directory / features_file(split), {"features": pca_features[split]})
        write_text(directory / urls_file(split), "".join(f"{url}\n" for url in urls[split]))
    write_h5(directory / CAPTIONS_FILE, datasets)
    write_json(
        directory / VOCABULARY_FILE, {"idx_to_word": idx_to_word, "word_to_idx": word_to_idx}
    )

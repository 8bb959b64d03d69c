"""Captioning data sets in CS231n's file layout: names of the files, reading and writing.

A data directory holds ``coco2014_captions.h5``, ``{train,val}2014_vgg16_fc7[_pca].h5``,
``coco2014_vocab.json`` and ``{train,val}2014_urls.txt``. The names are COCO's, but any data set
can be stored this way.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from ..files import (
    is_text,
    one_line,
    read_json,
    read_text,
    write_aside,
    write_json,
    write_text,
)
from ..words import SPECIAL_WORDS

SPLITS = ("train", "val")
"""What every data set has; some have a split "test", too."""
CAPTIONS_FILE = "coco2014_captions.h5"
VOCABULARY_FILE = "coco2014_vocab.json"
COURSE_URL = "http://cs231n.stanford.edu/coco_captioning.zip"
"""The archive of CS231n's captioning assignment: COCO 2014 with features of VGG-16."""

_MAX_EXPANSION = 1100
"""Largest ratio of an array's size to its size in the file; deflate reaches 1032."""
_MAX_UNBACKED = 1 << 24
"""Bytes that an array may take in memory whatever its size in the file."""
_MAX_CHUNKS = 1 << 15
"""Chunks that an array may have whatever the size of the file."""


def features_file(split: str, pca: bool = True) -> str:
    """Return the name of the file with the features of a split, after PCA or before it."""
    return f"{split}2014_vgg16_fc7{'_pca' if pca else ''}.h5"


def urls_file(split: str) -> str:
    """Return the name of the file with the image URLs of a split."""
    return f"{split}2014_urls.txt"


# -- Reading


def read_captioning_directory(
    base_dir: str | os.PathLike[str],
    max_train: int | None = None,
    pca_features: bool = True,
    splits: Sequence[str] = SPLITS,
) -> dict[str, Any]:
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
    dict
        See `fastrnn.coco_utils.load_coco_data`.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message has its path.
    OSError
        If a file is truncated or is not an HDF5 file.
    ValueError
        If a dataset is missing, has the wrong number of axes or the wrong dtype, or contains image
        indices or word ids outside the features, the URLs or the vocabulary; or if `max_train` is
        negative.

    Notes
    -----
    Datasets can be chunked, and compressed with gzip, with or without the filters shuffle and
    fletcher32. Other filters, links and data in other files are refused.
    """
    if max_train is not None and max_train < 0:
        raise ValueError(f"max_train is {max_train}; expected at least 0")

    def path_of(name: str) -> str:
        return str(Path(base_dir, name))

    captions_path = path_of(CAPTIONS_FILE)
    data: dict[str, Any] = _read_h5(captions_path)
    for split in splits:
        path = path_of(features_file(split, pca_features))
        data[f"{split}_features"] = _require(path, _read_h5(path), "features", 2, "f")
        first = data[f"{splits[0]}_features"]
        if data[f"{split}_features"].shape[1] != first.shape[1]:
            raise ValueError(
                f"{path}: dataset 'features' has shape {data[f'{split}_features'].shape}; expected "
                f"{first.shape[1]} columns, as in the {splits[0]} features"
            )
    data.update(read_vocabulary(path_of(VOCABULARY_FILE)))
    for split in splits:
        data[f"{split}_urls"] = _read_lines(path_of(urls_file(split)))
    for split in splits:
        _check_captions(captions_path, data, split)

    if max_train is not None:
        rows = np.random.randint(data["train_captions"].shape[0], size=max_train)
        data["train_captions"] = data["train_captions"][rows]
        data["train_image_idxs"] = data["train_image_idxs"][rows]
    return data


def _check_file(path: str) -> None:
    if not Path(path).is_file():
        what = "no such data file" if Path(path).parent.is_dir() else "no such data directory"
        raise FileNotFoundError(errno.ENOENT, what, path)


def _read_h5(path: str) -> dict[str, np.ndarray]:
    """Read every dataset in the root group of an HDF5 file."""
    found = {}
    with _about_h5(path) as (file, where):
        file_size = Path(path).stat().st_size
        room = _MAX_UNBACKED + _MAX_EXPANSION * file_size
        for name in file:
            node = _node_of(file, name, where)
            if isinstance(node, h5py.Dataset):
                found[name] = _read_dataset(node, file_size, room)
                room -= found[name].nbytes
    return found


@contextlib.contextmanager
def _about_h5(path: str) -> Iterator[tuple[h5py.File, list[str]]]:
    """Open an HDF5 file; errors name it and the dataset that the block notes in the list."""
    _check_file(path)
    # h5py reports a truncated file on opening or, where only data are missing, on reading. Damaged
    # metadata raise RuntimeError, KeyError and others.
    where = [path]
    try:
        with h5py.File(path, "r") as file:
            yield file, where
    except ValueError as error:
        raise ValueError(f"{where[-1]} {error}") from None
    except Exception as error:
        raise OSError(
            f"{where[-1]} cannot be read, damaged or no HDF5 file ({one_line(error)})"
        ) from error


def _node_of(file: h5py.File, name: str, where: list[str]) -> Any:
    where.append(f"{where[0]}: dataset {name!r:.60}")
    # A link could make h5py read any other file.
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError("is a link; expected data in this file")
    return file[name]


def dataset_shapes(path: str | os.PathLike[str]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return the shapes and dtypes of the datasets in the root group of an HDF5 file.

    Raises
    ------
    OSError, ValueError
        As `read_captioning_directory` raises them.
    """
    found = {}
    with _about_h5(os.fspath(path)) as (file, where):
        for name in file:
            node = _node_of(file, name, where)
            if isinstance(node, h5py.Dataset) and node.shape is not None:
                found[name] = node.shape, node.dtype
    return found


def read_rows(path: str | os.PathLike[str], name: str, rows: int) -> Iterator[np.ndarray]:
    """Yield a dataset of an HDF5 file in blocks of rows, checked as if all of it were read.

    Raises
    ------
    OSError, ValueError
        As `read_captioning_directory` raises them.
    """
    path = os.fspath(path)
    with _about_h5(path) as (file, where):
        node = _node_of(file, name, where)
        file_size = Path(path).stat().st_size
        _check_dataset(node, file_size, _MAX_UNBACKED + _MAX_EXPANSION * file_size)
        total = len(node)
    for start in range(0, total, rows):
        # Opened for each block, so that an error of the caller is not taken for one of the file.
        with _about_h5(path) as (file, where):
            values = _native(_node_of(file, name, where)[start : start + rows])
        yield values


def _read_dataset(node: h5py.Dataset, file_size: int, room: int) -> np.ndarray:
    """Read a dataset, unless its data are in another file or it claims far more than there are."""
    _check_dataset(node, file_size, room)
    return _native(node[()])


def _native(values: Any) -> np.ndarray:
    values = np.asarray(values)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _check_dataset(node: h5py.Dataset, file_size: int, room: int) -> None:
    if node.dtype.kind not in "biufcS":
        raise ValueError(f"has dtype {node.dtype}; expected numbers")
    if node.external or node.is_virtual:
        raise ValueError("is stored in other files; expected data in this file")
    # Unwritten chunks take no room in a file and compressed ones little, so a small file can
    # claim an array that does not fit in memory.
    claimed = math.prod(node.shape or ()) * node.dtype.itemsize
    in_file = node.id.get_storage_size()
    stored = min(in_file, file_size)
    if claimed > _MAX_UNBACKED + _MAX_EXPANSION * stored:
        raise ValueError(
            f"has shape {node.shape}, stored in {stored} bytes; expected at most "
            f"{_MAX_EXPANSION} times as many in memory"
        )
    if claimed > room:
        raise ValueError(
            f"has shape {node.shape}; expected less in a file of {file_size} bytes with the "
            "datasets before it"
        )
    item_size = node.id.get_type().get_size()  # not the dtype's for unusual floats
    if node.chunks is not None:
        _check_chunks(node, math.prod(node.chunks) * item_size, file_size)
    elif in_file not in (0, math.prod(node.shape or ()) * item_size):
        raise ValueError(f"has shape {node.shape}, stored in {in_file} bytes; expected all of it")


def _check_chunks(node: h5py.Dataset, chunk_size: int, file_size: int) -> None:
    """Check the chunks of a dataset: HDF5 reads past the end of one that is too short."""
    plist = node.id.get_create_plist()
    filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
    deflate, fletcher32 = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32
    # Others have no bound on what they write (two of deflate) or do not check it (scaleoffset).
    known = {deflate, fletcher32, h5py.h5z.FILTER_SHUFFLE}
    if not known.issuperset(filters) or filters.count(deflate) > 1:
        raise ValueError(f"has the filters {filters}; expected gzip, shuffle, fletcher32 or none")
    if chunk_size > _MAX_UNBACKED + _MAX_EXPANSION * file_size:
        raise ValueError(
            f"has chunks of {chunk_size} bytes in a file of {file_size} bytes; expected less"
        )
    # HDF5 takes time and memory for every chunk, written or not.
    count = math.prod(
        -(-long // short) for long, short in zip(node.shape, node.chunks, strict=True)
    )
    if count > _MAX_CHUNKS + file_size // 8:
        raise ValueError(f"has {count} chunks in a file of {file_size} bytes; expected fewer")
    chunks: list[Any] = []
    node.id.chunk_iter(chunks.append)
    for chunk in chunks:
        # HDF5 skips a filter for a chunk that it does not make smaller, and records that.
        used = [f for number, f in enumerate(filters) if not chunk.filter_mask >> number & 1]
        length = chunk.size
        if deflate in used and length <= file_size:
            content = node.id.read_direct_chunk(chunk.chunk_offset)[1]
            at = used.index(deflate)
            length = max(len(content) - 4 * used[at:].count(fletcher32), 0)
            length = _inflated_size(content[:length], chunk_size + 4 * len(filters))
            used = used[:at]
        if length - 4 * used.count(fletcher32) != chunk_size:
            raise ValueError(
                f"has a chunk of another size at {chunk.chunk_offset}; expected {chunk_size} bytes"
            )


def _inflated_size(content: bytes, limit: int) -> int:
    """Return the size of deflated data when inflated: `limit` + 1 if larger, 0 if damaged."""
    inflater = zlib.decompressobj()
    try:
        return len(inflater.decompress(content, limit + 1)) if content else 0
    except zlib.error:
        return 0


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
    # NumPy gives every string of an array the room of the longest.
    if len(lines) * longest > _MAX_UNBACKED + 100 * sum(map(len, lines)):
        raise ValueError(
            f"{path}: has a line of {longest} characters among {len(lines)} lines; expected lines "
            "of similar length"
        )
    # The dtype is for an empty list, of which NumPy would make a float array.
    return np.asarray(lines, dtype=np.str_)


# -- Writing


def write_h5(path: str | os.PathLike[str], datasets: Mapping[str, np.ndarray]) -> None:
    """Write arrays as the datasets of an HDF5 file, atomically."""

    def write(file: BinaryIO) -> None:
        with h5py.File(file, "w") as h5:
            for name, array in datasets.items():
                h5[name] = array

    write_aside(path, write)


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

"""From images with captions and features to a data directory in CS231n's layout.

`choose_splits` divides the images, `encode` turns their captions into word ids, and
`DirectoryWriter` writes the directory: beside its place, to be renamed when it is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..caption_tokens import caption_tokens
from ..checks import ArgumentError
from ..files import write_json, write_text
from ..vision.images import find_images
from ..vision.networks import Network
from ..vision.source import FeatureSource
from ..words import SPECIAL_WORDS
from .annotations import AnnotatedImage, Annotations
from .aside import AsideDirectory
from .feature_files import FeatureFiles, NameIndex
from .layout import (
    CAPTIONS_FILE,
    VOCABULARY_FILE,
    dataset_shapes,
    features_file,
    urls_file,
    write_h5,
)
from .pca import PCA
from .references import references_file

__all__ = [
    "DirectoryWriter",
    "EXTRACTION_FILE",
    "Encoded",
    "EncodedSplit",
    "PREPARED_FILE",
    "SPLITS",
    "Sources",
    "SplitOptions",
    "TOKENIZERS",
    "WordOptions",
    "choose_splits",
    "encode",
    "listed_splits",
    "prepare_directory",
    "rows_of",
]

EXTRACTION_FILE = "extraction.h5"
"""Features of photographs while they are computed, before the directory is in its place."""
PREPARED_FILE = "prepared.json"
"""What a data directory was made from, and its statistics."""
SPLITS = ("train", "val", "test")
"""The parts of a data set."""
TOKENIZERS: dict[str, Callable[[str], list[str]]] = {"coco": caption_tokens, "blank": str.split}
"""Ways to split a caption: as COCO's evaluation does, or at blanks."""

_ROWS = 1 << 16
"""Captions that are encoded at once."""


# -- splits


def choose_splits(
    images: Sequence[AnnotatedImage],
    *,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
) -> dict[str, list[AnnotatedImage]]:
    """Divide images between the splits, each with all of its captions.

    Parameters
    ----------
    images : sequence of AnnotatedImage
        Without a fraction, their own splits count if they have any.
    val_fraction, test_fraction : float, optional
        Parts of the images for val and test, drawn at random; at least one image each, if more
        than 0. Where neither the images nor the arguments say, 0.1 and 0.
    seed : int, optional
        Of the draw. Default 0.

    Returns
    -------
    dict of str to list of AnnotatedImage
        By split, in the order given: train, val and, where it has images, test.

    Raises
    ------
    ValueError
        If a fraction is out of range, or if some of the images have a split and others have none.
    """
    drawn = val_fraction is not None or test_fraction is not None
    known = [image for image in images if image.split is not None]
    found: dict[str, list[AnnotatedImage]] = {split: [] for split in SPLITS}
    if known and not drawn:
        if len(known) < len(images):
            other = next(image for image in images if image.split is None)
            raise ValueError(
                f"the image {other.name!r:.60} has no split, and {len(known)} images have one; "
                "expected one for every image"
            )
        for image in images:
            found[str(image.split)].append(image)
    else:
        sizes = {}
        for name, fraction, otherwise in (
            ("val_fraction", val_fraction, 0.1), ("test_fraction", test_fraction, 0.0),
        ):  # fmt: skip
            fraction = otherwise if fraction is None else fraction
            if not 0 <= fraction <= 1:
                raise ArgumentError(name, f"is {fraction}; expected a number in [0, 1]")
            sizes[name] = max(round(fraction * len(images)), 1 if fraction else 0)
        val, test = sizes.values()
        if val + test > len(images):
            raise ArgumentError(
                "val_fraction",
                f"and test_fraction are {val_fraction} and {test_fraction}, {val + test} of "
                f"{len(images)} images; expected a sum of at most 1",
            )
        order = np.random.default_rng(seed).permutation(len(images))
        splits = np.zeros(len(images), dtype=np.intp)
        splits[order[:val]] = 1
        splits[order[val : val + test]] = 2
        for image, split in zip(images, splits.tolist(), strict=True):
            found[SPLITS[split]].append(image)
    if not found["test"]:
        del found["test"]
    return found


def listed_splits(
    images: Sequence[AnnotatedImage], lists: Mapping[str, Sequence[str]]
) -> tuple[list[AnnotatedImage], list[str]]:
    """Give images the splits of lists of names.

    Parameters
    ----------
    images : sequence of AnnotatedImage
        Their splits are replaced.
    lists : mapping of str to sequence of str
        The names of the images of each split.

    Returns
    -------
    images : list of AnnotatedImage
        Those that are in a list.
    unknown : list of str
        Names in the lists without an image.

    Raises
    ------
    ValueError
        If an image is in two lists, or none of a list is known.
    """
    index = NameIndex([image.name for image in images], "the annotations")
    for image in images:
        image.split = None
    unknown: list[str] = []
    for split, names in lists.items():
        missing = len(unknown)
        for name in names:
            row = index.find(name)
            if row is None:
                unknown.append(name)
            elif images[row].split not in (None, split):
                raise ValueError(
                    f"the image {name!r:.60} is in the lists of {images[row].split} and {split}; "
                    "expected every image in one split"
                )
            else:
                images[row].split = split
        if len(unknown) - missing == len(names):
            raise ValueError(
                f"the list of {split} has {len(names)} names, such as {names[0]!r:.60}, and no "
                "image with captions; expected names as in the annotations"
            )
    return [image for image in images if image.split is not None], unknown


# -- words


@dataclass(frozen=True)
class WordOptions:
    """How captions become word ids.

    Attributes
    ----------
    tokens : {'coco', 'blank'}
        How captions are split.
    min_count : int or None
        Words that are in the training captions less often become ``<UNK>``; 5 by default, unless
        `vocab_size` is given.
    vocab_size : int or None
        The most frequent words are kept: at most so many, without the four special words.
    words : sequence of str or None
        The vocabulary of an earlier data set, special words included, instead.
    max_length : int
        Longer captions are cut to this many words.
    """

    tokens: str = "coco"
    min_count: int | None = None
    vocab_size: int | None = None
    words: Sequence[str] | None = None
    max_length: int = 15

    def __post_init__(self) -> None:
        if self.tokens not in TOKENIZERS:
            raise ArgumentError(
                "tokens", f"is {self.tokens!r}; expected one of {', '.join(TOKENIZERS)}"
            )
        for name in ("min_count", "vocab_size", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(name, f"is {value}; expected at least 1")
        if self.words is not None:
            missing = [word for word in SPECIAL_WORDS if word not in self.words]
            if missing:
                raise ArgumentError("words", f"has no {missing[0]}; expected all special words")

    @property
    def least(self) -> int:
        """How often a word must be in the training captions."""
        return self.min_count or (5 if self.vocab_size is None else 1)


@dataclass
class EncodedSplit:
    """The captions of a split as word ids, and what they are about.

    Attributes
    ----------
    images : list of AnnotatedImage
        Those that have captions.
    captions : int32 ndarray (captions, words)
    image_idxs : int32 ndarray (captions,)
    figures : dict
        Statistics: ``images``, ``captions``, ``tokens`` (of the whole captions), ``types``
        (different tokens), ``unknown`` (tokens that became ``<UNK>``), ``kept`` (tokens in
        `captions`), ``cut`` (captions), ``longest`` (words in a caption), ``empty`` (captions
        without a word, which are left out).
    """

    images: list[AnnotatedImage]
    captions: np.ndarray
    image_idxs: np.ndarray
    figures: dict[str, int]


@dataclass
class Encoded:
    """The captions of all splits.

    Attributes
    ----------
    words : list of str
        The vocabulary in the order of the ids.
    splits : dict of str to EncodedSplit
    wordless : list of str
        Images that have no captions, or none with a word.
    """

    words: list[str]
    splits: dict[str, EncodedSplit]
    wordless: list[str] = field(default_factory=list)


class _Numbers(dict[str, int]):
    """A number for every word, in the order in which they are met."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number


@dataclass
class _Tokens:
    """Captions as numbers of words, one after the other."""

    images: list[AnnotatedImage] = field(default_factory=list)
    numbers: array[int] = field(default_factory=lambda: array("i"))
    lengths: array[int] = field(default_factory=lambda: array("i"))
    rows: array[int] = field(default_factory=lambda: array("i"))
    empty: int = 0


def encode(splits: Mapping[str, Sequence[AnnotatedImage]], options: WordOptions) -> Encoded:
    """Turn captions into word ids.

    Parameters
    ----------
    splits : mapping of str to sequence of AnnotatedImage
        The images of each split. Captions without a word are removed from them, in place.
    options : WordOptions
        How captions are split into words, and which words are kept.

    Returns
    -------
    Encoded
        Each caption is a row of ``<START>``, its words and ``<END>``, padded with ``<NULL>``, and
        as wide as the longest needs.
    """
    table = _Numbers()
    wordless: list[str] = []
    found = {
        split: _tokenize(images, TOKENIZERS[options.tokens], table, wordless)
        for split, images in splits.items()
    }
    kinds = list(table)
    counts = {
        split: np.bincount(np.frombuffer(part.numbers, np.intc), minlength=len(kinds))
        for split, part in found.items()
    }
    words = (
        list(options.words)
        if options.words is not None
        else [*SPECIAL_WORDS, *_vocabulary(kinds, counts["train"], options)]
    )
    ids = {word: idx for idx, word in enumerate(words)}
    null, start, end, unknown = (ids[word] for word in SPECIAL_WORDS)
    # A special word in a caption is no word of the vocabulary.
    ids.update(dict.fromkeys(SPECIAL_WORDS, unknown))
    remap = np.array([ids.get(word, unknown) for word in kinds], dtype=np.int32)
    longest = max((max(part.lengths, default=0) for part in found.values()), default=0)
    width = min(longest, options.max_length)

    encoded = {}
    for split, part in found.items():
        numbers = np.frombuffer(part.numbers, np.intc)
        lengths = np.frombuffer(part.lengths, np.intc)
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        kept = np.minimum(lengths, width)
        captions = np.full((len(lengths), width + 2), null, dtype=np.int32)
        captions[:, 0] = start
        for first in range(0, len(lengths), _ROWS):
            rows = slice(first, first + _ROWS)
            inside = np.arange(width) < kept[rows, None]
            places = (starts[rows, None] + np.arange(width))[inside]
            captions[rows, 1:-1][inside] = remap[numbers[places]]
        captions[np.arange(len(kept)), kept + 1] = end
        encoded[split] = EncodedSplit(
            part.images,
            captions,
            np.array(part.rows, dtype=np.int32),
            {
                "images": len(part.images),
                "captions": len(lengths),
                "tokens": len(numbers),
                "types": int(np.count_nonzero(counts[split])),
                "unknown": int(np.count_nonzero(captions == unknown)),
                "kept": int(kept.sum()),
                "cut": int(np.count_nonzero(lengths > width)),
                "longest": int(lengths.max(initial=0)),
                "empty": part.empty,
            },
        )
    return Encoded(words, encoded, wordless)


def _tokenize(
    images: Sequence[AnnotatedImage],
    split: Callable[[str], list[str]],
    table: _Numbers,
    wordless: list[str],
) -> _Tokens:
    found = _Tokens()
    number_of = table.__getitem__
    for image in images:
        captions = image.captions
        before = len(found.lengths)
        for caption in captions:
            words = split(caption)
            if words:
                found.numbers.extend(map(number_of, words))
                found.lengths.append(len(words))
                found.rows.append(len(found.images))
        lost = len(captions) - (len(found.lengths) - before)
        if lost:
            found.empty += lost
            image.captions = [caption for caption in captions if split(caption)]
        if image.captions:
            found.images.append(image)
        else:
            wordless.append(image.name)
    return found


def _vocabulary(kinds: list[str], counts: np.ndarray, options: WordOptions) -> list[str]:
    """Return the words to keep, the most frequent first."""
    kept = [
        (-count, word)
        for word, count in zip(kinds, counts.tolist(), strict=True)
        if count >= options.least and word not in SPECIAL_WORDS
    ]
    return [word for _, word in sorted(kept)[: options.vocab_size]]


# -- the directory


class DirectoryWriter(AsideDirectory):
    """Writes the files of a data directory; aside until they are complete."""

    def clear(self) -> None:
        """Remove what an earlier try left, except features that were computed."""
        for path in self.aside.iterdir():
            if not path.name.startswith(EXTRACTION_FILE):
                path.unlink()

    def write_captions(self, encoded: Encoded, urls: Mapping[str, Sequence[str]]) -> None:
        """Write captions, vocabulary, URLs and references."""
        datasets = {}
        for split, part in encoded.splits.items():
            datasets[f"{split}_captions"] = part.captions
            datasets[f"{split}_image_idxs"] = part.image_idxs
            write_text(self.aside / urls_file(split), "".join(f"{url}\n" for url in urls[split]))
            texts = [[" ".join(c.split()) for c in image.captions] for image in part.images]
            names = [url.rstrip("/").rsplit("/", 1)[-1] for url in urls[split]]
            unique = len(set(names)) == len(names)
            references = dict(zip(names, texts, strict=True)) if unique and names else texts
            write_json(self.aside / references_file(split), references)
        write_h5(self.aside / CAPTIONS_FILE, datasets)
        ids = {word: idx for idx, word in enumerate(encoded.words)}
        write_json(self.aside / VOCABULARY_FILE, {"idx_to_word": encoded.words, "word_to_idx": ids})

    def write_features(
        self, features: FeatureFiles, rows: Mapping[str, Sequence[int]], *, after_pca: bool = False
    ) -> None:
        """Write features: `rows` says which rows each split has, in its order."""
        split_of = np.full(features.count, -1)
        place_of = np.zeros(features.count, dtype=np.int64)
        with contextlib.ExitStack() as stack:
            datasets = []
            for number, (split, chosen) in enumerate(rows.items()):
                split_of[chosen] = number
                place_of[chosen] = np.arange(len(chosen))
                path = self.aside / features_file(split, pca=after_pca)
                file = stack.enter_context(h5py.File(path, "w"))
                shape = (len(chosen), features.width)
                datasets.append(file.create_dataset("features", shape, np.float32))
            for first, block in features.blocks():
                splits = split_of[first : first + len(block)]
                for number, dataset in enumerate(datasets):
                    here = np.flatnonzero(splits == number)
                    places = place_of[first + here]
                    order = np.argsort(places)
                    here, places = here[order], places[order]
                    # HDF5 is slow with lists of rows: write what stands together at once.
                    for run in np.split(
                        np.arange(len(here)), np.flatnonzero(np.diff(places) > 1) + 1
                    ):
                        if run.size:
                            start = int(places[run[0]])
                            dataset[start : start + run.size] = block[here[run]]

    def reduce_features(self, splits: Sequence[str], components: int | PCA | None) -> PCA | None:
        """Write the features after PCA; without it they are those before it."""
        if components is not None:
            paths = {split: self.aside / features_file(split, pca=False) for split in splits}
            pca = components
            if isinstance(pca, int):
                width = dataset_shapes(paths["train"])["features"][0]
                if not 1 <= pca <= min(width):
                    raise ArgumentError(
                        "pca",
                        f"is {pca}; expected at most {min(width)}, for {width[0]} training images "
                        f"of {width[1]} features",
                    )
                pca = PCA.fit_file(paths["train"], pca)
            for split, path in paths.items():
                reduced = self.aside / features_file(split)
                if dataset_shapes(path)["features"][0][0]:
                    pca.transform_file(path, reduced)
                else:
                    empty = np.zeros((0, len(pca.components)), np.float32)
                    write_h5(reduced, {"features": empty})
            return pca
        for split in splits:
            whole = self.aside / features_file(split, pca=False)
            reduced = self.aside / features_file(split)
            reduced.unlink(missing_ok=True)
            try:
                os.link(whole, reduced)
            except OSError:  # a file system without links
                shutil.copyfile(whole, reduced)
        return None

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write what the directory was made from, and move it to its place."""
        write_json(self.aside / PREPARED_FILE, record)
        self.move(self.aside)


def rows_of(
    images: Sequence[AnnotatedImage], index: NameIndex
) -> tuple[dict[str, int], list[str], list[str]]:
    """Find the photograph, or the row of features, of each image.

    Parameters
    ----------
    images : sequence of AnnotatedImage
        The images.
    index : NameIndex
        Of the photographs or the rows.

    Returns
    -------
    rows : dict of str to int
        The row of each image that has one, by name.
    missing : list of str
        Images without one.
    unused : list of str
        Names in the index without an image.

    Raises
    ------
    ValueError
        If two images have the same row.
    """
    exact = {row for image in images if (row := index.exact(image.name)) is not None}
    rows: dict[str, int] = {}
    taken: dict[int, str] = {}
    missing = []
    for image in images:
        row = index.exact(image.name)
        if row is None:
            row = index.find(image.name, image.number)
            if row in exact:  # it is another image's by its whole name
                row = None
        if row is None:
            missing.append(image.name)
            continue
        if row in taken:
            raise ValueError(
                f"the images {taken[row]!r:.60} and {image.name!r:.60} are both "
                f"{index.names[row]!r:.60}; expected different ones"
            )
        rows[image.name], taken[row] = row, image.name
    return rows, missing, [name for row, name in enumerate(index.names) if row not in taken]


# -- all of it


@dataclass(frozen=True)
class Sources:
    """What a data directory is made from: features, or photographs and a network.

    Attributes
    ----------
    annotations : Annotations
    lists : mapping of str to sequence of str
        Names of the images of splits; other images are left out. Empty: the splits of the
        annotations, or fractions.
    photographs : path or None
        The folder with the photographs. With `features` they are only to be looked at.
    features : FeatureFiles or None
        Features that the user has. If they have no names, their rows are the images in the order
        of the annotations.
    network : Network or None
        What computes features from the photographs, where there are none.
    batch_size : int, optional
        Of that network; by default what suits it.
    progress : callable or None
        Called while that is done; see `fastrnn.vision.extract.extract_features`.
    """

    annotations: Annotations
    lists: Mapping[str, Sequence[str]] = field(default_factory=dict)
    photographs: Path | None = None
    features: FeatureFiles | None = None
    network: Network | None = None
    batch_size: int | None = None
    progress: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if self.features is None and (self.photographs is None or self.network is None):
            raise ValueError("a data set needs photographs or features")

    @property
    def source(self) -> FeatureSource:
        """How the features are made, as far as that is known."""
        if self.features is None:
            assert self.network is not None
            return FeatureSource.of(self.network, images=self.photographs)
        # As `fastrnn features` and this module write it beside the features.
        directories = {path.parent for path in self.features.paths}
        known = FeatureSource.read(directories.pop()) if len(directories) == 1 else None
        width = self.features.width
        if known is not None and known.width == width:
            known = known.without_pca()
        if known is None or known.columns != width:
            known = FeatureSource.unknown(width)
        folder = self.photographs
        return dataclasses.replace(known, images=None if folder is None else str(folder.resolve()))


@dataclass(frozen=True)
class SplitOptions:
    """How images are divided where annotations and lists do not say; see `choose_splits`."""

    val_fraction: float | None = None
    test_fraction: float | None = None
    seed: int = 0


def prepare_directory(
    out: str | os.PathLike[str],
    sources: Sources,
    words: WordOptions,
    splits: SplitOptions,
    *,
    components: int | PCA | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Make a data directory.

    Parameters
    ----------
    out : path
        The directory. It is there when it is whole; photographs whose features were computed
        before an interruption are not computed again.
    sources : Sources
        The captions, and the photographs or features.
    words : WordOptions
        How captions are split into words, and which words are kept.
    splits : SplitOptions
        How images are divided, where nothing else says it.
    components : int or PCA, optional
        Reduce the features to so many principal components of the training images, or by a PCA
        that was fitted before. By default they stay as they are.
    force : bool, optional
        Replace a data directory that exists.

    Returns
    -------
    dict
        What was made from what, as in ``prepared.json``.

    Raises
    ------
    OSError
        If a file cannot be read or written.
    ValueError
        If the sources do not fit together.
    """
    known = sources.source
    if components is not None and known.pca is not None:
        raise ArgumentError("pca", f"is given, and {sources.features} is after a PCA already")
    if isinstance(components, PCA) and len(components.mean) != known.width:
        raise ArgumentError(
            "pca_file", f"is for {len(components.mean)} features; expected {known.width}"
        )
    writer = DirectoryWriter(out, force=force)
    matched = _match(sources)
    chosen = choose_splits(matched.images, **vars(splits))
    _check_splits(chosen, words)
    with writer:
        unreadable: dict[str, str] = {}
        features, rows = sources.features, matched.rows
        if features is None:
            writer.keep = True
            out_file = writer.aside / EXTRACTION_FILE
            features, rows, unreadable = _extract(sources, matched, out_file)
            chosen = {
                split: [image for image in part if image.name in rows]
                for split, part in chosen.items()
            }
        writer.clear()
        encoded = encode(chosen, words)
        matched.left_out["images without captions"] += encoded.wordless
        images = {split: part.images for split, part in encoded.splits.items()}
        _check_splits(images, words)
        urls = {split: [matched.url_of(image) for image in part] for split, part in images.items()}
        writer.write_captions(encoded, urls)
        places = {split: [rows[image.name] for image in part] for split, part in images.items()}
        writer.write_features(features, places, after_pca=known.pca is not None)
        pca = known.pca
        if pca is None:
            pca = writer.reduce_features(list(images), components)
        dataclasses.replace(known, pca=pca).write(writer.aside)
        record = {
            "format": 1,
            "annotations": sources.annotations.sources,
            "photographs": known.images,
            "features": None if sources.features is None else str(sources.features),
            "tokens": words.tokens,
            "min_count": words.least,
            "vocab_size": words.vocab_size,
            "given_words": words.words is not None,
            "max_length": words.max_length,
            **vars(splits),
            "words": len(encoded.words),
            "width": features.width if pca is None else len(pca.components),
            "splits": {split: part.figures for split, part in encoded.splits.items()},
            "left_out": {what: names for what, names in matched.left_out.items() if names},
            "orphans": sources.annotations.orphans,
            "unreadable": unreadable,
        }
        for path in writer.aside.glob(f"{EXTRACTION_FILE}*"):
            path.unlink()
        writer.finish(record)
    return record


@dataclass
class _Matched:
    """Images that have captions, with their photographs and rows of features."""

    images: list[AnnotatedImage]
    photographs: dict[str, str]
    rows: dict[str, int]
    left_out: dict[str, list[str]]

    def url_of(self, image: AnnotatedImage) -> str:
        """Return the path of an image in the folder of the photographs, or its address."""
        return self.photographs.get(image.name) or image.url or image.name


def _match(sources: Sources) -> _Matched:
    """Find the photograph, the features and the split of each image; tell what has no other."""
    annotations = sources.annotations
    images = list(annotations.images)
    found = _Matched([], {}, {}, {})
    have: Sequence[str] = ()
    if sources.photographs is not None:
        folder = sources.photographs
        have = [path.relative_to(folder).as_posix() for path in find_images(folder)]
        rows, missing, unused = rows_of(images, NameIndex(have, str(folder)))
        found.photographs = {name: have[row] for name, row in rows.items()}
        found.left_out["captions without photograph"] = missing
        found.left_out["photographs without captions"] = unused
    if sources.features is not None:
        have = sources.features.names or ()
        found.rows = _rows_of_features(sources.features, images, found.left_out)
        images = [image for image in images if image.name in found.rows]
    else:
        images = [image for image in images if image.name in found.photographs]
    if sources.lists:
        images, unknown = listed_splits(images, sources.lists)
        found.left_out["listed images without captions"] = unknown
    found.images = [image for image in images if image.captions]
    found.left_out["images without captions"] = [i.name for i in images if not i.captions]
    if not found.images:
        such = f", such as {annotations.images[0].name!r:.60}" if annotations.images else ""
        others = f"; the photographs or features are of {have[0]!r:.60} and others" if have else ""
        raise ValueError(
            f"{annotations.sources[0]}: no image has both captions and features; expected some of "
            f"{len(annotations.images)} images{such}{others}"
        )
    return found


def _rows_of_features(
    features: FeatureFiles, images: Sequence[AnnotatedImage], left_out: dict[str, list[str]]
) -> dict[str, int]:
    if features.names is None:
        if features.count != len(images):
            raise ValueError(
                f"{features}: has {features.count} rows; expected {len(images)}, one for each "
                "image of the annotations in their order (or the names of the rows)"
            )
        return {image.name: row for row, image in enumerate(images)}
    rows, missing, unused = rows_of(images, NameIndex(features.names, str(features)))
    left_out["captions without features"] = missing
    left_out["features without captions"] = unused
    return rows


def _check_splits(splits: Mapping[str, Sequence[AnnotatedImage]], words: WordOptions) -> None:
    """Refuse a data set that cannot be trained on, or tested if its words are given."""
    needed = ("val",) if words.words is not None else ("train", "val")
    for split in needed:
        if not splits[split]:
            raise ValueError(
                f"no image with captions is in {split}; expected at least one (images: "
                + ", ".join(f"{len(part)} in {name}" for name, part in splits.items())
                + ")"
            )


def _extract(
    sources: Sources, matched: _Matched, out: Path
) -> tuple[FeatureFiles, dict[str, int], dict[str, str]]:
    """Compute the features of photographs; return the row of each, or why there is none."""
    from ..vision.extract import extract_features  # only where photographs are read

    assert sources.photographs is not None and sources.network is not None
    paths = [sources.photographs / matched.photographs[image.name] for image in matched.images]
    done = extract_features(
        paths, sources.network, out, batch_size=sources.batch_size, progress=sources.progress,
        keep=True,
    )  # fmt: skip
    names = [matched.images[number].name for number in done.rows]
    unreadable = {
        path.relative_to(sources.photographs).as_posix(): why for path, why in done.unreadable
    }
    return FeatureFiles([out], names), {name: row for row, name in enumerate(names)}, unreadable

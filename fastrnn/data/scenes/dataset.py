"""Scene data sets: images, captions and features, written in CS231n's layout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...files import one_line, read_json, write_json
from ..layout import write_captioning_directory
from ..pca import PCA
from .draw import Scene, draw_scenes, make_scene
from .features import describe_pictures
from .language import describe, words_of_the_language

__all__ = ["PCA_FILE", "SCENES_FILE", "SceneSet", "make_scenes", "read_scenes", "write_scenes"]

SCENES_FILE = "{split}_scenes.json"
"""File of the scenes of a split, against which captions can be checked."""
PCA_FILE = "pca.npz"
"""File of the principal components, for the features of new images."""


@dataclass(frozen=True, repr=False)
class SceneSet:
    """N scenes with their images, uint8 (N, SIDE, SIDE, 3), and five captions each."""

    scenes: list[Scene]
    images: np.ndarray
    captions: list[list[str]]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.scenes):,} scenes)"


def make_scenes(num_train: int, num_val: int, seed: int) -> dict[str, SceneSet]:
    """Make a training set and a validation set.

    Parameters
    ----------
    num_train, num_val : int
        Number of scenes in each set, at least 1.
    seed : int
        Random seed.

    Returns
    -------
    dict of str to SceneSet
        The sets, under "train" and "val". They have no scene in common, because positions are
        random real numbers.

    Raises
    ------
    ValueError
        If `num_train` or `num_val` is less than 1.
    """
    sets = {}
    rng = np.random.default_rng(seed)
    for split, number in (("train", num_train), ("val", num_val)):
        if number < 1:
            raise ValueError(f"num_{split} is {number}; expected at least 1")
        scenes = [make_scene(rng) for _ in range(number)]
        captions = [describe(scene, rng) for scene in scenes]
        # Small groups of images fit in the cache while they are drawn.
        images = [draw_scenes(scenes[i : i + 50], rng) for i in range(0, number, 50)]
        sets[split] = SceneSet(scenes, np.concatenate(images), captions)
    return sets


def write_scenes(
    directory: str | os.PathLike[str],
    num_train: int,
    num_val: int,
    seed: int = 0,
    size: int = 40,
    threads: int = 1,
    *,
    pictures: Sequence[str] = ("val",),
) -> None:
    """Make scenes and write them to a data directory.

    Parameters
    ----------
    directory : path
        The data directory, created if it does not exist.
    num_train, num_val, seed : int
        See `make_scenes`.
    size : int, optional
        Number of principal components. Default 40.
    threads : int, optional
        Number of threads that compute features. It does not change the result. Default 1.
    pictures : sequence of {'train', 'val'}, optional
        The sets whose images are written. By default only the validation set's: the images of a
        training set are many, and models read its features.

    Notes
    -----
    In addition to the files of the layout, this writes ``{train,val}_scenes.json``, ``pca.npz``
    (see `fastrnn.data.scenes.features.features_of`) and the images of `pictures`.
    """
    directory = Path(directory)
    images = directory / "images"
    images.mkdir(parents=True, exist_ok=True)
    sets = make_scenes(num_train, num_val, seed)
    with ThreadPoolExecutor(threads) as pool:
        features = {}
        for split, made in sets.items():
            parts = np.array_split(made.images, min(len(made.images), 8 * threads))
            features[split] = np.concatenate(list(pool.map(describe_pictures, parts)))
    pca = PCA.fit(features["train"], size)
    pca.save(directory / PCA_FILE)
    urls = {}
    for split, made in sets.items():
        urls[split] = [f"images/{split}{i:05d}.png" for i in range(len(made.scenes))]
        write_json(
            directory / SCENES_FILE.format(split=split), [scene.to_json() for scene in made.scenes]
        )
    for split in pictures:
        for url, image in zip(urls[split], sets[split].images, strict=True):
            Image.fromarray(image).save(directory / url)
    write_captioning_directory(
        directory,
        words_of_the_language(),
        {split: made.captions for split, made in sets.items()},
        features,
        {split: pca.transform(x) for split, x in features.items()},
        urls,
    )


def read_scenes(directory: str | os.PathLike[str], split: str = "val") -> list[Scene] | None:
    """Read the scenes of a split of a data directory.

    Parameters
    ----------
    directory : path
        The data directory.
    split : {'val', 'train'}, optional
        The split. Default 'val'.

    Returns
    -------
    list of Scene or None
        The scene of each image; None if the data set does not consist of scenes.

    Raises
    ------
    ValueError
        If the file of the scenes is damaged.
    """
    path = Path(directory) / SCENES_FILE.format(split=split)
    if not path.is_file():
        return None
    found = read_json(path)
    try:
        return [Scene.from_json(shapes) for shapes in found]
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: cannot be read as scenes ({one_line(error)})") from None

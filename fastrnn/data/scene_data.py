"""The scenes as a data set: pictures, captions and features in the h5 layout, made on the spot."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import in_a_line, read_json, write_json
from .features import PCA, describe_pictures
from .layout import write_captioning_directory
from .scene_language import describe, words_of_the_language
from .scenes import Scene, draw_scenes, make_scene

SCENES_FILE = "{split}_scenes.json"
"""Beside the captions: what was drawn, so that captions can be held against it."""


@dataclass(frozen=True)
class SceneSet:
    """Scenes with their pictures (N, SIDE, SIDE, 3) uint8 and five captions each."""

    scenes: list[Scene]
    images: np.ndarray
    captions: list[list[str]]


def make_scenes(num_train: int, num_val: int, seed: int) -> dict[str, SceneSet]:
    """Make a training and a validation set.

    Parameters
    ----------
    num_train, num_val : int
        Scenes in each, at least 1.
    seed : int
        The same seed gives the same sets.

    Returns
    -------
    dict
        A `SceneSet` under each of "train" and "val". No scene is in both: positions are real
        numbers, and drawn anew.

    Raises
    ------
    ValueError
        A number is out of range.
    """
    sets = {}
    rng = np.random.default_rng(seed)
    for split, number in (("train", num_train), ("val", num_val)):
        if number < 1:
            raise ValueError(f"num_{split} is {number}; expected at least 1")
        scenes = [make_scene(rng) for _ in range(number)]
        captions = [describe(scene, rng) for scene in scenes]
        # A few at a time stay in the cache while they are drawn.
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
) -> None:
    """Make scenes and write them as a data set.

    Parameters
    ----------
    directory : path
        Made if it is not there.
    num_train, num_val, seed : int
        As for `make_scenes`.
    size : int, optional
        Number of principal components.
    threads : int, optional
        Threads that describe pictures; the result does not depend on it.

    Notes
    -----
    Beside the files of the layout it writes ``{train,val}_scenes.json``, ``pca.npz`` (for the
    features of new pictures, see `features_of`) and the pictures of the validation set.
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
    pca.save(directory / "pca.npz")
    urls = {}
    for split, made in sets.items():
        urls[split] = [f"images/{split}{i:05d}.png" for i in range(len(made.scenes))]
        write_json(
            directory / SCENES_FILE.format(split=split), [scene.to_json() for scene in made.scenes]
        )
    for url, image in zip(urls["val"], sets["val"].images, strict=True):
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
    """Read what was drawn; None where `directory` is not of this making.

    Raises
    ------
    ValueError
        The file is there, but does not hold scenes.
    """
    path = Path(directory) / SCENES_FILE.format(split=split)
    if not path.is_file():
        return None
    found = read_json(path)
    try:
        return [Scene.from_json(shapes) for shapes in found]
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: does not hold scenes ({in_a_line(error)})") from None

"""The settings and the data of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from .. import runs
from ..checkpoint import load_model
from ..classifiers.rnn import CaptioningRNN
from ..data.layout import (
    CAPTIONS_FILE,
    SPLITS,
    VOCABULARY_FILE,
    CaptioningData,
    read_captioning_directory,
)
from ..data.pictures import remember_directory
from ..data.references import read_references, references_file
from ..evaluation import find_references, measure
from ..files import one_line
from ..vision.source import check_source
from ..words import END, NULL, START
from .config import ModelConfig, TrainConfig
from .start import start_model


@dataclass(frozen=True)
class Run:
    """The settings and the data of a run.

    Attributes
    ----------
    directory : Path
        The run directory.
    settings : dict
        All of its settings by name, see `fastrnn.runs.read_settings`.
    config : TrainConfig
    data_directory : Path or None
        The data directory; None if the data did not come from a directory.
    """

    directory: Path
    settings: dict[str, Any]
    config: TrainConfig
    data_directory: Path | None

    def read_data(self, directory: str | os.PathLike[str] | None = None) -> dict[str, Any]:
        """Read the data of the run: the same captions in the same order.

        Parameters
        ----------
        directory : path, optional
            The data directory, if it has been moved.

        Returns
        -------
        dict
            As `fastrnn.coco_utils.load_coco_data` returns it.

        Raises
        ------
        ValueError
            The run has no data directory; or as `read_training_data`.
        """
        place = self._data_place(directory)
        max_train = self.settings.get("max_train")
        if max_train is not None and (type(max_train) is not int or max_train < 0):
            raise ValueError(
                f"{self.directory / runs.SETTINGS_FILE}: max_train is {max_train!r:.60}; expected "
                "an integer of at least 0"
            )
        return read_training_data(
            place,
            raw_features=bool(self.settings.get("raw_features")),
            max_train=max_train,
            seed=self.config.seed,
            rows=runs.read_rows(self.directory),
        )

    def evaluate(
        self,
        split: str = "val",
        *,
        data: str | os.PathLike[str] | None = None,
        references: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Caption the images of a split with the best model and measure the captions.

        This is what ``fastrnn evaluate`` does, with the same references: the split's
        ``<split>_references.json`` in the data directory if there is one, or else its captions.

        Parameters
        ----------
        split : {'val', 'train', 'test'}, optional
        data : path, optional
            The data directory, if it has been moved.
        references : path, optional
            A file of references, see `fastrnn.metrics.read_references`.
        **options
            Those of `fastrnn.evaluation.measure`, such as ``beam``, 3 by default.

        Returns
        -------
        dict
            BLEU, ROUGE-L, CIDEr, perplexity and others, see `fastrnn.evaluation.measure`.

        Raises
        ------
        FileNotFoundError
            The run has no model yet, or the data are not there.
        ValueError
            The run does not say where its data are; or as `fastrnn.evaluation.measure`.

        Examples
        --------
        .. code-block:: python

            from fastrnn.training import read_run

            print(read_run("runs/one").evaluate(beam=1)["cider"])  # 0.4987
        """
        place = self._data_place(data)
        model = load_model(self.directory)
        found = read_captioning_directory(
            place,
            pca_features=not self.settings.get("raw_features"),
            splits=tuple(dict.fromkeys((*SPLITS, split))),
        )
        known, _ = find_references(found, place, split, references)
        return measure(model, found, split, references=known, **options)

    def _data_place(self, directory: str | os.PathLike[str] | None) -> Path:
        place = directory or self.data_directory
        if place is None:
            raise ValueError(f"{self.directory}: has no data directory in its settings")
        return Path(place)

    def start_model(self, data: Mapping[str, Any]) -> CaptioningRNN:
        """Create the initial model of the run again, if it was created by `start_model`."""
        names = [each.name for each in fields(ModelConfig)]
        try:
            start = ModelConfig(**{name: self.settings[name] for name in names})
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            about = f"has no {error}" if isinstance(error, KeyError) else one_line(error)
            raise ValueError(f"{self.directory / runs.SETTINGS_FILE}: {about}") from None
        return start_model(
            data, start.cell, start.wordvec_dim, start.hidden_dim, self.config.seed,
            bias_start=start.bias_start, forget_bias=start.forget_bias,
            embed_scale=start.embed_scale,
        )  # fmt: skip


def read_run(run: str | os.PathLike[str]) -> Run:
    """Read the settings of a run.

    Parameters
    ----------
    run : path
        The run directory that ``fastrnn train`` or `Trainer` wrote.

    Returns
    -------
    Run
        The run.

    Raises
    ------
    FileNotFoundError
        There is no such directory.
    ValueError
        It is not a run directory, or its settings cannot be read.
    """
    directory = Path(run)
    settings = runs.read_settings(directory)
    path = directory / runs.SETTINGS_FILE
    known = {each.name for each in fields(TrainConfig)}
    try:
        config = TrainConfig(**{name: v for name, v in settings.items() if name in known})
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {one_line(error)}") from None
    data = settings.get("data")
    if data is not None and (not isinstance(data, str) or "\0" in data):
        raise ValueError(f"{path}: data is {data!r:.60}; expected a directory")
    place = None if data is None else Path(data)
    # Drawn scenes are in the run directory, which may have been moved.
    drawn = directory / runs.SCENE_DIRECTORY
    try:
        lost = place is not None and not place.is_dir()
    except OSError as error:  # the name is too long
        raise ValueError(f"{path}: data is {data!r:.60} ({error.strerror})") from None
    if lost and drawn.is_dir():
        place = drawn
    return Run(directory, settings, config, place)


def read_training_data(
    directory: str | os.PathLike[str],
    *,
    raw_features: bool = False,
    max_train: int | None = None,
    seed: int = 0,
    rows: Sequence[int] | None = None,
) -> CaptioningData:
    """Read a captioning data set for training.

    Parameters
    ----------
    directory : path
        In CS231n's layout.
    raw_features : bool, optional
        Read the features before PCA.
    max_train : int, optional
        Use this many training captions, drawn without replacement. (`load_coco_data` draws with
        replacement.)
    seed : int, optional
        The seed of this draw.
    rows : sequence of int, optional
        Use these training captions instead: their rows in the data, which may be repeated.

    Returns
    -------
    CaptioningData
        As `fastrnn.coco_utils.load_coco_data` returns it. If there is a ``val_references.json`` in
        the directory, its captions are under ``val_references``: they are complete, and have no
        ``<UNK>``.

    Raises
    ------
    FileNotFoundError, OSError
        A file is missing or damaged.
    ValueError
        The files do not fit together, ``features.json`` describes other features, there are no
        training captions, or the vocabulary lacks ``<NULL>``, ``<START>`` or ``<END>``.
    """
    directory = Path(directory)
    data = read_captioning_directory(directory, pca_features=not raw_features)
    remember_directory(directory)  # for image_from_url
    check_source(directory, data["train_features"].shape[1], raw=raw_features)
    for word in (NULL, START, END):
        if word not in data["word_to_idx"]:
            raise ValueError(f"{directory / VOCABULARY_FILE}: has no {word}")
    captions = len(data["train_captions"])
    if not captions:
        raise ValueError(f"{directory / CAPTIONS_FILE}: 'train_captions' is empty")
    if rows is not None:
        if len(rows) and not 0 <= min(rows) <= max(rows) < captions:
            raise ValueError(
                f"{directory / CAPTIONS_FILE}: has {captions:,} training captions; expected those "
                f"of rows {min(rows)} to {max(rows)}, too"
            )
        data.train_rows = np.asarray(rows, np.intp)
        data.keep_captions(data.train_rows)
    elif max_train is not None and max_train < captions:
        data.keep_captions(np.random.default_rng(seed).permutation(captions)[:max_train])
    data.max_train = max_train
    references = directory / references_file("val")
    if references.is_file():
        images = len(data["val_features"])
        data["val_references"] = read_references(references, data["val_urls"][:images].tolist())
    return data

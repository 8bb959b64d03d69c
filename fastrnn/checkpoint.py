"""Model and checkpoint files. Training resumes from a checkpoint with the same results to the bit.

A checkpoint is a model file of `CaptioningRNN.save` with further arrays, named ``training/...``,
for the state of the training. It can also be loaded as a model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .classifiers.rnn import FORMAT, MODEL_FILE, CaptioningRNN, seeded_model
from .files import parse_json, read_sealed
from .runs import (
    HISTORY_FILE,
    SETTINGS_FILE,
    checkpoint_path,
    checkpoint_steps,
    remove_checkpoints,
)

__all__ = [
    "CHECKPOINT_FORMAT",
    "FORMAT",
    "HISTORY_FILE",
    "MODEL_FILE",
    "SETTINGS_FILE",
    "Checkpoint",
    "blank_model",
    "checkpoint_path",
    "checkpoint_steps",
    "describe_mismatch",
    "load_model",
    "read_checkpoint",
    "read_newest_checkpoint",
    "remove_checkpoints",
    "save_model",
    "seeded_model",
]

blank_model = seeded_model
"""The former name of `seeded_model`."""

CHECKPOINT_FORMAT = 1
"""Version of the layout of a checkpoint's further arrays."""
_PREFIX = "training/"
_KINDS: dict[str, tuple[type, ...]] = {
    "step": (int,), "epochs_without_gain": (int,), "seconds": (int, float), "history": (list,),
    "sums": (list,), "config": (dict,), "data": (dict,), "best": (dict, type(None)),
}  # fmt: skip
"""The JSON types of the state of a training."""


def save_model(path: str | os.PathLike[str], model: CaptioningRNN) -> None:
    """Write a model: `CaptioningRNN.save`."""
    model.save(path)


def load_model(path: str | os.PathLike[str]) -> CaptioningRNN:
    """Read a model from an npz file or a run directory: `CaptioningRNN.load`."""
    return CaptioningRNN.load(path)


@dataclass
class Checkpoint:
    """The state that a training resumes from.

    Attributes
    ----------
    model : CaptioningRNN
        The trained model; it reads the original features.
    weights : dict of str to ndarray
        The parameters in training, for standardised features.
    average : dict of str to ndarray or None
        The moving average of `weights`, if there is one.
    moments : dict of str to dict of str to ndarray
        Adam's ``m`` and ``v`` for each of `weights`.
    about : dict
        The rest of the state, as JSON values: the step, history, sums, and best epoch so far.
    """

    model: CaptioningRNN
    weights: dict[str, np.ndarray] = field(repr=False)
    average: dict[str, np.ndarray] | None = field(repr=False)
    moments: dict[str, dict[str, np.ndarray]] = field(repr=False)
    about: dict[str, Any] = field(repr=False)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of the file, which share memory with the state.

        The model equals the average, or the weights without one, except for the projection of the
        features, so those two are added. Each array is stored only once.
        """
        arrays = self.model.to_arrays()
        shared = self.weights if self.average is None else self.average
        kind = "weights" if self.average is None else "average"
        for name in ("W_proj", "b_proj"):
            arrays[f"{_PREFIX}{kind}/{name}"] = shared[name]
        if self.average is not None:
            arrays.update({f"{_PREFIX}weights/{name}": w for name, w in self.weights.items()})
        for name, moments in self.moments.items():
            arrays.update({f"{_PREFIX}{m}/{name}": array for m, array in moments.items()})
        about = {"format": CHECKPOINT_FORMAT, **self.about}
        arrays[_PREFIX + "about"] = np.array(json.dumps(about))
        return arrays


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint.

    Parameters
    ----------
    path : path
        The npz file.

    Returns
    -------
    Checkpoint
        The state to resume from.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is damaged, or it is not a checkpoint.
    """
    arrays = read_sealed(path)
    try:
        model = CaptioningRNN.from_arrays(arrays)
        if _PREFIX + "about" not in arrays:
            raise ValueError("contains a model without its training state")
        about = parse_json(str(arrays[_PREFIX + "about"]))
        if not isinstance(about, dict):
            raise ValueError("its training state is not a JSON object")
        if about["format"] != CHECKPOINT_FORMAT:
            raise ValueError(
                f"format is {about['format']!r:.60}; this fastrnn reads format {CHECKPOINT_FORMAT}"
            )
        _check_about(about)
        # Copies, because training changes them in place, but not the model.
        average = None
        if f"{_PREFIX}average/W_proj" in arrays:
            average = {
                name: arrays.get(f"{_PREFIX}average/{name}", w).copy()
                for name, w in model.params.items()
            }
        weights = {
            name: arrays.get(f"{_PREFIX}weights/{name}", w).copy()
            for name, w in model.params.items()
        }
        moments = {
            name: {m: arrays[f"{_PREFIX}{m}/{name}"] for m in ("m", "v")}
            for name in (weights if about["step"] else ())
        }
        _check_arrays(model, weights, average, moments)
    except KeyError as error:
        raise ValueError(f"{path}: has no {error}; it is not a checkpoint of fastrnn") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Checkpoint(model, weights, average, moments, about)


def _check_about(about: Mapping[str, Any]) -> None:
    """Check the types in the state of a training."""
    for name, known in _KINDS.items():
        value = about[name]
        if type(value) not in known or (type(value) is int and value < 0):
            raise ValueError(f"{name} is {value!r:.60} in its training state")
    if about["step"] >= 2**63:
        raise ValueError("step is too large in its training state")
    sums = about["sums"]
    if len(sums) != 4 or not all(type(number) in (int, float) for number in sums):
        raise ValueError(f"sums is {sums!r:.60} in its training state")
    if not all(isinstance(record, dict) for record in about["history"]):
        raise ValueError("its history contains something that is not a record")
    best = about["best"]
    if best is not None and not (
        type(best.get("step")) is int
        and isinstance(best.get("monitor"), str)
        and all(type(best.get(name)) in (int, float, type(None)) for name in ("value", "val_loss"))
    ):
        raise ValueError(f"best is {best!r:.60} in its training state")


def _check_arrays(
    model: CaptioningRNN,
    weights: Mapping[str, np.ndarray],
    average: Mapping[str, np.ndarray] | None,
    moments: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Check that the arrays have the shapes of the model's parameters."""
    for name, w in model.params.items():
        for array in (weights[name], w if average is None else average[name]):
            if array.shape != w.shape or array.dtype != w.dtype:
                raise ValueError(
                    f"{name} is trained as {array.dtype} of shape {array.shape}; the model has "
                    f"{w.dtype} of shape {w.shape}"
                )
        for moment in moments.get(name, {}).values():
            if moment.shape != w.shape or moment.dtype.kind != "f":
                raise ValueError(
                    f"a moment of {name} is {moment.dtype} of shape {moment.shape}; expected "
                    f"floats of shape {w.shape}"
                )


def read_newest_checkpoint(
    run: str | os.PathLike[str],
) -> tuple[Checkpoint | None, list[str]]:
    """Read the newest checkpoint that is not damaged.

    Parameters
    ----------
    run : path
        The run directory.

    Returns
    -------
    checkpoint : Checkpoint or None
        None if the run has no checkpoint file.
    damaged : list of str
        A message about each newer checkpoint, which is damaged.

    Raises
    ------
    ValueError
        Every checkpoint is damaged.
    """
    damaged: list[str] = []
    for step in reversed(checkpoint_steps(run)):
        try:
            return read_checkpoint(checkpoint_path(run, step)), damaged
        except ValueError as error:
            damaged.append(str(error))
    if damaged:
        raise ValueError(f"{run}: has no undamaged checkpoint; {damaged[0]}")
    return None, damaged


def describe_mismatch(model: CaptioningRNN, data: Mapping[str, Any]) -> str | None:
    """Return how the vocabulary or the features of data differ from a model's, or None."""
    known, given = model.word_to_idx, data.get("word_to_idx")
    if given is not None and dict(given) != dict(known):
        if len(given) != len(known):
            return f"word_to_idx has {len(given)} words; expected {len(known)}, as in the model"
        word = next(word for word, idx in known.items() if given.get(word) != idx)
        found = f"word_to_idx has {word!r} as {given.get(word)}"
        return f"{found}; expected {known[word]}, as in the model"
    width = model.params["W_proj"].shape[0]
    for split in ("train", "val"):
        features = data.get(f"{split}_features")
        if features is not None and (features.ndim != 2 or features.shape[1] != width):
            return (
                f"{split}_features has shape {features.shape}; expected (images, {width}), "
                "as in the model's W_proj"
            )
    return None

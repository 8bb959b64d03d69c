"""A trained model in one npz file, which needs no pickle to be read.

Beside the parameters, under their own names, it holds ``cell_type``, the vocabulary (``words``
and ``word_ids``) and ``format``, the version of this arrangement.
"""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path

import numpy as np

from .classifiers.rnn import CaptioningRNN
from .data.layout import write_npz

FORMAT = 1
MODEL_FILE = "model.npz"


def blank_model(*args: object, seed: int = 0, **kwargs: object) -> CaptioningRNN:
    """Make a `CaptioningRNN` whose weights a seed decides, and leave ``np.random`` as it was."""
    state = np.random.get_state()
    try:
        np.random.seed(seed)
        return CaptioningRNN(*args, **kwargs)  # type: ignore[arg-type]
    finally:
        np.random.set_state(state)


def save_model(path: str | os.PathLike[str], model: CaptioningRNN) -> None:
    """Write a model to an npz file, whole or not at all.

    Parameters
    ----------
    path : path
        The file; an old one is replaced.
    model : CaptioningRNN

    Raises
    ------
    OSError
        The file cannot be written; an old one is then as it was.
    """
    words = sorted(model.word_to_idx, key=model.word_to_idx.__getitem__)
    about = {
        "format": np.array(FORMAT),
        "cell_type": np.array(model.cell_type),
        "words": np.array(words, dtype=np.str_),
        "word_ids": np.array([model.word_to_idx[word] for word in words], dtype=np.int64),
    }
    write_npz(path, {**model.params, **about})


def load_model(path: str | os.PathLike[str]) -> CaptioningRNN:
    """Read a model that `save_model` wrote.

    Parameters
    ----------
    path : path
        The npz file, or the run directory that ``fastrnn train`` made.

    Returns
    -------
    CaptioningRNN
        With ``params`` and vocabulary as saved.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is damaged or holds no model.
    """
    path = Path(path)
    if path.is_dir():
        path = path / MODEL_FILE
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such model file", str(path))
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(f"{path}: damaged, or no npz file ({error})") from None
    try:
        version = int(found.pop("format"))
        cell_type = str(found.pop("cell_type"))
        words, ids = found.pop("words").tolist(), found.pop("word_ids").tolist()
        input_dim, hidden_dim = found["W_proj"].shape
        wordvec_dim, dtype = found["W_embed"].shape[1], found["W_embed"].dtype
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise ValueError(f"{path}: holds no model of fastrnn ({error})") from None
    if version != FORMAT:
        raise ValueError(f"{path}: format is {version}; this fastrnn reads format {FORMAT}")
    model = blank_model(
        dict(zip(words, ids, strict=True)), input_dim, wordvec_dim, hidden_dim, cell_type, dtype
    )
    for name, w in model.params.items():
        saved = found.get(name)
        if saved is None or saved.shape != w.shape or saved.dtype != w.dtype:
            was = "missing" if saved is None else f"{saved.dtype} of shape {saved.shape}"
            raise ValueError(f"{path}: {name} is {was}; expected {w.dtype} of shape {w.shape}")
        model.params[name] = saved
    return model

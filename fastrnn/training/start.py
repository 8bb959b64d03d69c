"""The initial weights of a model, and the standardisation of its features."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import numpy as np

from .._core import runtime
from ..classifiers.rnn import CaptioningRNN, seeded_model
from ..words import NULL
from .config import ModelConfig, checked

_BLOCK = 1 << 17
"""Features that are converted to float64 at a time: 1 MiB."""
_CAPTIONS = 1 << 14
"""Captions whose words are counted at a time."""
_FORGET_GATES = {"lstm": 1}
"""Which of the H-column blocks of the bias belongs to the forget gate, for cells that have one."""


@np.errstate(invalid="ignore", over="ignore")
def feature_scale(features: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the mean (D,) of features (N, D), and one standard deviation, in float64.

    The deviation is the square root of the mean variance. It is one number for all features, so
    that they keep their proportions: among principal components the small ones are mostly noise.
    It is 1 for constant features.
    """
    mean, variance = np.empty(features.shape[1]), np.empty(features.shape[1])

    # NumPy's mean and variance would make float64 copies of all features. These add up the same
    # numbers in the same order, in blocks of rows.
    def measure(part: slice) -> None:
        columns = features[:, part]
        mean[part] = _column_sums(columns) / len(features)
        variance[part] = _column_sums(columns, mean[part]) / len(features)

    threads = max(min(runtime.get_threads(), len(mean) // 64), 1)  # lines of the cache
    ends = [len(mean) * k // threads for k in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(measure, itertools.starmap(slice, itertools.pairwise(ends))):
            pass
    deviation = float(np.sqrt(variance.mean()))
    return mean, deviation if deviation > 1e-12 else 1.0


@np.errstate(invalid="ignore", over="ignore")  # once more: it is in another thread
def _column_sums(features: np.ndarray, mean: np.ndarray | None = None) -> np.ndarray:
    """Return the sums of the columns, or of the squares of their differences from `mean`."""
    rows = max(_BLOCK // max(features.shape[1], 1), 1)
    sums = np.zeros((0, features.shape[1]))
    for first in range(0, len(features), rows):
        block = features[first : first + rows].astype(np.float64, order="C")
        if mean is not None:
            block -= mean
            block *= block
        sums = np.add.reduce(np.concatenate([sums, block]), axis=0, keepdims=True)
    return sums[0] if len(sums) else np.zeros(features.shape[1])


@np.errstate(invalid="ignore", over="ignore")
def fold(params: dict[str, np.ndarray], mean: np.ndarray, deviation: float) -> None:
    """Turn a projection of (x - mean) / deviation into the same projection of x, in place."""
    w = params["W_proj"].astype(np.float64) / deviation
    params["b_proj"][:] = params["b_proj"] - mean @ w
    params["W_proj"][:] = w


@np.errstate(invalid="ignore", over="ignore")
def unfold(params: dict[str, np.ndarray], mean: np.ndarray, deviation: float) -> None:
    """Undo `fold`."""
    w = params["W_proj"].astype(np.float64)
    params["b_proj"][:] = params["b_proj"] + mean @ w
    params["W_proj"][:] = w * deviation


def start_model(
    data: Mapping[str, Any],
    cell_type: str = "lstm",
    wordvec_dim: int = 256,
    hidden_dim: int = 512,
    seed: int = 0,
    dtype: Any = np.float32,
    *,
    bias_start: str = "frequencies",
    forget_bias: float = 1.0,
    embed_scale: float = 0.1,
) -> CaptioningRNN:
    """Create a model with initial weights that fit the data.

    The weights are those of `CaptioningRNN`, except for what the last three arguments set, and
    except for `W_proj` and `b_proj`, which include the standardisation of the features.

    Parameters
    ----------
    data : mapping
        As `fastrnn.coco_utils.load_coco_data` returns it.
    cell_type, wordvec_dim, hidden_dim, dtype
        As for `CaptioningRNN`.
    seed : int, optional
        The seed of the weights; the state of ``np.random`` does not change.
    bias_start : {'frequencies', 'zero'}
        The initial biases of the words' scores: the logarithms of the words' frequencies, so that
        training need not learn them first, or zero.
    forget_bias : float
        The initial bias of an LSTM's forget gates: 1 lets cells remember (Jozefowicz, Zaremba and
        Sutskever 2015), 0 is `CaptioningRNN`'s.
    embed_scale : float
        The initial standard deviation of the word vectors; `CaptioningRNN`'s is 0.01.

    Returns
    -------
    CaptioningRNN
        The model; it reads the original features.

    Raises
    ------
    ValueError
        `bias_start` is neither name, `forget_bias` is not finite, or `embed_scale` is not positive.
    """
    start = {"bias_start": bias_start, "forget_bias": forget_bias, "embed_scale": embed_scale}
    for each in fields(ModelConfig):
        if each.name in start:
            checked(each, start[each.name])
    features = data["train_features"]
    model = seeded_model(
        data["word_to_idx"], features.shape[1], wordvec_dim, hidden_dim, cell_type, dtype, seed=seed
    )
    params = model.params
    params["W_embed"] *= embed_scale / 0.01
    if cell_type in _FORGET_GATES:
        params["b"].reshape(-1, hidden_dim)[_FORGET_GATES[cell_type]] = forget_bias
    if bias_start == "frequencies":
        counts = np.zeros(len(model.word_to_idx), np.int64)
        captions = data["train_captions"]
        for first in range(0, len(captions), _CAPTIONS):
            words = captions[first : first + _CAPTIONS, 1:]
            counts += np.bincount(words.ravel(), minlength=len(counts))
        counts[data["word_to_idx"][NULL]] = 0
        params["b_vocab"][:] = np.log((counts + 0.1) / (counts + 0.1).sum())
    if len(features):
        fold(params, *feature_scale(features))
    return model

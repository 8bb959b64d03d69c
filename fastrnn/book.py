"""The flat namespace of chapter 7 of the book 《深度学习实战》.

``from fastrnn.book import *`` replaces the chapter's two imports (``classifiers.chapter7`` and
``utils``). The layers, data and image functions are those of the course. This module defines what
the book does differently: the update rules, the trainer, and the model, which is always float64
and whose captions start with ``<START>``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from . import optim as _optim
from .captioning_solver import CaptioningSolver as _CaptioningSolver
from .classifiers.rnn import CaptioningRNN as _CaptioningRNN
from .coco_utils import decode_captions, read_captioning_directory, sample_coco_minibatch
from .data.layout import named_directory
from .data.pictures import remember_directory
from .gradient_check import (
    eval_numerical_gradient,
    eval_numerical_gradient_array,
    eval_numerical_gradient_blobs,
    eval_numerical_gradient_net,
    grad_check_sparse,
)
from .image_utils import (
    SQUEEZENET_MEAN,
    SQUEEZENET_STD,
    blur_image,
    deprocess_image,
    image_from_url,
    load_image,
    preprocess_image,
)
from .layers import (
    affine_backward,
    affine_forward,
    relu_backward,
    relu_forward,
    softmax_loss,
    svm_loss,
)
from .rnn_layers import (
    lstm_backward,
    lstm_forward,
    lstm_step_backward,
    lstm_step_forward,
    rnn_backward,
    rnn_forward,
    rnn_step_backward,
    rnn_step_forward,
    sigmoid,
    temporal_affine_backward,
    temporal_affine_forward,
    temporal_softmax_loss,
    word_embedding_backward,
    word_embedding_forward,
)

_Config = dict[str, Any]
_BASE_DIR = "datasets/coco_captioning"

sgd: Callable[..., tuple[Any, dict[str, Any]]] = _optim.sgd


def sgd_momentum(
    w: np.ndarray, dw: np.ndarray, config: _Config | None = None
) -> tuple[np.ndarray, _Config]:
    """Gradient descent with momentum: ``v = momentum v - lr dw``, ``w + v``.

    Parameters
    ----------
    w, dw : ndarray, same shape
        Weights and their gradient; neither is changed.
    config : dict, optional
        Settings ``learning_rate`` (default 1e-2) and ``momentum`` (0.9), and the state
        ``velocity``; updated in place.

    Returns
    -------
    next_w : ndarray
        Updated weights, in a new array.
    config : dict
        The same dictionary (a new one if `config` was None).
    """
    config = {} if config is None else config
    learning_rate = config.setdefault("learning_rate", 1e-2)
    momentum = config.setdefault("momentum", 0.9)
    velocity = config.setdefault("velocity", np.zeros_like(w))
    config["velocity"] = momentum * velocity - learning_rate * dw
    return w + config["velocity"], config


def rmsprop(
    w: np.ndarray, dw: np.ndarray, config: _Config | None = None
) -> tuple[np.ndarray, _Config]:
    """RMSProp with epsilon inside the root: ``w - lr dw / sqrt(cache + epsilon)``.

    Parameters
    ----------
    w, dw : ndarray, same shape
        Weights and their gradient; neither is changed.
    config : dict, optional
        Settings ``learning_rate`` (default 1e-2), ``decay_rate`` (0.99) and ``epsilon`` (1e-8),
        and the state ``cache``, the moving average of ``dw ** 2``; updated in place.

    Returns
    -------
    next_w : ndarray
        Updated weights, in a new array.
    config : dict
        The same dictionary (a new one if `config` was None).
    """
    config = {} if config is None else config
    learning_rate = config.setdefault("learning_rate", 1e-2)
    decay_rate = config.setdefault("decay_rate", 0.99)
    epsilon = config.setdefault("epsilon", 1e-8)
    cache = config.setdefault("cache", np.zeros_like(w))
    config["cache"] = decay_rate * cache + (1 - decay_rate) * dw**2
    return w - learning_rate * dw / np.sqrt(config["cache"] + epsilon), config


def adam(
    w: np.ndarray, dw: np.ndarray, config: _Config | None = None
) -> tuple[np.ndarray, _Config]:
    """Adam as in algorithm 1 of Kingma and Ba (2015): epsilon is added after bias correction.

    The course's Adam adds epsilon to the square root of the uncorrected second moment instead.

    Parameters
    ----------
    w, dw : ndarray, same shape
        Weights and their gradient; neither is changed.
    config : dict, optional
        Settings ``learning_rate`` (default 1e-3), ``beta1`` (0.9), ``beta2`` (0.999) and
        ``epsilon`` (1e-8), and the state ``m``, ``v`` and ``t``; updated in place.

    Returns
    -------
    next_w : ndarray
        Updated weights, in a new array.
    config : dict
        The same dictionary (a new one if `config` was None).
    """
    config = {} if config is None else config
    learning_rate = config.setdefault("learning_rate", 1e-3)
    beta1 = config.setdefault("beta1", 0.9)
    beta2 = config.setdefault("beta2", 0.999)
    epsilon = config.setdefault("epsilon", 1e-8)
    m = config.setdefault("m", np.zeros_like(w))
    v = config.setdefault("v", np.zeros_like(w))
    t = config["t"] = config.get("t", 0) + 1
    m = config["m"] = beta1 * m + (1 - beta1) * dw
    v = config["v"] = beta2 * v + (1 - beta2) * dw**2
    m_unbiased, v_unbiased = m / (1 - beta1**t), v / (1 - beta2**t)
    return w - learning_rate * m_unbiased / (np.sqrt(v_unbiased) + epsilon), config


updater: SimpleNamespace = SimpleNamespace(
    sgd=sgd, sgd_momentum=sgd_momentum, rmsprop=rmsprop, adam=adam
)
"""The update rules by name; each is that of `fastrnn.optim`."""


class CaptioningRNN(_CaptioningRNN):
    """The book's captioning model: `fastrnn.classifiers.rnn.CaptioningRNN`, always in float64.

    Parameters
    ----------
    word_to_idx : mapping of str to int
        The vocabulary.
    input_dim, wordvec_dim, hidden_dim, cell_type
        See `fastrnn.classifiers.rnn.CaptioningRNN`.
    """

    def __init__(
        self,
        word_to_idx: Mapping[str, int],
        input_dim: int = 512,
        wordvec_dim: int = 128,
        hidden_dim: int = 128,
        cell_type: str = "rnn",
    ) -> None:
        super().__init__(word_to_idx, input_dim, wordvec_dim, hidden_dim, cell_type, np.float64)

    def sample(
        self, features: np.ndarray, max_length: int = 30, *, stop_at_end: bool = False
    ) -> np.ndarray:
        """Caption images greedily; captions start with ``<START>``.

        Parameters
        ----------
        features : float ndarray (N, D)
            Image features.
        max_length : int, optional
            Number of columns, including ``<START>``. Default 30.
        stop_at_end : bool, optional
            True fills a row with ``<NULL>`` after its first ``<END>``. Default False.

        Returns
        -------
        int32 ndarray (N, max_length)
            Word ids. Column 0 is ``<START>``, followed by the sampled words.

        Raises
        ------
        ValueError
            See `fastrnn.classifiers.rnn.CaptioningRNN.sample`.
        """
        words = super().sample(features, max(max_length - 1, 0), stop_at_end=stop_at_end)
        start = np.full((len(words), 1), self._start, dtype=np.int32)
        return np.hstack([start, words])[:, :max_length]


class CaptioningTrainer(_CaptioningSolver):
    """The book's trainer: a `CaptioningSolver` with the book's update rules and argument names.

    Parameters
    ----------
    model, data
        See `CaptioningSolver`.
    updater_config : dict, optional
        Hyperparameters of the update rule; called `optim_config` in `CaptioningSolver`.
    update_rule : str, optional
        Name of an update rule in `updater`. Default 'sgd'.
    **kwargs
        `lr_decay`, `batch_size`, `num_epochs`, `print_every` and `verbose`; see
        `CaptioningSolver`.

    Attributes
    ----------
    updater_config, updater_configs : dict
        The same as `optim_config` and `optim_configs` of `CaptioningSolver`.

    Raises
    ------
    ValueError
        See `CaptioningSolver`.

    Notes
    -----
    As in the book, an epoch has ``num_train / batch_size`` iterations, which may be a fraction. The
    learning rate decays only after iterations whose number is a multiple of it. If it is a
    fraction, these are few, or there are none.
    """

    _rules = updater

    def __init__(self, model: Any, data: Mapping[str, Any], **kwargs: Any) -> None:
        if "optim_config" in kwargs:
            raise ValueError('Unrecognized arguments "optim_config" (use updater_config)')
        kwargs["optim_config"] = kwargs.pop("updater_config", {})
        super().__init__(model, data, **kwargs)

    @property
    def updater_config(self) -> _Config:
        """Hyperparameters of the update rule: `optim_config` of `CaptioningSolver`."""
        return self.optim_config

    @property
    def updater_configs(self) -> dict[str, _Config]:
        """Hyperparameters and state for each parameter: `optim_configs` of `CaptioningSolver`."""
        return self.optim_configs

    def _iterations_per_epoch(self) -> float:
        return max(self.data["train_captions"].shape[0] / self.batch_size, 1)


def load_coco_data(
    base_dir: str | os.PathLike[str] = _BASE_DIR,
    max_train: int | None = None,
    pca_features: bool = True,
) -> dict[str, Any]:
    """Read a captioning data set; see `fastrnn.coco_utils.load_coco_data` for details.

    Parameters
    ----------
    base_dir : path, optional
        Directory of the data set. The default is the one that the environment variable
        ``FASTRNN_DATA`` names; without it, the book's, relative to the working directory.
    max_train : int, optional
        Keep this many training captions, drawn with replacement by the global ``np.random``.
        By default, all are kept.
    pca_features : bool, optional
        Whether to read the features that were reduced by PCA. Default True.

    Returns
    -------
    dict
        Captions, image indices, features, vocabulary and URLs.

    Raises
    ------
    FileNotFoundError, OSError, ValueError
        See `fastrnn.coco_utils.load_coco_data`.
    """
    if os.fspath(base_dir) == _BASE_DIR:
        base_dir = named_directory() or base_dir
    data = read_captioning_directory(base_dir, max_train, pca_features)
    remember_directory(base_dir)  # for image_from_url
    return data


__all__ = [
    "SQUEEZENET_MEAN",
    "SQUEEZENET_STD",
    "CaptioningRNN",
    "CaptioningTrainer",
    "adam",
    "affine_backward",
    "affine_forward",
    "blur_image",
    "decode_captions",
    "deprocess_image",
    "eval_numerical_gradient",
    "eval_numerical_gradient_array",
    "eval_numerical_gradient_blobs",
    "eval_numerical_gradient_net",
    "grad_check_sparse",
    "image_from_url",
    "load_coco_data",
    "load_image",
    "lstm_backward",
    "lstm_forward",
    "lstm_step_backward",
    "lstm_step_forward",
    "preprocess_image",
    "relu_backward",
    "relu_forward",
    "rmsprop",
    "rnn_backward",
    "rnn_forward",
    "rnn_step_backward",
    "rnn_step_forward",
    "sample_coco_minibatch",
    "sgd",
    "sgd_momentum",
    "sigmoid",
    "softmax_loss",
    "svm_loss",
    "temporal_affine_backward",
    "temporal_affine_forward",
    "temporal_softmax_loss",
    "updater",
    "word_embedding_backward",
    "word_embedding_forward",
]

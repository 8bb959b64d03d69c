"""The trainer behind ``fastrnn train``: shuffled epochs, Adam, validation, a history.

`Trainer` goes through every caption once an epoch, in a new order each time. `start_model` makes
a model that is ready to learn from given data; `evaluate` says how well it captions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from . import optim
from .checkpoint import blank_model
from .classifiers.rnn import CaptioningRNN, CaptioningWorkspace
from .coco_utils import decode_captions
from .metrics import bleu_1


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Parameters
    ----------
    epochs : int
        Passes over the training captions.
    batch_size : int
        Captions in a step, at most; the batches of an epoch are as even as can be.
    learning_rate : float
        Adam's at the start.
    lr_decay : float or 'cosine'
        The learning rate is multiplied by this after every epoch, or falls to zero over the whole
        run as half a cosine wave does (Loshchilov and Hutter 2017, without restarts).
    clip_norm : float
        Gradients whose norm over all parameters exceeds this are scaled down to it (Pascanu,
        Mikolov and Bengio 2013); 0 leaves them alone.
    feature_noise : float
        Standard deviation of Gaussian noise that is added to the features while training, in
        units of the features' deviation over the training images. Noise of this kind is
        Tikhonov's regularisation to first order (Bishop 1995).
    val_captions : int
        How many captions of the validation part are used after each epoch, evenly spread.
    record_every : int
        Steps from one record of the history to the next.
    seed : int
        Decides the order of the captions and the noise; at most 2**32 - 1.

    Raises
    ------
    TypeError, ValueError
        A field has the wrong type or value; the message begins with its name.
    """

    epochs: int = 10
    batch_size: int = 100
    learning_rate: float = 2e-3
    lr_decay: float | str = "cosine"
    clip_norm: float = 0.0
    feature_noise: float = 0.0
    val_captions: int = 1000
    record_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"seed": 0, "val_captions": 0}
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name == "lr_decay" and isinstance(value, str):
                if value != "cosine":
                    raise ValueError(f"lr_decay is {value!r}; expected a number or 'cosine'")
            elif field.type == "int":
                if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                    raise TypeError(f"{name} is {value!r}; expected an integer")
                if value < least.get(name, 1):
                    raise ValueError(f"{name} is {value}; expected at least {least.get(name, 1)}")
            else:
                if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
                    raise TypeError(f"{name} is {value!r}; expected a number")
                positive = name in ("learning_rate", "lr_decay")
                if not math.isfinite(value) or value < 0 or (positive and value == 0):
                    wanted = "a positive number" if positive else "a number of at least 0"
                    raise ValueError(f"{name} is {value}; expected {wanted}")

        if self.seed >= 2**32:
            raise ValueError(f"seed is {self.seed}; expected at most {2**32 - 1}")

    def rate(self, progress: float) -> float:
        """Return the learning rate after `progress` epochs."""
        if self.lr_decay == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress / self.epochs))
        return self.learning_rate * float(self.lr_decay) ** math.floor(progress)


@np.errstate(invalid="ignore", over="ignore")
def feature_scale(features: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the mean (D,) of features (N, D) and the deviation of all together, in float64.

    The deviation is the root of the mean variance, one number: features keep their proportions,
    as the small ones among principal components are mostly noise. It is 1 for constants.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    deviation = float(np.sqrt(features.var(axis=0, dtype=np.float64).mean()))
    return mean, deviation if deviation > 1e-12 else 1.0


def start_model(
    data: Mapping[str, Any],
    cell_type: str = "lstm",
    wordvec_dim: int = 256,
    hidden_dim: int = 512,
    seed: int = 0,
    dtype: Any = np.float32,
) -> CaptioningRNN:
    """Make a model whose first weights suit the data.

    They are `CaptioningRNN`'s, but for four things: word vectors have a deviation of 0.1; an LSTM's
    forget gates begin with a bias of 1 (Jozefowicz, Zaremba and Sutskever 2015); the words' biases
    are the logarithms of their frequencies, so that training does not begin with learning them;
    and in `W_proj` and `b_proj` the features' mean is taken off and their deviation divided out.

    Parameters
    ----------
    data : mapping
        As `fastrnn.coco_utils.load_coco_data` returns it.
    cell_type, wordvec_dim, hidden_dim, dtype
        As for `CaptioningRNN`.
    seed : int
        Decides the weights; ``np.random`` stays as it was.

    Returns
    -------
    CaptioningRNN
    """
    features = data["train_features"]
    model = blank_model(
        data["word_to_idx"], features.shape[1], wordvec_dim, hidden_dim, cell_type, dtype, seed=seed
    )
    params = model.params
    params["W_embed"] *= 10
    if cell_type == "lstm":
        params["b"][hidden_dim : 2 * hidden_dim] = 1
    said = data["train_captions"][:, 1:]
    counts = np.bincount(
        said[said != data["word_to_idx"]["<NULL>"]], minlength=len(model.word_to_idx)
    )
    params["b_vocab"][:] = np.log((counts + 0.1) / (counts + 0.1).sum())
    if len(features):
        _fold(params, *feature_scale(features))
    return model


@np.errstate(invalid="ignore", over="ignore")
def _fold(params: dict[str, np.ndarray], mean: np.ndarray, deviation: float) -> None:
    """Turn a projection of (x - mean) / deviation into the same projection of x, in place."""
    w = params["W_proj"].astype(np.float64) / deviation
    params["b_proj"][:] = params["b_proj"] - mean @ w
    params["W_proj"][:] = w


@np.errstate(invalid="ignore", over="ignore")
def _unfold(params: dict[str, np.ndarray], mean: np.ndarray, deviation: float) -> None:
    """Undo `_fold`."""
    w = params["W_proj"].astype(np.float64)
    params["b_proj"][:] = params["b_proj"] + mean @ w
    params["W_proj"][:] = w * deviation


class Trainer:
    """Train a captioning model with Adam.

    Parameters
    ----------
    model : CaptioningRNN
        Its ``params`` are changed in place.
    data : mapping
        As `fastrnn.coco_utils.load_coco_data` returns it.
    config : TrainConfig, optional
    on_step : callable, optional
        Called as ``on_step(trainer, record)`` after every step; the record has ``step``,
        ``epoch``, ``captions`` (seen so far) and ``loss``, nats per word.
    on_epoch : callable, optional
        Called as ``on_epoch(trainer, record)`` after every epoch, with its line of the history.

    Attributes
    ----------
    history : list of dict
        Every ``record_every`` steps: ``step``, ``epoch`` (a float), ``loss`` (nats per word over
        those steps), ``learning_rate``. After every epoch: ``step``, ``epoch`` (an int), ``loss``
        (over the epoch), ``val_loss`` and ``val_perplexity`` (None without validation captions),
        ``captions_per_second`` and ``seconds`` (both of training alone).
    steps_per_epoch : int

    Raises
    ------
    ValueError
        There is nothing to train on, or features and model differ in width.

    Notes
    -----
    While an epoch runs, the model works on features of mean 0 and deviation 1, because Adam moves
    every weight by as much, whatever the scale of its input; mean and deviation are folded into
    ``W_proj`` and ``b_proj`` before `on_epoch` is called and at the end, or when training is
    interrupted. Outside of `on_step`, ``model`` therefore reads features as they are.
    """

    def __init__(
        self,
        model: CaptioningRNN,
        data: Mapping[str, Any],
        config: TrainConfig | None = None,
        *,
        on_step: Callable[[Trainer, dict[str, Any]], None] | None = None,
        on_epoch: Callable[[Trainer, dict[str, Any]], None] | None = None,
    ) -> None:
        self.model = model
        self.data = data
        self.config = config or TrainConfig()
        self.history: list[dict[str, Any]] = []
        self._on_step = on_step
        self._on_epoch = on_epoch

        captions, features = data["train_captions"], data["train_features"]
        if not len(captions):
            raise ValueError(f"train_captions has shape {captions.shape}; expected at least one")
        width = model.params["W_proj"].shape[0]
        if features.shape[1] != width:
            raise ValueError(
                f"train_features has shape {features.shape}; expected (images, {width}), "
                "as in the model's W_proj"
            )
        null = model.word_to_idx["<NULL>"]
        self._words = {
            split: np.count_nonzero(data[f"{split}_captions"][:, 1:] != null, axis=1)
            for split in ("train", "val")
        }
        self.steps_per_epoch = -(-len(captions) // self.config.batch_size)
        self._mean, self._deviation = feature_scale(features)
        self._rng = np.random.default_rng(self.config.seed)
        self._workspace = CaptioningWorkspace()
        self._states: dict[str, dict[str, Any]] = {name: {} for name in model.params}
        self._step = 0

    def fit(self) -> list[dict[str, Any]]:
        """Train for ``config.epochs`` epochs.

        Returns
        -------
        list of dict
            The history.

        Raises
        ------
        FloatingPointError
            The loss is no longer finite.
        """
        for epoch in range(self.config.epochs):
            began = time.perf_counter()
            with self._standardised():
                loss = self._run_epoch(epoch)
            seconds = time.perf_counter() - began
            val_loss = self.validate(self.config.val_captions)
            record = {
                "step": self._step,
                "epoch": epoch + 1,
                "loss": loss,
                "val_loss": val_loss,
                "val_perplexity": None if val_loss is None else math.exp(min(val_loss, 700.0)),
                "captions_per_second": len(self._words["train"]) / seconds,
                "seconds": seconds,
            }
            self.history.append(record)
            if self._on_epoch:
                self._on_epoch(self, record)
        return self.history

    def validate(self, limit: int | None = None) -> float | None:
        """Return the loss per word over validation captions.

        Parameters
        ----------
        limit : int, optional
            Take this many captions, evenly spread; all of them by default.

        Returns
        -------
        float or None
            In nats per word; None if there are no captions.
        """
        captions, images = self.data["val_captions"], self.data["val_image_idxs"]
        count = len(captions) if limit is None else min(limit, len(captions))
        rows = np.linspace(0, len(captions) - 1, count).round().astype(np.intp)
        words = int(self._words["val"][rows].sum())
        if not words:
            return None
        total = 0.0
        for start in range(0, count, self.config.batch_size):
            batch = rows[start : start + self.config.batch_size]
            features = self.data["val_features"][images[batch]]
            loss, _ = self.model.loss(features, captions[batch], workspace=self._workspace)
            total += float(loss) * len(batch)
        return total / words

    @contextmanager
    def _standardised(self) -> Iterator[None]:
        _unfold(self.model.params, self._mean, self._deviation)
        try:
            yield
        finally:
            _fold(self.model.params, self._mean, self._deviation)

    @np.errstate(invalid="ignore", over="ignore")
    def _inputs(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Standardised features, with noise, and captions of training rows."""
        features = self.data["train_features"][self.data["train_image_idxs"][rows]]
        features = ((features - self._mean) / self._deviation).astype(self.model.dtype)
        if self.config.feature_noise:
            noise = self._rng.standard_normal(features.shape, dtype=np.float32)
            features += np.float32(self.config.feature_noise) * noise
        return features, self.data["train_captions"][rows]

    def _run_epoch(self, epoch: int) -> float:
        """Take the steps of one epoch; return the loss per word over it."""
        order = self._rng.permutation(len(self._words["train"]))
        all_nats = all_words = nats = words = 0.0
        seen = epoch * len(order)
        for number, rows in enumerate(np.array_split(order, self.steps_per_epoch)):
            rate = self.config.rate(epoch + number / self.steps_per_epoch)
            loss, grads = self.model.loss(*self._inputs(rows), workspace=self._workspace)
            self._step += 1
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {float(loss)} at step {self._step}: either the features are not "
                    f"finite or the learning rate, {rate:.3g}, is too high"
                )
            self._update(grads, rate)
            batch_nats = float(loss) * len(rows)
            batch_words = int(self._words["train"][rows].sum())
            nats, words, seen = nats + batch_nats, words + batch_words, seen + len(rows)
            progress = epoch + (number + 1) / self.steps_per_epoch
            if self._on_step:
                self._on_step(
                    self,
                    {
                        "step": self._step,
                        "epoch": progress,
                        "captions": seen,
                        "loss": batch_nats / max(batch_words, 1),
                    },
                )
            if self._step % self.config.record_every == 0 or number + 1 == self.steps_per_epoch:
                self.history.append(
                    {
                        "step": self._step,
                        "epoch": float(progress),
                        "loss": nats / max(words, 1),
                        "learning_rate": rate,
                    }
                )
                all_nats, all_words, nats, words = all_nats + nats, all_words + words, 0.0, 0.0
        return all_nats / max(all_words, 1)

    def _update(self, grads: Mapping[str, np.ndarray], rate: float) -> None:
        if self.config.clip_norm:
            norm = math.sqrt(sum(float(np.vdot(grad, grad)) for grad in grads.values()))
            if norm > self.config.clip_norm:
                for grad in grads.values():
                    grad *= self.config.clip_norm / norm
        for name, w in self.model.params.items():
            state = self._states[name]
            state["learning_rate"] = rate
            optim.adam(w, grads[name], state, in_place=True)


def caption_images(model: CaptioningRNN, features: np.ndarray, max_length: int = 30) -> list[str]:
    """Caption pictures greedily, in words.

    Parameters
    ----------
    model : CaptioningRNN
    features : float ndarray (N, D)
    max_length : int, optional
        Words in a caption, at most.

    Returns
    -------
    list of N str
        Words separated by spaces, without ``<END>``.
    """
    captions: list[str] = []
    for start in range(0, len(features), 1000):
        ids = model.sample(features[start : start + 1000], max_length, stop_at_end=True)
        captions += decode_captions(ids, model.idx_to_word)
    return [caption.removesuffix("<END>").strip() for caption in captions]


def references_of(data: Mapping[str, Any], split: str = "val") -> list[list[str]]:
    """Return the captions of every image of a part of the data, in words; some may have none."""
    by_image: list[list[str]] = [[] for _ in data[f"{split}_features"]]
    texts = decode_captions(data[f"{split}_captions"], data["idx_to_word"])
    for image, text in zip(data[f"{split}_image_idxs"].tolist(), texts, strict=True):
        by_image[image].append(text.removeprefix("<START>").removesuffix("<END>").strip())
    return by_image


def evaluate(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    true: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """Measure captions.

    Parameters
    ----------
    captions : sequence of str
        One for each image.
    references : sequence of sequences of str
        As `references_of` returns them; images without any are left out of BLEU.
    true : sequence of bool, optional
        Whether each is true of its image, where that can be told.

    Returns
    -------
    dict
        ``images``, ``bleu_1`` (None without references), ``distinct_captions``, and ``true_share``
        with `true`.
    """
    known = [(c, r) for c, r in zip(captions, references, strict=True) if r]
    metrics: dict[str, Any] = {
        "images": len(captions),
        "bleu_1": bleu_1([c for c, _ in known], [r for _, r in known]) if known else None,
        "distinct_captions": len(set(captions)),
    }
    if true is not None:
        metrics["true_share"] = sum(true) / max(len(true), 1)
    return metrics

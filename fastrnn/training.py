"""The trainer behind ``fastrnn train``: shuffled epochs, Adam, validation, checkpoints, a history.

`Trainer` goes through every caption once an epoch, in a new order each time, and can go on where
it was stopped, bit for bit: whatever is random in a step is drawn from the seed and the number of
the step alone. `start_model` makes a model that is ready to learn from given data; `read_run` reads
what a run was made of; `evaluate` says how well a model captions.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import json
import math
import signal
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from . import __version__, checks, optim
from ._core import runtime
from .checkpoint import (
    HISTORY_FILE,
    MODEL_FILE,
    SETTINGS_FILE,
    Checkpoint,
    blank_model,
    checkpoint_path,
    checkpoint_steps,
    describe_mismatch,
    read_checkpoint,
    read_newest_checkpoint,
    remove_checkpoints,
)
from .classifiers.rnn import CaptioningRNN, CaptioningWorkspace, Regularisation
from .coco_utils import decode_captions, read_captioning_directory
from .decoding import sample
from .files import (
    make_directory,
    read_json,
    read_sealed,
    remove_unfinished,
    write_json,
    write_sealed,
    write_text,
)
from .metrics import CaptionScorer, read_references
from .rewards import CiderReward
from .runlock import RunLock

SCHEDULES = ("constant", "step", "exponential", "cosine")
MONITORS = ("cider", "bleu_4", "loss")
_CHOICES = {"schedule": SCHEDULES, "monitor": MONITORS}
_LEAST = {
    "warmup_steps": 0, "val_captions": 0, "val_images": 0, "patience": 0, "save_every": 0,
    "seed": 0, "reward_epochs": 0, "reward_captions": 2,
}  # fmt: skip
"""Of the whole numbers; 1 where it is not said."""
_ABOVE_0 = ("learning_rate", "lr_decay", "decay_every", "reward_rate")
_BELOW_1 = ("embed_dropout", "vocab_dropout", "label_smoothing", "weight_average")
_AT_MOST_1 = ("scheduled_sampling",)

HARMLESS = ("epochs", "reward_epochs", "patience", "save_every", "keep_last")
"""Fields of the configuration that a run may change when it is resumed."""

_ORDER, _NOISE, _MASKS, _DRAWS = 1, 2, 3, 4
"""What random numbers are for: each purpose has a stream of its own."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train. What CS231n's solver does not have is off by default.

    Parameters
    ----------
    epochs : int
        Passes over the training captions.
    batch_size : int
        Captions in a step, at most; the batches of an epoch are as even as can be.
    learning_rate : float
        Adam's, before the schedule.
    schedule : {'constant', 'step', 'exponential', 'cosine'}
        'step' multiplies the learning rate by `lr_decay` after every `decay_every` epochs,
        'exponential' by as much over the same time but a little at every step; 'cosine' lets it
        fall to 0 over the whole run as half a cosine wave does (Loshchilov and Hutter 2017,
        without restarts).
    lr_decay : float
        The factor of 'step' and 'exponential'.
    decay_every : float
        Epochs over which it acts once.
    warmup_steps : int
        Over the first steps the rate is multiplied by 1 / warmup_steps, 2 / warmup_steps ... 1.
    weight_decay : float
        Decoupled (Loshchilov and Hutter 2019): weights are multiplied by 1 - rate x this at every
        step. Biases are not: the words' frequencies and the forget gates' start are in them.
    clip_value : float
        Elements of gradients are clipped to [-clip_value, clip_value]; 0 leaves them alone.
    clip_norm : float
        Gradients whose norm over all parameters, after `clip_value`, exceeds this are scaled down
        to it (Pascanu, Mikolov and Bengio 2013); 0 leaves them alone.
    embed_dropout, vocab_dropout : float
        Inverted dropout on the word vectors, and on the hidden states that the words' scores are
        made of: the share that is left out.
    label_smoothing : float
        The share of a target that is spread over all words (Szegedy et al. 2016).
    scheduled_sampling : float
        The probability with which an input word is drawn from the model, not from the caption
        (Bengio et al. 2015): 0 at the first step, this at the last, linear in between.
    feature_noise : float
        Standard deviation of Gaussian noise that is added to the features while training, in
        units of the features' deviation over the training images. Noise of this kind is
        Tikhonov's regularisation to first order (Bishop 1995).
    consensus : float
        Captions count by how far they agree with the other captions of their image: in proportion
        to their CIDEr-D against these, to this power, and 1 on average (Phan, Henter, Miyao and
        Satoh 2017 weigh captions so). 0 lets all count alike.
    weight_average : float
        Decay per step of an exponential moving average of the weights, which then takes their
        place in `Trainer.model` (Polyak and Juditsky 1992). It has no bias towards the start: the
        first average is the first step's weights. 0 is off.
    reward_epochs : int
        After `epochs`, train for so many more on captions that the model itself draws, rewarded
        by CIDEr-D (self-critical training; Rennie et al. 2017). They begin with the weights that
        the others ended with, averages where there are such, and with Adam started anew. What is
        against overfitting is not in force there, and no average is kept.
    reward_captions : int
        How many captions are drawn for an image. Each one's reward counts as far as it is above
        the mean of the others' (Kool, van Hoof and Welling 2019).
    reward_rate : float
        The learning rate of these epochs, which falls to 0 as half a cosine wave does.
    bucket_by_length : bool
        Batches hold captions of like length, and the order of batches is shuffled.
    patience : int
        Training ends after so many epochs in a row without a gain; 0 is off.
    monitor : {'cider', 'bleu_4', 'loss'}
        What a gain is measured by, on validation data. Where it cannot be computed the loss is
        taken; among `reward_epochs`, of which the loss says nothing, each is then a gain.
    val_captions : int
        How many captions of the validation part are used after each epoch, evenly spread.
    val_images : int
        How many of its images are captioned, evenly spread.
    keep_last : int
        How many of the newest checkpoints are kept, beside the best.
    save_every : int
        Steps from one checkpoint to the next within an epoch; 0 for one after each epoch alone.
    record_every : int
        Steps from one record of the history to the next.
    seed : int
        Decides whatever is random; at most 2**32 - 1.

    Raises
    ------
    TypeError, ValueError
        A field has the wrong type or value; the message begins with its name.
    """

    epochs: int = 10
    batch_size: int = 100
    learning_rate: float = 1e-3
    schedule: str = "constant"
    lr_decay: float = 1.0
    decay_every: float = 1.0
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip_value: float = 0.0
    clip_norm: float = 0.0
    embed_dropout: float = 0.0
    vocab_dropout: float = 0.0
    label_smoothing: float = 0.0
    scheduled_sampling: float = 0.0
    feature_noise: float = 0.0
    consensus: float = 0.0
    weight_average: float = 0.0
    reward_epochs: int = 0
    reward_captions: int = 5
    reward_rate: float = 2e-4
    bucket_by_length: bool = False
    patience: int = 0
    monitor: str = "cider"
    val_captions: int = 1000
    val_images: int = 500
    keep_last: int = 2
    save_every: int = 0
    record_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if field.type == "bool":
                if not isinstance(value, (bool, np.bool_)):
                    raise TypeError(f"{name} is {value!r}; expected True or False")
                value = bool(value)
            elif field.type == "str":
                if not isinstance(value, str):
                    raise TypeError(f"{name} is {value!r}; expected one of {_CHOICES[name]}")
                if value not in _CHOICES[name]:
                    raise ValueError(f"{name} is {value!r}; expected one of {_CHOICES[name]}")
            elif field.type == "int":
                value = checks.as_int(name, value)
                if value < _LEAST.get(name, 1):
                    raise ValueError(f"{name} is {value}; expected at least {_LEAST.get(name, 1)}")
            else:
                value = checks.as_number(name, value)
                self._check_number(name, value)
            # Plain Python values, so that the settings of a run can be written as JSON.
            object.__setattr__(self, name, value)
        if self.seed >= 2**32:
            raise ValueError(f"seed is {self.seed}; expected at most {2**32 - 1}")
        if self.lr_decay != 1 and self.schedule not in ("step", "exponential"):
            raise ValueError(
                f"lr_decay is {self.lr_decay:g}; expected 1 (unused) with the schedule "
                f"{self.schedule!r}: it is the factor of 'step' and 'exponential'"
            )

    @property
    def all_epochs(self) -> int:
        """`epochs` and `reward_epochs` together."""
        return self.epochs + self.reward_epochs

    @staticmethod
    def _check_number(name: str, value: float) -> None:
        if name in _ABOVE_0:
            good, wanted = value > 0, "a positive number"
        elif name in _BELOW_1:
            good, wanted = 0 <= value < 1, "a number of at least 0 and below 1"
        elif name in _AT_MOST_1:
            good, wanted = 0 <= value <= 1, "a number from 0 to 1"
        else:
            good, wanted = value >= 0, "a number of at least 0"
        if not good or not math.isfinite(value):
            raise ValueError(f"{name} is {value}; expected {wanted}")

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step, the first of which is 0."""
        progress = step / steps_per_epoch
        if self.reward_epochs and progress >= self.epochs:
            past = (progress - self.epochs) / self.reward_epochs
            return self.reward_rate * 0.5 * (1 + math.cos(math.pi * past))
        rate = self.learning_rate
        if self.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * progress / self.epochs))
        elif self.schedule == "exponential":
            rate *= self.lr_decay ** (progress / self.decay_every)
        elif self.schedule == "step":
            # Whole steps before the division, so that no rounding moves a boundary of epochs.
            rate *= self.lr_decay ** math.floor(step / (steps_per_epoch * self.decay_every))
        if step < self.warmup_steps:
            rate *= (step + 1) / self.warmup_steps
        return rate


RECIPES: dict[str, dict[str, Any]] = {
    "flickr8k": {
        "hidden_dim": 768,
        "wordvec_dim": 256,
        "epochs": 6,
        "batch_size": 100,
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "clip_norm": 5.0,
        "feature_noise": 0.5,
        "embed_dropout": 0.3,
        "vocab_dropout": 0.5,
        "weight_decay": 0.05,
        "consensus": 1.0,
        "weight_average": 0.999,
        "reward_epochs": 3,
        "val_captions": 500,
        "val_images": 1000,
    },
    "coco": {
        "hidden_dim": 512,
        "wordvec_dim": 256,
        "epochs": 10,
        "batch_size": 100,
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "clip_norm": 5.0,
        "embed_dropout": 0.3,
        "vocab_dropout": 0.5,
        "consensus": 1.0,
        "weight_average": 0.999,
        "reward_epochs": 3,
        "val_captions": 500,
        "val_images": 1000,
    },
}
"""Good settings for known data: fields of `TrainConfig`, and sizes of the model."""


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
    *,
    bias_start: str = "frequencies",
    forget_bias: float = 1.0,
    embed_scale: float = 0.1,
) -> CaptioningRNN:
    """Make a model whose first weights suit the data.

    They are `CaptioningRNN`'s, but for what the last three arguments say, and for `W_proj` and
    `b_proj`, in which the features' mean is taken off and their deviation divided out.

    Parameters
    ----------
    data : mapping
        As `fastrnn.coco_utils.load_coco_data` returns it.
    cell_type, wordvec_dim, hidden_dim, dtype
        As for `CaptioningRNN`.
    seed : int
        Decides the weights; ``np.random`` stays as it was.
    bias_start : {'frequencies', 'zero'}
        The words' biases: the logarithms of their frequencies, so that training does not begin
        with learning them, or zero.
    forget_bias : float
        With what bias an LSTM's forget gates begin: 1 lets cells remember (Jozefowicz, Zaremba
        and Sutskever 2015), 0 is `CaptioningRNN`'s.
    embed_scale : float
        The deviation of word vectors; `CaptioningRNN`'s is 0.01.

    Returns
    -------
    CaptioningRNN

    Raises
    ------
    ValueError
        `bias_start` is neither name, `forget_bias` is not finite, `embed_scale` is not positive.
    """
    if bias_start not in ("frequencies", "zero"):
        raise ValueError(f"bias_start is {bias_start!r}; expected 'frequencies' or 'zero'")
    if not math.isfinite(forget_bias):
        raise ValueError(f"forget_bias is {forget_bias}; expected a finite number")
    if not 0 < embed_scale < math.inf:
        raise ValueError(f"embed_scale is {embed_scale}; expected a positive number")
    features = data["train_features"]
    model = blank_model(
        data["word_to_idx"], features.shape[1], wordvec_dim, hidden_dim, cell_type, dtype, seed=seed
    )
    params = model.params
    params["W_embed"] *= embed_scale / 0.01
    if cell_type == "lstm":
        params["b"][hidden_dim : 2 * hidden_dim] = forget_bias
    if bias_start == "frequencies":
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


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal, after a whole step.

    Attributes
    ----------
    signal : int
        Its number.
    step : int
        Steps that were taken.
    run : Path or None
        The run directory, where there is a checkpoint of this step.
    """

    def __init__(self, number: int, step: int, run: Path | None) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.signal = number
        self.step = step
        self.run = run


class _Signals:
    """Remembers the first SIGINT or SIGTERM, so that a step can be finished; a second one raises.

    Handlers that somebody else has put in place stay, and so does everything outside of the main
    thread.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.caught: int | None = None
        self._trainer = trainer
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number, default in (
                (signal.SIGINT, signal.default_int_handler),
                (signal.SIGTERM, signal.SIG_DFL),
            ):
                if signal.getsignal(number) == default:
                    self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            raise Interrupted(number, self._trainer.step, None)
        self.caught = number


class Trainer:
    """Train a captioning model with Adam.

    Parameters
    ----------
    model : CaptioningRNN
        Its ``params`` are changed in place.
    data : mapping
        As `fastrnn.coco_utils.load_coco_data` returns it. ``val_references``, a list of lists of
        str, one for each validation image, takes the place of the validation captions where
        generated captions are measured. Without ``val_...`` there is no validation.
    config : TrainConfig, optional
    run : path, optional
        A run directory, made if need be: settings, history, checkpoints, and the best model so
        far in ``model.npz``. Without one nothing is written.
    settings : mapping, optional
        What else is to be in the settings of the run: ``data``, the data's directory, lets other
        commands find it.
    on_step : callable, optional
        Called as ``on_step(trainer, record)`` after every step; the record has ``step``,
        ``epoch``, ``captions`` (seen so far), ``learning_rate`` and ``loss``, nats per word;
        where captions are rewarded, the loss is None and ``reward`` their mean CIDEr-D.
    on_validation : callable, optional
        Called as ``on_validation(trainer, metrics, captions)`` after every epoch's validation,
        with all that was measured and the captions that were generated.
    on_epoch : callable, optional
        Called as ``on_epoch(trainer, record)`` after every epoch, with its line of the history,
        while its checkpoint is being written.

    Attributes
    ----------
    model : CaptioningRNN
        What the training has come to, the average of the weights where one is kept. It is brought
        up to date before each validation, at each checkpoint and when `fit` ends, also by an error.
    history : list of dict
        Every ``record_every`` steps: ``step``, ``epoch`` (a float), ``loss`` (nats per word over
        those steps, as it is trained on; None where captions are rewarded), ``reward`` (the mean
        CIDEr-D of the captions drawn, a fraction; only where they are), ``learning_rate``. After
        every epoch: ``step``, ``epoch`` (an int), ``loss`` and ``reward`` (over the epoch),
        ``learning_rate``, ``val_loss``, ``val_perplexity``, ``val_bleu_4`` and ``val_cider``
        (fractions; None where unknown), ``captions_per_second`` and ``seconds`` (both of training
        alone), ``validation_seconds``.
    best : dict or None
        The best epoch so far: ``monitor``, ``value``, ``epoch``, ``step``.
    step, steps_per_epoch : int
    finished : bool

    Raises
    ------
    ValueError
        There is nothing to train on; data and model differ in words or in the width of features;
        the run directory holds a run already.

    Notes
    -----
    Training works on features of mean 0 and deviation 1, because Adam moves every weight by as
    much, whatever the scale of its input. Mean and deviation are folded into ``W_proj`` and
    ``b_proj`` of `model`, which therefore reads features as they are.
    """

    def __init__(
        self,
        model: CaptioningRNN,
        data: Mapping[str, Any],
        config: TrainConfig | None = None,
        *,
        run: str | PathLike[str] | None = None,
        settings: Mapping[str, Any] | None = None,
        on_step: Callable[[Trainer, dict[str, Any]], None] | None = None,
        on_validation: Callable[[Trainer, dict[str, Any], list[str]], None] | None = None,
        on_epoch: Callable[[Trainer, dict[str, Any]], None] | None = None,
    ) -> None:
        self.model = model
        self.data = data
        self.config = config or TrainConfig()
        self.run = None if run is None else Path(run).absolute()
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.step = 0
        self.settings = dict(settings or {})
        self.on_step, self.on_epoch, self.on_validation = on_step, on_epoch, on_validation

        captions, features = data["train_captions"], data["train_features"]
        if not len(captions):
            raise ValueError(f"train_captions has shape {captions.shape}; expected at least one")
        mismatch = describe_mismatch(model, data)
        if mismatch:
            raise ValueError(mismatch)
        if self.run is not None and checkpoint_steps(self.run):
            raise ValueError(
                f"run is {self.run}, which holds checkpoints; Trainer.resume goes on from them"
            )
        null = model.word_to_idx["<NULL>"]
        self._words = np.count_nonzero(captions[:, 1:] != null, axis=1)
        self.steps_per_epoch = -(-len(captions) // self.config.batch_size)
        self._mean, self._deviation = feature_scale(features)
        self._workspace = CaptioningWorkspace()
        # A copy that shares all but the parameters: what is trained, for standardised features.
        self._learner = copy.copy(model)
        self._learner.params = {name: w.copy() for name, w in model.params.items()}
        _unfold(self._learner.params, self._mean, self._deviation)
        self._average: dict[str, np.ndarray] | None = None
        if self.config.weight_average:
            self._average = {name: w.copy() for name, w in self._learner.params.items()}
        self._moments: dict[str, dict[str, Any]] = {name: {} for name in model.params}
        self._weights: np.ndarray | None = None
        self._reward: CiderReward | None = None
        # Nats and words, or rewards and captions: since the last record, and of the epoch up to
        # then.
        self._sums = [0.0, 0, 0.0, 0]
        self._seconds = 0.0
        self._epochs_without_gain = 0
        self._batches: tuple[int, list[np.ndarray]] | None = None
        self._validation: _Validation | None = None
        self._resumed = False
        self._stopping = False
        self._fallen_back = False
        self._saved_step = -1
        self._newest_known = -1  # of the checkpoints in the run directory
        self._writer: ThreadPoolExecutor | None = None
        self._lock: RunLock | None = None
        self._saving: Future[None] | None = None
        self._copies: dict[str, np.ndarray] = {}
        self._unwritten: tuple[Path, Callable[[], None]] | None = None  # what failed to be saved
        self._data_sums: dict[str, int] | None = None

    # -- going on

    @classmethod
    def resume(
        cls,
        run: str | PathLike[str],
        data: Mapping[str, Any] | None = None,
        *,
        on_step: Callable[[Trainer, dict[str, Any]], None] | None = None,
        on_validation: Callable[[Trainer, dict[str, Any], list[str]], None] | None = None,
        on_epoch: Callable[[Trainer, dict[str, Any]], None] | None = None,
        **changes: Any,
    ) -> Trainer:
        """Go on with a run from its newest checkpoint that is whole, bit for bit.

        Parameters
        ----------
        run : path
            The run directory.
        data : mapping, optional
            The data that the run was begun with; read from where its settings say by default.
        on_step, on_validation, on_epoch : callable, optional
            As for `Trainer`.
        **changes
            Other values for ``epochs``, ``reward_epochs``, ``patience``, ``save_every`` or
            ``keep_last``.

        Returns
        -------
        Trainer
            Call its `fit`.

        Warns
        -----
        UserWarning
            A newer checkpoint is damaged; or `epochs` changes what a step's course depends on.

        Raises
        ------
        FileNotFoundError
            There is no such directory.
        ValueError
            It is no run, every checkpoint is damaged, `data` are not the run's, or a change is
            asked for that would make another run of it.
        """
        found = read_run(run)
        for name in changes:
            if name not in HARMLESS:
                raise ValueError(
                    f"{name} cannot change when a run is resumed; it stays "
                    f"{found.settings.get(name)!r}, and only {', '.join(HARMLESS)} may change"
                )
        config = dataclasses.replace(found.config, **changes)
        newest = max(checkpoint_steps(run), default=-1)
        checkpoint, damaged = read_newest_checkpoint(run)
        if data is None:
            data = found.read_data()
        if checkpoint is None:
            if "bias_start" not in found.settings:
                raise ValueError(f"{run}: has no checkpoint to go on from; begin it anew")
            model = found.start_model(data)
        else:
            model = checkpoint.model
        for line in damaged:
            step = checkpoint.about["step"] if checkpoint else 0
            warnings.warn(f"{line}; going on from step {step}", stacklevel=2)
        own = {field.name for field in fields(TrainConfig)}
        trainer = cls(
            model, data, config,
            settings={name: v for name, v in found.settings.items() if name not in own},
            on_step=on_step, on_validation=on_validation, on_epoch=on_epoch,
        )  # fmt: skip
        trainer.run = found.directory.absolute()
        trainer._resumed = True
        trainer._newest_known = newest
        if checkpoint is not None:
            trainer._restore(checkpoint)
        past = trainer.step > found.config.epochs * trainer.steps_per_epoch
        if past and config.epochs != found.config.epochs:
            raise ValueError(
                f"epochs is {config.epochs}, was {found.config.epochs}: the run is past them, in "
                "its epochs of rewards; reward_epochs may change"
            )
        if past and config.reward_epochs != found.config.reward_epochs:
            warnings.warn(
                f"reward_epochs is {config.reward_epochs}, was {found.config.reward_epochs}: the "
                "learning rate goes on as in a run of the new length",
                stacklevel=2,
            )
        over_the_run = config.schedule == "cosine" or config.scheduled_sampling
        if trainer.step and config.epochs != found.config.epochs and over_the_run:
            course = "the learning rate" if config.schedule == "cosine" else "scheduled sampling"
            warnings.warn(
                f"epochs is {config.epochs}, was {found.config.epochs}: {course} goes on as in a "
                "run of the new length",
                stacklevel=2,
            )
        return trainer

    def _restore(self, checkpoint: Checkpoint) -> None:
        about = checkpoint.about
        config = dataclasses.asdict(self.config)
        for name, was in about["config"].items():
            if name not in HARMLESS and config.get(name) != was:
                raise ValueError(
                    f"{name} is {config.get(name)!r} in {SETTINGS_FILE}, but {was!r} in the "
                    "checkpoint; only a run as it was begun can be resumed"
                )
        for name, was in about["data"].items():
            if self._fingerprint().get(name) != was:
                raise ValueError(f"{name} is not what the run {self.run} was trained on")
        if self.config.all_epochs * self.steps_per_epoch < about["step"]:
            done = about["step"] / self.steps_per_epoch
            which = "epochs and reward_epochs are" if self.config.reward_epochs else "epochs is"
            raise ValueError(f"{which} {self.config.all_epochs}; the run has done {done:.4g}")
        self._learner.params = checkpoint.weights
        self._average = checkpoint.average
        for name, moments in checkpoint.moments.items():
            self._moments[name] = {**moments, "t": self._steps_of_adam(about["step"])}
        self.step = about["step"]
        self.history = about["history"]
        self.best = about["best"]
        self._sums = about["sums"]
        self._seconds = about["seconds"]
        self._epochs_without_gain = about["epochs_without_gain"]

    def _fingerprint(self) -> dict[str, int]:
        """Checksums of what training and validation depend on, computed once."""
        if self._data_sums is None:
            self._data_sums = {
                name: zlib.crc32(np.ascontiguousarray(self.data[name]).view(np.uint8).data)
                for split in ("train", "val")
                for name in (f"{split}_captions", f"{split}_image_idxs", f"{split}_features")
                if name in self.data and np.size(self.data[name])
            }
        return self._data_sums

    # -- training

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or patience has run out."""
        if self.step >= self.config.all_epochs * self.steps_per_epoch:
            return True
        return bool(self.config.patience) and self._epochs_without_gain >= self.config.patience

    def stop(self) -> None:
        """Let `fit` return after the present step (and its checkpoint); callbacks may call it."""
        self._stopping = True

    def lock(self) -> contextlib.AbstractContextManager[Any]:
        """Return what keeps others from training in the run directory, to be held with ``with``.

        `fit` and `save` hold it themselves; held around them, it lasts from one to the next.
        """
        if self.run is None:
            return contextlib.nullcontext()
        if self._lock is None or self._lock.run != self.run:
            self._lock = RunLock(self.run)
        return self._lock

    def use_lock(self, lock: RunLock) -> None:
        """Train in the run directory of a lock, which its owner may hold already."""
        self.run, self._lock = lock.run, lock

    def __getstate__(self) -> dict[str, Any]:
        """Return what makes up a copy, or goes into a pickle: neither threads nor locks."""
        self._settle()
        return {**self.__dict__, "_writer": None, "_lock": None, "_copies": {}, "_validation": None,
                "_unwritten": None}  # fmt: skip

    def fit(self) -> list[dict[str, Any]]:
        """Train until all epochs are done or patience has run out.

        The first SIGINT or SIGTERM lets the step be finished, writes a checkpoint and raises
        `Interrupted`; a second one raises it at once.

        Returns
        -------
        list of dict
            The history.

        Raises
        ------
        FloatingPointError
            The loss is no longer finite.
        Interrupted
            A signal came.
        RunInUseError
            Another process trains in the run directory.
        OSError
            The run directory cannot be written; the newest checkpoint in it is whole.
        """
        self._stopping = False
        with self.lock(), _Signals(self) as signals:
            try:
                if self.run is not None:
                    self._open_run()
                while not (self.finished or self._stopping or signals.caught):
                    self._advance()
                self._settle()
                if signals.caught:
                    if self.run is not None and self._saved_step != self.step:
                        self.save()
                    raise Interrupted(signals.caught, self.step, self.run)
                if self._stopping and self.run is not None and self._saved_step != self.step:
                    self.save()
            finally:
                self._derive()
                self._settle()
        return self.history

    def _advance(self) -> None:
        """Take a step, and do what is due after it."""
        self._settle(wait=False)
        began = time.perf_counter()
        rate = self._take_step()
        self._seconds += seconds_since(began)
        record = None
        if self.step % self.steps_per_epoch == 0:
            record = self._end_epoch(rate)
        every = self.config.save_every
        if self.run is not None and (record or (every and self.step % every == 0)):
            self._save_meanwhile()
        if record and self.on_epoch:
            self.on_epoch(self, record)

    def _take_step(self) -> float:
        """Take a step; return its learning rate."""
        config, step = self.config, self.step
        epoch, number = divmod(step, self.steps_per_epoch)
        if self._batches is None or self._batches[0] != epoch:
            self._batches = epoch, self._draw_batches(epoch)
        rows = self._batches[1][number]
        rate = config.rate(step, self.steps_per_epoch)
        rewarding = self._rewarding(step)
        if rewarding:
            grads, total, count = self._rewarded(rows)
        else:
            grads, total, count = self._taught(rows)
        self._update(grads, rate)
        self.step += 1

        self._sums[0] += total
        self._sums[1] += count
        progress = self.step / self.steps_per_epoch
        if self.step % config.record_every == 0 or number + 1 == self.steps_per_epoch:
            self.history.append(
                {
                    "step": self.step,
                    "epoch": progress,
                    **_measured(rewarding, *self._sums[:2]),
                    "learning_rate": rate,
                }
            )
            self._sums[2] += self._sums[0]
            self._sums[3] += self._sums[1]
            self._sums[:2] = 0.0, 0
        if self.on_step:
            share = sum(map(len, self._batches[1][: number + 1])) / self._in_epoch()
            self.on_step(
                self,
                {
                    "step": self.step,
                    "epoch": progress,
                    "captions": round((epoch + share) * len(self._words)),
                    "learning_rate": rate,
                    **_measured(rewarding, total, count),
                },
            )
        return rate

    def _in_epoch(self) -> int:
        """How many captions, or images, the present epoch goes through."""
        assert self._batches is not None
        return sum(map(len, self._batches[1]))

    def _rewarding(self, step: int) -> bool:
        """Whether captions are rewarded in a step, the first of which is 0."""
        return step >= self.config.epochs * self.steps_per_epoch

    def _steps_of_adam(self, step: int) -> int:
        """How many steps Adam's moments have seen after so many steps."""
        first = self.config.epochs * self.steps_per_epoch
        return step - first if step > first else step

    def _taught(self, rows: np.ndarray) -> tuple[dict[str, np.ndarray], float, int]:
        """The gradients of training captions' loss; its nats, and the words."""
        if self.config.consensus and self._weights is None:
            agreement = self._rewards().agreement() ** self.config.consensus
            mean = agreement.mean()  # 0 where each image has one caption
            self._weights = agreement / mean if mean > 0 else np.ones_like(agreement)
        loss, grads = self._learner.loss(
            *self._inputs(rows),
            weights=None if self._weights is None else self._weights[rows],
            workspace=self._workspace,
            regularisation=self._regularisation(),
        )
        self._check_finite(float(loss))
        return grads, float(loss) * len(rows), int(self._words[rows].sum())

    def _rewarded(self, images: np.ndarray) -> tuple[dict[str, np.ndarray], float, int]:
        """The gradients of what falls as drawn captions' rewards rise; rewards, and captions."""
        if not self._rewarding(self.step - 1):
            self._begin_rewards()
        count, model = self.config.reward_captions, self._learner
        features = self._standardised(self.data["train_features"][images])
        longest = max(self.data["train_captions"].shape[1] - 1, 1)
        drawn = sample(model, features, longest, count=count, seed=self._step_seed(_DRAWS))
        ids = drawn.ids.reshape(len(images) * count, -1)
        rewards = self._rewards()(ids, np.repeat(images, count)).reshape(-1, count)
        others = (rewards.sum(axis=1, keepdims=True) - rewards) / (count - 1)
        start = np.full((len(ids), 1), model.word_to_idx["<START>"], ids.dtype)
        loss, grads = model.loss(
            np.repeat(features, count, axis=0),
            np.concatenate([start, ids], axis=1),
            weights=(rewards - others).ravel(),
            workspace=self._workspace,
        )
        self._check_finite(float(loss))
        return grads, float(rewards.sum()), rewards.size

    def _begin_rewards(self) -> None:
        if self._average is not None:
            self._learner.params, self._average = self._average, None
        self._moments = {name: {} for name in self._moments}

    def _rewards(self) -> CiderReward:
        """What measures captions against the training captions, made once."""
        if self._reward is None:
            data = self.data
            self._reward = CiderReward(
                data["train_captions"], data["train_image_idxs"], len(data["train_features"]),
                self.model.word_to_idx,
            )  # fmt: skip
        return self._reward

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            rate = self.config.rate(self.step, self.steps_per_epoch)
            raise FloatingPointError(
                f"the loss is {loss} at step {self.step + 1}: either the features are not "
                f"finite or the learning rate, {rate:.3g}, is too high"
            )

    def _draw_batches(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.config.seed, _ORDER, epoch])
        if epoch >= self.config.epochs:
            images = np.unique(self.data["train_image_idxs"])
            # as many steps as in other epochs, so all images more than once if there are few
            times = -(-self.steps_per_epoch // len(images))
            order = np.concatenate([rng.permutation(images) for _ in range(times)])
            return np.array_split(order, self.steps_per_epoch)
        order = rng.permutation(len(self._words))
        if not self.config.bucket_by_length:
            return np.array_split(order, self.steps_per_epoch)
        # Captions of one length stay in the order drawn.
        order = order[np.argsort(self._words[order], kind="stable")]
        batches = np.array_split(order, self.steps_per_epoch)
        return [batches[i] for i in rng.permutation(len(batches))]

    @np.errstate(invalid="ignore", over="ignore")
    def _inputs(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Standardised features, with noise, and captions of training rows."""
        images = self.data["train_image_idxs"][rows]
        features = self._standardised(self.data["train_features"][images])
        if self.config.feature_noise:
            rng = np.random.default_rng([self.config.seed, _NOISE, self.step])
            noise = rng.standard_normal(features.shape, dtype=np.float32)
            features += np.float32(self.config.feature_noise) * noise
        return features, self.data["train_captions"][rows]

    def _standardised(self, features: np.ndarray) -> np.ndarray:
        return ((features - self._mean) / self._deviation).astype(self.model.dtype)

    def _regularisation(self) -> Regularisation | None:
        config = self.config
        if not (
            config.embed_dropout
            or config.vocab_dropout
            or config.label_smoothing
            or config.scheduled_sampling
        ):
            return None
        last = config.epochs * self.steps_per_epoch - 1
        return Regularisation(
            embed_dropout=config.embed_dropout,
            vocab_dropout=config.vocab_dropout,
            label_smoothing=config.label_smoothing,
            scheduled_sampling=config.scheduled_sampling * self.step / max(last, 1),
            seed=self._step_seed(_MASKS),
        )

    def _step_seed(self, purpose: int) -> int:
        seed = np.random.SeedSequence([self.config.seed, purpose, self.step])
        return int(seed.generate_state(1, np.uint64)[0])

    def _update(self, grads: dict[str, np.ndarray], rate: float) -> None:
        config = self.config
        if config.clip_value:
            optim.clip_by_value(grads, config.clip_value)
        if config.clip_norm:
            optim.clip_by_norm(grads, config.clip_norm)
        for name, w in self._learner.params.items():
            state = self._moments[name]
            state["learning_rate"] = rate
            if config.weight_decay and w.ndim > 1 and not self._rewarding(self.step):
                state["weight_decay"] = config.weight_decay
                optim.adamw(w, grads[name], state, in_place=True)
            else:
                optim.adam(w, grads[name], state, in_place=True)
        if self._average is not None:
            # (1 - d) sum d^(t-i) w_i / (1 - d^t), without the sum: 1 at the first step.
            decay = config.weight_average
            share = (1 - decay) / (1 - decay ** (self.step + 1))
            for name, w in self._learner.params.items():
                optim.average(self._average[name], w, share)

    def _derive(self) -> None:
        """Bring `model` up to date."""
        source = self._learner.params if self._average is None else self._average
        for name, w in source.items():
            np.copyto(self.model.params[name], w)
        _fold(self.model.params, self._mean, self._deviation)

    # -- validation

    def _end_epoch(self, rate: float) -> dict[str, Any]:
        """Validate; return the epoch's line of the history, and see whether there was a gain."""
        self._derive()
        began = time.perf_counter()
        if self._validation is None:
            self._validation = _Validation(self.data, self.config)
        metrics, said = self._validation.measure(self.model, self._workspace)
        seconds = seconds_since(began)
        if self.on_validation:
            self.on_validation(self, metrics, said)
        epoch = self.step // self.steps_per_epoch
        rewarding = self._rewarding(self.step - 1)
        captions = self._in_epoch() * (self.config.reward_captions if rewarding else 1)
        record = {
            "step": self.step,
            "epoch": epoch,
            **_measured(rewarding, *self._sums[2:]),
            "learning_rate": rate,
            "val_loss": metrics["loss"],
            "val_perplexity": metrics["perplexity"],
            "val_bleu_4": metrics["bleu_4"],
            "val_cider": metrics["cider"],
            "captions_per_second": captions / self._seconds,
            "seconds": self._seconds,
            "validation_seconds": seconds,
        }
        self.history.append(record)
        self._sums = [0.0, 0, 0.0, 0]
        self._seconds = 0.0
        self._look_for_gain(record)
        return record

    def _look_for_gain(self, record: Mapping[str, Any]) -> None:
        monitor = self.config.monitor
        value = record[f"val_{monitor}"]
        if value is None and monitor != "loss":
            monitor, value = "loss", record["val_loss"]
            if value is not None and self._validation and self._validation.images.size:
                if not self._fallen_back:
                    warnings.warn(
                        f"monitor is {self.config.monitor!r}, which cannot be computed here "
                        f"({self._validation.missing}); the loss is taken",
                        stacklevel=2,
                    )
                self._fallen_back = True
        if self.best is not None and self.best["monitor"] != monitor:
            raise ValueError(
                f"monitor is {monitor!r}; epochs up to now were measured by "
                f"{self.best['monitor']!r}, which cannot be computed now"
                + (f" ({self._validation.missing})" if self._validation else "")
            )
        if value is None:  # nothing to go by: the newest is the best
            gain = True
        elif math.isnan(value):
            gain = self.best is None
        elif self.best is None or self.best["value"] is None or math.isnan(self.best["value"]):
            gain = True
        elif monitor == "loss":
            # Rewards do not make the loss small; it rises when they come in.
            gain = self._rewarding(self.step - 1) or value < self.best["value"]
        elif value == self.best["value"]:  # at the start both may be 0
            gain = (record["val_loss"] or 0.0) < (self.best["val_loss"] or 0.0)
        else:
            gain = value > self.best["value"]
        self._epochs_without_gain = 0 if gain else self._epochs_without_gain + 1
        if gain:
            self.best = {
                "monitor": monitor,
                "value": value,
                "val_loss": record["val_loss"],
                "epoch": record["epoch"],
                "step": self.step,
            }

    def validate(self, limit: int | None = None) -> float | None:
        """Return the loss per word of `model` over validation captions.

        Parameters
        ----------
        limit : int, optional
            Take this many captions, evenly spread; all of them by default.

        Returns
        -------
        float or None
            In nats per word; None if there are no captions.
        """
        return loss_per_word(self.model, self.data, limit=limit, workspace=self._workspace)

    # -- the run directory

    def _open_run(self) -> None:
        run = self.run
        assert run is not None
        make_directory(run / "checkpoints")
        for directory in (run, run / "checkpoints"):
            remove_unfinished(directory)
        self._check_not_behind()
        write_json(run / SETTINGS_FILE, self._all_settings())
        self._write_again()
        saved = self._resumed and self.step in checkpoint_steps(run)
        self._saved_step = self.step if saved else -1
        if not saved:
            self.save()
        _write_history(run, self.history)
        if self.best is not None:
            self._restore_best()

    def _check_not_behind(self) -> None:
        """Refuse to write over what another trainer has saved in the meantime."""
        assert self.run is not None
        newest = max(checkpoint_steps(self.run), default=-1)
        if newest > self._newest_known:
            raise ValueError(
                f"{self.run} has gone on to step {newest} since this trainer was made at step "
                f"{self.step}; resume it again"
            )

    def _all_settings(self) -> dict[str, Any]:
        """Return what is in the settings of the run."""
        return {
            "fastrnn": __version__,
            "data": None,
            **self.settings,
            "cell": self.model.cell_type,
            "hidden_dim": self.model.params["W_proj"].shape[1],
            "wordvec_dim": self.model.params["W_embed"].shape[1],
            **dataclasses.asdict(self.config),
            "threads": runtime.get_threads(),
            "isa": runtime.isa(),
        }

    def _restore_best(self) -> None:
        """See to it that the best model up to now is there."""
        assert self.run is not None
        assert self.best is not None
        try:
            read_sealed(self.run / MODEL_FILE)
        except (FileNotFoundError, ValueError):
            pass
        else:
            return
        try:
            best = read_checkpoint(checkpoint_path(self.run, self.best["step"]))
        except (FileNotFoundError, ValueError) as error:
            warnings.warn(f"the best model so far is lost ({error})", stacklevel=2)
        else:
            best.model.save(self.run / MODEL_FILE)

    def save(self) -> Path:
        """Write a checkpoint of the present step, the best model and the history to the run.

        Returns
        -------
        Path
            The checkpoint's.

        Raises
        ------
        ValueError
            The trainer has no run directory, or another one has gone on there.
        OSError
            The directory cannot be written; older checkpoints are as they were.
        """
        if self.run is None:
            raise ValueError("run is None; expected a run directory to save to")
        self._settle()
        with self.lock():
            self._check_not_behind()
            self._write_again()
            self._prepare_save()()
        return checkpoint_path(self.run, self.step)

    def _save_meanwhile(self) -> None:
        """Save as `save` does while training goes on; `_settle` tells what became of it."""
        self._settle()
        self._write_again()
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "fastrnn checkpoint")
        self._saving = self._writer.submit(self._prepare_save())

    def _settle(self, wait: bool = True) -> None:
        """Raise what went wrong in saving; wait for its end, or see whether it has ended."""
        if self._saving is not None and (wait or self._saving.done()):
            saving, self._saving = self._saving, None
            saving.result()

    def _write_again(self) -> None:
        """Save what could not be saved when it was due: it may be the best model."""
        if self._unwritten is not None and self._unwritten[0] == self.run:
            self._unwritten[1]()

    def _prepare_save(self) -> Callable[[], None]:
        """Return what writes the state of this moment, whatever becomes of the trainer's."""
        run, step, best = self.run, self.step, self.best
        assert run is not None
        self._derive()
        about = {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            "history": self.history,
            "sums": self._sums,
            "seconds": self._seconds,
            "best": best,
            "epochs_without_gain": self._epochs_without_gain,
            "config": dataclasses.asdict(self.config),
            "data": self._fingerprint(),
        }
        moments = {
            name: {m: state[m] for m in ("m", "v")}
            for name, state in self._moments.items()
            if "m" in state
        }
        state = Checkpoint(self.model, self._learner.params, self._average, moments, about)
        arrays = {}
        for name, array in state.to_arrays().items():
            # over the last copy where that fits: fresh pages would take longer than copying
            copied = self._copies.get(name)
            if copied is None or (copied.shape, copied.dtype) != (array.shape, array.dtype):
                copied = np.empty_like(array)
            np.copyto(copied, array)
            arrays[name] = copied
        self._copies = arrays
        model = {name: arrays[name] for name in self.model.to_arrays()}
        history = list(self.history)
        settings = self._all_settings()
        self._newest_known = max(self._newest_known, step)

        def write() -> None:
            make_directory(run / "checkpoints")
            # Before the first checkpoint, which cannot be resumed without. They may also have been
            # removed with the whole directory.
            if not checkpoint_steps(run) or not (run / SETTINGS_FILE).exists():
                write_json(run / SETTINGS_FILE, settings)
            # The model first: should the process be killed in between, training goes on from an
            # older checkpoint and comes to the same model again.
            if best is not None and best["step"] == step:
                write_sealed(run / MODEL_FILE, model)
            write_sealed(checkpoint_path(run, step), arrays)
            # What is newer was damaged when training was resumed.
            older = [known for known in checkpoint_steps(run) if known <= step]
            keep = set(older[-self.config.keep_last :])
            if best is not None:
                keep.add(best["step"])
            remove_checkpoints(run, keep)
            _write_history(run, history)
            self._saved_step, self._unwritten = step, None

        self._unwritten = run, write
        return write


def seconds_since(began: float) -> float:
    """Return the time since `time.perf_counter` gave `began`.

    It is above 0, also where the clock is too coarse to see it, or has jumped.
    """
    return max(time.perf_counter() - began, 1e-9)


def _write_history(run: Path, history: Sequence[Mapping[str, Any]]) -> None:
    lines = [json.dumps(record) + "\n" for record in history]
    write_text(run / HISTORY_FILE, "".join(lines))


def _measured(rewarding: bool, total: float, count: float) -> dict[str, float | None]:
    """What a record says of some steps: the loss per word, or the mean reward."""
    if rewarding:
        return {"loss": None, "reward": total / max(count, 1)}
    return {"loss": total / max(count, 1)}


class _Validation:
    """Validation data, made ready once."""

    def __init__(self, data: Mapping[str, Any], config: TrainConfig) -> None:
        self._data = data
        self._config = config
        self.missing = "no captions to compare with"
        self.images = np.zeros(0, np.intp)
        self._scorer: CaptionScorer | None = None
        if not config.val_images or not len(data.get("val_features", ())):
            return
        references = references_of(data)
        known = np.flatnonzero([bool(texts) for texts in references])
        if not len(known):
            return
        self.images = known[_evenly(len(known), config.val_images)]
        self._scorer = CaptionScorer([references[i] for i in self.images])
        self.missing = self._scorer.missing or "it is not among the metrics"

    def measure(
        self, model: CaptioningRNN, workspace: CaptioningWorkspace
    ) -> tuple[dict[str, Any], list[str]]:
        """Return the metrics (None where unknown) and the captions of the validation images."""
        loss = None
        if self._config.val_captions:
            loss = loss_per_word(
                model, self._data, limit=self._config.val_captions, workspace=workspace
            )
        metrics: dict[str, Any] = {"bleu_4": None, "cider": None}
        captions: list[str] = []
        if len(self.images):
            longest = max(self._data["train_captions"].shape[1] - 1, 1)
            captions = caption_images(model, self._data["val_features"][self.images], longest)
            if self._scorer is not None:
                metrics.update(self._scorer.evaluate(captions, rouge=False))
        metrics["loss"] = loss
        metrics["perplexity"] = None if loss is None else math.exp(min(loss, 700.0))
        return metrics, captions


def _evenly(count: int, limit: int | None) -> np.ndarray:
    """Return at most `limit` of the numbers below `count`, evenly spread."""
    chosen = count if limit is None else min(limit, count)
    return np.linspace(0, max(count - 1, 0), chosen).round().astype(np.intp)


def loss_per_word(
    model: CaptioningRNN,
    data: Mapping[str, Any],
    split: str = "val",
    *,
    limit: int | None = None,
    batch_size: int = 250,
    workspace: CaptioningWorkspace | None = None,
) -> float | None:
    """Return a model's loss per word over the captions of a part of the data.

    Parameters
    ----------
    model : CaptioningRNN
    data : mapping
        As `fastrnn.coco_utils.load_coco_data` returns it.
    split : {'val', 'train'}, optional
    limit : int, optional
        Take this many captions, evenly spread; all of them by default.
    batch_size : int, optional
        Captions at a time.
    workspace : CaptioningWorkspace, optional
        Memory to use.

    Returns
    -------
    float or None
        In nats per word; None if there are no words.
    """
    captions = data.get(f"{split}_captions")
    if captions is None or not len(captions):
        return None
    images = data[f"{split}_image_idxs"]
    rows = _evenly(len(captions), limit)
    words = int(np.count_nonzero(captions[rows, 1:] != model.word_to_idx["<NULL>"]))
    if not words:
        return None
    total = 0.0
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        features = data[f"{split}_features"][images[batch]]
        said = model.word_log_probs(features, captions[batch], workspace=workspace)
        total -= float(said.sum())
    return total / words


@dataclass(frozen=True)
class Run:
    """What a run was made of.

    Attributes
    ----------
    directory : Path
        The run directory.
    settings : dict
        All of its ``settings.json``.
    config : TrainConfig
    data_directory : Path or None
        Where its data are; None if they never were in a directory.
    """

    directory: Path
    settings: dict[str, Any]
    config: TrainConfig
    data_directory: Path | None

    def read_data(self, directory: str | PathLike[str] | None = None) -> dict[str, Any]:
        """Read the data of the run, the same captions in the same order.

        Parameters
        ----------
        directory : path, optional
            Where they are now, if elsewhere.

        Raises
        ------
        ValueError
            The run has no data directory; and what `read_training_data` raises.
        """
        place = directory or self.data_directory
        if place is None:
            raise ValueError(f"{self.directory}: does not say where its data are")
        return read_training_data(
            place,
            raw_features=bool(self.settings.get("raw_features")),
            max_train=self.settings.get("max_train"),
            seed=self.config.seed,
        )

    def start_model(self, data: Mapping[str, Any]) -> CaptioningRNN:
        """Make the model that the run began with, where it was one of `start_model`'s."""
        s = self.settings
        try:
            return start_model(
                data, s["cell"], checks.as_int("wordvec_dim", s["wordvec_dim"]),
                checks.as_int("hidden_dim", s["hidden_dim"]), self.config.seed,
                bias_start=s["bias_start"],
                forget_bias=checks.as_number("forget_bias", s["forget_bias"]),
                embed_scale=checks.as_number("embed_scale", s["embed_scale"]),
            )  # fmt: skip
        except (KeyError, TypeError, OverflowError) as error:
            about = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{self.directory / SETTINGS_FILE}: {about}") from None


def read_run(run: str | PathLike[str]) -> Run:
    """Read the settings of a run.

    Parameters
    ----------
    run : path
        The run directory that ``fastrnn train`` or `Trainer` wrote.

    Returns
    -------
    Run

    Raises
    ------
    FileNotFoundError
        There is no such directory.
    ValueError
        It is no run directory, or its settings cannot be read.
    """
    directory = Path(run)
    path = directory / SETTINGS_FILE
    if not directory.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such run directory", str(directory))
    if not path.is_file():
        raise ValueError(f"{directory}: is no run directory; it has no {SETTINGS_FILE}")
    settings = read_json(path)
    if not isinstance(settings, dict) or "fastrnn" not in settings:
        raise ValueError(f"{directory}: is no run directory; {SETTINGS_FILE} is not fastrnn's")
    known = {field.name for field in fields(TrainConfig)}
    try:
        config = TrainConfig(**{name: v for name, v in settings.items() if name in known})
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from None
    data = settings.get("data")
    if data is not None and (not isinstance(data, str) or "\0" in data):
        raise ValueError(f"{path}: data is {data!r:.60}; expected a directory")
    place = None if data is None else Path(data)
    # Drawn scenes are in the run directory, which may have been moved.
    if place is not None and not place.is_dir() and (directory / "data").is_dir():
        place = directory / "data"
    return Run(directory, settings, config, place)


def read_training_data(
    directory: str | PathLike[str],
    *,
    raw_features: bool = False,
    max_train: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Read a captioning data set that is to be trained on.

    Parameters
    ----------
    directory : path
        In CS231n's layout.
    raw_features : bool, optional
        Read the features before PCA.
    max_train : int, optional
        Keep this many training captions, drawn without replacement: unlike `load_coco_data`'s,
        every one of them counts once an epoch.
    seed : int, optional
        Decides which.

    Returns
    -------
    dict
        As `fastrnn.coco_utils.load_coco_data` returns it; with ``val_references`` where there is a
        ``val_references.json`` beside the files: whole captions, not cut, without ``<UNK>``.

    Raises
    ------
    FileNotFoundError, OSError
        A file is missing or damaged.
    ValueError
        What is in the files does not fit, there are no training captions, or the vocabulary lacks
        ``<NULL>``, ``<START>`` or ``<END>``.
    """
    directory = Path(directory)
    data = read_captioning_directory(directory, pca_features=not raw_features)
    for word in ("<NULL>", "<START>", "<END>"):
        if word not in data["word_to_idx"]:
            raise ValueError(f"{directory / 'coco2014_vocab.json'}: has no {word}")
    captions = len(data["train_captions"])
    if not captions:
        raise ValueError(f"{directory / 'coco2014_captions.h5'}: 'train_captions' is empty")
    if max_train is not None and max_train < captions:
        rows = np.random.default_rng(seed).permutation(captions)[:max_train]
        for name in ("train_captions", "train_image_idxs"):
            data[name] = data[name][rows]
    references = directory / "val_references.json"
    if references.is_file():
        images = len(data["val_features"])
        data["val_references"] = read_references(references, data["val_urls"][:images].tolist())
    return data


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
    """Return the captions of every image of a part of the data, in words; some may have none.

    They are ``<split>_references`` of the data where there are such, else its captions decoded.
    """
    if data.get(f"{split}_references") is not None:
        return [list(texts) for texts in data[f"{split}_references"]]
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
        As `references_of` returns them; images without any are left out.
    true : sequence of bool, optional
        Whether each is true of its image, where that can be told.

    Returns
    -------
    dict
        ``images``, ``distinct_captions``, what `fastrnn.metrics.CaptionScorer.evaluate` gives
        (None without references), and ``true_share`` with `true`.
    """
    known = [(c, r) for c, r in zip(captions, references, strict=True) if r]
    metrics: dict[str, Any] = {"images": len(captions), "distinct_captions": len(set(captions))}
    metrics.update(dict.fromkeys(("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")))
    if known:
        metrics.update(CaptionScorer([r for _, r in known]).evaluate([c for c, _ in known]))
    if true is not None:
        metrics["true_share"] = sum(true) / max(len(true), 1)
    return metrics

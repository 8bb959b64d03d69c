"""The training loop: steps, records, validation and checkpoints, in that order."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, checks, runs
from .._core import runtime
from ..checkpoint import Checkpoint, describe_mismatch, read_newest_checkpoint
from ..classifiers.rnn import CaptioningRNN, CaptioningWorkspace
from ..data.references import references_file
from ..evaluation import loss_per_word, measure
from ..messages import warn
from ..runlock import RunLock
from ..vision.source import carry_source
from .config import TrainConfig
from .distributed import GradientSum, Ranks, weights_hash
from .learner import Learner
from .objectives import CaptionObjective, Gradients, Objective, RewardObjective, TrainingSet
from .plan import Plan
from .progress import (
    CAPTIONS,
    REWARDS,
    VALIDATION,
    Pace,
    Progress,
    is_watched,
    show_plan,
    show_time,
)
from .resuming import changed_config, check_lengths, check_same_run, fingerprint
from .run import read_run
from .saving import Saver
from .signals import Interrupted, Signals
from .validation import Monitor, Validation

_OWN_PARTS = ("_learner", "_monitor", "_saver", "_sums")
"""Attributes that are copied when a trainer is copied, because they have a state."""
_REFERENCES = "val_references"
"""Entry of the data, and a setting of runs whose data lack it although their directory has it."""
_TRIALS = 3
"""Trial steps, from which the time of a training is estimated."""
OnStep = Callable[["Trainer", dict[str, Any]], None]
OnValidation = Callable[["Trainer", dict[str, Any], list[str]], None]
OnEpoch = Callable[["Trainer", dict[str, Any]], None]


def seconds_since(began: float) -> float:
    """Return the time since `began`, a value of `time.perf_counter`.

    It is above 0, even if the clock is too coarse or has jumped, so that it can be divided by.
    """
    return max(time.perf_counter() - began, 1e-9)


@dataclass
class Sums:
    """Sums for the records of the history: nats and words, or rewards and captions.

    The first two are since the last record, the others over the epoch up to that record.
    """

    total: float = 0.0
    count: int = 0
    epoch_total: float = 0.0
    epoch_count: int = 0

    def add(self, total: float, count: int) -> None:
        """Add a step."""
        self.total += total
        self.count += count

    def end_record(self) -> None:
        """Move the sums since the last record to those of the epoch."""
        self.epoch_total += self.total
        self.epoch_count += self.count
        self.total, self.count = 0.0, 0


def _settings_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return where data were read from, as settings of a run; nothing if it is not known."""
    directory = getattr(data, "directory", None)
    if directory is None:
        return {}
    unread = _REFERENCES not in data and Path(directory, references_file("val")).is_file()
    return {
        "data": str(directory),
        "raw_features": getattr(data, "raw_features", False),
        "features_dtype": getattr(data, "features_dtype", None),
        "max_train": getattr(data, "max_train", None),
        **({_REFERENCES: False} if unread else {}),
    }


class Trainer:
    """Train a captioning model with Adam.

    Parameters
    ----------
    model : CaptioningRNN
        Its ``params`` are changed in place, and its `precision` is set to that of ``config``.
    data : mapping
        As `fastrnn.coco_utils.load_coco_data` returns it. If it has ``val_references``, a list of
        captions for each validation image, generated captions are compared with these instead of
        the validation captions. Without ``val_...`` there is no validation.
    config : TrainConfig, optional
        The settings. By default, those of ``TrainConfig()``.
    run : path, optional
        The run directory for settings, history, checkpoints and the best model (``model.npz``). It
        is created if it does not exist. If it is None, nothing is written.
    settings : mapping, optional
        Other settings to write to the run directory. Its entry ``data`` is the data directory,
        which evaluation, reports and resuming read; by default it is where `data` were read from,
        if they are what `fastrnn.coco_utils.load_coco_data` or `read_training_data` returned.
    on_step : callable, optional
        Called as ``on_step(trainer, record)`` after every step. The record has ``step``, ``epoch``,
        ``captions`` (seen so far), ``learning_rate`` and ``loss`` in nats per word. In reward
        epochs the loss is None and ``reward`` is the mean CIDEr-D of the captions drawn.
    on_validation : callable, optional
        Called as ``on_validation(trainer, metrics, captions)`` after every epoch's validation, with
        all metrics and the generated captions.
    on_epoch : callable, optional
        Called as ``on_epoch(trainer, record)`` after every epoch, with its record of the history,
        while its checkpoint is being written.
    callbacks : iterable of objects, optional
        Objects with any of the methods ``on_step``, ``on_validation`` and ``on_epoch``. They are
        called after the functions above, in the given order.
    ranks : Ranks, optional
        The MPI processes that train together, of which each has a trainer of the same model, data
        and config. Rank 0 alone writes to the `run` directory. See
        ``fastrnn.training.distributed.join()``, which returns them.

    Attributes
    ----------
    model : CaptioningRNN
        The trained model, with the moving average of the weights if there is one. It is updated
        before each validation, at each checkpoint, and when `fit` ends, even with an error.
    history : list of dict
        Every ``record_every`` steps: ``step``, ``epoch`` (a float), ``loss`` (nats per word over
        those steps, including regularisation; None in reward epochs), ``reward`` (the mean CIDEr-D
        of the captions drawn; only in reward epochs), ``learning_rate``. After every epoch:
        ``step``, ``epoch`` (an int), ``loss`` and ``reward`` (over the epoch), ``learning_rate``,
        ``val_loss``, ``val_perplexity``, ``val_bleu_4`` and ``val_cider`` (fractions; None if
        unknown), ``captions_per_second`` and ``seconds`` (of training only),
        ``validation_seconds``.
    callbacks : list
        As given; it may be changed.
    best : dict or None
        The best epoch so far: ``monitor``, ``value``, ``val_loss``, ``epoch``, ``step``.
    step, steps_per_epoch : int
    finished : bool

    Raises
    ------
    ValueError
        There is nothing to train on; data and model differ in their vocabulary or in the number of
        features; or the run directory contains a run already.
    TypeError
        The precision is ``'bfloat16'`` and the model is float64.

    Notes
    -----
    Training works on standardised features (mean 0, standard deviation 1), because Adam changes
    every weight by about the same amount, whatever the scale of its input. `model` reads the
    original features: the standardisation is part of its ``W_proj`` and ``b_proj``.

    Examples
    --------
    Train on a few drawn scenes, and caption two others:

    >>> import tempfile
    >>> from fastrnn.coco_utils import read_captioning_directory
    >>> from fastrnn.data.scenes.dataset import write_scenes
    >>> from fastrnn.decoding import greedy
    >>> from fastrnn.training import TrainConfig, Trainer, start_model
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_scenes(folder, num_train=100, num_val=20)
    ...     data = read_captioning_directory(folder)
    >>> model = start_model(data, hidden_dim=32, wordvec_dim=16)
    >>> trainer = Trainer(model, data, TrainConfig(epochs=5, batch_size=50, learning_rate=0.01))
    >>> history = trainer.fit()
    >>> [record["epoch"] for record in history if "val_loss" in record]
    [1, 2, 3, 4, 5]
    >>> len(greedy(model, data["val_features"][:2]).captions(model.idx_to_word))
    2
    """

    def __repr__(self) -> str:
        total = self.steps_per_epoch * self.config.all_epochs
        where = "" if self.run is None else f", run={str(self.run)!r}"
        return (
            f"{type(self).__name__}({self.model!r}, {len(self.data['train_captions']):,} captions, "
            f"{self.config!r}{where}, step {self.step:,} of {total:,})"
        )

    def __init__(
        self,
        model: CaptioningRNN,
        data: Mapping[str, Any],
        config: TrainConfig | None = None,
        *,
        run: str | os.PathLike[str] | None = None,
        settings: Mapping[str, Any] | None = None,
        on_step: OnStep | None = None,
        on_validation: OnValidation | None = None,
        on_epoch: OnEpoch | None = None,
        callbacks: Iterable[Any] = (),
        ranks: Ranks | None = None,
    ) -> None:
        if config is not None and not isinstance(config, TrainConfig):
            raise TypeError(
                f"config is {type(config).__name__}; expected a TrainConfig, such as "
                "TrainConfig(epochs=5)"
            )
        self.model: CaptioningRNN = model
        self.data: Mapping[str, Any] = data
        self.config: TrainConfig = config or TrainConfig()
        self.settings: dict[str, Any] = {**_settings_of(data), **(settings or {})}
        self.history: list[dict[str, Any]] = []
        self.step: int = 0
        self.on_step: OnStep | None = on_step
        self.on_validation: OnValidation | None = on_validation
        self.on_epoch: OnEpoch | None = on_epoch
        self.callbacks: list[Any] = [*callbacks]

        captions = data["train_captions"]
        if not len(captions):
            raise ValueError(f"train_captions has shape {captions.shape}; expected at least one")
        mismatch = describe_mismatch(model, data)
        if mismatch:
            raise ValueError(mismatch)
        checks.is_bfloat16(self.config.precision, model.params["W_embed"].dtype)
        model.precision = self.config.precision
        if ranks is not None and not ranks.is_root:
            run = None
        if run is not None and runs.checkpoint_steps(run):
            raise ValueError(
                f"run is {run}, which has checkpoints; expected a new directory, or use "
                "Trainer.resume"
            )
        self._saver = Saver(None if run is None else Path(run).absolute())
        self._training = TrainingSet(data, model, self.config.batch_size)
        self.steps_per_epoch: int = self._training.steps_per_epoch
        runtime.trim_memory()  # reading and measuring the data took large temporary arrays
        self._learner = Learner(model, self._training.mean, self._training.deviation, self.config)
        self._workspace = CaptioningWorkspace()
        self._ranks = ranks
        self._sum: GradientSum | None = None
        if ranks is not None:
            self._sum = GradientSum(ranks, self._learner.network.params)
            self._workspace.grads = self._sum.grads
        shared = (
            self._training, self._learner.network, self.config, self._workspace, self._sum
        )  # fmt: skip
        self._plan = Plan(
            CaptionObjective(*shared), RewardObjective(*shared), self.config.epochs,
            self.steps_per_epoch,
        )  # fmt: skip
        self._monitor = Monitor(self.config.monitor)
        self._validation: Validation | None = None
        self._sums = Sums()
        self._seconds = 0.0  # of training, in this epoch
        self._resumed = False
        self._stopping = False
        self._signals: Signals | None = None  # while `fit` catches them
        self._agreed: int | None = None  # the signal that any rank has got, or 0 to stop
        self._advanced = False  # whether `fit` has taken a step
        self._checksums: dict[str, int] | None = None
        self._progress: Progress | None = None  # while `fit` shows it

    # -- the loop

    def fit(self, verbose: bool | None = None) -> list[dict[str, Any]]:
        """Train until all epochs are done or patience has run out.

        After the first SIGINT or SIGTERM the step is finished, a checkpoint is written and
        `Interrupted` is raised; the second signal raises it at once.

        Parameters
        ----------
        verbose : bool, optional
            Whether to print the data, the model, the plan and about how long it takes, and then
            to show the progress as ``fastrnn train`` does: by a bar in a terminal or a notebook,
            and by a line after every epoch. The default is to do so where a person watches, in a
            terminal or a notebook. The time is estimated from a few trial steps, which change
            nothing.

        Returns
        -------
        list of dict
            The history.

        Raises
        ------
        FloatingPointError
            The loss is not finite.
        Interrupted
            A signal came.
        RunInUseError
            Another process trains in the run directory.
        OSError
            The run directory cannot be written; the newest checkpoint in it is complete.
        """
        self._stopping = self._advanced = False
        self._agreed = None
        with self.lock(), Signals(lambda: self.step) as signals:
            self._signals = signals
            try:
                if self._ranks is not None:
                    self._start_together(self._ranks)
                if self.run is not None:
                    self._open_run()
                shows = is_watched() if verbose is None else verbose
                if shows and (self._ranks is None or self._ranks.is_root):
                    self._progress = self._show(lambda: signals.caught is not None)
                if self._ranks is not None:
                    self._ranks.meet()
                while not (self.finished or self._stop_asked is not None):
                    self._advance()
                self._saver.settle()
                stop = self._stop_asked
                unsaved = self.run is not None and self._saver.saved_step != self.step
                if stop is not None and unsaved:
                    self.save()
                if stop:
                    error = Interrupted(stop, self.step, self.run)
                    if self._ranks is not None:
                        self._ranks.raise_together(error)
                    raise error
                self._end_run()
            finally:
                self._signals = None
                if self._progress is not None:
                    self._progress.close()
                    self._progress = None
                self._learner.derive()
                self._saver.settle()
        return self.history

    @property
    def _asked_here(self) -> int | None:
        """The signal that this process has got, 0 if a callback wants to stop, else None."""
        caught = None if self._signals is None else self._signals.caught
        return caught or (0 if self._stopping else None)

    @property
    def _stop_asked(self) -> int | None:
        """As `_asked_here`; of several ranks, what they know after the same step."""
        return self._asked_here if self._ranks is None else self._agreed

    def _start_together(self, ranks: Ranks) -> None:
        """Check that all ranks do the same training; start from rank 0's weights."""
        vocabulary = weights_hash({"": np.array(list(self.model.word_to_idx.items()))})
        shapes = {name: (w.shape, w.dtype.str) for name, w in self.model.params.items()}
        ranks.agree(
            {
                "the version of fastrnn": __version__,
                "the version of NumPy": np.__version__,
                "the instruction set (FASTRNN_MAX_ISA)": runtime.isa(),
                **dataclasses.asdict(self.config),
                "cell": self.model.cell_type,
                **{f"the shape of {name}": shape for name, shape in shapes.items()},
                "the vocabulary's hash": vocabulary,
                **{f"the checksum of {name}": v for name, v in self._fingerprint().items()},
                "the step": self.step,
            }
        )
        self._learner.share(ranks.broadcast)

    def _show(self, stopped: Callable[[], bool]) -> Progress:
        """Print the plan and about how long it takes; return what shows the progress."""
        show_plan(self)
        pace = self._try_out(stopped) if self._ranks is None else Pace()
        left = pace.left(self.config, self.steps_per_epoch, self.step)
        if left and not stopped():
            show_time(left)
        return Progress(self, pace)

    def _try_out(self, stopped: Callable[[], bool]) -> Pace:
        """Measure what is to come on a few steps and a validation, which change nothing."""
        pace = Pace()
        first, last = (
            n * self.steps_per_epoch for n in (self.config.epochs, self.config.all_epochs)
        )
        starts = {CAPTIONS: self.step, REWARDS: max(self.step, first)}
        for what, step in starts.items():
            if step >= (first if what == CAPTIONS else last) or self.finished or stopped():
                continue
            objective = self._plan.objective(step)
            batches = objective.batches(step // self.steps_per_epoch)[: _TRIALS + 1]
            began = time.perf_counter()
            for number, batch in enumerate(batches):
                before = time.perf_counter()
                objective.gradients(batch, step)
                if number or len(batches) == 1:  # the first one prepares what others use
                    pace.add(what, seconds_since(before))
                if stopped() or (number and seconds_since(began) > 1):
                    break
        if not (self.finished or stopped()):
            before = time.perf_counter()
            self._measure()
            pace.add(VALIDATION, seconds_since(before))
        return pace

    def _advance(self) -> None:
        """Take a step, then validate and save if it is time for that."""
        self._saver.settle(wait=False)
        began = time.perf_counter()
        rate = self._take_step()
        self._advanced = True
        self._seconds += seconds_since(began)
        ended = self.step % self.steps_per_epoch == 0
        record = self._end_epoch(rate) if ended else None
        every = self.config.save_every
        saves = ended or (every and self.step % every == 0)
        if self.run is not None and saves:
            self._saver.save_in_background(self._checkpoint(), self._all_settings())
        if record is not None:
            self._tell("on_epoch", record)
        if self._ranks is not None and saves:
            if ended:
                self._learner.check_same(self._ranks, self.step)
            self._ranks.meet()  # rank 0 may have had to wait for the disk

    def _take_step(self) -> float:
        """Take a step; return its learning rate."""
        step = self.step
        objective = self._plan.objective(step)
        rate = self.config.rate(step, self.steps_per_epoch)
        if self._plan.starts_rewards(step):
            self._learner.restart()
        found = objective.gradients(self._plan.batch(step), step)
        if self._sum is not None:
            found, self._agreed = self._sum.finish(found, self._asked_here)
        if not math.isfinite(found.loss):
            error = FloatingPointError(
                f"the loss is {found.loss} at step {step + 1}: either the features are not finite "
                f"or the learning rate, {rate:.3g}, is too high"
            )
            if self._ranks is not None:
                self._ranks.raise_together(error)
            raise error
        self._learner.update(found.grads, rate, step, weight_decay=objective.weight_decay)
        self.step += 1
        self._record(objective, found, rate)
        return rate

    def _record(self, objective: Objective, found: Gradients, rate: float) -> None:
        """Add a step to the sums and, every `record_every` steps, a record to the history."""
        progress = self.step / self.steps_per_epoch
        self._sums.add(found.total, found.count)
        if self.step % self.config.record_every == 0 or self.step % self.steps_per_epoch == 0:
            self.history.append(
                {
                    "step": self.step,
                    "epoch": progress,
                    **objective.summary(self._sums.total, self._sums.count),
                    "learning_rate": rate,
                }
            )
            self._sums.end_record()
        seen = self._plan.progress(self.step - 1) * len(self._training.words)
        self._tell(
            "on_step",
            {
                "step": self.step,
                "epoch": progress,
                "captions": round(seen),
                "learning_rate": rate,
                **objective.summary(found.total, found.count),
            },
        )

    def _end_epoch(self, rate: float) -> dict[str, Any]:
        """Validate; add the epoch's record to the history, and return it."""
        self._learner.derive()
        began = time.perf_counter()
        metrics, generated = self._measure()
        seconds = seconds_since(began)
        self._tell("on_validation", metrics, generated)
        objective = self._plan.objective(self.step - 1)
        captions = self._plan.captions_per_epoch(self.step - 1)
        record = {
            "step": self.step,
            "epoch": self.step // self.steps_per_epoch,
            **objective.summary(self._sums.epoch_total, self._sums.epoch_count),
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
        self._sums, self._seconds = Sums(), 0.0
        assert self._validation is not None  # the validation above made it
        self._monitor.compare(record, self._validation, minimises_loss=objective.minimises_loss)
        return record

    def _measure(self) -> tuple[dict[str, Any], list[str]]:
        """Validate the model; return the metrics and the captions."""
        if self._validation is None:
            self._validation = Validation(self.data, self.config, self._ranks)
        return self._validation.measure(self.model, self._workspace)

    def _tell(self, event: str, *about: Any) -> None:
        """Call the callbacks of an event."""
        objects = (*self.callbacks, self._progress)
        for callback in (getattr(self, event), *(getattr(c, event, None) for c in objects)):
            if callback is not None:
                callback(self, *about)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or patience has run out."""
        if self.step >= self.config.all_epochs * self.steps_per_epoch:
            return True
        patience = self.config.patience
        return bool(patience) and self._monitor.epochs_without_gain >= patience

    @property
    def best(self) -> dict[str, Any] | None:
        """The best epoch so far."""
        return self._monitor.best

    def stop(self) -> None:
        """Let `fit` return after this step and its checkpoint; callbacks may call it."""
        self._stopping = True

    def validate(self, limit: int | None = None) -> float | None:
        """Return the loss per word of `model` over the validation captions.

        Parameters
        ----------
        limit : int, optional
            Use this many captions, evenly spread; all of them by default.

        Returns
        -------
        float or None
            In nats per word; None if there are no captions.
        """
        return loss_per_word(self.model, self.data, limit=limit, workspace=self._workspace)

    def evaluate(self, split: str = "val", **options: Any) -> dict[str, Any]:
        """Caption the images of a split with `model` and measure the captions.

        `model` has the newest weights. `Run.evaluate` measures the best model, as ``fastrnn
        evaluate`` does.

        Parameters
        ----------
        split : {'val', 'train'}, optional
        **options
            Those of `fastrnn.evaluation.measure`, such as ``beam``, 3 by default.

        Returns
        -------
        dict
            BLEU, ROUGE-L, CIDEr, perplexity and others, see `fastrnn.evaluation.measure`.

        Examples
        --------
        .. code-block:: python

            trainer.fit()
            print(trainer.evaluate(beam=1)["cider"])  # 0.4987
        """
        return measure(self.model, self.data, split, **options)

    # -- the run directory

    @property
    def run(self) -> Path | None:
        """The run directory."""
        return self._saver.run

    @run.setter
    def run(self, run: str | os.PathLike[str] | None) -> None:
        self._saver.run = None if run is None else Path(run)

    def lock(self) -> AbstractContextManager[Any]:
        """Return a context manager that keeps other trainers out of the run directory.

        `fit` and `save` use it themselves. Use it around several calls to keep other trainers out
        between them.
        """
        return self._saver.lock()

    def use_lock(self, lock: RunLock) -> None:
        """Train in the run directory of a lock, which the caller may hold already."""
        self._saver.use_lock(lock)

    def save(self) -> Path:
        """Write a checkpoint of this step, the history, and the model if it is the best.

        Returns
        -------
        Path
            The checkpoint.

        Raises
        ------
        ValueError
            The trainer has no run directory, or another trainer has saved a later step there.
        OSError
            The directory cannot be written; older checkpoints are as they were.
        """
        return self._saver.save(self._checkpoint(), self._all_settings())

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy or a pickle; it prepares its validation data again."""
        own = {name: copy.copy(self.__dict__[name]) for name in _OWN_PARTS}
        fresh = dict.fromkeys(("_validation", "_progress", "_signals"))
        return {**self.__dict__, **own, **fresh}

    def _open_run(self) -> None:
        run, saver = self.run, self._saver
        assert run is not None
        saver.open(self.step)
        rows = getattr(self.data, "train_rows", None)
        if rows is not None:
            runs.write_rows(run, rows)
        runs.write_settings(run, self._all_settings(), dataclasses.asdict(self.config))
        directory = self.settings.get("data")
        if isinstance(directory, (str, os.PathLike)):
            carry_source(directory, run, raw=bool(self.settings.get("raw_features")))
        saver.write_again()
        saved = self._resumed and self.step in runs.checkpoint_steps(run)
        saver.saved_step = self.step if saved else -1
        if not saved:
            self.save()
        runs.write_history(run, self.history)
        if self.best is not None:
            saver.restore_best(self.best)

    def _end_run(self) -> None:
        """Write that the training has finished, unless a caller measures the model before that."""
        run, history = self.run, runs.epoch_records(self.history)
        if run is None or not (self.finished and history and self._saver.is_last):
            return
        if not self._advanced and (run / runs.METRICS_FILE).exists():
            return  # those of the same model
        speeds = [record["captions_per_second"] for record in history]
        seconds = [record["seconds"] for record in history]
        runs.write_metrics(
            run,
            {
                "epoch": self.best and self.best["epoch"],
                "captions_per_second": float(np.average(speeds, weights=seconds)),
            },
        )

    def _all_settings(self) -> dict[str, Any]:
        """Return the settings of the run, except for the configuration of the training."""
        params = self.model.params
        return {
            "data": None,
            **self.settings,
            "cell": self.model.cell_type,
            "hidden_dim": params["W_proj"].shape[1],
            "wordvec_dim": params["W_embed"].shape[1],
            "threads": runtime.get_threads(),
            "isa": runtime.isa(),
        }

    def _checkpoint(self) -> Checkpoint:
        """Return the present state. It shares memory with the trainer."""
        return self._learner.to_checkpoint(
            {
                "step": self.step,
                "epoch": self.step / self.steps_per_epoch,
                "history": self.history,
                "sums": list(dataclasses.astuple(self._sums)),
                "seconds": self._seconds,
                "best": self.best,
                "epochs_without_gain": self._monitor.epochs_without_gain,
                "config": dataclasses.asdict(self.config),
                "data": self._fingerprint(),
            }
        )

    def _fingerprint(self) -> dict[str, int]:
        if self._checksums is None:
            self._checksums = fingerprint(self.data)
        return self._checksums

    # -- resuming

    @classmethod
    def resume(
        cls,
        run: str | os.PathLike[str],
        data: Mapping[str, Any] | None = None,
        *,
        on_step: OnStep | None = None,
        on_validation: OnValidation | None = None,
        on_epoch: OnEpoch | None = None,
        callbacks: Iterable[Any] = (),
        ranks: Ranks | None = None,
        restart_schedule: bool = False,
        **changes: Any,
    ) -> Trainer:
        """Resume a run from its newest complete checkpoint; results are the same to the bit.

        Parameters
        ----------
        run : path
            The run directory.
        data : mapping, optional
            The data that the run was started with; by default they are read from the data directory
            in its settings.
        on_step, on_validation, on_epoch, callbacks, ranks
            As for `Trainer`; the number of ranks may have changed.
        restart_schedule : bool, optional
            Start the schedule of the learning rate again, at its full rate, over the epochs that
            are left (`TrainConfig.restart_epoch`). A cosine cannot get more epochs without it: it
            falls to 0 over the number of epochs that the run was started with. Before the first
            step it has no effect.
        **changes
            New values of ``epochs``, ``reward_epochs``, ``patience``, ``save_every`` or
            ``keep_last``.

        Returns
        -------
        Trainer
            Call its `fit`.

        Raises
        ------
        FileNotFoundError
            There is no such directory.
        ValueError
            It is not a run directory, every checkpoint is damaged, `data` are not the run's, or a
            change would make it another run or let the learning rate rise again.

        Warns
        -----
        UserWarning
            A newer checkpoint is damaged.
        """
        found = read_run(run)
        changed_config(found, changes)  # an error, before anything large is read
        newest = max(runs.checkpoint_steps(run), default=-1)
        checkpoint, damaged = read_newest_checkpoint(run)
        restart = checkpoint.about["epoch"] if checkpoint and restart_schedule else None
        config = changed_config(found, changes, restart)
        if data is None:
            data = found.read_data()
        directory = getattr(data, "directory", None)
        known = found.settings.get(_REFERENCES)
        if known is False and _REFERENCES in data:
            # Validation compares with the same references as before.
            data = {name: values for name, values in data.items() if name != _REFERENCES}
        if checkpoint is None and "bias_start" not in found.settings:
            raise ValueError(f"{run}: has no checkpoint to resume from; start a new run")
        model = found.start_model(data) if checkpoint is None else checkpoint.model
        for line in damaged:
            step = checkpoint.about["step"] if checkpoint else 0
            warn(f"{line}; resuming from step {step}")
        own = {field.name for field in dataclasses.fields(TrainConfig)}
        settings = {name: v for name, v in found.settings.items() if name not in own}
        if directory is not None:
            settings["data"] = str(directory)  # they may have moved
        trainer = cls(
            model, data, config, settings=settings,
            on_step=on_step, on_validation=on_validation, on_epoch=on_epoch, callbacks=callbacks,
            ranks=ranks,
        )  # fmt: skip
        if ranks is None or ranks.is_root:
            trainer.run = found.directory.absolute()
        trainer._resumed = True
        trainer._saver.newest_known = newest
        if checkpoint is not None:
            trainer._restore(checkpoint, found.directory)
        check_lengths(config, found.config, trainer.step, trainer.steps_per_epoch)
        return trainer

    def _restore(self, checkpoint: Checkpoint, run: Path) -> None:
        about = checkpoint.about
        check_same_run(about, self.config, self._fingerprint(), self.steps_per_epoch, run)
        first = self.config.epochs * self.steps_per_epoch
        step = about["step"]
        # Adam starts with a new state in the reward epochs.
        self._learner.restore(checkpoint, step - first if step > first else step)
        self.step = step
        self.history = about["history"]
        self._monitor.best = about["best"]
        self._monitor.epochs_without_gain = about["epochs_without_gain"]
        self._sums = Sums(*about["sums"])
        self._seconds = about["seconds"]

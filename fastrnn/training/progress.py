"""What a person sees during training: the plan, then a bar or lines."""

from __future__ import annotations

import io
import math
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._core import runtime
from ..classifiers.rnn import CaptioningRNN
from ..evaluation import shown_perplexity
from ..terminal import columns, duration, fold, in_notebook, is_terminal, say_facts, shown_path
from .config import TrainConfig

if TYPE_CHECKING:
    from .trainer import Trainer

CAPTIONS, REWARDS, VALIDATION = "captions", "rewards", "validation"
"""What `Pace` measures: a step on captions, a step with rewards, and a validation."""
_MOMENT = 10
"""Seconds from which on the time of a training is estimated as a number."""
_FORMS = (
    (84, "{desc} {percentage:3.0f}%|{bar}| {rate_fmt}, {elapsed} gone, {left} left{postfix}"),
    (58, "{percentage:3.0f}%|{bar}| {rate_fmt}, {left} left{postfix}"),
    (38, "{percentage:3.0f}%|{bar}| {left} left{postfix}"),
    (0, "{percentage:3.0f}% {left} left{postfix}"),
)
"""The bar from a number of columns on: the time left and the loss stay to the last."""


def is_watched() -> bool:
    """Return whether a person seems to read what is printed: in a terminal or in a notebook."""
    return is_terminal(sys.stdout) or in_notebook()


def model_size(model: CaptioningRNN) -> str:
    """Return the cell and the sizes of a model in words."""
    weights = sum(w.size for w in model.params.values())
    hidden, wordvec = model.params["W_proj"].shape[1], model.params["W_embed"].shape[1]
    size = f"{weights / 1e6:.1f}M" if weights >= 1e6 else f"{weights / 1e3:.0f}k"
    cell = model.cell_type.upper()
    return f"{cell}, hidden {hidden}, word vectors {wordvec}, {size} weights"


def describe_plan(config: TrainConfig, steps_per_epoch: int, step: int = 0) -> str:
    """Return the epochs and the steps of a training in words.

    Parameters
    ----------
    config : TrainConfig
    steps_per_epoch : int
    step : int, optional
        The number of steps that are done.
    """
    epochs, total = config.all_epochs, config.all_epochs * steps_per_epoch
    text = _count(config.epochs, "epoch")
    if config.reward_epochs:
        text += f" on captions, then {config.reward_epochs} with rewards"
    text += f": {epochs:,} x {steps_per_epoch:,} = {_count(total, 'step')}"
    if step:
        text += f", {step:,} of them done"
    if config.patience:
        text += f"; it stops after {_count(config.patience, 'epoch')} without improvement"
    return text


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


class Pace:
    """How long steps and validations take, and so how long a training will take.

    Later measurements count more, so that the pace follows the machine.
    """

    _LONGEST = 200
    """Measurements that a mean is taken over, about."""

    def __init__(self) -> None:
        self._means: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, what: str, seconds: float) -> None:
        """Add a measurement; a clock that jumped back counts as no time."""
        count = self._counts[what] = min(self._counts.get(what, 0) + 1, self._LONGEST)
        mean = self._means.get(what, 0.0)
        self._means[what] = mean + (max(seconds, 0.0) - mean) / count

    def left(self, config: TrainConfig, steps_per_epoch: int, step: float) -> float:
        """Return the seconds that a training still needs after some steps."""
        first = config.epochs * steps_per_epoch
        last = config.all_epochs * steps_per_epoch
        ahead = {
            CAPTIONS: max(first - step, 0),
            REWARDS: last - max(first, step),
            VALIDATION: config.all_epochs - step // steps_per_epoch,
        }
        # What has not been measured yet is left out.
        return sum(number * self._means.get(what, 0.0) for what, number in ahead.items())


class Progress:
    """Shows a training: its plan, then a bar where a person watches, and otherwise lines.

    Without a terminal or a notebook, a line is printed after every epoch and every 30 seconds.

    Parameters
    ----------
    trainer : Trainer
    pace : Pace
        What has been measured so far.
    """

    EVERY = 30.0

    def __init__(self, trainer: Trainer, pace: Pace) -> None:
        captions = len(trainer.data["train_captions"])
        self._trainer, self._pace = trainer, pace
        self._epochs = trainer.config.all_epochs
        self._began = self._spoke = self._stepped = time.perf_counter()
        self._start = self._seen = round(captions * trainer.step / trainer.steps_per_epoch)
        self._kind, self._value = "loss", math.nan
        self._bar: Any = None
        if is_terminal(sys.stderr) or in_notebook():
            self._bar = _make_bar(self.left, captions * self._epochs, self._start)

    def left(self) -> float:
        """Return the seconds that the training still needs, about."""
        trainer = self._trainer
        return self._pace.left(trainer.config, trainer.steps_per_epoch, trainer.step)

    def on_step(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        """Move the bar, or print a line if the last one is old."""
        now = time.perf_counter()
        kind = _kind(record)
        self._pace.add(CAPTIONS if kind == "loss" else REWARDS, now - self._stepped)
        self._stepped = now
        new, self._seen = record["captions"] - self._seen, record["captions"]
        if kind != self._kind or math.isnan(self._value):
            self._kind, self._value = kind, record[kind]
        self._value += 0.05 * (record[kind] - self._value)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{kind} {self._value:.3f}", refresh=False)
            self._bar.update(new)
        elif now - self._spoke > self.EVERY:
            speed = (self._seen - self._start) / max(now - self._began, 1e-9)
            self._say(
                f"epoch {record['epoch']:.2f}/{self._epochs}  {kind} {self._value:.3f}"
                f"  {speed:,.0f} captions/s"
            )

    def on_epoch(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        """Print the figures of an epoch."""
        self._pace.add(VALIDATION, record["validation_seconds"])
        text = f"epoch {record['epoch']:>{len(str(self._epochs))}}/{self._epochs}"
        text += f"  {_kind(record)} {record[_kind(record)]:.3f}"
        if record["val_loss"] is not None:
            text += f"  validation {record['val_loss']:.3f}"
            text += f"  perplexity {shown_perplexity(record['val_perplexity'])}"
        for name, value in (("BLEU-4", record["val_bleu_4"]), ("CIDEr", record["val_cider"])):
            if value is not None:
                text += f"  {name} {100 * value:.1f}"
        self._say(f"{text}  {record['captions_per_second']:,.0f} captions/s")
        self._stepped = time.perf_counter()  # validation is not a part of the next step

    def _say(self, text: str) -> None:
        self._spoke = time.perf_counter()
        if self._bar is None:
            text += f"  {duration(self.left())} left"
        line = fold(text, columns(sys.stdout), indent=2)
        if is_terminal(getattr(self._bar, "fp", None)):
            self._bar.write(line)  # above the bar
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


def show_plan(trainer: Trainer) -> None:
    """Print what is trained on what, where, and for how many steps."""
    data, model, settings = trainer.data, trainer.model, trainer.settings
    directory = settings.get("data")
    place = (
        "drawn scenes: "
        if settings.get("drawn")
        else f"{shown_path(directory)}: "
        if directory
        else ""
    )
    captions = f"{len(data['train_captions']):,} captions of {len(data['train_features']):,} images"
    say_facts(
        {
            "data": f"{place}{captions}, {model.params['W_proj'].shape[0]} features",
            "words": f"{len(data['word_to_idx']):,}",
            "model": model_size(model),
            "runs on": f"{runtime.isa()}, threads: {runtime.get_threads()}",
            "plan": describe_plan(trainer.config, trainer.steps_per_epoch, trainer.step),
        }
    )


def show_time(seconds: float) -> None:
    """Print how long a training will take, before it starts."""
    about = f"about {duration(seconds)}" if seconds >= _MOMENT else "a few seconds"
    say_facts({"time": f"{about}, estimated from a few trial steps"})


def _kind(record: Mapping[str, Any]) -> str:
    """Return which training metric a record has: the loss or the reward."""
    return "loss" if record["loss"] is not None else "reward"


def _make_bar(left: Any, total: int, initial: int) -> Any:
    """Return a bar that counts captions, on standard error or in the output of a cell."""
    # Imported here, because it would add a tenth to the start time of other commands.
    from tqdm import tqdm

    class Bar(tqdm):
        @property
        def format_dict(self) -> dict[str, Any]:
            found = super().format_dict
            width = found["ncols"] or 80
            form = next(form for least, form in _FORMS if width >= least)
            return {**found, "bar_format": form, "left": duration(left())}

    class CellBar(Bar):
        """A bar in an output of its own, of which a saved notebook keeps the last state."""

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            handle.update({"text/plain": str(self) if msg is None else msg}, raw=True)

    about = {
        "total": total, "initial": initial, "unit": " captions", "unit_scale": True,
        "smoothing": 0.05, "leave": False, "desc": "training",
    }  # fmt: skip
    if not in_notebook():
        return Bar(dynamic_ncols=True, **about)
    from IPython.display import display

    handle = display({"text/plain": ""}, raw=True, display_id=True)
    return CellBar(file=io.StringIO(), ncols=80, mininterval=0.5, **about)

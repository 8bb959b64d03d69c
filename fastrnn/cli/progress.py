"""Progress output during training."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from ..classifiers.rnn import CaptioningRNN
from ..training import Trainer, seconds_since


def duration(seconds: float) -> str:
    """Return a duration as minutes and seconds, with hours if there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def model_size(model: CaptioningRNN) -> str:
    """Return the cell and the sizes of a model in words."""
    weights = sum(w.size for w in model.params.values())
    hidden, wordvec = model.params["W_proj"].shape[1], model.params["W_embed"].shape[1]
    size = f"{weights / 1e6:.1f}M" if weights >= 1e6 else f"{weights / 1e3:.0f}k"
    cell = model.cell_type.upper()
    return f"{cell}, hidden {hidden}, word vectors {wordvec}, {size} weights"


class Progress:
    """Callbacks of a trainer: a progress bar on a terminal, otherwise lines.

    Without a terminal, a line is printed after every epoch and every 30 seconds.
    """

    EVERY = 30.0

    def __init__(self, trainer: Trainer) -> None:
        captions = len(trainer.data["train_captions"])
        self._epochs = trainer.config.all_epochs
        self._total = captions * self._epochs
        self._began = self._spoke = time.perf_counter()
        self._start = self._seen = round(captions * trainer.step / trainer.steps_per_epoch)
        self._kind, self._value = "loss", math.nan
        self._bar: Any = None
        if sys.stderr.isatty():
            # Imported here, because it would add a tenth to the start time of other commands.
            from tqdm import tqdm

            form = (
                "{desc} {percentage:3.0f}%|{bar}| {rate_fmt}, {elapsed} gone, {remaining} left"
                "{postfix}"
            )
            self._bar = tqdm(
                total=self._total, unit=" captions", unit_scale=True, dynamic_ncols=True,
                bar_format=form, smoothing=0.05, leave=False, desc="training",
                initial=self._start,
            )  # fmt: skip

    def on_step(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        """Move the bar, or print a line if the last one is old."""
        new, self._seen = record["captions"] - self._seen, record["captions"]
        kind = _kind(record)
        if kind != self._kind or math.isnan(self._value):
            self._kind, self._value = kind, record[kind]
        self._value += 0.05 * (record[kind] - self._value)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{kind} {self._value:.3f}", refresh=False)
            self._bar.update(new)
        elif time.perf_counter() - self._spoke > self.EVERY:
            self._say(f"epoch {record['epoch']:.2f}/{self._epochs}  {kind} {self._value:.3f}")

    def on_epoch(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        """Print the figures of an epoch."""
        text = f"epoch {record['epoch']:>{len(str(self._epochs))}}/{self._epochs}"
        text += f"  {_kind(record)} {record[_kind(record)]:.3f}"
        if record["val_loss"] is not None:
            text += f"  validation {record['val_loss']:.3f}"
            text += f"  perplexity {record['val_perplexity']:.2f}"
        for name, value in (("BLEU-4", record["val_bleu_4"]), ("CIDEr", record["val_cider"])):
            if value is not None:
                text += f"  {name} {100 * value:.1f}"
        text += f"  {record['captions_per_second']:,.0f} captions/s"
        if self._bar is not None:
            self._bar.write(text)
        else:
            self._say(text, rate=False)

    def _say(self, text: str, rate: bool = True) -> None:
        self._spoke = time.perf_counter()
        seconds = seconds_since(self._began)
        done = max(self._seen - self._start, 1)
        if rate:
            text += f"  {done / seconds:,.0f} captions/s"
        left = seconds / done * (self._total - self._seen)
        print(f"{text}  {duration(left)} left", flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


def _kind(record: Mapping[str, Any]) -> str:
    """Return which training metric a record has: the loss or the reward."""
    return "loss" if record["loss"] is not None else "reward"

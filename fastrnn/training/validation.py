"""Validation after each epoch, and which epoch is the best so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..checks import ArgumentError
from ..classifiers.rnn import CaptioningRNN, CaptioningWorkspace
from ..evaluation import (
    Evaluator,
    evenly_spread,
    longest_caption,
    loss_per_word,
    perplexity,
    references_of,
)
from ..messages import warn
from .config import TrainConfig


class Validation:
    """The validation data of a training, prepared once.

    Parameters
    ----------
    data : mapping
        As `fastrnn.coco_utils.load_coco_data` returns it.
    config : TrainConfig

    Attributes
    ----------
    evaluator : Evaluator or None
        Of the images that are captioned; None if there are none.
    """

    def __init__(self, data: Mapping[str, Any], config: TrainConfig) -> None:
        self._data, self._config = data, config
        self.evaluator: Evaluator | None = None
        if not config.val_images or not len(data.get("val_features", ())):
            return
        references = references_of(data)
        known = np.flatnonzero([bool(texts) for texts in references])
        if len(known):
            images = known[evenly_spread(len(known), config.val_images)]
            self.evaluator = Evaluator(data, images=images, references=references)

    def measure(
        self, model: CaptioningRNN, workspace: CaptioningWorkspace
    ) -> tuple[dict[str, Any], list[str]]:
        """Return the metrics (None if unknown), and the captions of the validation images."""
        loss, limit = None, self._config.val_captions
        if limit:
            loss = loss_per_word(model, self._data, limit=limit, workspace=workspace)
        metrics: dict[str, Any] = {"bleu_4": None, "cider": None}
        captions: list[str] = []
        if self.evaluator is not None:
            captions = self.evaluator.caption(model, longest_caption(self._data))
            metrics.update(self.evaluator.score(captions, rouge=False))
        metrics["loss"], metrics["perplexity"] = loss, perplexity(loss)
        return metrics, captions

    @property
    def missing(self) -> str:
        """The reason why a metric is unknown."""
        if self.evaluator is None:
            return "no captions to compare with"
        return self.evaluator.missing or "it is not among the metrics"


class Monitor:
    """Remembers the best epoch, and counts the epochs without improvement since.

    Parameters
    ----------
    metric : {'cider', 'bleu_4', 'loss'}
        The metric that is compared. If it is unknown, the loss is compared; if that is unknown
        too, every epoch counts as an improvement.

    Attributes
    ----------
    best : dict or None
        ``monitor`` (the metric that decided), ``value``, ``val_loss``, ``epoch`` and ``step``.
    epochs_without_gain : int
    """

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._warned = False
        self.best: dict[str, Any] | None = None
        self.epochs_without_gain: int = 0

    def compare(
        self, record: Mapping[str, Any], validation: Validation, *, minimises_loss: bool
    ) -> None:
        """Compare an epoch's record with the best epoch.

        Parameters
        ----------
        record : mapping
            The epoch's record of the history.
        validation : Validation
            Says why a metric is unknown.
        minimises_loss : bool
            Whether the epoch was trained to minimise the loss. If not, and the loss is compared,
            the epoch counts as an improvement.

        Raises
        ------
        ArgumentError
            Earlier epochs were compared by a metric that cannot be computed now.
        """
        metric, value = self._metric, record[f"val_{self._metric}"]
        if value is None and metric != "loss":
            metric, value = "loss", record["val_loss"]
            if value is not None and validation.evaluator is not None:
                self._warn(validation)
        if self.best is not None and self.best["monitor"] != metric:
            reason = f" ({validation.missing})"
            raise ArgumentError(
                "monitor",
                f"is {metric!r}; expected {self.best['monitor']!r}, which earlier epochs were "
                f"compared by, but it cannot be computed now{reason}",
            )
        if self._is_gain(metric, value, record["val_loss"], minimises_loss):
            self.epochs_without_gain = 0
            self.best = {
                "monitor": metric,
                "value": value,
                "val_loss": record["val_loss"],
                "epoch": record["epoch"],
                "step": record["step"],
            }
        else:
            self.epochs_without_gain += 1

    def _is_gain(
        self, metric: str, value: float | None, loss: float | None, minimises_loss: bool
    ) -> bool:
        if value is None or self.best is None:
            return True
        best = self.best["value"]
        if math.isnan(value):
            return False
        if best is None or math.isnan(best):
            return True
        if metric == "loss":
            return not minimises_loss or value < best
        if value == best:  # at the start both may be 0
            return (loss or 0.0) < (self.best["val_loss"] or 0.0)
        return value > best

    def _warn(self, validation: Validation) -> None:
        if not self._warned:
            warn(
                f"monitor is {self._metric!r}, which cannot be computed here "
                f"({validation.missing}); the loss is used instead"
            )
        self._warned = True

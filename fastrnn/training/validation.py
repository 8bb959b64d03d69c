"""Validation after each epoch, and which epoch is the best so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..checks import ArgumentError
from ..classifiers.rnn import CaptioningRNN, CaptioningWorkspace
from ..evaluation import (
    Evaluator,
    caption_images,
    evenly_spread,
    images_with_references,
    longest_caption,
    loss_per_word,
    perplexity,
)
from ..messages import warn
from .config import TrainConfig

if TYPE_CHECKING:
    from .distributed import Ranks


class Validation:
    """The validation data of a training, prepared once.

    Parameters
    ----------
    data : mapping
        As `fastrnn.coco_utils.load_coco_data` returns it.
    config : TrainConfig
    ranks : Ranks, optional
        Those that validate together.

    Attributes
    ----------
    evaluator : Evaluator or None
        Of the images that are captioned; None if there are none.
    """

    def __init__(
        self, data: Mapping[str, Any], config: TrainConfig, ranks: Ranks | None = None
    ) -> None:
        self._data, self._config, self._ranks = data, config, ranks
        self.evaluator: Evaluator | None = None
        if not config.val_images or not len(data.get("val_features", ())):
            return
        known = images_with_references(data)
        if len(known):
            images = known[evenly_spread(len(known), config.val_images)]
            self.evaluator = Evaluator(data, images=images)

    def measure(
        self, model: CaptioningRNN, workspace: CaptioningWorkspace
    ) -> tuple[dict[str, Any], list[str]]:
        """Return the metrics (None if unknown), and the captions of the validation images."""
        loss, limit, ranks = None, self._config.val_captions, self._ranks
        share = None if ranks is None else (ranks.rank, ranks.size)
        if limit:
            loss = loss_per_word(
                model, self._data, limit=limit, workspace=workspace, share=share,
                batch_size=_batch_size(limit, ranks),
            )  # fmt: skip
            if ranks is not None and loss is not None:
                loss = math.fsum(ranks.gather(loss))
        metrics: dict[str, Any] = {"bleu_4": None, "cider": None}
        captions: list[str] = []
        evaluator = self.evaluator
        if evaluator is not None and ranks is None:
            captions = evaluator.caption(model, longest_caption(self._data))
            metrics.update(evaluator.score(captions, rouge=False))
        elif evaluator is not None and ranks is not None:
            features = evaluator.features[ranks.rank :: ranks.size]
            captions = [""] * len(evaluator.features)
            parts = ranks.gather(caption_images(model, features, longest_caption(self._data)))
            for rank, part in enumerate(parts):
                captions[rank :: ranks.size] = part
            metrics.update(ranks.alone(lambda: evaluator.score(captions, rouge=False)))
        metrics["loss"], metrics["perplexity"] = loss, perplexity(loss)
        return metrics, captions

    @property
    def missing(self) -> str:
        """The reason why a metric is unknown."""
        if self.evaluator is None:
            return "no captions to compare with"
        return self.evaluator.missing or "it is not among the metrics"


def _batch_size(limit: int, ranks: Ranks | None) -> int:
    """Return how many captions to score at a time, so that every rank gets some."""
    return 250 if ranks is None else max(1, min(250, -(-limit // ranks.size)))


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

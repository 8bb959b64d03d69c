"""The weights that are trained, Adam's moments, and the moving average of the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import optim
from ..checkpoint import Checkpoint
from ..classifiers.rnn import CaptioningRNN
from .config import TrainConfig
from .distributed import Ranks, weights_hash
from .start import fold, unfold


class Learner:
    """The model in training: a copy of a model that reads standardised features.

    Parameters
    ----------
    model : CaptioningRNN
        It reads the original features; `derive` updates it.
    mean : ndarray (D,)
    deviation : float
        The mean and the standard deviation of the training features.
    config : TrainConfig

    Attributes
    ----------
    network : CaptioningRNN
        Shares everything with `model` but the parameters.
    average : dict of str to ndarray or None
        The moving average of the weights, if there is one.
    moments : dict of str to dict
        The state of Adam for each parameter.
    """

    def __init__(
        self, model: CaptioningRNN, mean: np.ndarray, deviation: float, config: TrainConfig
    ) -> None:
        self._model, self._config = model, config
        self._scale = mean, deviation
        self.network: CaptioningRNN = copy.copy(model)
        self.network.params = {name: w.copy() for name, w in model.params.items()}
        unfold(self.network.params, *self._scale)
        self.average: dict[str, np.ndarray] | None = None
        if config.weight_average:
            self.average = {name: w.copy() for name, w in self.network.params.items()}
        self.moments: dict[str, dict[str, Any]] = {name: {} for name in model.params}

    def update(
        self, grads: dict[str, np.ndarray], rate: float, step: int, *, weight_decay: float
    ) -> None:
        """Clip the gradients of a step, counted from 0, and update the weights and the average."""
        config = self._config
        if config.clip_value:
            optim.clip_by_value(grads, config.clip_value)
        if config.clip_norm:
            optim.clip_by_norm(grads, config.clip_norm)
        params = self.network.params
        for name, w in params.items():
            decay = weight_decay if w.ndim > 1 else 0.0
            self.moments[name].update(learning_rate=rate, weight_decay=decay)
        optim.update_all(optim.adamw, params, grads, self.moments)
        if self.average is not None:
            # The bias-corrected average, (1 - d) sum_i d^(t-i) w_i / (1 - d^t), as an update.
            decay = config.weight_average
            share = (1 - decay) / (1 - decay ** (step + 1))
            optim.average_all(self.average, params, share)

    def restart(self) -> None:
        """Continue from the average of the weights, if there is one, with a new Adam state."""
        if self.average is not None:
            self.network.params, self.average = self.average, None
        self.moments = {name: {} for name in self.moments}

    def share(self, broadcast: Callable[[Any], Any]) -> None:
        """Take the weights, the average and the moments of rank 0."""
        weights, self.average, self.moments = broadcast(
            (self.network.params, self.average, self.moments)
        )
        for name, w in weights.items():
            np.copyto(self.network.params[name], w)
        self.derive()

    def check_same(self, ranks: Ranks, step: int) -> None:
        """Check that every rank has the same weights after a step.

        Raises
        ------
        ValueError
            They differ: a processor, a memory or a network has made an error. On every rank.
        """
        found = weights_hash(self.network.params)
        if self.average is not None:
            found += weights_hash(self.average)
        ranks.agree({f"the hash of the weights after step {step}": found})

    def derive(self) -> None:
        """Copy the average, or else the weights, into the model, which reads original features."""
        source = self.network.params if self.average is None else self.average
        for name, w in source.items():
            np.copyto(self._model.params[name], w)
        fold(self._model.params, *self._scale)

    def to_checkpoint(self, about: dict[str, Any]) -> Checkpoint:
        """Return a checkpoint that shares memory with the learner and with the model."""
        self.derive()
        moments = {
            name: {m: state[m] for m in ("m", "v")}
            for name, state in self.moments.items()
            if "m" in state
        }
        return Checkpoint(self._model, self.network.params, self.average, moments, about)

    def restore(self, checkpoint: Checkpoint, adam_steps: int) -> None:
        """Restore the state from a checkpoint, after `adam_steps` steps of Adam."""
        self.network.params = checkpoint.weights
        self.average = checkpoint.average
        for name, moments in checkpoint.moments.items():
            self.moments[name] = {**moments, "t": adam_steps}

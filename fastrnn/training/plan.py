"""Which objective and which batch each training step uses."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from .objectives import Objective


@dataclass(frozen=True)
class Epoch:
    """An epoch, counted from 0: its batches, and the number of rows up to the end of each."""

    number: int
    batches: list[np.ndarray]
    rows: list[int]


class Plan:
    """The steps of a training: first the epochs on captions, then the reward epochs.

    Steps are counted from 0. The batches of an epoch are drawn once, when its first step asks for
    them.

    Parameters
    ----------
    captions, rewards : Objective
        The objectives of the two kinds of epochs.
    epochs : int
        The number of epochs on captions.
    steps_per_epoch : int
    """

    def __init__(
        self, captions: Objective, rewards: Objective, epochs: int, steps_per_epoch: int
    ) -> None:
        self._captions, self._rewards = captions, rewards
        self._steps_per_epoch = steps_per_epoch
        self._first_reward_step = epochs * steps_per_epoch
        self._epoch: Epoch | None = None

    def objective(self, step: int) -> Objective:
        """Return the objective of a step."""
        return self._captions if step < self._first_reward_step else self._rewards

    def starts_rewards(self, step: int) -> bool:
        """Return whether a step is the first of the reward epochs."""
        return step == self._first_reward_step

    def batch(self, step: int) -> np.ndarray:
        """Return the rows of a step's batch, as its objective counts them."""
        return self._epoch_of(step).batches[step % self._steps_per_epoch]

    def progress(self, step: int) -> float:
        """Return the number of epochs up to the end of a step, by the rows in its batches."""
        epoch = self._epoch_of(step)
        return epoch.number + epoch.rows[step % self._steps_per_epoch] / epoch.rows[-1]

    def captions_per_epoch(self, step: int) -> int:
        """Return the number of captions that are trained on in the epoch of a step."""
        return self._epoch_of(step).rows[-1] * self.objective(step).captions_per_row

    def _epoch_of(self, step: int) -> Epoch:
        number = step // self._steps_per_epoch
        if self._epoch is None or self._epoch.number != number:
            batches = self.objective(step).batches(number)
            self._epoch = Epoch(number, batches, list(accumulate(map(len, batches))))
        return self._epoch

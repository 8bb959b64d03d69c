"""Which objective and batch each step uses, with objectives that have fixed batches."""

from __future__ import annotations

import numpy as np

from fastrnn.training.plan import Plan


class Fixed:
    """An objective whose batches name the epoch; `asked` counts how often they were drawn."""

    def __init__(self, sizes: list[int], captions_per_row: int) -> None:
        self.sizes, self.captions_per_row = sizes, captions_per_row
        self.asked: list[int] = []

    def batches(self, epoch: int) -> list[np.ndarray]:
        self.asked.append(epoch)
        return [np.full(size, epoch) for size in self.sizes]


def test_captions_first_then_rewards():
    captions, rewards = Fixed([4, 4, 2], 1), Fixed([1, 2, 3], 5)
    plan = Plan(captions, rewards, epochs=2, steps_per_epoch=3)
    assert [plan.objective(step) is rewards for step in range(9)] == [False] * 6 + [True] * 3
    assert [plan.starts_rewards(step) for step in range(9)] == [False] * 6 + [True] + [False] * 2
    batches = [plan.batch(step) for step in range(9)]
    assert [len(rows) for rows in batches] == [4, 4, 2, 4, 4, 2, 1, 2, 3]
    assert [rows[0] for rows in batches] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (captions.asked, rewards.asked) == ([0, 1], [2]), "once for each epoch"


def test_progress_counts_rows():
    plan = Plan(Fixed([4, 4, 2], 1), Fixed([1, 2, 3], 5), epochs=1, steps_per_epoch=3)
    np.testing.assert_allclose(
        [plan.progress(step) for step in range(6)], [0.4, 0.8, 1, 1 + 1 / 6, 1.5, 2]
    )
    assert [plan.captions_per_epoch(step) for step in (0, 2, 3, 5)] == [10, 10, 30, 30]


def test_any_step_may_be_the_first():
    """A resumed training starts in the middle of an epoch."""
    plan = Plan(Fixed([4, 4, 2], 1), Fixed([1], 5), epochs=3, steps_per_epoch=3)
    np.testing.assert_array_equal(plan.batch(5), [1, 1])

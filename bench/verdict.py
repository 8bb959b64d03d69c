"""Say from paired times whether one of two programs is faster, slower or the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
TRIM = 0.25
"""Share of the blocks that is left out at each end of the mean."""
RESAMPLES = 10_000
LEAST = 6
"""Minimum number of blocks: with fewer, the intervals are too short."""


@dataclass(frozen=True)
class Verdict:
    """Ratio of the times after and before a change: above 1 is slower.

    Attributes
    ----------
    ratio : float
        Estimate of the ratio.
    low, high : float
        Ends of its confidence interval.
    """

    ratio: float
    low: float
    high: float

    @property
    def word(self) -> str:
        """'slower' or 'faster' if the whole interval lies on that side of 1, else 'same'."""
        if self.low > 1:
            return "slower"
        return "faster" if self.high < 1 else "same"

    def exceeds(self, tolerance: float) -> bool:
        """Whether it is slower, and by more than a tolerance (0.01 for 1 %)."""
        return self.word == "slower" and self.ratio > 1 + tolerance


def block_ratio(before: Sequence[float], after: Sequence[float]) -> float:
    """Return the logarithm of the ratio of times in one block.

    Parameters
    ----------
    before, after : sequence of float
        Times of the turns that were next to each other.

    Returns
    -------
    float
        Median of ``log(after / before)`` over the pairs of turns. A disturbance of a few turns does
        not move it.
    """
    return float(np.median(np.log(np.asarray(after) / np.asarray(before))))


def trimmed_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis without a quarter of the values at each end."""
    count = values.shape[-1]
    cut = int(TRIM * count)
    return np.sort(values, axis=-1)[..., cut : count - cut].mean(-1)


def judge(blocks: Sequence[float], cases: int = 1) -> Verdict:
    """Estimate the ratio of times from the ratios in the blocks.

    The estimate is a trimmed mean of the logarithms. Its interval is the expanded percentile
    interval of a bootstrap over blocks (Hesterberg 2015, "What teachers should know about the
    bootstrap", section 5.3), which is as wide as Student's t asks for with few blocks.

    Parameters
    ----------
    blocks : sequence of float
        What `block_ratio` returned for each block; at least `LEAST`.
    cases : int, optional
        Number of cases that are judged together. All their intervals hold together with the
        confidence of 95 % (Bonferroni). Default 1.
    """
    logs = np.asarray(blocks, dtype=float)
    if logs.ndim != 1 or len(logs) < LEAST:
        raise ValueError(f"blocks has shape {logs.shape}; expected at least {LEAST} numbers")
    n = len(logs)
    rng = np.random.default_rng(231)
    drawn = trimmed_mean(logs[rng.integers(n, size=(RESAMPLES, n))])
    tail = (1 - CONFIDENCE) / cases / 2
    expanded = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(tail, n - 1))
    ends = np.quantile(drawn, [expanded, 1 - expanded])
    ratio, low, high = np.exp([trimmed_mean(logs), *ends])
    return Verdict(float(ratio), float(low), float(high))

"""Means, paired differences and what may be said of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences with its 95 % interval; the interval is infinite for a single pair.

    >>> paired_difference([2.0, 3.0, 4.0], [1.0, 1.0, 1.0]).verdict
    'within noise'
    """

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return self.high - self.mean

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        if self.pairs < 2:
            return "one seed only"
        if self.low > 0:
            return "helps"
        return "hurts" if self.high < 0 else "within noise"


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The mean of ``ours - theirs``, seed by seed, with Student's 95 % interval (a paired t-test turned around)."""
    gaps = np.subtract(ours, theirs)
    n = len(gaps)
    half = math.inf if n < 2 else float(stats.t.ppf(0.975, n - 1) * gaps.std(ddof=1) / math.sqrt(n))
    mean = float(gaps.mean())
    return Difference(mean, mean - half, mean + half, n)


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation; NaN of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


RESAMPLES = 10_000
FEWEST = 6  # values; the median of fewer lies outside even their whole range more often than once in twenty


@dataclass(frozen=True)
class Median:
    """A median with the 95 % interval of a bootstrap."""

    value: float
    low: float
    high: float


def median(values: Sequence[float], seed: int = 0) -> Median:
    """The median of values and its percentile-bootstrap interval (Efron 1979), the same for the same seed.

    >>> median([1.0, 1.1, 1.2, 1.3, 1.4, 5.0])
    Median(value=1.25, low=1.05, high=3.2)
    """
    drawn = np.random.default_rng(seed).choice(np.asarray(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return Median(float(np.median(values)), float(low), float(high))

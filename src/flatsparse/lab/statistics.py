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

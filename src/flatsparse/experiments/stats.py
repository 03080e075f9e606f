"""Means, paired differences and what may be said of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from flatsparse.common.errors import InputError

FEWEST = 6  # values that could tell anything by their signs alone: 2 · 0.5⁶ is the first below one in twenty


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences with its 95 % interval, which is infinite for a single pair and for a few all alike.

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
    def bounded(self) -> bool:
        """Whether the pairs give an interval at all."""
        return math.isfinite(self.half)

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        if self.pairs < 2:
            return "one seed only"
        if self.low > 0:
            return "helps"
        return "hurts" if self.high < 0 else "within noise"


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The mean of ``ours - theirs``, seed by seed, with Student's 95 % interval (a paired t-test turned around).

    Differences that are all alike have no spread that can be known: see ``p_value``.

    Raises: InputError for a value that is not finite.
    """
    gaps = np.subtract(_finite(ours), _finite(theirs))
    n, mean = len(gaps), float(gaps.mean())
    if n < FEWEST and _alike(gaps.tolist()):
        half = math.inf
    else:
        half = float(stats.t.ppf(0.975, n - 1) * gaps.std(ddof=1) / math.sqrt(n))
    return Difference(mean, mean - half, mean + half, n)


def _finite(values: Sequence[float]) -> Sequence[float]:
    """The values; one that is not finite would make any interval, and pass for noise."""
    if not np.isfinite(values).all():
        raise InputError("a value that is not finite cannot be compared: leave its run out, and say so")
    return values


def _alike(values: Sequence[float]) -> bool:
    """Whether values, or the only one, differ by rounding at most."""
    return max(values) - min(values) <= 1e-9 * max(map(abs, values))


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation; NaN of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


RESAMPLES = 10_000


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
    drawn = np.random.default_rng(seed).choice(np.asarray(_finite(values)), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return Median(float(np.median(values)), float(low), float(high))


def p_value(gaps: Sequence[float], against: float = 0.0) -> float:
    """The two-sided p of Student's test that paired differences have the mean ``against``; 1 for a single one.

    Accuracies come in steps of one image, so two seeds often differ by exactly the same, which Student's test would take for
    certainty. Where all are alike the p is that of the sign test, for lack of a spread.

    >>> round(p_value([1.0, 2.0, 3.0]), 4), p_value([1.0]), p_value([0.5, 0.5])
    (0.0742, 1.0, 0.5)
    """
    away = float(np.mean(_finite(gaps))) - against
    if _alike(gaps):
        return 1.0 if away == 0 else 2.0 ** (1 - len(gaps))
    error = deviation(gaps) / math.sqrt(len(gaps))
    return float(2 * stats.t.sf(abs(away) / error, len(gaps) - 1))


def holm(values: Sequence[float]) -> list[float]:
    """p values of a family, adjusted so that any false claim among them stays as rare as one would be (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = highest
    return adjusted


MOST_SEEDS = 10_000
QUANTILES = (np.arange(2000) + 0.5) / 2000


def seeds_needed(spread: float, effect: float, power: float = 0.8, claims: int = 1) -> int | None:
    """The fewest pairs with which a paired t-test at 5 % finds an effect with a given power.

    By the noncentral t distribution, integrated over the spread that is found, as scipy's own is NaN at many a place. None
    for over 10,000, and for a spread that is not known.

    Args:
        spread: the standard deviation of the differences.
        effect: the mean difference that is to be found; its sign does not matter.
        claims: that are tested together: the level is that of Holm's first and strictest step.

    >>> seeds_needed(1.0, 0.5), seeds_needed(1.0, 0.5, claims=48)
    (34, 74)
    """
    if not effect or not spread or not math.isfinite(spread):
        return None
    tail = 0.025 / claims

    def found(pairs: int) -> bool:
        limit = stats.t.isf(tail, pairs - 1) * np.sqrt(stats.chi2.ppf(QUANTILES, pairs - 1) / (pairs - 1))
        shift = abs(effect) / spread * math.sqrt(pairs)
        return bool(np.mean(stats.norm.sf(limit - shift) + stats.norm.cdf(-limit - shift)) >= power)

    if found(2):
        return 2
    low, high = 2, 4
    while high <= MOST_SEEDS and not found(high):
        low, high = high, 2 * high
    if high > MOST_SEEDS:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high

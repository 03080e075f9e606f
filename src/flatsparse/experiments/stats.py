"""Intervals of means, paired differences and medians, tests of them, and the seeds that a test needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from flatsparse.common.errors import InputError

Verdict = Literal["helps", "hurts", "within noise", "less than claimed", "one seed only"]
FEWEST = 6  # values that could show anything by their signs alone: 2 · 0.5⁶ is the first below one in twenty


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval, which is infinite where the values do not give one.

    Attributes:
        mean: the estimate: of a mean, or of a median where ``median`` made it.
        low, high: the bounds.
        n: the number of values, or pairs of values.

    >>> gain = paired_difference([2.0, 3.0, 4.0], [1.0, 1.0, 1.0])
    >>> gain.verdict, f"{gain:+.1f}", gain.with_half("+.1f"), gain.bounds("+.1f")
    ('within noise', '+2.0 [-0.5, +4.5]', '+2.0 ± 2.5', '-0.5 to +4.5')
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    @property
    def bounded(self) -> bool:
        """True where the values give an interval at all."""
        return math.isfinite(self.half)

    @property
    def verdict(self) -> Verdict:
        """The word for an effect that has this interval."""
        return verdict(self.mean, self.n, differs=self.low > 0 or self.high < 0)

    def __format__(self, spec: str) -> str:
        """The estimate with its bounds in brackets, each by ``spec``; numbers without a sign are parted by a dash."""
        spec = spec or "+.2f"
        between = ", " if "+" in spec else "–"
        bounds = f" [{self.low:{spec}}{between}{self.high:{spec}}]" if self.bounded else ""
        return f"{self.mean:{spec}}{bounds}"

    def __str__(self) -> str:
        return format(self)

    def with_half(self, spec: str = "+.2f") -> str:
        """The estimate ± half of the interval, which is never signed."""
        return f"{self.mean:{spec}}" + (f" ± {self.half:{spec.lstrip('+')}}" if self.bounded else "")

    def bounds(self, spec: str = "+.2f") -> str:
        """The bounds alone, or why there are none."""
        if self.bounded:
            return f"{self.low:{spec}} to {self.high:{spec}}"
        return "one seed" if self.n < 2 else "unknown, the seeds are alike"

    def to_json(self) -> dict[str, Any]:
        """The interval as plain values, which ``from_json`` reads."""
        return {
            "mean": self.mean,
            "interval95": [self.low, self.high] if self.bounded else [None, None],
            "pairs": self.n,
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Interval:
        """The interval that ``to_json`` wrote, whatever else stands beside it."""
        low, high = (-math.inf, math.inf) if None in saved["interval95"] else saved["interval95"]
        return cls(saved["mean"], low, high, saved["pairs"])


def verdict(mean: float, n: int, *, differs: bool, falls_short: bool = False) -> Verdict:
    """The word for a mean difference to plain training, of ``n`` pairs, where more is better.

    Args:
        mean, n: of the difference.
        differs: whether it differs from none.
        falls_short: whether it is less than what was claimed.

    >>> verdict(0.3, 5, differs=True), verdict(0.3, 5, differs=True, falls_short=True), verdict(-0.1, 5, differs=False)
    ('helps', 'less than claimed', 'within noise')
    """
    if n < 2:
        return "one seed only"
    if differs and mean < 0:
        return "hurts"
    if falls_short:
        return "less than claimed"
    return "helps" if differs else "within noise"


def paired_difference(values: Sequence[float], base: Sequence[float]) -> Interval:
    """The mean of ``values - base``, seed by seed, with Student's 95 % interval (that of a paired t-test).

    Differences that are all alike have no spread that can be known: see ``p_value``.

    Raises: InputError for a value that is not finite.
    """
    return mean_interval(np.subtract(finite(values), finite(base)).tolist())


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of values with Student's 95 % interval; infinite for one value, and for a few that are all alike."""
    from scipy import stats

    n, mean = len(finite(values)), float(np.mean(values))
    if are_alike(values):
        half = math.inf if n < FEWEST else 0.0
        return Interval(mean, mean - half, mean + half, n)
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return Interval(mean, float(low), float(high), n)


def finite(values: Sequence[float]) -> Sequence[float]:
    """The values, all finite: one that is not would make any interval, and pass for noise."""
    if not np.isfinite(values).all():
        raise InputError("a value that is not finite cannot be compared: leave its run out, and say so")
    return values


def are_alike(values: Sequence[float]) -> bool:
    """True where values, or the only one, differ by rounding at most."""
    return max(values) - min(values) <= 1e-9 * max(map(abs, values))


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation; NaN of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


RESAMPLES = 10_000


def median(values: Sequence[float], seed: int = 0) -> Interval:
    """The median of values with its percentile-bootstrap interval (Efron 1979), the same for the same seed.

    >>> f"{median([1.0, 1.1, 1.2, 1.3, 1.4, 5.0]):.2f}"
    '1.25 [1.05–3.20]'
    """
    from scipy import stats

    source = np.random.default_rng(seed)
    bootstrapped = stats.bootstrap((finite(values),), np.median, n_resamples=RESAMPLES, method="percentile", rng=source)
    low, high = bootstrapped.confidence_interval
    return Interval(float(np.median(values)), float(low), float(high), len(values))


def p_value(gaps: Sequence[float], against: float = 0.0) -> float:
    """The two-sided p of Student's test that paired differences have the mean ``against``; 1 for a single one.

    Accuracies come in steps of one image, so two seeds often differ by exactly the same, which Student's test would take for
    certainty. Where all are alike the p is that of the sign test, for lack of a spread.

    >>> round(p_value([1.0, 2.0, 3.0]), 4), p_value([1.0]), p_value([0.5, 0.5])
    (0.0742, 1.0, 0.5)
    """
    from scipy import stats

    if are_alike(finite(gaps)):
        return 1.0 if float(np.mean(gaps)) == against else 2.0 ** (1 - len(gaps))
    return float(stats.ttest_1samp(gaps, against).pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """The p values of a family, adjusted so that any false claim among them stays as rare as one would be (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = highest
    return adjusted


MOST_SEEDS = 10_000
QUANTILES = (np.arange(2000) + 0.5) / 2000


def seeds_needed(spread: float, effect: float, power: float = 0.8, claims: int = 1) -> int | None:
    """The fewest pairs with which a paired t-test at 5 % finds an effect with a given power.

    By the noncentral t distribution, integrated over the spread that a sample has, because scipy's own returns NaN for many
    arguments (1.17 for 4 pairs, effect 5 spreads, 8 claims). None for over 10,000, and for a spread that is not known.

    Args:
        spread: the standard deviation of the differences.
        effect: the mean difference to find; its sign does not matter.
        claims: tested together; the level is that of Holm's first and strictest step.

    >>> seeds_needed(1.0, 0.5), seeds_needed(1.0, 0.5, claims=48)
    (34, 74)
    """
    from scipy import stats

    if not effect or not spread or not math.isfinite(spread):
        return None
    tail = 0.025 / claims

    def suffices(pairs: int) -> bool:
        limit = stats.t.isf(tail, pairs - 1) * np.sqrt(stats.chi2.ppf(QUANTILES, pairs - 1) / (pairs - 1))
        shift = abs(effect) / spread * math.sqrt(pairs)
        return bool(np.mean(stats.norm.sf(limit - shift) + stats.norm.cdf(-limit - shift)) >= power)

    if suffices(2):
        return 2
    low, high = 2, 4
    while high <= MOST_SEEDS and not suffices(high):
        low, high = high, 2 * high
    if high > MOST_SEEDS:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high

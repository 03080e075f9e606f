"""The quantity that is compared, its direction, and how it is written."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flatsparse.experiments.stats import Interval, Verdict, deviation, verdict

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """The quantity that is compared.

    Attributes:
        name: with its unit.
        better: in which direction it is, and so what S²-SAM is claimed to do to it.
        effect: the size of an effect worth finding where none is published, for the number of seeds needed.
        margin: a difference that would matter, to be ruled out; None where no such is known.
        comparable: whether published numbers are of this metric, not of another that it stands in for.
        unit: of a difference, where that has a name of its own.
        decimals: that a value is written with.

    >>> error = Metric("error", "lower", decimals=3)
    >>> error.verdict(Interval(-0.2, -0.3, -0.1, 5)), error.difference(-0.2)
    ('helps', '-0.200')
    """

    name: str
    better: Better = "higher"
    effect: float = 0.5
    margin: float | None = None
    comparable: bool = True
    unit: str = ""
    decimals: int = 2

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1: it turns differences so that more is better."""
        return 1 if self.better == "higher" else -1

    @property
    def signed(self) -> str:
        """The format of a difference."""
        return f"+.{self.decimals}f"

    @property
    def axis(self) -> str:
        """The label of an axis of differences."""
        quantity = f"{self.unit} of {self.name.partition(',')[0]}" if self.unit else self.name
        return f"difference to plain training, {quantity}" + (" (lower is better)" if self.better == "lower" else "")

    def text(self, value: float) -> str:
        """A value as text."""
        return f"{value:.{self.decimals}f}"

    def difference(self, value: float) -> str:
        """A difference as text."""
        return f"{value:{self.signed}}" + (f" {self.unit}" if self.unit else "")

    def level(self, value: float) -> str:
        """A mean as text, for a title."""
        percent = " %" if self.name.endswith("%") else ""
        return f"{value:.{max(0, self.decimals - 1)}f}{percent}" if percent else self.text(value)

    def verdict(self, difference: Interval) -> Verdict:
        """The word for a difference to plain training, or to a control."""
        differs = difference.low > 0 or difference.high < 0
        return verdict(self.sign * difference.mean, difference.n, differs=differs)


ACCURACY = Metric("test accuracy, %", margin=0.5, unit="points")


def decimals(values: Sequence[float], differences: Sequence[float] = ()) -> int:
    """The decimals of values that show two digits of their standard deviation, or three of one alone.

    Where all of some differences would be shown as 0, those that show two digits of the largest.

    >>> decimals([0.91, 0.92, 0.94]), decimals([1234.5]), decimals([0.0]), decimals([1.0, 2.0], [0.0002])
    (3, 0, 2, 5)
    """
    shown = _of_spread(values)
    largest = max(map(abs, differences), default=0.0)
    if largest and not round(largest, shown):
        shown = min(12, 1 - math.floor(math.log10(largest)))
    return shown


def _of_spread(values: Sequence[float]) -> int:
    spread = deviation(values)
    digits = 1
    if not spread > 0:
        spread, digits = abs(statistics.fmean(values)), 2
    return min(12, max(0, digits - math.floor(math.log10(spread)))) if spread else 2

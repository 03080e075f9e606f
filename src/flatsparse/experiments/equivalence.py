"""Equivalence: whether a difference that would matter is ruled out, by two one-sided tests."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flatsparse.common.errors import check_finite
from flatsparse.experiments.stats import are_alike, finite

LEVEL = 0.05  # of each one-sided test; of both together too, since only one of the two can be wrong
Excluded = Literal["difference", "gain", "loss"]


@dataclass(frozen=True)
class Equivalence:
    """Whether a mean difference of a margin or more is ruled out, on either side (TOST: Schuirmann 1987).

    A difference that is within noise may be large, and one that is not may be too small to matter. This says which.

    Attributes:
        margin: the difference that would matter, above 0.
        p_gain, p_loss: the one-sided p that the mean is the margin or more, and that it is minus the margin or less.
    """

    margin: float
    p_gain: float
    p_loss: float

    @property
    def p(self) -> float:
        """The p of both tests together, that there is a difference of the margin or more."""
        return max(self.p_gain, self.p_loss)

    @property
    def excluded(self) -> Excluded | None:
        """What is ruled out with 95 % confidence: any such difference, a gain or a loss; None where neither is."""
        if self.p < LEVEL:
            return "difference"
        return "gain" if self.p_gain < LEVEL else "loss" if self.p_loss < LEVEL else None

    def text(self, unit: str = "") -> str:
        """What is ruled out, in words; empty where nothing is."""
        size = f"{self.margin:g} {unit}".rstrip()
        return "" if self.excluded is None else f"no {self.excluded} larger than {size}"

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values, with the words for it."""
        return {**dataclasses.asdict(self), "excluded": self.excluded}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any] | None) -> Equivalence | None:
        """Return what ``to_json`` wrote; None for a record without it, such as an older one."""
        return None if saved is None else cls(saved["margin"], saved["p_gain"], saved["p_loss"])


def equivalence(gaps: Sequence[float], margin: float) -> Equivalence:
    """Test paired differences, turned so that more is better, against a margin on either side.

    Student's one-sided tests, or of differences that are all alike the sign test's, as in ``stats.p_value``. One difference
    rules nothing out. Both p below 0.05 is that Student's 90 % interval lies within the margins.

    Raises: InputError for a value that is not finite, and for a margin that is not a finite number above 0.

    >>> equivalence([0.1, 0.2, -0.1, 0.0, 0.1], margin=0.5).text("points")
    'no difference larger than 0.5 points'
    >>> equivalence([-2.0, 0.2, -0.9, -0.4, -1.1], margin=0.5).text("points")
    'no gain larger than 0.5 points'
    >>> equivalence([1.0, -1.0, 0.1], margin=0.5).text(), equivalence([0.0], margin=0.5).text()
    ('', '')
    """
    margin = check_finite("margin", margin, above=True)
    finite(gaps)
    return Equivalence(margin, below(gaps, margin), below([-gap for gap in gaps], margin))


def below(gaps: Sequence[float], limit: float) -> float:
    """The one-sided p that differences have a mean of ``limit`` or more; 1 for a single one.

    >>> round(below([1.0, 2.0, 3.0], 4.0), 4), below([0.0] * 5, 0.5), below([0.5] * 5, 0.5)
    (0.0371, 0.03125, 1.0)
    """
    from scipy import stats

    if len(gaps) < 2:
        return 1.0
    if are_alike(gaps):
        mean = math.fsum(gaps) / len(gaps)
        return 2.0 ** -len(gaps) if mean < limit and not are_alike([mean, limit]) else 1.0
    return float(stats.ttest_1samp(gaps, limit, alternative="less").pvalue)

"""What the differences of a table allow to say of the claims it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from flatsparse.experiments.stats import holm, p_value

Verdict = Literal["reproduces", "consistent with no effect", "contradicts", "not run at this scale"]
VERDICTS: dict[Verdict, str] = {
    "reproduces": "better than plain (Holm's p < 0.05), and not shown to be by less than is claimed",
    "consistent with no effect": "neither of the others can be said, which is no sign that there is none; with one seed, always",
    "contradicts": "worse than plain, or better by less than is claimed (Holm's p < 0.05)",
    "not run at this scale": "no seed has both runs",
}
LEVEL = 0.05


@dataclass(frozen=True)
class Claim:
    """That S²-SAM is better than plain training in a cell, by what was printed or, where that is unknown, at all.

    Attributes:
        gaps: S²-SAM less plain, seed by seed, turned so that more is better.
        printed: the difference that was printed for this very setting, turned likewise.
    """

    gaps: tuple[float, ...]
    printed: float | None = None


@dataclass(frozen=True)
class Judged:
    """A verdict, and Holm's p that there is no difference; None where there is no pair."""

    verdict: Verdict
    p: float | None


def judge(claims: Sequence[Claim]) -> list[Judged]:
    """The verdicts on all claims of a table.

    Two tests each, two-sided and paired: that the difference is 0, and that it is the printed one. The p values of either
    test are corrected over all claims of the table that have pairs, by Holm's method.

    >>> [judged.verdict for judged in judge([Claim((0.9, 1.1, 1.0)), Claim((0.2, 0.3, 0.25), printed=2.0), Claim(())])]
    ['reproduces', 'contradicts', 'not run at this scale']
    """
    none = _corrected([p_value(claim.gaps) if claim.gaps else None for claim in claims])
    short = _corrected(
        [None if c.printed is None or not c.gaps else p_value(c.gaps, against=c.printed) for c in claims]
    )
    return [Judged(_verdict(c, p, q), p) for c, p, q in zip(claims, none, short, strict=True)]


def _verdict(claim: Claim, p: float | None, q: float | None) -> Verdict:
    if p is None:
        return "not run at this scale"
    mean = fmean(claim.gaps)
    less = q is not None and claim.printed is not None and q < LEVEL and mean < claim.printed
    if less or (p < LEVEL and mean < 0):
        return "contradicts"
    return "reproduces" if p < LEVEL and mean > 0 else "consistent with no effect"


def _corrected(values: Sequence[float | None]) -> list[float | None]:
    corrected = iter(holm([p for p in values if p is not None]))
    return [None if p is None else next(corrected) for p in values]

"""The verdicts on the claims of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from flatsparse.experiments.equivalence import Equivalence, equivalence
from flatsparse.experiments.stats import holm, p_value, verdict

NOT_RUN = "not run at this scale"
VERDICTS: dict[str, str] = {
    "helps": "better than plain (Holm's p < 0.05), and not shown to be by less than is claimed",
    "less than claimed": "not shown to be worse than plain, but to be better by less than is claimed (Holm's p < 0.05)",
    "hurts": "worse than plain (Holm's p < 0.05)",
    "within noise": "none of these can be said, which is no sign that there is no effect",
    "one seed only": "a single pair of runs, of which nothing can be said",
    NOT_RUN: "no seed has both runs",
}
LEVEL = 0.05


@dataclass(frozen=True)
class Claim:
    """The claim that S²-SAM is better than plain training in a cell, by what was printed or, where that is unknown, at all.

    Attributes:
        gaps: S²-SAM less plain, seed by seed, turned so that more is better.
        printed: the difference that was printed for this very setting, turned likewise.
        margin: the difference that would matter, to be ruled out.
    """

    gaps: tuple[float, ...]
    printed: float | None = None
    margin: float | None = None


@dataclass(frozen=True)
class Judged:
    """A verdict, and Holm's p that there is no difference; None where there is no pair.

    Attributes:
        equivalence: what differences are ruled out, by Holm's p too; None without a margin.
    """

    verdict: str
    p: float | None
    equivalence: Equivalence | None = None


def judge(claims: Sequence[Claim]) -> list[Judged]:
    """The verdicts on all claims of a table.

    Two tests each, two-sided and paired: that the difference is 0, and that it is the printed one. The p values of either
    test are corrected over all claims of the table that have pairs, by Holm's method. So are those of the one-sided tests
    that rule out a gain, and a loss, of a margin or more.

    >>> [judged.verdict for judged in judge([Claim((0.9, 1.1, 1.0)), Claim((0.2, 0.3, 0.25), printed=2.0), Claim(())])]
    ['helps', 'less than claimed', 'not run at this scale']
    """
    against_none = _corrected([p_value(claim.gaps) if claim.gaps else None for claim in claims])
    against_printed = _corrected(
        [None if c.printed is None or not c.gaps else p_value(c.gaps, against=c.printed) for c in claims]
    )
    ruled_out = _corrected_equivalence([equivalence(c.gaps, c.margin) if c.gaps and c.margin else None for c in claims])
    judged = zip(claims, against_none, against_printed, ruled_out, strict=True)
    return [Judged(_verdict(claim, p, q), p, excluded) for claim, p, q, excluded in judged]


def _verdict(claim: Claim, p: float | None, q: float | None) -> str:
    if p is None:
        return NOT_RUN
    mean = fmean(claim.gaps)
    falls_short = claim.printed is not None and q is not None and q < LEVEL and mean < claim.printed
    return verdict(mean, len(claim.gaps), differs=p < LEVEL, falls_short=falls_short)


def _corrected(values: Sequence[float | None]) -> list[float | None]:
    corrected = iter(holm([p for p in values if p is not None]))
    return [None if p is None else next(corrected) for p in values]


def _corrected_equivalence(found: Sequence[Equivalence | None]) -> list[Equivalence | None]:
    gains = _corrected([None if one is None else one.p_gain for one in found])
    losses = _corrected([None if one is None else one.p_loss for one in found])
    return [
        None if one is None or p is None or q is None else Equivalence(one.margin, p, q)
        for one, p, q in zip(found, gains, losses, strict=True)
    ]

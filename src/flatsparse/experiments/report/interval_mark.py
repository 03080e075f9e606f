"""The small drawing of a difference in a table: where its parts stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flatsparse.experiments.stats import Interval

HALF = 60.0  # of a drawing's width, in its own units


@dataclass(frozen=True)
class IntervalMark:
    """A line for the interval, a dot for the mean, a diamond for a published difference; an arrow where the line goes on.

    Attributes:
        mean: from -HALF to HALF, as all that follow.
        line: the ends of the interval; None where there is none.
        goes_on: whether it does to the left, and to the right.
        published: None where nothing was printed of this metric.
    """

    mean: float
    line: tuple[float, float] | None
    goes_on: tuple[bool, bool]
    published: float | None


def reach(rows: Sequence[Mapping[str, Any]]) -> float:
    """The difference at the ends of a table's drawings: a little beyond the largest, measured or printed."""
    differences = [row["difference"] for row in rows if row["difference"] is not None]
    return 1.25 * max((abs(v) for d in differences for v in (d["mean"], d["published"] or 0.0)), default=0.0) or 1.0


def interval_mark(difference: Mapping[str, Any], reach: float, comparable: bool) -> IntervalMark:
    """The drawing of a row's difference, with the published one where it is comparable."""

    def at(value: float) -> float:
        return round(HALF * max(-1.0, min(1.0, value / reach)), 1)

    gap, published = Interval.from_json(difference), difference["published"]
    return IntervalMark(
        at(gap.mean),
        (at(gap.low), at(gap.high)) if gap.bounded else None,
        (gap.bounded and gap.low < -reach, gap.bounded and gap.high > reach),
        at(published) if comparable and published is not None else None,
    )

"""What pages of registered plans share: the choice among candidates, paired differences, claims about them, and their texts."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from flatsparse.experiments.equivalence import Excluded, equivalence
from flatsparse.experiments.stats import Interval, holm, mean_interval, p_value

MARGIN = 0.5  # points, the difference that would matter
LEVEL = 0.05  # of Holm's p

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Claim:
    """A paired difference that is tested in a family of claims.

    Attributes:
        gaps: the differences, seed by seed; more is better.
        p: Holm's, over the family.
        excluded: what TOST rules out of the margin or more, uncorrected; asked of claims that are not sure.
    """

    gaps: tuple[float, ...]
    p: float
    excluded: Excluded | None

    @property
    def interval(self) -> Interval:
        """The mean difference with its 95 % interval."""
        return mean_interval(self.gaps)

    @property
    def sure(self) -> bool:
        """True where Holm's p is below 0.05."""
        return self.p < LEVEL

    @property
    def above(self) -> bool:
        """True for a sure gain."""
        return self.sure and self.interval.mean > 0

    @property
    def below(self) -> bool:
        """True for a sure loss."""
        return self.sure and self.interval.mean < 0

    @property
    def no_gain(self) -> bool:
        """True where the difference is not sure, and a gain of the margin or more is ruled out."""
        return not self.sure and self.excluded in ("gain", "difference")

    @property
    def text(self) -> str:
        """The difference as ``difference`` writes it, with a star where it is sure."""
        return self.written()

    def written(self, places: int = 1) -> str:
        """The same with more places."""
        return difference(self.gaps, places) + ("\\*" if self.sure else "")

    @property
    def verdict(self) -> str:
        """What TOST rules out, for a table: gain, loss, both or neither; empty where the difference is sure."""
        return "" if self.sure else {"difference": "both", None: "neither"}.get(self.excluded, self.excluded or "")


def claims(gaps: Mapping[Name, Sequence[float]], margin: float = MARGIN) -> dict[Name, Claim]:
    """Judge a family of paired differences: Holm's p over all of it, and what TOST rules out.

    >>> found = claims({"a": [2.0, 2.1, 1.9], "b": [0.1, -0.1, 0.1], "c": [3.0, -3.0, 0.0]})
    >>> [(claim.text, claim.verdict) for claim in found.values()]
    [('**+2.0 [+1.8, +2.2]**\\\\*', ''), ('+0.0 [−0.3, +0.3]', 'both'), ('+0.0 [−7.5, +7.5]', 'neither')]
    """
    adjusted = holm([p_value(values) for values in gaps.values()])
    return {
        name: Claim(tuple(values), p, equivalence(values, margin).excluded)
        for (name, values), p in zip(gaps.items(), adjusted, strict=True)
    }


def chosen(scores: Mapping[Name, Sequence[float]]) -> Name:
    """The candidate of the highest mean score; the earlier of equals.

    >>> chosen({0.1: [80.0, 82.0], 0.2: [82.0, 80.0], 0.5: [70.0, 90.0]})
    0.1
    """
    means = {
        name: round(statistics.fmean(values), 9) for name, values in scores.items()
    }  # equals may differ by rounding
    return max(means, key=means.__getitem__)  # max takes the first of equals


def paired(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """The differences of values to a base, seed by seed."""
    return [value - other for value, other in zip(values, base, strict=True)]


def difference(gaps: Sequence[float], places: int = 1) -> str:
    """A mean difference with its 95 % interval, bold where that leaves out 0.

    >>> difference([1.0, 2.0, 3.0]), difference([-0.5, 0.5, 0.1], places=2), difference([-1.0])
    ('+2.0 [−0.5, +4.5]', '+0.03 [−1.22, +1.28]', '−1.0')
    """
    found = mean_interval(gaps)
    text = signed(found, places)
    return text if found.low <= 0 <= found.high else f"**{text}**"


def signed(value: float | Interval, places: int = 1) -> str:
    """A number, or a mean with its interval, with its sign.

    >>> signed(0.25, 2), signed(-1.0)
    ('+0.25', '−1.0')
    """
    return f"{value:+.{places}f}".replace("-", "−")


def place(sparsity: float, noise: float | None = None) -> str:
    """A sparsity in words, with the kind of labels if a share of wrong ones is given.

    >>> place(0.0, 0.2), place(0.95)
    ('dense, wrong labels', '95 %')
    """
    labels = {None: "", 0.0: ", right labels"}.get(noise, ", wrong labels")
    return (f"{100 * sparsity:g} %" if sparsity else "dense") + labels


def mean(values: Iterable[float], places: int = 1) -> str:
    """The mean of values.

    >>> mean([80.0, 81.0])
    '80.5'
    """
    return f"{statistics.fmean(values):.{places}f}".replace("-", "−")


def listed(names: Iterable[str], none: str = "none") -> str:
    """Names as a list in a sentence.

    >>> listed(["a", "b", "c"]), listed([])
    ('a, b, c', 'none')
    """
    return ", ".join(names) or none


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))

"""The rows and tables of any comparison with plain training: what pictures, sentences and columns need of them."""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from flatsparse.common.errors import unknown
from flatsparse.experiments.equivalence import Equivalence
from flatsparse.experiments.metric import Metric
from flatsparse.experiments.stats import Interval, deviation, paired_difference


@dataclass(frozen=True, kw_only=True)
class ComparedRow(ABC):
    """One sharpness over the seeds whose runs have finished.

    Attributes:
        seeds: whose runs have finished; ``values`` are in their order.
        difference: to plain training, of the seeds that both have; None for plain training itself.
        gaps: the differences by seed, of which it is the mean.
        unpaired: the number of seeds that have no pair, because their run failed here or in plain training.
        gradients_per_step: None where that is not known.
        step_time: the median of ``step_times``, ratios to plain training; None where there are none.
    """

    sharpness: str
    rho: float
    seeds: tuple[int, ...]
    difference: Interval | None
    gaps: tuple[float, ...]
    unpaired: int
    gradients_per_step: float | None
    step_time: float | None
    step_times: tuple[float, ...]

    @property
    @abstractmethod
    def values(self) -> Sequence[float]:
        """The values of the metric, in the order of the seeds."""

    @property
    @abstractmethod
    def verdict(self) -> str | None:
        """The word for the difference; None for plain training itself."""

    @property
    @abstractmethod
    def equivalence(self) -> Equivalence | None:
        """What differences to plain training are ruled out; None where none was asked for, or can be."""

    @property
    def mean(self) -> float:
        """The mean of the values."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        """The standard deviation of the values."""
        return deviation(self.values)

    @property
    def by_seed(self) -> dict[int, float]:
        """The values by seed."""
        return dict(zip(self.seeds, self.values, strict=True))


SomeRow = TypeVar("SomeRow", bound=ComparedRow)


@dataclass(frozen=True, kw_only=True)
class ComparedTable(ABC, Generic[SomeRow]):
    """The rows of one setting, plain training among them.

    Attributes:
        over_random: the difference of S²-SAM to a random direction of the same norm; None where one of them is missing.
        failures: which runs failed, and why.
    """

    rows: tuple[SomeRow, ...]
    over_random: Interval | None
    failures: tuple[str, ...] = ()

    @property
    @abstractmethod
    def metric(self) -> Metric:
        """The quantity that is compared."""

    @property
    @abstractmethod
    def heading(self) -> str:
        """The setting in a few words."""

    @property
    def is_meaningful(self) -> bool:
        """False where nothing was learned, so that differences mean nothing."""
        return True

    @property
    def seeds(self) -> list[int]:
        """The seeds of which any run has finished."""
        return sorted({seed for row in self.rows for seed in row.seeds})

    def row(self, sharpness: str) -> SomeRow:
        """The row of a sharpness. Raises InputError where there is none."""
        rows = {row.sharpness: row for row in self.rows}
        if sharpness not in rows:
            raise unknown("row", sharpness, rows)
        return rows[sharpness]


def over_random(rows: Sequence[ComparedRow]) -> Interval | None:
    """Return the difference of S²-SAM to a random direction, of the seeds that both have; None where there is none."""
    by_seed = {row.sharpness: row.by_seed for row in rows}
    s2sam, control = by_seed.get("s2sam", {}), by_seed.get("random", {})
    pairs = [seed for seed in s2sam if seed in control]
    if not pairs:
        return None
    return paired_difference([s2sam[seed] for seed in pairs], [control[seed] for seed in pairs])

"""Scores after changes by arm: means over the seeds, what was lost, and paired differences to the first arm."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flatsparse.experiments.evaluate.changes import AS_TRAINED, DRAWS, FINE_TUNED
from flatsparse.experiments.evaluate.fine_tuning import DEFINITION as FINE_TUNING
from flatsparse.experiments.labels import label
from flatsparse.experiments.stats import Interval, paired_difference

Values = Mapping[int, float]  # by seed


@dataclass(frozen=True)
class AfterTable:
    """The compared score of runs after changes of their weights, by arm: runs whose settings differ in the seed at most.

    Attributes:
        score: the name of the score.
        changes: the names, the first of them ``as trained``.
        arms: the names, the first of them the one that others are compared with.
        values: by arm and change, of each seed.
    """

    score: str
    changes: tuple[str, ...]
    arms: tuple[str, ...]
    values: Mapping[tuple[str, str], Values]

    @classmethod
    def of(cls, record: Mapping[str, Any], *, validation: bool = False) -> AfterTable:
        """Return the table of a record, of its test samples or of its validation samples."""
        key = "validation" if validation else "scores"
        values: dict[tuple[str, str], dict[int, float]] = {}
        for run in record["runs"]:
            for name, measured in run["after"].items():
                if measured[key] is not None:
                    first = next(iter(measured[key].values()))
                    values.setdefault((arm_name(run["arm"]), name), {})[run["seed"]] = first
        score = next(iter(record["runs"][0]["after"][AS_TRAINED]["scores"]))
        arms = tuple(dict.fromkeys(arm_name(run["arm"]) for run in record["runs"]))
        return cls(score, tuple(record["changes"]), arms, values)

    def mean(self, arm: str, change: str) -> float:
        """The mean over the seeds of an arm."""
        return statistics.fmean(self.values[arm, change].values())

    def lost(self, arm: str, change: str) -> dict[int, float]:
        """The score as trained less that after a change, by seed."""
        before = self.values[arm, AS_TRAINED]
        return {seed: before[seed] - value for seed, value in self.values[arm, change].items()}

    def gain(self, arm: str, change: str) -> Interval | None:
        """The difference of an arm to the first after a change, paired by seed; None for arms without a common seed."""
        return _paired(self.values[arm, change], self.values[self.arms[0], change])

    def kept(self, arm: str, change: str) -> Interval | None:
        """The loss to a change that an arm was spared beside the first, paired by seed."""
        return _paired(self.lost(self.arms[0], change), self.lost(arm, change))

    def scores(self) -> tuple[list[str], list[list[str]]]:
        """The means by change, and the differences to the first arm."""
        return self._grid(lambda arm, change: f"{self.mean(arm, change):.2f}", self.gain, self.changes)

    def losses(self) -> tuple[list[str], list[list[str]]]:
        """The mean losses to each change, and how much less an arm lost than the first."""
        return self._grid(
            lambda arm, change: f"{statistics.fmean(self.lost(arm, change).values()):.2f}", self.kept, self.changes[1:]
        )

    def _grid(self, cell: Any, difference: Any, changes: Sequence[str]) -> tuple[list[str], list[list[str]]]:
        first, *others = self.arms
        head = ["after", *self.arms, *(f"{arm} − {first}" for arm in others)]
        rows = []
        for change in changes:
            gaps = [difference(arm, change) for arm in others]
            rows.append(
                [change, *(cell(arm, change) for arm in self.arms), *("" if g is None else str(g) for g in gaps)]
            )
        return head, rows


def arm_name(settings: Mapping[str, Any]) -> str:
    """The name of an arm, from the settings in which it differs from others.

    >>> arm_name({"sharpness": "s2sam", "rho": 0.5}), arm_name({})
    ('S²-SAM, rho 0.5', 'runs')
    """
    parts = [
        label(str(value)) if name == "sharpness" else f"{name.replace('_', ' ')} {_plain(value)}"
        for name, value in sorted(settings.items(), key=lambda item: item[0] != "sharpness")
        if value is not None and (name, value) != ("rho", 0)
    ]
    return ", ".join(parts) or "runs"


def sentences(record: Mapping[str, Any]) -> list[str]:
    """Return what the tables of a record mean, a sentence each."""
    table = AfterTable.of(record)
    seeds = {arm: len(table.values[arm, AS_TRAINED]) for arm in table.arms}
    counts = ", ".join(f"{arm} {count}" for arm, count in seeds.items())
    found = [f"Test {table.score}; seeds: {counts}. {record['better'].capitalize()} is better."]
    if any(name.startswith("int") for name in table.changes):
        found.append(
            "int: weights rounded to the nearest of a symmetric grid for each output channel, computed in floating point."
        )
    if any(name.startswith("prune") for name in table.changes):
        found.append(
            "prune: that percentage of each layer's active weights, the smallest, set to zero without retraining."
        )
    if any(name.startswith("noise") for name in table.changes):
        found.append(
            f"noise: Gaussian, in units of the standard deviation of a layer's active weights; the mean of {DRAWS} draws."
        )
    if any(name.startswith(FINE_TUNED) for name in table.changes):
        found.append(f"{FINE_TUNING}.")
    if len(table.arms) > 1:
        found.append(
            "Differences are paired by seed, with Student's 95 % intervals; many are shown, and one in twenty errs."
        )
    return found


def _paired(values: Values, base: Values) -> Interval | None:
    common = sorted(values.keys() & base.keys())
    return paired_difference([values[s] for s in common], [base[s] for s in common]) if common else None


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)

"""The table of a comparison of a script: a row for each arm, and the paired differences to plain training."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flatsparse.common.errors import InputError
from flatsparse.experiments.compared import ComparedRow, ComparedTable, over_random
from flatsparse.experiments.equivalence import Equivalence
from flatsparse.experiments.labels import label
from flatsparse.experiments.metric import Better, Metric, decimals
from flatsparse.experiments.reproduce.verdict import Claim, Judged, judge
from flatsparse.experiments.scripts.job import ArmResult
from flatsparse.experiments.stats import Interval, mean_interval, p_value


@dataclass(frozen=True)
class ArmOutcomes:
    """An arm with the result of each seed that has one, and why others have none."""

    sharpness: str
    rho: float
    results: Mapping[int, ArmResult]
    failures: Mapping[int, str]


@dataclass(frozen=True, kw_only=True)
class ArmRow(ComparedRow):
    """One arm.

    Attributes:
        results: in the order of the seeds.
        judged: the verdict on the difference, with Holm's p over all arms; None for plain training.
    """

    results: tuple[ArmResult, ...]
    judged: Judged | None

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(result.scores[result.metric] for result in self.results)

    @property
    def verdict(self) -> str | None:
        return None if self.judged is None else self.judged.verdict

    @property
    def equivalence(self) -> Equivalence | None:
        return None if self.judged is None else self.judged.equivalence

    @property
    def seconds(self) -> float:
        """The mean time of the function, in seconds."""
        return statistics.fmean(result.cost.seconds for result in self.results)

    @property
    def steps(self) -> float | None:
        """The mean number of steps."""
        return _mean([result.cost.steps for result in self.results])

    @property
    def warnings(self) -> list[str]:
        """The warnings that any seed led to, each once."""
        return list(dict.fromkeys(text for result in self.results for text in result.warnings))

    def mean_of(self, name: str) -> float | None:
        """The mean of one of the numbers that were returned; None where a seed has none of that name."""
        return _mean([result.scores.get(name) for result in self.results])

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain values."""
        return {
            "name": self.sharpness,
            "rho": self.rho,
            "seeds": list(self.seeds),
            "values": list(self.values),
            "scores": [dict(result.scores) for result in self.results],
            "mean": self.mean,
            "std": None if math.isnan(self.std) else self.std,
            "difference": None if self.difference is None else self._difference(self.difference),
            "unpaired": self.unpaired,
            "cost": {
                "seconds": [result.cost.seconds for result in self.results],
                "steps": [result.cost.steps for result in self.results],
                "gradient_evaluations": [result.cost.gradient_evaluations for result in self.results],
                "gradients_per_step": self.gradients_per_step,
                "step_seconds": [result.cost.step_median for result in self.results],
                "step_time": self.step_time,
            },
            "warnings": self.warnings,
        }

    def _difference(self, difference: Interval) -> dict[str, Any]:
        assert self.judged is not None
        return {
            **difference.to_json(),
            "gaps": list(self.gaps),
            "p": p_value(self.gaps),
            "p_holm": self.judged.p,
            "verdict": self.verdict,
            **({} if self.equivalence is None else {"equivalence": self.equivalence.to_json()}),
        }


@dataclass(frozen=True, kw_only=True)
class ArmTable(ComparedTable[ArmRow]):
    """The arms of a script, plain training first.

    Attributes:
        script: the script's name.
        failed: which arm failed, with which seed, and why; ``failures`` says so with the seeds of one reason together.
        compared: the metric: the first number that the function returned.
    """

    script: str
    failed: tuple[tuple[str, int, str], ...]
    rows: tuple[ArmRow, ...]
    compared: Metric

    @property
    def metric(self) -> Metric:
        return self.compared

    @property
    def heading(self) -> str:
        return self.script

    @property
    def others(self) -> list[str]:
        """The names of the other numbers that were returned."""
        names = dict.fromkeys(name for row in self.rows for result in row.results for name in result.scores)
        return [name for name in names if name != self.metric.name]

    def to_json(self) -> dict[str, Any]:
        """Return the table as plain values."""
        control = self.over_random
        said = None if control is None else {**control.to_json(), "verdict": self.metric.verdict(control)}
        return {
            "metric": {"name": self.metric.name, "better": self.metric.better},
            "arms": [row.to_json() for row in self.rows],
            "over_random": said,
            "failures": [{"name": name, "seed": seed, "reason": why} for name, seed, why in self.failed],
        }


def tabulate(script: str, arms: Sequence[ArmOutcomes], better: Better, margin: float | None = None) -> ArmTable:
    """Return the table of the arms of a script, plain training first.

    A seed that failed has no pair, and is counted; an arm without any pair has no row. Holm's correction is over the
    differences of all arms to plain training.

    Args:
        margin: a difference that would matter, to be ruled out.

    Raises: InputError when there is nothing to compare, with the first failure.
    """
    base = arms[0]
    if not base.results:
        raise InputError(_nothing("plain training has not finished", arms[:1]))
    name = next(iter(base.results.values())).metric
    arms = [_of_metric(arm, name) for arm in arms]
    base = arms[0]
    there = [arm for arm in arms[1:] if arm.results.keys() & base.results.keys()]
    if not there:
        raise InputError(_nothing("no arm has finished with a seed of plain training", arms))
    values = [result.scores[name] for result in base.results.values()]
    gaps = [_gaps(arm, base, name) for arm in there]
    metric = Metric(name, better, decimals=decimals(values, [statistics.fmean(one) for one in gaps]))
    judged = judge([Claim(tuple(metric.sign * gap for gap in one), margin=margin) for one in gaps])
    rows = [_row(base, base, (), None), *map(_row, there, [base] * len(there), gaps, judged)]
    return ArmTable(
        script=script,
        rows=tuple(rows),
        over_random=over_random(rows),
        failures=tuple(sentence for arm in arms for sentence in _failed(arm)),
        failed=tuple((arm.sharpness, seed, why) for arm in arms for seed, why in sorted(arm.failures.items())),
        compared=metric,
    )


def _of_metric(arm: ArmOutcomes, name: str) -> ArmOutcomes:
    """Return an arm less the results that another number comes first in."""
    odd = {seed: result.metric for seed, result in arm.results.items() if result.metric != name}
    if not odd:
        return arm
    why = {seed: f"its first number is '{other}', and that of plain training '{name}'" for seed, other in odd.items()}
    fitting = {seed: result for seed, result in arm.results.items() if seed not in odd}
    return ArmOutcomes(arm.sharpness, arm.rho, fitting, {**arm.failures, **why})


def _failed(arm: ArmOutcomes) -> list[str]:
    """The failures of an arm, each reason once."""
    seeds: dict[str, list[int]] = {}
    for seed, reason in sorted(arm.failures.items()):
        seeds.setdefault(reason, []).append(seed)
    return [
        f"{label(arm.sharpness)}, seed{'s' if len(those) > 1 else ''} {', '.join(map(str, those))}: {reason}"
        for reason, those in seeds.items()
    ]


def _gaps(arm: ArmOutcomes, base: ArmOutcomes, name: str) -> tuple[float, ...]:
    pairs = [seed for seed in arm.results if seed in base.results]
    return tuple(arm.results[seed].scores[name] - base.results[seed].scores[name] for seed in pairs)


def _row(arm: ArmOutcomes, base: ArmOutcomes, gaps: Sequence[float], judged: Judged | None) -> ArmRow:
    ratios = [_ratio(arm.results[seed], base.results[seed]) for seed in arm.results if seed in base.results]
    times = tuple(ratio for ratio in ratios if ratio is not None)
    costs = [result.cost for result in arm.results.values()]
    each = [c.gradient_evaluations / c.steps if c.gradient_evaluations and c.steps else None for c in costs]
    return ArmRow(
        sharpness=arm.sharpness,
        rho=arm.rho,
        seeds=tuple(arm.results),
        difference=mean_interval(gaps) if gaps else None,
        gaps=tuple(gaps),
        unpaired=0 if arm is base else len({**arm.failures, **base.failures}),
        gradients_per_step=_mean(each),
        step_time=statistics.median(times) if times else None,
        step_times=times,
        results=tuple(arm.results.values()),
        judged=judged,
    )


def _ratio(result: ArmResult, base: ArmResult) -> float | None:
    one, other = result.cost.step_median, base.cost.step_median
    return one / other if one and other else None


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where any is not known."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _nothing(why: str, arms: Sequence[ArmOutcomes]) -> str:
    first = next(
        (f" ({label(arm.sharpness)}, seed {seed}: {reason})" for arm in arms for seed, reason in arm.failures.items()),
        "",
    )
    return f"nothing can be compared, as {why}{first}"

"""The tables of a comparison: a row for each sharpness in one setting, and the paired differences between them."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flatsparse.common.errors import InputError
from flatsparse.experiments.compared import ComparedRow, ComparedTable, over_random
from flatsparse.experiments.equivalence import Equivalence, equivalence
from flatsparse.experiments.metric import ACCURACY, Metric, decimals
from flatsparse.experiments.reproduce.table import Line
from flatsparse.experiments.run.records import RunResult
from flatsparse.experiments.stats import Interval, mean_interval

NOTHING_LEARNED = "nothing learned"
# The keys of a row of scores in JSON, where those of accuracies would mislead.
OF_SCORES = {"accuracies": "values", "train_accuracy": "train_value", "validation_accuracy": "validation_value"}


@dataclass(frozen=True, kw_only=True)
class Row(ComparedRow):
    """One sharpness in one setting. Accuracies in percent, differences in points; or a task's first scores.

    Attributes:
        accuracies, ball, folders: in the order of the seeds.
        metric: the quantity that is compared.
        margin: a difference that would matter, in its units; None where no such is known, and for plain training.
        cosine: between the gradients of consecutive steps.
        ball: the loss increase found within ``ball_radius``.
        folders: of the runs, within the comparison's.
        results: of the runs, whole; not saved, for the runs' folders have them.
    """

    accuracies: tuple[float, ...]
    train_accuracy: float
    validation_accuracy: float | None
    cosine: float
    ball: tuple[float, ...]
    ball_radius: float
    folders: tuple[str, ...]
    metric: Metric = ACCURACY
    margin: float | None = None
    results: tuple[RunResult, ...] = field(default=(), compare=False, repr=False)

    @property
    def values(self) -> tuple[float, ...]:
        return self.accuracies

    @property
    def verdict(self) -> str | None:
        return None if self.difference is None else self.metric.verdict(self.difference)

    @property
    def equivalence(self) -> Equivalence | None:
        if self.margin is None or not self.gaps:
            return None
        return equivalence([self.metric.sign * gap for gap in self.gaps], self.margin)

    def to_json(self, learned: bool = True) -> dict[str, Any]:
        """Return the row as plain values, with its mean and its verdict."""
        saved = {name: value for name, value in vars(self).items() if name not in ("metric", "margin", "results")}
        names = {} if self.metric == ACCURACY else OF_SCORES
        return {
            **{names.get(name, name): value for name, value in saved.items()},
            "difference": _to_json(self.difference, self.metric, learned, self.equivalence),
            "cosine": None if math.isnan(self.cosine) else self.cosine,
            "mean": self.mean,
            "std": None if math.isnan(self.std) else self.std,
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any], metric: Metric = ACCURACY) -> Row:
        """Return the row that ``to_json`` wrote; older ones lack some keys."""
        saved = {**saved, **{name: saved[other] for name, other in OF_SCORES.items() if other in saved}}
        older = {
            "metric": metric,
            "margin": ((saved["difference"] or {}).get("equivalence") or {}).get("margin"),
            "seeds": list(range(len(saved["accuracies"]))),
            "gaps": [],
            "unpaired": 0,
            "folders": [],
            "results": [],
        }
        saved = {**older, **saved}
        fields = {field.name: saved[field.name] for field in dataclasses.fields(cls)}
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        cosine = math.nan if saved["cosine"] is None else saved["cosine"]
        return cls(**{**fields, "difference": _from_json(saved["difference"]), "cosine": cosine})


@dataclass(frozen=True, kw_only=True)
class Table(ComparedTable[Row]):
    """One setting's rows, and what S²-SAM gains over a random direction of the same norm.

    Attributes:
        rows: plain training, and what can be paired with it.
        tried: by sharpness and ρ, the validation accuracy that ρ was chosen by, or a task's score; None where it diverged.
        learned: whether any net does better than naming the commonest class; if none does, differences mean nothing. Of a
            task's score no chance is known.
        subject: the task, of one that is no classification.
        compared: the metric.
    """

    label_noise: float
    rows: tuple[Row, ...]
    tried: dict[str, dict[str, float | None]]
    learned: bool = True
    subject: str | None = None
    compared: Metric = ACCURACY

    @property
    def metric(self) -> Metric:
        return self.compared

    @property
    def heading(self) -> str:
        if self.subject is not None:
            return self.subject
        return f"{self.label_noise:.0%} wrong labels" if self.label_noise else "clean labels"

    @property
    def title(self) -> str:
        """The heading as a title."""
        return self.heading if self.subject is not None else self.heading.capitalize()

    @property
    def is_meaningful(self) -> bool:
        return self.learned

    def to_json(self) -> dict[str, Any]:
        """Return the table as plain values, with its verdicts."""
        metric = self.metric
        saved = {name: value for name, value in vars(self).items() if name not in ("subject", "compared")}
        about = {name: getattr(metric, name) for name in ("name", "better", "decimals")}
        scores = {"subject": self.subject, "metric": about} if metric != ACCURACY else {}
        return {
            **saved,
            "rows": [row.to_json(self.learned) for row in self.rows],
            "over_random": _to_json(self.over_random, metric, self.learned),
            **scores,
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Table:
        """Return the table that ``to_json`` wrote."""
        fields = {field.name: saved[field.name] for field in dataclasses.fields(cls) if field.name in saved}
        metric = Metric(**saved["metric"]) if "metric" in saved else ACCURACY
        rows = tuple(Row.from_json(row, metric) for row in saved["rows"])
        over_random, failures = _from_json(saved["over_random"]), tuple(saved.get("failures", ()))
        return cls(**{**fields, "rows": rows, "over_random": over_random, "failures": failures, "compared": metric})


def _to_json(
    difference: Interval | None, metric: Metric, learned: bool, excluded: Equivalence | None = None
) -> dict[str, Any] | None:
    """Return a difference as plain values, with what it says where anything was learned."""
    if difference is None:
        return None
    verdict = metric.verdict(difference) if learned else NOTHING_LEARNED
    more = {} if excluded is None else {"equivalence": excluded.to_json()}
    return {**difference.to_json(), "verdict": verdict, **more}


def _from_json(saved: Mapping[str, Any] | None) -> Interval | None:
    return None if saved is None else Interval.from_json(saved)


def tabulate(
    lines: Sequence[Line],
    out: Path = Path(),
    tried: Mapping[str, Mapping[str, float | None]] | None = None,
    margin: float | None = None,
) -> Table:
    """Return the table of one setting.

    A seed whose run failed has no pair, and is counted; a sharpness without any pair has no row.

    Args:
        lines: one for each sharpness, plain training among them.
        out: the comparison's folder.
        tried: see ``Table``.
        margin: a difference that would matter; that of the metric by default.

    Raises: InputError when no plain run has finished.
    """
    base = next(line for line in lines if line.is_base)
    failed = [(line, seed, reason) for line in lines for seed, reason in line.failures(None).items()]
    if not base.values(None):
        _, seed, reason = next(failure for failure in failed if failure[0] is base)
        folder = next(outcome.folder for outcome in base.outcomes if outcome.run.seed == seed)
        raise InputError(
            f"nothing can be compared without a plain run, and none has finished: run {folder.name}: {reason}"
        )
    first = next(iter(_results(base).values()))
    metric = _metric(first, list(base.values(None).values()))
    margin = metric.margin if margin is None else margin
    rows = [
        _row(line, base, out, metric, margin) for line in lines if line.values(None).keys() & base.values(None).keys()
    ]
    results = [outcome.result for line in lines for outcome in line.outcomes if outcome.result is not None]
    return Table(
        label_noise=base.cell.run.label_noise,
        rows=tuple(rows),
        over_random=over_random(rows),
        tried={name: dict(values) for name, values in (tried or {}).items()},
        learned=any(result.above_chance is not False for result in results),  # older results lack it
        subject=first.data if first.scored else None,
        compared=metric,
        failures=tuple(f"{line.cell.run.sharpness}, seed {seed}: {reason}" for line, seed, reason in failed),
    )


def _metric(result: RunResult, values: Sequence[float]) -> Metric:
    """Return what runs are compared by: test accuracy, or the first score of a task, with as many decimals as values need."""
    return Metric(result.metric, result.better or "higher", decimals=decimals(values)) if result.scored else ACCURACY


def _row(line: Line, base: Line, out: Path, metric: Metric, margin: float | None) -> Row:
    values, plain = line.values(None), base.values(None)
    results = _results(line)
    pairs = [seed for seed in values if seed in plain]
    gaps = tuple(values[seed] - plain[seed] for seed in pairs)
    times = tuple(results[seed].seconds.step_median / _results(base)[seed].seconds.step_median for seed in pairs)
    there = [result for seed, result in results.items() if seed in values]
    cosines = [result.gradient_cosine for result in there if result.gradient_cosine is not None]
    return Row(
        sharpness=line.cell.run.sharpness,
        rho=there[0].rho,
        seeds=tuple(values),
        accuracies=tuple(values.values()),
        train_accuracy=statistics.fmean(result.train_value for result in there),
        validation_accuracy=_mean([result.validation_value for result in there]),
        difference=None if line is base else mean_interval(gaps),
        gaps=() if line is base else gaps,
        unpaired=0 if line is base else len(line.failures(None) | base.failures(None)),
        gradients_per_step=there[0].gradient_evaluations / there[0].steps,
        step_time=statistics.median(times),
        step_times=times,
        cosine=statistics.fmean(cosines) if cosines else math.nan,
        ball=tuple(result.worst_case_increase for result in there),
        ball_radius=there[0].ball.radius,
        folders=tuple(os.path.relpath(o.folder, out) for o in line.outcomes if o.run.seed in values),
        metric=metric,
        margin=None if line is base else margin,
        results=tuple(there),
    )


def _results(line: Line) -> dict[int, RunResult]:
    return {outcome.run.seed: outcome.result for outcome in line.outcomes if outcome.result is not None}


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None

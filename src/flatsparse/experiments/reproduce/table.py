"""A recipe's outcomes as rows of plain values: what was measured, what was printed, and the verdicts."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from flatsparse.experiments.grid.store import Outcome
from flatsparse.experiments.recipes.recipe import Cell, Measured, Metric, Recipe, Scale
from flatsparse.experiments.reproduce.verdict import Claim, judge
from flatsparse.experiments.run.records import RunResult
from flatsparse.experiments.stats import deviation, mean_interval, seeds_needed

NOTHING = {"difference": None, "verdict": None, "claim": None, "same_runs": None, "unpaired": 0}  # until it is judged
MACRO = ("precision", "recall", "f1")


@dataclass(frozen=True)
class Line:
    """A cell with its outcomes, one a seed; or a reading, which has neither."""

    cell: Cell
    outcomes: Sequence[Outcome]

    @property
    def place(self) -> tuple[str, str]:
        return self.cell.row, self.cell.column

    @property
    def is_base(self) -> bool:
        return self.cell.control is None and self.cell.run.sharpness == "none"

    @property
    def makes_claim(self) -> bool:
        return self.cell.control is None and self.cell.run.sharpness == "s2sam"

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those of the finished runs, which stand for the runs."""
        return tuple(o.folder for o in self.outcomes if o.result is not None)

    def values(self, measured: Measured | None) -> dict[int, float]:
        """What was measured and is finite, by seed."""
        return {seed: value for seed, value in self._measured(measured).items() if math.isfinite(value)}

    def failures(self, measured: Measured | None) -> dict[int, str]:
        """Why a seed has no value, where it was run."""
        failed = {o.run.seed: o.failure for o in self.outcomes if o.failure is not None}
        odd = {seed: value for seed, value in self._measured(measured).items() if not math.isfinite(value)}
        return failed | {seed: f"what was measured is {value}" for seed, value in odd.items()}

    def _measured(self, measured: Measured | None) -> dict[int, float]:
        done = {o.run.seed: o for o in self.outcomes if o.result is not None}
        if measured is None:
            return {seed: o.result.accuracy for seed, o in done.items() if o.result is not None}
        return {seed: measured.values[o.folder] for seed, o in done.items() if o.folder in measured.values}


def tabulate(
    recipe: Recipe, scale: Scale, lines: Sequence[Line], measured: Measured | None, out: Path
) -> list[dict[str, Any]]:
    """The rows of a table, in the order of its cells.

    A seed whose run failed, here or in plain training, has no pair; ``unpaired`` counts them.

    A printed difference is what is claimed at the paper's own scale; at the others, which are other settings, the claim is
    its sign alone. Cells of the same runs make one claim, which is tested and counted once: ``claim`` is its number, and
    ``same_runs`` the place that had these runs first.
    """
    sign = recipe.metric.sign
    bases = {line.place: line for line in lines if line.is_base}
    rows, gaps_of = [], []
    claims: dict[Hashable, Claim] = {}
    claim_of: dict[int, Hashable] = {}
    first: dict[Hashable, tuple[str, str]] = {}
    for number, line in enumerate(lines):
        base = None if line.is_base else bases.get(line.place)
        mine, theirs = line.values(measured), base.values(measured) if base else {}
        seeds = [seed for seed in mine if seed in theirs]
        gaps = [mine[seed] - theirs[seed] for seed in seeds]
        printed = _printed(line.cell, base.cell) if base else None
        runs = line.folders, base.folders if base else None
        if line.makes_claim:
            judged = None if printed is None or scale != "paper" or not recipe.metric.comparable else sign * printed
            claim_of[number] = (runs, judged) if gaps else number
            claims[claim_of[number]] = Claim(tuple(sign * gap for gap in gaps), judged)
        gaps_of.append((gaps, printed))
        failed = line.failures(measured) | (base.failures(measured) if base else {})
        row = {**_about(line, out, measured), **summed(mine), **NOTHING, "unpaired": len(failed) if base else 0}
        if mine and (there := first.setdefault(runs, line.place)) != line.place:
            row["same_runs"] = ", ".join(there)
        rows.append(row)
    at_once = sum(bool(claim.gaps) for claim in claims.values())
    for number, (gaps, printed) in enumerate(gaps_of):
        if gaps:
            judged_with = at_once if number in claim_of else 1
            rows[number]["difference"] = compared(gaps, printed, recipe.metric, judged_with)
    found = dict(zip(claims, enumerate(judge(list(claims.values()))), strict=True))
    for number, claim in claim_of.items():
        rows[number]["claim"], told = found[claim]
        rows[number]["verdict"] = told.verdict
        if rows[number]["difference"]:
            rows[number]["difference"]["p_holm"] = told.p
    return rows


def readings(recipe: Recipe, measured: Measured) -> list[dict[str, Any]]:
    """The rows of what is measured without runs; no claim is judged on them."""
    bases = {(r.row, r.column): r.values for r in measured.readings if r.sharpness == "none"}
    rows = []
    for found in measured.readings:
        base = None if found.sharpness == "none" else bases.get((found.row, found.column))
        gaps = [] if base is None else [a - b for a, b in zip(found.values, base, strict=True)]
        rows.append(
            {
                "row": found.row,
                "column": found.column,
                "sharpness": found.sharpness,
                "control": None,
                "published": None,
                "needs": None,
                "failures": [],
                "folders": [],
                "also": {},
                **summed(dict(enumerate(found.values))),
                **NOTHING,
                "difference": compared(gaps, None, recipe.metric) if gaps else None,
            }
        )
    return rows


def compared(gaps: Sequence[float], printed: float | None, metric: Metric, claims: int = 1) -> dict[str, Any]:
    """A paired difference as plain values, and the seeds it would take to find an effect among so many claims.

    The effect is the printed difference, where there is one and it is of the same metric, else the metric's own.
    """
    effect = abs(printed) if printed and metric.comparable else metric.effect
    found = mean_interval(gaps)
    return {
        **found.to_json(),
        "p_holm": None,
        "effect": effect,
        "seeds_needed": seeds_needed(deviation(gaps), effect, claims=claims) if found.bounded else None,
        "published": printed,
    }


def summed(values: Mapping[int, float]) -> dict[str, Any]:
    """Values by seed, with their mean and standard deviation; None for what too few do not have."""
    told, spread = list(values.values()), deviation(list(values.values()))
    return {
        "seeds": list(values),
        "values": told,
        "mean": fmean(told) if told else None,
        "std": None if math.isnan(spread) else spread,
    }


def _printed(mine: Cell, base: Cell) -> float | None:
    if mine.published is None or base.published is None:
        return None
    return mine.published.value - base.published.value


def _about(line: Line, out: Path, measured: Measured | None) -> dict[str, Any]:
    cell = line.cell
    done = [o for o in line.outcomes if o.result is not None]
    return {
        "row": cell.row,
        "column": cell.column,
        "sharpness": cell.run.sharpness,
        "control": cell.control,
        "rho": cell.run.rho if cell.run.sharpness != "none" else 0.0,
        "published": None if cell.published is None else dataclasses.asdict(cell.published),
        "needs": cell.needs,
        "failures": [f"seed {seed}: {reason}" for seed, reason in line.failures(measured).items()],
        "folders": [os.path.relpath(o.folder, out) for o in done],
        "also": _also([o.result for o in done if o.result is not None]),
    }


def _also(results: Sequence[RunResult]) -> dict[str, Any]:
    """Means over the seeds of what else the results tell; FLOPs as shares of one dense training of ordinary length."""
    if not results:
        return {}
    return {
        "train_accuracy": fmean(r.train_accuracy for r in results),
        "generalization_gap": _mean_of_all(r.generalization_gap for r in results),
        "macro": {name: _mean_of_all((r.macro or {}).get(name) for r in results) for name in MACRO},
        "steps_to": {level: _mean_of_all(r.steps_to[level] for r in results) for level in results[0].steps_to},
        "flops_train": fmean(r.flops.train / r.flops.train_dense for r in results),
        "flops_inference": fmean(r.flops.inference / r.flops.inference_dense for r in results),
        "sparsity": fmean(r.sparsity.prunable for r in results),
        "seconds": fmean(r.seconds.train for r in results),
    }


def _mean_of_all(values: Iterable[float | None]) -> float | None:
    """The mean, or None when a run never got there."""
    there = list(values)
    return None if None in there else fmean(v for v in there if v is not None)

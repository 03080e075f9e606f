"""The table of a recipe: a row for each cell with what was measured, what was printed, and the verdict."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from flatsparse.experiments.equivalence import Equivalence
from flatsparse.experiments.grid.store import Outcome
from flatsparse.experiments.metric import Metric
from flatsparse.experiments.recipes.recipe import Cell, Measured, Published, Recipe, Scale
from flatsparse.experiments.reproduce.verdict import Claim, judge
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.run.records import RunResult
from flatsparse.experiments.stats import Interval, deviation, mean_interval, seeds_needed

MACRO = ("precision", "recall", "f1")


@dataclass(frozen=True)
class Line:
    """A cell with its outcomes, one a seed."""

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
        """The folders of the finished runs, which stand for the runs."""
        return tuple(o.folder for o in self.outcomes if o.result is not None)

    def values(self, measured: Measured | None) -> dict[int, float]:
        """Return what was measured and is finite, by seed."""
        return {seed: value for seed, value in self._measured(measured).items() if math.isfinite(value)}

    def failures(self, measured: Measured | None) -> dict[int, str]:
        """Return why a seed has no value, where it was run."""
        failed = {o.run.seed: o.failure for o in self.outcomes if o.failure is not None}
        odd = {seed: value for seed, value in self._measured(measured).items() if not math.isfinite(value)}
        return failed | {seed: f"what was measured is {value}" for seed, value in odd.items()}

    def _measured(self, measured: Measured | None) -> dict[int, float]:
        done = {o.run.seed: o for o in self.outcomes if o.result is not None}
        if measured is None:
            return {seed: o.result.value for seed, o in done.items() if o.result is not None}
        return {seed: measured.values[o.folder] for seed, o in done.items() if o.folder in measured.values}


@dataclass(frozen=True)
class RowDifference:
    """A paired difference to plain training.

    Attributes:
        interval: its mean with the 95 % interval.
        effect: the size of an effect worth finding: the printed difference, where there is one of the same metric, else the
            metric's own.
        seeds_needed: the fewest seeds that would find it, at the spread there is here; None where that is not known.
        published: the printed difference.
        p_holm: Holm's p that there is no difference; None where no claim is made.
        equivalence: what differences that would matter are ruled out; None where no claim is made, or no such are known.
    """

    interval: Interval
    effect: float
    seeds_needed: int | None
    published: float | None
    p_holm: float | None = None
    equivalence: Equivalence | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the difference as plain values."""
        fields = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "interval"
        }
        excluded = None if self.equivalence is None else self.equivalence.to_json()
        return {**self.interval.to_json(), **fields, "equivalence": excluded}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> RowDifference:
        """Return the difference that ``to_json`` wrote; older ones lack the equivalence."""
        own = {field.name for field in dataclasses.fields(cls)} - {"interval", "equivalence"}
        excluded = Equivalence.from_json(saved.get("equivalence"))
        return cls(Interval.from_json(saved), **{name: saved[name] for name in own}, equivalence=excluded)


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A row of a table.

    Attributes:
        row, column, control, published, needs: as of the cell.
        rho: None for values that no run stands for.
        failures: why seeds have no value.
        folders: of the runs, within the store.
        also: means over the seeds of what else the results hold.
        seeds, values: what was measured, by seed; ``mean`` and ``std`` are None where there are too few.
        verdict: on the row's claim, if it makes one; ``claim`` is the number of that claim in the table.
        same_runs: the place that had these runs first.
        unpaired: the number of seeds that have no pair, because their run failed here or in plain training.
    """

    row: str
    column: str
    sharpness: str
    control: str | None = None
    rho: float | None = None
    published: Published | None = None
    needs: str | None = None
    failures: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    also: Mapping[str, Any]
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float | None
    std: float | None
    difference: RowDifference | None = None
    verdict: str | None = None
    claim: int | None = None
    same_runs: str | None = None
    unpaired: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain values; without a run it has no ``rho``."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        published = None if self.published is None else dataclasses.asdict(self.published)
        difference = None if self.difference is None else self.difference.to_json()
        fields |= {"published": published, "difference": difference}
        return {name: value for name, value in fields.items() if name != "rho" or value is not None}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> TableRow:
        """Return the row that ``to_json`` wrote."""
        fields = {field.name: saved[field.name] for field in dataclasses.fields(cls) if field.name in saved}
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        published = None if saved["published"] is None else Published(**saved["published"])
        difference = None if saved["difference"] is None else RowDifference.from_json(saved["difference"])
        return cls(**{**fields, "published": published, "difference": difference})


def runs_of(cells: Iterable[Cell], seeds: Iterable[int]) -> list[RunConfig]:
    """Return the runs of cells that can be run, each once; seeds outermost, so that what is compared runs side by side."""
    runnable = [cell for cell in cells if cell.needs is None]
    return list(dict.fromkeys(change(cell.run, seed=seed) for seed in seeds for cell in runnable))


def lines_of(cells: Iterable[Cell], outcomes: Iterable[Outcome]) -> list[Line]:
    """Return each cell with the outcomes of its runs, in the order in which they are given."""
    by_cell: dict[RunConfig, list[Outcome]] = {}
    for outcome in outcomes:
        by_cell.setdefault(change(outcome.run, seed=0), []).append(outcome)
    return [Line(cell, [] if cell.needs else by_cell.get(change(cell.run, seed=0), [])) for cell in cells]


@dataclass(frozen=True)
class _Pairing:
    """A line paired with the plain one of its place, unless it is the plain one itself."""

    line: Line
    base: Line | None
    values: Mapping[int, float]
    gaps: Sequence[float]
    printed: float | None
    unpaired: int

    @property
    def runs(self) -> tuple[tuple[Path, ...], tuple[Path, ...] | None]:
        return self.line.folders, None if self.base is None else self.base.folders


def _pair(line: Line, base: Line | None, measured: Measured | None) -> _Pairing:
    values = line.values(measured)
    if base is None:
        return _Pairing(line, None, values, (), None, 0)
    plain = base.values(measured)
    gaps = [values[seed] - plain[seed] for seed in values if seed in plain]
    unpaired = len(line.failures(measured) | base.failures(measured))
    return _Pairing(line, base, values, gaps, _printed(line.cell, base.cell), unpaired)


def tabulate(
    recipe: Recipe, scale: Scale, lines: Sequence[Line], measured: Measured | None, out: Path
) -> list[TableRow]:
    """Return the rows of a table, in the order of its cells.

    A seed whose run failed, here or in plain training, has no pair; ``unpaired`` counts them.

    A printed difference is what is claimed at the paper's own scale; at the others, which are other settings, the claim is
    its sign alone. Cells of the same runs make one claim, which is tested and counted once.
    """
    bases = {line.place: line for line in lines if line.is_base}
    pairings = [_pair(line, None if line.is_base else bases.get(line.place), measured) for line in lines]
    claims: dict[Hashable, Claim] = {}
    claim_of: dict[int, Hashable] = {}
    for number, pairing in enumerate(pairings):
        if pairing.line.makes_claim:
            claimed = pairing.printed if scale == "paper" and recipe.metric.comparable else None
            claimed = None if claimed is None else recipe.metric.sign * claimed
            claim_of[number] = (pairing.runs, claimed) if pairing.gaps else number
            gaps = tuple(recipe.metric.sign * gap for gap in pairing.gaps)
            claims[claim_of[number]] = Claim(gaps, claimed, recipe.metric.margin)
    tested = sum(bool(claim.gaps) for claim in claims.values())
    judged = dict(zip(claims, enumerate(judge(list(claims.values()))), strict=True))
    first: dict[Hashable, tuple[str, str]] = {}
    rows = []
    for number, pairing in enumerate(pairings):
        claim, verdict = judged[claim_of[number]] if number in claim_of else (None, None)
        place = first.setdefault(pairing.runs, pairing.line.place) if pairing.values else pairing.line.place
        row = TableRow(
            **_of_cell(pairing.line, out, measured),
            **_summary(pairing.values),
            unpaired=pairing.unpaired,
            claim=claim,
            verdict=None if verdict is None else verdict.verdict,
            same_runs=None if place == pairing.line.place else ", ".join(place),
        )
        if pairing.gaps:
            difference = row_difference(pairing.gaps, pairing.printed, recipe.metric, 1 if verdict is None else tested)
            if verdict is not None:
                difference = dataclasses.replace(difference, p_holm=verdict.p, equivalence=verdict.equivalence)
            row = dataclasses.replace(row, difference=difference)
        rows.append(row)
    return rows


def readings(recipe: Recipe, measured: Measured) -> list[TableRow]:
    """Return the rows of what is measured without runs; no claim is judged on them."""
    bases = {(r.row, r.column): r.values for r in measured.readings if r.sharpness == "none"}
    rows = []
    for reading in measured.readings:
        base = None if reading.sharpness == "none" else bases.get((reading.row, reading.column))
        gaps = [] if base is None else [a - b for a, b in zip(reading.values, base, strict=True)]
        rows.append(
            TableRow(
                row=reading.row,
                column=reading.column,
                sharpness=reading.sharpness,
                also={},
                **_summary(dict(enumerate(reading.values))),
                difference=row_difference(gaps, None, recipe.metric) if gaps else None,
            )
        )
    return rows


def row_difference(gaps: Sequence[float], printed: float | None, metric: Metric, claims: int = 1) -> RowDifference:
    """Return a paired difference, with the number of seeds needed to find an effect among this many claims."""
    effect = abs(printed) if printed and metric.comparable else metric.effect
    interval = mean_interval(gaps)
    needed = seeds_needed(deviation(gaps), effect, claims=claims) if interval.bounded else None
    return RowDifference(interval, effect, needed, printed)


def _summary(values: Mapping[int, float]) -> dict[str, Any]:
    """Return values by seed with their mean and standard deviation; None for what too few do not have."""
    there, spread = tuple(values.values()), deviation(list(values.values()))
    return {
        "seeds": tuple(values),
        "values": there,
        "mean": fmean(there) if there else None,
        "std": None if math.isnan(spread) else spread,
    }


def _of_cell(line: Line, out: Path, measured: Measured | None) -> dict[str, Any]:
    """Return the fields of a row that come from its cell and its runs."""
    cell = line.cell
    done = [outcome for outcome in line.outcomes if outcome.result is not None]
    return {
        "row": cell.row,
        "column": cell.column,
        "sharpness": cell.run.sharpness,
        "control": cell.control,
        "rho": cell.run.rho if cell.run.sharpness != "none" else 0.0,
        "published": cell.published,
        "needs": cell.needs,
        "failures": tuple(f"seed {seed}: {reason}" for seed, reason in line.failures(measured).items()),
        "folders": tuple(os.path.relpath(outcome.folder, out) for outcome in done),
        "also": _also([outcome.result for outcome in done if outcome.result is not None]),
    }


def _printed(cell: Cell, base: Cell) -> float | None:
    if cell.published is None or base.published is None:
        return None
    return cell.published.value - base.published.value


def _also(results: Sequence[RunResult]) -> dict[str, Any]:
    """Return means over the seeds of what else the results hold; FLOPs as shares of one dense training of ordinary length."""
    if not results:
        return {}
    return {
        "train_accuracy": fmean(r.train_value for r in results),
        "generalization_gap": _mean_of_all(r.generalization_gap for r in results),
        "macro": {name: _mean_of_all((r.macro or {}).get(name) for r in results) for name in MACRO},
        "steps_to": {level: _mean_of_all(r.steps_to[level] for r in results) for level in results[0].steps_to},
        "flops_train": fmean(r.flops.train_share for r in results),
        "flops_inference": fmean(r.flops.inference_share for r in results),
        "sparsity": fmean(r.sparsity.prunable for r in results),
        "seconds": fmean(r.seconds.train for r in results),
        **({"scored": results[0].metric} if results[0].scored else {}),
    }


def _mean_of_all(values: Iterable[float | None]) -> float | None:
    """The mean, or None when a run never reached the level."""
    there = list(values)
    return None if None in there else fmean(v for v in there if v is not None)

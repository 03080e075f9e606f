"""The main job: the same sparse training with and without sharpness awareness, seed by seed, and what may be said of it."""

from __future__ import annotations

import dataclasses
import math
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flatsparse.common.errors import InputError, check_count, check_finite, unknown
from flatsparse.common.json_files import read_json, write_json
from flatsparse.experiments.claims import claim
from flatsparse.experiments.data.sources import load
from flatsparse.experiments.grid.pool import Job, default_jobs, run_all, workers
from flatsparse.experiments.run.config import ResolvedRun, RunConfig, Setting, as_json
from flatsparse.experiments.run.records import RunResult
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.run.sharpness import SHARPNESS, Sharpness
from flatsparse.experiments.stats import Interval, deviation, paired_difference
from flatsparse.experiments.terminal import Console

TUNING_SEEDS = 1000  # seeds of the choice of ρ start here, so that none of them is compared


@dataclass(frozen=True)
class Comparison:
    """Runs that differ in their sharpness awareness alone, with equal seeds, data and data order."""

    setting: Setting = field(default_factory=Setting)
    sharpness: tuple[Sharpness, ...] = ("none", "sam", "s2sam", "random")
    """What to compare; ``none`` is always there."""
    rho: float = 0.05
    """Radius for every sharpness that has no entry in --rhos."""
    rhos: dict[str, float] = dataclasses.field(default_factory=dict)
    """Radius by sharpness, e.g. --rhos sam 0.2 s2sam 0.5."""
    tune: bool = False
    """Choose each radius that --rhos leaves open on the validation split, from --rho-grid, before anything is tested."""
    rho_grid: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0)
    """Radii to choose from, the same for every sharpness."""
    tune_seeds: int = 3
    """Seeds of the choice; none of them is compared."""
    label_noise: tuple[float, ...] = (0.0,)
    """Fractions of training labels that are made wrong; each is a comparison of its own."""
    seeds: int = 5
    """Compare seeds 0, 1, … up to so many."""
    jobs: int | None = None
    """Runs at once. By default one for each core, or one on an accelerator."""

    def resolved(self) -> Comparison:
        """The comparison with its defaults filled in. Raises InputError for anything that cannot be run."""
        check_count("--seeds", self.seeds)
        check_count("--tune-seeds", self.tune_seeds)
        if self.jobs is not None:
            check_count("--jobs", self.jobs)
        everyone = tuple(name for name in SHARPNESS if name in {"none", *self.sharpness})
        if everyone == ("none",):
            raise InputError("--sharpness names nothing to compare with none: give at least one more, e.g. s2sam")
        for name, rho in self.rhos.items():
            if name not in SHARPNESS:
                raise unknown("sharpness in --rhos", name, SHARPNESS)
            if name == "none" or name not in everyone:
                raise InputError(
                    f"--rhos {name} is of no use: plain training has no ρ, and others must be in --sharpness"
                )
            check_finite(f"--rhos {name}", rho)
        for rho in self.rho_grid:
            check_finite("--rho-grid", rho, above=True)
        if self.tune and (not self.rho_grid or self.setting.dataset.validation_size == 0):
            raise InputError("--tune needs radii in --rho-grid and validation images: give some of both")
        if self.tune and self.seeds > TUNING_SEEDS:
            raise InputError(
                f"--seeds {self.seeds} would compare seeds that ρ is chosen by, which begin at {TUNING_SEEDS}: give fewer"
            )
        if not self.label_noise:
            raise InputError("--label-noise got no fraction: give at least one, e.g. 0")
        for noise in self.label_noise:
            first = resolve(self.run("none", 0.0, noise, 0))
        return dataclasses.replace(
            self,
            setting=Setting(**_common(first)),
            sharpness=everyone,
            label_noise=tuple(dict.fromkeys(self.label_noise)),  # twice the same is no more evidence
            rho_grid=tuple(dict.fromkeys(self.rho_grid)),
            jobs=self.jobs or default_jobs(first),
        )

    def run(self, sharpness: Sharpness, rho: float, noise: float, seed: int) -> RunConfig:
        """One of the runs."""
        return RunConfig(**_common(self.setting), sharpness=sharpness, rho=rho, label_noise=noise, seed=seed)

    def resolved_run(self, sharpness: Sharpness, rho: float, noise: float, seed: int) -> ResolvedRun:
        """One of the runs of a resolved comparison."""
        return resolve(self.run(sharpness, rho, noise, seed))

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "setting"}
        return {**as_json(self.setting), **own}


def _common(setting: Setting) -> dict[str, Any]:
    """The fields of a setting, by name."""
    return {field.name: getattr(setting, field.name) for field in dataclasses.fields(Setting)}


@dataclass(frozen=True)
class Row:
    """One sharpness in one setting, over all seeds. Accuracies in percent, differences in points; ``ball`` holds each
    seed's loss increase within ``ball_radius``."""

    sharpness: Sharpness
    rho: float
    accuracies: tuple[float, ...]
    train_accuracy: float
    validation_accuracy: float | None
    difference: Interval | None
    gradients_per_step: float
    step_time: float
    step_times: tuple[float, ...]
    cosine: float
    ball: tuple[float, ...]
    ball_radius: float

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float:
        return deviation(self.accuracies)


@dataclass(frozen=True)
class Table:
    """One setting's rows, and what S²-SAM gains over a random direction of the same norm.

    Attributes:
        learned: whether any net does better than naming the commonest class; where none does, differences mean nothing.
    """

    label_noise: float
    rows: tuple[Row, ...]
    over_random: Interval | None
    tried: dict[str, dict[str, float]]
    learned: bool = True

    def row(self, sharpness: str) -> Row:
        return next(row for row in self.rows if row.sharpness == sharpness)


def compare(comparison: Comparison, out: Path, *, resume: bool = False, console: Console | None = None) -> list[Table]:
    """Run a comparison into a folder and return its tables; ``compare.json`` there holds them too.

    Args:
        comparison: what to compare; see ``Comparison``.
        out: the folder; every run has its own in ``runs`` below it.
        resume: go on with the same comparison; what is finished is not run again.
        console: where progress is shown.

    Raises: InputError for what cannot be run, or a folder that holds something else.
    """
    comparison, console = comparison.resolved(), console or Console(stderr=True)
    data = load(comparison.setting.dataset.data, comparison.setting.dataset.data_dir)
    mine: dict[str, Any] = {"about": {"data_set": data.identity}, "free": ("data_dir",)}
    # Jobs share out the cores, and the number of threads is felt in the last bits.
    with claim(out, "comparison.json", comparison.as_dict(), resume=resume, **mine):
        data.check_same(read_json(out / "comparison.json"), f"'{out}'")
        console.print(data.summary, *(f"warning: {note}" for note in data.notes), sep="\n", highlight=False)
        return _compare(comparison, out, console, about=mine["about"])


def _compare(comparison: Comparison, out: Path, console: Console, about: dict[str, Any]) -> list[Table]:
    """Run a resolved comparison in its folder."""
    assert comparison.jobs is not None  # resolved
    with workers(comparison.jobs) as pool:
        radii, tried = _radii(comparison, out, pool, console)
        jobs = {
            (noise, sharpness, seed): Job(
                comparison.resolved_run(sharpness, radii[noise, sharpness], noise, seed),
                out / "runs" / f"noise{noise:g}-{sharpness}-seed{seed}",
            )
            for seed in range(comparison.seeds)  # seeds outermost, so that what is compared runs side by side
            for noise in comparison.label_noise
            for sharpness in comparison.sharpness
        }
        run_all(list(jobs.values()), pool, "comparing", console)
    tables = []
    for noise in comparison.label_noise:
        results = {
            name: [jobs[noise, name, seed].result for seed in range(comparison.seeds)] for name in comparison.sharpness
        }
        tables.append(tabulate(noise, results, tried.get(noise, {})))
    write_json(
        out / "compare.json", {"comparison": comparison.as_dict(), **about, "tables": [as_dict(t) for t in tables]}
    )
    return tables


def tabulate(noise: float, results: dict[Sharpness, list[RunResult]], tried: dict[str, dict[str, float]]) -> Table:
    """Turn results, seed by seed, into a table."""
    base = results["none"]
    plain = [r.accuracy for r in base]
    rows = []
    for name, found in results.items():
        accuracies = [r.accuracy for r in found]
        times = [r.seconds.step_median / b.seconds.step_median for r, b in zip(found, base, strict=True)]
        cosines = [r.gradient_cosine for r in found if r.gradient_cosine is not None]
        rows.append(
            Row(
                sharpness=name,
                rho=found[0].rho,
                accuracies=tuple(accuracies),
                train_accuracy=statistics.fmean(r.train_accuracy for r in found),
                validation_accuracy=_mean([r.validation_accuracy for r in found]),
                difference=None if name == "none" else paired_difference(accuracies, plain),
                gradients_per_step=found[0].gradient_evaluations / found[0].steps,
                step_time=statistics.median(times),
                step_times=tuple(times),
                cosine=statistics.fmean(cosines) if cosines else math.nan,
                ball=tuple(r.worst_case_increase for r in found),
                ball_radius=found[0].ball.radius,
            )
        )
    over_random = None
    if "s2sam" in results and "random" in results:
        ours, control = ([r.accuracy for r in results[name]] for name in ("s2sam", "random"))
        over_random = paired_difference(ours, control)
    learned = any(r.above_chance is not False for found in results.values() for r in found)  # older results lack it
    return Table(noise, tuple(rows), over_random, tried, learned)


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None


def as_dict(table: Table) -> dict[str, Any]:
    """A table as plain values, with its verdicts."""
    plain = dataclasses.asdict(table)
    for row, values in zip(table.rows, plain["rows"], strict=True):
        values |= {"mean": row.mean, "std": None if math.isnan(row.std) else row.std}
        values["cosine"] = None if math.isnan(row.cosine) else row.cosine
        if row.difference is not None:
            values["difference"] = _difference(row.difference, table.learned)
    plain["over_random"] = None if table.over_random is None else _difference(table.over_random, table.learned)
    return plain


def _difference(d: Interval, learned: bool) -> dict[str, Any]:
    return {**d.to_json(), "verdict": d.verdict if learned else "nothing learned"}


def _radii(
    comparison: Comparison, out: Path, pool: ProcessPoolExecutor | None, console: Console
) -> tuple[dict[tuple[float, Sharpness], float], dict[float, dict[str, dict[str, float]]]]:
    """Each sharpness's ρ in each setting, and the validation accuracies it was chosen by, if it was."""
    radii = {
        (noise, name): 0.0 if name == "none" else comparison.rhos.get(name, comparison.rho)
        for noise in comparison.label_noise
        for name in comparison.sharpness
    }
    if not comparison.tune:
        return radii, {}
    seeds = range(TUNING_SEEDS, TUNING_SEEDS + comparison.tune_seeds)
    jobs = {
        (noise, name, rho, seed): Job(
            comparison.resolved_run(name, rho, noise, seed),
            out / "tuning" / f"noise{noise:g}-{name}-rho{rho:g}-seed{seed}",
            test=False,
        )
        for seed in seeds
        for noise in comparison.label_noise
        for name in comparison.sharpness
        if name != "none" and name not in comparison.rhos
        for rho in comparison.rho_grid
    }
    run_all(list(jobs.values()), pool, "choosing ρ", console)
    tried: dict[float, dict[str, dict[str, float]]] = {}
    for noise, name in radii:
        if name == "none" or name in comparison.rhos:
            continue
        accuracy = {
            rho: statistics.fmean(jobs[noise, name, rho, seed].validation_accuracy for seed in seeds)
            for rho in comparison.rho_grid
        }
        radii[noise, name] = max(accuracy, key=lambda rho: accuracy[rho])
        tried.setdefault(noise, {})[name] = {f"{rho:g}": value for rho, value in accuracy.items()}
    return radii, tried

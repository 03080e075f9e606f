"""The main job: the same sparse training with and without sharpness awareness, seed by seed, as a grid of runs.

The rows are sharpness, the columns settings: fractions of wrong labels.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from flatsparse.common.errors import InputError, check_count, check_finite, unknown
from flatsparse.common.files import ELSEWHERE
from flatsparse.common.json_files import read_json, write_json
from flatsparse.common.schema import NotRequired
from flatsparse.experiments.claims import claim
from flatsparse.experiments.comparison_table import Table, tabulate
from flatsparse.experiments.grid.store import Outcome, code_of, run_grid
from flatsparse.experiments.grid.workers import default_jobs
from flatsparse.experiments.metric import Better
from flatsparse.experiments.recipes.recipe import TUNING_SEEDS, Cell
from flatsparse.experiments.reproduce.table import lines_of, runs_of
from flatsparse.experiments.run.build import task_of
from flatsparse.experiments.run.config import FREE, ResolvedRun, RunConfig, Setting, as_json
from flatsparse.experiments.run.records import DATA_SET
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.run.sharpness import SHARPNESS, Sharpness
from flatsparse.experiments.terminal import Console
from flatsparse.experiments.tracking.tracking import TrackerName, check_trackers

Radii = dict[tuple[float, Sharpness], float]  # by label noise and sharpness
Tried = dict[float, dict[str, dict[str, float | None]]]  # by label noise, sharpness and ρ
CHANGED = (
    "a file of yours has changed since this comparison began: runs that had finished are kept, and are compared with those of the"
    " changed file; if it trains or measures differently now, begin anew with another --out"
)
ANYWHERE = (*FREE, "margin", "jobs", "cluster", "retry", "track")  # settings that change no result


@dataclass(frozen=True)
class Comparison:
    """Runs that differ only in sharpness awareness, with equal seeds, data and data order."""

    setting: Annotated[Setting, tyro.conf.arg(name="")] = field(default_factory=Setting)
    sharpness: tuple[Sharpness, ...] = ("none", "sam", "s2sam", "random")
    """The kinds of sharpness to compare; ``none`` is always included."""
    rho: float = 0.05
    """Radius for every sharpness that has no entry in --rhos."""
    rhos: dict[str, float] = dataclasses.field(default_factory=dict)
    """Radius by sharpness, e.g. --rhos sam 0.2 s2sam 0.5."""
    tune: bool = False
    """Choose each radius that --rhos does not give from --rho-grid, on the validation split, before any test."""
    rho_grid: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0)
    """Radii to choose from, the same for every sharpness."""
    tune_seeds: int = 3
    """Number of seeds for that choice; none of them is compared."""
    label_noise: tuple[float, ...] = (0.0,)
    """Fractions of training labels to make wrong; each is a comparison of its own."""
    seeds: int = 5
    """Number of seeds to compare: 0, 1, …"""
    margin: float | None = None
    """Difference that would matter, which is ruled out where the seeds allow. By default 0.5 points of accuracy; of other
    numbers none."""
    jobs: int | None = None
    """Number of parallel runs. By default one per core, or one on an accelerator."""
    cluster: str | None = None
    """Address of a Ray cluster to run on, or local for one started here (extra 'cluster')."""
    retry: bool = False
    """With --resume, repeat failed runs."""
    track: tuple[TrackerName, ...] = ()
    """Also show each run in these: TensorBoard, trackio, Weights & Biases (each a package of its own). They change no result."""

    def resolved(self) -> Comparison:
        """Return the comparison with its defaults filled in. Raises InputError for anything that cannot be run."""
        check_trackers(self.track)
        check_count("--seeds", self.seeds)
        check_count("--tune-seeds", self.tune_seeds)
        if self.jobs is not None:
            check_count("--jobs", self.jobs)
        if self.margin is not None:
            check_finite("--margin", self.margin, above=True)
        everyone = checked_arms(self.sharpness, self.rhos)
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
            jobs=self.jobs if self.cluster else self.jobs or default_jobs(first.runtime.device),
        )

    def run(self, sharpness: Sharpness, rho: float, noise: float, seed: int) -> RunConfig:
        """Return one of the runs."""
        return RunConfig(**_common(self.setting), sharpness=sharpness, rho=rho, label_noise=noise, seed=seed)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "setting"}
        return {**as_json(self.setting), **own}


def checked_arms(sharpness: Sequence[Sharpness], rhos: Mapping[str, float]) -> tuple[Sharpness, ...]:
    """Return the kinds of sharpness to compare, plain training first.

    Raises: InputError for none, for one that there is not, and for a ρ of no use.
    """
    for kind in sharpness:
        if kind not in SHARPNESS:
            raise unknown("sharpness", kind, SHARPNESS)
    everyone = tuple(name for name in SHARPNESS if name in {"none", *sharpness})
    if everyone == ("none",):
        raise InputError("--sharpness names nothing to compare with none: give at least one more, e.g. s2sam")
    for name, rho in rhos.items():
        if name not in SHARPNESS:
            raise unknown("sharpness in --rhos", name, SHARPNESS)
        if name == "none" or name not in everyone:
            raise InputError(f"--rhos {name} is of no use: plain training has no ρ, and others must be in --sharpness")
        check_finite(f"--rhos {name}", rho)
    return everyone


def _common(setting: Setting) -> dict[str, Any]:
    """Return the fields of a setting, by name."""
    return {field.name: getattr(setting, field.name) for field in dataclasses.fields(Setting)}


def compare(comparison: Comparison, out: Path, *, resume: bool = False, console: Console | None = None) -> list[Table]:
    """Run a comparison into a folder and return its tables; ``compare.json`` there holds them too.

    A run that fails is counted and does not stop the others.

    Args:
        comparison: what to compare; see ``Comparison``.
        out: the folder; every run has its own in ``runs`` below it, and each that ρ is chosen by in ``tuning``.
        resume: continue the same comparison; finished runs are not repeated.
        console: where progress is shown.

    Raises: InputError for what cannot be run, or a folder that holds something else.
    """
    comparison, console = comparison.resolved(), console or Console(stderr=True)
    first = comparison.run("none", 0.0, comparison.label_noise[0], 0)
    task, code = task_of(resolve(first)), code_of(first)
    if comparison.tune and len(task.splits.validation) == 0:
        raise InputError(
            f"--tune chooses ρ on validation samples, and '{task.name}' has none: give it some, or no --tune"
        )
    about: dict[str, Any] = {"data_set": task.identity, **({"sha256_of_code": code} if code else {})}
    asked = {**comparison.as_dict(), "init_sha256": resolve(first).init_sha256}
    with claim(out, "comparison.json", asked, resume=resume, about=about, free=ANYWHERE):
        recorded = read_json(out / "comparison.json", {"data_set": NotRequired(DATA_SET)}, cure=ELSEWHERE)
        task.check_same(recorded, f"'{out}'")
        notes = [*task.notes, *([CHANGED] if recorded.get("sha256_of_code", code) != code else [])]
        console.print(task.summary, *(f"warning: {note}" for note in notes), sep="\n", highlight=False)
        radii, tried = choose_radii(comparison, out, console, better=task.better)
        tables = _compare(comparison, radii, tried, out, console)
        saved = {"comparison": comparison.as_dict(), **about, "tables": [table.to_json() for table in tables]}
        write_json(out / "compare.json", saved)
    return tables


def _compare(comparison: Comparison, radii: Radii, tried: Tried, out: Path, console: Console) -> list[Table]:
    seeds = range(comparison.seeds)
    cells = [
        Cell(name, f"{noise:.0%} wrong labels", comparison.run(name, radii[noise, name], noise, 0))
        for noise in comparison.label_noise
        for name in comparison.sharpness
    ]
    how = _how(comparison, console)
    outcomes = run_grid(runs_of(cells, seeds), out, name=_run_name, title="comparing", **how)
    for outcome in outcomes:
        _check_radius(outcome)
    lines = lines_of(cells, outcomes)
    return [
        tabulate(
            [line for line in lines if line.cell.run.label_noise == noise], out, tried.get(noise), comparison.margin
        )
        for noise in comparison.label_noise
    ]


def choose_radii(
    comparison: Comparison, out: Path, console: Console, *, better: Better = "higher"
) -> tuple[Radii, Tried]:
    """Return each sharpness's ρ in each setting, and the validation accuracies or scores it was chosen by, if it was.

    Args:
        better: the better direction of these.

    Raises: InputError when a run that the choice needs failed, but for one that diverged, which is the worst there is.
    """
    radii = {
        (noise, name): 0.0 if name == "none" else comparison.rhos.get(name, comparison.rho)
        for noise in comparison.label_noise
        for name in comparison.sharpness
    }
    if not comparison.tune:
        return radii, {}
    seeds = range(TUNING_SEEDS, TUNING_SEEDS + comparison.tune_seeds)
    cells = [
        Cell(f"{noise:g} {name}", f"{rho:g}", comparison.run(name, rho, noise, 0))
        for noise, name in radii
        if name != "none" and name not in comparison.rhos
        for rho in comparison.rho_grid
    ]
    how = _how(comparison, console)
    outcomes = run_grid(runs_of(cells, seeds), out, name=_tuning_name, test=False, title="choosing ρ", **how)
    tried: Tried = {}
    for line in lines_of(cells, outcomes):
        run, values = line.cell.run, [_validation_value(outcome, better) for outcome in line.outcomes]
        mean = statistics.fmean(values)
        tried.setdefault(run.label_noise, {}).setdefault(run.sharpness, {})[f"{run.rho:g}"] = (
            mean if math.isfinite(mean) else None
        )
    for noise, name in radii:
        if chosen_by := tried.get(noise, {}).get(name):
            radii[noise, name] = _best(chosen_by, comparison.rho_grid, better)
    return radii, tried


def _how(comparison: Comparison, console: Console) -> dict[str, Any]:
    """Return how the runs are run; the folder is ours alone."""
    how = {name: getattr(comparison, name) for name in ("jobs", "cluster", "retry", "track")}
    return {**how, "exclusive": True, "console": console}


def _run_name(run: ResolvedRun) -> str:
    return f"runs/noise{run.label_noise:g}-{run.sharpness}-seed{run.seed}"


def _tuning_name(run: ResolvedRun) -> str:
    return f"tuning/noise{run.label_noise:g}-{run.sharpness}-rho{run.rho:g}-seed{run.seed}"


def _check_radius(outcome: Outcome) -> None:
    """Raise InputError when a folder holds a run with a ρ that is no longer the chosen one."""
    run, result = outcome.run, outcome.result
    if result is not None and run.sharpness != "none" and result.rho != run.rho:
        raise InputError(
            f"'{outcome.folder}' holds a run with --rho {result.rho:g}, and {run.rho:g} is chosen now: remove that folder,"
            " or give another --out"
        )


def _best(tried: Mapping[str, float | None], grid: Sequence[float], better: Better) -> float:
    """Return the radius with the best value; the first of equals, or where all diverged."""
    sign = 1 if better == "higher" else -1

    def worth(rho: float) -> float:
        value = tried[f"{rho:g}"]
        return -math.inf if value is None else sign * value

    return max(grid, key=worth)


def _validation_value(outcome: Outcome, better: Better) -> float:
    """The validation accuracy of a run in percent, or a task's score; the worst there is for one that diverged."""
    if outcome.result is not None:
        assert outcome.result.validation_value is not None  # there are validation samples, or nothing is chosen
        return outcome.result.validation_value
    if outcome.diverged:
        if better == "lower":
            return math.inf
        return 0.0 if outcome.run.dataset.task is None else -math.inf
    raise InputError(f"ρ cannot be chosen without run {outcome.folder.name}: {outcome.failure}")

"""The comparison of a user's training function: its arms by its seeds, run side by side, resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from flatsparse.common.errors import InputError, check_count, check_finite
from flatsparse.common.json_files import read_json, write_json
from flatsparse.experiments.claims import claim
from flatsparse.experiments.compare import Comparison, checked_arms
from flatsparse.experiments.grid.progress import JobProgress, ProgressTable
from flatsparse.experiments.grid.store import executor_of, run_jobs
from flatsparse.experiments.grid.workers import default_jobs
from flatsparse.experiments.metric import Better
from flatsparse.experiments.run.config import Perturbation, Pruning, RunConfig, change, settings
from flatsparse.experiments.run.devices import usable_device
from flatsparse.experiments.run.folder import RESULT, read_failure
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.run.sharpness import Sharpness
from flatsparse.experiments.scripts.job import ArmJob, read_result
from flatsparse.experiments.scripts.script import Function, Script, check_outermost
from flatsparse.experiments.scripts.table import ArmOutcomes, ArmTable, tabulate
from flatsparse.experiments.terminal import Console

FREE = ("margin", "jobs", "cluster", "retry")  # settings that need not be those of before
NOT_OF_SCRIPTS = {  # flags of the built-in comparison that would be without effect
    "tune": "a script says nothing of validation: choose ρ yourself, by --rho or --rhos",
    "late_share": "it goes with --rho-schedule late, for which a script's steps are not known beforehand",
    "rho_schedule": "a script's steps are not known beforehand: give constant or inverse-sqrt, or make one in the script",
}


@dataclass(frozen=True)
class ScriptComparison:
    """Arms of a script that differ only in sharpness awareness, with equal seeds. Attributes as in ``Comparison``.

    Attributes:
        better: whether a higher or a lower first number is better.
        margin: a difference of it that would matter, to be ruled out; None rules out none.
        threads: that torch computes on in each arm.
        device: that the script computes on; arms run one at a time on an accelerator, unless ``jobs`` says otherwise.
    """

    sharpness: tuple[Sharpness, ...] = ("none", "s2sam", "random")
    rho: float = 0.05
    rhos: dict[str, float] = field(default_factory=dict)
    seeds: int = 5
    better: Better = "higher"
    margin: float | None = None
    pruning: Pruning = field(default_factory=Pruning)
    perturbation: Perturbation = field(default_factory=Perturbation)
    device: str = "auto"
    threads: int = 1
    jobs: int | None = None
    cluster: str | None = None
    retry: bool = False

    @classmethod
    def of(cls, comparison: Comparison, better: Better, threads: int) -> ScriptComparison:
        """Return what a command line says of a script. Raises InputError for flags that are of no use to one."""
        mine = {f.name: getattr(comparison, f.name) for f in dataclasses.fields(cls) if hasattr(comparison, f.name)}
        setting = comparison.setting
        mine |= {"pruning": setting.pruning, "perturbation": setting.perturbation, "device": setting.runtime.device}
        used = {*mine, *settings(Pruning()), *settings(Perturbation())} - {"rho_schedule", "late_share"}
        given, usual = comparison.as_dict(), Comparison().as_dict()
        if given["rho_schedule"] == "inverse-sqrt":
            used.add("rho_schedule")
        for name in usual:
            if name not in used and given[name] != usual[name]:
                why = NOT_OF_SCRIPTS.get(name, "a script has its own: leave it out, or write it there")
                raise InputError(f"--{name.replace('_', '-')} is of no use with a script: {why}")
        return cls(**mine, better=better, threads=threads)

    def resolved(self) -> ScriptComparison:
        """Return the comparison with its defaults filled in. Raises InputError for anything that cannot be run."""
        check_count("--seeds", self.seeds)
        check_count("--threads", self.threads)
        check_finite("--rho", self.rho)
        if self.margin is not None:
            check_finite("--margin", self.margin, above=True)
        if self.jobs is not None:
            check_count("--jobs", self.jobs)
        if self.better not in ("higher", "lower"):
            raise InputError(f"--better {self.better} is neither: give higher or lower")
        everyone = checked_arms(self.sharpness, self.rhos)
        device = usable_device(self.device)
        for name in everyone:
            resolve(self.config(name, 0))
        at_once = self.jobs if self.cluster else self.jobs or default_jobs(device)
        return dataclasses.replace(self, sharpness=everyone, device=device, jobs=at_once)

    def config(self, sharpness: Sharpness, seed: int) -> RunConfig:
        """Return what of a run's settings concerns an arm."""
        rho = 0.0 if sharpness == "none" else self.rhos.get(sharpness, self.rho)
        run = RunConfig(pruning=self.pruning, perturbation=self.perturbation, sharpness=sharpness, rho=rho, seed=seed)
        return change(run, device=self.device)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings by their flat names."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**own.pop("pruning").__dict__, **own.pop("perturbation").__dict__, **own}


def compare_script(
    script: Script | Function,
    comparison: ScriptComparison,
    out: Path,
    *,
    resume: bool = False,
    console: Console | None = None,
) -> ArmTable:
    """Run the arms of a script into a folder and return their table; ``compare.json`` there holds it too.

    An arm that fails leaves its reason in its folder and does not stop the others.

    Args:
        script: the function that each arm calls.
        comparison: what to compare.
        out: the folder; every arm and seed has its own in ``runs`` below it, with ``result.json`` or ``failure.json``, what
            it printed, and its own files.
        resume: continue the same comparison of the same script; what has finished is not repeated.
        console: where progress is shown.

    Raises: InputError for what cannot be run, a folder that holds something else, and where nothing can be compared.
    """
    check_outermost()
    comparison, console = comparison.resolved(), console or Console(file=sys.stderr)
    if isinstance(script, Function) and (comparison.cluster or comparison.jobs != 1):
        raise InputError(
            f"'{script.name}' is in no file, so it runs in this process alone: give jobs=1, and no cluster"
        )
    asked = {"script": script.name, **comparison.as_dict()}
    about = {"sha256_of_script": script.sha256, "file": str(getattr(script, "file", ""))}
    with claim(out, "comparison.json", asked, resume=resume, about=about, free=FREE):
        if read_json(out / "comparison.json").get("sha256_of_script") != script.sha256:
            raise InputError(
                f"'{out}' compares {script.name} as it was before a change: give another --out, or take the change back"
            )
        jobs = [
            ArmJob(
                script, comparison.config(name, seed), folder_of(out, name, seed), comparison.threads, comparison.retry
            )
            for seed in range(comparison.seeds)
            for name in comparison.sharpness
        ]
        failed = _run(jobs, comparison, console)
        arms = [_outcomes(name, comparison, out, failed) for name in comparison.sharpness]
        table = tabulate(script.name, arms, comparison.better, comparison.margin)
        write_json(out / "compare.json", {"comparison": asked, "script": about, **table.to_json()})
    return table


def folder_of(out: Path, sharpness: str, seed: int) -> Path:
    """Return the folder of an arm with a seed."""
    return out / "runs" / f"{sharpness}-seed{seed}"


def _run(jobs: list[ArmJob], comparison: ScriptComparison, console: Console) -> dict[Path, str]:
    """Run the jobs that have neither result nor failure. Returns the failures of those that ran."""
    todo = [job for job in jobs if not (job.folder / RESULT).is_file() and (job.retry or not read_failure(job.folder))]
    if not todo:
        return {}
    table = ProgressTable("comparing", todo, len(jobs) - len(todo), console, _progress)
    executor = executor_of(len(todo), comparison.jobs, comparison.cluster)
    apart = contextlib.nullcontext() if comparison.jobs == 1 else _without_main()
    with apart, executor, table:
        ended = [(job.folder, outcome.failure) for job, outcome in run_jobs(todo, executor, table)]
    return {folder: failure for folder, failure in ended if failure is not None}


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """A context in which new processes do not run the program's own file first, which may be the script itself."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class _ArmProgress(JobProgress):
    def result(self, folder: Path) -> str:
        result = read_result(folder)
        return f"{result.metric} {result.scores[result.metric]:g}"


def _progress(job: ArmJob) -> _ArmProgress:
    run = job.config
    return _ArmProgress(f"{run.sharpness} seed {run.seed}", weight=run.passes)


def _outcomes(name: Sharpness, comparison: ScriptComparison, out: Path, failed: dict[Path, str]) -> ArmOutcomes:
    results, failures = {}, {}
    for seed in range(comparison.seeds):
        folder = folder_of(out, name, seed)
        if (folder / RESULT).is_file():
            results[seed] = read_result(folder, comparison.config(name, seed))
        else:  # where no failure could be written down, it is known here
            failures[seed] = read_failure(folder) or failed.get(folder, "it has not been run")
    return ArmOutcomes(name, comparison.config(name, 0).rho, results, failures)

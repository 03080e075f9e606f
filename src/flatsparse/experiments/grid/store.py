"""A grid of runs in one store, identified by the settings that decide their results; a finished run is never repeated."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatsparse.common.errors import InputError, check_count
from flatsparse.common.files import read
from flatsparse.experiments.claims import plain_name
from flatsparse.experiments.grid.job import JobOutcome, RunJob, SomeFolderJob
from flatsparse.experiments.grid.progress import ProgressTable
from flatsparse.experiments.grid.ray_cluster import RayCluster
from flatsparse.experiments.grid.workers import PATIENCE, Executor, default_jobs, local_executor
from flatsparse.experiments.run.config import FREE, Perturbation, ResolvedRun, RunConfig, as_json, change
from flatsparse.experiments.run.folder import RESULT, has_diverged, read_failure, read_result
from flatsparse.experiments.run.method import FILLED_IN
from flatsparse.experiments.run.records import RunResult
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.terminal import Console

RESULTS = 1  # goes up when the same settings come to other numbers, so that old results are not taken for new ones
RETRY_SECONDS = 2.0  # until a run that another process is training is submitted again

Naming = Callable[[ResolvedRun], str]


@dataclass(frozen=True)
class Outcome:
    """A run with its result or its failure, or with neither when it has not been run.

    Attributes:
        run: as requested.
        folder: the run's, or where it would be.
        diverged: whether it failed because its loss was no longer finite.
    """

    run: RunConfig
    folder: Path
    result: RunResult | None
    failure: str | None
    diverged: bool = False


def key(run: RunConfig) -> str:
    """The hash of everything that decides a run's result; not the location of its data, nor ρ where it is not used.

    A method, a task or a network from a user's file counts with the file's content; data in a folder counts by its name alone.

    Raises: InputError for a run that cannot be.

    >>> key(RunConfig.of(seed=1)) == key(RunConfig.of(seed=1, data_dir=Path("elsewhere"))) != key(RunConfig.of(seed=2))
    True
    """
    # What is left as it is does not count, nor what was done before there was a choice, so that old keys stay true.
    usual = as_json(RunConfig())
    chosen = {
        n: v
        for n, v in as_json(_settled(run)).items()
        if n not in FREE and v not in (usual.get(n), FILLED_IN.get(n, usual.get(n)))
    }
    return hashlib.sha256(json.dumps([RESULTS, chosen, code_of(run)], sort_keys=True).encode()).hexdigest()[:16]


def code_of(run: RunConfig) -> str:
    """Return the hashes of the files of a user's own that a run's method, task and network are from; empty without such."""
    named = (run.pruning.method, run.dataset.task or "", run.model or "")
    files = [name.rpartition(":")[0] for name in named if ".py:" in name]
    return "".join(hashlib.sha256(read(Path(file))).hexdigest() for file in files)


def _settled(requested: RunConfig) -> ResolvedRun:
    """Return the canonical form of a run, which equal runs share."""
    run = resolve(requested)
    if run.pruning.sums:  # which says it all
        run = change(run, explore=None)
    if run.sharpness == "none":
        run = change(run, rho=0.0, rho_schedule="constant", loss_budget=None, adaptive=False, mask_perturbation=True)
    if run.sharpness != "looksam":
        run = change(run, look_every=Perturbation.look_every, look_alpha=Perturbation.look_alpha)
    late, stale = run.perturbation.rho_schedule == "late", run.sharpness == "stale"
    shares = {
        "late_share": run.perturbation.share if late else None,
        "stale_share": run.perturbation.part if stale else None,
    }
    return change(run, **shares)


def name_by_key(run: ResolvedRun) -> str:
    """The folder of a run within a store: a short description, and its key."""
    words = plain_name(f"{run.dataset.title}-{run.model}-{run.pruning.method}-{run.sharpness}")
    return f"runs/{words}-{key(run)}"


def outcomes(runs: Sequence[RunConfig], store: Path, name: Naming = name_by_key) -> list[Outcome]:
    """Return what a store knows of some runs; nothing is run."""
    return [_read(run, store, name) for run in runs]


def run_grid(
    runs: Sequence[RunConfig],
    store: Path,
    *,
    name: Naming = name_by_key,
    test: bool = True,
    exclusive: bool = False,
    jobs: int | None = None,
    cluster: str | None = None,
    retry: bool = False,
    track: Sequence[str] = (),
    title: str = "running",
    console: Console | None = None,
) -> list[Outcome]:
    """Run what a store does not hold yet, some in parallel, and return each run's result or failure.

    Each run has one thread, so that a table's numbers do not depend on how many are run at once, or where. One that fails
    leaves its reason in ``failure.json``, and the others continue. Killed at any moment and called again, each run continues from
    its last checkpoint. Several calls may share a store, on several machines too, and share its runs between them: who trains
    a run holds its lock, which the system takes back when that process ends, however it ends. On a network file
    system this is as good as its locks: NFS has them; where they are kept to one machine (Lustre with ``localflock``), let
    one call at a time use the store, with ``cluster``.

    Args:
        runs: those that are equal are run once.
        store: the folder; ``runs`` in it holds an ordinary run folder for each, ``parents`` the dense first rounds that runs of
            methods with such a round share, ``locks`` empty files.
        name: the folder of a run within the store; only equal runs may have the same.
        test: see ``train``.
        exclusive: True where no other call uses the store; there are no ``locks`` and no ``parents`` then.
        jobs: the number of parallel runs. By default one per core, or one on an accelerator; on a cluster as many as it has CPUs.
        cluster: run on a Ray cluster, by its address; ``local`` starts one on this machine.
        retry: repeat failed runs.
        track: the names of trackers that each run is shown in.
        title: of the table that shows how far it is.
        console: where that is shown.

    Returns: an outcome for each run, in their order.

    Raises: InputError for a cluster that is not there.
    """
    if jobs is not None:
        check_count("--jobs", jobs)
    known = outcomes(list(dict.fromkeys(runs)), store, name)
    todo: dict[Path, RunJob] = {}
    failed: dict[Path, str | None] = {}
    for outcome in known:
        if outcome.result is None and (outcome.failure is None or (retry and outcome.folder != store / "runs")):
            # Equal runs that share a folder must be requested in one form.
            config = _settled(outcome.run) if name is name_by_key else resolve(outcome.run)
            todo[outcome.folder] = RunJob(config, outcome.folder, store, retry, test, exclusive, tuple(track))
    if todo:
        before = len({outcome.folder for outcome in known} - set(todo))
        table = ProgressTable(title, list(todo.values()), before, console or Console(stderr=True))
        at_once = jobs or min(default_jobs(job.config.runtime.device) for job in todo.values())
        with executor_of(len(todo), at_once if cluster is None else jobs, cluster) as executor, table:
            for job, ended in run_jobs(todo.values(), executor, table):
                failed[job.folder] = ended.failure
    results = outcomes(runs, store, name)  # where no failure could be written down, it is known here
    return [
        dataclasses.replace(o, failure=o.failure or failed.get(o.folder)) if o.result is None else o for o in results
    ]


def executor_of(count: int, jobs: int | None, cluster: str | None) -> Executor[Any]:
    """Return the executor of a number of jobs: of a Ray cluster by its address, or of this machine, ``jobs`` at once."""
    if cluster is not None:
        return RayCluster(cluster, jobs)
    assert jobs is not None  # only a cluster knows its own number
    return local_executor(min(jobs, count))


def run_jobs(
    jobs: Collection[SomeFolderJob], executor: Executor[SomeFolderJob], table: ProgressTable
) -> Iterator[tuple[SomeFolderJob, JobOutcome]]:
    """Run jobs, shown in a table; yield each with its outcome.

    One whose run another process is training, or its first round, is put off.
    """
    waiting = dict.fromkeys(jobs, 0.0)  # until when, in their order
    running = 0
    while waiting or running:
        while executor.free and (job := next((j for j in waiting if waiting[j] <= time.monotonic()), None)):
            del waiting[job]
            executor.submit(job)
            table.started(job.folder)
            running += 1
        ended = executor.finished()
        table.refresh()
        for job, outcome in ended:
            running -= 1
            if outcome.busy:
                waiting[job] = time.monotonic() + RETRY_SECONDS
                table.postponed(job.folder)
            else:
                table.ended(job.folder, outcome.failure)
                yield job, outcome
        if not running and not ended:
            time.sleep(PATIENCE)


def _read(run: RunConfig, store: Path, name: Naming) -> Outcome:
    try:
        folder = store / name(_settled(run))
    except InputError as problem:
        return Outcome(run, store / "runs", None, str(problem))
    if (folder / RESULT).is_file():
        return Outcome(run, folder, read_result(folder), None)
    return Outcome(run, folder, None, read_failure(folder), has_diverged(folder))

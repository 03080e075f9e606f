"""A grid of runs in one store, found by what decides how they come out; what is finished is never run again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flatsparse.common.errors import InputError, check_count
from flatsparse.common.files import read
from flatsparse.experiments.claims import plain_name
from flatsparse.experiments.grid.pool import default_jobs
from flatsparse.experiments.grid.progress import Board
from flatsparse.experiments.grid.ray_cluster import OnRay
from flatsparse.experiments.grid.workers import PATIENCE, Alone, Crew, End, Processes, Task
from flatsparse.experiments.run.config import Perturbation, ResolvedRun, RunConfig, as_json, change
from flatsparse.experiments.run.folder import RESULT, read_failure, read_result
from flatsparse.experiments.run.method import FILLED_IN
from flatsparse.experiments.run.records import RunResult
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.terminal import Console

RESULTS = 1  # goes up when the same settings come to other numbers, so that old results are not taken for new ones
AGAIN = 2.0  # seconds until a run that another process is at is looked at once more


@dataclass(frozen=True)
class Outcome:
    """A run and what came of it: a result or a failure, or neither when it has not been run.

    Attributes:
        run: as it was asked for.
        folder: the run's, or where it would be.
    """

    run: RunConfig
    folder: Path
    result: RunResult | None
    failure: str | None


def key(run: RunConfig) -> str:
    """What stands for everything that decides how a run comes out; neither where its data lies, nor ρ where it has no part.

    A method from a file of one's own counts with the file's content; data in a folder counts by its name alone.

    Raises: InputError for a run that cannot be.

    >>> key(RunConfig.of(seed=1)) == key(RunConfig.of(seed=1, data_dir=Path("elsewhere"))) != key(RunConfig.of(seed=2))
    True
    """
    # What is left as it is does not count, nor what was done before there was a choice, so that old keys stay true.
    usual = as_json(RunConfig())
    told = {
        n: v
        for n, v in as_json(_settled(run)).items()
        if n != "data_dir" and v not in (usual[n], FILLED_IN.get(n, usual[n]))
    }
    file = run.pruning.method.rpartition(":")[0]
    code = hashlib.sha256(read(Path(file))).hexdigest() if file else ""
    return hashlib.sha256(json.dumps([RESULTS, told, code], sort_keys=True).encode()).hexdigest()[:16]


def _settled(asked: RunConfig) -> ResolvedRun:
    """Return a run in the one form that equal runs share."""
    run = resolve(asked)
    if run.pruning.sums:  # which says it all
        run = change(run, explore=None)
    if run.sharpness == "none":
        run = change(run, rho=0.0, rho_schedule="constant", adaptive=False, mask_perturbation=True)
    if run.sharpness != "looksam":
        run = change(run, look_every=Perturbation.look_every, look_alpha=Perturbation.look_alpha)
    return run


def outcomes(runs: Sequence[RunConfig], store: Path) -> list[Outcome]:
    """What a store knows of some runs; nothing is run."""
    return [_look(run, store) for run in runs]


def run_grid(
    runs: Sequence[RunConfig],
    store: Path,
    *,
    jobs: int | None = None,
    cluster: str | None = None,
    retry: bool = False,
    title: str = "running",
    console: Console | None = None,
) -> list[Outcome]:
    """Run what a store does not hold yet, some at a time, and tell what came of each.

    Each run has one thread, so that a table's numbers do not hang on how many are run at once, or where. One that fails
    leaves its reason in ``failure.json``, and the others go on. Killed at any moment and called again, each run goes on from
    its last checkpoint. Several calls may share a store, on several machines too, and share out its runs: who trains a
    run holds its lock (``flock``), which the system takes back when that process ends, however it ends. On a network file
    system this is as good as its locks: NFS has them; where they are kept to one machine (Lustre with ``localflock``), let
    one call at a time use the store, with ``cluster``.

    Args:
        runs: those that are equal are run once.
        store: the folder; ``runs`` in it holds an ordinary run folder for each, ``parents`` the dense first rounds that runs of
            lth and lrr share, ``locks`` empty files.
        jobs: runs at once. By default one for each core, or one on an accelerator; on a cluster as many as it has CPUs.
        cluster: run on a Ray cluster, by its address; ``local`` starts one on this machine.
        retry: run once more what failed.
        title: of the table that shows how far it is.
        console: where that is shown.

    Returns: what came of each run, in their order.

    Raises: InputError for a cluster that is not there.
    """
    if jobs is not None:
        check_count("--jobs", jobs)
    found = outcomes(list(dict.fromkeys(runs)), store)
    todo: dict[Path, Task] = {}
    for outcome in found:
        if outcome.result is None and (outcome.failure is None or (retry and outcome.folder != store / "runs")):
            todo[outcome.folder] = Task(_settled(outcome.run), outcome.folder, store, retry)
    if todo:
        before = len({outcome.folder for outcome in found} - set(todo))
        board = Board(title, list(todo.values()), before, console or Console(stderr=True))
        with contextlib.closing(_crew(todo.values(), jobs, cluster)) as crew, board:
            for task, end in _work(todo.values(), crew, board):
                board.ended(task.folder, end.failure)
    return outcomes(runs, store)


def _crew(tasks: Collection[Task], jobs: int | None, cluster: str | None) -> Crew:
    if cluster is not None:
        return OnRay(cluster, jobs)
    at_once = min(jobs or min(default_jobs(task.run) for task in tasks), len(tasks))
    return Alone() if at_once == 1 else Processes(at_once)


def _work(tasks: Collection[Task], crew: Crew, board: Board) -> Iterator[tuple[Task, End]]:
    """Hand out tasks as hands are free; one that another process is at, or its first round, is put off."""
    waiting = dict.fromkeys(tasks, 0.0)  # until when, in their order
    running = 0
    while waiting or running:
        while crew.free and (task := next((t for t in waiting if waiting[t] <= time.monotonic()), None)):
            del waiting[task]
            crew.begin(task)
            board.begun(task.folder)
            running += 1
        ends = crew.finished()
        for task, end in ends:
            running -= 1
            if end.busy:
                waiting[task] = time.monotonic() + AGAIN
                board.put_off(task.folder)
            else:
                yield task, end
        if not running and not ends:
            time.sleep(PATIENCE)


def _look(run: RunConfig, store: Path) -> Outcome:
    try:
        settled, stands = _settled(run), key(run)
    except InputError as problem:
        return Outcome(run, store / "runs", None, str(problem))
    name = plain_name(f"{settled.dataset.data}-{settled.model}-{settled.pruning.method}-{settled.sharpness}")
    folder = store / "runs" / f"{name}-{stands}"
    if (folder / RESULT).is_file():
        return Outcome(run, folder, read_result(folder), None)
    return Outcome(run, folder, None, read_failure(folder))

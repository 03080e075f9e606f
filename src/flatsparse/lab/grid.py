"""A grid of runs in one store, found by what decides how they come out; what is finished is never run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from flatsparse.errors import InputError, check_count
from flatsparse.lab.crew import Crew, Task, crew
from flatsparse.lab.live import Board
from flatsparse.lab.parent import first_round, has_parent
from flatsparse.lab.pool import default_jobs
from flatsparse.lab.run import Run
from flatsparse.storage import read_json, write_json

GENERATION = 1  # goes up when the same settings come to other numbers, so that old results are not taken for new ones


@dataclass(frozen=True)
class Outcome:
    """A run and what came of it: a result or a failure, or neither when it has not been run.

    Attributes:
        run: with its defaults filled in, where it can be run at all.
        folder: the run's, or where it would be.
    """

    run: Run
    folder: Path
    result: dict[str, Any] | None = None
    failure: str | None = None


def key(run: Run) -> str:
    """What stands for everything that decides how a run comes out; where its data lies does not.

    Raises: InputError for a run that cannot be.

    >>> key(Run(seed=1)) == key(Run(seed=1, data_dir=Path("elsewhere"))) != key(Run(seed=2))
    True
    """
    told = {name: value for name, value in run.resolved().as_dict().items() if name != "data_dir"}
    return hashlib.sha256(json.dumps([GENERATION, told], sort_keys=True).encode()).hexdigest()[:16]


def outcomes(runs: Sequence[Run], store: Path) -> list[Outcome]:
    """What a store knows of some runs; nothing is run."""
    return [_look(run, store) for run in runs]


def run_grid(
    runs: Sequence[Run],
    store: Path,
    *,
    jobs: int | None = None,
    cluster: str | None = None,
    retry: bool = False,
    title: str = "running",
    console: Console | None = None,
) -> list[Outcome]:
    """Run what a store does not hold yet, some at a time, and tell what came of each.

    Each run has one thread of a CPU, so that a table's numbers do not hang on how many are run at once. One that fails leaves
    its reason in ``failure.json``; the others go on. Killed at any moment and called again, unfinished runs resume. Several
    calls may share a store: a run's lock is held by the process that trains it (``flock``, which a network file system must
    offer when several machines share the store).

    Args:
        runs: two that are equal are run once.
        store: the folder; ``runs`` in it holds an ordinary run folder for each, ``parents`` the dense first rounds that runs of
            lth and lrr share.
        jobs: runs at once. By default one for each core, or one on an accelerator; on a cluster as many as it has room for.
        cluster: run on a Ray cluster, by its address; ``local`` starts one on this machine.
        retry: run once more what failed.
        title: of the table that shows how far it is.
        console: where that is shown.

    Raises: InputError for a cluster that is not there.
    """
    if jobs is not None:
        check_count("--jobs", jobs)
    known = {run: _look(run, store) for run in dict.fromkeys(runs)}
    todo: dict[Path, Task] = {}
    for run, outcome in known.items():
        if outcome.result is None and (outcome.failure is None or (retry and _can_be(run))):
            todo[outcome.folder] = Task(outcome.run, outcome.folder, store)
            (outcome.folder / "failure.json").unlink(missing_ok=True)
    if todo:
        at_once = jobs or min(default_jobs(task.run) for task in todo.values())
        console = console or Console(stderr=True)
        with crew(at_once if cluster is None else jobs, cluster) as hands, Board(title, len(known), console) as board:
            board.begin([task.run for task in todo.values()], [task.folder for task in todo.values()])
            for task, failure in _work(list(todo.values()), hands, board):
                if failure is not None:
                    task.folder.mkdir(parents=True, exist_ok=True)
                    write_json(task.folder / "failure.json", {"reason": failure})
                board.done(task.folder, failure)
    return outcomes(runs, store)


def _work(tasks: Sequence[Task], hands: Crew, board: Board) -> Iterator[tuple[Task, str | None]]:
    """Hand out tasks as hands are free; a dense first round that several need is made by one of them first."""
    waiting, running = list(tasks), set[Task]()
    while waiting or running:
        while hands.free and (task := _next(waiting, running)) is not None:
            waiting.remove(task)
            running.add(task)
            hands.begin(task)
            board.started(task.folder)
        for task, failure in hands.finished():
            running.remove(task)
            yield task, failure
        board.look()


def _next(waiting: Sequence[Task], running: set[Task]) -> Task | None:
    """The first task that need not wait for a first round that is in the making."""
    making = {first_round(task.run) for task in running}
    for task in waiting:
        if task.run.rounds == 1 or first_round(task.run) not in making or has_parent(task.parents, task.run):
            return task
    return None


def _look(run: Run, store: Path) -> Outcome:
    try:
        resolved = run.resolved()
    except InputError as problem:
        return Outcome(run, store / "runs", failure=str(problem))
    method = Path(str(resolved.method).rpartition(":")[2]).name
    name = f"{resolved.data}-{resolved.model}-{method}{resolved.sparsity:g}-{resolved.sharpness}-{key(run)}"
    folder = store / "runs" / name.replace("/", "_")
    if (folder / "result.json").is_file():
        return Outcome(resolved, folder, result=read_json(folder / "result.json"))
    failure = folder / "failure.json"
    return Outcome(resolved, folder, failure=read_json(failure)["reason"] if failure.is_file() else None)


def _can_be(run: Run) -> bool:
    try:
        run.resolved()
    except InputError:
        return False
    return True

"""Many runs, some at a time, each in its own folder; what is finished is not run again."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flatsparse.experiments.progress import ProgressLines
from flatsparse.experiments.run.config import ResolvedRun
from flatsparse.experiments.run.finish import Diverged
from flatsparse.experiments.run.folder import FAILURE, METRICS, RESULT, read_result, write_failure
from flatsparse.experiments.run.loop import train
from flatsparse.experiments.run.method import rounds_of
from flatsparse.experiments.run.records import RunResult
from flatsparse.experiments.terminal import Console


@dataclass(frozen=True)
class Job:
    """A run and where it goes; ``test`` as for ``train``. One that is not tested is for choices, and may diverge."""

    run: ResolvedRun
    out: Path
    test: bool = True

    @property
    def finished(self) -> bool:
        return (self.out / RESULT).is_file() or self.diverged

    @property
    def diverged(self) -> bool:
        return not self.test and (self.out / FAILURE).is_file()

    @property
    def result(self) -> RunResult:
        """What the finished run wrote."""
        return read_result(self.out)

    @property
    def validation_accuracy(self) -> float:
        """What choices go by: in percent, and 0, the worst there is, for a run that diverged."""
        return 0.0 if self.diverged else float(self.result.validation_accuracy or 0.0)


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs(run: ResolvedRun) -> int:
    """As many runs at once as there are cores, each on one; a single one on an accelerator."""
    return cores() if run.runtime.device == "cpu" else 1


@contextmanager
def workers(at_once: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that share out the cores, so that runs side by side do not slow each other down; None for one run at a
    time, which stays in this process. They start when they are first needed."""
    if at_once == 1:
        yield None
        return
    threads = max(1, cores() // at_once)
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(at_once, context, initializer=_begin, initargs=(threads,)) as pool:
        yield pool


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Leave when the parent is killed: the pool's own pipe stays open as long as any worker lives."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def run_all(jobs: Sequence[Job], pool: ProcessPoolExecutor | None, title: str, console: Console) -> None:
    """Run every job that is not finished, with a bar; a failing job stops the rest and its error is raised."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[runs]}/{task.fields[of]} runs"),
    )
    left = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    whole = sum(job.run.schedule.whole_epochs * rounds_of(job.run) * job.run.passes for job in jobs)
    with (
        Progress(*columns, *left, console=console, disable=not console.is_terminal) as bar,
        ProgressLines(console, title, whole) as lines,
    ):
        task = bar.add_task(title, total=whole, runs=0, of=len(jobs))

        def tell() -> None:
            lines.done = sum(epochs_done(job.out) * job.run.passes for job in jobs)
            bar.update(task, completed=lines.done, runs=sum(job.finished for job in jobs))

        tell()
        todo = [job for job in jobs if not job.finished]
        if pool is None:
            for job in todo:
                _run(job)
                tell()
        else:
            _side_by_side(todo, pool, tell)
    if not console.is_terminal:
        before = f", {len(jobs) - len(todo)} before" if len(todo) < len(jobs) else ""
        console.print(f"{title}: {len(todo)} runs done{before}")


def _side_by_side(jobs: Sequence[Job], pool: ProcessPoolExecutor, tell: Callable[[], None]) -> None:
    waiting = {pool.submit(_run, job) for job in jobs}
    try:
        while waiting:
            done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            tell()
    finally:  # after a failure, or Ctrl-C, what has not begun shall not begin
        for future in waiting:
            future.cancel()


def _run(job: Job) -> None:
    try:
        train(job.run, job.out, resume=True, test=job.test)
    except Diverged as problem:
        if job.test:
            raise Diverged(f"run {job.out.name}: {problem}") from None
        write_failure(job.out, str(problem), problem)  # and the choice goes on


def epochs_done(folder: Path) -> int:
    """How many epochs a run has finished, as its folder tells."""
    metrics = folder / METRICS
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0

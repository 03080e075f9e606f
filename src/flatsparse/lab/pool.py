"""Many runs, some at a time, each in its own folder; what is finished is not run again."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flatsparse.lab.run import Run
from flatsparse.lab.training import train


@dataclass(frozen=True)
class Job:
    """A run and where it goes; ``test`` as for ``train``."""

    run: Run
    out: Path
    test: bool = True

    @property
    def result(self) -> dict[str, Any]:
        """What the finished run wrote."""
        found: dict[str, Any] = json.loads((self.out / "result.json").read_text())
        return found


def default_jobs(run: Run) -> int:
    """As many runs at once as there are cores, each on one; a single one on an accelerator."""
    return len(os.sched_getaffinity(0)) if run.device == "cpu" else 1


def run_all(jobs: Sequence[Job], at_once: int, title: str, console: Console) -> None:
    """Run every job, with a bar; a failing job stops the rest and its error is raised.

    A run's steps take one thread each, so that runs side by side do not slow each other down.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // at_once)
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    weight = {job: job.run.epochs * job.run.passes for job in jobs}
    with (
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[runs]}/" + f"{len(jobs)} runs"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        ) as bar,
        ProcessPoolExecutor(
            at_once, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)
        ) as pool,
    ):
        task = bar.add_task(title, total=sum(weight.values()), runs=0)
        waiting: set[Future[None]] = {pool.submit(_run, job) for job in jobs}
        finished = 0
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                finished += len(done)
                bar.update(task, completed=sum(_epochs(job) * job.run.passes for job in jobs), runs=finished)
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
    if not console.is_terminal:
        console.print(f"{title}: {len(jobs)} runs done")


def _run(job: Job) -> None:
    train(job.run, job.out, resume=True, test=job.test)


def _epochs(job: Job) -> int:
    """How many epochs a job has finished, as its folder tells."""
    metrics = job.out / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0

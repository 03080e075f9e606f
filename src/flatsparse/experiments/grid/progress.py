"""Progress of a grid of runs: a table that lives on a terminal; elsewhere a line for each finished run, and now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flatsparse.experiments.grid.job import FolderJob, RunJob
from flatsparse.experiments.progress import ProgressLines
from flatsparse.experiments.run.folder import METRICS, read_result
from flatsparse.experiments.run.method import rounds_of
from flatsparse.experiments.terminal import Console

SHOWN = 12  # rows of running runs; a cluster may have hundreds


def epochs_done(folder: Path) -> int:
    """The number of epochs that a run has finished, read from its folder."""
    metrics = folder / METRICS
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


class JobProgress:
    """The progress of one job, which is all or nothing; and since when it has been running here.

    Attributes:
        whole, before, done: the pieces of work in all, done before, and done by now.
        weight: the time of a piece, relative to those of other jobs.
    """

    heads: ClassVar[tuple[str, ...]] = ("run", "running for")

    def __init__(self, name: str, whole: int = 1, before: int = 0, weight: float = 1.0) -> None:
        self.name, self.whole, self.before, self.done, self.weight = name, whole, before, before, weight
        self.since: float | None = None

    def refresh(self, folder: Path) -> None:
        """Read again how much is done."""

    def end(self, folder: Path, failed: bool) -> None:
        """Count what is done at the end; what a failed job leaves undone is no longer waited for."""
        self.done = self.before if failed else self.whole
        self.since, self.whole = None, self.done

    def cells(self, now: float) -> tuple[str, ...]:
        """The row of a running job."""
        return (self.name, _time(now - (self.since or now)))

    def result(self, folder: Path) -> str:
        """The result of a finished job, in a word."""
        return "done"


class RunProgress(JobProgress):
    """The epochs of one run."""

    heads: ClassVar[tuple[str, ...]] = ("run", "epoch", "epochs/min", "left")

    @classmethod
    def of(cls, job: RunJob) -> RunProgress:
        """The progress of a run of a grid."""
        run = job.config
        # An epoch takes the time of its gradients; the sizes of nets are not considered.
        whole = run.schedule.whole_epochs * rounds_of(run)
        pruning = run.pruning
        subject = run.dataset.task or f"{run.dataset.data} {run.model}"
        name = f"{subject} {pruning.method} {pruning.sparsity:g} {run.sharpness} seed {run.seed}"
        return cls(name, whole, epochs_done(job.folder), run.passes)

    def refresh(self, folder: Path) -> None:
        self.done = max(self.before, epochs_done(folder))

    def end(self, folder: Path, failed: bool) -> None:
        self.refresh(folder)
        self.since, self.whole = None, self.done

    def cells(self, now: float) -> tuple[str, ...]:
        made, took = self.done - self.before, now - (self.since or now)
        speed = made / took if took else 0.0
        left = _time((self.whole - self.done) / speed) if speed else ""
        return (self.name, f"{self.done}/{self.whole}", f"{60 * speed:.1f}" if speed else "", left)

    def result(self, folder: Path) -> str:
        result = read_result(folder)
        value = result.value if result.was_tested else result.validation_value
        return "" if value is None else f"{value:.6g}" if result.scored else f"{value:.2f} %"


class ProgressTable:
    """Shows how far jobs are; a context.

    Args:
        before: the number of those that were finished before.
        progress: makes the progress of a job.
    """

    def __init__(
        self,
        title: str,
        jobs: Sequence[FolderJob],
        before: int,
        console: Console,
        progress: Callable[[Any], JobProgress] = RunProgress.of,
    ) -> None:
        self.title, self.before, self.console = title, before, console
        self.runs = {job.folder: progress(job) for job in jobs}
        self.done = self.failed = 0
        self.began = time.monotonic()
        whole = sum((run.whole - run.before) * run.weight for run in self.runs.values())
        self.lines = ProgressLines(console, title, whole)
        self.live = Live(get_renderable=self.table, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> ProgressTable:
        if self.console.is_terminal:
            self.live.start()
        self.lines.__enter__()
        return self

    def __exit__(self, *problem: object) -> None:
        self.lines.__exit__(*problem)
        self.live.stop()
        failed = f", {self.failed} failed" if self.failed else ""
        before = f", {self.before} before" if self.before else ""
        self.console.print(f"{self.title}: {self.done} runs done{failed}{before}", highlight=False)

    def started(self, folder: Path) -> None:
        """Count a run as running from now on."""
        self.runs[folder].since = time.monotonic()

    def postponed(self, folder: Path) -> None:
        """Count a run as not running: another process is training it."""
        self.runs[folder].since = None

    def ended(self, folder: Path, failure: str | None) -> None:
        """Count a run as finished or failed."""
        run = self.runs[folder]
        took = time.monotonic() - (run.since or time.monotonic())
        run.end(folder, failure is not None)
        self.done, self.failed = self.done + (failure is None), self.failed + (failure is not None)
        counted = f"[{self.done + self.failed}/{len(self.runs)}] {folder.name}"
        if failure is not None:
            self.console.print(Text(f"{counted} failed: {failure}", style="red"), soft_wrap=True)
        elif not self.console.is_terminal:
            self.console.print(Text(f"{counted}: {run.result(folder)}, {took:.1f} s"), soft_wrap=True)

    def refresh(self) -> None:
        """Read again how far the running runs are."""
        for folder, run in self.runs.items():
            if run.since is not None:
                run.refresh(folder)
        self.lines.done = self._trained()

    def table(self) -> Group:
        """The rows of the running runs, and a line for all."""
        now = time.monotonic()
        self.refresh()
        rows = Table(*next(iter(self.runs.values())).heads, box=None, pad_edge=False)
        running = [run for run in self.runs.values() if run.since is not None]
        for run in running[:SHOWN]:
            name, *cells = run.cells(now)
            rows.add_row(Text(name), *cells)
        trained, took = self._trained(), now - self.began
        remaining = sum((run.whole - run.done) * run.weight for run in self.runs.values())
        ahead = f", about {_time(remaining * took / trained)} left" if trained else ""
        more = f", {len(running) - SHOWN} more at work" if len(running) > SHOWN else ""
        counts = f"{self.done} done, {self.failed} failed, {len(self.runs) - self.done - self.failed} to go"
        return Group(rows, Text(f"{self.title}: {counts}{more}, {_time(took)}{ahead}"))

    def _trained(self) -> float:
        """The epochs trained since the start, in passes."""
        return sum((run.done - run.before) * run.weight for run in self.runs.values())


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"

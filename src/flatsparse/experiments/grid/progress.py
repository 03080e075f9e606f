"""How far a grid of runs is: a table that lives on a terminal, a line for each finished run elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flatsparse.experiments.grid.pool import epochs_done
from flatsparse.experiments.grid.workers import Task
from flatsparse.experiments.run.config import ResolvedRun
from flatsparse.experiments.run.folder import read_result
from flatsparse.experiments.run.method import rounds_of
from flatsparse.experiments.terminal import Console

SHOWN = 12  # runs at work; a cluster may have hundreds


class Mark:
    """Where one run is: passes over the images in all, made before, and by now; and since when it is at work here."""

    def __init__(self, run: ResolvedRun, before: int) -> None:
        self.run, self.whole, self.before, self.done = run, run.schedule.whole_epochs * rounds_of(run), before, before
        self.since: float | None = None

    @property
    def name(self) -> str:
        """What it is, in words."""
        run = self.run
        return f"{run.dataset.data} {run.model} {run.pruning.method} {run.pruning.sparsity:g} {run.sharpness} seed {run.seed}"

    def look(self, folder: Path) -> None:
        """See how far the run is."""
        self.done = max(self.before, epochs_done(folder))


class Board:
    """Shows how far runs are; a context."""

    def __init__(self, title: str, tasks: Sequence[Task], before: int, console: Console) -> None:
        self.title, self.before, self.console = title, before, console
        self.marks = {task.folder: Mark(task.run, epochs_done(task.folder)) for task in tasks}
        self.done = self.failed = 0
        self.began = time.monotonic()
        self.live = Live(get_renderable=self.table, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Board:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.live.stop()
        failed = f", {self.failed} failed" if self.failed else ""
        before = f", {self.before} before" if self.before else ""
        self.console.print(f"{self.title}: {self.done} runs done{failed}{before}", highlight=False)

    def begun(self, folder: Path) -> None:
        """A run is at work from now on."""
        self.marks[folder].since = time.monotonic()

    def put_off(self, folder: Path) -> None:
        """Another process is at the run."""
        self.marks[folder].since = None

    def ended(self, folder: Path, failure: str | None) -> None:
        """A run has ended; what a failed one leaves undone is no longer waited for."""
        mark = self.marks[folder]
        took = time.monotonic() - (mark.since or time.monotonic())
        mark.look(folder)
        mark.since, mark.whole = None, mark.done
        self.done, self.failed = self.done + (failure is None), self.failed + (failure is not None)
        place = f"[{self.done + self.failed}/{len(self.marks)}] {folder.name}"
        if failure is not None:
            self.console.print(Text(f"{place} failed: {failure}", style="red"), soft_wrap=True)
        elif not self.console.is_terminal:
            accuracy = read_result(folder).accuracy
            self.console.print(Text(f"{place}: {accuracy:.2f} %, {took:.1f} s"), soft_wrap=True)

    def table(self) -> Group:
        """A row for each run at work, and a line for all."""
        now = time.monotonic()
        grid = Table("run", "epoch", "epochs/min", "left", box=None, pad_edge=False)
        working = [(folder, mark) for folder, mark in self.marks.items() if mark.since is not None]
        for folder, mark in working:
            mark.look(folder)
        for _, mark in working[:SHOWN]:
            made, took = mark.done - mark.before, now - (mark.since or now)
            speed = made / took if took else 0.0
            when = _time((mark.whole - mark.done) / speed) if speed else ""
            grid.add_row(Text(mark.name), f"{mark.done}/{mark.whole}", f"{60 * speed:.1f}" if speed else "", when)
        # An epoch takes the time of its gradients; nets of other sizes are not told apart.
        behind = sum((mark.done - mark.before) * mark.run.passes for mark in self.marks.values())
        left = sum((mark.whole - mark.done) * mark.run.passes for mark in self.marks.values())
        took = now - self.began
        ahead = f", about {_time(left * took / behind)} left" if behind else ""
        more = f", {len(working) - SHOWN} more at work" if len(working) > SHOWN else ""
        counts = f"{self.done} done, {self.failed} failed, {len(self.marks) - self.done - self.failed} to go"
        return Group(grid, Text(f"{self.title}: {counts}{more}, {_time(took)}{ahead}"))


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"

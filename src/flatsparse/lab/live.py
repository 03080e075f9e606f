"""How far a grid of runs is: a table that lives on a terminal, a line for each finished run elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flatsparse.lab.pool import epochs_done
from flatsparse.lab.run import Run
from flatsparse.storage import read_json

SHOWN = 12  # runs at work; a cluster may have hundreds


@dataclass
class Mark:
    """Where one run is: passes over the images done and in all, and since when it is at work here."""

    run: Run
    whole: int
    before: int
    done: int
    since: float | None = None

    @property
    def worth(self) -> float:
        """Gradients in a step, which is what an epoch's time goes by."""
        return self.run.passes


class Board:
    """Shows how far runs are; a context."""

    def __init__(self, title: str, of: int, console: Console) -> None:
        self.title, self.of, self.console = title, of, console
        self.marks: dict[Path, Mark] = {}
        self.ended = self.failed = 0
        self.began = time.monotonic()
        self.live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None

    def __enter__(self) -> Board:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()
        told = f", {self.failed} failed" if self.failed else ""
        before = self.of - len(self.marks)
        self.console.print(
            f"{self.title}: {self.ended - self.failed} runs done{told}" + (f", {before} before" if before else ""),
            highlight=False,
        )

    def begin(self, runs: Sequence[Run], folders: Sequence[Path]) -> None:
        """Say what will be run."""
        for run, folder in zip(runs, folders, strict=True):
            done = epochs_done(folder)
            self.marks[folder] = Mark(run, run.whole_epochs * run.rounds, done, done)

    def started(self, folder: Path) -> None:
        """A run is at work from now on."""
        self.marks[folder].since = time.monotonic()

    def done(self, folder: Path, failure: str | None) -> None:
        """A run has ended."""
        mark = self.marks[folder]
        took = time.monotonic() - (mark.since or time.monotonic())
        mark.since, mark.whole = None, mark.whole if failure is None else mark.done
        mark.done = mark.whole
        self.ended, self.failed = self.ended + 1, self.failed + (failure is not None)
        if failure is not None:
            self.console.print(f"[red]failed[/red] {folder.name}: ", Text(failure), highlight=False)
        elif not self.live:
            accuracy = read_json(folder / "result.json")["test_accuracy"]
            place = f"[{self.ended}/{len(self.marks)}]"
            self.console.print(f"{place} {folder.name}: {accuracy:.2f} %, {took:.1f} s", markup=False, highlight=False)

    def look(self) -> None:
        """Draw anew."""
        if self.live:
            for folder, mark in self.marks.items():
                if mark.since is not None:
                    mark.done = max(mark.before, epochs_done(folder))
            self.live.update(self.table())

    def table(self) -> Group:
        """A row for each run at work, and a line for all."""
        now = time.monotonic()
        grid = Table("run", "epoch", "epochs/min", "left", box=None, pad_edge=False)
        working = [(folder, mark) for folder, mark in self.marks.items() if mark.since is not None]
        for folder, mark in working[:SHOWN]:
            made, took = mark.done - mark.before, now - (mark.since or now)
            rate, left = "", ""
            if made:
                rate, left = f"{60 * made / took:.1f}", _time((mark.whole - mark.done) * took / made)
            grid.add_row(folder.name, f"{mark.done}/{mark.whole}", rate, left)
        gone = sum((mark.done - mark.before) * mark.worth for mark in self.marks.values())
        ahead = sum((mark.whole - mark.done) * mark.worth for mark in self.marks.values())
        took = now - self.began
        told = f", about {_time(ahead * took / gone)} left" if gone else ""
        more = f", {len(working) - SHOWN} more at work" if len(working) > SHOWN else ""
        failed = f", {self.failed} failed" if self.failed else ""
        whole = f"{self.title}: {self.ended} of {len(self.marks)} runs ended{failed}{more}, {_time(took)}{told}"
        return Group(grid, Text(whole))


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"

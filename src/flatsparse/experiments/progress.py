"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from typing import Any

from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from flatsparse.experiments.terminal import Console

SECONDS = 30.0  # between two lines


class ProgressLines:
    """Prints a plain line now and then on a console that is no terminal; a context.

    Attributes:
        done: how much of ``whole`` is done; set it as the work proceeds.
    """

    def __init__(self, console: Console, title: str, whole: float) -> None:
        self.console, self.title, self.whole, self.done = console, title, whole, 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._print, daemon=True)  # one piece of the work may take minutes

    def __enter__(self) -> ProgressLines:
        if not self.console.is_terminal:
            self._thread.start()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _print(self) -> None:
        began = time.monotonic()
        while not self._ended.wait(SECONDS):
            share = self.done / self.whole if self.whole else 1.0
            passed = time.monotonic() - began
            self.console.print(f"{self.title}: {share:.0%} after {passed:.0f} s", highlight=False, markup=False)


class Progress:
    """A bar with a title, a note and the time left, or lines where the console is no terminal; a context.

    Args:
        console: where it is shown.
        title: the name of the work.
        whole: the amount of work in all; without it there are no lines, and a bar without an end until ``update``.
        done: the amount that is done already, in the unit of the whole.
        note: stands behind the bar.
    """

    def __init__(self, console: Console, title: str, whole: float | None, *, done: float = 0.0, note: str = "") -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        left = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self._bar = RichProgress(*columns, *left, console=console, disable=not console.is_terminal)
        self._task: TaskID = self._bar.add_task(title, total=whole, note=note)
        self._lines = None if whole is None else ProgressLines(console, title, whole)
        self.update(done)

    @property
    def done(self) -> float:
        """The amount that is done."""
        return self._done

    def __enter__(self) -> Progress:
        self._bar.start()
        if self._lines is not None:
            self._lines.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        if self._lines is not None:
            self._lines.__exit__(*problem)
        self._bar.stop()

    def advance(self, by: float = 1.0) -> None:
        """Count more work as done."""
        self.update(self.done + by)

    def update(
        self,
        done: float | None = None,
        *,
        whole: float | None = None,
        title: str | None = None,
        note: str | None = None,
    ) -> None:
        """Show how much is done, or another whole, title or note; what is None stays. Lines keep their title."""
        if done is not None:
            self._done = done
            if self._lines is not None:
                self._lines.done = done
        if note is not None:
            self._bar.update(self._task, note=note)
        self._bar.update(self._task, completed=done, total=whole, description=title)

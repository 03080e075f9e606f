"""Progress of one run on the console: a bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import contextlib
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flatsparse.experiments.report import printing
from flatsparse.experiments.run.config import ResolvedRun
from flatsparse.experiments.run.method import rounds_of
from flatsparse.experiments.run.records import EpochRecord
from flatsparse.experiments.terminal import Console


class RunBar:
    """A watcher that prints the progress of a run; a context."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.fields[rate]:.0f} images/s"),
        )
        self.bar = Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)
        self.task = self.bar.add_task("", total=None, epoch="1", rate=0.0)
        self._shown = contextlib.ExitStack()

    def __enter__(self) -> RunBar:
        if self.console.is_terminal:
            self._shown.enter_context(self.bar)
        return self

    def __exit__(self, *problem: Any) -> None:
        self._shown.close()

    def started(self, run: ResolvedRun, setting: str) -> None:
        """Print what is trained."""
        self.last: EpochRecord | None = None
        self.epochs_a_round, self.rounds = run.schedule.whole_epochs, rounds_of(run)
        self.epochs = self.rounds * self.epochs_a_round
        self.console.print(
            f"{run.model} on {run.dataset.data}, {run.pruning.method}, sharpness {run.sharpness}: {setting}",
            highlight=False,
        )

    def stepped(self, step: int, steps: int, images_per_second: float) -> None:
        """Move the bar."""
        self.bar.update(self.task, completed=step, total=steps, rate=images_per_second)

    def finished_epoch(self, record: EpochRecord) -> None:
        """Print an epoch's losses and accuracies, and warnings."""
        coming = min(record.epoch + 1, self.epochs)
        of_rounds = f", round {(coming - 1) // self.epochs_a_round + 1}/{self.rounds}" if self.rounds > 1 else ""
        self.bar.update(self.task, epoch=f"{coming}/{self.epochs}{of_rounds}")
        in_round = "" if record.round is None else f"  round {record.round + 1}/{self.rounds}"
        accuracy = record.validation_accuracy
        validation = "" if accuracy is None else f"validation {accuracy:.2f} %  "
        self.console.print(
            f"epoch {record.epoch:>3}/{self.epochs}{in_round}  "
            f"loss {record.train_loss:.4f}  train {record.train_accuracy:.2f} %  "
            f"{validation}{record.images_per_second:.0f} images/s",
            highlight=False,
        )
        for warning in printing.warnings(record, self.last):
            self.console.print(f"warning: {warning}", style="yellow", highlight=False)
        self.last = record

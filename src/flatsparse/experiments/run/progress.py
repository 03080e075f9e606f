"""Progress of one run on the console: a bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

from typing import Any

from flatsparse.experiments.labels import scores_text
from flatsparse.experiments.progress import Progress
from flatsparse.experiments.run.config import ResolvedRun
from flatsparse.experiments.run.method import rounds_of
from flatsparse.experiments.run.records import EpochRecord
from flatsparse.experiments.tasks.networks import TEXT_MODELS
from flatsparse.experiments.terminal import Console


class RunBar:
    """A watcher that prints the progress of a run; a context."""

    def __init__(self, console: Console) -> None:
        self.console, self.bar = console, Progress(console, "epoch 1", None)

    def __enter__(self) -> RunBar:
        self.bar.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        self.bar.__exit__(*problem)

    def started(self, run: ResolvedRun, setting: str) -> None:
        """Print what is trained."""
        self.last: EpochRecord | None = None
        self.epochs_a_round, self.rounds = run.schedule.whole_epochs, rounds_of(run)
        self.epochs = self.rounds * self.epochs_a_round
        self.unit = "samples" if run.dataset.task or run.model in TEXT_MODELS else "images"
        subject = run.dataset.task or f"{run.model} on {run.dataset.data}"
        self.console.print(
            f"{subject}, {run.pruning.method}, sharpness {run.sharpness}: {setting}",
            highlight=False,
        )

    def stepped(self, step: int, steps: int, images_per_second: float) -> None:
        """Move the bar."""
        self.bar.update(step, whole=steps, note=f"{images_per_second:.0f} {self.unit}/s")

    def measured(self, samples: int, whole: int) -> None:
        """Move the bar of the closing measurements."""
        self.bar.update(samples, whole=whole, title="measuring", note="")

    def finished_epoch(self, record: EpochRecord) -> None:
        """Print an epoch's losses and accuracies, and warnings."""
        coming = min(record.epoch + 1, self.epochs)
        of_rounds = f", round {(coming - 1) // self.epochs_a_round + 1}/{self.rounds}" if self.rounds > 1 else ""
        self.bar.update(title=f"epoch {coming}/{self.epochs}{of_rounds}")
        in_round = "" if record.round is None else f"  round {record.round + 1}/{self.rounds}"
        train = "" if record.train_accuracy is None else f"train {record.train_accuracy:.2f} %  "
        self.console.print(
            f"epoch {record.epoch:>3}/{self.epochs}{in_round}  "
            f"loss {record.train_loss:.4f}  {train}{_validation(record)}{record.images_per_second:.0f} {self.unit}/s",
            highlight=False,
        )
        for warning in topology_warnings(record, self.last):
            self.console.print(f"warning: {warning}", style="yellow", highlight=False)
        self.last = record


def _validation(record: EpochRecord) -> str:
    """Return the accuracy, or the first score, on the validation samples as text."""
    if record.validation_metric is not None and record.validation_score is not None:
        return f"validation {scores_text({record.validation_metric: record.validation_score})}  "
    return "" if record.validation_accuracy is None else f"validation {record.validation_accuracy:.2f} %  "


def topology_warnings(record: EpochRecord, before: EpochRecord | None) -> list[str]:
    """The new problems of the topology after an epoch."""
    problems = [
        f"layer {name} has collapsed: {share:.0%} of its filters have no active weight; lower --sparsity, or --exclude it"
        for name, share in record.collapsed.items()
        if before is None or name not in before.collapsed
    ]
    if record.churn == 0 and (before is None or before.churn != 0):
        updates = "1 update" if record.updates == 1 else f"{record.updates} updates"
        problems.append(f"{updates} of the masks changed nothing; raise --drop-fraction, if it is small")
    return problems

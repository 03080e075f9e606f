"""Weights & Biases: one run there for each run here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from flatsparse.experiments.tracking.tracker import TrackedRun

PROJECT = "WANDB_PROJECT"  # the package's own variable, as are WANDB_ENTITY and WANDB_MODE


class WandB:
    """A tracker that logs to Weights & Biases, or with ``WANDB_MODE=offline`` to the folder ``wandb`` of the run."""

    def start(self, run: TrackedRun) -> None:
        """Begin a run of the same identifier, or continue it; where there is an account, this needs its key."""
        import wandb

        self.run: Any = wandb.init(
            project=os.environ.get(PROJECT) or "flatsparse",
            dir=str(run.folder),
            id=run.identifier,
            name=run.folder.name,
            group=run.group,
            config=dict(run.settings),
            resume="allow",
            settings=wandb.Settings(console="off"),  # the output stays where it is
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers at a step, unless they are there already."""
        if step >= self.run.step:
            self.run.log(dict(values), step=step)

    def finish(self, result: Mapping[str, float] | None) -> None:
        """Put the result's numbers into the summary, and end; a run that was stopped is marked as failed."""
        self.run.summary.update({f"result/{name}": value for name, value in (result or {}).items()})
        self.run.finish(exit_code=1 if result is None else 0)

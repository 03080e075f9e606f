"""TensorBoard: event files in the folder ``tensorboard`` of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flatsparse.experiments.tracking.tracker import TrackedRun

FOLDER = "tensorboard"


class TensorBoard:
    """A tracker that writes event files, of one text and scalars; ``tensorboard --logdir`` shows all below a folder."""

    def start(self, run: TrackedRun) -> None:
        """Open a new event file; what others say of later steps is then no longer shown."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(run.folder / FOLDER), purge_step=run.step + 1)
        self.step = run.step
        if not run.step:
            settings = json.dumps(dict(run.settings), indent=2)
            self.writer.add_text("settings", f"```json\n{settings}\n```")  # Markdown

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars, and wait until they are in the file."""
        self.step = step
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def finish(self, result: Mapping[str, float] | None) -> None:
        """Write the result's scalars at the last step, and close the file."""
        for name, value in (result or {}).items():
            self.writer.add_scalar(f"result/{name}", value, self.step)
        self.writer.close()

"""trackio: its own data base on this machine, or where its variables say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flatsparse.experiments.tracking.tracker import TrackedRun


class Trackio:
    """A tracker that logs to the project ``flatsparse`` of trackio, which knows runs by their names alone."""

    def start(self, run: TrackedRun) -> None:
        """Begin a run whose name ends in its identifier, or continue it."""
        import trackio

        name = f"{run.folder.name}-{run.identifier}"
        self.trackio: Any = trackio
        trackio.init(
            project="flatsparse", name=name, group=run.group, config=dict(run.settings), resume="allow", embed=False
        )
        self.step = run.step

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers at a step."""
        self.step = step
        self.trackio.log(dict(values), step=step)

    def finish(self, result: Mapping[str, float] | None) -> None:
        """Log the result's numbers at the last step, and end."""
        if result:
            self.trackio.log({f"result/{name}": value for name, value in result.items()}, step=self.step)
        self.trackio.finish()

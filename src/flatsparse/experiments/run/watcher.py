"""Watchers: objects that are notified of the progress of a run."""

from __future__ import annotations

from typing import Protocol

from flatsparse.experiments.run.config import ResolvedRun
from flatsparse.experiments.run.records import EpochRecord


class Watcher(Protocol):
    """An object that is notified of the progress of a run."""

    def started(self, run: ResolvedRun, setting: str) -> None: ...
    def stepped(self, step: int, steps: int, images_per_second: float) -> None: ...
    def finished_epoch(self, record: EpochRecord) -> None: ...


class Silent:
    """A watcher that does nothing."""

    def started(self, run: ResolvedRun, setting: str) -> None: ...
    def stepped(self, step: int, steps: int, images_per_second: float) -> None: ...
    def finished_epoch(self, record: EpochRecord) -> None: ...

"""The protocol of trackers: objects that show the numbers of a run elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class TrackedRun:
    """A run, as a tracker is told of it.

    Attributes:
        identifier: 16 hexadecimal digits, the run's own; the same when it is resumed.
        folder: the run's, whose name may serve as the run's.
        group: the name of the comparison that the run is of; None for a run by itself.
        settings: all of them, by the names of their flags, as in ``config.json``.
        step: the optimizer steps up to which the tracker has everything; all later epochs are logged, some of them again. It is
            0 where a process was killed, which may have lost lines on their way.
    """

    identifier: str
    folder: Path
    group: str | None
    settings: Mapping[str, Any]
    step: int = 0


class Tracker(Protocol):
    """An object that shows the numbers of a run elsewhere, called by the process that writes the run's folder.

    What a method raises ends the tracking with a warning, and never the run.

    >>> class Printed:
    ...     def start(self, run):
    ...         print(run.identifier, run.settings["method"])
    ...     def log(self, values, step):
    ...         print(step, values["train_loss"])
    ...     def finish(self, result):
    ...         print("stopped" if result is None else result["test_accuracy"])
    >>> tracker: Tracker = Printed()
    """

    def start(self, run: TrackedRun) -> None:
        """Begin to show a run, or continue with the one of the same identifier."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Show the numbers of a line of ``metrics.jsonl`` at its step, which is not one of them."""

    def finish(self, result: Mapping[str, float] | None) -> None:
        """End: with the numbers of ``result.json``, or None for a run that was stopped and may be resumed."""


def numbers(values: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """Return the numbers of a JSON object by name, those of objects in it too; what is no number is left out.

    >>> numbers({"method": "rigl", "test_loss": 0.3, "flops": {"train": 2e9}, "macro": None})
    {'test_loss': 0.3, 'flops/train': 2000000000.0}
    """
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= numbers(value, f"{before}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[f"{before}{name}"] = value
    return flat

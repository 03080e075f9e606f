"""The trackers of a run: they change no bit of it, and none of them can end it."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from flatsparse.common.errors import InputError, described, unknown
from flatsparse.common.json_files import read_json, write_json
from flatsparse.experiments.data.loading import generators_kept
from flatsparse.experiments.tracking.tensorboard import TensorBoard
from flatsparse.experiments.tracking.tracker import TrackedRun, Tracker, numbers
from flatsparse.experiments.tracking.trackio import Trackio
from flatsparse.experiments.tracking.wandb import WandB

TrackerName = Literal["tensorboard", "trackio", "wandb"]
TRACKERS: dict[str, Callable[[], Tracker]] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": WandB}
INSTALL = {"tensorboard": "'flatsparse[track]'"}  # others are installed by their names
RECORD = "tracking.json"
FORM = {"identifier": str, "complete": [str], "step": int}


class Tracking:
    """The trackers of one run; a context, which ends them however the run ends.

    One that raises is left out from then on, with one warning: a run is worth more than its picture. Random numbers that a
    tracker draws from torch's, numpy's or Python's generators are given back.

    Args:
        trackers: see ``Tracker``; each for this run alone.
        group: the name of the comparison that the run is of.

    >>> Tracking.named(["tensorboard"], group="mine").group  # for train(…, tracking=…)
    'mine'
    """

    def __init__(self, trackers: Sequence[Tracker] = (), group: str | None = None) -> None:
        self.trackers, self.group = list(trackers), group
        self.folder: Path | None = None  # of the run that is tracked
        self.identifier = ""
        self.step = 0  # of its last epoch; without trackers it may go on later

    @classmethod
    def named(cls, names: Iterable[str], group: str | None = None) -> Tracking:
        """Return the trackers of some names in ``TRACKERS``."""
        return cls([TRACKERS[name]() for name in dict.fromkeys(names)], group)

    def start(self, folder: Path, settings: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
        """Start the trackers of a run. Those that may lack earlier epochs, as their file says, are told of these first.

        Args:
            folder: the run's.
            settings: by the names of their flags.
            records: lines of ``metrics.jsonl``, of the epochs behind it.
        """
        if not self.trackers:
            return
        self.folder, (self.identifier, complete, until) = folder, _recorded(folder)
        self.step = records[-1]["step"] if records else 0
        self._record([])  # while it goes on: a process that is killed leaves it so
        for tracker in list(self.trackers):
            behind = [record for record in records if _name(tracker) in complete and record["step"] <= until]
            step = behind[-1]["step"] if behind else 0
            self._do(tracker, "start", TrackedRun(self.identifier, folder, self.group, settings, step))
            for record in records[len(behind) :]:
                self._do(tracker, "log", _values(record), record["step"])

    def log(self, record: Mapping[str, Any]) -> None:
        """Log an epoch: a line of ``metrics.jsonl``."""
        self.step = record["step"]
        for tracker in list(self.trackers):
            self._do(tracker, "log", _values(record), record["step"])

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """End all trackers, with the content of ``result.json`` if there is one."""
        if not self.trackers or self.folder is None:
            return
        for tracker in list(self.trackers):
            self._do(tracker, "finish", None if result is None else numbers(result))
        self._record([_name(tracker) for tracker in self.trackers])
        self.trackers = []

    def _record(self, complete: Sequence[str]) -> None:
        """Write down which trackers have all of the run so far, and how far that is."""
        assert self.folder is not None
        try:
            record = {"identifier": self.identifier, "complete": sorted(complete), "step": self.step}
            write_json(self.folder / RECORD, record)
        except InputError as problem:
            warnings.warn(f"{problem}; a resumed run may be tracked as another", stacklevel=3)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *problem: object) -> None:
        self.finish(None)

    def _do(self, tracker: Tracker, what: str, *arguments: Any) -> None:
        """Call a method of a tracker that is still in use; one that raises no longer is."""
        if tracker not in self.trackers:
            return
        try:
            with generators_kept():
                getattr(tracker, what)(*arguments)
        except (Exception, SystemExit) as problem:
            self.trackers.remove(tracker)
            warnings.warn(
                f"{_name(tracker)} no longer tracks this run, which goes on ({described(problem)})", stacklevel=2
            )


def check_trackers(names: Iterable[str]) -> None:
    """Raise InputError for a tracker that there is not, or whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
        found = find_spec(name)
        if found is None or found.origin is None:  # a mere folder of that name, such as wandb leaves
            raise InputError(
                f"--track {name} needs {name}, which is not installed: pip install {INSTALL.get(name, name)}"
            )


def _values(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of an epoch, at whose step they are logged; to some, ``step`` is a word of their own."""
    return {name: value for name, value in numbers(record).items() if name != "step"}


def _name(tracker: Tracker) -> str:
    return type(tracker).__name__


def _recorded(folder: Path) -> tuple[str, list[str], int]:
    """Return the identifier of a run, the trackers that have all of it up to a step, and that step; else a new identifier."""
    try:
        record = read_json(folder / RECORD, FORM)
        return record["identifier"], record["complete"], record["step"]
    except InputError as problem:
        if (folder / RECORD).is_file():
            warnings.warn(f"{problem}; the run is tracked as another", stacklevel=3)
        return secrets.token_hex(8), [], 0

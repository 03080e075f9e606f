"""Checkpoints: the state of a run after an epoch, written whole, with the one before it kept beside."""

from __future__ import annotations

import dataclasses
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flatsparse.acceleration.measure import known_speedups, remember
from flatsparse.common.checkpoints import load_state, save_state
from flatsparse.common.errors import InputError, first_line
from flatsparse.common.files import TEMPORARY, corrupt_file
from flatsparse.common.schema import schema_error
from flatsparse.experiments.claims import check_same
from flatsparse.experiments.run.build import Parts
from flatsparse.experiments.run.config import FREE, as_json
from flatsparse.experiments.run.folder import PROBE_FORM
from flatsparse.experiments.run.records import EPOCH_FORM, EpochRecord

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
PROGRESS = {
    "epoch": int,
    **dict.fromkeys(("step", "gradient_evaluations", "train_flops", "seconds"), float),
    "step_seconds": [float],
    "cosines": [float],
    "records": [EPOCH_FORM],
    "probes": [PROBE_FORM],
}
FORM = {**dict.fromkeys(("settings", "model", "optimizer", "training", "schedule"), dict), "progress": PROGRESS}


@dataclass
class Progress:
    """The sums and records of a run so far; saved with each checkpoint.

    Attributes:
        step_seconds: of each step.
        cosines: between the gradients of consecutive steps, where they were compared.
    """

    epoch: int = 0
    step: int = 0
    gradient_evaluations: float = 0
    train_flops: float = 0.0
    seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    records: list[EpochRecord] = field(default_factory=list)
    probes: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the progress as plain values."""
        return {**dataclasses.asdict(self), "records": [record.to_json() for record in self.records]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Progress:
        """Return the progress that ``to_json`` gave."""
        return cls(**{**values, "records": [EpochRecord.from_json(record) for record in values["records"]]})


def save_checkpoint(out: Path, parts: Parts, progress: Progress) -> None:
    """Write a run's state, and keep the checkpoint before this one."""
    file = out / CHECKPOINT
    if file.is_file():
        _keep(file, out / PREVIOUS)
    save_state(file, state_of(as_json(parts.run), parts, progress))


def state_of(settings: dict[str, Any], parts: Parts, progress: Progress) -> dict[str, Any]:
    """Return all that resuming needs, with the settings it was made with."""
    return {
        "settings": settings,
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "training": parts.training.state_dict(),
        "schedule": parts.schedule.state_dict(),
        "progress": progress.to_json(),
        **({"average": parts.average.state_dict()} if parts.average else {}),
        **({"speedups": known_speedups()} if parts.run.runtime.accelerate else {}),
    }


def restore(state: dict[str, Any], parts: Parts, file: Path) -> Progress:
    """Load a state into the parts. Raises InputError when the state, which was read from a file, is not theirs."""
    try:
        parts.model.load_state_dict(state["model"])
        parts.optimizer.load_state_dict(state["optimizer"])
        parts.training.load_state_dict(state["training"])
        parts.schedule.load_state_dict(state["schedule"])
        if parts.average:
            parts.average.load_state_dict(state["average"])
        remember(state.get("speedups", ()))
        progress = Progress.from_json(state["progress"])
        if len(progress.records) != progress.epoch:
            raise ValueError(f"it has {len(progress.records)} records of {progress.epoch} epochs")
        return progress
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as problem:
        reason = first_line(problem) or type(problem).__name__
        raise corrupt_file(file, f"its state is not this run's: {reason}") from None


def load_checked(file: Path) -> dict[str, Any]:
    """Return a state that ``save_state`` wrote. Raises InputError when it is damaged, or no run's."""
    state: dict[str, Any] = load_state(file)
    if (odd := schema_error(state, FORM)) is not None:
        raise corrupt_file(file, odd)
    return state


def _keep(file: Path, name: Path) -> None:
    """Give a file a second name, moved into place, so that at no moment neither name stands for a whole file."""
    if name.is_file() and name.samefile(file):
        return  # a kill came just after; and moving one name of a file onto another of its names leaves both
    spare = name.with_name(f".{name.name}{TEMPORARY}")
    spare.unlink(missing_ok=True)
    try:
        os.link(file, spare)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, spare)
    os.replace(spare, name)


def load_checkpoint(out: Path, parts: Parts) -> Progress:
    """Load the last checkpoint into the parts; where there is none, leave them as they are.

    Raises: InputError when the checkpoint is another run's, or damaged; then with the good one before it, if there is one.
    """
    file, before = out / CHECKPOINT, out / PREVIOUS
    if not file.is_file():
        if before.is_file():
            raise InputError(
                f"'{file}' is gone: rename '{before}', the one before it, to {CHECKPOINT} to continue from there"
            )
        return Progress()
    try:
        state = load_checked(file)
    except InputError:
        epoch = _epoch_of(before)
        if epoch is None:
            raise
        raise InputError(
            f"'{file}' is damaged: rename '{before}', which is whole, to {CHECKPOINT} to continue after epoch {epoch}"
        ) from None
    check_same(as_json(parts.run), state["settings"], f"'{file}'", free=FREE)
    return restore(state, parts, file)


def _epoch_of(file: Path) -> int | None:
    """Return the epoch of a checkpoint; None for a damaged one."""
    try:
        epoch: int | None = load_checked(file)["progress"].get("epoch")
    except InputError:
        return None
    return epoch

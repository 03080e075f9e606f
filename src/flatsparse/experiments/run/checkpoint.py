"""A run's folder: checkpoints, and what a finished run leaves behind. Each file appears when it is whole."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import platform
import shutil
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import flatsparse
from flatsparse.common.checkpoints import load_state, save_state
from flatsparse.common.errors import InputError
from flatsparse.common.files import corrupt_file, write_atomic
from flatsparse.common.json_files import read_json, read_json_lines, with_checksum, write_json
from flatsparse.common.schema import POSITIVE, schema_error
from flatsparse.experiments.claims import check_same
from flatsparse.experiments.run.build import Parts
from flatsparse.experiments.run.config import ResolvedRun, as_json
from flatsparse.experiments.run.ddp import ALONE, Team

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
RESULT, FAILURE, CURVE, PROBES = "result.json", "failure.json", "metrics.jsonl", "probes.jsonl"
SOME = (float, None)
# What is read again of each file, see schema_error.
FORMS: dict[str, Any] = {
    "config.json": {"settings": dict, "versions": dict, "machine": {"threads": int}},
    RESULT: {
        **dict.fromkeys(("method", "sharpness", "model", "data"), str),
        **dict.fromkeys(("seed", "epochs", "gradient_evaluations"), int),
        "steps": POSITIVE,
        **dict.fromkeys(("test_accuracy", "test_loss", "train_accuracy", "train_loss", "generalization_gap"), SOME),
        **dict.fromkeys(("validation_accuracy", "validation_loss", "gradient_cosine"), SOME),
        **dict.fromkeys(("rho", "exploration", "images_per_second"), float),
        "macro": (None, {str: SOME}),
        "steps_to": {str: SOME},
        "ball": {"radius": float, "increase": SOME},
        "sparsity": {"prunable": float, "overall": float},
        "health": {"churn": SOME, "dead_filters": int, "filters": int, "collapsed": {str: float}},
        "flops": {"train": float, "train_dense": POSITIVE, "inference": float, "inference_dense": POSITIVE},
        "seconds": {"train": float, "step_median": POSITIVE},
    },
    FAILURE: {"reason": str},
    CURVE: {
        **dict.fromkeys(("epoch", "step", "updates"), int),
        **dict.fromkeys(("train_loss", "train_accuracy", "lr", "sparsity", "exploration", "dead_filters"), float),
        **dict.fromkeys(("validation_loss", "validation_accuracy", "churn"), SOME),
        "collapsed": {str: float},
    },
    PROBES: {
        "step": int,
        **dict.fromkeys(("rho", "cosine"), float),
        "gain": dict.fromkeys(("worst", "sam", "previous", "random"), float),
        "curvature": {space: {"largest": float} for space in ("all", "live")},
    },
    CHECKPOINT: dict.fromkeys(("settings", "model", "optimizer", "training", "schedule", "progress"), dict),
}


@dataclass
class Progress:
    """What a run has gathered so far; saved with each checkpoint."""

    epoch: int = 0
    step: int = 0
    gradient_evaluations: int = 0
    train_flops: float = 0.0
    seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)  # of the epochs so far
    probes: list[dict[str, Any]] = field(default_factory=list)


def save_checkpoint(out: Path, run: ResolvedRun, parts: Parts, progress: Progress) -> None:
    """Write the run's state; the checkpoint before this one is kept beside it."""
    file = out / CHECKPOINT
    if file.is_file():
        _keep(file, out / PREVIOUS)
    save_state(file, state_of(as_json(run), parts, progress))


def state_of(settings: dict[str, Any], parts: Parts, progress: Progress) -> dict[str, Any]:
    """Everything that going on needs, with the settings that it was made with."""
    return {
        "settings": settings,
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "training": parts.training.state_dict(),
        "schedule": parts.schedule.state_dict(),
        "progress": dataclasses.asdict(progress),
        "torch": torch.get_rng_state(),
    }


def restore(state: dict[str, Any], parts: Parts, file: Path) -> Progress:
    """Put the parts where a state left them. Raises InputError when the state, which is that of a file, is not theirs."""
    try:
        parts.model.load_state_dict(state["model"])
        parts.optimizer.load_state_dict(state["optimizer"])
        parts.training.load_state_dict(state["training"])
        parts.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["torch"])
        return Progress(**state["progress"])
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as problem:
        told = next(iter(str(problem).splitlines()), type(problem).__name__)
        raise corrupt_file(file, f"its state is not this run's: {told}") from None


def load_checked(file: Path) -> dict[str, Any]:
    """A state that ``save_state`` wrote of parts. Raises InputError when it is damaged, or none."""
    state: dict[str, Any] = load_state(file)
    if (odd := schema_error(state, FORMS[CHECKPOINT])) is not None:
        raise corrupt_file(file, odd)
    return state


def _keep(file: Path, name: Path) -> None:
    """Give a file a second name, moved into place, so that at no moment neither name stands for a whole file."""
    if name.is_file() and name.samefile(file):
        return  # a kill came just after; and moving one name of a file onto another of its names leaves both
    spare = name.with_name(f".{name.name}.half")
    spare.unlink(missing_ok=True)
    try:
        os.link(file, spare)
    except OSError:  # a file system without second names
        shutil.copyfile(file, spare)
    os.replace(spare, name)


def load_checkpoint(out: Path, run: ResolvedRun, parts: Parts) -> Progress:
    """Put the parts where the last checkpoint left them, or leave them as they are when there is none.

    Raises: InputError when the checkpoint is damaged, with the good one before it if there is one, or another run's.
    """
    file, before = out / CHECKPOINT, out / PREVIOUS
    if not file.is_file():
        if before.is_file():
            raise InputError(
                f"'{file}' is gone: rename '{before}', the one before it, to {CHECKPOINT} to go on from there"
            )
        return Progress()
    try:
        state = load_checked(file)
    except InputError:
        try:
            epoch = load_checked(before)["progress"].get("epoch")
        except InputError:
            epoch = None
        if epoch is None:
            raise
        raise InputError(
            f"'{file}' is damaged: rename '{before}', which is whole, to {CHECKPOINT} to go on after epoch {epoch}"
        ) from None
    check_same(as_json(run), state["settings"], f"'{file}'", free=("data_dir",))
    return restore(state, parts, file)


def write_metrics(out: Path, progress: Progress) -> None:
    """Write the curve, a line an epoch, and what was probed, if anything, a line a probe."""
    _write_lines(out / CURVE, progress.records)
    if progress.probes:
        _write_lines(out / PROBES, progress.probes)


def read_config(out: Path) -> dict[str, Any]:
    """What ``config.json`` says. Raises InputError when it is damaged."""
    return read_json(out / "config.json", FORMS["config.json"])


def read_result(out: Path) -> dict[str, Any]:
    """What a finished run came to. Raises InputError when it is damaged."""
    return read_json(out / RESULT, FORMS[RESULT])


def read_metrics(out: Path, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The curve of a finished run, an epoch each. Raises InputError when it is damaged, or epochs are missing."""
    return _read_lines(out / CURVE, result["epochs"], "epochs")


def read_probes(out: Path, count: int = 0) -> list[dict[str, Any]]:
    """What a run probed, if it did. Raises InputError when it is damaged, or has not as many probes as it should."""
    return _read_lines(out / PROBES, count, "probes") if count or (out / PROBES).is_file() else []


def _read_lines(file: Path, count: int, what: str) -> list[dict[str, Any]]:
    lines = read_json_lines(file, FORMS[file.name])
    if len(lines) < count:
        raise corrupt_file(file, f"it has {len(lines)} of {count} {what}")
    return lines


def write_failure(out: Path, reason: str, problem: BaseException | None = None) -> None:
    """Write down why a run failed, when, and the line it failed at."""
    where = traceback.extract_tb(problem.__traceback__)[-1] if problem else None
    told = {
        "reason": reason,
        "error": type(problem).__name__ if problem else None,
        "where": f"{Path(where.filename).name}, line {where.lineno}, in {where.name}" if where else None,
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / FAILURE, told)


def read_failure(out: Path) -> str | None:
    """Why a run failed; None when it did not. Raises InputError when what is written there is damaged."""
    file = out / FAILURE
    return str(read_json(file, FORMS[FAILURE])["reason"]) if file.is_file() else None


def has_diverged(out: Path) -> bool:
    """Return if a run failed because its loss was no longer finite. Raises InputError when its failure is damaged."""
    file = out / FAILURE
    return (
        file.is_file() and read_json(file, FORMS[FAILURE]).get("error", "Diverged") == "Diverged"
    )  # older ones lack it


def _write_lines(file: Path, records: Sequence[Mapping[str, Any]]) -> None:
    lines = (json.dumps(with_checksum(record)) + "\n" for record in records)
    write_atomic(file, "".join(lines).encode(), durable=False)


def environment(team: Team = ALONE, device: str = "cpu") -> dict[str, Any]:
    """What the run ran on."""
    return {
        "versions": {
            "flatsparse": flatsparse.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {"processor": processor(device), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "processes": team.size,
    }


def processor(device: str) -> str:
    """What the steps run on, as its maker calls it."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

"""A run's folder: checkpoints, and what a finished run leaves behind. Each file appears when it is whole."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import flatsparse
from flatsparse.lab.build import Parts
from flatsparse.lab.files import check_same
from flatsparse.lab.run import Run
from flatsparse.lab.team import ALONE, Team
from flatsparse.storage import load_state, save_state, sealed, write_whole

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


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


def save_checkpoint(out: Path, run: Run, parts: Parts, progress: Progress) -> None:
    """Write the run's state; the checkpoint before this one is kept beside it."""
    file = out / CHECKPOINT
    if file.is_file():
        _keep(file, out / PREVIOUS)
    save_state(file, state_of(run.as_dict(), parts, progress))


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


def restore(state: dict[str, Any], parts: Parts) -> Progress:
    """Put the parts where a state left them."""
    parts.model.load_state_dict(state["model"])
    parts.optimizer.load_state_dict(state["optimizer"])
    parts.training.load_state_dict(state["training"])
    parts.schedule.load_state_dict(state["schedule"])
    torch.set_rng_state(state["torch"])
    return Progress(**state["progress"])


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


def load_checkpoint(out: Path, run: Run, parts: Parts) -> Progress:
    """Put the parts where the last checkpoint left them, or leave them as they are when there is none.

    Raises: InputError when the checkpoint is damaged or another run's.
    """
    file = out / CHECKPOINT
    if not file.is_file():
        return Progress()
    state = load_state(file)
    check_same(run.as_dict(), state["settings"], f"'{file}'", free=("data_dir",))
    return restore(state, parts)


def write_metrics(out: Path, progress: Progress) -> None:
    """Write the curve, a line an epoch, and what was probed, if anything, a line a probe."""
    _write_lines(out / "metrics.jsonl", progress.records)
    if progress.probes:
        _write_lines(out / "probes.jsonl", progress.probes)


def _write_lines(file: Path, records: Sequence[Mapping[str, Any]]) -> None:
    lines = (json.dumps(sealed(record)) + "\n" for record in records)
    write_whole(file, "".join(lines).encode(), durable=False)


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

"""A run's folder: checkpoints, and what a finished run leaves behind. Each file appears when it is whole."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import flatsparse
from flatsparse.lab.build import Parts
from flatsparse.lab.files import save_tensors, write_whole
from flatsparse.sparsifier import SparseTraining


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


def save_checkpoint(out: Path, parts: Parts, progress: Progress) -> None:
    """Write everything that going on needs."""
    state = {
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "training": parts.training.state_dict(),
        "schedule": parts.schedule.state_dict(),
        "progress": dataclasses.asdict(progress),
        "torch": torch.get_rng_state(),
    }
    write_whole(out / "checkpoint.pt", lambda file: torch.save(state, file))


def load_checkpoint(out: Path, parts: Parts) -> Progress:
    """Put the parts where the last checkpoint left them; a new folder is given an empty curve."""
    file = out / "checkpoint.pt"
    if not file.is_file():
        write_whole(out / "metrics.jsonl", "")
        return Progress()
    state = torch.load(file, map_location="cpu", weights_only=True)
    parts.model.load_state_dict(state["model"])
    parts.optimizer.load_state_dict(state["optimizer"])
    parts.training.load_state_dict(state["training"])
    parts.schedule.load_state_dict(state["schedule"])
    torch.set_rng_state(state["torch"])
    progress = Progress(**state["progress"])
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    write_whole(out / "metrics.jsonl", "".join(lines[: progress.epoch]))  # an epoch may have been noted but not saved
    return progress


def save_masks(file: Path, training: SparseTraining) -> None:
    """Write masks with one bit a weight: each in row-major order, eight to a byte, the first in the lowest bit."""
    packed = {
        name: torch.from_numpy(np.packbits(mask.cpu().contiguous().flatten().numpy(), bitorder="little"))
        for name, mask in training.masks.items()
    }
    shapes = json.dumps({name: list(mask.shape) for name, mask in training.masks.items()})
    about = {
        "format": "flatsparse-masks-1",
        "method": training.method,
        "step": str(training.steps_taken),
        "shapes": shapes,
    }
    save_tensors(file, packed, about)


def environment() -> dict[str, Any]:
    """What the run ran on."""
    return {
        "versions": {
            "flatsparse": flatsparse.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
    }

"""Shared first rounds: dense training that is the same for every target sparsity, and for weights rewound or kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from flatsparse.common.checkpoints import save_state
from flatsparse.common.errors import InputError
from flatsparse.experiments.claims import check_same
from flatsparse.experiments.run.build import Parts
from flatsparse.experiments.run.checkpoint import Progress, load_checked, restore, state_of
from flatsparse.experiments.run.config import FREE, ResolvedRun, as_json
from flatsparse.experiments.run.method import plan_of
from flatsparse.sparse.pattern import UNSTRUCTURED
from flatsparse.sparse.plan import Plan

# Settings that a first round does not depend on. The data's place changes nothing; a later step to rewind to is noted on the way.
OTHERS = ("method", "sparsity", "drop_fraction", *FREE)
# Settings younger than some files, which were made as without them.
YOUNGER = (
    "task",
    "vocabulary",
    "betas",
    "ema",
    "accumulate",
    "accelerate",
    "image_size",
    "resize",
    "penalty",
    "init_sha256",
)


def is_shareable(plan: Plan) -> bool:
    """Return if a method's first round is plain dense training, and so the same as any other such method's."""
    own = plan.rules or plan.channel_pruning or plan.pattern != UNSTRUCTURED or plan.momentum is not None
    return plan.rounds is not None and plan.rounds.count > 1 and plan.sparsity == 0 and not own


def _settings(run: ResolvedRun) -> dict[str, Any]:
    settings = {name: value for name, value in as_json(run).items() if name not in OTHERS}
    settings = {name: value for name, value in settings.items() if value not in (None, False) or name not in YOUNGER}
    return {**settings, "rewind": _rewind(run), "torch": str(torch.__version__)}


def _rewind(run: ResolvedRun) -> int:
    rounds = plan_of(run).rounds
    return (rounds.rewind or 0) if rounds else 0


def first_round_key(run: ResolvedRun) -> str:
    """Return a hash of all that a run's first round depends on."""
    text = json.dumps(_settings(run), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _file(folder: Path, run: ResolvedRun) -> Path:
    return folder / f"dense-{first_round_key(run)}.pt"


def prepare(folder: Path) -> None:
    """Make the folder, before a round is trained that is to go there. Raises InputError when it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise InputError(f"cannot write to '{folder}' ({problem.strerror}): give another --parent") from None


def has_first_round(folder: Path, run: ResolvedRun) -> bool:
    """Return if another run has left such a round there."""
    return _file(folder, run).is_file()


def load_first_round(folder: Path, parts: Parts) -> Progress | None:
    """Load a first round that another run trained into the parts; return None when there is no such round.

    Raises: InputError when the file is damaged or made with other settings.
    """
    run, file = parts.run, _file(folder, parts.run)
    if not parts.context.broadcast(file.is_file()) or not file.is_file():
        return None
    state = load_checked(file)
    check_same(_settings(run), state["settings"], f"'{file}'")
    training = {**state["training"], "method": parts.training.method}
    if not _rewind(run):  # the run that made the file may have kept no weights to rewind to; ours are those of the seed
        training["rewind"] = parts.training.state_dict()["rewind"]
    return restore({**state, "training": training}, parts, file)


def save_first_round(folder: Path, parts: Parts, progress: Progress) -> None:
    """Write the first round for other runs, unless it is there."""
    file = _file(folder, parts.run)
    if not file.is_file():
        save_state(file, state_of(_settings(parts.run), parts, progress))

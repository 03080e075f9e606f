"""A grid of runs in one store (stand-in until the runner's branch is merged: one process, one after the other)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from flatsparse.errors import InputError
from flatsparse.lab.run import Run
from flatsparse.lab.training import train


@dataclass(frozen=True)
class Outcome:
    """A run, its folder, and what came of it: a result or a failure, or neither when it has not run yet."""

    run: Run
    folder: Path
    result: dict[str, Any] | None
    failure: str | None


def key(run: Run) -> str:
    """What stands for everything that decides how a run comes out."""
    told = {name: value for name, value in run.resolved().as_dict().items() if name != "data_dir"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def run_grid(
    runs: Sequence[Run],
    store: Path,
    *,
    jobs: int | None = None,
    cluster: str | None = None,
    retry: bool = False,
    console: Console | None = None,
) -> list[Outcome]:
    """Run what is not finished, in order."""
    found = []
    for run in runs:
        folder = store / "runs" / f"{run.data}-{run.model}-{run.method}-{run.sharpness}-{key(run)}"
        try:
            found.append(Outcome(run, folder, train(run, folder, resume=True, parent=store / "parents"), None))
        except InputError as problem:
            found.append(Outcome(run, folder, None, str(problem)))
    return found

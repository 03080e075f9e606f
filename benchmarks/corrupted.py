"""What digits nets do on corrupted images: the runs of the plan in corrupted.md, in results/corrupted.jsonl.

python benchmarks/corrupted.py --jobs 2   # continues where it stopped
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import survives
from corrupted_copies import accuracies
from planned import lines_of, run_plan
from survives_page import by_setting

from flatsparse.experiments.evaluate.changes import AS_TRAINED
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.run.loop import train

DATA = Path(__file__).parent.parent / "results" / "corrupted.jsonl"
IMAGES = 797  # all test images


@dataclass(frozen=True)
class Cell(survives.Cell):
    """One run of the plan: a net of the plan of what survives."""

    def run(self) -> dict[str, Any]:
        """Train and measure; return what is kept."""
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "run"
            clean = train(self.settings, place).test_accuracy
            return {**self.identity, "clean": clean, "corrupted": accuracies(load_run(place), IMAGES)}


def cells() -> Iterator[Cell]:
    """Yield all runs of the plan, a seed after the other, each arm at the ρ that the runs of survives.py chose."""
    runs = by_setting(survives.measured())
    for seed, ((sparsity, noise), own), arm in itertools.product(survives.SEEDS, runs.items(), survives.ARMS):
        yield Cell(sparsity, noise, arm, own.chosen(arm, AS_TRAINED), seed)


def measured() -> list[dict[str, Any]]:
    """Return the lines so far."""
    return lines_of(DATA)


if __name__ == "__main__":
    run_plan(__doc__, DATA, [cells()])

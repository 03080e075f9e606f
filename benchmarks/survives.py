"""What trained nets keep after changes of their weights: the runs of the plan in survives.md, lines of results/survives.jsonl.

python benchmarks/survives.py --jobs 2   # continues where it stopped; survives_page.py writes the page
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planned import Planned, lines_of, run_plan

from flatsparse.experiments.evaluate.record import evaluate
from flatsparse.experiments.evaluate.settings import Evaluation
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.loop import train
from flatsparse.experiments.terminal import Console

DATA = Path(__file__).parent.parent / "results" / "survives.jsonl"
CHANGES = ("int8", "int4", "int3", "prune30", "prune50", "noise0.2", "noise0.4", "finetune10")
RHOS, SPARSITIES, NOISES = (0.1, 0.2, 0.5, 1.0), (0.0, 0.9, 0.95), (0.0, 0.2)
SEEDS, CHOICE = tuple(range(10)), (100, 101, 102)  # compared, and for the choice of ρ
SHARED = {"data": "digits", "train_size": 300, "validation_size": 300, "batch_size": 64}
# Settings of each arm, of as many gradients as plain training at most.
ARMS: dict[str, dict[str, Any]] = {
    "plain": {"epochs": 40},
    "s2sam": {"epochs": 40, "sharpness": "s2sam"},
    "sam": {"epochs": 20, "sharpness": "sam"},
    "late": {"epochs": 33, "sharpness": "sam", "rho_schedule": "late"},
    "random": {"epochs": 40, "sharpness": "random"},
}


@dataclass(frozen=True)
class Cell(Planned):
    """One run of the plan."""

    sparsity: float
    noise: float
    arm: str
    rho: float | None
    seed: int

    @property
    def settings(self) -> RunConfig:
        """The run's settings."""
        method = {"method": "rigl", "sparsity": self.sparsity} if self.sparsity else {"method": "dense"}
        rho = {} if self.rho is None else {"rho": self.rho}
        return RunConfig.of(**SHARED, **method, **ARMS[self.arm], **rho, label_noise=self.noise, seed=self.seed)

    def run(self) -> dict[str, Any]:
        """Train, change and measure; return what is kept."""
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "run"
            result = train(self.settings, place)
            record = evaluate(Evaluation((place,), after=CHANGES, jobs=1), place, Console(quiet=True))
            after = record["runs"][0]["after"]
        return {
            **self.identity,
            "gradients": result.gradient_evaluations,
            "train_accuracy": result.train_accuracy,
            "test": {name: one["scores"]["accuracy"] for name, one in after.items()},
            "validation": {name: one["validation"]["accuracy"] for name, one in after.items()},
        }


def cells() -> Iterator[Cell]:
    """Yield all runs of the plan, a seed after the other."""
    for seed, sparsity, noise, arm in itertools.product((*CHOICE, *SEEDS), SPARSITIES, NOISES, ARMS):
        for rho in (None,) if arm == "plain" else RHOS:
            yield Cell(sparsity, noise, arm, rho, seed)


def measured() -> list[dict[str, Any]]:
    """Return the lines so far."""
    return lines_of(DATA)


if __name__ == "__main__":
    run_plan(__doc__, DATA, [cells()])

"""Cheap ways to a flat or a robust net at equal gradients: the runs of the plan in referee.md, in results/referee.jsonl.

python benchmarks/referee.py --jobs 2   # continues where it stopped
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from early_stopping import measured_run
from planned import Planned, lines_of, run_plan

from flatsparse.experiments.run.config import RunConfig

DATA = Path(__file__).parent.parent / "results" / "referee.jsonl"
SEEDS, CHOICE = tuple(range(10)), (100, 101, 102)  # compared, and for the choices
NOISES = (0.0, 0.2)
SHARED = {
    "data": "digits",
    "train_size": 300,
    "validation_size": 300,
    "batch_size": 64,
    "method": "rigl",
    "sparsity": 0.95,
}
RHOS, EPOCHS = (0.1, 0.2, 0.5, 1.0), 40
Settings = dict[str, Any]


def radii(sharpness: str, *, epochs: int = EPOCHS, **more: Any) -> list[Settings]:
    """Return the candidates of a sharpness, one for each ρ of the grid."""
    return [{"sharpness": sharpness, "rho": rho, "epochs": epochs, **more} for rho in RHOS]


def pairs(option: str, values: tuple[float, float]) -> list[Settings]:
    """Return four candidates of S²-SAM with a regularizer."""
    return [{"sharpness": "s2sam", "rho": rho, option: value} for rho in (0.2, 0.5) for value in values]


# The candidates of each arm: four at most, of as many gradients as plain training at most. ``stop``: at the best epoch.
ARMS: dict[str, list[Settings]] = {
    "plain": [{}],
    "early stopping": [{"stop": True}],
    "weight decay": [{"weight_decay": value} for value in (1e-3, 2e-3, 5e-3, 1e-2)],
    "label smoothing": [{"label_smoothing": value} for value in (0.1, 0.2, 0.4, 0.8)],
    "S²-SAM": radii("s2sam"),
    "SAM, half the epochs": radii("sam", epochs=EPOCHS // 2),
    "random": radii("random"),
    "momentum": radii("momentum"),
    "average": radii("average"),
    "late SAM": radii("sam", epochs=33, rho_schedule="late"),
    "stale": radii("stale", epochs=32),
    "loss budget": [{"sharpness": "s2sam", "rho": 1.0, "loss_budget": budget} for budget in (0.05, 0.2, 0.5, 2.0)],
    "less the average": radii("less_average"),
    "mask": [{"sharpness": "mask", "rho": rho} for rho in (0.5, 1.0, 2.0, 5.0)],
    "S²-SAM, early stopping": radii("s2sam", stop=True),
    "S²-SAM, weight decay": pairs("weight_decay", (1e-3, 5e-3)),
    "S²-SAM, label smoothing": pairs("label_smoothing", (0.2, 0.8)),
    "SAFE": [{"method": "safe", "penalty": penalty} for penalty in (0.1, 0.3, 1.0, 3.0)],
    "SAFE, S²-SAM": radii("s2sam", method="safe", penalty=1.0),
    "SAFE, SAM, half the epochs": radii("sam", epochs=EPOCHS // 2, method="safe", penalty=1.0),
}


@dataclass(frozen=True)
class Cell(Planned):
    """One run of the plan: ``candidate`` is an index among those of the arm."""

    arm: str
    candidate: int
    noise: float
    seed: int

    @property
    def identity(self) -> dict[str, Any]:
        """What the run's line is known by."""
        return {**asdict(self), "settings": ARMS[self.arm][self.candidate]}

    def run(self) -> dict[str, Any]:
        """Train and measure; return what is kept."""
        chosen = {"epochs": EPOCHS, **ARMS[self.arm][self.candidate]}
        stop = chosen.pop("stop", False)
        run = RunConfig.of(**{**SHARED, **chosen}, label_noise=self.noise, seed=self.seed)
        return {**self.identity, **measured_run(run, stop=stop)}


def cells() -> Iterator[Cell]:
    """Yield all runs of the plan, a seed after the other."""
    for seed, noise, arm in itertools.product((*CHOICE, *SEEDS), NOISES, ARMS):
        for candidate in range(len(ARMS[arm])):
            yield Cell(arm, candidate, noise, seed)


def measured() -> list[dict[str, Any]]:
    """Return the lines so far."""
    return lines_of(DATA)


if __name__ == "__main__":
    run_plan(__doc__, DATA, [cells()])

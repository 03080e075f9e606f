"""S²-SAM in the paper's own regime, at a tenth of its schedule: the runs of the plan in regime.md, in results/regime.jsonl.

FLATSPARSE_DATA=DIR python benchmarks/regime.py --jobs 2   # continues where it stopped; a run takes some 8 to 40 minutes
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import judged
from planned import Planned, lines_of, run_plan

from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.loop import train

DATA = Path(__file__).parent.parent / "results" / "regime.jsonl"
SEEDS, CHOICE = tuple(range(5)), 100  # compared, and for the choices
PLACES = (("mest", 0.98), ("rigl", 0.95), ("rigl", 0.9))
LAYERS = {"mest": "mest", "rigl": "all"}  # as in the paper's Table 1
CHOSEN_AT = {"mest": 0.98, "rigl": 0.95}  # the sparsity at which a method's candidates are chosen
NEARLY_CHANCE = "rigl"  # the method whose ρ five of 5,000 validation images chose
SHARED: dict[str, Any] = {
    "model": "resnet20",
    "epochs": 15,
    "batch_size": 64,
    "validation_size": 5000,
    "validate_every": 5,
    "accelerate": True,
}
# The candidates of each arm.
ARMS: dict[str, list[dict[str, Any]]] = {
    "plain": [{}],
    "S²-SAM": [{"sharpness": "s2sam", "rho": rho} for rho in (0.03, 0.1)],
    "label smoothing": [{"label_smoothing": value} for value in (0.05, 0.1)],
}


@dataclass(frozen=True)
class Cell(Planned):
    """One run of the plan: ``candidate`` is an index among those of the arm."""

    data: str
    method: str
    sparsity: float
    arm: str
    candidate: int
    seed: int

    @property
    def identity(self) -> dict[str, Any]:
        """What the run's line is known by."""
        return {**asdict(self), "settings": ARMS[self.arm][self.candidate]}

    def run(self) -> dict[str, Any]:
        """Train; return what is kept."""
        own = {"data": self.data, "method": self.method, "sparsity": self.sparsity, "seed": self.seed}
        own |= {"layers": LAYERS[self.method]}
        with tempfile.TemporaryDirectory() as folder:
            result = train(RunConfig.of(**SHARED, **ARMS[self.arm][self.candidate], **own), Path(folder) / "run")
        return {
            **self.identity,
            "gradients": result.gradient_evaluations,
            "train_accuracy": result.train_accuracy,
            "validation": result.validation_accuracy,
            "test": result.test_accuracy,
            "images_per_second": result.images_per_second,
        }


def for_choice(method: str) -> Iterator[Cell]:
    """Yield the runs that a method's candidates are chosen by."""
    for arm, candidates in ARMS.items():
        if len(candidates) > 1:
            for index in range(len(candidates)):
                yield Cell("cifar10", method, CHOSEN_AT[method], arm, index, CHOICE)


def chosen(lines: Sequence[Mapping[str, Any]], method: str, arm: str) -> int:
    """Return the candidate of the best validation accuracy; the earlier of equals."""
    known = [line for line in lines if (line["seed"], line["method"], line["arm"]) == (CHOICE, method, arm)]
    ordered = sorted(known, key=lambda line: line["candidate"])
    return judged.chosen({line["candidate"]: [line["validation"]] for line in ordered}) if ordered else 0


def compared(lines: Sequence[Mapping[str, Any]], method: str, sparsity: float) -> Iterator[Cell]:
    """Yield the runs of a method and sparsity that are compared, seed by seed, and after the first row's those of CIFAR-100."""
    for seed, arm in itertools.product(SEEDS, ARMS):
        yield Cell("cifar10", method, sparsity, arm, chosen(lines, method, arm), seed)
    if (method, sparsity) == PLACES[0]:
        for arm in ("plain", "S²-SAM"):
            yield Cell("cifar100", method, sparsity, arm, chosen(lines, method, arm), SEEDS[0])


def other_rho(lines: Sequence[Mapping[str, Any]], method: str, sparsity: float) -> Iterator[Cell]:
    """Yield the runs with S²-SAM at the ρ that was not chosen, where that was nearly by chance; the plan compares none."""
    if method == NEARLY_CHANCE:
        other = 1 - chosen(lines, method, "S²-SAM")
        for seed in SEEDS:
            yield Cell("cifar10", method, sparsity, "S²-SAM", other, seed)


def measured() -> list[dict[str, Any]]:
    """Return the lines so far."""
    return lines_of(DATA)


def parts() -> Iterator[Iterable[Cell]]:
    """Yield the runs of the plan, in each place those for the choices, then those that these ask for; last those added to it."""
    for method, sparsity in PLACES:
        yield for_choice(method)
        yield compared(measured(), method, sparsity)
    for method, sparsity in PLACES:
        yield other_rho(measured(), method, sparsity)


if __name__ == "__main__":
    run_plan(__doc__, DATA, parts())

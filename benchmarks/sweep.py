"""Gain and loss surface from dense to 98 %, and pruning in rounds: the runs of the plan in sweep.md, in results/sweep.jsonl.

python benchmarks/sweep.py --jobs 2   # continues where it stopped
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import judged
from planned import Planned, lines_of, run_plan

from flatsparse.experiments.landscape.measure import mean_loss
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.load import Finished, load_run
from flatsparse.experiments.run.loop import train
from flatsparse.measure.hessian import Hessian
from flatsparse.measure.spectral import eigenvalues
from flatsparse.measure.surface import axis, direction, grid, losses, roughness

DATA = Path(__file__).parent.parent / "results" / "sweep.jsonl"
SPARSITIES, NOISES, SHARES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98), (0.0, 0.2), (0.2, 0.3, 0.4)
ROUNDS, TARGET = ("lth", "lrr"), 0.9
SEEDS = tuple(range(10))  # compared
# Seeds for the choice of ρ, and what is chosen from.
SWEEP_CHOICE, SWEEP_RHOS = (100, 101, 102), (0.05, 0.1, 0.2, 0.5, 1.0)
ROUNDS_CHOICE, ROUNDS_RHOS = (100, 101), (0.1, 0.2, 0.5)
EPOCHS, ROUND_EPOCHS = 40, 10
SHARED = {"data": "digits", "train_size": 300, "validation_size": 300, "batch_size": 64}
POINTS, REACH, PAIRS, CLIP = 9, 0.5, 3, 10.0
SURFACE_IMAGES, HESSIAN_IMAGES, TOLERANCE = 100, 50, 1e-2


@dataclass(frozen=True)
class Place:
    """Where plain training and S²-SAM are compared: a method, what it prunes, and the share of wrong labels."""

    method: str
    sparsity: float
    share: float | None  # of the remaining weights, pruned after a round
    noise: float

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Place:
        """Return the place of a line."""
        return cls(*(line[field.name] for field in fields(cls)))

    @property
    def in_rounds(self) -> bool:
        """Whether weights are pruned in rounds."""
        return self.share is not None

    @property
    def radii(self) -> tuple[float, ...]:
        """The ρ to choose from."""
        return ROUNDS_RHOS if self.in_rounds else SWEEP_RHOS

    @property
    def choice(self) -> tuple[int, ...]:
        """The seeds for the choice of ρ."""
        return ROUNDS_CHOICE if self.in_rounds else SWEEP_CHOICE

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of its runs."""
        epochs = ROUND_EPOCHS if self.in_rounds else EPOCHS
        pruned = {"sparsity": self.sparsity} if self.sparsity else {}
        shared = {"drop_fraction": self.share} if self.in_rounds else {}
        length = {"epochs": epochs, "validate_every": epochs}
        return {**SHARED, "method": self.method, **pruned, **shared, **length, "label_noise": self.noise}


@dataclass(frozen=True)
class Cell(Planned):
    """One run of the plan; without ρ it is plain."""

    place: Place
    rho: float | None
    seed: int

    @property
    def identity(self) -> dict[str, Any]:
        """What the run's line is known by."""
        return {**asdict(self.place), "rho": self.rho, "seed": self.seed}

    def run(self) -> dict[str, Any]:
        """Train and measure; return what is kept."""
        sharpness = {} if self.rho is None else {"sharpness": "s2sam", "rho": self.rho}
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            result = train(RunConfig.of(**self.place.settings, **sharpness, seed=self.seed), out)
            curved = self.seed in SEEDS and not self.place.in_rounds
            measured = surface(load_run(out)) if curved else {}
        return {
            **self.identity,
            "gradients": result.gradient_evaluations,
            "reached": result.sparsity.prunable,
            "train_accuracy": result.train_accuracy,
            "validation": result.validation_accuracy,
            "test": result.test_accuracy,
            **measured,
        }


def surface(run: Finished) -> dict[str, Any]:
    """Ends of the Hessian's spectrum and roughness, within the active weights and in the space of all weights."""
    first = run.task.splits.train.first(HESSIAN_IMAGES)
    batches = list(first.batches(first.at_once(HESSIAN_IMAGES)))
    loss = mean_loss(run, SURFACE_IMAGES)
    weights = {name: p.detach() for name, p in run.model.named_parameters()}
    points = grid(axis(POINTS, REACH))
    found: dict[str, Any] = {}
    for space, masks in (("active", run.masks), ("all", None)):
        if space == "all" and run.result.sparsity.prunable == 0:
            return {**found, space: found["active"]}
        hessian = Hessian(run.model, lambda: run.task.terms(run.model, batches, len(first)), masks)
        largest, smallest = eigenvalues(hessian, 2, "both", tolerance=TOLERANCE)
        ra = []
        for pair in range(PAIRS):
            one, other = (direction(run.model, 0, "landscape", pair, n, masks=masks) for n in (0, 1))
            ra.append(roughness(losses(loss, weights, (one, other), points), CLIP))
        found[space] = {"largest": largest, "smallest": smallest, "ra": statistics.fmean(ra)}
    return found


def places() -> tuple[list[Place], list[Place]]:
    """Return all places of the sweep, and all of the rounds."""
    sweep = [Place("rigl" if s else "dense", s, None, noise) for noise in NOISES for s in SPARSITIES]
    rounds = [Place(m, TARGET, share, noise) for noise, m, share in itertools.product(NOISES, ROUNDS, SHARES)]
    return sweep, rounds


def choices(among: Iterable[Place]) -> Iterator[Cell]:
    """Yield the runs that ρ is chosen by."""
    for place in among:
        for seed, rho in itertools.product(place.choice, place.radii):
            yield Cell(place, rho, seed)


def compared(among: Sequence[Place], lines: Iterable[dict[str, Any]]) -> Iterator[Cell]:
    """Yield the runs that are compared, a seed after the other, at the ρ that some lines choose."""
    radii = chosen(among, lines)
    for seed, place in itertools.product(SEEDS, among):
        yield Cell(place, None, seed)
        yield Cell(place, radii[place], seed)


def chosen(among: Iterable[Place], lines: Iterable[dict[str, Any]]) -> dict[Place, float]:
    """Return the ρ of the best mean validation accuracy for each place; the smaller of equals."""
    known = {(Place.of(line), line["rho"], line["seed"]): line["validation"] for line in lines}

    return {
        place: judged.chosen({rho: [known[place, rho, seed] for seed in place.choice] for rho in place.radii})
        for place in among
    }


def planned() -> int:
    """Return how many runs the plan has."""
    return sum(len(list(choices(part))) + 2 * len(SEEDS) * len(part) for part in places())


def measured() -> list[dict[str, Any]]:
    """Return the lines so far."""
    return lines_of(DATA)


def parts() -> Iterator[Iterable[Cell]]:
    """Yield the runs of the plan, of the sweep and of the rounds: those for the choice of ρ, then those that it asks for."""
    for among in places():
        yield choices(among)
        yield compared(among, measured())


if __name__ == "__main__":
    run_plan(__doc__, DATA, parts())

"""Directions that cost no gradient, and how close they come to SAM's: gains on real sparse training, a bowl, and accuracy.

    python benchmarks/free_directions.py         # continues where it stopped
    python benchmarks/free_directions_page.py    # writes the page

RigL at 95 % on 300 scans of digits, 40 epochs of 64 scans a step: the setting of `make demo`.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from free_directions_tried import DIRECTIONS, RIVALS, STALE_SHARE, Direction, Tensors
from planned import Planned, lines_of, run_plan
from torch import Tensor, nn
from torch.optim import SGD

import flatsparse as fs
from flatsparse.common.seeds import generator
from flatsparse.experiments.run.build import build
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.run.epoch import take_step
from flatsparse.experiments.run.evaluation import evaluate
from flatsparse.experiments.run.resolve import resolve
from flatsparse.measure.directions import directional_increases
from flatsparse.sam.directions import less_average, mask_gradient

DATA = Path(__file__).parent.parent / "results" / "free_directions.jsonl"
SETTING = RunConfig.of(train_size=300, batch_size=64, epochs=40, method="rigl", sparsity=0.95)
RHOS = (0.05, 0.2, 0.5)
GAIN_SEEDS, LOOK_EVERY = range(4), 3  # steps; an epoch has 5, so measurements fall on all of its batches
TRAIN_RHOS, SEEDS, NOISE = (0.2, 0.5, 1.0), (0, 1, 2, 3, 4, 5, 100, 101), 0.2

Batch = tuple[Tensor, Tensor]


def trained(run: RunConfig, direction: Direction | None = None) -> Iterator[tuple[Any, Batch]]:
    """Train a run, stopping before each step with its parts and the coming batch; a direction of one's own may be put in."""
    parts = build(resolve(run))
    if direction is not None:
        parts.optimizer.direction = direction  # type: ignore[attr-defined]  # S2SAM takes any function
    for epoch in range(run.schedule.epochs):
        parts.net.train()
        train, size = parts.task.splits.train, run.optim.batch_size
        for one in train.batches(size, augment=parts.task.augmented, seed=run.seed, epoch=epoch):
            batch = one.content
            yield parts, batch
            parts.optimizer.zero_grad()
            take_step(parts, [one])
            parts.schedule.step()
    yield parts, batch


@dataclass(frozen=True)
class Before:
    """What a run stands at before a step.

    Attributes:
        step: its number, from 0.
        parts: what trains.
        batch: the one that comes.
        gradients: the last step's; none before the first, and after an update of masks.
        copy: a model of the same weights, in training mode, to measure on.
    """

    step: int
    parts: Any
    batch: Batch
    gradients: Tensors
    copy: nn.Module

    @property
    def steps(self) -> int:
        """How many steps the run has."""
        return int(self.parts.run.schedule.epochs * self.parts.steps_per_epoch)

    @property
    def due(self) -> bool:
        """True where gains are measured."""
        return bool(self.gradients) and self.step % LOOK_EVERY == 0 and self.step < self.steps

    def slopes(self, batch: Batch) -> list[Tensor]:
        """The gradient of a batch on active weights."""
        named = dict(self.copy.named_parameters())
        slopes = torch.autograd.grad(F.cross_entropy(self.copy(batch[0]), batch[1]), list(named.values()))
        return self.active(slopes)

    def active(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors for the model's parameters, zero outside the masks as they are now."""
        masks, names = self.parts.training.masks, dict(self.copy.named_parameters())
        return [torch.where(masks[n], t, 0) if n in masks else t for n, t in zip(names, tensors, strict=True)]

    def gains(self, along: Mapping[str, list[Tensor]]) -> Iterator[tuple[str, str, float]]:
        """By ρ, as a text, and by name of a direction, by how much the loss on the coming batch rises along it."""
        inputs, targets = self.batch

        def loss() -> float:
            return float(F.cross_entropy(self.copy(inputs), targets))

        for rho in RHOS:
            for name, gain in directional_increases(self.copy, along, loss, rho).items():
                yield str(rho), name, gain


@dataclass(frozen=True)
class Along(Planned):
    """Mean gains along directions, by ρ, on the batch that comes next, at every third step of a run, plain or with S²-SAM."""

    sharpness: str
    label_noise: float
    seed: int

    def stops(self) -> Iterator[Before]:
        """Train, and stop before each step, and after the last."""
        own = {"sharpness": self.sharpness, "label_noise": self.label_noise, "seed": self.seed}
        copy: nn.Module | None = None
        for step, (parts, batch) in enumerate(trained(change(SETTING, rho=0.5, **own))):
            copy = copy or parts.task.fresh()
            copy.load_state_dict(parts.model.state_dict())
            copy.train()
            gradients = {p: p.grad for p in parts.model.parameters() if p.grad is not None}
            yield Before(step, parts, batch, gradients, copy)


@dataclass(frozen=True)
class Gains(Along):
    """Of every direction, by third of the run."""

    kind: str = "gain"

    def run(self) -> dict[str, Any]:
        """Measure; return the record."""
        kept = {name: make() for name, (make, _, _) in DIRECTIONS.items()}
        found: dict[str, dict[str, list[list[float]]]] = {str(rho): {} for rho in RHOS}
        for now in self.stops():
            directions = {name: list(kept[name](None, now.gradients).values()) for name in kept if now.gradients}
            if now.due:
                along = {"sam": now.slopes(now.batch), "fresh": now.slopes(another(now.parts, now.step)), **directions}
                for rho, name, gain in now.gains(along):
                    found[rho].setdefault(name, [[], [], []])[3 * now.step // now.steps].append(gain)
        means = {
            rho: {name: [statistics.fmean(third) for third in thirds] for name, thirds in of.items()}
            for rho, of in found.items()
        }
        return {**self.identity, "gain": means}


@dataclass(frozen=True)
class Rivals(Along):
    """Of what published rivals go along."""

    kind: str = "rivals"

    def run(self) -> dict[str, Any]:
        """Measure; return the record."""
        keeper = SimpleNamespace(state=defaultdict(dict), param_groups=[])
        found: dict[str, dict[str, list[float]]] = {str(rho): {name: [] for name in RIVALS} for rho in RHOS}
        stale: list[Tensor] = []
        for now in self.stops():
            gradients = now.gradients
            if gradients:
                free = {"less average": less_average(keeper, gradients), "mask": mask_gradient(keeper, gradients)}
            if now.due:
                along = {
                    "sam": now.slopes(now.batch),
                    "previous": list(gradients.values()),
                    **{name: [some.get(p, torch.zeros_like(p)) for p in gradients] for name, some in free.items()},
                    "stale": now.active(stale),
                }
                for rho, name, gain in now.gains(along):
                    found[rho][name].append(gain)
            inputs, targets = now.batch
            quarter = round(STALE_SHARE * len(targets))
            stale = now.slopes((inputs[:quarter], targets[:quarter]))
        means = {rho: {name: statistics.fmean(gains) for name, gains in of.items()} for rho, of in found.items()}
        return {**self.identity, "gain": means}


def another(parts: Any, step: int) -> Batch:
    """A batch of scans that are not in the coming one."""
    run, train = parts.run, parts.task.splits.train
    epoch, place = divmod(step, parts.steps_per_epoch)
    order = torch.randperm(len(train), generator=generator(run.seed, "epoch", epoch))  # as the loop draws it
    first = place * run.optim.batch_size
    others = torch.cat([order[:first], order[first + run.optim.batch_size :]])
    chosen = others[torch.randperm(len(others), generator=generator(run.seed, "fresh", step))[: run.optim.batch_size]]
    return next(dataclasses.replace(train, samples=train.samples.take(chosen)).batches(run.optim.batch_size)).content


@dataclass(frozen=True)
class Accuracy(Planned):
    """Accuracy on validation and test scans of a run that is perturbed along a direction."""

    direction: str
    rho: float
    seed: int
    kind: str = "accuracy"

    def run(self) -> dict[str, Any]:
        """Train; return the record."""
        run = change(SETTING, sharpness="s2sam", rho=self.rho, label_noise=NOISE, seed=self.seed)
        *_, (parts, _) = trained(run, DIRECTIONS[self.direction][0]())
        held, test = (
            evaluation.value
            for split in (parts.task.splits.validation, parts.task.splits.test)
            if (evaluation := evaluate(parts, split)) is not None
        )
        return {**self.identity, "validation": held, "test": test}


@dataclass(frozen=True)
class Bowl(Planned):
    """The distance from the minimum of ‖w‖² in R¹⁰ at which a direction comes to rest, over ρ.

    It is the mean over the last hundred of a thousand steps.
    """

    direction: str
    kind: str = "bowl"

    def run(self) -> dict[str, Any]:
        """Take the steps; return the record."""
        w = nn.Parameter(torch.randn(10, generator=generator("bowl"), dtype=torch.float64))
        optimizer = fs.S2SAM(SGD([w], lr=0.1), rho=0.05, direction=DIRECTIONS[self.direction][0]())
        tail = []
        for step in range(1000):
            with optimizer.perturbed():
                w.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            tail += [float(w.detach().norm()) / 0.05] * (step >= 900)
        return {**self.identity, "rest": statistics.fmean(tail)}


def measured() -> list[dict[str, Any]]:
    """Return the records so far."""
    return lines_of(DATA)


def parts() -> list[list[Planned]]:
    """Return the measurements, kind by kind."""
    runs = list(itertools.product(("none", "s2sam"), (0.0, NOISE), GAIN_SEEDS))
    return [
        [Bowl(name) for name in DIRECTIONS],
        [Gains(*run) for run in runs],
        [Rivals(*run) for run in runs],
        [Accuracy(name, rho, seed) for seed in SEEDS for name in DIRECTIONS for rho in TRAIN_RHOS],
    ]


if __name__ == "__main__":
    run_plan(__doc__, DATA, parts())

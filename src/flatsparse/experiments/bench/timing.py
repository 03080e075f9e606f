"""Steps of several variants in turn, in random order, so that any disturbance of the machine affects all of them equally."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from flatsparse.common.seeds import derive, generator
from flatsparse.experiments.bench.cases import Batch, Case
from flatsparse.experiments.bench.trainer import Timing
from flatsparse.experiments.stats import Interval, median

WARM_UP = 3  # rounds: the first makes the optimizer's state, the second the first perturbed weights


class Steps(Protocol):
    """A trainer that can be stepped and timed."""

    device: str

    def step(self, batch: Batch) -> Timing: ...


def interleaved(
    trainers: Mapping[str, Steps], case: Case, rounds: int, *, seed: int = 0, tell: Callable[[], None] = lambda: None
) -> dict[str, list[Timing]]:
    """Each round steps every trainer once, on the same batch, in an order of its own.

    Args:
        trainers: by name.
        case: gives the batches.
        rounds: the number of recorded rounds; three more before them are not recorded.
        seed: of the batches and the orders.
        tell: called after each round.

    Returns: each trainer's timings, round by round.
    """
    order, source = random.Random(derive(seed, "order")), generator(seed, "batches")
    timings: dict[str, list[Timing]] = {name: [] for name in trainers}
    device = next(iter(trainers.values())).device
    for number in range(-WARM_UP, rounds):
        inputs, targets = case.batch(source)
        batch = inputs.to(device), targets.to(device)
        for name in order.sample(list(trainers), len(trainers)):
            timing = trainers[name].step(batch)
            if number >= 0:
                timings[name].append(timing)
        tell()
    return timings


def wall_ratio(variant: Sequence[Timing], base: Sequence[Timing]) -> Interval:
    """The median over rounds of the ratio of two whole steps of the same round."""
    return median([a.step / b.step for a, b in zip(variant, base, strict=True)])


def implied_ratio(variant: Sequence[Timing], base: Sequence[Timing]) -> Interval | None:
    """The ratio of steps that the optimizer's own time implies: 1 + (its time - the base's) / the base's whole step.

    Ours, because the rest of a step is the same work in both and only adds noise. It misses what an optimizer does to
    forward and backward, e.g. by what it leaves in the caches; the wall ratio sees that. None where an optimizer's own time
    is not known.
    """
    ratios = []
    for a, b in zip(variant, base, strict=True):
        if a.optimizer is None or b.optimizer is None:
            return None
        ratios.append(1 + (a.optimizer - b.optimizer) / b.step)
    return median(ratios)

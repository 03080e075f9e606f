"""Iterative magnitude pruning with rewound weights (LTH) and with a rewound learning rate (LRR)."""

from __future__ import annotations

from dataclasses import dataclass

from flatsparse.sparse.distributions import uniform
from flatsparse.sparse.plan import Plan
from flatsparse.sparse.rounds import by_magnitude
from flatsparse.sparse.scores import each, magnitude


@dataclass(frozen=True)
class LTH:
    """Train, prune the smallest weights of the whole net, write the early weights back, train again (Frankle & Carbin 2019).

    Rewinding writes back every parameter and buffer, batch-norm statistics included. After n prunings of 20 %,
    ``1 - 0.8ⁿ`` of the weights are gone; ours is that the last pruning stops at the target. See ``rounds``.

    Attributes:
        drop_fraction: of the remaining weights, pruned after each round.
        rewind: the step to whose weights each round goes back: 0 is the initialisation, as in the paper; a later one
            is that of Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis".
    """

    drop_fraction: float = 0.2
    rewind: int = 0

    def plan(self, sparsity: float, steps: int) -> Plan:
        rounds = by_magnitude(self.drop_fraction, sparsity, self.rewind, steps)
        return Plan(0.0, each(magnitude), uniform, rounds=rounds)


@dataclass(frozen=True)
class LRR:
    """Train, prune the smallest weights of the whole net, keep the others, restart the learning rate (Renda et al. 2020).

    It differs from ``LTH`` in that nothing is written back: each round continues from the final weights of the last one,
    at the initial learning rate of the first one. Ours is that the last pruning stops at the target.

    Attributes:
        drop_fraction: of the remaining weights, pruned after each round.
    """

    drop_fraction: float = 0.2

    def plan(self, sparsity: float, steps: int) -> Plan:
        rounds = by_magnitude(self.drop_fraction, sparsity, None, steps)
        return Plan(0.0, each(magnitude), uniform, rounds=rounds)

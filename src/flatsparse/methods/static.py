"""Training without any change of masks: dense, and from a random sparse start."""

from __future__ import annotations

from dataclasses import dataclass

from flatsparse.common.errors import InputError
from flatsparse.sparse.distributions import Distribution, erdos_renyi_kernel, uniform
from flatsparse.sparse.pattern import PatternOption, pattern_of
from flatsparse.sparse.plan import Plan
from flatsparse.sparse.scores import Score, each, random


@dataclass(frozen=True)
class Dense:
    """Train all weights: the ordinary dense training that the others are measured against.

    Its sparsity is 0, and any other is refused. With it, sharpness-aware training can be compared without masks.
    """

    default_sparsity = 0.0

    def plan(self, sparsity: float, steps: int) -> Plan:
        if sparsity != 0:
            raise InputError(
                f"method 'dense' keeps every weight, so sparsity {sparsity} cannot hold: give 0, or 'static'"
            )
        return Plan(sparsity=0.0, initial=each(random), distribution=uniform)


@dataclass(frozen=True)
class Static:
    """A sparse start that never changes (the static baseline of Evci et al. 2020: random, ERK).

    It shows the worth of moving the masks: dynamic methods start like this one. With ``initial=magnitude`` it keeps the
    largest of the initial weights of each layer.

    Attributes:
        initial: the score by which each layer's first masks are chosen.
        distribution: how the active weights are allocated to layers.
        pattern: what masks keep to: a ``Block``; or N active weights of each M, as a pair, of which every layer is then as
            sparse, not by a distribution.
    """

    initial: Score = random
    distribution: Distribution = erdos_renyi_kernel
    pattern: PatternOption = None

    def plan(self, sparsity: float, steps: int) -> Plan:
        pattern = pattern_of(self.pattern, sparsity)
        return Plan(sparsity, each(self.initial), self.distribution, pattern=pattern)

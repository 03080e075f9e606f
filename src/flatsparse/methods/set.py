"""SET: sparse evolutionary training (Mocanu et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

from flatsparse.common.errors import check_fraction
from flatsparse.schedules import Constant
from flatsparse.sparse.distributions import Distribution, erdos_renyi, erdos_renyi_kernel
from flatsparse.sparse.pattern import PatternOption, pattern_of
from flatsparse.sparse.plan import Plan, share_of, updates
from flatsparse.sparse.rules import DropAndGrow
from flatsparse.sparse.scores import each, magnitude, magnitude_by_sign, random


@dataclass(frozen=True)
class SET:
    """Periodically drop the smallest active weights of each layer and grow as many at random.

    This is the form for convolutional nets that the RigL code compares with: by magnitude whatever the sign, every
    100 steps. Growth starts from small random values in the paper but from 0 in its code; here, from 0. The share of
    the run that may update is ours, RigL's.

    Attributes:
        every: steps between updates.
        until: the last step that may update, or its share of the run.
        drop_fraction: of a layer's active weights at each update (ζ in the paper).
        distribution: how the active weights are allocated to layers.
        pattern: what masks keep to: a ``Block``; or N active weights of each M, as a pair, of which every layer is then as
            sparse, not by a distribution.
    """

    every: int = 100
    until: float = 0.75
    drop_fraction: float = 0.3
    distribution: Distribution = erdos_renyi_kernel
    pattern: PatternOption = None

    def plan(self, sparsity: float, steps: int) -> Plan:
        check_fraction("drop_fraction", self.drop_fraction)
        when = updates(self.every, self.until, steps)
        pattern = pattern_of(self.pattern, sparsity)
        rule = DropAndGrow(when, Constant(self.drop_fraction), drop=magnitude, grow=random, pattern=pattern)
        return Plan(sparsity, each(random), self.distribution, rules=(rule,), pattern=pattern)


@dataclass(frozen=True)
class OriginalSET:
    """SET as first published: once an epoch drop the smallest positive and the largest negative weights (Alg. 1).

    The same fraction of either sign is dropped. Epochs are not known here: by default one is taken to be 1/160 of the run.
    The last step of the run grows nothing, because grown weights would not be trained.

    Attributes:
        every: steps between updates.
        until: the last step that may update, or its share of the run.
        drop_fraction: of a layer's active weights at each update (ζ in the paper).
        distribution: the paper's, by each layer's inputs and outputs.
    """

    every: int | None = None
    until: float = 1.0
    drop_fraction: float = 0.3
    distribution: Distribution = erdos_renyi

    def plan(self, sparsity: float, steps: int) -> Plan:
        check_fraction("drop_fraction", self.drop_fraction)
        when = updates(share_of(steps, 1 / 160, self.every), self.until, steps, spare=1)
        rule = DropAndGrow(when, fraction=Constant(self.drop_fraction), drop=magnitude_by_sign, grow=random)
        return Plan(sparsity, each(random), self.distribution, rules=(rule,))

"""SET: sparse evolutionary training (Mocanu et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

from flatsparse.criteria import each, magnitude, random
from flatsparse.distributions import Distribution, erdos_renyi_kernel
from flatsparse.errors import check_fraction
from flatsparse.plan import Plan, updates
from flatsparse.rules import Rewire
from flatsparse.schedules import Constant


@dataclass(frozen=True)
class SET:
    """Now and then drop the smallest live weights of each layer and grow as many at random.

    This is the form for convolutional nets that the RigL code compares with: by magnitude whatever the sign, every
    100 steps. The original drops by sign and once an epoch, and its growth starts from small random values in the
    paper but from 0 in its code; here, from 0. The share of the run that may rewire is ours, RigL's.

    Attributes:
        every: steps between updates.
        until: the last step that may update, or its share of the run.
        drop_fraction: of a layer's live weights at each update (ζ in the paper).
        distribution: how the live weights are shared out between layers.
    """

    every: int = 100
    until: float = 0.75
    drop_fraction: float = 0.3
    distribution: Distribution = erdos_renyi_kernel

    def plan(self, sparsity: float, steps: int) -> Plan:
        check_fraction("drop_fraction", self.drop_fraction)
        when = updates(self.every, self.until, steps)
        rewire = Rewire(when, fraction=Constant(self.drop_fraction), drop=magnitude, grow=random)
        return Plan(sparsity, each(random), self.distribution, rules=(rewire,))

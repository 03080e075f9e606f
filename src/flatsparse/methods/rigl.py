"""RigL: rigging the lottery (Evci et al. 2020, "Rigging the Lottery: Making All Tickets Winners")."""

from __future__ import annotations

from dataclasses import dataclass

from flatsparse.common.errors import check_fraction
from flatsparse.schedules import Cosine
from flatsparse.sparse.distributions import Distribution, erdos_renyi_kernel
from flatsparse.sparse.pattern import PatternOption, pattern_of
from flatsparse.sparse.plan import Plan, updates
from flatsparse.sparse.rules import DropAndGrow
from flatsparse.sparse.scores import each, gradient, magnitude, random


@dataclass(frozen=True)
class RigL:
    """Periodically drop the smallest active weights of each layer and grow where the dense gradient is largest (Alg. 1).

    As in the published code, an update takes the place of the weight step, and just-dropped weights may return.

    Attributes:
        every: steps between updates (ΔT).
        until: the last step that may update, or its share of the run (T_end; 25k of 32k steps in the paper).
        drop_fraction: of a layer's active weights at the first update (α), falling to 0 along half a cosine.
        distribution: how the active weights are allocated to layers. With ``uniform`` the paper leaves the first
            convolution dense, which ``layers="rigl"`` does.
        weight_step: take the weight step on an update as well, before it (as ITOP does: Liu et al. 2021).
        pattern: what masks keep to: a ``Block``; or N active weights of each M, as a pair, of which every layer is then as
            sparse, not by a distribution.
    """

    every: int = 100
    until: float = 0.75
    drop_fraction: float = 0.3
    distribution: Distribution = erdos_renyi_kernel
    weight_step: bool = False
    pattern: PatternOption = None

    def plan(self, sparsity: float, steps: int) -> Plan:
        check_fraction("drop_fraction", self.drop_fraction)
        when = updates(self.every, self.until, steps)
        fraction = Cosine(self.drop_fraction, 0.0, until=when.until)
        pattern = pattern_of(self.pattern, sparsity)
        rule = DropAndGrow(when, fraction, drop=magnitude, grow=gradient, weight_step=self.weight_step, pattern=pattern)
        return Plan(sparsity, each(random), self.distribution, rules=(rule,), pattern=pattern)

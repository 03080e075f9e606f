"""DSR: dynamic sparse reparameterization (Mostafa & Wang 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from flatsparse.common.errors import check_finite, check_fraction
from flatsparse.schedules import AnyOf, Every
from flatsparse.sparse.distributions import Distribution, uniform
from flatsparse.sparse.plan import Plan, updates
from flatsparse.sparse.redistribution import BelowThreshold, Redistribute, survivors
from flatsparse.sparse.scores import each, random, random_elsewhere


@dataclass(frozen=True)
class DSR:
    """Drop weights below one threshold for the whole net; layers regrow as many, in proportion to their survivors (Alg. 1).

    The threshold doubles or halves as fewer or more are dropped than intended. Growth is random, among weights that were
    pruned before. The period doubles after 1/8, 2/5 and 7/10 of the run, as in the paper's CIFAR runs (epochs 25, 80 and
    140 of 200). Its code keeps a net's first convolution and shortcuts dense, which ``layers="dsr"`` does.

    Attributes:
        every: steps between updates at first.
        until: the last step that may update, or its share of the run.
        drop_fraction: of the net's active weights, the target at each update. The paper gives counts: 20,000 for its
            CIFAR net and 400,000 for ResNet-50, which at 80 to 90 % sparsity are 8 to 16 % of the active weights.
        threshold: the initial one (H).
        distribution: how the active weights are allocated to layers at the start; uniform, as in its code, which
            starts linear layers at a sparsity of their own.
    """

    every: int = 100
    until: float = 0.95
    drop_fraction: float = 0.1
    threshold: float = 1e-3
    distribution: Distribution = uniform

    def plan(self, sparsity: float, steps: int) -> Plan:
        check_fraction("drop_fraction", self.drop_fraction)
        check_finite("threshold", self.threshold, above=True)
        whole = updates(self.every, self.until, steps, spare=1)
        lengthens = [round(share * steps) for share in (0.125, 0.4, 0.7)]
        stretches, step = [], whole.period  # the first update of the stretch that comes next
        for doubled, end in enumerate([*lengthens, whole.until + 1]):
            period = whole.period << doubled
            stretch = Every(period, until=min(end - 1, whole.until), start=step - period)
            if step <= stretch.until:
                stretches.append(stretch)
                step = stretch.last + period
        when = AnyOf(tuple(stretches))
        rule = Redistribute(when, BelowThreshold(self.threshold, self.drop_fraction), survivors, random_elsewhere)
        return Plan(sparsity, each(random), self.distribution, rules=(rule,))

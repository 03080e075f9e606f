"""SNFS: sparse networks from scratch, or sparse momentum (Dettmers & Zettlemoyer 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from flatsparse.common.errors import check_fraction
from flatsparse.schedules import Cosine
from flatsparse.sparse.distributions import Distribution, uniform
from flatsparse.sparse.plan import Plan, share_of, updates
from flatsparse.sparse.redistribution import Redistribute, SmallestOfEach, mean_momentum
from flatsparse.sparse.scores import each, momentum, random


@dataclass(frozen=True)
class SNFS:
    """Once an epoch drop the smallest weights; layers grow by their mean momentum, where momentum is largest.

    The momentum must be dense, while an optimizer's is 0 outside the masks: a running average of the dense gradient is
    kept beside it, a buffer the size of the weights, without weight decay. Epochs are not known here: by default one is
    taken to be 1/160 of the run. The last step of the run grows nothing, because grown weights would not be trained.

    Its code leaves the optimizer's own momentum dense, so that a weight that grows starts at 0 but moves at once with the
    momentum that accumulated while it was pruned; here it starts from 0. That code also lets a layer that is still growing, but
    is denser than 80 %, drop no more than its sparsity (``adjust_prune_rate``); here all layers drop the same fraction.

    Attributes:
        every: steps between updates.
        until: the last step that may update, or its share of the run.
        drop_fraction: of a layer's active weights at the start, falling to 0 along half a cosine. In its code the cosine
            ends at 0.005; the paper's falls in a straight line, as far as we know.
        decay: the share of the running average that a step keeps, SGD's usual momentum.
        distribution: how the active weights are allocated to layers at the start; uniform, as in its code.
    """

    every: int | None = None
    until: float = 1.0
    drop_fraction: float = 0.5
    decay: float = 0.9
    distribution: Distribution = uniform

    def plan(self, sparsity: float, steps: int) -> Plan:
        check_fraction("drop_fraction", self.drop_fraction)
        check_fraction("decay", self.decay)
        when = updates(share_of(steps, 1 / 160, self.every), self.until, steps, spare=1)
        drop = SmallestOfEach(Cosine(self.drop_fraction, 0.0, until=when.until))
        rule = Redistribute(when, drop, share=mean_momentum, grow=momentum)
        return Plan(sparsity, each(random), self.distribution, rules=(rule,), momentum=self.decay)

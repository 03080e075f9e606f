"""ITOP: in-time over-parameterization (Liu et al. 2021, "Do We Actually Need Dense Over-Parameterization?").

The paper's settings for SET and RigL: update rarely, so that grown weights have time to prove useful, and to the end of
training, so that as many weights as possible are tried at some time. ``training.exploration`` is the paper's R_s, the
fraction of weights that were. The weight step is taken on updates too. Periods are for batches of 128 on CIFAR. The last
step of the run grows nothing, because grown weights would not be trained.
"""

from __future__ import annotations

from dataclasses import dataclass

from flatsparse.common.errors import check_fraction
from flatsparse.schedules import Cosine
from flatsparse.sparse.distributions import Distribution, erdos_renyi_kernel
from flatsparse.sparse.plan import Plan, updates
from flatsparse.sparse.rules import DropAndGrow
from flatsparse.sparse.scores import Score, each, gradient, magnitude, random


@dataclass(frozen=True)
class SETITOP:
    """SET with ITOP's settings: random growth, every 1,500 steps.

    Attributes:
        every: steps between updates (ΔT).
        until: the last step that may update, or its share of the run.
        drop_fraction: of a layer's active weights at the start, falling to ``last_fraction`` along half a cosine.
        last_fraction: at the end of the run.
        distribution: how the active weights are allocated to layers.
    """

    every: int = 1500
    until: float = 1.0
    drop_fraction: float = 0.5
    last_fraction: float = 0.005
    distribution: Distribution = erdos_renyi_kernel

    def plan(self, sparsity: float, steps: int) -> Plan:
        return _plan(self, sparsity, steps, grow=random)


@dataclass(frozen=True)
class RigLITOP:
    """RigL with ITOP's settings: growth by dense gradient, every 4,000 steps.

    Attributes:
        every: steps between updates (ΔT).
        until, drop_fraction, last_fraction, distribution: as those of ``SETITOP``.
    """

    every: int = 4000
    until: float = 1.0
    drop_fraction: float = 0.5
    last_fraction: float = 0.005
    distribution: Distribution = erdos_renyi_kernel

    def plan(self, sparsity: float, steps: int) -> Plan:
        return _plan(self, sparsity, steps, grow=gradient)


def _plan(method: SETITOP | RigLITOP, sparsity: float, steps: int, grow: Score) -> Plan:
    check_fraction("drop_fraction", method.drop_fraction)
    check_fraction("last_fraction", method.last_fraction)
    when = updates(method.every, method.until, steps, spare=1)
    fraction = Cosine(method.drop_fraction, method.last_fraction, until=steps)
    return Plan(
        sparsity, each(random), method.distribution, rules=(DropAndGrow(when, fraction, drop=magnitude, grow=grow),)
    )

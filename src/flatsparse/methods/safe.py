"""SAFE: sparsification by ADMM with flatness enforcement (Lee et al. 2025, "SAFE: Finding Sparse and Flat Minima …")."""

from __future__ import annotations

from dataclasses import dataclass

from flatsparse.common.errors import check_finite
from flatsparse.schedules import At, Constant, Cosine, Every, Schedule
from flatsparse.sparse.distributions import Distribution, global_ranking, uniform
from flatsparse.sparse.plan import Plan, updates
from flatsparse.sparse.pull import Pull, magnitude_with_dual
from flatsparse.sparse.rules import PruneTo
from flatsparse.sparse.scores import each, magnitude


@dataclass(frozen=True)
class SAFE:
    """Pull dense weights w towards a sparse copy z of them, ever harder, and then prune the smallest.

    The gradients of ``λ/2 ‖w − z + u‖²`` are added to the loss's in each step. Every few steps z is made of the largest
    entries of ``w + u``, and the dual u is what that leaves. The pull is at the true weights, as weight decay is, and no
    part of a perturbation's direction. The paper takes SAM's gradient; here that is the optimizer's business: with ``SAM``
    this is SAFE, with ``S2SAM`` it costs half the gradients, and with neither it is plain ADMM.

    Read in the published code for images: the update, z of all layers together, u from 0, an interval of 32, λ from 0 along
    half a cosine to 10⁻³ (10⁻⁴ for VGG-19 on CIFAR-10), ρ = 0.1; pruning comes after the last step, and batch-norm statistics
    are then taken again on 10,000 images. Of the paper's text we had no more than that. Ours is to prune at 75 % of the run,
    to which λ rises, and to train the rest under the masks; ``until=1.0`` prunes at the last step, and then the statistics
    are yours to renew. λ acts through the number of steps, some 78,000 in those runs: a short run needs a larger λ. SAFE⁺,
    whose projection ranks by other scores, is not here.

    The net is dense, in masks, sparsity and cost, until it is pruned, and one that is stopped before stays dense. Beside the
    weights it keeps five bytes for each.

    Attributes:
        penalty: λ where it is largest, in units of the gradient per weight; or λ by step, a schedule.
        every: steps between projections.
        until: the step that prunes, or its share of the run.
        distribution: how the active weights are allocated to layers, in z as in the masks; the paper ranks them globally.
    """

    penalty: float | Schedule = 1e-3
    every: int = 32
    until: float = 0.75
    distribution: Distribution = global_ranking

    def plan(self, sparsity: float, steps: int) -> Plan:
        when = updates(self.every, self.until, steps)
        end = when.until
        target = Constant(sparsity)
        project = PruneTo(Every(when.period, until=end - 1), target, magnitude_with_dual, self.distribution)
        prune = PruneTo(At(frozenset({end})), target, magnitude, self.distribution)
        pull = Pull(self._strength(end), project, until=end)
        return Plan(sparsity=0.0, initial=each(magnitude), distribution=uniform, rules=(prune,), pull=pull)

    def _strength(self, end: int) -> Schedule:
        if callable(self.penalty):
            return self.penalty
        return Cosine(0.0, check_finite("penalty", self.penalty), until=end + 1, start=1)

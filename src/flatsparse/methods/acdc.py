"""AC/DC: alternating compressed and decompressed training (Peste et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from flatsparse.common.errors import InputError
from flatsparse.schedules import At, Constant
from flatsparse.sparse.distributions import Distribution, global_ranking, uniform
from flatsparse.sparse.plan import Plan
from flatsparse.sparse.rules import GrowTo, PruneTo
from flatsparse.sparse.scores import each, magnitude


@dataclass(frozen=True)
class ACDC:
    """Alternate dense and sparse training, pruning the smallest weights of the whole net, and end sparse (Alg. 1).

    Pruned weights come back at 0. The published code clears all momentum then; here the weights that were active keep theirs.

    Attributes:
        prune: when to prune to the target, in shares of the run. By default those of the paper's ImageNet runs of 100
            epochs.
        restore: when to make all weights active again.
        distribution: how the active weights are allocated to layers; the paper ranks them globally.
    """

    prune: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85)
    restore: tuple[float, ...] = (0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75)
    distribution: Distribution = global_ranking

    def plan(self, sparsity: float, steps: int) -> Plan:
        for name, shares in (("prune", self.prune), ("restore", self.restore)):
            if not all(0 < share <= 1 for share in shares):
                raise InputError(f"{name} {shares} is not usable: give shares of the run in (0, 1]")
        if not self.prune or max(self.prune) <= max(self.restore, default=0):
            raise InputError(
                f"prune {self.prune} and restore {self.restore} do not end sparse: give a later last pruning"
            )
        if steps < 2:
            raise InputError(
                f"a run of steps={steps} is too short: masks change from the second step on, so give more steps"
            )
        prune, restore = (frozenset(max(2, round(s * steps)) for s in shares) for shares in (self.prune, self.restore))
        restore -= {step for step in restore if step >= max(prune)}  # rounded together, in a very short run
        rules = (
            PruneTo(At(prune), Constant(sparsity), magnitude, self.distribution),
            GrowTo(At(restore), Constant(0.0), magnitude, uniform),
        )
        return Plan(sparsity=0.0, initial=each(magnitude), distribution=uniform, rules=rules)

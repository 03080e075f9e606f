"""GMP: gradual magnitude pruning (Zhu & Gupta 2017, "To prune, or not to prune")."""

from __future__ import annotations

from dataclasses import dataclass

from flatsparse.common.errors import InputError
from flatsparse.schedules import Cubic
from flatsparse.sparse.distributions import Distribution, uniform
from flatsparse.sparse.n_of_m import GradualNofM, NofM
from flatsparse.sparse.pattern import PatternOption, pattern_of
from flatsparse.sparse.plan import Plan, updates
from flatsparse.sparse.rules import PruneTo
from flatsparse.sparse.scores import each, magnitude


@dataclass(frozen=True)
class GMP:
    """Start dense and prune the smallest weights, more and more slowly, to the target (eq. 1, the cubic schedule).

    The paper leaves begin, end and period to the user; ours are the start, 75 % of the run and 100 steps, after the
    settings that dynamic methods use.

    Attributes:
        every: steps between prunings.
        until: the last step that may prune, or its share of the run.
        distribution: the paper prunes every layer alike.
        pattern: what masks keep to: a ``Block``, of which whole ones are pruned (Narang et al. 2017); or N active weights of
            each M, as a pair, at which the last pruning ends (Zhou et al. 2021). On the way every group of M is as sparse as
            the others, to one weight, and every layer too, whatever ``distribution`` is: see ``GradualNofM``.
    """

    every: int = 100
    until: float = 0.75
    distribution: Distribution = uniform
    pattern: PatternOption = None

    def plan(self, sparsity: float, steps: int) -> Plan:
        when = updates(self.every, self.until, steps)
        pattern = pattern_of(self.pattern, sparsity)
        if isinstance(pattern, NofM):
            pattern = GradualNofM(pattern)
        if pattern.sparsity is not None:
            raise InputError(
                f"method 'gmp' starts dense, and pattern {pattern} is always {pattern.sparsity:g} sparse:"
                " give a block, such as flatsparse.Block(16, 1), a pair, such as (2, 4), or another method"
            )
        reach = Cubic(0.0, sparsity, until=when.last)  # the last pruning lands on the target
        prune = PruneTo(when, sparsity=reach, keep=magnitude, distribution=self.distribution, pattern=pattern)
        return Plan(sparsity=0.0, initial=each(magnitude), distribution=uniform, rules=(prune,), pattern=pattern)

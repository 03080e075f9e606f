"""MEST: memory-economic sparse training (Yuan et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flatsparse.common.errors import InputError, check_finite, check_fraction
from flatsparse.schedules import AnyOf, At, Constant, Stages
from flatsparse.sparse.distributions import Distribution, uniform
from flatsparse.sparse.plan import Plan, share_of, updates
from flatsparse.sparse.rules import GrowTo, PruneTo
from flatsparse.sparse.scores import MagnitudeAndGradient, Score, each, magnitude, random

# How far a mutation goes from the target in each phase but the last, where it is 0: in fractions of all weights, from
# a sparsity on. They are those of the S²-SAM paper's runs (ResNet-32 at 0.98).
EM_BOUNDS = {0.0: (0.02, 0.01), 0.98: (0.002, 0.001)}
EMS_BOUNDS = {0.0: (0.05, 0.025), 0.98: (0.05, 0.02)}


@dataclass(frozen=True)
class MEST:
    """MEST(EM), elastic mutation: prune a little beyond the target and grow back to it at random, less and less.

    The start is dense weights pruned by magnitude. From the last phase on masks stay. As in the published code,
    just-pruned weights may grow again, and start from 0. That code also mutates once before the first step; here the first
    mutation comes after ``every`` steps.

    Attributes:
        every: steps between mutations; by default 1/32 of the run (5 epochs of 160).
        bounds: the amount pruned beyond the target in each phase but the last, in fractions of all weights. By default
            the S²-SAM paper's for ResNet-32; for VGG-19 at 0.98 it has ``(0.01, 0.005)``. The two rows of the table are
            for sparsities below 0.98, and from there on; for sparsities that the paper lacks, this is ours.
        phases: where the next phase begins, in shares of the run (epochs 100 and 130 of 160).
        gradient_weight: λ of the importance ``|w| + λ|∂L/∂w|``; 0, as in the published code, is magnitude. Otherwise
            gradients are kept dense on updates, though only the active weights' are read.
        distribution: every layer alike, as in those runs; they keep the first convolution, shortcuts and the last layer
            dense, which ``layers="mest"`` does.
    """

    every: int | None = None
    bounds: tuple[float, ...] | None = None
    phases: tuple[float, ...] = (0.625, 0.8125)
    gradient_weight: float = 0.0
    distribution: Distribution = uniform

    def plan(self, sparsity: float, steps: int) -> Plan:
        bounds = _bounds(self.bounds, EM_BOUNDS, sparsity, self.phases)
        when, starts = _phases(self.every, self.phases, steps)
        beyond = Stages((*(sparsity + p for p in bounds), sparsity), starts)
        if max(beyond.values) >= 1:
            raise InputError(
                f"sparsity {sparsity} leaves too little to prune {max(bounds)} of all weights more: give smaller bounds="
            )
        prune = PruneTo(when, beyond, _importance(self.gradient_weight), self.distribution)
        grow = GrowTo(when, Constant(sparsity), random, self.distribution)
        return Plan(sparsity, each(magnitude), self.distribution, rules=(prune, grow))


@dataclass(frozen=True)
class MESTSoft:
    """MEST(EM&S), elastic mutation with a soft memory bound: train denser than the target, closer and closer to it.

    A mutation prunes to the target and grows beyond it at random. From the last phase on the net is at the target. The
    published code mutates once before the first step, so that it starts with the largest weights at the target and random
    ones beyond it; here all that is active at the start are the largest weights.

    Attributes:
        bounds: how much denser than the target each phase but the last trains, in fractions of all weights; see ``MEST``
            for the table's rows. VGG-19 has ``(0.05, 0.025)`` at 0.98.
        every, phases, gradient_weight, distribution: as those of ``MEST``.
    """

    every: int | None = None
    bounds: tuple[float, ...] | None = None
    phases: tuple[float, ...] = (0.625, 0.8125)
    gradient_weight: float = 0.0
    distribution: Distribution = uniform

    def plan(self, sparsity: float, steps: int) -> Plan:
        bounds = _bounds(self.bounds, EMS_BOUNDS, sparsity, self.phases)
        when, starts = _phases(self.every, self.phases, steps)
        denser = Stages((*(max(0.0, sparsity - p) for p in bounds), sparsity), starts)
        prune = PruneTo(when, Constant(sparsity), _importance(self.gradient_weight), self.distribution)
        grow = GrowTo(when, denser, random, self.distribution)
        return Plan(denser(1), each(magnitude), self.distribution, rules=(prune, grow))


def _importance(gradient_weight: float) -> Score:
    check_finite("gradient_weight", gradient_weight)
    return MagnitudeAndGradient(gradient_weight) if gradient_weight else magnitude


def _bounds(
    given: Sequence[float] | None, table: Mapping[float, tuple[float, ...]], sparsity: float, phases: Sequence[float]
) -> tuple[float, ...]:
    bounds = tuple(given) if given is not None else table[max(row for row in table if row <= sparsity)]
    for bound in bounds:
        check_fraction("each of bounds", bound)
    if len(bounds) != len(phases):
        raise InputError(
            f"{len(bounds)} bounds do not fit {len(phases)} phases: give a bound for each phase but the last"
        )
    return bounds


def _phases(every: int | None, phases: Sequence[float], steps: int) -> tuple[AnyOf, tuple[int, ...]]:
    """Return when to mutate, and the first steps of the later phases; the last is an update itself, so that it ends on target."""
    if not phases or sorted(phases) != list(phases) or not all(0 < share < 1 for share in phases):
        raise InputError(f"phases {phases} are not usable: give rising shares of the run in (0, 1)")
    starts = tuple(max(2, round(share * steps)) for share in phases)
    period = updates(share_of(steps, 1 / 32, every), starts[-1], steps)
    return AnyOf((period, At(frozenset(starts[-1:])))), starts

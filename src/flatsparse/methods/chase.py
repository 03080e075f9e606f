"""Chase: channel-aware dynamic sparse training (Yin et al. 2023, "Dynamic Sparsity Is Channel-Level Sparsity Learner")."""

from __future__ import annotations

from dataclasses import dataclass

from flatsparse.criteria import each, gradient, magnitude, random
from flatsparse.distributions import Distribution, erdos_renyi_kernel, ranked_together
from flatsparse.errors import check_fraction
from flatsparse.filters import FilterScore, mean_magnitude
from flatsparse.plan import Plan, updates
from flatsparse.rules import GrowTo, PruneTo, Rewire
from flatsparse.schedules import Constant, Cosine, Cubic, Every
from flatsparse.thinning import RemoveChannels, Thinning


@dataclass(frozen=True)
class Chase:
    """Explore weights over the whole net, and bit by bit remove the channels that this leaves nearly empty.

    An update removes channels, prunes the smallest weights of the net to its sparsity and grows beyond it where the
    dense gradient is largest, ever less far beyond. Afterwards layers drop and grow at the sparsity. Nothing grows in
    removed channels, which can be taken out at the end: ``fs.shrink``. Where the channels that stay
    hold fewer weights than the sparsity allows, all of them end up live. Our reading is that an update takes a weight
    step too, that the bound counts all prunable weights, that weights and channels have one period, and that the last phase
    works layer by layer.

    Attributes:
        channels: the fraction removed (S_c; 0, 0.3 and 0.4 for the paper's ResNet-50), of those that one layer
            writes, along a cubic; met to the channel.
        every: steps between updates (ΔT_p).
        until: where the last phase begins, as a step or a share of the run (epoch 130 of 160; 80 of 100 on ImageNet).
        bound: how far growth goes beyond the density at first, as a fraction of all prunable weights; falls to 0.
        drop_fraction: of a layer's live weights moved at an update of the last phase: the start of half a cosine over
            the whole run that ends at a hundredth of it.
        least: a group keeps at least this share of its share of channels, ``C(1 − S_c)·β`` rounded down (β; 0.5 for
            ResNet-50 on CIFAR, 0.2 for VGG-19 and ImageNet).
        score: of channels; ``mean_magnitude`` is UMM. Others are in ``flatsparse.filters``.
        sums: also remove channels that several layers write, such as those of a residual stream.
        distribution: how the live weights are shared out between layers at the start.
    """

    channels: float = 0.3
    every: int = 1000
    until: float = 0.8125
    bound: float = 0.05
    drop_fraction: float = 0.5
    least: float = 0.5
    score: FilterScore = mean_magnitude
    sums: bool = False
    distribution: Distribution = erdos_renyi_kernel

    def plan(self, sparsity: float, steps: int) -> Plan:
        check_fraction("bound", self.bound)
        check_fraction("drop_fraction", self.drop_fraction)
        thinning = Thinning(
            self.channels, least=(1 - self.channels) * check_fraction("least", self.least), sums=self.sums
        )
        when = updates(self.every, self.until, steps, spare=1)
        denser = Cosine(max(0.0, sparsity - self.bound), sparsity, until=when.last)
        moved = Cosine(self.drop_fraction, self.drop_fraction / 100, until=steps)
        rules = (
            RemoveChannels(when, Cubic(0.0, self.channels, until=when.last), self.score, thinning),
            PruneTo(when, Constant(sparsity), magnitude, ranked_together),
            GrowTo(when, denser, gradient, ranked_together),
            # What grew at the very last step would be live and never trained.
            Rewire(Every(when.period, until=steps - 1, start=when.last), moved, drop=magnitude, grow=gradient),
        )
        return Plan(sparsity, each(random), self.distribution, rules=rules, thinning=thinning)

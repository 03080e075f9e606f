"""Chase: channel-aware dynamic sparse training (Yin et al. 2023, "Dynamic Sparsity Is Channel-Level Sparsity Learner")."""

from __future__ import annotations

from dataclasses import dataclass

from flatsparse.common.errors import InputError, check_count, check_fraction, unknown
from flatsparse.schedules import Constant, Cosine, Cubic, Every, Schedule
from flatsparse.sparse.channel_choice import between_convolutions, eligible
from flatsparse.sparse.channel_rules import ChannelPruning, PruneChannels
from flatsparse.sparse.channel_scores import FilterScore, mean_magnitude
from flatsparse.sparse.distributions import Distribution, erdos_renyi_kernel, global_ranking
from flatsparse.sparse.plan import Plan, updates
from flatsparse.sparse.rules import DropAndGrow, GrowTo, PruneTo
from flatsparse.sparse.scores import each, gradient, magnitude, random

SCOPES = ("net", "layer")


@dataclass(frozen=True)
class Chase:
    """Explore weights over the whole net, and gradually remove the channels that this leaves nearly empty.

    An update prunes the smallest weights of the net to its sparsity and grows beyond it, by less and less, where the
    dense gradient is largest. Channels are removed half a period earlier. In the last phase an update drops a share of the
    active weights, the smallest of the net, and grows as many. Nothing grows in removed channels, which ``fs.shrink`` can take
    out at the end. Where the channels that stay hold fewer weights than the sparsity allows, all of them end up active. Our
    reading is that an update takes a weight step too, and that the bound counts all prunable weights.

    This follows the published scripts for CIFAR, whose counts miss the requested ones by a few weights and channels. The one
    for ImageNet works layer by layer in both phases, ``first_phase="layer", last_phase="layer"``, and removes channels every
    other epoch; in its first phase layers keep their proportions to each other, here they go by ``distribution``.

    Attributes:
        channels: the fraction removed (S_c; 0, 0.3 and 0.4 for the paper's ResNet-50), of those that ``explore`` names, along
            a cubic; met to the channel.
        every: steps between updates (ΔT_p).
        until: where the last phase begins, as a step or a share of the run (epoch 130 of 160; 80 of 100 on ImageNet).
        bound: how far growth goes beyond the density at first, as a fraction of all prunable weights; falls to 0.
        drop_fraction: of the active weights, moved at an update of the last phase: the start of half a cosine over the whole
            run that ends at a hundredth of it.
        least: a group keeps at least this share of its share of channels, ``C(1 − S_c)·β`` rounded down (β; 0.5 for
            ResNet-50 on CIFAR, 0.2 for VGG-19 and ImageNet).
        score: of channels; ``mean_magnitude`` is UMM. Others are in ``flatsparse.sparse.channel_scores``.
        explore: ``published`` are the channels between two convolutions that one writes and only the other reads, so never
            a ResNet's stem or VGG-19's last convolution; linear layers between linear layers count too, which is ours.
            ``removable`` is all that one layer writes and that can be taken out.
        sums: remove any channels that can be taken out, whatever ``explore`` says, also those that several layers write, such
            as those of a residual stream.
        first_phase, last_phase: the scope in which weights are ranked, ``net`` or ``layer``. With ``layer`` the first phase gives
            each layer what ``distribution`` does, and the last one keeps each layer's count.
        channel_every: steps between removals of channels; ``every`` by default, as in the script for ResNet-50. That for VGG-19
            has 8,000 beside 1,000.
        channel_offset: time from a removal of channels to the next update, in shares of ``every``; 0: same step, channels first.
        distribution: how the active weights are allocated to layers at the start.
    """

    channels: float = 0.3
    every: int = 1000
    until: float = 0.8125
    bound: float = 0.05
    drop_fraction: float = 0.5
    least: float = 0.5
    score: FilterScore = mean_magnitude
    explore: str = "published"
    sums: bool = False
    first_phase: str = "net"
    last_phase: str = "net"
    channel_every: int | None = None
    channel_offset: float = 0.5
    distribution: Distribution = erdos_renyi_kernel

    def plan(self, sparsity: float, steps: int) -> Plan:
        check_fraction("bound", self.bound)
        check_fraction("drop_fraction", self.drop_fraction)
        for phase in ("first_phase", "last_phase"):
            if getattr(self, phase) not in SCOPES:
                raise unknown(f"{phase}=", getattr(self, phase), SCOPES)
        pruning = ChannelPruning(
            self.channels,
            least=(1 - self.channels) * check_fraction("least", self.least),
            eligible=eligible(self.explore, self.sums, published=between_convolutions),
        )
        when = updates(self.every, self.until, steps, spare=1)
        thin = self._removals(when)
        denser = Cosine(max(0.0, sparsity - self.bound), sparsity, until=when.last)
        first = global_ranking if self.first_phase == "net" else self.distribution
        # What grew at the very last step would be active and never trained.
        later = Every(when.period, until=steps - 1, start=when.last)
        moved = Cosine(self.drop_fraction, self.drop_fraction / 100, until=steps)
        rules = (
            PruneChannels(thin, Cubic(0.0, self.channels, until=thin.last), self.score, pruning),
            PruneTo(when, Constant(sparsity), magnitude, first),
            GrowTo(when, denser, gradient, first),
            *(
                (DropAndGrow(later, moved, drop=magnitude, grow=gradient),)
                if self.last_phase == "layer"
                else (
                    PruneTo(later, Dropped(moved, sparsity), magnitude, global_ranking),
                    GrowTo(later, Constant(sparsity), gradient, global_ranking),
                )
            ),
        )
        return Plan(sparsity, each(random), self.distribution, rules=rules, channel_pruning=pruning)

    def _removals(self, when: Every) -> Every:
        """Return when channels are pruned, for the last time not after the weights' last update, which fills what they leave."""
        period = when.period if self.channel_every is None else check_count("channel_every", self.channel_every)
        before = round(check_fraction("channel_offset", self.channel_offset) * when.period)
        before = max(0, min(before, period - 2))  # nothing acts at the first step
        if period - before > when.last:
            raise InputError(
                f"channel_every {period} leaves no removal of channels in the {when.last} steps before the last phase: give less"
            )
        return Every(period, until=when.last, start=-before)


@dataclass(frozen=True)
class Dropped:
    """The sparsity of a net after a fraction of its active weights has gone, by step."""

    fraction: Schedule
    sparsity: float

    def __call__(self, step: int) -> float:
        return 1 - (1 - self.fraction(step)) * (1 - self.sparsity)

"""CHEX: channel exploration (Hou et al. 2022, "CHEX: CHannel EXploration for CNN Model Compression")."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flatsparse.common.errors import InputError, check_fraction
from flatsparse.schedules import Cosine
from flatsparse.sparse.channel_choice import blocks_and_shortcuts, eligible
from flatsparse.sparse.channel_rules import ChannelPruning, PruneAndRegrowChannels
from flatsparse.sparse.distributions import uniform
from flatsparse.sparse.plan import Plan, share_of, updates
from flatsparse.sparse.scores import each, magnitude


@dataclass(frozen=True)
class CHEX:
    """Periodically remove channels by column-subset selection and regrow some of the removed, from scratch to a pruned net.

    It takes no sparsity, which is a result. The fraction of channels is counted over those that are explored, and met to the
    channel from the last update on. Channels are ranked by the scales of their batch norms; where one layer has none, all
    are by the L1 norms of their filters, relative to their layer. This is ours. Weights are dense but for removed
    channels, and the optimizer's state of weights that return starts from 0. Models are traced by ``torch.fx``.

    Explored is what the published code explores in a ResNet-50: conv1 and conv2 of each bottleneck and the outputs of the
    shortcuts' convolutions, 11,392 channels in all, never the stem and never conv3. A removed channel of a shortcut is 0, with
    its batch norm's weight and bias, but cannot be taken out of the net, because the sum goes on without it. In other nets
    these are the channels that one layer writes and that can be removed alone, but for those of the first convolution, and
    the outputs of shortcuts' convolutions. The published code rounds each layer's count down, so that it has a few channels
    fewer than requested, and no minimum; here the count is met, and every group keeps a channel.

    Attributes:
        channels: the fraction removed (S; 0.5 and 0.7 for the paper's ResNet-50).
        regrow: how many return at an update at first, as a fraction of all (δ0), falling to 0 along half a cosine. By
            default 0.4 of those removed: 0.2 beside 0.5 as in the published script, and 0.28 beside 0.7, where it has 0.3.
        every: steps between updates (ΔT); by default 2/250 of the run, as 2 of 250 epochs.
        until: the last step that may update, or its share of the run (T_max; epoch 180 of 250).
        explore: ``published`` is as above. ``removable`` is all that one layer writes and that can be taken out, so
            also a stem whose channels no sum holds, and no shortcuts: 7,616 channels of a ResNet-50.
        sums: explore all channels that can be taken out, whatever ``explore`` says, also those that several layers write,
            such as those of a residual stream; the paper does not.
    """

    channels: float = 0.5
    regrow: float | None = None
    every: int | None = None
    until: float = 0.72
    explore: str = "published"
    sums: bool = False
    takes_sparsity = False  # the weights' sparsity is a result

    def plan(self, sparsity: float, steps: int) -> Plan:
        explored = eligible(self.explore, self.sums, published=blocks_and_shortcuts)
        pruning = ChannelPruning(self.channels, eligible=explored, restores=True)
        regrow = 0.4 * self.channels if self.regrow is None else check_fraction("regrow", self.regrow)
        if regrow > self.channels:
            raise InputError(f"regrow {regrow} is more than channels {self.channels}, all that is removed: give less")
        when = updates(share_of(steps, 2 / 250, self.every), self.until, steps)
        explore = PruneAndRegrowChannels(when, self.channels, Cosine(regrow, 0.0, until=when.last))
        return Plan(
            0.0,
            each(magnitude),
            uniform,
            rules=(explore,),
            channel_pruning=replace(pruning, first=self.channels - regrow),
        )

"""CHEX: channel exploration (Hou et al. 2022, "CHEX: CHannel EXploration for CNN Model Compression")."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flatsparse.criteria import each, magnitude
from flatsparse.distributions import uniform
from flatsparse.errors import InputError, check_fraction
from flatsparse.plan import Plan, share_of, updates
from flatsparse.schedules import Cosine
from flatsparse.thinning import Explore, Thinning


@dataclass(frozen=True)
class CHEX:
    """Now and then remove channels by column-subset selection and regrow some of the removed, from scratch to a thinner net.

    It takes no sparsity, which comes out. Which channels: those that one layer writes and that may be removed alone,
    as conv1 and conv2 of each bottleneck in the paper. The fraction is counted over these, and met to the channel from
    the last update on. Channels are ranked by the scales of their batch norms; where one layer has none, all are by the
    L1 norms of their filters, relative to their layer. That is ours. Weights are dense but for removed channels, and the
    optimizer's state of weights that return starts from 0. Models are traced by ``torch.fx``.

    Attributes:
        channels: the fraction removed (S; 0.5 and 0.7 for the paper's ResNet-50).
        regrow: how many return at an update at first, as a fraction of all (δ0), falling to 0 along half a cosine. By
            default 0.4 of those removed: 0.2 beside 0.5 as in the published script, and 0.28 beside 0.7, where it has 0.3.
        every: steps between updates (ΔT); by default 2/250 of the run, as 2 of 250 epochs.
        until: the last step that may update, or its share of the run (T_max; epoch 180 of 250).
        sums: also explore channels that several layers write, such as those of a residual stream; the paper does not.
    """

    channels: float = 0.5
    regrow: float | None = None
    every: int | None = None
    until: float = 0.72
    sums: bool = False
    by_channels = True  # it takes no sparsity

    def plan(self, sparsity: float, steps: int) -> Plan:
        thinning = Thinning(self.channels, sums=self.sums, restores=True)
        regrow = 0.4 * self.channels if self.regrow is None else check_fraction("regrow", self.regrow)
        if regrow > self.channels:
            raise InputError(f"regrow {regrow} is more than channels {self.channels}, all that is removed: give less")
        when = updates(share_of(steps, 2 / 250, self.every), self.until, steps)
        explore = Explore(when, self.channels, Cosine(regrow, 0.0, until=when.last))
        return Plan(
            0.0, each(magnitude), uniform, rules=(explore,), thinning=replace(thinning, first=self.channels - regrow)
        )

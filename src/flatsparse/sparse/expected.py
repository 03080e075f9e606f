"""Expected counts: the active weights of each layer under a plan, before there are masks or trained weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flatsparse.sparse.channel_state import ChannelState


@dataclass
class ExpectedCounts:
    """The expected numbers of active weights; where they depend on weights or data, as if scores were random.

    Attributes:
        scores: random scores of each layer's shape, by name.
        active: the number of active weights of each layer, by name.
        channels: the channels that may be pruned, the first of each group being active.
    """

    scores: Mapping[str, Tensor]
    active: dict[str, int]
    channels: ChannelState

    def after_pruning(self, channels: Sequence[int]) -> dict[str, int]:
        """Return the active weights of each layer for given numbers of active channels in each group, all else being active."""
        for g, count in zip(self.channels, channels, strict=True):
            g.active = torch.arange(g.group.size) < count
        growable = self.channels.growable({name: s.shape for name, s in self.scores.items()})
        return {name: int(mask.sum()) for name, mask in growable.items()}

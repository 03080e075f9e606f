"""How a topology fares: how much it moves, and what of the net it leaves without an input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from flatsparse.common.weight_layout import inputs_first, outputs_first
from flatsparse.sparse.layers import prunable

# Ours: every layer keeps a weight, so none is ever empty (layer collapse: Tanaka et al. 2020); one that has lost so many
# filters is as good as that.
COLLAPSED = 0.9


@dataclass(frozen=True)
class Health:
    """What masks leave of a net's filters.

    Attributes:
        dead: filters (all weights of one output) without a live weight, whose output is constant.
        filters: all of them.
        collapsed: of each layer that has lost more than ``COLLAPSED`` of its filters, the share it lost.
    """

    dead: int
    filters: int
    collapsed: dict[str, float]


def health(masks: Mapping[str, Tensor], model: nn.Module) -> Health:
    """Count dead filters and collapsed layers.

    Args:
        masks: bool, by the weight's name, as in ``SparseTraining.masks``.
        model: the network, whose layers say which dimension of a weight is its outputs.

    >>> import torch
    >>> health({"weight": torch.tensor([[True, False], [False, False]])}, nn.Linear(2, 2))
    Health(dead=1, filters=2, collapsed={})
    """
    owners = {name: module for name, (_, module) in prunable(model).items()}
    live = {name: outputs_first(mask, inputs_first(owners[name])).flatten(1).any(1) for name, mask in masks.items()}
    dead = {name: int((~some).sum()) for name, some in live.items()}
    share = {name: count / len(live[name]) for name, count in dead.items()}
    collapsed = {name: lost for name, lost in share.items() if lost > COLLAPSED}
    return Health(sum(dead.values()), sum(map(len, live.values())), collapsed)


def churn(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """How much of a topology changed, from 0 (nothing) to 1 (no live weight in common).

    The weights live in only one of two sets of masks, over the live weights of both (the dissimilarity of Sørensen and
    Dice): an update that replaces a tenth of the live weights has 0.1.

    >>> import torch
    >>> churn({"w": torch.tensor([True, True, False])}, {"w": torch.tensor([True, False, True])})
    0.5
    """
    moved = sum(int((mask ^ after[name]).sum()) for name, mask in before.items())
    live = sum(int(mask.sum()) + int(after[name].sum()) for name, mask in before.items())
    return moved / max(1, live)

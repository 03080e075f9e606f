"""How a topology fares: how much it moves, and what of the net it leaves without an input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

# Ours: every layer keeps a weight, so none is ever empty (layer collapse: Tanaka et al. 2020); one that has lost so many
# filters is as good as that.
COLLAPSED = 0.9


@dataclass(frozen=True)
class Health:
    """What masks leave of a net's filters.

    Attributes:
        dead: filters (rows of a weight's first dimension) without a live weight, whose output is constant.
        filters: all of them.
        collapsed: of each layer that has lost more than ``COLLAPSED`` of its filters, the share it lost.
    """

    dead: int
    filters: int
    collapsed: dict[str, float]


def health(masks: Mapping[str, Tensor]) -> Health:
    """Count dead filters and collapsed layers.

    Args:
        masks: bool, by the weight's name, as in ``SparseTraining.masks``.

    >>> import torch
    >>> health({"fc.weight": torch.tensor([[True, False], [False, False]])})
    Health(dead=1, filters=2, collapsed={})
    """
    dead = {name: int((~mask.flatten(1).any(1)).sum()) for name, mask in masks.items()}
    share = {name: count / len(masks[name]) for name, count in dead.items()}
    collapsed = {name: lost for name, lost in share.items() if lost > COLLAPSED}
    return Health(sum(dead.values()), sum(map(len, masks.values())), collapsed)


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

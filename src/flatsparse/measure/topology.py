"""Health of a topology: dead filters, collapsed layers, and the churn of an update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from flatsparse.common.weight_layout import inputs_first, outputs_first
from flatsparse.sparse.layers import prunable

# Ours: every layer keeps a weight, so none is ever empty (layer collapse: Tanaka et al. 2020); one that has lost this
# share of its filters counts as collapsed.
COLLAPSED = 0.9


@dataclass(frozen=True)
class Health:
    """Counts of dead filters and collapsed layers.

    Attributes:
        dead: the number of filters (all weights of one output) without an active weight, whose output is constant.
        filters: the number of all filters.
        collapsed: the share of dead filters, by layer, where it exceeds ``COLLAPSED``.
    """

    dead: int
    filters: int
    collapsed: dict[str, float]


def health(masks: Mapping[str, Tensor], model: nn.Module) -> Health:
    """Count dead filters and collapsed layers.

    Args:
        masks: bool, by the weight's name, as in ``SparseTraining.masks``.
        model: the network, whose layers determine which dimension of a weight is its outputs.

    >>> import torch
    >>> health({"weight": torch.tensor([[True, False], [False, False]])}, nn.Linear(2, 2))
    Health(dead=1, filters=2, collapsed={})
    """
    owners = {name: module for name, (_, module) in prunable(model).items()}
    active = {name: outputs_first(mask, inputs_first(owners[name])).flatten(1).any(1) for name, mask in masks.items()}
    dead = {name: int((~filters).sum()) for name, filters in active.items()}
    shares = {name: count / len(active[name]) for name, count in dead.items()}
    collapsed = {name: share for name, share in shares.items() if share > COLLAPSED}
    return Health(sum(dead.values()), sum(map(len, active.values())), collapsed)


def churn(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """The changed share of a topology, from 0 (nothing) to 1 (no active weight in common).

    The number of weights active in only one of two sets of masks, over the active weights of both (the dissimilarity of
    Sørensen and Dice): an update that replaces a tenth of the active weights has 0.1.

    >>> import torch
    >>> churn({"w": torch.tensor([True, True, False])}, {"w": torch.tensor([True, False, True])})
    0.5
    """
    changed = sum(int((mask ^ after[name]).sum()) for name, mask in before.items())
    active = sum(int(mask.sum()) + int(after[name].sum()) for name, mask in before.items())
    return changed / max(1, active)

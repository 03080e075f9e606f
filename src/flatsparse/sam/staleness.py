"""Perturbed weights that no longer belong to their weights, because these were since replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from flatsparse.common.distributed import full_tensor, norm
from flatsparse.common.optimizers import Masked
from flatsparse.sam.swap import Swap, take


def fits(p: nn.Parameter, u: Tensor, masks: Mapping[nn.Parameter, Masked]) -> bool:
    """Return whether a u is of its parameter's kind, and of its shape or with an entry for each active weight."""
    if u.device != p.device or u.dtype != p.dtype:
        return False
    return u.shape == p.shape or (p in masks and u.shape == masks[p].indices.shape)


@torch.no_grad()
def are_replaced(written: Sequence[Swap], rho: float, eta: float | None) -> bool:
    """Return whether weights that were written to are further than 2ρ from their u; with ASAM's eta, than 2ρ (|w| + η)."""
    if not written:
        return False
    distance = norm([take(p.detach(), indices) - u for p, u, indices in written])
    reach: float | Tensor = rho
    if eta is not None:
        reach *= max(full_tensor(p.detach().abs().max()) for p, _, _ in written) + eta
    return distance is None or not bool(distance <= 2 * reach)

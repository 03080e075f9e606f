"""The formula of SAM and S²-SAM: the perturbed weights ``u = w + ρ d/‖d‖``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flatsparse.common.distributed import is_unusable, local_tensor, norm
from flatsparse.sam.layout import Layout
from flatsparse.sam.swap import take

# Keeps a zero gradient from dividing by zero; a gradient whose norm is below it is perturbed along by less than ρ.
TINY = torch.finfo(torch.float32).tiny
NOT_FINITE = (
    "a direction, which is a gradient or made of some, was not finite, so one perturbation was left out: skip such steps"
    " (torch.amp.GradScaler does), or lower the learning rate or rho"
)


class Part(NamedTuple):
    """One parameter's part of a perturbation.

    Attributes:
        w: the true weights, of any shape.
        d: the direction, of w's shape.
        rho: ρ, negative to go down the direction.
        indices: (n,), the flat indices of w that are perturbed; None for all.
        u: the result, of w's shape, or (n,) at the indices.
    """

    w: nn.Parameter
    d: Tensor
    rho: float
    indices: Tensor | None
    u: Tensor


@torch.no_grad()
def perturb_(parts: Sequence[Part], eta: float | None = None, budget: float | None = None) -> Tensor | None:
    """Write ``u = w + ρ d/‖d‖`` into every u, where ‖d‖ is the norm of all directions together.

    Ji et al. (2024), eq. 5-7, with d the previous step's gradient; Foret et al. (2021), Alg. 1, with the same step's. With
    ``eta`` it is ASAM's ``u = w + ρ T² d/‖T d‖`` with ``T = |w| + η`` (Kwon et al. 2021, sec. 3).

    With a ``budget`` σ, ρ is at most ``σ/‖d‖``, or with ``eta`` ``σ/‖T d‖``. Where the norm is not finite there is no direction,
    and u is w; on an accelerator, which is not asked, but for the entries that are not finite themselves. Returns the norm;
    None without parts.

    The norm stays a tensor on its device, so the host never waits for it, and no buffer is made beside u. Sharded tensors
    have the norm of the whole. A direction may be its own u.
    """
    if eta is not None:  # u holds T d until its norm is known
        for p, d, _, indices, u in parts:
            w = take(local_tensor(p), indices)
            torch.mul(_size(w, eta), take(local_tensor(d), indices), out=local_tensor(u))
    length = norm([part.d if eta is None else part.u for part in parts])
    if length is None or is_unusable(length):
        for p, _, _, indices, u in parts:
            local_tensor(u).copy_(take(local_tensor(p), indices))
        return length
    scales: dict[tuple[float, torch.device, torch.dtype], Tensor] = {}
    for p, d, rho, indices, u in parts:
        w, out = take(local_tensor(p), indices), local_tensor(u)
        kind = rho, w.device, w.dtype
        if kind not in scales:
            scales[kind] = _over(length, *kind, budget)
        if eta is None:
            torch.addcmul(w, take(local_tensor(d), indices), scales[kind], out=out)
        else:  # scaled before it is multiplied again, so that large weights make no infinity of it
            torch.addcmul(w, out.mul_(scales[kind]), _size(w, eta), out=out)
    return length


@torch.no_grad()
def perturb_plain_(
    layout: Layout, directions: Sequence[Tensor], rhos: Sequence[float], budget: float | None = None
) -> Tensor | None:
    """Do as ``perturb_`` does, where all tensors are plain and whole.

    Args:
        directions: one for each parameter of the layout.
        rhos: one for each group.
    """
    length = norm(directions)
    if length is None:
        return None
    if is_unusable(length):
        torch._foreach_copy_(list(layout.swaps.others), list(layout.swaps.parameters))
        return length
    scales = [_over(length, rhos[number], device, dtype, budget) for number, device, dtype in layout.kinds]
    add = torch.addcmul
    for w, d, u, kind in zip(layout.swaps.parameters, directions, layout.swaps.others, layout.kind_of, strict=True):
        add(w, d, scales[kind], out=u)
    return length


def _over(length: Tensor, rho: float, device: torch.device, dtype: torch.dtype, budget: float | None = None) -> Tensor:
    """ρ, within a budget, over a norm; clamped, because float16 makes an infinity of the scale of a tiny gradient.

    0 for a norm that is not finite: on an accelerator entries with a finite direction then stay what they are.
    """
    most = torch.finfo(dtype).max
    radius = rho if budget is None else reach_of(budget, length).clamp(max=abs(rho)) * math.copysign(1, rho)
    return (radius / length.clamp(min=TINY)).clamp(-most, most).nan_to_num(nan=0.0).to(device, dtype)


def reach_of(budget: float, length: Tensor) -> Tensor:
    """The radius at which a loss of a slope is to have risen by a budget: ``σ/‖d‖`` (LE-SAM); infinite where it is flat."""
    return budget / length


def _size(w: Tensor, eta: float) -> Tensor:
    """``|w| + η``, ASAM's T."""
    return w.abs().add_(eta)

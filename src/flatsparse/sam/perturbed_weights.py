"""The perturbed weights that are kept from one step to the next, and whether they still belong to their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.common.distributed import full_tensor, local_tensor, norm
from flatsparse.common.optimizers import Masked
from flatsparse.common.tensors import Version, version
from flatsparse.sam.options import Options
from flatsparse.sam.radius import Radius
from flatsparse.sam.swap import Swap, take
from flatsparse.sam.warn_once import WarnOnce

RHO = "perturbed_rho"  # the key of the ρ that a group's perturbed weights were made with


class Store(Protocol):
    """Where perturbed weights are kept by parameter; a dict is one."""

    def get(self, p: nn.Parameter, /) -> Tensor | None: ...
    def __setitem__(self, p: nn.Parameter, u: Tensor, /) -> None: ...
    def pop(self, p: nn.Parameter, default: None, /) -> Tensor | None: ...


class PerturbedWeights:
    """The perturbed weights u of each parameter, made in one step and shown in the next.

    Args:
        store: where they are kept.

    Attributes:
        masks: of the parameters that have one; empty without ``mask_perturbation``.
        exist: whether the last step made any.
    """

    def __init__(self, base: Optimizer, radius: Radius, options: Options, store: Store, warn: WarnOnce) -> None:
        self.masks: Mapping[nn.Parameter, Masked] = {}
        self.exist = False
        self._base, self._radius, self._options, self._store, self._warn = base, radius, options, store, warn
        self._made: list[tuple[Swap, Version]] = []  # those just made, each with the version of its w then
        self._drops = 0  # how many times in a row stale ones were dropped

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "masks": {}, "_made": []}  # masks attach themselves anew; versions are the originals'

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that have a u."""
        return [p for group in self._base.param_groups for p in group["params"] if self._store.get(p) is not None]

    # -- made in a step -------------------------------------------------------------------------------------------

    def indices(self, p: nn.Parameter) -> Tensor | None:
        """The flat indices of a parameter's live weights, (n,), if its u shall be compact."""
        masked = self.masks.get(p) if self._options.compact else None
        return None if masked is None or masked.active == p.numel() else masked.indices

    def buffer(self, p: nn.Parameter, indices: Tensor | None = None) -> Tensor:
        """Room for the u of a parameter, or of its entries at flat indices: that of the last one, if it fits."""
        u, shape = self._store.get(p), p.shape if indices is None else indices.shape
        if u is not None and u.shape == shape and u.device == p.device and u.dtype == p.dtype:
            return u
        return torch.empty_like(p, requires_grad=False) if indices is None else p.new_empty(shape, requires_grad=False)

    def keep(self, p: nn.Parameter, u: Tensor) -> None:
        """Keep the u of one parameter."""
        self._store[p] = u

    def release(self, p: nn.Parameter) -> None:
        """Let go of the u of one parameter."""
        self._store.pop(p, None)

    def record(self, swaps: list[Swap]) -> None:
        """Keep the u just made, and forget all others."""
        made = {p: u for p, u, _ in swaps}
        for group in self._base.param_groups:
            group[RHO] = self._radius.of(group)
            for p in group["params"]:
                if p in made:
                    self.keep(p, made[p])
                else:
                    self.release(p)
        self._made = [(swap, version(swap.p)) for swap in swaps]
        self.exist = bool(swaps)

    @property
    def are_new(self) -> bool:
        """Whether they were recorded, and nothing was invalidated since."""
        return bool(self._made)

    # -- shown in the next ----------------------------------------------------------------------------------------

    def current(self) -> list[Swap]:
        """What parameters are to show: the u as they were made; or as they fit what came between, such as a load."""
        return self._as_made() or self._as_kept()

    def _as_made(self) -> list[Swap]:
        """None, if since then a weight was written to or a ρ changed."""
        if any(group.get(RHO) != self._radius.of(group) for group in self._base.param_groups):
            return []
        if any(version(swap.p) != then for swap, then in self._made):
            return []
        self._drops = 0
        return [swap for swap, _ in self._made]

    def _as_kept(self) -> list[Swap]:
        """Those that are near their weights, at the ρ of now."""
        self._drop_stale()
        swaps = []
        for group in self._base.param_groups:
            rho = self._radius.of(group)
            made_with = group.get(RHO, rho)
            if rho == 0 or made_with == 0:  # nothing shall be perturbed, or nothing was
                continue
            kept = self._kept(group["params"])
            if rho != made_with:
                for p, u, indices in kept:
                    _rescale_(u, p, indices, rho / made_with)
            swaps += kept
            group[RHO] = rho
        self._made = [(swap, version(swap.p)) for swap in swaps]
        return swaps

    def _kept(self, params: list[nn.Parameter]) -> list[Swap]:
        kept = [(p, u) for p in params if (u := self._store.get(p)) is not None]
        return [Swap(p, u, None if u.shape == p.shape else self.masks[p].indices) for p, u in kept]

    # -- dropped --------------------------------------------------------------------------------------------------

    def invalidate(self) -> None:
        """Have them compared with their weights before they are shown."""
        self._made = []

    def reload(self) -> None:
        """Go on with what is in the store by now, after another state was loaded."""
        self.invalidate()
        self.exist = bool(self.parameters())

    def forget(self) -> None:
        """Drop all."""
        for p in self.parameters():
            self.release(p)
        self.invalidate()
        self.exist = False

    @torch.no_grad()
    def _drop_stale(self) -> None:
        """Drop those of weights that were since replaced, e.g. by loading others without their optimizer.

        Only weights that were written to since are measured. Writing through ``p.data.copy_`` leaves no trace and goes
        unnoticed; ``p.copy_`` under ``no_grad`` does not.
        """
        parameters = self.parameters()
        stale = [p for p in parameters if not self._fits(p)]
        if not stale:
            made_at = {swap.p: then for swap, then in self._made}
            written = [swap for swap in self._kept(parameters) if made_at.get(swap.p) != version(swap.p)]
            if written and self._are_far(written):
                stale = [p for p, _, _ in written]
        for p in stale:
            self.release(p)
            self.exist = False
        self._drops = self._drops + 1 if stale else 0
        if self._drops > 1:  # one alone is a load
            self._warn(
                "stale",
                "the weights are rewritten by more than 2ρ after each step, so nothing is perturbed: write them before"
                " optimizer.step()",
            )

    def _fits(self, p: nn.Parameter) -> bool:
        """Return whether the u of a parameter is of its kind, and of its shape or with an entry for each live weight."""
        u = self._store.get(p)
        assert u is not None
        if u.device != p.device or u.dtype != p.dtype:
            return False
        return u.shape == p.shape or (p in self.masks and u.shape == self.masks[p].indices.shape)

    def _are_far(self, written: list[Swap]) -> bool:
        """Return whether weights are further than 2ρ from their u."""
        distance = norm([take(p.detach(), indices) - u for p, u, indices in written])
        reach: float | Tensor = sum(group.get(RHO, 0.0) ** 2 for group in self._base.param_groups) ** 0.5
        if self._options.adaptive:
            reach *= max(full_tensor(p.detach().abs().max()) for p, _, _ in written) + self._options.eta
        return distance is None or not bool(distance <= 2 * reach)


def _rescale_(u: Tensor, p: nn.Parameter, indices: Tensor | None, ratio: float) -> None:
    """Move u along the line from w, to ``ratio`` times its distance."""
    torch.lerp(take(local_tensor(p).detach(), indices), local_tensor(u), ratio, out=local_tensor(u))

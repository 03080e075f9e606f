"""The perturbed weights that are kept from one step to the next, and whether they still belong to their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.common.distributed import local_tensor
from flatsparse.common.optimizers import Masked
from flatsparse.common.tensors import Version, version
from flatsparse.sam.options import Options
from flatsparse.sam.radius import Radius
from flatsparse.sam.staleness import are_replaced, fits
from flatsparse.sam.swap import Swap, take
from flatsparse.sam.warn_once import WarnOnce

RHO = "perturbed_rho"  # the key of the ρ that a group's perturbed weights were made with


class Store(Protocol):
    """A place for perturbed weights by parameter; a dict is one."""

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
        self.store = store
        self._base, self._radius, self.options, self._warn = base, radius, options, warn
        self._made: list[tuple[Swap, Version]] = []  # those just made, each with the version of its w then
        self._drops = 0  # how many times in a row stale ones were dropped

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "masks": {}, "_made": []}  # masks attach themselves anew; versions are the originals'

    def kept(self) -> dict[nn.Parameter, Tensor]:
        """The u of each parameter that has one."""
        return self._of(self._base.param_groups)

    def _of(self, groups: list[dict[str, Any]]) -> dict[nn.Parameter, Tensor]:
        return {p: u for group in groups for p in group["params"] if (u := self.store.get(p)) is not None}

    # -- made in a step -------------------------------------------------------------------------------------------

    def indices(self, p: nn.Parameter) -> Tensor | None:
        """The flat indices of a parameter's active weights, (n,), if its u is to be compact."""
        masked = self.masks.get(p) if self.options.compact else None
        return None if masked is None or masked.active == p.numel() else masked.indices

    def buffer(self, p: nn.Parameter, indices: Tensor | None = None) -> Tensor:
        """Room for the u of a parameter, or of its entries at flat indices: that of the last one, if it fits."""
        u, shape = self.store.get(p), p.shape if indices is None else indices.shape
        if u is not None and u.shape == shape and u.device == p.device and u.dtype == p.dtype:
            return u
        return torch.empty_like(p, requires_grad=False) if indices is None else p.new_empty(shape, requires_grad=False)

    def record(self, swaps: list[Swap]) -> None:
        """Store the u just made, and drop all others."""
        made = {p: u for p, u, _ in swaps}
        for group in self._base.param_groups:
            group[RHO] = self._radius.of(group)
            for p in group["params"]:
                if p in made:
                    self.store[p] = made[p]
                else:
                    self.store.pop(p, None)
        self._made = [(swap, version(swap[0])) for swap in swaps]
        self.exist = bool(swaps)

    @property
    def are_new(self) -> bool:
        """True when they were recorded, and nothing was invalidated since."""
        return bool(self._made)

    # -- shown in the next ----------------------------------------------------------------------------------------

    def current(self) -> list[Swap]:
        """Return the swaps that show the u as they were made, or as they fit what came between, such as a load."""
        return self._as_made() or self._as_kept()

    def _as_made(self) -> list[Swap]:
        """The u as they were made; none if since then a weight was written to or a ρ changed."""
        if any(group.get(RHO) != self._radius.of(group) for group in self._base.param_groups):
            return []
        if any(version(p) != then for (p, _, _), then in self._made):
            return []
        self._drops = 0
        return [swap for swap, _ in self._made]

    def _as_kept(self) -> list[Swap]:
        """The u that are near their weights, scaled to the ρ of now."""
        self._drop_stale()
        swaps = []
        for group in self._base.param_groups:
            rho = self._radius.of(group)
            made_with = group.get(RHO, rho)
            if rho == 0 or made_with == 0:  # nothing is to be perturbed, or nothing was
                continue
            kept = [self._swap(p, u) for p, u in self._of([group]).items()]
            if rho != made_with:
                for p, u, indices in kept:
                    _rescale_(u, p, indices, rho / made_with)
            swaps += kept
            group[RHO] = rho
        self._made = [(swap, version(swap[0])) for swap in swaps]
        return swaps

    def _swap(self, p: nn.Parameter, u: Tensor) -> Swap:
        return p, u, None if u.shape == p.shape else self.masks[p].indices

    # -- dropped --------------------------------------------------------------------------------------------------

    def invalidate(self) -> None:
        """Have them compared with their weights before they are shown."""
        self._made = []

    def reload(self) -> None:
        """Use the current content of the store, after another state was loaded."""
        self.invalidate()
        self.exist = bool(self.kept())

    def forget(self) -> None:
        """Drop all."""
        for p in self.kept():
            self.store.pop(p, None)
        self.invalidate()
        self.exist = False

    def _drop_stale(self) -> None:
        """Drop those of weights that were since replaced, e.g. by loading others without their optimizer.

        Only weights that were written to since are measured. Writing through ``p.data.copy_`` leaves no trace and goes
        unnoticed; ``p.copy_`` under ``no_grad`` does not.
        """
        kept = self.kept()
        stale = [p for p, u in kept.items() if not fits(p, u, self.masks)]
        if not stale:
            made_at = {p: then for (p, _, _), then in self._made}
            written = [self._swap(p, u) for p, u in kept.items() if made_at.get(p) != version(p)]
            rho = sum(group.get(RHO, 0.0) ** 2 for group in self._base.param_groups) ** 0.5
            if are_replaced(written, rho, self.options.eta if self.options.adaptive else None):
                stale = [p for p, _, _ in written]
        for p in stale:
            self.store.pop(p, None)
            self.exist = False
        self._drops = self._drops + 1 if stale else 0
        if self._drops > 1:  # one alone is a load
            self._warn(
                "stale",
                "the weights are rewritten by more than 2ρ after each step, so nothing is perturbed: write them before"
                " optimizer.step()",
            )


def _rescale_(u: Tensor, p: nn.Parameter, indices: Tensor | None, ratio: float) -> None:
    """Move u along the line from w, to ``ratio`` times its distance."""
    torch.lerp(take(local_tensor(p).detach(), indices), local_tensor(u), ratio, out=local_tensor(u))

"""The perturbed weights that are kept from one step to the next, and whether they still belong to their weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.common.distributed import local_tensor
from flatsparse.common.optimizers import Masked
from flatsparse.common.tensors import Version, version, versions
from flatsparse.sam.layout import Layout
from flatsparse.sam.options import Options
from flatsparse.sam.radius import Radius
from flatsparse.sam.staleness import are_replaced, fits
from flatsparse.sam.swap import Swap, Swaps, take
from flatsparse.sam.warn_once import WarnOnce

UNKNOWN: Version = (-1, -1)  # no tensor's
RHO = "perturbed_rho"  # the key of the ρ that a group's perturbed weights were made with
REACH = "budget_rho"  # the key of the largest ρ that a loss budget allowed them, a tensor; only there with a budget


class Store(Protocol):
    """A place for perturbed weights by parameter."""

    def get(self, p: nn.Parameter, /) -> Tensor | None: ...
    def entries(self, parameters: Iterable[nn.Parameter], /) -> list[Tensor | None]: ...
    def __setitem__(self, p: nn.Parameter, u: Tensor, /) -> None: ...
    def pop(self, p: nn.Parameter, default: None, /) -> Tensor | None: ...


class Memory(dict[nn.Parameter, Tensor]):
    """A store that nothing saves."""

    def entries(self, parameters: Iterable[nn.Parameter]) -> list[Tensor | None]:
        """Return those of many parameters."""
        return list(map(self.get, parameters))


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
        self._made = Swaps()  # those just made
        self._versions: list[Version] = []  # of their w then
        self._layout: Layout | None = None  # of the last step
        self._recorded: Layout | None = None  # whose u are in the store, and no others
        self._drops = 0  # how many times in a row stale ones were dropped

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "masks": {},
            "_made": Swaps(),
            "_versions": [],
            "_layout": None,
            "_recorded": None,
        }  # all that is the originals'

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

    def known_layout(self, parameters: Sequence[nn.Parameter]) -> Layout | None:
        """Return the last step's layout, if it is still that of these parameters."""
        layout, groups = self._layout, self._base.param_groups
        if layout is None or self.options.compact:  # then it follows the masks
            return None
        return layout if layout.is_of(parameters, self.store.entries(parameters), groups) else None

    def new_layout(self, parameters: Sequence[nn.Parameter]) -> Layout:
        """Return a layout of some parameters, in the order of the optimizer's groups, with room for the u of each."""
        at = [self.indices(p) for p in parameters]
        rows = [(p, self.buffer(p, indices), indices) for p, indices in zip(parameters, at, strict=True)]
        self._layout = Layout.of(rows, self._base.param_groups)
        return self._layout

    def record(self, layout: Layout, reach: Tensor | None = None) -> None:
        """Store the u just made, and drop all others.

        Args:
            reach: the largest radius that a loss budget allowed.
        """
        groups = self._base.param_groups
        for group in groups:
            group[RHO] = self._radius.of(group)
            group.pop(REACH, None)
            if reach is not None:
                group[REACH] = reach
        if layout is not self._recorded:
            made = dict(zip(layout.swaps.parameters, layout.swaps.others, strict=True))
            for p in layout.held:
                if p in made:
                    self.store[p] = made[p]
                else:
                    self.store.pop(p, None)
            self._recorded = layout
        self._note(layout.swaps)
        self.exist = bool(layout.swaps)

    def _note(self, swaps: Swaps) -> None:
        """Note that swaps fit their weights as they are now."""
        self._made, self._versions = swaps, versions(swaps.parameters)

    @property
    def are_new(self) -> bool:
        """True when they were recorded, and nothing was invalidated since."""
        return bool(self._made)

    def written(self) -> list[int]:
        """Return the places, among those recorded, of weights that were written to since."""
        now = versions(self._made.parameters)
        if now == self._versions:
            return []
        return [place for place, (a, b) in enumerate(zip(now, self._versions, strict=True)) if a != b]

    # -- shown in the next ----------------------------------------------------------------------------------------

    def current(self) -> Swaps:
        """Return the swaps that show the u as they were made, or as they fit what came between, such as a load."""
        return self._as_made() or self._as_kept()

    def _as_made(self) -> Swaps:
        """The u as they were made; none if since then a weight was written to or a ρ changed."""
        if any(group.get(RHO) != self._radius.of(group) for group in self._base.param_groups):
            return Swaps()
        if versions(self._made.parameters) != self._versions:
            return Swaps()
        self._drops = 0
        return self._made

    def _as_kept(self) -> Swaps:
        """The u that are near their weights, scaled to the ρ of now."""
        self._drop_stale()
        swaps: list[Swap] = []
        for group in self._base.param_groups:
            rho = self._radius.of(group)
            made_with = group.get(RHO, rho)
            if rho == 0 or made_with == 0:  # nothing is to be perturbed, or nothing was
                continue
            kept = [self._swap(p, u) for p, u in self._of([group]).items()]
            if rho != made_with:
                for p, u, indices in kept:
                    _rescale_(u, p, indices, _within(group, rho) / _within(group, made_with))
            swaps += kept
            group[RHO] = rho
        self._note(Swaps.of(swaps))
        return self._made

    def _swap(self, p: nn.Parameter, u: Tensor) -> Swap:
        return p, u, None if u.shape == p.shape else self.masks[p].indices

    # -- dropped --------------------------------------------------------------------------------------------------

    def invalidate(self) -> None:
        """Have them compared with their weights before they are shown."""
        self._made, self._versions = Swaps(), []

    def reload(self) -> None:
        """Use the current content of the store, after another state was loaded."""
        self.invalidate()
        self._layout = self._recorded = None
        self.exist = bool(self.kept())

    @contextmanager
    def rearranging(self) -> Iterator[None]:
        """A context in which weights and their u take another form, in other memory, and belong to each other as before."""
        now = versions(self._made.parameters)
        written = {p for p, was, is_ in zip(self._made.parameters, self._versions, now, strict=True) if was != is_}
        yield
        if self._made:
            kept = self.kept()
            self._note(Swaps.of((p, kept[p], None) for p in self._made.parameters if p in kept))
            # Others have written to these since; they are still to be compared with their u.
            self._versions = [
                UNKNOWN if p in written else v for p, v in zip(self._made.parameters, self._versions, strict=True)
            ]
        self._layout = self._recorded = None

    def forget(self) -> None:
        """Drop all."""
        for p in self.kept():
            self.store.pop(p, None)
        self.invalidate()
        self._layout = self._recorded = None
        self.exist = False

    def _drop_stale(self) -> None:
        """Drop those of weights that were since replaced, e.g. by loading others without their optimizer.

        Only weights that were written to since are measured. Writing through ``p.data.copy_`` leaves no trace and goes
        unnoticed; ``p.copy_`` under ``no_grad`` does not.
        """
        kept = self.kept()
        stale = [p for p, u in kept.items() if not fits(p, u, self.masks)]
        if not stale:
            made_at = dict(zip(self._made.parameters, self._versions, strict=True))
            written = [self._swap(p, u) for p, u in kept.items() if made_at.get(p) != version(p)]
            rho = sum(_within(group, group.get(RHO, 0.0)) ** 2 for group in self._base.param_groups) ** 0.5
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


def _within(group: dict[str, Any], rho: float) -> float:
    """ρ, as far as the loss budget of a group's perturbed weights allowed."""
    return min(rho, float(group[REACH])) if REACH in group else rho


def _rescale_(u: Tensor, p: nn.Parameter, indices: Tensor | None, ratio: float) -> None:
    """Move u along the line from w, to ``ratio`` times its distance."""
    torch.lerp(take(local_tensor(p).detach(), indices), local_tensor(u), ratio, out=local_tensor(u))

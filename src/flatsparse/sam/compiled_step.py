"""A base's step and the next perturbed weights in one compiled pass, with what of it stays from step to step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.common.distributed import norm, squares_fit
from flatsparse.common.errors import InputError
from flatsparse.sam import kernel
from flatsparse.sam.kernel import Array, Base
from flatsparse.sam.layout import Layout, same
from flatsparse.sam.perturb import TINY
from flatsparse.sam.perturbation import Perturbation, Tensors
from flatsparse.sam.perturbed_weights import PerturbedWeights

MOST = torch.finfo(torch.float32).max  # of a scale: an infinite one would make NaN of zeros
Columns = list[list[Any]]  # of each group, something of each parameter that has a gradient


@dataclass(frozen=True)
class Ready:
    """The tensors that keep their places, once they were found to suit the pass.

    Attributes:
        layout: of the perturbed weights.
        state: the base's, of each parameter: for each key of the base one after the other.
        addresses: of the state and the perturbed weights, as they were then; those of the weights are in the layout.
        strides: of the weights, which all tensors share.
        arrays: of each group the weights, the state by key, and the perturbed weights for C.
    """

    layout: Layout
    state: Sequence[Tensor]
    addresses: Sequence[int]
    strides: Sequence[tuple[int, ...]]
    arrays: Sequence[tuple[Array, Sequence[Array], Array]]

    def is_of(self, layout: Layout, state: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> bool:
        """True while nothing has moved."""
        return (
            layout is self.layout
            and same(state, self.state)
            and _addresses(state, layout.swaps.others) == self.addresses
            and [p.stride() for p in parameters] == self.strides
        )


class CompiledStep:
    """The step of a base and the making of perturbed weights, in one compiled pass where all is as that needs it."""

    def __init__(self) -> None:
        self._ready: Ready | None = None
        self._scales: Sequence[float] = ()  # ρ over the norm, of each group

    def __call__(self, perturbation: Perturbation) -> Tensors | None:
        """Take the base's step and make the perturbed weights along the gradients.

        Returns: None; or the gradients, when something was not as the pass needs it, or the step's hooks have set masks since.
        """
        weights = perturbation.weights
        weights.invalidate()
        Optimizer.profile_hook_step(lambda base: self._step(base, perturbation))(perturbation.base)
        return None if weights.are_new and self._follows_hooks(weights) else perturbation.gradients()

    def _follows_hooks(self, weights: PerturbedWeights) -> bool:
        """Make perturbed weights again whose w the hooks have written to. Returns whether their gradients are still there."""
        written = (
            weights.written()
        )  # after Adam's steps, layers where weights grew lately: the gain of the pass is lost there
        if written:
            assert self._ready is not None
            layout = self._ready.layout
            for place in written:
                w, u = layout.swaps.parameters[place], layout.swaps.others[place]
                if w.grad is None:
                    return False
                torch.add(w, w.grad, alpha=self._scales[layout.group_of[place]], out=u)
            weights.record(layout)
        return True

    def _step(self, base: Any, perturbation: Perturbation) -> None:
        """Take the base's own step, between its hooks, and make the perturbed weights if all is as usual."""
        base._opt_called = True  # for a scheduler that asks whether the base has stepped
        groups = base.param_groups
        parameters = [[p for p in group["params"] if p.grad is not None] for group in groups]
        gradients = [[p.grad for p in own] for own in parameters]
        rhos = [perturbation.radius.of(group) for group in groups]
        kind = kernel.base_of(base) if all(rhos) else None
        ready = None if kind is None else self._prepared(kind, perturbation, parameters, gradients)
        if kind is None or ready is None:
            type(base).step.__wrapped__(base)  # without the hooks, which have run
            return
        given = [Array.of(own, arrays[0].sizes) for own, arrays in zip(gradients, ready.arrays, strict=True)]
        length = sum(map(kernel.square, given)) ** 0.5
        if not squares_fit(length):
            length = float(norm(_flat(gradients)) or 0.0)
        if not math.isfinite(length):  # no direction: all that follows a step makes u of w alone, with a warning
            type(base).step.__wrapped__(base)
            return
        self._scales = [min(rho / max(length, TINY), MOST) for rho in rhos]
        for group, scale, own, (weights, state, perturbed) in zip(
            groups, self._scales, given, ready.arrays, strict=True
        ):
            kernel.step(kind, group, weights, own, state, perturbed, scale)
        perturbation.weights.record(ready.layout)

    def _prepared(
        self, kind: Base, perturbation: Perturbation, parameters: Columns, gradients: Columns
    ) -> Ready | None:
        """Return what the pass needs beside the gradients; None if something does not suit it."""
        weights, flat = perturbation.weights, _flat(parameters)
        entries = [perturbation.base.state.get(p) or {} for p in flat]
        state = [t for key in kind.keys for entry in entries if (t := entry.get(key)) is not None]
        if len(state) < len(flat) * len(kind.keys):
            return None
        layout = weights.known_layout(flat) or weights.new_layout(flat)
        ready = self._ready
        if not layout.plain:
            return None
        if ready is None or not ready.is_of(layout, state, flat):
            if not _suit(kind, flat, state, _flat(gradients), layout.swaps.others):
                return None
            ready = self._ready = _ready(kind, layout, state, [len(own) for own in parameters])
        fits = [g.stride() for g in _flat(gradients)] == ready.strides
        return ready if fits and all(g.dtype is torch.float32 for g in _flat(gradients)) else None


def _suit(kind: Base, parameters: Sequence[nn.Parameter], state: Sequence[Tensor], *others: Sequence[Tensor]) -> bool:
    """Return whether the pass can work on parameters, their state by key, and others that belong to them."""
    columns = _by_key(kind, state)
    shaped, counts = columns[: len(kind.state)], columns[len(kind.state) :]
    rows = zip(parameters, *shaped, *others, strict=True)
    return all(kernel.takes(*row) for row in rows) and all(kernel.counts(t) for column in counts for t in column)


def _ready(kind: Base, layout: Layout, state: Sequence[Tensor], counts: Sequence[int]) -> Ready:
    parameters, perturbed = layout.swaps.parameters, layout.swaps.others
    columns = _by_key(kind, state)
    arrays, start = [], 0
    for count in counts:
        own = slice(start, start + count)
        weights = Array.of(parameters[own])
        of_state = [Array.of(column[own], weights.sizes) for column in columns]
        arrays.append((weights, of_state, Array.of(perturbed[own], weights.sizes)))
        start += count
    strides = [p.stride() for p in parameters]
    return Ready(layout, state, _addresses(state, perturbed), strides, arrays)


def _by_key(kind: Base, state: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    size = len(state) // len(kind.keys)
    return [state[size * number : size * (number + 1)] for number in range(len(kind.keys))]


def _addresses(*columns: Iterable[Tensor]) -> list[int]:
    return [t.data_ptr() for column in columns for t in column]


def _flat(columns: Columns) -> list[Any]:
    return columns[0] if len(columns) == 1 else [entry for column in columns for entry in column]


def check_kernel(base: Optimizer, *, plain: bool) -> None:
    """Raise InputError for a base or options that the compiled pass is not for, or where it cannot be built."""
    if kernel.base_of(base) is None or not plain:
        raise InputError(
            "kernel=True is for torch.optim.SGD with momentum, Adam and AdamW (without maximize, amsgrad, capturable and"
            " differentiable), along the previous gradient on active weights, without a budget: leave it out for"
            f" {type(base).__name__} or other options"
        )
    kernel.library()

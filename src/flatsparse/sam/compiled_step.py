"""SGD's step and the next perturbed weights in one compiled pass, with what of it stays from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from flatsparse.common.distributed import norm, squares_fit
from flatsparse.common.errors import InputError
from flatsparse.sam import kernel
from flatsparse.sam.kernel import Array
from flatsparse.sam.layout import Layout, same
from flatsparse.sam.perturb import TINY
from flatsparse.sam.perturbation import Perturbation, Tensors

Columns = list[list[Any]]  # of each group, something of each parameter that has a gradient


@dataclass(frozen=True)
class Ready:
    """The tensors that keep their places, once they were found to suit the pass.

    Attributes:
        layout: of the perturbed weights.
        momenta: of each group.
        addresses: of the momenta and the perturbed weights, as they were then; those of the weights are in the layout.
        strides: of the weights, which all tensors share.
        arrays: of each group the weights, momenta and perturbed weights for C.
    """

    layout: Layout
    momenta: Sequence[Tensor]
    addresses: Sequence[int]
    strides: Sequence[tuple[int, ...]]
    arrays: Sequence[tuple[Array, Array, Array]]

    def is_of(self, layout: Layout, momenta: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> bool:
        """True while nothing has moved."""
        return (
            layout is self.layout
            and same(momenta, self.momenta)
            and _addresses(momenta, layout.swaps.others) == self.addresses
            and [p.stride() for p in parameters] == self.strides
        )


class CompiledStep:
    """The step of a base and the making of perturbed weights, in one compiled pass where all is as that needs it."""

    def __init__(self) -> None:
        self._ready: Ready | None = None

    def __call__(self, perturbation: Perturbation) -> Tensors | None:
        """Take SGD's step and make the perturbed weights along the gradients.

        Returns: None; or the gradients, when something was not as the pass needs it, or the step's hooks have set masks since.
        """
        perturbation.weights.invalidate()
        Optimizer.profile_hook_step(lambda base: self._step(base, perturbation))(perturbation.base)
        return None if perturbation.weights.are_new else perturbation.gradients()

    def _step(self, base: Any, perturbation: Perturbation) -> None:
        """Take the base's own step, between its hooks, and make the perturbed weights if all is as usual."""
        base._opt_called = True  # for a scheduler that asks whether the base has stepped
        groups = base.param_groups
        parameters = [[p for p in group["params"] if p.grad is not None] for group in groups]
        gradients = [[p.grad for p in own] for own in parameters]
        rhos = [perturbation.radius.of(group) for group in groups]
        usual = all(rhos) and kernel.suits(base)
        ready = self._prepared(base, perturbation, parameters, gradients) if usual else None
        if ready is None:
            SGD.step.__wrapped__(base)  # type: ignore[attr-defined]  # without the hooks, which have run
            return
        given = [Array.of(own, arrays[0].sizes) for own, arrays in zip(gradients, ready.arrays, strict=True)]
        length = sum(map(kernel.square, given)) ** 0.5
        if not squares_fit(length):
            length = float(norm(_flat(gradients)) or 0.0)
        for group, rho, own, (weights, momenta, perturbed) in zip(groups, rhos, given, ready.arrays, strict=True):
            kernel.step(group, weights, own, momenta, perturbed, rho / max(length, TINY))
        perturbation.weights.record(ready.layout)

    def _prepared(self, base: Any, perturbation: Perturbation, parameters: Columns, gradients: Columns) -> Ready | None:
        """Return what the pass needs beside the gradients; None if something does not suit it."""
        state, weights, flat = base.state, perturbation.weights, _flat(parameters)
        found = ((entry or {}).get("momentum_buffer") for entry in map(state.get, flat))
        momenta = [m for m in found if m is not None]
        if len(momenta) < len(flat):
            return None
        layout = weights.known_layout(flat) or weights.new_layout(flat)
        ready = self._ready
        if not layout.plain:
            return None
        if ready is None or not ready.is_of(layout, momenta, flat):
            tensors = zip(flat, _flat(gradients), momenta, layout.swaps.others, strict=True)
            if not all(kernel.takes(*own) for own in tensors):
                return None
            ready = self._ready = _ready(layout, momenta, [len(own) for own in parameters])
        fits = [g.stride() for g in _flat(gradients)] == ready.strides
        return ready if fits and all(g.dtype is torch.float32 for g in _flat(gradients)) else None


def _ready(layout: Layout, momenta: Sequence[Tensor], counts: Sequence[int]) -> Ready:
    parameters, perturbed = layout.swaps.parameters, layout.swaps.others
    arrays, start = [], 0
    for count in counts:
        own = slice(start, start + count)
        weights = Array.of(parameters[own])
        arrays.append((weights, Array.of(momenta[own], weights.sizes), Array.of(perturbed[own], weights.sizes)))
        start += count
    strides = [p.stride() for p in parameters]
    return Ready(layout, momenta, _addresses(momenta, perturbed), strides, arrays)


def _addresses(*columns: Sequence[Tensor]) -> list[int]:
    return [t.data_ptr() for column in columns for t in column]


def _flat(columns: Columns) -> list[Any]:
    return columns[0] if len(columns) == 1 else [entry for column in columns for entry in column]


def check_kernel(base: Optimizer, *, plain: bool) -> None:
    """Raise InputError for a base or options that the compiled pass is not for, or where it cannot be built."""
    if not kernel.suits(base) or not plain:
        raise InputError(
            "kernel=True is for torch.optim.SGD with momentum, along the previous gradient on active weights: leave it out for"
            f" {type(base).__name__} or other options"
        )
    kernel.library()

"""The perturbation of an optimizer's parameters: made in one step, applied in the next, and taken back bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from flatsparse.common.distributed import are_plain, is_sharded, is_unusable
from flatsparse.common.errors import InputError
from flatsparse.common.optimizers import Masked
from flatsparse.sam.options import Options
from flatsparse.sam.perturb import NOT_FINITE, Part, perturb_, perturb_plain_, reach_of
from flatsparse.sam.perturbed_weights import PerturbedWeights, Store
from flatsparse.sam.radius import Radius
from flatsparse.sam.swap import WeightSwap
from flatsparse.sam.warn_once import WarnOnce

Tensors = dict[nn.Parameter, Tensor]


class Perturbation(WeightSwap):
    """The perturbation e of a base optimizer's parameters.

    ``make`` computes ``u = w + e``, ``apply`` lets the parameters hold it, ``restore`` gives w back bit for bit.

    Args:
        base: the optimizer whose groups are perturbed.
        radius: ρ of each group.
        store: where u is kept from one ``make`` to the next.

    Attributes:
        weights: the u.
        was_applied: whether the parameters have held w + e since the last step.
    """

    def __init__(self, base: Optimizer, radius: Radius, options: Options, store: Store, warn: WarnOnce) -> None:
        super().__init__(warn, in_place=options.in_place)
        self.base, self.radius, self.options = base, radius, options
        self.weights = PerturbedWeights(base, radius, options, store, warn)
        self.was_applied = False
        self._enabled = True

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_enabled": True}

    @property
    def masks(self) -> Mapping[nn.Parameter, Masked]:
        """The masks that the perturbation keeps to."""
        return self.weights.masks

    def set_masks(self, masks: Mapping[nn.Parameter, Masked]) -> None:
        """Restore the weights, and keep to these masks from now on; to none without ``mask_perturbation``."""
        self.restore()  # whoever sets masks is about to write the true weights
        self.weights.invalidate()
        self.weights.masks = masks if self.options.mask_perturbation else {}

    def change(self, **options: Any) -> None:
        """Take other options from the next ``make`` on."""
        self.options = self.weights.options = dataclasses.replace(self.options, **options)

    def gradients(self) -> Tensors:
        """The gradients that a direction is made of: of every parameter that has one and whose ρ is not 0."""
        groups = [g for g in self.base.param_groups if self.radius.of(g) != 0]
        return {p: grad for g in groups for p in g["params"] if (grad := p.grad) is not None}

    @torch.no_grad()
    def make(self, directions: Mapping[nn.Parameter, Tensor], *, downhill: bool = False) -> None:
        """Make ``u = w + ρ d/‖d‖`` for each parameter with a direction; the others are not perturbed.

        Downhill it is minus, and so it is along gradients of what a group's base maximizes. Within a loss budget σ, ρ is at
        most σ/‖d‖.
        """
        parameters, along = list(directions), list(directions.values())
        plain = are_plain(along)
        layout = known = self.weights.known_layout(parameters) if plain else None
        if layout is None:  # in the order of the groups, and without those that have no direction after all
            held = [p for group in self.base.param_groups for p in group["params"]]
            parameters = [p for p in held if directions.get(p) is not None]
            along = [directions[p] for p in parameters]
        if layout is None or {d.layout for d in along} != {torch.strided}:
            _check_kinds(parameters, along, compact=self.options.compact)
        if layout is None:
            layout = self.weights.new_layout(parameters)
        groups = self.base.param_groups
        signs = [-1 if downhill or group.get("maximize") else 1 for group in groups]
        rhos = [sign * self.radius.of(group) for sign, group in zip(signs, groups, strict=True)]
        eta = self.options.eta if self.options.adaptive else None
        budget = self.radius.budget
        if plain and layout.plain and eta is None:
            length = perturb_plain_(layout, along, rhos, budget)
        else:
            rows = zip(along, layout.group_of, layout.swaps, strict=True)
            length = perturb_([Part(p, d, rhos[number], i, u) for d, number, (p, u, i) in rows], eta, budget)
        lost = length is not None and is_unusable(length)
        reach = None if budget is None or length is None or lost else reach_of(budget, length)
        self.weights.record(layout, reach)
        if lost:
            self._warn("not finite", NOT_FINITE)
        if known is None:  # after all else, for a warning may be an error
            _warn_of_rounding(parameters, self._warn)

    def apply(self) -> None:
        """Let the parameters hold w + e, where there is one."""
        if self._enabled and not self.is_applied:
            self.show(self.weights.current())
            self.was_applied |= self.is_applied

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the parameters hold w + e."""
        self.apply()
        try:
            yield
        finally:
            self.restore()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """A context in which the parameters hold w, and ``apply`` does nothing."""
        self.restore()
        self._enabled = False
        try:
            yield
        finally:
            self._enabled = True


def _check_kinds(parameters: Sequence[nn.Parameter], directions: Sequence[Tensor], *, compact: bool) -> None:
    """Raise InputError for parameters that cannot hold w + e."""
    for p, d in zip(parameters, directions, strict=True):
        if d.layout != torch.strided or not p.is_floating_point():
            raise InputError(
                f"a gradient is {d.layout}, {d.dtype}: sharpness-aware optimizers need dense real ones (for an"
                " embedding, sparse=False)"
            )
        if type(p) is not nn.Parameter and is_traceable_wrapper_subclass(p) and not is_sharded(p):
            raise InputError(
                f"parameters are {type(p.data).__name__}, which cannot be swapped for perturbed ones: use plain tensors or"
                " FSDP2's"
            )
        if is_sharded(p) and compact:
            raise InputError("compact=True cannot hold sharded parameters: leave it out, shards are small already")


def _warn_of_rounding(parameters: Sequence[nn.Parameter], warn: WarnOnce) -> None:
    coarse = next((p.dtype for p in parameters if p.dtype in (torch.bfloat16, torch.float16)), None)
    if coarse is not None:
        warn(
            "coarse",
            f"weights are {coarse}: rounding swallows much of a perturbation of this size (most of it in large"
            " nets); keep the weights in float32 and use torch.autocast for speed",
        )

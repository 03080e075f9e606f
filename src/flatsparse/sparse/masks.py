"""The masks of a model: which of its weights are active."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from flatsparse.common.distributed import is_sharded
from flatsparse.common.errors import InputError
from flatsparse.common.names import plain_names
from flatsparse.common.seeds import generator
from flatsparse.common.tensors import shared_storage
from flatsparse.common.weight_layout import inputs_first
from flatsparse.sparse.layers import (
    LayerSelector,
    LeftDense,
    check_exact,
    chosen,
    kinds,
    matching,
    prunable,
    warn_of_dense,
)
from flatsparse.sparse.masked_weight import MaskedWeight
from flatsparse.sparse.topk import budget

__all__ = ["MaskedWeight", "Masks"]


class Masks(Sequence[MaskedWeight]):
    """The masked weights of a model, in the order of ``named_parameters``.

    Args:
        weights: the prunable weights that are masked.
        overall: the number of weights in all matrices of the model, masked or not.
    """

    def __init__(self, weights: Iterable[MaskedWeight], overall: int) -> None:
        self._weights = list(weights)
        self.overall = overall

    @classmethod
    def of(
        cls,
        model: nn.Module,
        trained: Iterable[nn.Parameter],
        include: Sequence[LayerSelector] = (),
        exclude: Sequence[LayerSelector] = (),
        seed: int = 0,
        left_dense: Sequence[LeftDense] = (),
    ) -> Masks:
        """All-true masks for the prunable weights of a model.

        Args:
            model: the network.
            trained: the parameters an optimizer holds; others are left alone.
            include, exclude: shell patterns (``layer1.*``) matched against parameter names, layer names and the names of
                layers' classes; or the classes themselves. ``include`` may name any matrix; without it all matrices of
                linear, convolutional, recurrent and attention layers are taken, and a warning names matrices that stay
                dense because a parametrization owns them or, where they are many, because their kind is unknown.
            left_dense: each names layers that stay dense besides, such as ``layers.first_convolution``.

        Raises: InputError when a pattern matches nothing, or nothing is left; for a weight that shares its memory with
            another parameter, for one whose parametrization does not keep zeros, and for a lazy layer.
        """
        held = {id(p) for p in trained if p.requires_grad}
        every = prunable(model)
        modules = {name: module for name, (_, module) in every.items()}
        names = chosen(modules, left_dense, include, exclude)
        picked = {name: p for name, (p, _) in every.items() if name in names and id(p) in held}
        if not picked:
            why = f"none of the model's {len(every)} matrices matches ({kinds(modules)})"
            if names:
                why = f"the optimizer holds none of the {len(names)} matrices that match, or they are frozen"
            elif not every:
                why = "the model has no matrix with entries"
            raise InputError(
                f"no weight to make sparse: {why}; check include=, exclude=, layers= and the optimizer's parameters"
            )
        named = list(model.named_parameters())
        for one, other in shared_storage(zip(plain_names([n for n, _ in named]), [p for _, p in named], strict=True)):
            if one in picked or other in picked:
                raise InputError(
                    f"'{one}' and '{other}' are two parameters on the same memory, so that no mask of one would hold:"
                    " tie them as one (b.weight = a.weight, not b.weight.data = a.weight.data), or clone one of them"
                )
        for name in picked:
            check_exact(name, modules[name])
        if not include:
            left_out = matching(exclude, modules, "exclude")
            warn_of_dense(every, [n for n, (p, _) in every.items() if id(p) in held and n not in names | left_out])
        weights = [
            MaskedWeight(name, p, index, seed, inputs_first(modules[name]))
            for index, (name, p) in enumerate(picked.items())
        ]
        return cls(weights, overall=sum(p.numel() for p, _ in every.values()))

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # Sequence's overloads say no more than this
        return self._weights[index]

    def gathered(self) -> Masks:
        """Return itself, or for sharded weights a view that gathers each layer when it is read."""
        if not any(is_sharded(w.weight) for w in self):
            return self
        return _Gathered(self._weights, self.overall)

    def __len__(self) -> int:
        return len(self._weights)

    def __iter__(self) -> Iterator[MaskedWeight]:
        return iter(self._weights)

    @property
    def total(self) -> int:
        """The number of prunable weights."""
        return sum(w.size for w in self)

    @property
    def active(self) -> int:
        """The number of active weights."""
        return sum(w.active for w in self)

    @property
    def counts(self) -> dict[str, int]:
        """The number of active weights of each layer, by name."""
        return {w.name: w.active for w in self._weights}

    @property
    def inputs_first(self) -> dict[str, int]:
        """``MaskedWeight.inputs_first`` of each layer, by name."""
        return {w.name: w.inputs_first for w in self._weights}

    def budget(self, sparsity: float) -> int:
        """Return the number of weights that are active at a sparsity, to the weight."""
        return budget(self.total, sparsity)

    def keep_momentum(self) -> None:
        """Give every layer a running average of its dense gradient, which begins as 0."""
        for w in self:
            w.momentum = torch.zeros_like(w.weight, requires_grad=False)

    def seed_generators(self, step: int) -> None:
        """Give every layer its own source of randomness for a step."""
        for w in self:
            w.generator = generator(w.seed, step, w.index)

    def trained(self) -> Masks:
        """Return itself, or without the weights that were frozen since, which no rule may touch."""
        left = [w for w in self._weights if w.weight.requires_grad]
        return self if len(left) == len(self._weights) else Masks(left, self.overall)

    def update(self, new: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Set new masks, by name, and zero the weights and their gradients outside them.

        Entries that become active start from 0, because they were 0 while they were masked.

        Returns: where entries became active, of the layers that have new masks.
        """
        grown = {w.name: w.set_mask(new[w.name]) for w in self if w.name in new}
        for w in self:
            w.apply_to_gradient()
            w.apply()
        return grown


class _Gathered(Masks):
    """Masks whose layers are gathered when they are read, so that no more than one need be held at a time."""

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._weights[index].gathered()

    def __iter__(self) -> Iterator[MaskedWeight]:
        return (w.gathered() for w in self._weights)

    @property
    def total(self) -> int:
        return sum(w.size for w in self._weights)

    @property
    def active(self) -> int:
        return sum(w.active for w in self._weights)

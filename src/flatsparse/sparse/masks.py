"""The masks of a model: which weights are active, and the one way to zero the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from flatsparse.common.distributed import distribute, full_tensor, is_sharded, local_tensor
from flatsparse.common.errors import InputError
from flatsparse.common.names import plain_names
from flatsparse.common.seeds import generator
from flatsparse.common.tensors import Version, shared_storage, version
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
from flatsparse.sparse.topk import budget

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class MaskedWeight:
    """A prunable weight and its mask: the argument of every score.

    Attributes:
        name: the parameter's name in the model, without the prefixes of wrappers.
        weight: the parameter, any shape.
        mask: bool, the shape of ``weight``, sharded as it is; true where the weight is active. Its contents change, the
            tensor never does.
        active: the number of active entries.
        index: the position among the model's masked weights; seeds are derived from it.
        dense_grad: the gradient of this step before it was masked, kept only on steps whose rules ask for it.
        generator: the source of this layer's random choices at this step.
        momentum: the running average of the dense gradient, kept only for a plan that asks for it.
        growable: where entries may become active, bool; None is everywhere.
        inputs_first: the number of groups of inputs that the weight begins with; 0 where it begins with the outputs.
    """

    def __init__(self, name: str, weight: nn.Parameter, index: int, seed: int = 0, inputs_first: int = 0) -> None:
        self.name, self.weight, self.index, self.seed = name, weight, index, seed
        self.inputs_first = inputs_first
        self.mask = torch.ones_like(weight, dtype=torch.bool)
        self.active = weight.numel()
        self.dense_grad: Tensor | None = None
        self.generator = generator(seed, 0, index)
        self._indices: Tensor | None = None
        self.momentum: Tensor | None = None
        self.growable: Tensor | None = None
        self._recorded: Version | None = None

    def __repr__(self) -> str:
        return f"MaskedWeight({self.name!r}, {tuple(self.weight.shape)}, {self.active}/{self.weight.numel()} active)"

    @property
    def grad(self) -> Tensor:
        """The dense gradient of this step, unscaled; non-finite entries count as 0. Zeros when the layer had none."""
        if self.dense_grad is None:
            return torch.zeros_like(self.weight)
        return torch.where(self.dense_grad.isfinite(), self.dense_grad, 0)

    def among_growable(self, scores: Tensor) -> Tensor:
        """Return the scores with −inf where nothing may grow."""
        return scores if self.growable is None else torch.where(self.growable.to(scores.device), scores, -torch.inf)

    def average(self, decay: float) -> None:
        """Take this step's dense gradient into the running average; a layer that had none keeps its own."""
        if self.momentum is not None and self.dense_grad is not None:
            grad = self.grad
            self.momentum = self.momentum.to(grad).lerp_(grad, 1 - decay)

    @torch.no_grad()
    def set_mask(self, mask: Tensor) -> Tensor:
        """Copy the contents of another mask (bool, the shape of the weight). Returns where it became active."""
        self.active = int(full_tensor(mask.sum()))
        mask = distribute(mask.to(self.mask.device), like=self.mask)
        grown = mask & ~self.mask
        self.mask.copy_(mask)
        self._indices = None
        return grown

    @property
    def indices(self) -> Tensor:
        """The flat indices of the active entries, in row-major order; int32, or int64 where that is too narrow."""
        if self._indices is None or self._indices.device != self.mask.device:
            narrow = torch.int32 if self.mask.numel() < 2**31 else torch.int64
            self._indices = self.mask.reshape(-1).nonzero().squeeze(1).to(narrow)
        return self._indices

    @torch.no_grad()
    def zero_outside(self, tensor: Tensor) -> Tensor:
        """Set a tensor of the weight's shape to exactly +0 outside the mask, in place; inside nothing changes."""
        if self.mask.device != tensor.device:  # the model was moved after it was made sparse
            self.mask = self.mask.to(tensor.device)
        if self.active == self.weight.numel():
            return tensor
        # Multiplied as integers: exact for -0.0, inf and NaN, where a product of numbers is not, and on a CPU five times
        # as fast as filling by a mask.
        values, mask = local_tensor(tensor.detach()), local_tensor(self.mask)
        values.view(_INTEGERS[values.element_size()]).mul_(mask)
        return tensor

    def gathered(self) -> MaskedWeight:
        """Return itself, or for a sharded weight a copy that holds all of it; all processes must call this."""
        if not is_sharded(self.weight):
            return self
        full = MaskedWeight(
            self.name,
            nn.Parameter(full_tensor(self.weight.detach()), requires_grad=False),
            self.index,
            self.seed,
            self.inputs_first,
        )
        full.mask, full.active, full.generator = full_tensor(self.mask), self.active, self.generator
        full.dense_grad = None if self.dense_grad is None else full_tensor(self.dense_grad)
        full.momentum = None if self.momentum is None else full_tensor(self.momentum)
        return full

    def apply(self) -> None:
        """Zero the weight outside the mask, and record that it is."""
        self.zero_outside(self.weight)
        self.record()

    def apply_to_gradient(self) -> None:
        """Zero the weight's gradient outside the mask, if it has one."""
        if self.weight.grad is not None:
            self.zero_outside(self.weight.grad)

    def reapply(self) -> None:
        """Zero the weight outside the mask if anything has written to it since the last record."""
        if not self.is_as_recorded:
            self.apply()

    @property
    def is_as_recorded(self) -> bool:
        """True if nothing has written to the weight since the last record."""
        return version(self.weight) == self._recorded

    def record(self) -> None:
        """Record the version of the weight that is known to be zero outside the mask."""
        self._recorded = version(self.weight)


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
        return sum(w.weight.numel() for w in self)

    @property
    def active(self) -> int:
        """The number of active weights."""
        return sum(w.active for w in self)

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
        return sum(w.weight.numel() for w in self._weights)

    @property
    def active(self) -> int:
        return sum(w.active for w in self._weights)

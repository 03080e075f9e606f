"""A prunable weight and its mask, and the one way to zero what is outside masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flatsparse.common.distributed import PLAIN, distribute, full_tensor, is_sharded, local_tensor
from flatsparse.common.seeds import generator
from flatsparse.common.tensors import Version, averageable, version, versions
from flatsparse.sparse.split import Split
from flatsparse.sparse.threshold import count_true

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class MaskedWeight:
    """A prunable weight and its mask: the argument of every score.

    Attributes:
        name: the parameter's name in the model, without the prefixes of wrappers.
        weight: the parameter, any shape.
        mask: bool, the shape of ``weight``, sharded as it is; true where the weight is active. Its contents change, the
            tensor never does.
        size: the number of entries.
        active: the number of active entries.
        index: the position among the model's masked weights; seeds are derived from it.
        dense_grad: the gradient of this step before it was masked, kept only on steps whose rules ask for it.
        generator: the source of this layer's random choices at this step.
        momentum: the running average of the dense gradient, kept only for a plan that asks for it.
        split: the sparse copy of the weight that a plan pulls it to, with its dual; None without one.
        recorded: the version of the weight that is known to be as it should be outside the mask.
        growable: where entries may become active, bool; None is everywhere.
        inputs_first: the number of groups of inputs that the weight begins with; 0 where it begins with the outputs.
        keeps_outside: the weight keeps its values outside the mask, where it is zero otherwise; see ``FrozenOutside``.
    """

    def __init__(self, name: str, weight: nn.Parameter, index: int, seed: int = 0, inputs_first: int = 0) -> None:
        self.name, self.weight, self.index, self.seed = name, weight, index, seed
        self.inputs_first = inputs_first
        self.mask = torch.ones_like(weight, dtype=torch.bool)
        self.active = self.size = weight.numel()
        self.dense_grad: Tensor | None = None
        self.generator = generator(seed, 0, index)
        self._indices: Tensor | None = None
        self.momentum: Tensor | None = None
        self.split: Split | None = None
        self.growable: Tensor | None = None
        self.recorded: Version | None = None
        self.keeps_outside = False

    def __repr__(self) -> str:
        return f"MaskedWeight({self.name!r}, {tuple(self.mask.shape)}, {self.active}/{self.size} active)"

    @property
    def is_packed(self) -> bool:
        """True while the parameter holds the active entries alone, in row-major order: see ``Packing``."""
        return self.weight.ndim != self.mask.ndim

    def whole(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the parameter's shape in the mask's: what is packed gets zeros between; autograd knows how."""
        if not self.is_packed or tensor.shape != self.weight.shape:
            return tensor
        mask = self.mask.to(tensor.device)
        return tensor.new_zeros(mask.shape).masked_scatter(mask, tensor)

    def places(self, indices: Tensor) -> Tensor:
        """Return where the parameter holds active entries, given their flat indices in the mask, int64."""
        return torch.searchsorted(self.indices, indices.to(self.indices.dtype)) if self.is_packed else indices

    @property
    def grad(self) -> Tensor:
        """A copy of this step's dense gradient, unscaled; non-finite entries count as 0. Zeros when the layer had none."""
        if self.dense_grad is None:
            return torch.zeros_like(self.weight)
        return self.dense_grad.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def among_growable(self, scores: Tensor) -> Tensor:
        """Return the scores with −inf where nothing may grow."""
        return scores if self.growable is None else torch.where(self.growable.to(scores.device), scores, -torch.inf)

    def average(self, decay: float) -> None:
        """Take this step's dense gradient into the running average; a layer that had none keeps its own."""
        if self.momentum is not None and self.dense_grad is not None:
            grad = averageable(self.dense_grad)
            self.momentum = self.momentum.to(grad).lerp_(grad, 1 - decay)

    @torch.no_grad()
    def set_mask(self, mask: Tensor) -> Tensor:
        """Copy the contents of another mask (bool, the shape of the weight). Returns where it became active."""
        self.active = count_true(full_tensor(mask))
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

    def zero_outside(self, tensor: Tensor) -> Tensor:
        """Set a tensor of the weight's shape to exactly +0 outside the mask, in place; inside nothing changes."""
        zero_outside([self], [tensor])
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
        full.split = None if self.split is None else self.split.gathered()
        return full

    def apply(self) -> None:
        """Zero the weight outside the mask, unless it keeps its values there, and record that it is as it should be."""
        if not self.keeps_outside:
            self.zero_outside(self.weight)
        record([self])

    def apply_to_gradient(self) -> None:
        """Zero the weight's gradient outside the mask, if it has one."""
        if self.weight.grad is not None:
            self.zero_outside(self.weight.grad)

    def reapply(self) -> None:
        """Zero the weight outside the mask if anything has written to it since the last record."""
        reapply([self])

    @property
    def is_as_recorded(self) -> bool:
        """True if nothing has written to the weight since the last record."""
        return version(self.weight) == self.recorded


def record(weights: Sequence[MaskedWeight]) -> None:
    """Record the versions of weights that are known to be zero outside their masks."""
    for w, now in zip(weights, versions([w.weight for w in weights]), strict=True):
        w.recorded = now


def reapply(weights: Sequence[MaskedWeight]) -> None:
    """Zero the weights outside their masks that anything has written to since the last record."""
    for w, now in zip(weights, versions([w.weight for w in weights]), strict=True):
        if w.recorded != now:
            w.apply()


@torch.no_grad()
def zero_outside(weights: Sequence[MaskedWeight], tensors: Sequence[Tensor | None]) -> None:
    """Set tensors, each of its weight's shape, to exactly +0 outside its mask, in place; inside nothing changes."""
    values, masks = [], []
    for w, tensor in zip(weights, tensors, strict=True):
        if tensor is None or (w.is_packed and tensor.shape == w.weight.shape):  # then it has no other entries
            continue
        if w.mask.get_device() != tensor.get_device():  # the model was moved after it was made sparse
            w.mask = w.mask.to(tensor.device)
        if w.active == w.size:
            continue
        local, mask = (tensor, w.mask) if type(tensor) in PLAIN else (local_tensor(tensor), local_tensor(w.mask))
        # Multiplied as integers: exact for -0.0, inf and NaN, where a product of numbers is not, and on a CPU five times
        # as fast as filling by a mask.
        values.append((local.detach() if local.requires_grad else local).view(_INTEGERS[local.dtype.itemsize]))
        masks.append(mask)
    if values:
        torch._foreach_mul_(values, masks)

"""A model's masks: which weights are live, and the one way to zero the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flatsparse.common.distributed import distribute, full_tensor, is_sharded, local_tensor
from flatsparse.common.errors import InputError
from flatsparse.common.names import plain_names
from flatsparse.common.seeds import generator
from flatsparse.common.tensors import Version, shared_storage, version
from flatsparse.common.weight_layout import inputs_first
from flatsparse.sparse.layers import Pattern, check_exact, chosen, kinds, matching, prunable, warn_of_dense
from flatsparse.sparse.topk import budget

if TYPE_CHECKING:
    from flatsparse.sparse.channel_state import Widths

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class MaskedWeight:
    """One prunable weight and its mask; what every score is a function of.

    Attributes:
        name: the parameter's name in the model, without the prefixes of wrappers.
        weight: the parameter, any shape.
        mask: bool, the shape of ``weight``, spread over processes as it is; true where the weight is live. Its contents
            change, it never does.
        active: how many entries are live.
        index: the place among the model's masked weights; seeds are derived from it.
        dense_grad: the gradient of this step before it was masked, kept only on steps whose rules ask for it.
        generator: the source of this layer's random choices at this step.
        momentum: the running average of the dense gradient, kept only for a plan that asks for it.
        room: where entries may become live, bool; None is everywhere.
        inputs_first: how many groups of inputs the weight begins with; 0 where it begins with the outputs.
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
        self.room: Tensor | None = None
        self._seen: Version | None = None

    def __repr__(self) -> str:
        return f"MaskedWeight({self.name!r}, {tuple(self.weight.shape)}, {self.active}/{self.weight.numel()} live)"

    @property
    def grad(self) -> Tensor:
        """The dense gradient of this step, unscaled; non-finite entries count as 0. Zeros when the layer had none."""
        if self.dense_grad is None:
            return torch.zeros_like(self.weight)
        return torch.where(self.dense_grad.isfinite(), self.dense_grad, 0)

    def within_room(self, scores: Tensor) -> Tensor:
        """Scores that put last what must not become live."""
        return scores if self.room is None else torch.where(self.room.to(scores.device), scores, -torch.inf)

    def average(self, decay: float) -> None:
        """Take this step's dense gradient into the running average; a layer that had none keeps its own."""
        if self.momentum is not None and self.dense_grad is not None:
            grad = self.grad
            self.momentum = self.momentum.to(grad).lerp_(grad, 1 - decay)

    @torch.no_grad()
    def set_mask(self, mask: Tensor) -> Tensor:
        """Take over the contents of another mask (bool, the shape of the weight). Returns where it became live."""
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
        """Make a tensor of the weight's shape exactly +0 outside the mask, in place; inside nothing changes."""
        if self.mask.device != tensor.device:  # the model was moved after it was made sparse
            self.mask = self.mask.to(tensor.device)
        if self.active == self.weight.numel():
            return tensor
        # Multiplied as integers: exact for -0.0, inf and NaN, where a product of numbers is not, and on a CPU five times
        # as fast as filling by a mask.
        values, mask = local_tensor(tensor.detach()), local_tensor(self.mask)
        values.view(_INTEGERS[values.element_size()]).mul_(mask)
        return tensor

    def whole(self) -> MaskedWeight:
        """Itself, or of a weight that is spread over processes a copy that holds all of it; they must all ask."""
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

    def restore(self) -> None:
        """Zero the weight outside the mask if anything has written to it since the last look."""
        if not self.is_as_seen:
            self.zero_outside(self.weight)
            self.look()

    @property
    def is_as_seen(self) -> bool:
        """Whether nothing has written to the weight since the last look."""
        return version(self.weight) == self._seen

    def look(self) -> None:
        """Remember that the weight is known to be zero outside the mask as it is now."""
        self._seen = version(self.weight)


class Masks(Sequence[MaskedWeight]):
    """The masked weights of a model, in the order of ``named_parameters``.

    Args:
        weights: the prunable weights that are masked.
        overall: how many weights all matrices of the model have, masked or not.

    Attributes:
        memory: numbers that rules keep from one update to the next, by name; saved with the masks.
        widths: which channels are live, for a plan that removes channels; saved too.
    """

    def __init__(self, weights: Iterable[MaskedWeight], overall: int) -> None:
        self._weights = list(weights)
        self.overall = overall
        self.memory: dict[str, float] = {}
        self.widths: Widths | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        trained: Iterable[nn.Parameter],
        include: Sequence[Pattern] = (),
        exclude: Sequence[Pattern] = (),
        seed: int = 0,
        layers: str = "all",
    ) -> Masks:
        """All-true masks for the prunable weights of a model.

        Args:
            model: the network.
            trained: the parameters an optimizer holds; others are left alone.
            include, exclude: shell patterns (``layer1.*``) matched against parameter names, layer names and the names of
                layers' classes; or the classes themselves. ``include`` may name any matrix; without it all matrices of
                linear, convolutional, recurrent and attention layers are taken, and a warning names matrices that stay
                dense because a parametrization owns them or, where they are many, because their kind is unknown.
            layers: leaves dense what a paper does; a name in ``layers.PRESETS``.

        Raises: InputError when a pattern matches nothing, or nothing is left; for a weight that shares its memory with
            another parameter, for one whose parametrization does not keep zeros, and for a lazy layer.
        """
        held = {id(p) for p in trained if p.requires_grad}
        every = prunable(model)
        modules = {name: module for name, (_, module) in every.items()}
        names = chosen(modules, layers, include, exclude)
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

    def whole(self) -> Masks:
        """Itself, or of weights that are spread over processes a view that gathers each layer when it is looked at."""
        if not any(is_sharded(w.weight) for w in self):
            return self
        return self._view(_Gathered, self._weights)

    @property
    def everything(self) -> Iterator[MaskedWeight]:
        """The weights, and the vectors that are zero where channels are removed (``Explored.vectors``); no rule sees those."""
        yield from self
        if self.widths is not None:
            yield from self.widths.vectors

    def __len__(self) -> int:
        return len(self._weights)

    def __iter__(self) -> Iterator[MaskedWeight]:
        return iter(self._weights)

    @property
    def total(self) -> int:
        """How many prunable weights there are."""
        return sum(w.weight.numel() for w in self)

    @property
    def active(self) -> int:
        """How many of them are live."""
        return sum(w.active for w in self)

    def budget(self, sparsity: float) -> int:
        """How many weights are live at a sparsity, to the weight."""
        return budget(self.total, sparsity)

    def prepare(self, step: int) -> None:
        """Give every layer its own source of randomness for a step."""
        for w in self:
            w.generator = generator(w.seed, step, w.index)

    def trained(self) -> Masks:
        """Itself, or without the weights that were frozen since, which no rule shall touch."""
        left = [w for w in self._weights if w.weight.requires_grad]
        return self if len(left) == len(self._weights) else self._view(Masks, left)

    def rewire(self, new: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take over new masks and zero the weights and their gradients outside them.

        Entries that become live start from 0, because they were 0 while they were masked; those of channels that are
        restored, from the weight they last had.

        Returns: where entries became live, of the layers that have new masks.
        """
        grown = {}
        for w in self:
            if w.name in new:
                grown[w.name] = w.set_mask(new[w.name])
        if self.widths is not None:
            grown |= self.widths.mask_vectors()
        for w in self.everything:
            if w.weight.grad is not None:
                w.zero_outside(w.weight.grad)
        self.clean()
        if self.widths is not None:
            self.widths.restore(self)
        return grown

    def clean(self) -> None:
        """Zero the weights outside the masks."""
        for w in self.everything:
            w.zero_outside(w.weight)
            w.look()

    def _view(self, kind: type[Masks], weights: Sequence[MaskedWeight]) -> Masks:
        view = kind(weights, self.overall)
        view.memory, view.widths = self.memory, self.widths
        return view


class _Gathered(Masks):
    """Masks whose layers are whole while one looks at them, so that no more than one need be held at a time."""

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._weights[index].whole()

    def __iter__(self) -> Iterator[MaskedWeight]:
        return (w.whole() for w in self._weights)

    @property
    def total(self) -> int:
        return sum(w.weight.numel() for w in self._weights)

    @property
    def active(self) -> int:
        return sum(w.active for w in self._weights)

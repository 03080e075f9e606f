"""Accelerated linear layers: the same module, parameters and state, with another forward."""

from __future__ import annotations

import copyreg
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsparse.acceleration.gradient_memory import GradientMemory
from flatsparse.acceleration.index import Index, index_of
from flatsparse.acceleration.linear import linear
from flatsparse.acceleration.measure import DENSEST, Kind, speedup
from flatsparse.common.distributed import PLAIN
from flatsparse.common.tensors import Version, version
from flatsparse.sparse.masks import MaskedWeight

SAVED_AS = "_flatsparse_layer"  # the module's attribute that is left out of copies and pickles


class SparseLayer:
    """What an accelerated layer knows: its mask's index, whether it is faster sparse, and what it did last.

    Args:
        masked: the layer's weight and mask.
        wants_dense: returns whether the coming optimizer step needs the gradient of masked weights too.
        is_active: returns whether the masks are still kept; otherwise the layer is dense.
        say: called with the reason when the kernels cannot compute a call.
        unpack: called before the weight is loaded, copied or pickled.

    Attributes:
        does: "sparse", or "dense: " and why.
        trains: whether it ran sparse when last the gradient of its weight was wanted.
    """

    def __init__(
        self,
        masked: MaskedWeight,
        wants_dense: Callable[[], bool],
        is_active: Callable[[], bool],
        say: Callable[[str], None],
        unpack: Callable[[], None],
    ) -> None:
        self.does, self.trains = "dense: it was not called yet", False
        self.masked, self.unpack = masked, unpack
        self._wants_dense, self._is_active, self._say = wants_dense, is_active, say
        self._memory = GradientMemory()
        self._index: Index | None = None
        self._indexed: Version | None = None  # the version of the mask that the index is of
        self._faster: dict[
            tuple[int, bool, bool, int], bool
        ] = {}  # sparse than dense, by what ``Kind`` asks for besides

    def index(self) -> Index:
        """Return the index of the mask as it is now."""
        mask = self.masked.mask
        if self._index is None or self._indexed != version(mask):
            self._index, self._indexed = index_of(mask), version(mask)
            self._faster.clear()
        return self._index

    def linear(self, x: Tensor, weight: nn.Parameter, bias: Tensor | None) -> Tensor | None:
        """Return the layer's output, or None where it should be computed densely."""
        wants_values = torch.is_grad_enabled() and weight.requires_grad
        y = self._sparse(x, weight, bias, wants_values)
        if wants_values:
            self.trains = y is not None
        return y

    def _sparse(self, x: Tensor, weight: nn.Parameter, bias: Tensor | None, wants_values: bool) -> Tensor | None:
        masked = self.masked
        if masked.active > DENSEST * masked.size:
            self.does = f"dense: {1 - masked.active / masked.size:.0%} of its weights are zero, too few to pay"
            return None
        if reason := self._unfit(x, weight, bias):
            self.does = f"dense: {reason}"
            self._say(reason)
            return None
        if not x.numel() or x.shape[-1] != masked.mask.shape[1]:  # torch has its own answers
            return None
        index, wants_x = self.index(), torch.is_grad_enabled() and x.requires_grad
        if not masked.is_packed and not self._is_faster(index, x.numel() // index.columns, wants_x, wants_values):
            return None
        self.does = "sparse"
        return linear(x, weight, bias, index, self._wants_dense, self._memory)

    def _is_faster(self, index: Index, samples: int, wants_x: bool, wants_values: bool) -> bool:
        key = samples, wants_x, wants_values, torch.get_num_threads()
        if key not in self._faster:
            self._faster[key] = speedup(Kind.of(index, samples, wants_x=wants_x, wants_values=wants_values)) > 0
        if not self._faster[key]:
            share = index.entries / (index.rows * index.columns)
            self.does = f"dense: not slower so, as measured with {samples} samples and {share:.1%} active weights"
        return self._faster[key]

    def _unfit(self, x: Tensor, weight: nn.Parameter, bias: Tensor | None) -> str | None:
        """Why the kernels cannot compute this call; None when they can."""
        if weight is not self.masked.weight:
            return "its weight was replaced"
        if not self._is_active():
            return "its masks are kept no longer"
        if torch.is_autocast_enabled("cpu"):
            return "autocast is on, and the kernels are for float32"
        for t in (x, weight) if bias is None else (x, weight, bias):
            if type(t) not in PLAIN or t.is_nested or t.layout is not torch.strided:
                return "it was called with tensors of another kind"
            if not t.is_cpu or t.dtype is not torch.float32:
                return "the kernels are for float32 on the CPU"
        if not weight.is_contiguous() or not self.masked.mask.is_cpu or self.masked.size >= 2**31:
            return "its weight is not laid out row by row"
        if bias is not None and not bias.is_contiguous():
            return "its bias is not laid out entry by entry"
        return None


def reduced(module: nn.Module, plain: type[nn.Module], saved_as: str) -> tuple[Any, ...]:
    """Return what copies and pickles make of an accelerated module: one of its plain class, without the attribute."""
    whole = module.__getstate__() if hasattr(module, "__getstate__") else module.__dict__
    state = {name: value for name, value in whole.items() if name != saved_as}
    # Not by copyreg.__newobj__, which pickle takes for the object's own class only.
    return copyreg._reconstructor, (plain, object, None), state  # type: ignore[attr-defined]


class Linear(nn.Linear):
    """An accelerated ``nn.Linear``. Copies and pickles of it, and what it saves, are those of a plain ``nn.Linear``."""

    def forward(self, input: Tensor) -> Tensor:  # called by this name too
        layer, weight = self.__dict__.get(SAVED_AS), self.weight  # none in one that was made anew of this class
        y = None if layer is None or is_transformed() else layer.linear(input, weight, self.bias)
        return F.linear(input, self._whole(weight), self.bias) if y is None else y

    def _whole(self, weight: Tensor) -> Tensor:
        layer = self.__dict__.get(SAVED_AS)
        return weight if layer is None else layer.masked.whole(weight)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if prefix + "weight" in destination:
            destination[prefix + "weight"] = self._whole(destination[prefix + "weight"])

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if (layer := self.__dict__.get(SAVED_AS)) is not None:
            layer.unpack()
        super()._load_from_state_dict(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if (layer := self.__dict__.get(SAVED_AS)) is not None:
            layer.unpack()
        return reduced(self, nn.Linear, SAVED_AS)


# Everything that asks for a module's class by name, as tracers, printed models and patterns do, sees the plain layer.
Linear.__module__, Linear.__qualname__ = nn.Linear.__module__, nn.Linear.__qualname__


def accelerate_linear(module: nn.Linear, layer: SparseLayer) -> Callable[[], None]:
    """Let a linear layer compute sparse. Returns what undoes it."""
    module.__class__ = Linear
    module.__dict__[SAVED_AS] = layer
    weak = weakref.ref(module)

    def restore() -> None:
        if (module := weak()) is not None and module.__dict__.get(SAVED_AS) is layer:
            if type(module) is Linear:  # not one that a parametrization made of it since
                module.__class__ = nn.Linear  # type: ignore[assignment]
            del module.__dict__[SAVED_AS]

    return restore


def is_transformed() -> bool:
    """True while something records operations instead of, or besides, running them: they must be torch's own."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()  # type: ignore[attr-defined]
        or torch._C._len_torch_dispatch_stack()  # such as counters of FLOPs
        or torch.autograd.forward_ad._current_level >= 0
    )

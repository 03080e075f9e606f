"""Accelerated layers as modules: what they are to everybody else is a plain layer, whatever its weight holds."""

from __future__ import annotations

import copyreg
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsparse.sparse.masks import MaskedWeight

SAVED_AS = "_flatsparse_layer"  # the module's attribute that is left out of copies and pickles


@dataclass(frozen=True)
class Weighted:
    """What an accelerated module knows of its weight.

    Attributes:
        masked: the weight and its mask.
        unpack: ``SparseTraining.unpack``.
        linear: the sparse form of a linear layer; returns None where it should be computed densely.
    """

    masked: MaskedWeight
    unpack: Callable[..., None]
    linear: Callable[[Tensor, Any, Tensor | None], Tensor | None] | None = None


def reduced(module: nn.Module, plain: type[nn.Module], saved_as: str) -> tuple[Any, ...]:
    """Return what copies and pickles make of an accelerated module: one of its plain class, without the attribute."""
    whole = module.__getstate__() if hasattr(module, "__getstate__") else module.__dict__
    state = {name: value for name, value in whole.items() if name != saved_as}
    # Not by copyreg.__newobj__, which pickle takes for the object's own class only.
    return copyreg._reconstructor, (plain, object, None), state  # type: ignore[attr-defined]


class AcceleratedLayer(nn.Module):
    """A layer whose weight may be packed. Copies and pickles of it, and what it saves, are those of its plain class."""

    plain: ClassVar[type[nn.Module]]

    @property
    def _known(self) -> Weighted | None:
        return self.__dict__.get(SAVED_AS)  # none in one that was made anew of this class

    def _whole(self, weight: Tensor) -> Tensor:
        """The weight as the plain layer has it."""
        return weight if self._known is None else self._known.masked.whole(weight)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if (name := f"{prefix}weight") in destination:
            destination[name] = self._whole(destination[name])

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self._known is not None:
            self._known.unpack()
        super()._load_from_state_dict(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._known is not None:
            self._known.unpack(closing=False)
        make, kind, state = reduced(self, self.plain, SAVED_AS)
        weight = self._parameters.get("weight")
        if weight is not None and (whole := self._whole(weight.detach())).shape != weight.shape:  # it is perturbed now
            weight = nn.Parameter(whole, weight.requires_grad)
            state = {**state, "_parameters": {**self._parameters, "weight": weight}}
        return make, kind, state


class Linear(AcceleratedLayer, nn.Linear):
    """An accelerated ``nn.Linear``."""

    plain = nn.Linear

    def forward(self, input: Tensor) -> Tensor:  # called by this name too
        sparse = None if self._known is None or is_transformed() else self._known.linear
        y = None if sparse is None else sparse(input, self.weight, self.bias)
        return F.linear(input, self._whole(self.weight), self.bias) if y is None else y


class Conv2d(AcceleratedLayer, nn.Conv2d):
    """An ``nn.Conv2d`` of an accelerated network: called by itself it is dense."""

    plain = nn.Conv2d

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, self._whole(weight), bias)


# Everything that asks for a module's class by name, as tracers, printed models and patterns do, sees the plain layer.
Linear.__module__, Linear.__qualname__ = nn.Linear.__module__, nn.Linear.__qualname__
Conv2d.__module__, Conv2d.__qualname__ = nn.Conv2d.__module__, nn.Conv2d.__qualname__


def accelerate_module(module: nn.Module, kind: type[AcceleratedLayer], known: Weighted) -> Callable[[], None]:
    """Make a plain layer an accelerated one. Returns what undoes it."""
    module.__class__ = kind
    module.__dict__[SAVED_AS] = known
    weak = weakref.ref(module)

    def restore() -> None:
        if (module := weak()) is not None and module.__dict__.get(SAVED_AS) is known:
            if type(module) is kind:  # not one that a parametrization made of it since
                module.__class__ = kind.plain  # type: ignore[assignment]
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

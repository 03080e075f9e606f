"""Accelerated layers as modules: what they are to everybody else is a plain layer, whatever its weight holds."""

from __future__ import annotations

import copyreg
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsparse.sparse.masks import MaskedWeight

SAVED_AS = "_flatsparse_layer"  # the module's attribute that is left out of copies and pickles


class Knowing(Protocol):
    """What an accelerated module knows of its weight."""

    @property
    def masked(self) -> MaskedWeight:
        """The weight and its mask."""
        ...

    @property
    def unpack(self) -> Callable[..., None]:
        """``SparseTraining.unpack``."""
        ...


@dataclass(frozen=True)
class Stored:
    """A weight and its mask, of a layer that is dense when it is called by itself; see ``Knowing``."""

    masked: MaskedWeight
    unpack: Callable[..., None]


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
    def _layer(self) -> Any:
        return self.__dict__.get(SAVED_AS)  # none in one that was made anew of this class

    def _whole(self, weight: Tensor) -> Tensor:
        """The weight as the plain layer has it."""
        return weight if self._layer is None else self._layer.masked.whole(weight)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if (name := f"{prefix}weight") in destination:
            destination[name] = self._whole(destination[name])

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self._layer is not None:
            self._layer.unpack()
        super()._load_from_state_dict(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._layer is not None:
            self._layer.unpack(closing=False)
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
        layer, weight = self._layer, self.weight
        y = None if layer is None or is_transformed() else layer.linear(input, weight, self.bias)
        return F.linear(input, self._whole(weight), self.bias) if y is None else y


class Conv2d(AcceleratedLayer, nn.Conv2d):
    """An ``nn.Conv2d`` of an accelerated network: called by itself it is dense."""

    plain = nn.Conv2d

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, self._whole(weight), bias)


# Everything that asks for a module's class by name, as tracers, printed models and patterns do, sees the plain layer.
Linear.__module__, Linear.__qualname__ = nn.Linear.__module__, nn.Linear.__qualname__
Conv2d.__module__, Conv2d.__qualname__ = nn.Conv2d.__module__, nn.Conv2d.__qualname__


def accelerate_module(module: nn.Module, kind: type[AcceleratedLayer], layer: Knowing) -> Callable[[], None]:
    """Make a plain layer an accelerated one. Returns what undoes it."""
    module.__class__ = kind
    module.__dict__[SAVED_AS] = layer
    weak = weakref.ref(module)

    def restore() -> None:
        if (module := weak()) is not None and module.__dict__.get(SAVED_AS) is layer:
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

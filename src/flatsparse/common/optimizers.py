"""Chains of optimizers, each wrapping the next as its ``base``; the protocols of mask-aware wrappers; checks of optimizers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.common.errors import InputError


class Masked(Protocol):
    """The part of a parameter's mask that optimizer wrappers use."""

    @property
    def active(self) -> int:
        """The number of active entries."""
        ...

    @property
    def indices(self) -> Tensor:
        """The flat indices of the active entries, in row-major order."""
        ...

    def zero_outside(self, tensor: Tensor) -> Tensor:
        """Zero a tensor of the parameter's shape outside the mask, in place."""
        ...

    def whole(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the parameter's shape in the mask's, which is another while the parameter is packed."""
        ...


@runtime_checkable
class MaskAware(Protocol):
    """An optimizer wrapper that takes part in sparse training, such as ``S2SAM``; all that ``sparse`` knows about
    ``sam`` but for the key of its perturbed weights."""

    def follow(self, model: nn.Module) -> object:
        """Attach hooks to a model."""
        ...

    def set_masks(self, masks: Mapping[nn.Parameter, Masked]) -> None:
        """Restore the true weights and apply these masks from now on; none when the mapping is empty."""
        ...

    def reset_state(self) -> None:
        """Clear all state, so that the next step is like the first."""
        ...

    def disabled(self) -> AbstractContextManager[None]:
        """Return a context in which the parameters hold the true weights."""
        ...


@runtime_checkable
class PackAware(MaskAware, Protocol):
    """A wrapper all of whose state by entry is in its base's state, so that weights may be packed with it."""

    def is_packable(self) -> bool:
        """Return whether its options allow that."""
        ...

    def rearranging(self) -> AbstractContextManager[None]:
        """Return a context in which weights and their state are packed or unpacked, alike."""
        ...


def chain(optimizer: Optimizer | None) -> Iterator[Optimizer]:
    """The optimizers of a chain, the outermost first."""
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "base", None)


def mask_aware(optimizer: Optimizer) -> Iterator[MaskAware]:
    """The wrappers in a chain that take part in sparse training, the outermost first."""
    for wrapper in chain(optimizer):
        if isinstance(wrapper, MaskAware):
            yield wrapper


def innermost(optimizer: Optimizer) -> Optimizer:
    """The optimizer under all wrappers: the one that gets plain gradients."""
    *_, last = chain(optimizer)
    return last


def unprepared(optimizer: Optimizer) -> Optimizer:
    """The optimizer that ``accelerator.prepare`` was given, whose own steps are the real ones: a call may wait, or be skipped.

    Accelerate's wrapper has no state or hooks of its own. Any other optimizer is itself.
    """
    while any(kind.__module__.partition(".")[0] == "accelerate" for kind in type(optimizer).__mro__):
        if not isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
            break
        optimizer = inner
    return optimizer


def check_hooks(optimizer: Optimizer) -> None:
    """Raise InputError for an optimizer whose steps take no hooks: a wrapper that did not call torch's constructor."""
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        inside = next((name for name, value in vars(optimizer).items() if isinstance(value, Optimizer)), None)
        cure = (
            f"give the optimizer in its '{inside}', before it is wrapped or prepared"
            if inside
            else "call its constructor"
        )
        raise InputError(
            f"{type(optimizer).__name__} is no complete torch.optim.Optimizer (its steps take no hooks): {cure}"
        )


def check_dense(optimizer: Optimizer) -> None:
    """Raise InputError for an optimizer that takes sparse gradients only, which have no entries outside a mask."""
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise InputError(
            "SparseAdam takes sparse gradients only: use torch.optim.Adam, with sparse=False in embeddings"
        )


def needs_closure(optimizer: Optimizer) -> bool:
    """True for an optimizer that evaluates the loss itself, several times a step, as LBFGS does."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty

"""An optimizer and the wrappers around it, each of which holds the next as its ``base``; and which optimizers will do."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
from torch.optim import Optimizer

from flatsparse.common.errors import InputError


def chain(optimizer: Optimizer | None) -> Iterator[Optimizer]:
    """The outermost first."""
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "base", None)


def innermost(optimizer: Optimizer) -> Optimizer:
    """The optimizer under all wrappers: the one that gets plain gradients."""
    *_, last = chain(optimizer)
    return last


def check_hooks(optimizer: Optimizer) -> None:
    """Raises InputError for an optimizer without hooks on its steps: a wrapper of others that torch has not made ready."""
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
    """Raises InputError for an optimizer that takes sparse gradients only, which have no place outside a mask."""
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise InputError(
            "SparseAdam takes sparse gradients only: use torch.optim.Adam, with sparse=False in embeddings"
        )


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether an optimizer computes the loss itself, several times a step, as LBFGS does."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty

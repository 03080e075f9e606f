"""An optimizer and the wrappers around it, each of which holds the next as its ``base``."""

from __future__ import annotations

from collections.abc import Iterator

from torch.optim import Optimizer


def chain(optimizer: Optimizer | None) -> Iterator[Optimizer]:
    """The outermost first."""
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "base", None)


def innermost(optimizer: Optimizer) -> Optimizer:
    """The optimizer under all wrappers: the one that gets plain gradients."""
    *_, last = chain(optimizer)
    return last

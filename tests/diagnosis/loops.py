"""Parts that the loops of these tests are made of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import flatsparse as fs
from tests.helpers import batch, mlp, sgd

STEPS = 8


class Watcher:
    """What a loop is watched by; ``findings`` are of all that it watched."""

    def __init__(self, *, on: bool = True) -> None:
        self.findings: list[fs.Finding] = []
        self._on = on

    @contextlib.contextmanager
    def __call__(self, *parts: Any) -> Iterator[None]:
        if not self._on:
            yield
            return
        with fs.watching(*parts) as findings:
            try:
                yield
            finally:
                self.findings = findings

    @property
    def names(self) -> set[str]:
        return {finding.name for finding in self.findings}


def parts(
    method: str | None = "rigl",
    kind: Any = fs.S2SAM,
    base: Callable[..., torch.optim.Optimizer] = sgd,
    model: nn.Module | None = None,
    steps: int = STEPS,
    **options: Any,
) -> tuple[nn.Module, Any, Any]:
    """A model, its optimizer and its sparse training: a method, or none; a sharpness-aware optimizer, or None."""
    model = mlp(norm=False) if model is None else model
    optimizer: Any = base(model.parameters())
    if kind is not None:
        optimizer = kind(optimizer, rho=0.05)
    if method is None:
        return model, optimizer.follow(model) if kind is not None else optimizer, None
    options = {"every": 3, **options} if method in ("rigl", "set", "gmp") else options
    return model, optimizer, fs.sparsify(model, optimizer, method, sparsity=0.6, steps=steps, **options)


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    inputs, targets = batch(step)
    return F.cross_entropy(model(inputs), targets)


def backward(model: nn.Module, step: int) -> None:
    loss_of(model, step).backward()


def train(model: nn.Module, optimizer: Any, steps: int = STEPS, start: int = 0) -> None:
    for step in range(start, start + steps):
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()


def evaluate(model: nn.Module, step: int = 99) -> float:
    """An evaluation as it should be."""
    model.eval()
    with torch.no_grad():
        loss = float(loss_of(model, step))
    model.train()
    return loss


def closure_of(model: nn.Module, optimizer: Any, step: int) -> Callable[[], torch.Tensor]:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        return loss

    return closure

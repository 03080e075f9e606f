"""Tiny models and small tools that the tests share."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flatsparse as fs


def sgd(parameters: Any, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(
        parameters, **{"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2, **options}
    )


def adamw(parameters: Any, **options: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, **{"lr": 0.01, "weight_decay": 1e-2, **options})


bases = pytest.mark.parametrize("base", [sgd, adamw])


def mlp(seed: int = 0, *, norm: bool = True, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    # No bias before a batch norm: its gradient is rounding noise, which Adam would blow up.
    first = [nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16)] if norm else [nn.Linear(6, 16)]
    return nn.Sequential(*first, nn.ReLU(), nn.Linear(16, 3)).to(dtype)


def conv_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    body = [nn.Conv2d(1, 8, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(nn.Unflatten(1, (1, 2, 3)), *body)


def batch(step: int = 0, size: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1000 + step)
    inputs = torch.randn(size, 6, generator=source, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(3, (size,), generator=source)


def loss_at(model: nn.Module, step: int = 0) -> Tensor:
    inputs, targets = batch(step, dtype=next(model.parameters()).dtype)
    return F.cross_entropy(model(inputs), targets)


def backward(model: nn.Module, step: int = 0) -> Tensor:
    loss = loss_at(model, step)
    loss.backward()
    return loss.detach()


def train_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()


def s2sam(model: nn.Module, base: Any = sgd, **options: Any) -> fs.S2SAM:
    return fs.S2SAM(base(model.parameters()), **options).follow(model)


def values(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]


def weights(model: nn.Module) -> list[Tensor]:
    return values(model.parameters())


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def norm(tensors: Iterable[Tensor]) -> float:
    return torch.cat([t.detach().double().flatten() for t in tensors]).norm().item()


def shift(model: nn.Module, before: list[Tensor]) -> list[Tensor]:
    """How far the parameters are from what they were."""
    return [p.detach() - w for p, w in zip(model.parameters(), before, strict=True)]


def close(length: float) -> Any:
    """A norm up to what float32 loses in the difference of two weights."""
    return pytest.approx(length, rel=1e-4)


def saved(state: Any) -> Any:
    """What comes back from a file, read as files from strangers should be."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a: Any, b: Any) -> bool:
    """Whether two values, nested or not, are the same bit for bit; 0 and -0 differ, NaN equals itself."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        alike = a.dtype == b.dtype and a.shape == b.shape
        return alike and torch.equal(*(t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b

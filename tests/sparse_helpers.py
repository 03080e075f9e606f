"""A tiny net, its batches and the looks at it that the tests of masks and methods share."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flatsparse as fs
from flatsparse.common.optimizers import innermost


def tiny_net(seed: int = 0) -> nn.Sequential:
    """Convolutions, batch norm and a linear layer on 8x8 images: 646 prunable weights in three layers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 5),
        )


def batch(step: int, size: int = 8) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1000 + step)
    return torch.randn(size, 1, 8, 8, generator=source), torch.randint(0, 5, (size,), generator=source)


def loss_at(model: nn.Module, step: int) -> Tensor:
    inputs, targets = batch(step)
    return F.cross_entropy(model(inputs), targets)


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """The user's loop, once: with a closure for SAM, without for all others."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_at(model, step)
        loss.backward()
        return loss

    if isinstance(optimizer, fs.SAM):
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    start: int = 0,
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """Steps ``start + 1`` to ``steps``, with a look after each."""
    for step in range(start + 1, steps + 1):
        take_step(model, optimizer, step)
        after(step)


def masked(model: nn.Module, training: fs.SparseTraining) -> dict[str, tuple[nn.Parameter, Tensor]]:
    """Each prunable weight with its mask."""
    parameters = dict(model.named_parameters())
    return {name: (parameters[name], mask) for name, mask in training.masks.items()}


def is_plus_zero(values: Tensor) -> bool:
    return bool((values == 0).all()) and not bool(values.signbit().any())


def state_of(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> dict[str, Tensor]:
    """The optimizer's state that has an entry for each weight."""
    entries = innermost(optimizer).state.get(weight, {}).items()
    return {key: value for key, value in entries if isinstance(value, Tensor) and value.shape == weight.shape}


def assert_zero_outside(
    model: nn.Module, training: fs.SparseTraining, optimizer: torch.optim.Optimizer, exempt: tuple[str, ...] = ()
) -> None:
    """Weights and optimizer state are +0 outside the masks; ``exempt`` names state that need not be."""
    for name, (weight, mask) in masked(model, training).items():
        assert is_plus_zero(weight[~mask]), f"{name} is not zero outside its mask"
        for key, value in state_of(optimizer, weight).items():
            assert key in exempt or is_plus_zero(value[~mask]), f"{key} of {name} is not zero outside the mask"


def copied(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in values.items()}


def same(one: Any, other: Any) -> bool:
    """Whether two nests of tensors, such as state dicts, agree in every bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def rewired_plainly(weight: Tensor, grad: Tensor, mask: Tensor, fraction: float) -> Tensor:
    """RigL's update by sorting: keep the largest live weights, grow the largest gradients among all the others."""
    weights, grads, live = (t.flatten().tolist() for t in (weight, grad, mask))
    moved = int(fraction * sum(live))
    by_weight = sorted((i for i in range(len(live)) if live[i]), key=lambda i: (-abs(weights[i]), i))
    kept = set(by_weight[: len(by_weight) - moved])
    by_gradient = sorted((i for i in range(len(live)) if i not in kept), key=lambda i: (-abs(grads[i]), i))
    new = kept | set(by_gradient[:moved])
    return torch.tensor([i in new for i in range(len(live))]).view(mask.shape)


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2, **options})


def adamw(model, **options):
    return torch.optim.AdamW(model.parameters(), **{"lr": 0.01, "weight_decay": 0.1, **options})


BASES = pytest.mark.parametrize("base", [sgd, adamw])


def rigl(model, optimizer, **options):
    return fs.sparsify(model, optimizer, "rigl", **{"sparsity": 0.8, "steps": 20, "every": 3, **options})


def seen(model, optimizer, training):
    """Everything a step may change."""
    parts = model.state_dict(), optimizer.state_dict(), training.state_dict()
    kept = io.BytesIO()
    torch.save(parts, kept)
    kept.seek(0)
    return torch.load(kept, weights_only=True)

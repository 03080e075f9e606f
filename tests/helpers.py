"""Tiny models, their batches and small tools that the tests share.

Two families: ``mlp`` and ``conv_net`` read ``batch`` (vectors of 6), ``tiny_net`` reads ``image_batch`` (8x8 images).
An optimizer is made from parameters, as torch has it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flatsparse as fs
from flatsparse.common.optimizers import innermost
from flatsparse.sam.stalesam import StaleSAM

# One Vision Transformer stands for all where every network is tried.
IMAGE_MODELS = sorted(set(fs.models.MODELS) - {"vit_tiny", "vit_small", "vit_tiny_64"})


def image_size(model: str) -> int:
    """Return the height and width of small images that a network of ours takes, and of none but these if it is a ViT."""
    size = fs.models.IMAGES[model][1]
    return size if model.startswith("vit") else min(32, size)


class Joined(nn.Module):
    """A model of source and target that reads both from one tensor, of ``length`` source tokens and then the target's."""

    def __init__(self, model: nn.Module, length: int) -> None:
        super().__init__()
        self.model, self.length = model, length

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens[:, : self.length], tokens[:, self.length :])


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
    """Return if two values, nested or not, are the same bit for bit: 0 and -0 differ, NaN equals itself, keys are in order."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        alike = a.dtype == b.dtype and a.shape == b.shape
        return alike and torch.equal(*(t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def same_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Return if two files hold the same tensors bit for bit; safetensors gives them back in any order."""
    return same(dict(sorted(a.items())), dict(sorted(b.items())))


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


def image_batch(step: int, size: int = 8) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1000 + step)
    return torch.randn(size, 1, 8, 8, generator=source), torch.randint(0, 5, (size,), generator=source)


def image_loss(model: nn.Module, step: int) -> Tensor:
    inputs, targets = image_batch(step)
    return F.cross_entropy(model(inputs), targets)


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """The user's loop on images, once: with a closure for SAM, a part of the batch for StaleSAM, without for all others."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = image_loss(model, step)
        loss.backward()
        return loss

    if isinstance(optimizer, fs.SAM):
        optimizer.step(closure)
    elif isinstance(optimizer, StaleSAM):
        closure()
        inputs, targets = image_batch(step)
        optimizer.step(part=lambda: F.cross_entropy(model(inputs[:2]), targets[:2]).backward())
    else:
        closure()
        optimizer.step()


def train_on_images(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    start: int = 0,
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """Take the steps ``start + 1`` to ``steps`` on images, with a look after each."""
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


def rewired_plainly(weight: Tensor, grad: Tensor, mask: Tensor, fraction: float) -> Tensor:
    """RigL's update by sorting: keep the largest live weights, grow the largest gradients among all the others."""
    weights, grads, live = (t.flatten().tolist() for t in (weight, grad, mask))
    moved = int(fraction * sum(live))
    by_weight = sorted((i for i in range(len(live)) if live[i]), key=lambda i: (-abs(weights[i]), i))
    kept = set(by_weight[: len(by_weight) - moved])
    by_gradient = sorted((i for i in range(len(live)) if i not in kept), key=lambda i: (-abs(grads[i]), i))
    new = kept | set(by_gradient[:moved])
    return torch.tensor([i in new for i in range(len(live))]).view(mask.shape)


def rigl(model: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> fs.SparseTraining:
    return fs.sparsify(model, optimizer, "rigl", **{"sparsity": 0.8, "steps": 20, "every": 3, **options})


def seen(model: nn.Module, optimizer: torch.optim.Optimizer, training: fs.SparseTraining) -> Any:
    """Everything a step may change, as a file would have it."""
    return saved((model.state_dict(), optimizer.state_dict(), training.state_dict()))

"""The cases that steps are measured on: a network, its batches and its loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsparse.models import causal_transformer, digitnet, resnet32, resnet50

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A network and its batches, which are random, as their content does not affect the cost.

    Attributes:
        title: what it is, in a few words.
        model: makes the network.
        batch: makes the inputs and targets of a step.
        targets: upper limits for variants' implied ratios; empty where nothing is promised.
    """

    title: str
    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]
    targets: Mapping[str, float] = field(default_factory=dict)


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy over the last dimension, of images or of tokens."""
    return F.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1))


def images(count: int, size: int, classes: int, depth: int = 3) -> Callable[[torch.Generator], Batch]:
    """Batches of square images with a number of channels."""

    def batch(source: torch.Generator) -> Batch:
        return torch.randn(count, depth, size, size, generator=source), torch.randint(
            classes, (count,), generator=source
        )

    return batch


def tokens(count: int, length: int, vocabulary: int) -> Callable[[torch.Generator], Batch]:
    """Batches of token sequences, each with the token after it as its target."""

    def batch(source: torch.Generator) -> Batch:
        text = torch.randint(vocabulary, (count, length + 1), generator=source)
        return text[:, :-1], text[:, 1:]

    return batch


def vectors(count: int, width: int, classes: int) -> Callable[[torch.Generator], Batch]:
    """Batches of vectors."""

    def batch(source: torch.Generator) -> Batch:
        return torch.randn(count, width, generator=source), torch.randint(classes, (count,), generator=source)

    return batch


def mlp(*widths: int) -> nn.Module:
    """Linear layers from width to width, with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


CASES = {
    "resnet32": Case(
        "ResNet-32 (2×), 64 images of 32×32", resnet32, images(64, 32, 10), {"s2sam": 1.01, "s2sam kernel": 1.01}
    ),
    "resnet50": Case(
        "ResNet-50, 8 images of 64×64", resnet50, images(8, 64, 1000), {"s2sam": 1.10, "s2sam kernel": 1.04}
    ),
    "transformer": Case(
        "30M-parameter Transformer, 2 sequences of 64 tokens",
        causal_transformer,
        tokens(2, 64, 10_752),
        {"s2sam": 1.10, "s2sam kernel": 1.04},
    ),
    "mlp": Case(
        "MLP 1024-2048-2048-2048-100, 8 vectors",
        lambda: mlp(1024, 2048, 2048, 2048, 100),
        vectors(8, 1024, 100),
        {"s2sam": 1.15, "s2sam kernel": 1.06},
    ),
}

# With --quick: to check in seconds that the command works.
_TINY_IMAGES = Case("digitnet, 4 images of 8×8", lambda: digitnet(in_channels=3), images(4, 8, 10))
QUICK_CASES = {
    "resnet32": _TINY_IMAGES,
    "resnet50": _TINY_IMAGES,
    "transformer": Case(
        "a tiny Transformer, 2 sequences of 8 tokens",
        lambda: causal_transformer(vocabulary=64, width=32, depth=1, heads=2, length=8),
        tokens(2, 8, 64),
    ),
    "mlp": Case("a tiny MLP, 8 vectors", lambda: mlp(16, 32, 10), vectors(8, 16, 10)),
}

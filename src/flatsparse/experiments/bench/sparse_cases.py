"""The layers and networks that the speed of sparsity is measured on."""

from __future__ import annotations

import fnmatch
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsparse.common.errors import unknown
from flatsparse.models import resnet20
from flatsparse.models.resnet_cifar import ResNetCIFAR

Kind = Literal["inference", "training"]
KINDS: tuple[Kind, ...] = ("inference", "training")
Sized = tuple[nn.Module, tuple[int, ...]]


@dataclass(frozen=True)
class SpeedCase:
    """A layer or a network.

    Attributes:
        title: what it is, in a few words.
        model: makes it.
        inputs: the shape of its inputs, the batch first.
        narrower: makes a layer of a share of the weights, with the shape of its inputs; None for a network, which loses channels.
    """

    title: str
    model: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    narrower: Callable[[float], Sized] | None = None

    @property
    def is_layer(self) -> bool:
        """Whether its training step is forward and backward alone: gradients of inputs and weights, and no optimizer."""
        return self.narrower is not None

    @property
    def layouts(self) -> tuple[torch.memory_format, ...]:
        """The layouts that a dense form may take; the faster counts."""
        images = len(self.inputs) == 4
        return (torch.contiguous_format, torch.channels_last) if images else (torch.contiguous_format,)


class FeedForward(nn.Module):
    """The feed-forward half of a Transformer's block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def mlp(*widths: int) -> nn.Module:
    """Linear layers of these widths, with ReLU between them."""
    layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*[module for pair in layers for module in pair][:-1])


def linear(inputs: int, outputs: int, batch: int) -> SpeedCase:
    """A linear layer; the narrower one has the same share of its inputs and of its outputs, as between narrower layers."""

    def narrower(share: float) -> Sized:
        less, fewer = _narrow(inputs, share), _narrow(outputs, share)
        return nn.Linear(less, fewer), (batch, less)

    title = f"linear {inputs} → {outputs}, batch {batch}"
    return SpeedCase(title, lambda: nn.Linear(inputs, outputs), (batch, inputs), narrower)


def convolutions(channels: int, size: int, batch: int) -> SpeedCase:
    """Two 3×3 convolutions as in a residual block; the narrower ones have fewer channels throughout."""

    def make(width: int) -> nn.Module:
        pairs = [(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()) for _ in "ab"]
        return nn.Sequential(*[module for pair in pairs for module in pair])

    def narrower(share: float) -> Sized:
        width = _narrow(channels, share)
        return make(width), (batch, width, size, size)

    title = f"two 3×3 convolutions of {channels} channels with batch norm and ReLU, {batch} images of {size}×{size}"
    return SpeedCase(title, lambda: make(channels), (batch, channels, size, size), narrower)


def _narrow(width: int, share: float) -> int:
    """A width with whose square a share of the weights is left."""
    return max(1, round(width * math.sqrt(share)))


def _feed_forward(width: int, tokens: int) -> SpeedCase:
    title = f"two feed-forward blocks of {width}, {tokens} tokens"
    return SpeedCase(title, lambda: nn.Sequential(FeedForward(width), FeedForward(width)), (tokens, width))


CASES: dict[str, SpeedCase] = {
    **{
        f"linear-{inputs}x{outputs}-b{batch}": linear(inputs, outputs, batch)
        for inputs, outputs in ((512, 512), (1024, 1024), (4096, 1024), (1024, 4096))
        for batch in (128, 512)
    },
    **{f"conv-{channels}": convolutions(channels, size, 64) for channels, size in ((16, 32), (32, 16), (64, 8))},
    "mlp-512": SpeedCase("MLP 784-512-512-10, batch 128", lambda: mlp(784, 512, 512, 10), (128, 784)),
    "mlp-1024": SpeedCase("MLP 784-3×1024-10, batch 128", lambda: mlp(784, 1024, 1024, 1024, 10), (128, 784)),
    "feedforward-512": _feed_forward(512, 512),
    "resnet20": SpeedCase("ResNet-20, 64 images of 32×32", resnet20, (64, 3, 32, 32)),
    "resnet32": SpeedCase(
        "ResNet-32, 64 images of 32×32", functools.partial(ResNetCIFAR, 5, 1, 10, 3), (64, 3, 32, 32)
    ),
}

# With --quick: to check in seconds that the command works.
QUICK_CASES: dict[str, SpeedCase] = {
    "linear-64x64-b8": linear(64, 64, 8),
    "conv-8": convolutions(8, 8, 2),
    "mlp-32": SpeedCase("MLP 16-32-32-10, batch 4", lambda: mlp(16, 32, 32, 10), (4, 16)),
    "feedforward-16": _feed_forward(16, 4),
    "resnet8": SpeedCase("ResNet-8, 2 images of 8×8", functools.partial(ResNetCIFAR, 1, 1, 10, 3), (2, 3, 8, 8)),
}


def chosen(patterns: Sequence[str], cases: Iterable[str]) -> list[str]:
    """Return the names of cases that any of the patterns fits, in their order; all without a pattern.

    Raises: InputError for a pattern that fits none.

    >>> chosen(["mlp*", "conv-16"], CASES)
    ['conv-16', 'mlp-512', 'mlp-1024']
    """
    for pattern in patterns:
        if not fnmatch.filter(cases, pattern):
            raise unknown("case", pattern, cases)
    return [name for name in cases if not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]

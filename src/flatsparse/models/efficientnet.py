"""EfficientNet-B0 (Tan & Le 2019, Table 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Expansion, channels, blocks, stride and kernel size.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
DROPOUT = STOCHASTIC_DEPTH = 0.2  # of the classifier's inputs, and of the last block (Tan & Le 2019, sec. 5.2)


class SqueezeExcitation(nn.Module):
    """Channels scaled by a net of their means, with one hidden layer of ``hidden`` channels (Hu et al. 2018)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.activation = nn.SiLU()
        self.expand = nn.Conv2d(hidden, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.expand(self.activation(self.reduce(means))))


class MBConv(nn.Module):
    """A mobile inverted bottleneck (Sandler et al. 2018) with squeeze-and-excitation and SiLU.

    The hidden layer of squeeze-and-excitation has a quarter of the block's input channels. Where input and output have
    one shape, the input is added, and in training the rest is left out for a sample with probability ``drop``
    (stochastic depth: Huang et al. 2016).
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, size: int, drop: float) -> None:
        super().__init__()
        width = expansion * inputs
        self.drop = drop
        self.expand = _unit(inputs, width, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _unit(width, width, size, stride, groups=width)
        self.excitation = SqueezeExcitation(width, max(1, inputs // 4))
        self.conv = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn = _norm(outputs)
        self.shortcut = nn.Identity() if stride == 1 and inputs == outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(self.excitation(self.depthwise(self.expand(x)))))
        if self.shortcut is None:
            return y
        if self.training and self.drop > 0:
            kept = torch.rand(len(y), 1, 1, 1, device=y.device) >= self.drop
            y = y * kept / (1 - self.drop)
        return y + self.shortcut(x)


class EfficientNet(nn.Module):
    """A stem, seven stages of MBConv blocks, a 1x1 convolution to 1280 channels and a linear layer.

    Input (N, in_channels, H, W), 224x224 in the paper; output (N, num_classes). Weights start as in the authors' released
    code. It pads an image that is halved at the right and the bottom only, where this pads all sides, as is usual in
    torch.
    """

    def __init__(self, num_classes: int, in_channels: int, dropout: float, stochastic_depth: float) -> None:
        super().__init__()
        self.stem = _unit(in_channels, 32, 3, stride=2)
        blocks: list[nn.Module] = []
        inputs, total = 32, sum(count for _, _, count, _, _ in STAGES)
        for expansion, outputs, count, stride, size in STAGES:
            for index in range(count):
                first = stride if index == 0 else 1
                drop = stochastic_depth * len(blocks) / total
                blocks.append(MBConv(inputs, outputs, expansion, first, size, drop))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = _unit(inputs, 1280, 1)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(1280, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _initialize(module)
        nn.init.uniform_(self.linear.weight, -(num_classes**-0.5), num_classes**-0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.linear(self.dropout(x.mean((2, 3))))


def _unit(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, _norm(outputs), nn.SiLU())


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _initialize(conv: nn.Conv2d) -> None:
    """Draw weights of variance 2 / fan-out; the outputs that one input of a depthwise convolution reaches are of one channel."""
    fan_out = math.prod(conv.kernel_size) * conv.out_channels // conv.groups
    nn.init.normal_(conv.weight, std=(2 / fan_out) ** 0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def efficientnet_b0(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    dropout: float = DROPOUT,
    stochastic_depth: float = STOCHASTIC_DEPTH,
) -> EfficientNet:
    """EfficientNet-B0: 5,288,548 parameters for a thousand classes, 0.39 billion multiply-adds at 224x224.

    Args:
        num_classes, in_channels: of the data.
        dropout: probability of zeroing an input of the classifier.
        stochastic_depth: probability, reached by linear growth after the last block, of leaving a block out for a sample.
    """
    return EfficientNet(num_classes, in_channels, dropout, stochastic_depth)

"""MobileNet-V2 for 32x32 images (Sandler et al. 2018, Table 2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

# Expansion, channels, blocks and stride; the usual change for small images is stride 1 in the stem and the second stage.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """A 1x1 convolution that widens, a depthwise 3x3 one and a 1x1 one that narrows, without an activation after it.

    The shortcut around blocks of stride 1 is a 1x1 convolution with batch norm where the width changes, if ``projected``.
    Otherwise there is none, as in the paper, and a block of expansion 1 has no first convolution.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, projected: bool) -> None:
        super().__init__()
        width = expansion * inputs
        self.expand: nn.Module = nn.Identity()
        if expansion > 1 or projected:
            self.expand = _unit(inputs, width, 1)
        self.depthwise = _unit(width, width, 3, stride, groups=width)
        self.conv = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module | None = None
        if stride == 1 and inputs == outputs:
            self.shortcut = nn.Identity()
        elif stride == 1 and projected:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(self.depthwise(self.expand(x))))
        return y if self.shortcut is None else y + self.shortcut(x)


class MobileNetCIFAR(nn.Module):
    """A stem, seven stages of inverted residuals and a 1x1 convolution to 1280 channels.

    Input (N, in_channels, H, W), 32x32 in the papers; output (N, num_classes).
    """

    def __init__(self, num_classes: int, in_channels: int, projected: bool) -> None:
        super().__init__()
        self.stem = _unit(in_channels, 32, 3)
        blocks, inputs = [], 32
        for expansion, outputs, count, stride in STAGES:
            for index in range(count):
                first = stride if index == 0 else 1
                blocks.append(InvertedResidual(inputs, outputs, expansion, first, projected))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = _unit(inputs, 1280, 1)
        self.linear = nn.Linear(1280, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _unit(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


def mobilenet_v2(num_classes: int = 10, in_channels: int = 3, *, projected: bool = True) -> MobileNetCIFAR:
    """MobileNet-V2 of width 1.0 for small images: 2,296,922 parameters for ten classes.

    The papers that train it on CIFAR do not say which variant they mean; that of about 2.30M, which Ji et al. (2024) seem to
    use, has 1x1 convolutions in the shortcuts where the width changes. ``projected=False`` is the form for ImageNet with
    the same strides: 2,236,682.
    """
    return MobileNetCIFAR(num_classes, in_channels, projected)

"""Residual networks for 32x32 images (He et al. 2016, sec. 4.2), in the form that GraSP (Wang et al. 2020) uses."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution with batch norm where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNetCIFAR(nn.Module):
    """Three stages of basic blocks, at 16, 32 and 64 channels times ``widen``.

    Input (N, in_channels, H, W), 32x32 in the papers; output (N, num_classes).
    """

    def __init__(self, blocks: int, widen: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        widths = [16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages = []
        for index, width in enumerate(widths):
            inputs = widths[max(0, index - 1)]
            first = BasicBlock(inputs, width, stride=1 if index == 0 else 2)
            stages.append(nn.Sequential(first, *(BasicBlock(width, width, stride=1) for _ in range(blocks - 1))))
        self.stage1, self.stage2, self.stage3 = stages
        self.linear = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def resnet20(num_classes: int = 10, in_channels: int = 3) -> ResNetCIFAR:
    """ResNet-20, one times wide (16-32-64 channels, three blocks a stage)."""
    return ResNetCIFAR(blocks=3, widen=1, num_classes=num_classes, in_channels=in_channels)


def resnet32(num_classes: int = 10, in_channels: int = 3) -> ResNetCIFAR:
    """ResNet-32, twice as wide as He's (32-64-128 channels, five blocks a stage): 1,860,522 parameters for ten classes.

    The net of Table 1 of Ji et al. (2024), which follows GraSP.
    """
    return ResNetCIFAR(blocks=5, widen=2, num_classes=num_classes, in_channels=in_channels)

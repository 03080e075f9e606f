"""Residual networks for ImageNet (He et al. 2016, Table 1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from flatsparse.models.resnet_cifar import BasicBlock


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, four times as wide at the end, and a shortcut as in ``BasicBlock``.

    The 3x3 convolution has the stride, as in torchvision (often called v1.5), not the first one as in the paper.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNetImageNet(nn.Module):
    """A 7x7 stem and four stages of blocks, at 64, 128, 256 and 512 channels.

    Input (N, in_channels, H, W), 224x224 in the paper; output (N, num_classes).
    """

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, ...], num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        expansion = getattr(block, "expansion", 1)
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        stages, inputs = [], 64
        for index, count in enumerate(blocks):
            width = 64 * 2**index
            outputs = expansion * width
            first = block(inputs, width, 1 if index == 0 else 2)
            stages.append(nn.Sequential(first, *(block(outputs, width, 1) for _ in range(count - 1))))
            inputs = outputs
        self.stage1, self.stage2, self.stage3, self.stage4 = stages
        self.linear = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        return self.linear(x.mean(dim=(2, 3)))


def resnet18(num_classes: int = 1000, in_channels: int = 3) -> ResNetImageNet:
    """ResNet-18: 11,689,512 parameters for a thousand classes."""
    return ResNetImageNet(BasicBlock, (2, 2, 2, 2), num_classes, in_channels)


def resnet34(num_classes: int = 1000, in_channels: int = 3) -> ResNetImageNet:
    """ResNet-34: 21,797,672 parameters for a thousand classes."""
    return ResNetImageNet(BasicBlock, (3, 4, 6, 3), num_classes, in_channels)


def resnet50(num_classes: int = 1000, in_channels: int = 3) -> ResNetImageNet:
    """ResNet-50: 25,557,032 parameters for a thousand classes, 25,502,912 of them prunable."""
    return ResNetImageNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels)

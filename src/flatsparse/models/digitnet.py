"""A small convolutional net for 8x8 digits, so that a demonstration trains in seconds."""

from __future__ import annotations

from torch import nn


def digitnet(num_classes: int = 10, in_channels: int = 1, width: int = 32) -> nn.Sequential:
    """Three 3x3 convolutions with batch norm, average pooling and a linear layer (ours).

    Input (N, in_channels, 8, 8), output (N, num_classes).
    """
    return nn.Sequential(
        *_block(in_channels, width),
        *_block(width, 2 * width, stride=2),
        *_block(2 * width, 2 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, num_classes),
    )


def _block(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU()

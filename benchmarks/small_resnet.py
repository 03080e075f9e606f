"""A small residual net for CIFAR-10 on a CPU: ResNet-20's stages at half its resolution, with one block each."""

from __future__ import annotations

from torch import nn

from flatsparse.models.resnet_cifar import ResNetCIFAR


def resnet8(num_classes: int = 10, in_channels: int = 3) -> ResNetCIFAR:
    """ResNet-8 whose first convolution has stride 2 (16-32-64 channels): 78,042 parameters for ten classes."""
    net = ResNetCIFAR(blocks=1, widen=1, num_classes=num_classes, in_channels=in_channels)
    net.conv1 = nn.Conv2d(in_channels, 16, 3, stride=2, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return net

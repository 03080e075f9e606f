"""Small networks for devices, for images of 32×32: of the sizes that keyword spotting, MobileNet-V2 and sensors have there."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from flatsparse.models.mobilenet_cifar import MobileNetCIFAR


def _unit(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def kws_cnn(num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
    """Four convolutions of 3×3 to 64 channels, three of them at 8×8 (after the small nets of Zhang et al. 2017, "Hello Edge")."""
    return nn.Sequential(
        OrderedDict(
            stem=_unit(in_channels, 32, 3, stride=2),
            second=_unit(32, 64, 3, stride=2),
            third=_unit(64, 64, 3),
            fourth=_unit(64, 64, 3),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(64, num_classes),
        )
    )


def mlp(num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
    """Three linear layers, of 128, 128 and as many outputs as classes, on all values of a 32×32 image."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * 32 * 32, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )


def mobilenet(num_classes: int = 10, in_channels: int = 3) -> MobileNetCIFAR:
    """MobileNet-V2 with the paper's strides of 2 in the stem and the second stage, for speed: maps of 2×2 at the end."""
    net = MobileNetCIFAR(num_classes, in_channels, projected=False)
    net.stem[0].stride = net.blocks[1].depthwise[0].stride = (2, 2)
    return net

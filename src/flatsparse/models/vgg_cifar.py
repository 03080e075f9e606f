"""VGG-19 for 32x32 images (Simonyan & Zisserman 2015, column E), in the form that GraSP (Wang et al. 2020) uses."""

from __future__ import annotations

from torch import nn

STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels and convolutions, with a pool between two stages


def vgg19(num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
    """Sixteen 3x3 convolutions with batch norm, four max-pools and one linear layer: 20,035,018 parameters for ten classes.

    Convolutions have no bias. Where GraSP averages the last 2x2, this averages whatever is left, so that images of other
    sizes fit. Input (N, in_channels, H, W), output (N, num_classes).
    """
    layers: list[nn.Module] = []
    inputs = in_channels
    for width, count in STAGES:
        if layers:
            layers.append(nn.MaxPool2d(2))
        for _ in range(count):
            conv = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
    linear = nn.Linear(inputs, num_classes)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)

"""Networks of the papers, by the names of ``--model``. Each is a function ``f(num_classes, in_channels)``."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from flatsparse.models.causal_transformer import causal_transformer
from flatsparse.models.digitnet import digitnet
from flatsparse.models.mobilenet_cifar import mobilenet_v2
from flatsparse.models.resnet_cifar import resnet20, resnet32
from flatsparse.models.resnet_imagenet import resnet18, resnet34, resnet50
from flatsparse.models.vgg_cifar import vgg19

MODELS: dict[str, Callable[..., nn.Module]] = {
    "digitnet": digitnet,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "vgg19": vgg19,
    "mobilenet_v2": mobilenet_v2,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
}

# Input images in the papers: channels, height and width.
IMAGES = {
    **dict.fromkeys(("resnet20", "resnet32", "vgg19", "mobilenet_v2"), (3, 32, 32)),
    **dict.fromkeys(("resnet18", "resnet34", "resnet50"), (3, 224, 224)),
    "digitnet": (1, 8, 8),
}

__all__ = [
    "IMAGES",
    "MODELS",
    "causal_transformer",
    "digitnet",
    "mobilenet_v2",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet50",
    "vgg19",
]

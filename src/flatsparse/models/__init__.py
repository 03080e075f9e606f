"""Networks of the papers by name. Those of images are functions ``f(num_classes, in_channels)``."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from flatsparse.models.causal_transformer import causal_transformer
from flatsparse.models.digitnet import digitnet
from flatsparse.models.efficientnet import efficientnet_b0
from flatsparse.models.gpt import gpt2, gpt2_tiny
from flatsparse.models.mobilenet_cifar import mobilenet_v2
from flatsparse.models.resnet_cifar import resnet20, resnet32
from flatsparse.models.resnet_imagenet import resnet18, resnet34, resnet50
from flatsparse.models.transformer import transformer_base, transformer_small, transformer_tiny
from flatsparse.models.vgg_cifar import vgg19
from flatsparse.models.vit import vit_small, vit_tiny, vit_tiny_32, vit_tiny_64

MODELS: dict[str, Callable[..., nn.Module]] = {
    "digitnet": digitnet,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "vgg19": vgg19,
    "mobilenet_v2": mobilenet_v2,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "efficientnet_b0": efficientnet_b0,
    "vit_tiny": vit_tiny,
    "vit_small": vit_small,
    "vit_tiny_32": vit_tiny_32,
    "vit_tiny_64": vit_tiny_64,
}

# Of a source and a target: ``f(vocabulary)``, called with token numbers (N, source length) and (N, target length).
TRANSLATION_MODELS: dict[str, Callable[..., nn.Module]] = {
    "transformer_base": transformer_base,
    "transformer_small": transformer_small,
    "transformer_tiny": transformer_tiny,
}

# Of a text: ``f(vocabulary, length)``, called with token numbers (N, length).
LANGUAGE_MODELS: dict[str, Callable[..., nn.Module]] = {"gpt2": gpt2, "gpt2_tiny": gpt2_tiny}

# Input images in the papers: channels, height and width.
IMAGES = {
    **dict.fromkeys(("resnet20", "resnet32", "vgg19", "mobilenet_v2"), (3, 32, 32)),
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "efficientnet_b0", "vit_tiny", "vit_small"), (3, 224, 224)),
    "vit_tiny_32": (3, 32, 32),
    "vit_tiny_64": (3, 64, 64),
    "digitnet": (1, 8, 8),
}

__all__ = [
    "IMAGES",
    "LANGUAGE_MODELS",
    "MODELS",
    "TRANSLATION_MODELS",
    "causal_transformer",
    "digitnet",
    "efficientnet_b0",
    "gpt2",
    "gpt2_tiny",
    "mobilenet_v2",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet50",
    "transformer_base",
    "transformer_small",
    "transformer_tiny",
    "vgg19",
    "vit_small",
    "vit_tiny",
    "vit_tiny_32",
    "vit_tiny_64",
]

"""Networks of the papers, by the names that ``--model`` takes. Each is ``f(num_classes, in_channels)``."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from flatsparse.models.digitnet import digitnet
from flatsparse.models.resnet_cifar import resnet20, resnet32

MODELS: dict[str, Callable[..., nn.Module]] = {"digitnet": digitnet, "resnet20": resnet20, "resnet32": resnet32}

__all__ = ["MODELS", "digitnet", "resnet20", "resnet32"]

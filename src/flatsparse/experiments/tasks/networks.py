"""Networks for images by the name that ``--model`` takes: ours, a user's, and those of timm and torchvision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from flatsparse.common.errors import InputError, first_line, unknown
from flatsparse.common.plugins import errors_of, function_of
from flatsparse.models import LANGUAGE_MODELS, MODELS, TRANSLATION_MODELS

TEXT_MODELS = {**TRANSLATION_MODELS, **LANGUAGE_MODELS}
LIBRARIES = ("timm", "torchvision")


def network(name: str, classes: int, channels: int) -> nn.Module:
    """Return a new network.

    Args:
        name: one of ``MODELS``; ``path/to/file.py:function``, a function of the number of classes, whose code is run; or
            ``timm:NAME`` or ``torchvision:NAME``, without trained weights.
        channels: of the images; a user's function decides for itself.

    Raises: InputError for an unknown name, and for a function that fails or gives no module.
    """
    if name in MODELS:
        return MODELS[name](num_classes=classes, in_channels=channels)
    make = _maker(name)
    with errors_of(Path(name.rpartition(":")[0])) if ".py:" in name else contextlib.nullcontext():
        model = make(classes) if ".py:" in name else make(classes, channels)
    return checked_module(model, f"--model {name}")


def checked_module(made: Any, subject: str) -> nn.Module:
    """Return what a user's function made. Raises InputError when it is no network, or one whose weights have no shape yet."""
    if not isinstance(made, nn.Module):
        raise InputError(f"{subject} is a {type(made).__name__}: return a torch.nn.Module")
    if any(is_lazy(p) for p in made.parameters()):
        raise InputError(f"{subject} has weights without a shape, of a lazy layer: call it once in the function")
    return made


def check_network(name: str) -> None:
    """Raise InputError for a network that cannot be had; a user's file is run."""
    if name not in MODELS and name not in TEXT_MODELS:
        _maker(name)


def _maker(name: str) -> Callable[..., Any]:
    """Return the function that makes a network that is not ours."""
    library, _, inner = name.partition(":")
    if ".py:" in name:
        return function_of(name, "model")
    if library not in LIBRARIES or not inner:
        raise unknown("model", name, [*MODELS, *TEXT_MODELS, *(f"{library}:NAME" for library in LIBRARIES)])
    try:
        return _of_timm(inner) if library == "timm" else _of_torchvision(inner)
    except InputError:
        raise
    except Exception as problem:  # not installed, or not fit for this torch
        reason = first_line(problem) or type(problem).__name__
        raise InputError(
            f"--model {name} needs {library}, which cannot be imported ({reason}): install it for this torch, or give"
            " another --model"
        ) from None


def _of_timm(name: str) -> Callable[..., Any]:
    import timm

    if not timm.is_model(name):
        raise unknown("model of timm", name, timm.list_models())

    def make(classes: int, channels: int) -> Any:
        return timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels)

    return make


def _of_torchvision(name: str) -> Callable[..., Any]:
    import torchvision

    if name not in torchvision.models.list_models():
        raise unknown("model of torchvision", name, torchvision.models.list_models())

    def make(classes: int, channels: int) -> Any:
        if channels != 3:
            raise InputError(
                f"--model torchvision:{name} takes images of 3 channels, got {channels}: give another --model"
            )
        return torchvision.models.get_model(name, weights=None, num_classes=classes)

    return make

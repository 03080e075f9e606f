"""The layers of a model that PEFT has put adapters around, found by their structure, and what of them is pruned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.common.distributed import PLAIN
from flatsparse.graph.groups import unwrapped

INSIDE = "base_layer"  # what PEFT calls a layer inside of its adapters,
COPIED = "original_module"  # and one of which it trains a copy
MASK = "update_mask"  # a masked layer's buffer: bool, of its weight's shape, and in no state dict


def base_model(model: nn.Module) -> nn.Module:
    """Return the module whose names are those of the base model, but for PEFT's own within."""
    model = unwrapped(model)
    base = getattr(model, "get_base_model", None)
    return base() if callable(base) and hasattr(model, "peft_config") else model


def base_name(name: str) -> str:
    """Return the name that a parameter has in the base model, without PEFT's own within."""
    return name.removeprefix("base_model.model.").replace(f".{INSIDE}.", ".").replace(f".{COPIED}.", ".")


def adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the outermost layers that have adapters, of whatever kind, by name."""
    outer = None
    for name, module in model.named_modules():
        if outer is not None and name.startswith(f"{outer}."):
            continue
        if hasattr(module, "adapter_layer_names") and hasattr(module, INSIDE):
            outer = name
            yield name, module


def trained_in_full(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of which ``modules_to_save`` trains a copy, by name, as they were before."""
    for name, module in model.named_modules():
        if hasattr(module, "modules_to_save") and hasattr(module, COPIED):
            yield name, getattr(module, COPIED)


def readable(base: nn.Module) -> bool:
    """True if a layer has matrices, and their zeros can be told: neither quantized nor sharded nor without values."""
    matrices = [p for p in base.parameters() if p.ndim >= 2]
    return bool(matrices) and all(type(p) in PLAIN and p.is_floating_point() and not p.is_meta for p in matrices)


def is_pruned(base: nn.Module) -> bool:
    """True if a matrix of a layer has a zero, but for the padding of an embedding, which is zero by nature."""
    if has_computed_weight(base):
        return True
    for module in base.modules():
        for p in module.parameters(recurse=False):
            zero = p.detach() == 0
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                zero[module.padding_idx] = False
            if p.ndim >= 2 and bool(zero.any()):
                return True
    return False


def tie(model: nn.Module, layer: Any) -> str:
    """Return why the weight of a layer with adapters is not its own, and what to do; or nothing."""
    weight = layer.get_base_layer()._parameters.get("weight")
    holders = sum(weight is p for module in model.modules() for p in module._parameters.values() if p is not None)
    if holders < 2:
        return ""
    return "its weight is tied to that of another layer, which merging would change too: leave it out of target_modules"


def has_computed_weight(base: nn.Module) -> bool:
    """True for a weight that ``torch.nn.utils.prune`` or a parametrization makes of others."""
    return isinstance(getattr(base, "weight", None), Tensor) and "weight" not in base._parameters


def active(layer: Any) -> Tensor:
    """Return the mask that a layer with adapters has, or else where its weight is not zero."""
    own, weight = getattr(layer, MASK, None), layer.get_base_layer()._parameters.get("weight")
    if own is not None:
        return own
    return (
        torch.ones(()) if weight is None else weight.detach() != 0
    )  # without a weight it is of a kind that is refused

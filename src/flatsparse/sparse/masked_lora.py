"""LoRA layers whose update is zero outside a mask. Needs PEFT, so only ``adapters.py`` imports it, and only when it is used."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Conv1d, Conv2d, Conv3d, Linear, LoraLayer
from torch import Tensor, nn
from torch.func import functional_call

from flatsparse.common.errors import InputError
from flatsparse.sparse.adapter_layers import MASK, has_computed_weight, readable


class MaskedUpdate(nn.Module, LoraLayer):
    """A mixin that makes a LoRA layer's update M∘(s·BA), and runs the base layer at the very weight that merging writes.

    Merging and unmerging stay PEFT's, which add and subtract ``get_delta_weight``.
    """

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return an adapter's update M∘(s·BA), of the weight's shape. Of a convolution B is 1x1, and A as large as the weight."""
        mask: Tensor = getattr(self, MASK)
        factors: Any = self.lora_A[adapter], self.lora_B[adapter]
        a, b = (factor.weight.flatten(1) for factor in factors)
        with torch.autocast(mask.device.type, enabled=False):  # as precise in training as when it is merged
            update = b @ (a * self.scaling[adapter])
            update = update.T if getattr(self, "fan_in_fan_out", False) else update
        return torch.where(mask, update.reshape(mask.shape), 0)  # a product would keep NaN

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output at W + M∘(s·BA) of all active adapters, rounded to the type of W as in merging."""
        if kwargs.get("adapter_names") is not None:
            raise InputError("adapter_names= mixes adapters in a batch, which masked ones cannot: use set_adapter")
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        base: Any = self.get_base_layer()
        parameters = dict(base.named_parameters(recurse=False))
        dropped = []
        for adapter in self.active_adapters:
            if adapter not in self.lora_A:
                continue
            update = self.get_delta_weight(adapter)
            if self.lora_bias[adapter]:
                bias = parameters["bias"] + self.lora_B[adapter].bias * self.scaling[adapter]
                parameters["bias"] = bias.to(base.bias.dtype)
            dropout = self.lora_dropout[adapter]
            if self.training and isinstance(dropout, nn.Dropout):  # of the update's inputs only, as PEFT has it
                dropped.append((update.to(base.weight.dtype), dropout(x)))
            else:
                parameters["weight"] = (parameters["weight"] + update).to(base.weight.dtype)
        result: Tensor = functional_call(base, parameters, (x, *args), kwargs)
        for update, inputs in dropped:
            zero = {} if base.bias is None else {"bias": torch.zeros_like(base.bias)}
            result = result + functional_call(base, {"weight": update, **zero}, (inputs, *args), kwargs)
        return result

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter, as PEFT does; it is masked like those before it. Raises InputError if it cannot be."""
        super().update_layer(adapter_name, *args, **kwargs)
        if problem := obstacle(self, getattr(self, MASK)):
            raise InputError(f"adapter '{adapter_name}' cannot be masked: {problem}")


class MaskedLinear(MaskedUpdate, Linear):
    """A masked LoRA layer around ``nn.Linear`` or the Conv1D of transformers."""


class MaskedConv1d(MaskedUpdate, Conv1d):
    """A masked LoRA layer around ``nn.Conv1d``."""


class MaskedConv2d(MaskedUpdate, Conv2d):
    """A masked LoRA layer around ``nn.Conv2d``."""


class MaskedConv3d(MaskedUpdate, Conv3d):
    """A masked LoRA layer around ``nn.Conv3d``."""


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    Linear: MaskedLinear,
    Conv1d: MaskedConv1d,
    Conv2d: MaskedConv2d,
    Conv3d: MaskedConv3d,
}


def mask_update(layer: nn.Module, mask: Tensor) -> None:
    """Mask the update of a LoRA layer, in place. A layer that is masked already gets the new mask."""
    base: Any = layer.get_base_layer()  # type: ignore[operator]  # PEFT's own method
    layer.register_buffer(MASK, mask.to(base.weight.device), persistent=False)
    kind = type(layer)
    layer.__class__ = KINDS.get(kind, kind)  # as torch's parametrize does: adapters, hooks and names stay


def obstacle(layer: Any, mask: Tensor) -> str:
    """Return why the update of a layer cannot be masked exactly, and what to do; or nothing."""
    kind, base = type(layer), layer.get_base_layer()
    if kind not in KINDS and not issubclass(kind, MaskedUpdate):
        return f"its adapter is {kind.__module__}.{kind.__name__}, and only LoRA of linear and convolutional layers is masked"
    if layer.base_layer is not base:
        return f"it has adapters around adapters of {type(layer.base_layer).__name__}: use one kind"
    if layer.lora_variant:
        name, variant = next(iter(layer.lora_variant.items()))
        return f"adapter '{name}' is of the kind {type(variant).__name__}, and only plain LoRA is masked"
    if has_computed_weight(base):
        return "its weight is computed: call torch.nn.utils.prune.remove or parametrize.remove_parametrizations first"
    if not readable(base):
        return f"its weight is {base.weight.dtype} on {base.weight.device}: load it unquantized and on one device"
    if getattr(base, "groups", 1) > 1:
        return "PEFT merges no convolution with groups: leave it out of target_modules"
    if base.bias is None and any(layer.lora_bias.values()):
        return "lora_bias=True cannot be merged into a layer without a bias: leave it out"
    own = getattr(layer, MASK, None)
    if layer.merged and (own is None or not own.equal(mask.to(own.device))):
        return "adapters are merged into it: call unmerge_adapter first"
    if bool((base.weight.detach().ne(0) & ~mask.to(base.weight.device)).any()):
        return (
            "its base weight is not zero outside the mask: prune it first, and use no init_lora_weights that writes into"
            " the base, such as 'pissa'"
        )
    return ""

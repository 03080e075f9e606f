"""Low-rank adapters of pruned layers: updates masked as the layers are, so that a merged model keeps its zeros."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.sparse.adapter_layers import (
    MASK,
    active,
    adapted,
    base_model,
    base_name,
    is_pruned,
    readable,
    tie,
    trained_in_full,
)
from flatsparse.sparse.import_masks import fitting


def mask_adapters(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Mask the LoRA updates of pruned layers in place, so that trained, evaluated and merged are one function.

    A masked layer computes with W + M∘(s·BA), and merging writes the same, so ``merge_and_unload()`` gives a model that is
    exactly zero outside the masks and computes what the adapters did. Ours, after the form that locuslab/wanda#10 asks for:
    a mask that is applied after merging instead cuts off what the adapters have learned there. Saving, loading, switching,
    disabling, merging and unmerging of adapters are PEFT's own. A file of adapters holds no masks: call it again after
    loading one, and after adding an adapter to layers that had none.

    Its cost in memory: a bool mask, one byte a weight; and a matrix as large as the weight, the masked product of B and A added
    to it, which each forward pass makes anew and autograd keeps until the backward pass. That is as much as all adapted
    weights, or, with gradient checkpointing, as those of one block. In time: that product, and the whole weight's gradient, as
    in full fine-tuning, which plain LoRA saves; it weighs the more, the fewer tokens a batch has. Dropout costs a second
    product of the inputs. In evaluation merge the adapters, and nothing of this is left.

    Args:
        model: what ``peft.get_peft_model`` or ``PeftModel.from_pretrained`` returned, or any module with LoRA layers in it,
            before it is compiled. Their base layers may be linear, the Conv1D of transformers, or convolutions without groups.
        masks: bool tensors by parameter name, such as ``masks_from`` gives of the base model; what has no adapter is left
            out. By default those in use already, and the zeros of every other base layer that has adapters.

    Returns: the masks in use, by the names that the base and the merged model have.
    Raises: InputError for what would not be exact, with its name: another kind of adapter, DoRA and other variants of LoRA,
    quantized, sharded or tied weights, adapters that are merged, and a base that is not zero outside a mask. The model is then
    unchanged.

    >>> from peft import LoraConfig, get_peft_model
    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> import torch
    >>> with torch.no_grad():
    ...     model[0].weight[:, 1:] = 0
    >>> adapted = get_peft_model(model, LoraConfig(r=1, target_modules=["0"], init_lora_weights=False))
    >>> masks = mask_adapters(adapted)
    >>> merged = adapted.merge_and_unload()
    >>> {name: int(mask.sum()) for name, mask in masks.items()}, int((merged[0].weight != 0).sum())
    ({'0.weight': 2}, 2)
    """
    inner = base_model(model)
    layers = dict(adapted(inner))
    if not layers:
        raise InputError(
            f"this {type(model).__name__} has no adapters: give what peft.get_peft_model made of the pruned model"
        )
    from flatsparse.sparse import masked_lora  # needs PEFT, without which there are no such layers

    chosen = _pruned(inner, layers) if masks is None else _given(masks, inner, layers)
    for name, mask in chosen.items():
        problem = tie(inner, layers[name]) or masked_lora.obstacle(layers[name], mask)
        if problem:
            raise InputError(f"the update of '{name}' cannot be masked: {problem}")
    for name, mask in chosen.items():
        masked_lora.mask_update(layers[name], mask)
    if empty := [name for name, mask in chosen.items() if not mask.any()]:
        warnings.warn(f"'{empty[0]}' is zero throughout, so that its adapters learn nothing", stacklevel=2)
    return {f"{name}.weight": getattr(layers[name], MASK) for name in chosen}


def _pruned(model: nn.Module, layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """The masks of the adapted layers that are pruned. Raises InputError where that cannot be told, and if there is none."""
    chosen = {}
    for name, layer in layers.items():
        base = layer.get_base_layer()
        if not readable(base):
            raise InputError(
                f"'{name}' is {type(base).__name__}, whose zeros cannot be read: load it unquantized and on one device, or"
                " give masks= without it"
            )
        if layer.merged and not hasattr(layer, MASK):
            raise InputError(f"adapters are merged into '{name}', whose zeros they fill: call unmerge_adapter first")
        if is_pruned(base) or hasattr(layer, MASK):
            chosen[name] = active(layer)
    for name, original in trained_in_full(model):
        if readable(original) and is_pruned(original):
            raise _fills(name)
    if not chosen:
        raise InputError("no layer with adapters has a zero in its weight: prune the model first, or give masks=")
    return chosen


def _given(masks: Mapping[str, Tensor], model: nn.Module, layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """The given masks of adapted layers, by layer. Raises InputError for what does not fit, and if there is none."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    own = {base_name(name): name for name in parameters}
    fit = fitting({own.get(base_name(name), name): mask for name, mask in masks.items()}, model)
    by_weight = {id(parameters[name]): mask for name, mask in fit.items()}
    for name, original in trained_in_full(model):
        if any(id(p) in by_weight for p in original.parameters()):
            raise _fills(name)
    weights = {name: id(layer.get_base_layer()._parameters.get("weight")) for name, layer in layers.items()}
    chosen = {name: by_weight[weight] for name, weight in weights.items() if weight in by_weight}
    if not chosen:
        raise InputError(f"no layer with adapters has a mask: give masks of {', '.join(map(repr, list(layers)[:3]))}")
    return chosen


def _fills(name: str) -> InputError:
    return InputError(
        f"modules_to_save trains '{name}' in full, which fills its zeros: give masks= without it, and keep it by sparsify"
    )

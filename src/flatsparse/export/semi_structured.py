"""2:4 sparsity on the matrix units of NVIDIA GPUs (compute capability 8.0 and later)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.common.weight_layout import inputs_first, outputs_first
from flatsparse.export.dense import with_zeros
from flatsparse.sparse.import_masks import fitting
from flatsparse.sparse.layers import prunable


def check_two_four(masks: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise InputError for the first mask with more than two active weights of four consecutive inputs."""
    owners = {name: module for name, (_, module) in prunable(model).items()}
    for name, mask in masks.items():
        groups = outputs_first(mask, inputs_first(owners[name])).movedim(1, -1)
        if groups.shape[-1] % 4 or int(groups.unflatten(-1, (-1, 4)).sum(-1).max()) > 2:
            raise InputError(
                f"the mask of '{name}' does not keep 2 of each 4 inputs: train with --pattern 2 4 (pattern=(2, 4))"
            )


def to_semi_structured(
    model: nn.Module, masks: Mapping[str, Tensor], *, dtype: torch.dtype = torch.float16
) -> nn.Module:
    """A copy of a model for inference whose masked linear layers run on ``torch.sparse``'s 2:4 kernels.

    After Mishra et al. (2021). Convolutions have no such kernels in torch and stay dense with zeros. So does
    a linear layer of an unsupported shape: outputs and inputs must be multiples of, as a rule, 32 and 64. The whole copy is
    in ``dtype``.

    Args:
        model: the network, on a GPU; it is not changed.
        masks: bool tensors by parameter name; each with at most two active weights of four consecutive inputs.
        dtype: float16 or bfloat16.

    Raises: InputError for masks of another pattern, without a GPU, and when no linear layer is masked or can be packed.
    """
    fitted = fitting(masks, model)
    check_two_four(fitted, model)
    copy = with_zeros(model, masks).to(dtype)
    layers = {
        name: module
        for name, module in copy.named_modules()
        if type(module) is nn.Linear and f"{name}.weight".lstrip(".") in fitted
    }
    if not layers:
        raise InputError("no linear layer is masked, and torch has 2:4 kernels for no other: export to csr instead")
    if any(layer.weight.device.type != "cuda" for layer in layers.values()):
        raise InputError("2:4 kernels need an NVIDIA GPU and the model on it: move it there, or export to csr instead")
    packed, why = 0, ""
    for name, layer in layers.items():
        try:
            weight = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
        except (RuntimeError, NotImplementedError) as problem:
            why = f"'{name}': {str(problem).splitlines()[0]}"
        else:
            layer.weight, packed = nn.Parameter(weight, requires_grad=False), packed + 1
    if not packed:
        raise InputError(
            f"torch can pack no linear layer of this {type(model).__name__} ({why}): export to csr instead"
        )
    return copy

"""The plainest form of a sparse model: its own architecture, with zeros."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from flatsparse.channels import bare
from flatsparse.layers import prunable
from flatsparse.pruned import fitting
from flatsparse.storage import save_tensors


@torch.no_grad()
def with_zeros(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model, in evaluation mode, with the true weights and exactly zero outside the masks.

    Wrappers (``torch.compile``, ``DistributedDataParallel``) are left behind.

    Raises: InputError when the masks are not the model's.
    """
    found = fitting(masks, model)
    twin = copy.deepcopy(bare(model)).eval()
    state = model.state_dict()  # true weights even amid a step of S²-SAM, as the model that it follows is asked
    twin.load_state_dict(dict(zip(twin.state_dict(), state.values(), strict=True)))
    for name, (p, _) in prunable(twin).items():
        if name in found:
            p.masked_fill_(~found[name].to(p.device), 0)
    return twin


def save_dense(file: Path, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Write the state dict with zeros as safetensors, under the model's own names, for the unmodified model to load.

    A weight that is tied, or a buffer that shares its memory with another, is written under each of its names.
    """
    tensors = {name: value.clone() for name, value in with_zeros(model, masks).state_dict().items()}
    save_tensors(Path(file), tensors, {"format": "pt"})

"""The dense form of a sparse model: its own architecture, with zeros."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.common.tensor_files import save_tensors
from flatsparse.graph.groups import copy_of
from flatsparse.graph.shrink import masked_state
from flatsparse.sparse.import_masks import fitting


def with_zeros(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model, in evaluation mode, with the true weights and exactly zero outside the masks.

    Wrappers (``torch.compile``, ``DistributedDataParallel``) are removed. Without any mask, ``{}``, it is the dense network.

    Raises: InputError when the masks are not the model's, and for a model that torch cannot copy.
    """
    fitted = fitting(masks, model) if masks else {}
    copy = copy_of(model).eval()
    copy.load_state_dict(
        {**copy.state_dict(), **masked_state(model, fitted)}
    )  # true weights even within a step of S²-SAM
    return copy


def save_dense(file: str | os.PathLike[str], model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Write the state dict with zeros as safetensors, under the model's own names, for the unmodified model to load.

    A weight that is tied, or a buffer that shares its memory with another, is written under each of its names.
    """
    save_tensors(Path(file), contents(with_zeros(model, masks)), {"format": "pt"})


def contents(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's state dict. Raises InputError when it holds anything but tensors, as safetensors cannot."""
    state = model.state_dict()
    if odd := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise InputError(f"'{odd[0]}' in the model's state is no tensor: a safetensors file can hold nothing else")
    return {name: value.clone() for name, value in state.items()}

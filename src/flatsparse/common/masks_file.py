"""The mask file: bit-packed masks of a model as safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.common.files import corrupt_file
from flatsparse.common.tensor_files import load_tensors, save_tensors

MASK_FORMAT = "flatsparse-masks-1"


def packed_bits(mask: Tensor) -> Tensor:
    """Return a bool tensor's entries in row-major order, eight to a byte, the first in the lowest bit: uint8 (n/8,)."""
    return torch.from_numpy(np.packbits(mask.cpu().contiguous().flatten().numpy(), bitorder="little"))


def unpacked_bits(packed: Tensor, count: int) -> Tensor:
    """Return the first entries of what ``packed_bits`` returned, bool (count,). Raises ValueError for another length."""
    if packed.shape != (-(-count // 8),):
        raise ValueError(f"{tuple(packed.shape)} bytes do not hold {count} bits")
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count, bitorder="little").astype(bool))


def save_masks(file: str | os.PathLike[str], masks: Mapping[str, Tensor], *, method: str = "", step: int = 0) -> None:
    """Write masks as safetensors with one bit a weight.

    Ours: each mask is a ``uint8`` tensor named like its weight, the mask's entries in row-major order, eight to a byte,
    the first in the lowest bit; the metadata hold ``format``, ``method``, ``step``, ``shapes`` (JSON) and a hash.

    Args:
        masks: bool tensors by name, such as ``training.masks``.
        method, step: the method that made them and its step, for the metadata.
    """
    packed = {name: packed_bits(mask) for name, mask in masks.items()}
    shapes = json.dumps({name: list(mask.shape) for name, mask in masks.items()})
    save_tensors(Path(file), packed, {"format": MASK_FORMAT, "method": method, "step": str(step), "shapes": shapes})


def load_masks(file: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read masks that ``save_masks`` wrote: bool tensors by name, in their order, and the metadata.

    Raises: InputError when the file is corrupt or of another format.
    """
    packed, about = load_tensors(Path(file))
    if about.get("format") != MASK_FORMAT:
        raise InputError(
            f"'{file}' holds '{about.get('format')}', not '{MASK_FORMAT}': give a masks.safetensors of ours"
        )
    masks = {}
    try:
        for name, shape in json.loads(about["shapes"]).items():
            count = int(np.prod(shape))
            masks[name] = unpacked_bits(packed[name], count).reshape(shape)
    except (
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ):  # others may write such files too
        raise corrupt_file(Path(file), "its shapes are not those of its masks") from None
    return masks, about

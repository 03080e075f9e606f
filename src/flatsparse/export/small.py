"""The physically smaller model: ordinary dense layers with fewer channels."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.common.files import corrupt_file
from flatsparse.common.tensor_files import load_tensors, save_tensors
from flatsparse.export.dense import contents
from flatsparse.graph.shrink import narrow, shrink, widths

SMALL_FORMAT = "flatsparse-small-1"


def save_small(
    file: str | os.PathLike[str], model: nn.Module, masks: Mapping[str, Tensor], example: Tensor | None = None
) -> int:
    """Write ``shrink(model, masks)`` as safetensors: its state dict, and the numbers of its channels in the metadata.

    Returns: the number of parameters removed; with 0, no channel could be removed, and the file is as large as a dense one.
    Raises: InputError as ``shrink`` does.
    """
    small = shrink(model, masks, example)
    save_tensors(Path(file), contents(small), {"format": SMALL_FORMAT, "widths": json.dumps(widths(small, example))})
    return sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in small.parameters())


def load_small(file: str | os.PathLike[str], model: nn.Module, example: Tensor | None = None) -> nn.Module:
    """Read a model that ``save_small`` wrote, in evaluation mode, given one of the size that was shrunk, which is not changed.

    Raises: InputError when the file is corrupt, of another format or of another model.
    """
    tensors, about = load_tensors(Path(file))
    if about.get("format") != SMALL_FORMAT:
        raise InputError(
            f"'{file}' holds '{about.get('format')}', not '{SMALL_FORMAT}': give a file that save_small wrote"
        )
    try:
        small = narrow(model, json.loads(about["widths"]), example)
    except (
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
    ) as problem:  # others may write such files too
        if isinstance(problem, InputError):
            raise
        raise corrupt_file(Path(file), "its widths are unreadable") from None
    try:
        small.load_state_dict(tensors)
    except RuntimeError:
        raise InputError(f"'{file}' is not of this model: give one of the size that was shrunk") from None
    return small.eval()

"""The first samples of a batch, whatever its form."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import MutableMapping
from typing import Any

from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.split import Batch


def first_samples(batch: Batch, count: int) -> Batch:
    """Return a batch of the first samples of another: of tensors, and of lists of one entry a sample, the first rows.

    Raises: InputError for a batch without a tensor, or a list, that has a row for each sample.

    >>> import torch
    >>> first_samples(Batch((torch.ones(4, 2), torch.zeros(4)), 4, 4), 1).content
    (tensor([[1., 1.]]), tensor([0.]))
    """
    content = _first(batch.content, batch.samples, count)
    if content is batch.content and count < batch.samples:
        raise InputError(
            f"a batch of {batch.samples} samples, {type(batch.content).__name__}, has no tensor with a row for each: no part"
            " of it can be taken, so choose another --sharpness"
        )
    return Batch(content, count, -(-batch.whole * count // batch.samples))


def _first(content: Any, samples: int, count: int) -> Any:
    """Return the first samples of a part of a batch; itself where it has none."""
    if isinstance(content, Tensor):
        return content[:count] if content.ndim and len(content) == samples else content
    if isinstance(content, MutableMapping):
        return _with(content, {name: _first(part, samples, count) for name, part in content.items()})
    if isinstance(content, (tuple, list)):
        parts = [_first(part, samples, count) for part in content]
        if any(new is not old for new, old in zip(parts, content, strict=True)):
            return type(content)(*parts) if hasattr(content, "_fields") else type(content)(parts)
        return content[:count] if len(content) == samples and not hasattr(content, "_fields") else content
    if dataclasses.is_dataclass(content) and not isinstance(content, type):
        found = {f.name: _first(getattr(content, f.name), samples, count) for f in dataclasses.fields(content)}
        changed = any(found[name] is not getattr(content, name) for name in found)
        return dataclasses.replace(content, **found) if changed else content
    return content


def _with(content: MutableMapping[Any, Any], parts: dict[Any, Any]) -> MutableMapping[Any, Any]:
    if all(parts[name] is content[name] for name in parts):
        return content
    there = copy.copy(content)
    there.update(parts)
    return there

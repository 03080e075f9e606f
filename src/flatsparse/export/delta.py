"""The change of a model as a small file: the values that training changed, and where; applied to the base it is exact."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.common.distributed import full_tensor
from flatsparse.common.errors import InputError
from flatsparse.common.files import corrupt_file
from flatsparse.common.masks_file import packed_bits, unpacked_bits
from flatsparse.common.names import plain_names
from flatsparse.common.tensor_files import load_tensors, save_tensors, tensor_digest

DELTA_FORMAT = "flatsparse-delta-1"
VALUES, PLACES = "values.", "places."  # before a tensor's name: its new values, and where they belong
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_INT32 = 2**31


@dataclass(frozen=True)
class DeltaSize:
    """The size of a delta file.

    Attributes:
        changed, total: the numbers that differ from the base's, and all of the model's.
        bytes, base_bytes: of the file, and of the model's tensors.
    """

    changed: int
    total: int
    bytes: int
    base_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.changed:,} of {self.total:,} numbers changed: {self.bytes / 1000:,.1f} kB,"
            f" {self.bytes / self.base_bytes:.1%} of the model's {self.base_bytes / 1000:,.1f} kB"
        )


def save_delta(file: str | os.PathLike[str], model: nn.Module, base: nn.Module | Mapping[str, Tensor]) -> DeltaSize:
    """Write what differs between a trained model and its base, bit by bit, as safetensors; docs/export.md describes the file.

    Ours: new values, not differences, so that applying them is exact. It is small after ``sparsify(…, outside="frozen")``, where
    few weights change; parameters that no mask is of, such as biases, and buffers are compared like all others.

    Args:
        model: the trained model; its true weights are written, also within a window of S²-SAM.
        base: the model before training, or a copy of its state dict.

    Returns: the size of the file.
    Raises: InputError when the base has other tensors than the model, or nothing differs.

    >>> import copy, tempfile
    >>> model = nn.Linear(100, 10)
    >>> base = copy.deepcopy(model.state_dict())
    >>> with torch.no_grad():
    ...     model.weight[0, :5] += 1
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = save_delta(Path(folder, "delta.safetensors"), model, base)
    ...     fresh = nn.Linear(100, 10)
    ...     _ = fresh.load_state_dict(base)
    ...     same = apply_delta(Path(folder, "delta.safetensors"), fresh).weight.equal(model.weight)
    >>> size.changed, size.total, same
    (5, 1010, True)
    """
    new, old = _contents(model), _contents(base)
    _check_alike(new, old)
    changed = {name: where for name in new if (where := _differ(new[name], old[name])).any()}
    if not changed:
        raise InputError(
            "nothing differs from the base: give the model as it was before training, such as"
            " copy.deepcopy(model.state_dict()) from then; model.state_dict() itself changes with the model"
        )
    tensors, about, first = dict[str, Tensor](), dict[str, dict[str, Any]](), dict[Any, str]()
    for name, where in changed.items():
        value = new[name]
        twin = first.setdefault((value.data_ptr(), value.dtype, value.shape, value.stride()), name)
        if twin != name and value.numel():  # tied
            about[name] = {"same_as": twin}
            continue
        form, places = _places(where)
        about[name] = {"form": form, "shape": list(value.shape)}
        tensors[VALUES + name] = value.reshape(-1)[where.to(value.device)]
        if places is not None:
            tensors[PLACES + name] = places
    meta = {"format": DELTA_FORMAT, "base": tensor_digest(_on_cpu(old), {}), "tensors": json.dumps(about)}
    save_tensors(Path(file), tensors, meta)
    return DeltaSize(
        changed=sum(int(where.sum()) for where in changed.values()),
        total=sum(value.numel() for value in new.values()),
        bytes=Path(file).stat().st_size,
        base_bytes=sum(value.numel() * value.element_size() for value in new.values()),
    )


def apply_delta(file: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Turn the base that ``save_delta`` was given into the trained model, in place and bit for bit, and return it.

    Raises: InputError for another base, and when the file is damaged or of another format; the model is then unchanged.
    """
    file = Path(file)
    tensors, about = load_tensors(file)
    if about.get("format") != DELTA_FORMAT:
        raise InputError(
            f"'{file}' holds '{about.get('format')}', not '{DELTA_FORMAT}': give a file that save_delta wrote"
        )
    state = _contents(model)
    if about.get("base") != tensor_digest(_on_cpu(state), {}):
        raise InputError(
            f"'{file}' is the change of another base: give the model as it was before that training, with the same names,"
            " types and values"
        )
    try:
        new = dict(_applied(tensors, json.loads(about["tensors"]), state))
    except (
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        RecursionError,
    ):  # others may write such files
        raise corrupt_file(file, "its values do not fit their places") from None
    names = list(model.state_dict())
    own = dict(zip(plain_names(names), names, strict=True))
    model.load_state_dict({own[name]: value for name, value in new.items()}, strict=False)
    return model


def _applied(
    tensors: Mapping[str, Tensor], about: Mapping[str, Any], base: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yield changed tensors by name. Raises one of many errors for what is no change of the base."""
    for name, entry in about.items():
        own = entry.get("same_as", name)
        value, form, values = base[name], about[own]["form"], tensors[VALUES + own]
        if values.dtype != value.dtype or list(value.shape) != about[own]["shape"]:
            raise ValueError(name)
        where = _unpacked(form, tensors.get(PLACES + own), value.numel())
        if values.shape != (int(where.sum()),):
            raise ValueError(name)
        new = value.detach().clone(memory_format=torch.contiguous_format)
        new.view(-1)[where.to(new.device)] = values.to(new.device)
        yield name, new


def _contents(source: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's true tensors by name, without wrappers' prefixes. Raises InputError for what else a state may hold."""
    if not isinstance(source, (nn.Module, Mapping)):
        raise InputError(f"got {type(source).__name__}: give a model, or its state dict")
    state = source.state_dict() if isinstance(source, nn.Module) else source
    if odd := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise InputError(f"'{odd[0]}' in the model's state is no tensor: a safetensors file can hold nothing else")
    return dict(zip(plain_names(list(state)), (full_tensor(v.detach()) for v in state.values()), strict=True))


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu().contiguous() for name, value in state.items()}


def _check_alike(new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> None:
    """Raise InputError for a base with other names, shapes or types, and for a type that a file cannot hold."""
    kinds = [{n: (tuple(v.shape), v.dtype) for n, v in state.items()} for state in (new, old)]
    if kinds[0] != kinds[1]:
        odd = next(n for n in [*new, *old] if kinds[0].get(n) != kinds[1].get(n))
        here, there = (" ".join(map(str, kind[odd])) if odd in kind else "absent" for kind in kinds)
        raise InputError(f"the base is of another model: '{odd}' is {there} there and {here} here; give its own base")
    if wide := [name for name, value in new.items() if value.element_size() not in _INTEGERS]:
        raise InputError(
            f"'{wide[0]}' is {new[wide[0]].dtype}, which no safetensors file holds: leave it out of the model's state"
        )


def _differ(new: Tensor, old: Tensor) -> Tensor:
    """Return where two tensors differ in a bit, bool (n,), on the first one's device."""
    new, old = new.contiguous().reshape(-1), old.to(new.device).contiguous().reshape(-1)
    bits = _INTEGERS[new.element_size()]
    return new.view(bits) != old.view(bits)


def _places(where: Tensor) -> tuple[str, Tensor | None]:
    """Return the smallest form of the places that are true, and its tensor: all of them, bits, or flat indices."""
    count, total = int(where.sum()), where.numel()
    if count == total:
        return "all", None
    kind = torch.int32 if total < _INT32 else torch.int64
    if count * kind.itemsize < total / 8:
        return "indices", where.nonzero().squeeze(1).to(kind)
    return "bits", packed_bits(where)


def _unpacked(form: str, places: Tensor | None, total: int) -> Tensor:
    """Return what ``_places`` was given, on the CPU. Raises an error for what it cannot have returned."""
    if form == "all" and places is None:
        return torch.ones(total, dtype=torch.bool)
    if places is None or form not in ("bits", "indices"):
        raise ValueError(form)
    if form == "bits":
        if places.dtype != torch.uint8:
            raise ValueError(form)
        return unpacked_bits(places, total)
    if places.ndim != 1 or places.dtype not in (torch.int32, torch.int64):
        raise ValueError(form)
    indices = places.long()
    rising = bool((indices.diff() > 0).all()) and (not len(indices) or 0 <= int(indices[0]) <= int(indices[-1]) < total)
    if not rising:
        raise ValueError(form)
    return torch.zeros(total, dtype=torch.bool).index_fill_(0, indices, True)

"""Sharded tensors, as FSDP2 makes parameters: the local shard, the full tensor and the norm; checks across ranks.

A plain tensor is its own shard and its own full tensor, so that callers need not distinguish them.
"""

from __future__ import annotations

import gc
import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

PLAIN = (Tensor, nn.Parameter)
_PLAIN = frozenset(PLAIN)


def is_sharded(tensor: Tensor) -> bool:
    """True for a ``DTensor``, tested without importing that package, which is slow and rarely needed."""
    return type(tensor) not in PLAIN and hasattr(tensor, "_local_tensor")  # the test of the type is ten times as fast


def are_plain(tensors: Iterable[Tensor]) -> bool:
    """True for tensors of torch's own two types only."""
    return _PLAIN.issuperset(map(type, tensors))


def local_tensor(tensor: Tensor) -> Tensor:
    """The shard of a tensor on this rank, sharing its storage."""
    return tensor._local_tensor if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, gathered from all ranks; a collective call, which every rank must make."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def distribute(full: Tensor, like: Tensor) -> Tensor:
    """A full tensor, equal on all ranks, sharded as another tensor is; without communication."""
    if not is_sharded(like) or is_sharded(full):
        return full
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(full.to(like.device), mesh, placements, src_data_rank=None)


def reshard(model: nn.Module) -> None:
    """Free the full parameters that FSDP2 has gathered, so that the next use gathers them again."""
    for module in model.modules():
        if hasattr(module, "reshard") and hasattr(module, "unshard"):
            module.reshard()  # type: ignore[operator]  # a module's attribute could be anything


def norm(tensors: Sequence[Tensor]) -> Tensor | None:
    """The L2 norm over all tensors together, in float32 at least, on the first one's device; None without tensors.

    Squares beyond float32 do not overflow or vanish, and the host does not wait for an accelerator. Of sharded tensors every
    rank gets the norm of the full ones.
    """
    if not tensors:
        return None
    device = tensors[0].device
    if are_plain(tensors):
        return _together(list(tensors))
    by_layout: dict[Any, list[Tensor]] = {}
    for t in tensors:
        by_layout.setdefault((t.device_mesh, t.placements) if is_sharded(t) else None, []).append(local_tensor(t))  # type: ignore[attr-defined]
    totals = []
    for layout, parts in by_layout.items():
        total = _together(parts).to(device)
        totals.append(total if layout is None else _over_shards(total, *layout))
    return totals[0] if len(totals) == 1 else torch.linalg.vector_norm(torch.stack([t.double() for t in totals]))


def is_unusable(length: Tensor) -> bool:
    """True for a norm on the CPU that is not finite; of one elsewhere it is not asked, because the host would wait for it."""
    return length.device.type == "cpu" and not math.isfinite(length.numpy())


def squares_fit(length: float) -> bool:
    """True for a norm that a sum of float32 squares gives correctly, without overflow or underflow."""
    return 1e-15 < length < 1e18


def _together(tensors: list[Tensor]) -> Tensor:
    kind = tensors[0].device.type
    if kind != "cpu":  # reading a result would make the host wait for it; MPS has no float64
        return _summed(tensors, torch.float32 if kind == "mps" else torch.float64)
    total = _summed(tensors, torch.float32)  # twice as fast there as float64
    return total if squares_fit(float(total.numpy())) else _summed(tensors, torch.float64)


def _summed(tensors: list[Tensor], wide: torch.dtype) -> Tensor:
    wide = torch.float64 if torch.float64 in {t.dtype for t in tensors} else wide
    norms = list(torch._foreach_norm(tensors, 2, dtype=wide))
    if len(set(map(Tensor.get_device, norms))) > 1:
        norms = [n.to(norms[0].device) for n in norms]
    return torch.linalg.vector_norm(torch.stack(norms))


def _over_shards(part: Tensor, mesh: Any, placements: Any) -> Tensor:
    square = part.double().square()
    for dimension, placement in enumerate(placements):
        if not placement.is_replicate():
            dist.all_reduce(square, group=mesh.get_group(dimension))
    return square.sqrt()


def process_group(model: nn.Module) -> Any:
    """The process group that trains a model together: DDP's, or that of sharded parameters; else None."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    for p in model.parameters():
        if is_sharded(p):
            mesh = p.device_mesh  # type: ignore[attr-defined]
            return mesh.get_group() if mesh.ndim == 1 else dist.group.WORLD
    parallel = getattr(model, "_orig_mod", model)
    return parallel.process_group if isinstance(parallel, nn.parallel.DistributedDataParallel) else None


def process_group_around(part: nn.Module) -> Any:
    """The process group of a DistributedDataParallel around a model, which may be younger than that; else None."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    kind = nn.parallel.DistributedDataParallel
    wrappers = [found for found in gc.get_objects() if issubclass(type(found), kind)]  # the model knows none of them
    return next((w.process_group for w in wrappers if any(module is part for module in w.modules())), None)


def checksum(masks: Iterable[Tensor], values: Iterable[Tensor] = ()) -> int:
    """A number that differs when any bit of a mask does, or (all but certainly) any bit of other tensors."""
    hasher = hashlib.sha256()
    for mask in masks:
        hasher.update(np.packbits(mask.cpu().numpy()).tobytes())
    for value in values:  # sums of bits, not of numbers: exact in any order
        bits = value.detach().reshape(-1).view({2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()])
        hasher.update(int(bits.sum(dtype=torch.int64)).to_bytes(8, "little", signed=True))
    return int.from_bytes(hasher.digest()[:7], "little")


def gathered(numbers: Sequence[int], group: Any, device: torch.device) -> list[list[int]]:
    """The numbers of every rank within a group; a collective call, which every rank must make with equally many."""
    own = torch.tensor(numbers, device=device)
    others = [torch.zeros_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(others, own, group=group)
    return [other.tolist() for other in others]

"""Tensors that are spread over processes, as FSDP2 spreads parameters: their part here, the whole, and their norm.

A plain tensor is its own part and its own whole, so callers need not ask which kind they have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

PLAIN = (Tensor, nn.Parameter)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``; asked without importing that package, which is slow and rarely needed."""
    return type(tensor) not in PLAIN and hasattr(tensor, "_local_tensor")  # asking a type is ten times as fast


def local_tensor(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, sharing its storage."""
    return tensor._local_tensor if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered from the processes that share it; they must all ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def distribute(full: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, equal on all processes, spread as another is; nothing is sent."""
    if not is_sharded(like) or is_sharded(full):
        return full
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(full.to(like.device), mesh, placements, src_data_rank=None)


def reshard(model: nn.Module) -> None:
    """Make FSDP2 forget what it has gathered of a model, so that the next look gathers it anew."""
    for module in model.modules():
        if hasattr(module, "reshard") and hasattr(module, "unshard"):
            module.reshard()  # type: ignore[operator]  # a module's attribute could be anything


def norm(tensors: Sequence[Tensor]) -> Tensor | None:
    """The L2 norm over all tensors together, in float32 at least, on the first one's device; None of nothing.

    Squares beyond float32 do not overflow or vanish, and no host waits for an accelerator. Of sharded tensors every process
    gets the norm of the whole.
    """
    if not tensors:
        return None
    device = tensors[0].device
    if all(type(t) in PLAIN for t in tensors):
        return _together(list(tensors))
    spreads: dict[Any, list[Tensor]] = {}
    for t in tensors:
        spreads.setdefault((t.device_mesh, t.placements) if is_sharded(t) else None, []).append(local_tensor(t))  # type: ignore[attr-defined]
    totals = []
    for layout, parts in spreads.items():
        total = _together(parts).to(device)
        totals.append(total if layout is None else _over_shards(total, *layout))
    return totals[0] if len(totals) == 1 else torch.linalg.vector_norm(torch.stack([t.double() for t in totals]))


def squares_fit(length: float) -> bool:
    """Whether a norm was found right by a sum of float32 squares, which neither overflowed nor lost what counts."""
    return 1e-15 < length < 1e18


def _together(tensors: list[Tensor]) -> Tensor:
    kind = tensors[0].device.type
    if kind != "cpu":  # to look at a result would make the host wait for it; MPS has no float64
        return _summed(tensors, torch.float32 if kind == "mps" else torch.float64)
    found = _summed(tensors, torch.float32)  # twice as fast there as float64
    return found if squares_fit(float(found.numpy())) else _summed(tensors, torch.float64)


def _summed(tensors: list[Tensor], wide: torch.dtype) -> Tensor:
    wide = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else wide
    norms = torch._foreach_norm(tensors, 2, dtype=wide)
    device = norms[0].device
    return torch.linalg.vector_norm(torch.stack([n if n.device == device else n.to(device) for n in norms]))


def _over_shards(part: Tensor, mesh: Any, placements: Any) -> Tensor:
    square = part.double().square()
    for dimension, placement in enumerate(placements):
        if not placement.is_replicate():
            dist.all_reduce(square, group=mesh.get_group(dimension))
    return square.sqrt()


def process_group(model: nn.Module) -> Any:
    """The process group whose members train this model together: DDP's, or that of sharded parameters; else None."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    for p in model.parameters():
        if is_sharded(p):
            mesh = p.device_mesh  # type: ignore[attr-defined]
            return mesh.get_group() if mesh.ndim == 1 else dist.group.WORLD
    parallel = getattr(model, "_orig_mod", model)
    return parallel.process_group if isinstance(parallel, nn.parallel.DistributedDataParallel) else None


def checksum(masks: Iterable[Tensor], values: Iterable[Tensor] = ()) -> int:
    """A number that differs when any bit of a mask does, or (all but certainly) any bit of other tensors."""
    seal = hashlib.sha256()
    for mask in masks:
        seal.update(np.packbits(mask.cpu().numpy()).tobytes())
    for value in values:  # sums of bits, not of numbers: exact in any order
        bits = value.detach().reshape(-1).view({2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()])
        seal.update(int(bits.sum(dtype=torch.int64)).to_bytes(8, "little", signed=True))
    return int.from_bytes(seal.digest()[:7], "little")


def mismatched_ranks(number: int, group: Any, device: torch.device) -> list[int]:
    """The ranks within a group whose number is not rank 0's; every member must ask."""
    mine = torch.tensor([number], device=device)
    theirs = [torch.zeros_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(theirs, mine, group=group)
    return [rank for rank, other in enumerate(theirs) if not torch.equal(other, theirs[0])]

"""The check that all processes of a training hold the same masks, weights and gradients."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flatsparse.common.distributed import checksum, full_tensor, gathered, is_sharded
from flatsparse.common.errors import InputError
from flatsparse.sparse.masks import Masks


def check_agreement(masks: Masks, group: Any, step: int) -> None:
    """Check that all processes hold the same masks, and the same weights and gradients where they hold whole ones.

    Raises: InputError, on all of them, when they do not, with the first layer in which they differ.
    """
    plain = [w.weight for w in masks if not is_sharded(w.weight)]
    values = [*plain, *(p.grad for p in plain if p.grad is not None)]
    device = masks[0].weight.device
    numbers = gathered([checksum((full_tensor(w.mask) for w in masks), values), step, len(masks)], group, device)
    if not _odd(numbers):
        return
    if odd := _odd([[count] for _, _, count in numbers]):
        raise InputError(f"processes do not train the same model (ranks {odd} have other layers than rank 0)")
    if odd := _odd([[taken] for _, taken, _ in numbers]):
        raise InputError(
            f"processes have taken other numbers of steps (ranks {odd} than rank 0, {step} here): let all resume from one"
            " checkpoint"
        )
    layers: dict[str, list[list[Tensor]]] = {
        "masks": [[full_tensor(w.mask)] for w in masks],
        "weights": [[] if is_sharded(w.weight) else [w.weight] for w in masks],
        "gradients": [[] if is_sharded(w.weight) or w.weight.grad is None else [w.weight.grad] for w in masks],
    }
    for kind, tensors in layers.items():
        _check_layers(kind, masks, tensors, group, step)


def _check_layers(kind: str, masks: Masks, tensors: list[list[Tensor]], group: Any, step: int) -> None:
    own = [checksum(own, ()) if kind == "masks" else checksum((), own) for own in tensors]
    numbers = gathered(own, group, masks[0].weight.device)
    names = [w.name for w, column in zip(masks, zip(*numbers, strict=True), strict=True) if len(set(column)) > 1]
    if names:
        more = f" and {len(names) - 1} more layers" if len(names) > 1 else ""
        raise InputError(
            f"{kind} differ between processes at step {step} (ranks {_odd(numbers)} from rank 0) in '{names[0]}'{more}:"
            " give all the same weights, seed and batches= at the start, and let DistributedDataParallel or fully_shard"
            " average their gradients"
        )


def _odd(numbers: list[list[int]]) -> list[int]:
    """Return the ranks whose numbers differ from those of rank 0."""
    return [rank for rank, own in enumerate(numbers) if own != numbers[0]]

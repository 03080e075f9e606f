"""The index of a mask of whole 16×1 blocks: of sixteen consecutive outputs that have the same active inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

OUTPUTS = 16  # of a block, as in blocks.h


@dataclass(frozen=True)
class BlockIndex:
    """The places of a matrix's blocks.

    Attributes:
        start: int32, (rows / 16 + 1,); rows 16 i to 16 i + 15 have the blocks from ``start[i]`` to ``start[i + 1]``.
        column: int32, (blocks,), of each block.
    """

    start: Tensor
    column: Tensor


@torch.no_grad()
def block_index_of(mask: Tensor) -> BlockIndex | None:
    """Return the index of a mask's blocks; None for a mask that is not made of whole ones.

    Args:
        mask: bool, (rows, columns), on the CPU.

    >>> mask = torch.zeros(32, 3, dtype=torch.bool)
    >>> mask[16:, 1] = True
    >>> block_index_of(mask)
    BlockIndex(start=tensor([0, 0, 1], dtype=torch.int32), column=tensor([1], dtype=torch.int32))
    """
    rows = len(mask)
    if rows % OUTPUTS:
        return None
    outputs = mask.unflatten(0, (-1, OUTPUTS))
    first = outputs[:, 0]
    if not torch.equal(outputs, first[:, None].expand_as(outputs)):
        return None
    counts = first.sum(1)
    return BlockIndex(torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int(), first.nonzero()[:, 1].int())

"""The index of a mask of whole 16×1 blocks: of sixteen consecutive outputs that have the same active inputs."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from flatsparse.acceleration.row_index import RowIndex, row_index_of, starts

OUTPUTS = 16  # of a block, as in blocks.h


@dataclass(frozen=True)
class BlockIndex:
    """The places of a sparse matrix's n entries that form whole blocks. Values are in the order of ``RowIndex``, row by row.

    Attributes:
        rows, columns: the matrix's shape.
        start: int32, (rows / 16 + 1,); rows 16 i to 16 i + 15 have the blocks from ``start[i]`` to ``start[i + 1]``.
        column: int32, (n / 16,), of each block.
    """

    rows: int
    columns: int
    start: Tensor
    column: Tensor

    @property
    def entries(self) -> int:
        """The number n of entries."""
        return OUTPUTS * self.column.numel()

    def positions(self) -> Tensor:
        """Return the flat indices of the entries in the dense matrix, int64, (n,)."""
        return self._mask().reshape(-1).nonzero().squeeze(1)

    @functools.cached_property
    def by_rows(self) -> RowIndex:
        """The same entries without blocks, for products that know of none; it takes memory from then on."""
        return row_index_of(self._mask())

    def _mask(self) -> Tensor:
        blocks = torch.zeros(self.rows // OUTPUTS, self.columns, dtype=torch.bool, device="cpu")
        rows = torch.repeat_interleave(torch.arange(len(blocks), device="cpu"), self.start.diff())
        blocks[rows, self.column.long()] = True
        return blocks.repeat_interleave(OUTPUTS, 0)


@torch.no_grad()
def block_index_of(mask: Tensor) -> BlockIndex | None:
    """Return the index of a mask's blocks; None for a mask that is not made of whole ones.

    Args:
        mask: bool, (rows, columns), on the CPU.

    >>> mask = torch.zeros(32, 3, dtype=torch.bool)
    >>> mask[16:, 1] = True
    >>> block_index_of(mask)
    BlockIndex(rows=32, columns=3, start=tensor([0, 0, 1], dtype=torch.int32), column=tensor([1], dtype=torch.int32))
    """
    rows, columns = mask.shape
    if rows % OUTPUTS:
        return None
    outputs = mask.unflatten(0, (-1, OUTPUTS))
    first = outputs[:, 0]
    if not torch.equal(outputs, first[:, None].expand_as(outputs)):
        return None
    return BlockIndex(rows, columns, starts(first.sum(1)), first.nonzero()[:, 1].int())

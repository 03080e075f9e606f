"""The index of any mask: where the active entries of a matrix lie, row by row and column by column."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowIndex:
    """The places of a sparse matrix's n entries, in the order of its values: row by row, and in a row by column.

    Attributes:
        rows, columns: the matrix's shape.
        row_start: int32, (rows + 1,); row i has the entries from ``row_start[i]`` to ``row_start[i + 1]``.
        column: int32, (n,), of each entry.
        column_start: int32, (columns + 1,); the same, column by column.
        row: int32, (n,), of each entry, column by column.
        place: int32, (n,), of each entry, column by column: its place among the values.
    """

    rows: int
    columns: int
    row_start: Tensor
    column: Tensor
    column_start: Tensor
    row: Tensor
    place: Tensor

    @property
    def entries(self) -> int:
        """The number n of entries."""
        return self.column.numel()

    def positions(self) -> Tensor:
        """Return the flat indices of the entries in the dense matrix, int64, (n,)."""
        counts = self.row_start.diff().long()
        rows = torch.repeat_interleave(torch.arange(self.rows, device=counts.device), counts, output_size=self.entries)
        return rows * self.columns + self.column


@torch.no_grad()
def row_index_of(mask: Tensor) -> RowIndex:
    """Return the index of a matrix's mask.

    Args:
        mask: bool, (rows, columns), on the CPU, with fewer than 2³¹ entries.

    >>> row_index_of(torch.tensor([[False, True], [True, True]])).positions()
    tensor([1, 2, 3])
    """
    rows, columns = mask.shape
    column = mask.nonzero()[:, 1].int()
    at = mask.t().nonzero()
    # The number of entries up to one, row by row, is one more than its place.
    before = mask.reshape(-1).cumsum(0, dtype=torch.int32)
    place = before[at[:, 1] * columns + at[:, 0]] - 1
    return RowIndex(rows, columns, starts(mask.sum(1)), column, starts(mask.sum(0)), at[:, 1].int(), place)


def starts(counts: Tensor) -> Tensor:
    """Return where each of some runs begins that follow one another, and where the last one ends; int32."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()

"""The index of a mask: where the active entries of a matrix lie, in the form that its kernels read."""

from __future__ import annotations

from torch import Tensor

from flatsparse.acceleration.block_index import BlockIndex, block_index_of
from flatsparse.acceleration.row_index import RowIndex, row_index_of

Index = RowIndex | BlockIndex  # both have rows, columns, entries and positions()


def index_of(mask: Tensor) -> Index:
    """Return the index of a matrix's mask: of its blocks where it is made of whole ones, or else of its entries.

    Args:
        mask: bool, (rows, columns), on the CPU, with fewer than 2³¹ entries.

    >>> import torch
    >>> index_of(torch.tensor([[False, True], [True, True]])).positions()
    tensor([1, 2, 3])
    """
    return block_index_of(mask) or row_index_of(mask)

"""The products of a sparse matrix and a batch: by compiled kernels, or by torch's sparse rows where no compiler is at hand.

Everything here is float32, on the CPU, contiguous and without autograd.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from flatsparse.acceleration import kernels
from flatsparse.acceleration.block_index import BlockIndex
from flatsparse.acceleration.index import Index
from flatsparse.acceleration.kernels import pointer, threads
from flatsparse.acceleration.row_index import RowIndex
from flatsparse.common.errors import InputError


@functools.cache
def is_compiled() -> bool:
    """Return whether the compiled kernels can be had; says so once when they cannot."""
    try:
        kernels.library()
    except InputError as problem:
        warnings.warn(f"{problem}; until then sparse layers run on torch's sparse rows, or dense", stacklevel=2)
        return False
    return True


def forward(x: Tensor, matrix: Tensor, bias: Tensor | None, index: Index) -> tuple[Tensor, Tensor]:
    """Return x Wᵀ + bias and the values of W.

    Args:
        x: (batch, columns).
        matrix: the values of W's entries, n in any shape but that of W; or W, (rows, columns), whose other entries do not count.
        bias: (rows,), or none.
        index: of W's entries.

    Returns: (batch, rows) and the values, as they were given, or (n,).
    """
    is_dense = matrix.ndim == 2
    if not is_compiled():
        values = matrix.reshape(-1).index_select(0, index.positions()) if is_dense else matrix
        y = (_rows(index, values) @ x.t()).t()
        return (y if bias is None else y + bias).contiguous(), values
    y = x.new_empty(x.shape[0], index.rows)
    values = x.new_empty(index.entries) if is_dense else matrix
    places, kernel = _places(index)
    arrays = *places, matrix if is_dense else None, values, x, bias, y
    _call(f"{kernel}_forward", x, index, *arrays)
    return y, values


def backward(
    x: Tensor,
    values: Tensor,
    dy: Tensor,
    index: Index,
    *,
    wants_x: bool,
    wants_values: bool,
    into: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients to x, (batch, columns), and to the values, of their shape, given that to y, (batch, rows).

    The latter is written into a matrix (rows, columns), with zeros elsewhere, where one is given, which is returned then.
    """
    if not is_compiled():
        dx = (_columns(index, values) @ dy.t()).t().contiguous() if wants_x else None
        dvalues = (dy.t() @ x).reshape(-1).index_select(0, index.positions()) if wants_values else None
        if dvalues is None or into is None:
            return dx, dvalues if dvalues is None else dvalues.view_as(values)
        return dx, into.copy_(dense(dvalues, index))
    dx = torch.empty_like(x) if wants_x else None
    dvalues = torch.empty_like(values) if wants_values else None
    if wants_x or wants_values:
        places, kernel = _places(index)
        if isinstance(index, RowIndex):
            places = *places, index.column_start, index.row, index.place
        _call(f"{kernel}_backward", x, index, *places, values, x, dy, dx, dvalues, into if wants_values else None)
    return dx, dvalues if dvalues is None or into is None else into


def dense(values: Tensor, index: Index) -> Tensor:
    """Return the matrix (rows, columns) that has these n entries, and is 0 elsewhere; autograd knows how."""
    flat = values.new_zeros(index.rows * index.columns)
    return flat.index_put((index.positions(),), values.reshape(-1)).view(index.rows, index.columns)


def _places(index: Index) -> tuple[tuple[Tensor, ...], str]:
    """The arrays that say where entries or blocks lie, row by row, and the name of the kernels for them."""
    if isinstance(index, BlockIndex):
        return (index.start, index.column), "blocks"
    return (index.row_start, index.column), "linear"


def _call(kernel: str, x: Tensor, index: Index, *arrays: Tensor | None) -> None:
    function = getattr(kernels.library(), f"flatsparse_{kernel}")
    function(x.shape[0], index.columns, index.rows, *map(pointer, arrays), threads())


def _rows(index: Index, values: Tensor) -> Tensor:
    size, index = (index.rows, index.columns), _unblocked(index)
    return torch.sparse_csr_tensor(index.row_start, index.column, values.reshape(-1), size, check_invariants=False)


def _columns(index: Index, values: Tensor) -> Tensor:
    """The transposed matrix, in rows."""
    size, index = (index.columns, index.rows), _unblocked(index)
    by_column = values.reshape(-1).index_select(0, index.place)
    return torch.sparse_csr_tensor(index.column_start, index.row, by_column, size, check_invariants=False)


def _unblocked(index: Index) -> RowIndex:
    return index.by_rows if isinstance(index, BlockIndex) else index

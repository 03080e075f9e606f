"""The products of a sparse matrix and a batch: by compiled kernels, or by torch's sparse rows where no compiler is at hand.

Everything here is float32, on the CPU, contiguous and without autograd.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from flatsparse.acceleration import kernels
from flatsparse.acceleration.index import Index
from flatsparse.acceleration.kernels import pointer, threads
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


def forward(x: Tensor, values: Tensor, bias: Tensor | None, index: Index) -> Tensor:
    """Return x Wᵀ + bias, (batch, rows), of x (batch, columns), the values (n,) of W and a bias (rows,) or none."""
    if not is_compiled():
        y = (_rows(index, values) @ x.t()).t()
        return (y if bias is None else y + bias).contiguous()
    y = x.new_empty(x.shape[0], index.rows)
    kernels.library().flatsparse_linear_forward(
        x.shape[0],
        index.columns,
        index.rows,
        *map(pointer, (index.row_start, index.column, values, x, bias, y)),
        threads(),
    )
    return y


def backward(
    x: Tensor, values: Tensor, dy: Tensor, index: Index, *, wants_x: bool, wants_values: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients to x, (batch, columns), and to the values, (n,), given that to y, (batch, rows)."""
    if not is_compiled():
        dx = (_columns(index, values) @ dy.t()).t().contiguous() if wants_x else None
        return dx, take(dy.t() @ x, index) if wants_values else None
    dx = torch.empty_like(x) if wants_x else None
    dvalues = torch.empty_like(values) if wants_values else None
    if wants_x or wants_values:
        kernels.library().flatsparse_linear_backward(
            x.shape[0],
            index.columns,
            index.rows,
            *map(pointer, (index.column_start, index.row, index.place, values, x, dy, dx, dvalues)),
            threads(),
        )
    return dx, dvalues


def take(matrix: Tensor, index: Index) -> Tensor:
    """Return the entries, (n,), of a dense matrix (rows, columns)."""
    if not is_compiled():
        return matrix.reshape(-1).index_select(0, index.positions())
    values = matrix.new_empty(index.entries)
    kernels.library().flatsparse_gather(
        index.columns, index.rows, *map(pointer, (index.row_start, index.column, matrix, values)), threads()
    )
    return values


def put(values: Tensor, index: Index) -> Tensor:
    """Return the dense matrix (rows, columns) that has these entries, and is 0 elsewhere."""
    if not is_compiled():
        return dense(values, index)
    matrix = values.new_empty(index.rows, index.columns)
    kernels.library().flatsparse_scatter(
        index.columns, index.rows, *map(pointer, (index.row_start, index.column, values, matrix)), threads()
    )
    return matrix


def dense(values: Tensor, index: Index) -> Tensor:
    """Return the same matrix as ``put``, by operations that autograd knows."""
    flat = values.new_zeros(index.rows * index.columns)
    return flat.index_put((index.positions(),), values).view(index.rows, index.columns)


def _rows(index: Index, values: Tensor) -> Tensor:
    size = index.rows, index.columns
    return torch.sparse_csr_tensor(index.row_start, index.column, values, size, check_invariants=False)


def _columns(index: Index, values: Tensor) -> Tensor:
    """The transposed matrix, in rows."""
    size = index.columns, index.rows
    by_column = values.index_select(0, index.place)
    return torch.sparse_csr_tensor(index.column_start, index.row, by_column, size, check_invariants=False)

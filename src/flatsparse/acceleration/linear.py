"""A linear layer over the entries of a sparse matrix, for autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from flatsparse.acceleration import products
from flatsparse.acceleration.gradient_memory import GradientMemory
from flatsparse.acceleration.index import Index


def linear(
    x: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    index: Index,
    wants_whole: Callable[[], bool] | None = None,
    memory: GradientMemory | None = None,
) -> Tensor:
    """Return ``F.linear(x, W, bias)`` of a sparse W, with gradients to x, to W and to the bias.

    The gradient to W is that of its entries, and 0 elsewhere. A gradient of these gradients is computed densely.

    Args:
        x: float32, (…, columns), on the CPU.
        matrix: float32; the values of the n entries, in any shape but that of W; or W, whose other entries do not count.
        bias: float32, (rows,), or none.
        index: of W's entries.
        wants_whole: called in the backward pass; where it returns true, a matrix (rows, columns) gets its whole gradient.
        memory: for the gradient of a matrix (rows, columns).

    Returns: (…, rows).

    >>> from flatsparse.acceleration.index import index_of
    >>> index = index_of(torch.tensor([[False, True], [True, True]]))
    >>> linear(torch.tensor([[1.0, 10.0]]), torch.tensor([2.0, 3.0, 4.0]), None, index)
    tensor([[20., 43.]])
    """
    rows = x if x.ndim == 2 else x.reshape(-1, index.columns)
    y = _Linear.apply(rows, matrix, bias, index, wants_whole, memory)
    return y if x.ndim == 2 else y.view(*x.shape[:-1], index.rows)


class _Linear(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        index: Index,
        wants_whole: Callable[[], bool] | None,
        memory: GradientMemory | None,
    ) -> Tensor:
        x = x.contiguous()
        y, values = products.forward(x, matrix.contiguous(), bias, index)
        ctx.save_for_backward(x, matrix, values)
        ctx.shape = matrix.shape
        ctx.index, ctx.wants_whole, ctx.memory = index, wants_whole, memory or GradientMemory()
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix, values = ctx.saved_tensors
        wants_x, wants_matrix, wants_bias = ctx.needs_input_grad[:3]
        check_form(ctx.shape, matrix)
        index: Index = ctx.index
        is_dense = matrix.ndim == 2
        whole = wants_matrix and is_dense and ctx.wants_whole is not None and ctx.wants_whole()
        dbias = dy.sum(0) if wants_bias else None
        if torch.is_grad_enabled():  # create_graph
            to_x, to_matrix = _dense(x, matrix, dy, index, whole)
            return to_x if wants_x else None, to_matrix if wants_matrix else None, dbias, None, None, None
        dy = dy.contiguous()
        wants_values = wants_matrix and not whole
        into = ctx.memory.empty(index.rows, index.columns) if wants_values and is_dense else None
        dx, dmatrix = products.backward(x, values, dy, index, wants_x=wants_x, wants_values=wants_values, into=into)
        return dx, dy.t() @ x if whole else dmatrix, dbias, None, None, None


def check_form(shape: torch.Size, weight: Tensor) -> None:
    """Raise RuntimeError when a weight was packed or unpacked since its forward: autograd cannot deliver its gradient then.

    Where shapes happen to broadcast, torch would deliver another instead of an error.
    """
    if weight.shape != shape:
        raise RuntimeError(
            "accelerated weights were unpacked between a forward pass and its backward pass: copy the model, or call unpack(),"
            " restore() or detach(), after backward(); or give accelerate packed=False"
        )


def _dense(x: Tensor, matrix: Tensor, dy: Tensor, index: Index, whole: bool) -> tuple[Tensor, Tensor]:
    """The gradients to x and to the matrix, by operations that autograd knows."""
    positions = index.positions()
    is_dense = matrix.ndim == 2
    values = matrix.reshape(-1).index_select(0, positions) if is_dense else matrix
    dmatrix = dy.t() @ x
    if not whole:
        dvalues = dmatrix.reshape(-1).index_select(0, positions)
        dmatrix = products.dense(dvalues, index) if is_dense else dvalues.view_as(matrix)
    return dy @ products.dense(values, index), dmatrix

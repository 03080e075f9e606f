"""Linear layers over the live values of a sparse matrix, for autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from flatsparse.acceleration import products
from flatsparse.acceleration.index import Index


class Whole:
    """The whole gradient of a matrix, handed from where it is computed to the parameter that the values were taken from.

    Attributes:
        wanted: called in the backward pass; returns whether the whole gradient is needed there.
        gradient: (rows, columns), once it is computed.
    """

    def __init__(self, wanted: Callable[[], bool]) -> None:
        self.wanted = wanted
        self.gradient: Tensor | None = None


def linear(x: Tensor, values: Tensor, bias: Tensor | None, index: Index, whole: Whole | None = None) -> Tensor:
    """Return ``F.linear(x, W, bias)`` of a sparse W, with gradients to x, to the values and to the bias.

    A gradient of these gradients is computed by the dense matrix.

    Args:
        x: float32, (…, columns), on the CPU.
        values: of W's entries, float32, (n,).
        bias: float32, (rows,), or none.
        index: of W's entries.
        whole: asked in the backward pass whether it takes the gradient of all of W.

    Returns: (…, rows).

    >>> from flatsparse.acceleration.index import index_of
    >>> mask = torch.tensor([[False, True], [True, True]])
    >>> linear(torch.tensor([[1.0, 10.0]]), torch.tensor([2.0, 3.0, 4.0]), None, index_of(mask))
    tensor([[20., 43.]])
    """
    rows = x.reshape(-1, index.columns)
    return _Linear.apply(rows, values, bias, index, whole).view(*x.shape[:-1], index.rows)


def live(weight: Tensor, index: Index, whole: Whole | None = None) -> Tensor:
    """Return the values, (n,), of a dense matrix's entries; its gradient is 0 elsewhere, unless it is handed on whole."""
    return _Live.apply(weight, index, whole)


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, index: Index, whole: Whole | None) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, values)
        ctx.index, ctx.whole = index, whole
        return products.forward(x, values, bias, index)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, values = ctx.saved_tensors
        wants_x, wants_values, wants_bias = ctx.needs_input_grad[:3]
        whole: Whole | None = ctx.whole
        asks = wants_values and whole is not None and whole.wanted()
        dbias = dy.sum(0) if wants_bias else None
        dweight = None
        if torch.is_grad_enabled():  # create_graph
            dx = dy @ products.dense(values, ctx.index) if wants_x else None
            dweight = dy.t() @ x if wants_values else None
            dvalues = None if dweight is None else dweight.reshape(-1).index_select(0, ctx.index.positions())
        else:
            dy, to_values = dy.contiguous(), wants_values and not asks
            dx, dvalues = products.backward(x, values, dy, ctx.index, wants_x=wants_x, wants_values=to_values)
            if asks:
                dweight = dy.t() @ x
                dvalues = products.take(dweight, ctx.index)
        if whole is not None:
            whole.gradient = dweight if asks else None
        return dx, dvalues, dbias, None, None


class _Live(Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, index: Index, whole: Whole | None) -> Tensor:
        ctx.index, ctx.whole = index, whole
        return products.take(weight, index)

    @staticmethod
    def backward(ctx: Any, dvalues: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.whole is not None and ctx.whole.gradient is not None:
            gradient, ctx.whole.gradient = ctx.whole.gradient, None
        elif torch.is_grad_enabled():
            gradient = products.dense(dvalues, ctx.index)
        else:
            gradient = products.put(dvalues.contiguous(), ctx.index)
        return gradient, None, None

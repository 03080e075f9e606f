"""Whether a trace computes what its model does: a trace keeps what a forward decided when its input had no values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.acceleration.network_state import Undone

DIFFERENCE = 1e-3  # of the largest entry: far above rounding


def computes_the_same(model: nn.Module, traced: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a trace gives the model's output and changes the same, for one input. The model is left as it was.

    Args:
        model: of its plain class.
        traced: the trace of it.
        args, kwargs: the tensors to call both with; copies of them are used.

    Raises: what the model raises for this input.
    """
    # The tensors that a checkpoint counts are those of the call itself.
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.new_empty(0), lambda empty: empty):
        wanted, changed = _result(model, model, args, kwargs)
        try:
            got, _ = _result(traced, model, args, kwargs)
        except Exception:  # such as an operation that has no value at hand
            return False
    return not changed and _is_near(got, wanted)


def _result(what: nn.Module, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, bool]:
    """The output, buffers and generators after a call; and whether it changed attributes."""
    args = tuple(value.detach().clone() for value in args)
    kwargs = {name: value.detach().clone() for name, value in kwargs.items()}
    with Undone(model) as undone:
        output = what.forward(*args, **kwargs)
        buffers = _joined(list(model.buffers()))
    return (output, args, kwargs, buffers, undone.generators), undone.changed


def _joined(buffers: list[Tensor]) -> list[Tensor]:
    """Copies of buffers; those with fractions in one, for a mean that is zero but for rounding is no scale by itself."""
    exact = [b.clone() for b in buffers if not b.is_floating_point()]
    rest = [b.detach().reshape(-1).to("cpu", torch.float64) for b in buffers if b.is_floating_point()]
    return [*exact, torch.cat(rest)] if rest else exact


def _is_near(got: Any, wanted: Any) -> bool:
    if isinstance(wanted, Tensor):
        return isinstance(got, Tensor) and _tensor_is_near(got.detach(), wanted.detach())
    if isinstance(wanted, (tuple, list)):
        same = isinstance(got, (tuple, list)) and len(got) == len(wanted)
        return same and all(map(_is_near, got, wanted))
    if isinstance(wanted, dict):
        same = isinstance(got, dict) and got.keys() == wanted.keys()
        return same and all(_is_near(got[key], value) for key, value in wanted.items())
    return type(got) is type(wanted) and bool(got == wanted)


def _tensor_is_near(got: Tensor, wanted: Tensor) -> bool:
    if (got.shape, got.dtype, got.device) != (wanted.shape, wanted.dtype, wanted.device):
        return False
    if not wanted.is_floating_point() or not wanted.numel():
        return torch.equal(got, wanted)
    finite = wanted.isfinite()  # elsewhere kernels that skip zeros may give infinity for NaN
    got, wanted = got[finite], wanted[finite]
    return not wanted.numel() or bool((got - wanted).abs().max() <= DIFFERENCE * wanted.abs().max() + 1e-7)

"""The Hessian of a loss at a model's weights, as products with vectors."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatsparse.common.errors import InputError, unknown

Loss = Callable[[], Tensor | Iterable[Tensor]]


class Hessian:
    """The Hessian of a loss at a model's weights, known by its products with vectors (Pearlmutter 1994).

    Rows are the entries of ``model.parameters()`` that are trained, one parameter after the other in row-major order; with
    masks only the active ones of them, biases and norms included: the sub-matrix that sparse training sees. Attention is
    computed by its formula and compiled models run as they were written, because the fast forms have no second derivative.

    Args:
        model: the network; a product is taken at the weights as they are, and changes nothing.
        loss: computes the loss, as a scalar or as terms that sum to it, say one a batch, which then are differentiated one
            at a time. It must be the same function at every call: the same images, evaluation mode.
        masks: by the parameter's name, true where it is active; parameters without one are all active.

    Raises: InputError for a mask without a parameter of its name and shape, and at a product when the loss has no second
    derivative.

    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> hessian = Hessian(net, lambda: (net(torch.tensor([[1.0, 2.0]])) ** 2).sum())
    >>> hessian @ torch.tensor([1.0, 0.0])
    tensor([2., 4.])
    """

    def __init__(self, model: nn.Module, loss: Loss, masks: Mapping[str, Tensor] | None = None) -> None:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for name, mask in (masks or {}).items():
            if name not in named:
                raise unknown("parameter", name, named)
            if mask.shape != named[name].shape:
                raise InputError(
                    f"the mask of '{name}' is {tuple(mask.shape)}, the parameter {tuple(named[name].shape)}: give the"
                    " masks of this model"
                )
        self.parameters, self.loss = list(named.values()), loss
        self._active: Tensor | None = None  # indices into the vector of all weights
        if masks:
            flat = [masks.get(name, torch.ones_like(p, dtype=torch.bool)).flatten() for name, p in named.items()]
            self._active = torch.cat([m.to(self.parameters[0].device) for m in flat]).nonzero().squeeze(1)

    @property
    def size(self) -> int:
        """The number of rows."""
        return sum(p.numel() for p in self.parameters) if self._active is None else len(self._active)

    def vector(self) -> Tensor:
        """A vector of zeros (size,), of the parameters' type and on their device."""
        return self.parameters[0].new_zeros(self.size, requires_grad=False)

    def __matmul__(self, vector: Tensor) -> Tensor:
        """The product with a vector (size,), in the vector's type; it is computed in the parameters'."""
        full = self.parameters[0].new_zeros(sum(p.numel() for p in self.parameters), requires_grad=False)
        rows = slice(None) if self._active is None else self._active
        full[rows] = vector.to(full)
        pieces = full.split([p.numel() for p in self.parameters])
        along = [piece.view_as(p) for piece, p in zip(pieces, self.parameters, strict=True)]
        product = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        with torch.enable_grad(), _twice_differentiable():
            terms = self.loss()
            for term in [terms] if isinstance(terms, Tensor) else terms:
                slopes = torch.autograd.grad(term, self.parameters, create_graph=True, allow_unused=True)
                curved = [(s, v) for s, v in zip(slopes, along, strict=True) if s is not None and s.requires_grad]
                if not curved:  # a linear term
                    continue
                slope = torch.stack([(s * v).sum() for s, v in curved]).sum()
                for total, part in zip(
                    product, torch.autograd.grad(slope, self.parameters, allow_unused=True), strict=True
                ):
                    if part is not None:
                        total += part
        return torch.cat([total.flatten() for total in product])[rows].to(vector)


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """A context in which second derivatives exist wherever torch has them; elsewhere an InputError says what has none."""
    compiled = "torch._dynamo" in sys.modules  # else nothing is, and importing it takes seconds
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    except RuntimeError as problem:
        line = str(problem).partition("\n")[0]
        if not re.search(r"derivative .*not implemented|double backward|once_differentiable", line):
            raise
        raise InputError(
            f"the loss has no second derivative ({line}): give a loss or a model without that operation"
        ) from problem

"""The Hessian of a loss at a model's weights, as products with vectors."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatsparse.common.errors import InputError, unknown
from flatsparse.common.memory import free_memory
from flatsparse.common.tensors import Version, versions

SHARE = 0.25  # of the free memory, that kept graphs may take
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
        self._keeps = False  # whether graphs are kept, once they are there
        self._kept: _Graphs | None = None
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
            for slopes, kept in self._gradients():
                curved = [(s, v) for s, v in zip(slopes, along, strict=True) if s is not None and s.requires_grad]
                if not curved:  # a linear term
                    continue
                slope = torch.stack([(s * v).sum() for s, v in curved]).sum()
                parts = torch.autograd.grad(slope, self.parameters, allow_unused=True, retain_graph=kept)
                for total, part in zip(product, parts, strict=True):
                    if part is not None:
                        total += part
        return torch.cat([total.flatten() for total in product])[rows].to(vector)

    @contextmanager
    def keeping_graphs(self) -> Iterator[None]:
        """A context in which the gradient's graph is kept from one product to the next, which is half as fast again.

        It is not where its tensors would take more than a quarter of the free memory; then each product makes it anew, as
        outside. It is made anew too when the weights are written to. Products are the same, bit for bit.
        """
        if self._keeps:  # by a context around this one
            yield
            return
        self._keeps = True
        try:
            yield
        finally:
            self._keeps, self._kept = False, None

    def _gradients(self) -> Iterator[tuple[Sequence[Tensor | None], bool]]:
        """The gradient of each term of the loss, with its graph, and whether that is kept."""
        now = versions(self.parameters)
        if self._kept is not None and self._kept.versions == now:
            yield from ((slopes, True) for slopes in self._kept.gradients)
            return
        self._kept = None
        graphs = _Graphs(now, int(free_memory(str(self.parameters[0].device)) * SHARE)) if self._keeps else None
        terms = self.loss()
        for term in [terms] if isinstance(terms, Tensor) else terms:
            slopes = torch.autograd.grad(term, self.parameters, create_graph=True, allow_unused=True)
            if graphs is not None and not graphs.take(slopes, self.parameters):
                graphs, self._keeps = None, False
            yield slopes, graphs is not None
        self._kept = graphs


@dataclass
class _Graphs:
    """Gradients with their graphs.

    Attributes:
        versions: of the parameters that they were made at.
        room: bytes that more of them may take.
        gradients: of each term of the loss.
    """

    versions: list[Version]
    room: int
    gradients: list[Sequence[Tensor | None]] = field(default_factory=list)

    def take(self, slopes: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> bool:
        """Keep one more term's gradient; false when there is no room for it, or what it takes cannot be told."""
        try:
            self.room -= _saved_bytes([s for s in slopes if s is not None], parameters)
        except RuntimeError:  # a graph that is made again when it is read (checkpointing)
            return False
        self.gradients.append(slopes)
        return self.room >= 0


def _saved_bytes(outputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> int:
    """The bytes of all tensors that the graph of some outputs holds, without those of the parameters."""
    sizes: dict[int, int] = {}
    seen: set[Any] = set()
    stack = [output.grad_fn for output in outputs]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        stack += [following for following, _ in node.next_functions]
        for name in _saved_names(type(node)):
            value = getattr(node, name)
            for tensor in value if isinstance(value, (tuple, list)) else [value]:
                if isinstance(tensor, Tensor):
                    storage = tensor.untyped_storage()
                    sizes[storage.data_ptr()] = storage.nbytes()
    for p in parameters:
        sizes.pop(p.untyped_storage().data_ptr(), None)
    return sum(sizes.values())


@functools.cache
def _saved_names(kind: type) -> list[str]:
    return [name for name in dir(kind) if name.startswith("_saved_") or name == "saved_tensors"]


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

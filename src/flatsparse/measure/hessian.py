"""How a loss is curved at the weights: Hessian products, extreme eigenvalues, trace and spectral density.

Eigenvalues and the trace need scipy, which ``pip install 'flatsparse[lab]'`` brings.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatsparse.common.errors import InputError, check_count, unknown
from flatsparse.common.seeds import generator

Loss = Callable[[], Tensor | Iterable[Tensor]]


class Hessian:
    """The Hessian of a loss at a model's weights, known by its products with vectors (Pearlmutter 1994).

    Rows are the entries of ``model.parameters()`` that are trained, one parameter after the other in row-major order; with
    masks only the live ones of them, biases and norms included: the sub-matrix that sparse training sees. Attention is computed
    by its formula and compiled models run as they were written, because the fast forms have no second derivative.

    Args:
        model: the network; a product is taken at the weights as they are, and changes nothing.
        loss: computes the loss, as a scalar or as terms that sum to it, say one a batch, which then are differentiated one
            at a time. It must be the same function at every call: the same images, evaluation mode.
        masks: by the parameter's name, true where it is live; parameters without one are live.

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
        self._live: Tensor | None = None  # places in the vector of all weights
        if masks:
            flat = [masks.get(name, torch.ones_like(p, dtype=torch.bool)).flatten() for name, p in named.items()]
            self._live = torch.cat([m.to(self.parameters[0].device) for m in flat]).nonzero().squeeze(1)

    @property
    def size(self) -> int:
        """How many rows there are."""
        return sum(p.numel() for p in self.parameters) if self._live is None else len(self._live)

    def vector(self) -> Tensor:
        """A vector of zeros that fits."""
        return self.parameters[0].new_zeros(self.size, requires_grad=False)

    def __matmul__(self, vector: Tensor) -> Tensor:
        """The product with a vector (size,), in the vector's type; it is computed in the parameters'."""
        whole = self.parameters[0].new_zeros(sum(p.numel() for p in self.parameters), requires_grad=False)
        places = slice(None) if self._live is None else self._live
        whole[places] = vector.to(whole)
        pieces = whole.split([p.numel() for p in self.parameters])
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
        return torch.cat([total.flatten() for total in product])[places].to(vector)


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


@dataclass(frozen=True)
class Estimate:
    """A mean of random samples, and half of its 95 % interval (Student's)."""

    value: float
    half: float


def eigenvalues(
    hessian: Hessian,
    count: int = 1,
    ends: Literal["largest", "smallest", "both"] = "largest",
    *,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Eigenvalues at the ends of the spectrum, in falling order (implicitly restarted Lanczos: ARPACK, through scipy).

    Args:
        count: how many; of both ends, half from each.
        ends: by value, so that the smallest is the most negative.
        tolerance: relative accuracy.
        seed: of the vector to start from.

    Raises: InputError for as many as there are rows, when they do not settle, or without scipy.
    """
    linalg = _scipy("sparse.linalg")
    check_count("count", count)
    if count >= hessian.size:
        raise InputError(f"count {count} is not below the Hessian's {hessian.size} rows: give fewer")
    like = hessian.vector().double()

    def times(vector: np.ndarray) -> np.ndarray:
        product = hessian @ torch.as_tensor(vector.reshape(-1)).to(like)
        return np.asarray(product.cpu().numpy())

    operator = linalg.LinearOperator((hessian.size, hessian.size), matvec=times, dtype=np.float64)
    start = torch.randn(hessian.size, generator=generator(seed, "eigenvalues"), dtype=torch.float64).numpy()
    which = {"largest": "LA", "smallest": "SA", "both": "BE"}[ends]
    try:
        found = linalg.eigsh(operator, k=count, which=which, v0=start, tol=tolerance, return_eigenvectors=False)
    except linalg.ArpackNoConvergence:
        raise InputError(
            f"the {ends} eigenvalues did not settle to {tolerance:g}: give a larger tolerance, or fewer of them"
        ) from None
    return sorted(map(float, found), reverse=True)


def trace(hessian: Hessian, samples: int = 30, seed: int = 0) -> Estimate:
    """The trace, as the mean of ``vᵀHv`` over random signs v (Hutchinson 1990).

    Args:
        samples: how many products are averaged; at least two, for the interval.

    Raises: InputError for fewer, or without scipy.
    """
    special = _scipy("special")
    check_count("samples", samples, minimum=2)
    source, found = generator(seed, "trace"), []
    for _ in range(samples):
        signs = _signs(hessian, source)
        found.append(float(signs @ (hessian @ signs)))
    half = special.stdtrit(samples - 1, 0.975) * np.std(found, ddof=1) / samples**0.5
    return Estimate(float(np.mean(found)), float(half))


@dataclass(frozen=True)
class Spectrum:
    """The spectral density as weighted points: ``Σ weight · f(node)`` is close to the mean of f over the eigenvalues.

    Attributes:
        nodes, weights: (n,), in no order; the weights sum to 1.
    """

    nodes: Tensor
    weights: Tensor

    def density(self, at: Tensor, width: float) -> Tensor:
        """The density at some places, each point spread to a Gaussian of that standard deviation."""
        distance = (at.to(self.nodes)[:, None] - self.nodes) / width
        return (torch.exp(-(distance**2) / 2) * self.weights).sum(1) / (width * (2 * torch.pi) ** 0.5)


def spectrum(hessian: Hessian, starts: int = 3, steps: int = 60, seed: int = 0) -> Spectrum:
    """The spectral density by stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017; Ghorbani et al. 2019, Alg. 1 and 2).

    Args:
        starts: random vectors of signs that are averaged.
        steps: products for each; the quadrature is exact for polynomials of degree ``2·steps − 1``.
    """
    check_count("starts", starts)
    check_count("steps", steps)
    source, nodes, weights = generator(seed, "spectrum"), [], []
    for _ in range(starts):
        values, vectors = torch.linalg.eigh(_lanczos(hessian, _signs(hessian, source), steps))
        nodes.append(values)
        weights.append(vectors[0] ** 2 / starts)
    return Spectrum(torch.cat(nodes), torch.cat(weights))


def extremes(
    model: nn.Module,
    loss: Loss,
    masks: Mapping[str, Tensor] | None = None,
    *,
    samples: int = 10,
    tolerance: float = 1e-2,
    seed: int = 0,
) -> dict[str, Any]:
    """The ends of the spectrum and the trace, over all weights and over the live ones.

    Args:
        model, loss, masks: see ``Hessian``.
        samples: of each trace.
        tolerance: of each eigenvalue.

    Returns: ``{"all": {"weights", "largest", "smallest", "trace", "trace_half"}, "live": {…}}``; ``trace_half`` is half of a
    95 % interval.
    """
    told: dict[str, Any] = {}
    for space, kept in (("all", None), ("live", masks or None)):
        hessian = Hessian(model, loss, kept)
        if told and hessian.size == told["all"]["weights"]:
            told[space] = told["all"]
            continue
        largest, smallest = eigenvalues(hessian, 2, "both", tolerance=tolerance, seed=seed)
        sum_of_all = trace(hessian, samples, seed)
        told[space] = {
            "weights": hessian.size,
            "largest": largest,
            "smallest": smallest,
            "trace": sum_of_all.value,
            "trace_half": sum_of_all.half,
        }
    return told


def _scipy(part: str) -> Any:
    try:
        return importlib.import_module(f"scipy.{part}")
    except ModuleNotFoundError:
        raise InputError("eigenvalues and traces need 'scipy': install it with pip install 'flatsparse[lab]'") from None


def _signs(hessian: Hessian, source: torch.Generator) -> Tensor:
    """Plus and minus ones, in double precision."""
    signs = torch.randint(0, 2, (hessian.size,), generator=source) * 2.0 - 1.0
    return signs.to(hessian.vector()).double()


def _lanczos(hessian: Hessian, start: Tensor, steps: int) -> Tensor:
    """The Hessian on the space of ``start, H start, H² start, …``, as a tridiagonal matrix (at most steps, steps).

    Every vector is made orthogonal to all before it, twice, without which large eigenvalues come out several times.
    """
    basis = [start / start.norm()]
    diagonal, beside = [], []
    for _ in range(min(steps, hessian.size)):
        product = hessian @ basis[-1]
        diagonal.append(product @ basis[-1])
        known = torch.stack(basis)
        for _ in range(2):
            product = product - known.T @ (known @ product)
        length = product.norm()
        if length <= 1e-6 * torch.stack(diagonal).abs().max():  # the space is exhausted
            break
        beside.append(length)
        basis.append(product / length)
    off = torch.stack(beside[: len(diagonal) - 1]) if len(diagonal) > 1 else diagonal[0].new_zeros(0)
    return torch.diag(torch.stack(diagonal)) + torch.diag(off, 1) + torch.diag(off, -1)

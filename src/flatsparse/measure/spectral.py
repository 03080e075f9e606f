"""Eigenvalues at the ends of a Hessian's spectrum, its trace and its spectral density, from products with vectors alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flatsparse.common.errors import InputError, check_count
from flatsparse.common.seeds import generator
from flatsparse.measure.hessian import Hessian, Loss
from flatsparse.measure.lanczos import extreme_eigenvalues, tridiagonal


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
    """Eigenvalues at the ends of the spectrum, in falling order (Lanczos with full reorthogonalization and restarts).

    Twenty vectors of the Hessian's size are held in double precision, or twice ``count`` if that is more. Of an eigenvalue
    that occurs several times, some occurrences may be missing, as with every method that starts from one vector.

    Args:
        count: the number of eigenvalues; of both ends, half from each.
        ends: by value, so that the smallest is the most negative.
        tolerance: relative accuracy, down to the precision of the products: an eigenvalue near 0 has an absolute error of
            the parameters' machine precision times the largest one.
        seed: of the vector to start from.

    Raises: InputError for as many as there are rows, when they do not converge, and when a product is not finite.
    """
    check_count("count", count)
    if count >= hessian.size:
        raise InputError(f"count {count} is not below the Hessian's {hessian.size} rows: give fewer")
    low = {"largest": 0, "smallest": count, "both": count // 2}[ends]
    source, like = generator(seed, "eigenvalues"), hessian.vector().double()

    def times(vector: Tensor) -> Tensor:
        product = hessian @ vector
        if not bool(product.isfinite().all()):
            raise InputError(
                "the Hessian is not finite at these weights: lower the learning rate, or take earlier weights"
            )
        return product

    with hessian.keeping_graphs():
        values = extreme_eigenvalues(
            times,
            lambda: torch.randn(hessian.size, generator=source, dtype=torch.float64).to(like),
            low,
            count - low,
            tolerance=tolerance,
            precision=torch.finfo(hessian.vector().dtype).eps,
        )
    if values is None:
        raise InputError(
            f"the {ends} eigenvalues did not settle to {tolerance:g}: give a larger tolerance, or fewer of them"
        )
    return [float(value) for value in values.flip(0)]


def trace(hessian: Hessian, samples: int = 30, seed: int = 0) -> Estimate:
    """The trace, as the mean of ``vᵀHv`` over random signs v (Hutchinson 1990).

    Args:
        samples: the number of products averaged; at least two, for the interval.

    Raises: InputError for fewer.
    """
    check_count("samples", samples, minimum=2)
    source, products = generator(seed, "trace"), []
    with hessian.keeping_graphs():
        for _ in range(samples):
            signs = _signs(hessian, source)
            products.append(float(signs @ (hessian @ signs)))
    half = _student(samples - 1) * statistics.stdev(products) / math.sqrt(samples)
    return Estimate(statistics.fmean(products), half)


@dataclass(frozen=True)
class Spectrum:
    """The spectral density as weighted points: ``Σ weight · f(node)`` is close to the mean of f over the eigenvalues.

    Attributes:
        nodes, weights: (n,), in no order; the weights sum to 1.
    """

    nodes: Tensor
    weights: Tensor

    def density(self, at: Tensor, width: float) -> Tensor:
        """The density at the values ``at`` (m,), each point spread to a Gaussian of that standard deviation."""
        distance = (at.to(self.nodes)[:, None] - self.nodes) / width  # (m, n)
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
    with hessian.keeping_graphs():
        for _ in range(starts):
            values, vectors = torch.linalg.eigh(tridiagonal(lambda v: hessian @ v, _signs(hessian, source), steps))
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
    """The ends of the spectrum and the trace, over all weights and over the active ones.

    Args:
        model, loss, masks: see ``Hessian``.
        samples: of each trace.
        tolerance: of each eigenvalue.

    Returns: ``{"all": {"weights", "largest", "smallest", "trace", "trace_half"}, "live": {…}}``, ``live`` being the active
    weights; ``trace_half`` is half of a 95 % interval.
    """
    results: dict[str, Any] = {}
    for space, restricted in (("all", None), ("live", masks or None)):
        hessian = Hessian(model, loss, restricted)
        if results and hessian.size == results["all"]["weights"]:
            results[space] = results["all"]
            continue
        with hessian.keeping_graphs():
            largest, smallest = eigenvalues(hessian, 2, "both", tolerance=tolerance, seed=seed)
            total = trace(hessian, samples, seed)
        results[space] = {
            "weights": hessian.size,
            "largest": largest,
            "smallest": smallest,
            "trace": total.value,
            "trace_half": total.half,
        }
    return results


def _signs(hessian: Hessian, source: torch.Generator) -> Tensor:
    """Plus and minus ones, in double precision."""
    signs = torch.randint(0, 2, (hessian.size,), generator=source) * 2.0 - 1.0
    return signs.to(hessian.vector()).double()


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by bisection over its distribution for whole degrees of freedom.

    With ``t = √f · tan θ`` the probability within ±t is a finite sum of powers of cos θ (Abramowitz & Stegun 26.7.3 and 4).
    """
    low, high = 0.0, math.pi / 2
    while (angle := (low + high) / 2) not in (low, high):
        low, high = (angle, high) if _within(angle, freedom) < 0.95 else (low, angle)
    return math.sqrt(freedom) * math.tan(angle)


def _within(angle: float, freedom: int) -> float:
    odd = freedom % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for power in range(2 + odd, freedom + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power - 1) / power
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if odd else total

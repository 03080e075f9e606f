"""Theory of S²-SAM: its update in plain form, bounds with all their constants, and its limit on a quadratic bowl."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flatsparse.common.errors import check_count, check_finite
from flatsparse.schedules import Schedule

Gradient = Callable[[Tensor], Tensor]


def s2sam_path(
    gradient: Gradient, start: Tensor, *, lr: float, rho: float | Schedule, steps: int, decay: float = 0.0
) -> Tensor:
    """The weights of S²-SAM on a known loss (Ji et al. 2024, eq. 5-7; the first step, which is left open, unperturbed).

    Args:
        gradient: of the loss, at any weights (n,).
        start: (n,).
        lr, decay: η and λ of plain gradient descent, without momentum.
        rho: the radius, or a schedule of it by step, counted from 1.

    Returns: (steps + 1, n), the start first.

    >>> s2sam_path(lambda x: x, torch.tensor([1.0]), lr=0.5, rho=0.2, steps=2).squeeze().tolist()
    [1.0, 0.5, 0.15000000596046448]
    """
    w, previous, path = start, torch.zeros_like(start), [start]
    for step in range(1, steps + 1):
        previous = gradient(w + _radius(rho, step) * _unit(previous))
        w = w - lr * (previous + decay * w)
        path.append(w)
    return torch.stack(path)


def sam_path(
    gradient: Gradient, start: Tensor, *, lr: float, rho: float | Schedule, steps: int, decay: float = 0.0
) -> Tensor:
    """The weights of SAM on a known loss (Foret et al. 2021, Alg. 1); see ``s2sam_path``."""
    w, path = start, [start]
    for step in range(1, steps + 1):
        w = w - lr * (gradient(w + _radius(rho, step) * _unit(gradient(w))) + decay * w)
        path.append(w)
    return torch.stack(path)


def descent_step(loss: float, slope: float, *, lr: float, smoothness: float, rho: float) -> float:
    """The largest loss possible after a step ``w − η ∇F(w + e)`` with ``‖e‖ ≤ ρ`` in any direction, if ``ηL ≤ 1``.

    ``F(w') ≤ F(w) − (η/2) ‖∇F(w)‖² + (η/2) L²ρ²``. Ours, from L-smoothness alone: Ji et al. (2024, App. C) have ρ in the
    place of L²ρ². An equality on ``(L/2)‖w‖²`` at ``ηL = 1``.

    Args:
        loss, slope: F and ‖∇F‖ at w.
        smoothness: L, the largest curvature.
    """
    return loss - lr / 2 * slope**2 + lr / 2 * (smoothness * rho) ** 2


def descent_bound(gap: float, *, lr: float, smoothness: float, rhos: Sequence[float]) -> float:
    """The largest possible mean of ``‖∇F(w_t)‖²`` over the steps: ``2 (F(w_0) − F*) / (ηT) + L² mean ρ_t²``, if ``ηL ≤ 1``.

    The sum of ``descent_step`` over T steps. With a fixed ρ it stays at L²ρ² for any number of steps, with ``ρ_t = √(c/t)``
    it goes to 0 as ``log T / T``.

    Args:
        gap: ``F(w_0) − F*``.
        rhos: the radius of each step.
    """
    return 2 * gap / (lr * len(rhos)) + smoothness**2 * math.fsum(rho**2 for rho in rhos) / len(rhos)


def stability_step(
    distance: float, *, lr: float, smoothness: float, rho: float, decay: float = 0.0, lipschitz: float | None = None
) -> float:
    """The largest distance of two runs after a step, whose data differ in one sample (Ji et al. 2024, Lemma 1, corrected).

    A step on the same sample: ``(1 + ηL − ηλ) ‖Δ‖ + 2ηLρ``. The lemma is printed with 2ηρ, without the factor L, which a
    curvature above 1 breaks. A step on the sample that differs: ``(1 − ηλ) ‖Δ‖ + 2ηB``.

    Args:
        distance: ‖Δ‖ before the step.
        smoothness: L of the loss of each sample.
        decay: λ, with ``ηλ ≤ 1``.
        lipschitz: B, the largest gradient; given for a step on the sample that differs.
    """
    if lipschitz is not None:
        return (1 - lr * decay) * distance + 2 * lr * lipschitz
    return (1 + lr * smoothness - lr * decay) * distance + 2 * lr * smoothness * rho


def theorem1(
    start: float,
    *,
    lr: float,
    steps: int,
    samples: int,
    smoothness: float,
    decay: float,
    polyak: float,
    lipschitz: float,
    variance: float,
) -> float:
    """The bound of the expected excess risk of Theorem 1 as it stands in the paper's text, "where A is SGD".

    ``F̂(w_0) / (μηT) + η (L + λ) σ² / (2μ) + (6B + 1) / n`` (Ji et al. 2024, sec. 2.3). It has no ρ; ``theorem1_appendix`` is the
    form that the proof ends in. Its proof asks for λ = 2L and ηL < 1, far from the weight decays that are trained with.

    Args:
        start: F̂(w_0), the regularized training loss ``F + (λ/2)‖w‖²`` at the start.
        lr, steps: η and T.
        samples: n, in the training set.
        smoothness: L of the loss.
        decay: λ.
        polyak: μ of the Polyak-Łojasiewicz condition ``2μ (F − F*) ≤ ‖∇F‖²``.
        lipschitz: B, the largest gradient of a sample's loss.
        variance: σ² of the stochastic gradient.

    Raises: InputError for constants that are not positive, or a variance below 0.

    >>> theorem1(1.0, lr=0.1, steps=100, samples=10, smoothness=1, decay=2, polyak=1, lipschitz=1, variance=1)
    0.95
    """
    _check_theorem1(start, lr, steps, samples, smoothness, decay, polyak, lipschitz)
    noise = lr * (smoothness + decay) * check_finite("variance", variance) / (2 * polyak)
    return start / (polyak * lr * steps) + noise + (6 * lipschitz + 1) / samples


def theorem1_appendix(
    start: float,
    *,
    lr: float,
    steps: int,
    samples: int,
    smoothness: float,
    decay: float,
    polyak: float,
    lipschitz: float,
    rho: float,
) -> float:
    """The bound of the expected excess risk of S²-SAM that the proof of Theorem 1 ends in.

    ``F̂(w_0) / (μηT) + (ρ + η (L + λ) B²) / (2μ) + (6 (B + (n − 1) ρ) + 1) / n`` (Ji et al. 2024, App. C). As n, T and 1/η grow, a
    fixed ρ leaves ``ρ/(2μ) + 6ρ``; the claimed rate of 1/√n takes a ρ of that order too. Two steps of the proof lack a factor L:
    see ``descent_step`` and ``stability_step``. Only ‖e‖ = ρ is used, so that it holds of a random direction as well.

    Args:
        start, lr, steps, samples, smoothness, decay, polyak, lipschitz: as of ``theorem1``; B² stands in the place of σ².
        rho: the radius.

    >>> theorem1_appendix(1.0, lr=0.1, steps=100, samples=10, smoothness=1, decay=2, polyak=1, lipschitz=1, rho=0.0)
    0.95
    """
    _check_theorem1(start, lr, steps, samples, smoothness, decay, polyak, lipschitz)
    check_finite("rho", rho)
    noise = (rho + lr * (smoothness + decay) * lipschitz**2) / (2 * polyak)
    return start / (polyak * lr * steps) + noise + (6 * (lipschitz + (samples - 1) * rho) + 1) / samples


def _check_theorem1(
    start: float, lr: float, steps: int, samples: int, smoothness: float, decay: float, polyak: float, lipschitz: float
) -> None:
    check_finite("start", start)
    for name, value in (("lr", lr), ("smoothness", smoothness), ("polyak", polyak), ("lipschitz", lipschitz)):
        check_finite(name, value, above=True)
    check_finite("decay", decay)
    check_count("steps", steps)
    check_count("samples", samples)


def s2sam_rest(lr: float, curvature: float, rho: float) -> float:
    """The distance from the minimum of a round bowl at which S²-SAM stays: ``√(ηa) ρ`` on ``(a/2)‖w‖²``, for ``ηa ≤ 1``.

    Ours. It ends up circling the minimum. Let u turn by θ per step, ``u_t = r e^{iθt}``, in the plane of the circle; then
    ``w_{t+1} − w_t = −ηa u_t`` and ``u_t = w_t + ρ u_{t−1}/r`` have a solution only if ``r = ρ`` and ``sin²(θ/2) = ηa/4``, and in
    it ``‖w‖ = ηa r / (2 sin(θ/2)) = √(ηa) ρ``. (In one dimension there is no circle, and it stays at ρ.)

    >>> round(s2sam_rest(lr=0.1, curvature=2.0, rho=1.0), 3)
    0.447
    """
    return math.sqrt(check_finite("lr · curvature", lr * curvature)) * rho


def sam_rest(lr: float, curvature: float, rho: float) -> float:
    """The distance from the minimum of a round bowl at which SAM stays: ``ηa ρ / (2 − ηa)`` on ``(a/2)‖w‖²``, for ``ηa ≤ 1``.

    Ours. It ends up jumping between w and −w, along a line, and ``−w = w − ηa (w + ρ w/‖w‖)`` has this solution. It is shorter
    than S²-SAM's by a factor of about ``2/√(ηa)``.

    >>> round(sam_rest(lr=0.1, curvature=2.0, rho=1.0), 3)
    0.111
    """
    step = check_finite("lr · curvature", lr * curvature)
    return step * rho / (2 - step)


def _unit(direction: Tensor) -> Tensor:
    """A direction at length 1; zero stays zero."""
    return direction / direction.norm().clamp(min=torch.finfo(direction.dtype).tiny)


def _radius(rho: float | Schedule, step: int) -> float:
    return rho(step) if callable(rho) else rho

"""The choices of sharpness awareness: where a run takes its gradient, and the course of ρ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from flatsparse.schedules import Cosine, InverseSqrt, Linear, Schedule

Sharpness = Literal["none", "sam", "s2sam", "random", "momentum", "average", "looksam"]
SHARPNESS: dict[Sharpness, str] = {
    "none": "the gradient at the weights",
    "sam": "the gradient at weights perturbed along this batch's own gradient; two gradients a step (Foret et al. 2021)",
    "s2sam": "along the previous step's gradient; one gradient a step (Ji et al. 2024)",
    "random": "along noise, one gradient a step: the control",
    "momentum": "down the momentum, one gradient a step (Becker et al. 2024)",
    "average": "along a running average of past gradients, one gradient a step (after Li & Giannakis 2023)",
    "looksam": "SAM every few steps, and in between the direction it left; 1 + 1/k gradients a step (Liu et al. 2022)",
}
RHO_SCHEDULES: dict[str, Callable[[float, int], float | Schedule]] = {
    "constant": lambda rho, steps: rho,
    "inverse-sqrt": lambda rho, steps: InverseSqrt(rho),
    "linear": lambda rho, steps: Linear(rho, 0.0, until=steps + 1),
    "cosine": lambda rho, steps: Cosine(rho, 0.0, until=steps + 1),
}

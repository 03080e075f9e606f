"""The choices of sharpness awareness: where a run takes its gradient, and the schedule of ρ."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from flatsparse.sam.directions import DIRECTIONS
from flatsparse.schedules import Cosine, InverseSqrt, Linear, Schedule

SHARPNESS: dict[str, str] = {
    "none": "the gradient at the weights",
    "sam": "the gradient at weights perturbed along this batch's own gradient; two gradients a step (Foret et al. 2021)",
    **{"s2sam" if name == "previous" else name: direction.summary for name, direction in DIRECTIONS.items()},
    "looksam": "SAM every few steps, and in between a stored direction; 1 + 1/k gradients a step (Liu et al. 2022)",
}
if TYPE_CHECKING:
    Sharpness = str
else:
    Sharpness = Literal[tuple(SHARPNESS)]  # from which the command line has its choices
RHO_SCHEDULES: dict[str, Callable[[float, int], float | Schedule]] = {
    "constant": lambda rho, steps: rho,
    "inverse-sqrt": lambda rho, steps: InverseSqrt(rho),
    "linear": lambda rho, steps: Linear(rho, 0.0, until=steps + 1),
    "cosine": lambda rho, steps: Cosine(rho, 0.0, until=steps + 1),
}

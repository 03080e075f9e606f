"""The choices of sharpness awareness: where a run takes its gradient, and the schedule of ρ."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from flatsparse.sam.directions import DIRECTIONS
from flatsparse.schedules import Cosine, InverseSqrt, Late, Linear, Schedule

SHARPNESS: dict[str, str] = {
    "none": "the gradient at the weights",
    "sam": "the gradient at weights perturbed along this batch's own gradient; two gradients a step (Foret et al. 2021)",
    **{"s2sam" if name == "previous" else name: direction.summary for name, direction in DIRECTIONS.items()},
    "looksam": "SAM every few steps, and in between a stored direction; 1 + 1/k gradients a step (Liu et al. 2022)",
    "stale": "along the gradient of a part of the previous batch; 1 + its share gradients a step (after Jo et al. 2025)",
}
if TYPE_CHECKING:
    Sharpness = str
else:
    Sharpness = Literal[tuple(SHARPNESS)]  # from which the command line has its choices
WITH_BUDGET = ("sam", "s2sam")  # whose radius a loss budget may set
# Of ρ, the steps of a run, and the number of those in which a late ρ is there.
RHO_SCHEDULES: dict[str, Callable[[float, int, int], float | Schedule]] = {
    "constant": lambda rho, steps, late: rho,
    "inverse-sqrt": lambda rho, steps, late: InverseSqrt(rho),
    "linear": lambda rho, steps, late: Linear(rho, 0.0, until=steps + 1),
    "cosine": lambda rho, steps, late: Cosine(rho, 0.0, until=steps + 1),
    "late": lambda rho, steps, late: Late(rho, after=steps - late),
}

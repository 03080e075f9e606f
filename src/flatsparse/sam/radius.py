"""The radius ρ of each parameter group, by step where a schedule gives it."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from flatsparse.common.errors import InputError, check_finite
from flatsparse.schedules import Schedule

STEP = "perturbation_step"  # the key of the number of steps taken, in a group


class Radius:
    """The radius ρ of each group: one for all, a group's own, or that of a schedule.

    A group holds it under ``key``: ``"rho"``, or ``"sam_rho"`` where the base has a ``rho`` that means something else.

    Args:
        budget: the loss that a perturbation may add, to first order (see ``SharpnessAware``): ρ is then the largest radius.
    """

    def __init__(self, rho: float | Schedule, base: Optimizer, budget: float | Schedule | None = None) -> None:
        self._base = base
        self._schedule, self._budget = rho if callable(rho) else None, budget
        if budget is not None:
            check_finite("budget", budget(1) if callable(budget) else budget)
        self.default = rho(1) if callable(rho) else rho
        self.key = "sam_rho" if "rho" in base.defaults else "rho"
        check_finite("rho", self.default)
        for group in base.param_groups:
            self.check(group, group["params"])
        for group in base.param_groups:
            group.setdefault("rho_scheduled", self.key not in group)
            group.setdefault(self.key, self.default)

    @property
    def steps_taken(self) -> int:
        """The number of steps since the first, or since the schedule was restarted."""
        taken: int = self._base.param_groups[0].get(STEP, 0)
        return taken

    @property
    def budget(self) -> float | None:
        """The loss budget σ of the coming step; None without one."""
        return self._budget(self.steps_taken + 1) if callable(self._budget) else self._budget

    def check(self, group: dict[str, Any], params: list[Any]) -> None:
        """Raise InputError for a group whose ρ, or whose parameters, a perturbation cannot have."""
        if check_finite("rho", group.get(self.key, self.default)) and any(p.is_complex() for p in params):
            raise InputError(
                "complex parameters cannot be perturbed: give their group rho=0, or hold them as pairs of reals"
            )

    def of(self, group: dict[str, Any]) -> float:
        """The ρ of a group, 0 for a budget of 0; one that was added to the base, or loaded from it, gets that of all."""
        if self.key not in group:
            group[self.key] = self.default if self._schedule is None else self._schedule(self.steps_taken + 1)
            group["rho_scheduled"] = True
        rho: float = group[self.key]
        return 0.0 if self.budget == 0 else rho

    def complete_groups(self) -> None:
        """Give each group what it lacks: a ρ and a count of steps."""
        for group in self._base.param_groups:
            self.of(group)
            group.setdefault(STEP, 0)

    def advance(self) -> None:
        """Count a step, and let a schedule give the ρ of the next."""
        self._set_steps(self.steps_taken + 1)

    def restart(self) -> None:
        """Restart a schedule of ρ."""
        self._set_steps(0)

    def _set_steps(self, taken: int) -> None:
        for group in self._base.param_groups:
            group[STEP] = taken
            if self._schedule is not None and group.get("rho_scheduled"):
                group[self.key] = check_finite(f"rho of step {taken + 1},", self._schedule(taken + 1))

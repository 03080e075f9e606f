"""The sharpness-aware optimizer of a run, around a base."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from flatsparse.experiments.run.config import ResolvedRun
from flatsparse.experiments.run.sharpness import RHO_SCHEDULES, WITH_BUDGET
from flatsparse.sam.looksam import LookSAM
from flatsparse.sam.optimizers import S2SAM, SAM
from flatsparse.sam.stalesam import StaleSAM


def sharpness_aware(run: ResolvedRun, base: Optimizer, steps: int, **options: Any) -> Optimizer:
    """Return the base, wrapped to be sharpness-aware where the run is.

    Args:
        steps: over which a schedule of ρ goes.
        options: of the wrapper, in place of the run's own.
    """
    if run.sharpness == "none":
        return base
    chosen = run.perturbation
    rho = RHO_SCHEDULES[chosen.rho_schedule](run.rho, steps, max(1, round(chosen.share * steps)))
    own: dict[str, Any] = {"rho": rho, "adaptive": chosen.adaptive, "mask_perturbation": chosen.mask_perturbation}
    if run.sharpness in WITH_BUDGET:
        own["budget"] = chosen.loss_budget
    options = {**own, **options}
    if run.sharpness == "sam":
        return SAM(base, **options)
    if run.sharpness == "looksam":
        return LookSAM(base, **{"every": chosen.look_every, "alpha": chosen.look_alpha, **options})
    if run.sharpness == "stale":
        return StaleSAM(base, **options)
    direction = "previous" if run.sharpness == "s2sam" else run.sharpness
    return S2SAM(base, **{"direction": direction, "seed": run.seed, **options})

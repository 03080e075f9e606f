"""The learning-rate schedule of a run."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from flatsparse.experiments.run.config import ResolvedRun


def start_schedule(run: ResolvedRun, optimizer: Optimizer, steps_per_epoch: int) -> LRScheduler:
    """Return the schedule of a run, or of one of its rounds, from the initial learning rate on."""
    for group in optimizer.param_groups:
        group["lr"] = group.get("initial_lr", group["lr"])
    if run.schedule.lr_schedule == "cosine" and run.schedule.warmup == 0:
        return CosineAnnealingLR(optimizer, T_max=run.schedule.whole_epochs * steps_per_epoch)
    return LambdaLR(optimizer, lambda step: lr_factor(run, step, steps_per_epoch))


def lr_factor(run: ResolvedRun, step: int, steps_per_epoch: int) -> float:
    """Return the factor of ``--lr`` at a step, counted from 0.

    Warm-up (Goyal et al. 2017, sec. 2.2) multiplies the schedule rather than delaying it, so milestones stay where they are.
    """
    steps = run.schedule.whole_epochs * steps_per_epoch
    rising = run.schedule.warmup * run.schedule.multiplier * steps_per_epoch
    start = min(1.0, (step + 1) / rising) if rising else 1.0
    if run.schedule.lr_schedule == "cosine":
        return start * (1 + math.cos(math.pi * step / steps)) / 2
    if run.schedule.lr_schedule == "step":
        return float(start * 0.1 ** sum(step >= milestone * steps for milestone in run.schedule.milestones))
    if run.schedule.lr_schedule == "inverse-sqrt":
        return float(min(start, math.sqrt(rising / (step + 1))))
    return start

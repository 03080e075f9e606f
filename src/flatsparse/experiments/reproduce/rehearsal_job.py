"""The rehearsal of runs that differ in their sharpness at most, in this process or another."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flatsparse.common.errors import InputError, described
from flatsparse.experiments.reproduce.made_up import made_up, shapes_of, training_samples
from flatsparse.experiments.reproduce.steps import STEPS, Steps, changes_masks, take_steps
from flatsparse.experiments.run.config import ResolvedRun
from flatsparse.experiments.run.method import rounds_of, with_method_options
from flatsparse.measure.estimate import Estimate, estimate_plan
from flatsparse.measure.flops import Cost
from flatsparse.methods import named

UTILIZATION = 0.5  # the share of a GPU's peak that training reaches: an assumption
Record = dict[str, Any]


@dataclass(frozen=True)
class RehearsalJob:
    """Runs to rehearse, by name.

    Attributes:
        runs: alike but for what no estimate depends on.
        samples: in a step.
        gpu_tflops: the peak of a GPU, in 10¹² operations a second.
    """

    runs: Mapping[str, ResolvedRun]
    samples: int
    gpu_tflops: float

    def run(self) -> dict[str, Record]:
        """Return what is known of each run: whether it runs, or why not, and what it takes."""
        estimates: dict[float, Estimate] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are of the few made-up samples
            return {name: self._rehearsed(run, estimates) for name, run in self.runs.items()}

    def lost(self, reason: str) -> dict[str, Record]:
        """Return the records of runs whose process died."""
        return {name: {"runs": False, "why": f"its process ended: {reason}"} for name in self.runs}

    def _rehearsed(self, run: ResolvedRun, estimates: dict[float, Estimate]) -> Record:
        try:
            shapes_of(run)
        except InputError as problem:
            return {"runs": None, "why": str(problem)}
        try:
            steps = take_steps(run, self.samples)
            if run.passes not in estimates:
                estimates[run.passes] = whole_run(run, steps.cost)
        except Exception as problem:  # of any part of a run: it is what a rehearsal looks for
            return {"runs": False, "why": described(problem)}
        reason = fault(run, steps)
        return {"runs": reason is None, "why": reason, **self._numbers(run, steps, estimates[run.passes])}

    def _numbers(self, run: ResolvedRun, steps: Steps, estimate: Estimate) -> Record:
        samples = training_samples(run)
        trained = samples * run.schedule.whole_epochs * rounds_of(run)
        once = 3 * estimate.inference_dense * samples * run.schedule.epochs
        products = 3 * estimate.inference_dense * run.passes * trained  # masked weights are multiplied too
        in_batch = run.optim.part_size / shapes_of(run).unit
        return {
            "samples": samples,
            "steps": {
                "losses": [loss if math.isfinite(loss) else None for loss in steps.losses],
                "radii": [radius if math.isfinite(radius) else None for radius in steps.radii],
                **{name: getattr(steps, name) for name in ("updates", "moved", "seconds")},
            },
            "parameters": steps.parameters,
            "memory": {**dataclasses.asdict(steps.memory), "total": steps.memory.at(in_batch)},
            "flops": {
                "inference": estimate.inference,
                "inference_share": estimate.inference_ratio,
                "train_sample": estimate.step,
                "train": estimate.step * trained,
                "train_share": estimate.step * trained / once,
            },
            "gpu_hours": products / (self.gpu_tflops * 1e12 * UTILIZATION) / 3600,
        }


def whole_run(run: ResolvedRun, cost: Cost) -> Estimate:
    """Return the cost of a run at its own length, from that of a forward pass."""
    per_epoch = math.ceil(training_samples(run) * shapes_of(run).unit / run.optim.batch_size)
    pruning, steps = run.pruning, run.schedule.whole_epochs * per_epoch
    _, options = with_method_options(run, run.schedule.epochs * per_epoch)
    task = made_up(run, 1)
    with torch.device("meta"):
        model = task.fresh()
    return estimate_plan(
        model,
        cost,
        named(pruning.method, options).plan(pruning.sparsity, steps),
        steps,
        run.passes,
        include=pruning.include,
        exclude=pruning.exclude,
        layers=pruning.layers,
    )


def fault(run: ResolvedRun, steps: Steps) -> str | None:
    """Return what the steps of a run did not do that a run of its kind does; None where they did all."""
    if strange := [loss for loss in steps.losses if not math.isfinite(loss)]:
        return f"the loss became {strange[0]} within {STEPS} steps"
    if changes_masks(run) and not steps.moved:
        return f"no mask changed within {STEPS} steps"
    if run.sharpness != "none" and run.rho > 0 and not any(steps.radii):
        return f"no weight was perturbed within {STEPS} steps"
    return None

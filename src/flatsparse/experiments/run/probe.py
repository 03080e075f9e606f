"""Probes: measurements of the loss around the weights during training: curvature and directional loss increases."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from flatsparse.common.seeds import generator
from flatsparse.experiments.clock import clock
from flatsparse.experiments.run.build import Parts, initial_model
from flatsparse.experiments.run.checkpoint import Progress
from flatsparse.measure import directions
from flatsparse.measure.spectral import extremes

DEFINITION = (
    f"the first training samples, as many whole batches as fit into {directions.IMAGES}, without augmentation, labels as"
    f" trained on, in float32, at the weights after the step. {directions.DEFINITION}; the previous one is the gradient just"
    " used. Eigenvalues and trace are those of the Hessian of the mean loss in evaluation mode"
)


class Probe:
    """A measurement at regular steps, on a copy of the model, so that training is not affected.

    Args:
        every: steps between measurements.
        parts: those of the run.
    """

    def __init__(self, every: int, parts: Parts) -> None:
        run, task = parts.run, parts.task
        train, size = task.splits.train, run.optim.part_size
        self.task = task
        self.every, self.rho = every, run.rho if run.sharpness != "none" and run.rho > 0 else directions.RHO
        chosen = train.first(min(len(train), max(1, directions.IMAGES // size) * size))
        self.batches = [batch.content for batch in chosen.batches(size)]
        self.chunks, self.count = list(chosen.batches(chosen.at_once(256))), len(chosen)
        self.model = initial_model(run, task).to(run.runtime.device)

    def __call__(self, parts: Parts, progress: Progress) -> float:
        """Measure after the step that was just taken, if it is time to; return the seconds that it took."""
        step = progress.step + 1
        if step % self.every:
            return 0.0
        began = clock()
        record = self.measure(parts, step)
        if record is not None:
            progress.probes.append(record)
        return clock() - began

    def measure(self, parts: Parts, step: int) -> dict[str, Any] | None:
        """Return the measurements at the present weights; None where the loss is not finite."""
        parts.training.unpack()
        masks = parts.training.masks
        self.model.load_state_dict(parts.model.state_dict())
        self.model.eval()
        with torch.no_grad():
            loss = float(sum(self._terms()))
        if not math.isfinite(loss):
            return None
        curvature = extremes(self.model, self._terms, masks, seed=step)
        self.model.train()  # from here on its running statistics change, which nothing reads
        source, used = generator(parts.run.seed, "probe", step), directions.active_gradients(parts.model, masks)
        gained = directions.mean_increases(self.model, self.batches, self.task.loss, masks, self.rho, source, used)
        return {"step": step, "rho": self.rho, "loss": loss, **gained, "curvature": curvature}

    def _terms(self) -> Iterator[Tensor]:
        """Return the terms of the mean loss, one for each chunk of samples."""
        return self.task.terms(self.model, self.chunks, self.count)

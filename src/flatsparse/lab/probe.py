"""Looks at the loss around the weights while they are trained: curvature, and what each direction gains."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsparse.curvature import extremes
from flatsparse.lab import task
from flatsparse.lab.ball import gains, m_sharpness
from flatsparse.lab.build import Parts
from flatsparse.lab.data import batches
from flatsparse.lab.folder import Progress
from flatsparse.seeds import generator

IMAGES = 512  # looked at, about: a whole number of batches
RHO = 0.05  # of runs that have none
DEFINITION = (
    f"the first training images, as many whole batches as fit into {IMAGES}, without augmentation, labels as trained on, in"
    " float32, at the weights after the step. Gains are rises of a batch's loss (batch norm by its own statistics, as in"
    " training) a step of length ρ away on live weights: along that batch's own gradient (SAM), along the gradient just used"
    " (S²-SAM), along noise, and the largest found in the ball (m-sharpness); means over the batches. The cosine is between the"
    " gradient just used and each batch's own. Eigenvalues and trace are those of the Hessian of the mean loss in evaluation mode"
)


class Probe:
    """Looks every so many steps, at a copy of the model, so that training is not touched.

    Args:
        every: steps between looks.
        parts: those of the run.
    """

    def __init__(self, every: int, parts: Parts) -> None:
        run, train = parts.run, parts.splits.train
        self.every, self.rho = every, run.rho if run.sharpness != "none" and run.rho > 0 else RHO
        count = min(len(train), max(1, IMAGES // run.batch_size) * run.batch_size)
        images = train.take(torch.arange(count))
        self.batches = list(batches(images, parts.splits, run.batch_size))
        self.chunks, self.targets = list(batches(images, parts.splits, size=256)), images.targets
        with torch.random.fork_rng(devices=[]):
            self.model = parts.fresh().to(run.device)

    def __call__(self, parts: Parts, progress: Progress) -> float:
        """Look after the step that was just taken, if it is time to; returns the seconds that took."""
        step = progress.step + 1
        if step % self.every:
            return 0.0
        began = time.perf_counter()
        record = self.look(parts, step)
        if record is not None:
            progress.probes.append(record)
        return time.perf_counter() - began

    def look(self, parts: Parts, step: int) -> dict[str, Any] | None:
        """What is seen at the weights as they are; nothing where the loss is not finite."""
        masks = parts.training.masks
        self.model.load_state_dict(parts.model.state_dict())
        self.model.eval()
        with torch.no_grad():
            loss = float(sum(self._terms()))
        if not math.isfinite(loss):
            return None
        curvature = extremes(self.model, self._terms, masks, seed=step)
        self.model.train()  # from here on its running statistics change, which nothing reads
        return {"step": step, "rho": self.rho, "loss": loss, **self._gains(parts, masks, step), "curvature": curvature}

    def _terms(self) -> Iterator[Tensor]:
        """The mean loss, some images at a time."""
        for inputs, targets in self.chunks:
            yield task.loss(self.model(inputs), targets, reduction="sum") / self.targets

    def _gains(self, parts: Parts, masks: dict[str, Tensor], step: int) -> dict[str, Any]:
        previous = _live_gradients(parts.model, masks)
        source = generator(parts.run.seed, "probe", step)
        found = [self._gains_on(batch, previous, masks, source) for batch in self.batches]
        means = {name: statistics.fmean(gained[name] for gained in found) for name in found[0]}
        return {"cosine": means.pop("cosine"), "gain": means}

    def _gains_on(
        self, batch: tuple[Tensor, Tensor], previous: list[Tensor], masks: dict[str, Tensor], source: torch.Generator
    ) -> dict[str, float]:
        inputs, targets = batch
        named = dict(self.model.named_parameters())
        zeroing = {named[name]: _zeroing(mask) for name, mask in masks.items()}

        def value() -> float:
            return float(task.loss(self.model(inputs), targets))

        def gradient() -> float:
            self.model.zero_grad()
            loss = task.loss(self.model(inputs), targets)
            loss.backward()
            return float(loss.detach())

        gradient()
        own = _live_gradients(self.model, masks)
        noise = [torch.randn(p.shape, generator=source).to(p) for p in own]
        for p, drawn in zip(named.values(), noise, strict=True):
            if p in zeroing:
                zeroing[p](drawn)
        found = gains(self.model, {"sam": own, "previous": previous, "random": noise}, value, self.rho)
        (worst,) = m_sharpness(self.model, zeroing, [gradient], self.rho)
        one, other = (torch.cat([t.flatten() for t in tensors]).double() for tensors in (previous, own))
        return {**found, "worst": worst, "cosine": float(F.cosine_similarity(one, other, dim=0))}


def _live_gradients(model: nn.Module, masks: dict[str, Tensor]) -> list[Tensor]:
    """A copy of a model's gradients, zero outside the masks."""
    slopes = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    return [torch.where(masks[name], slope, 0) if name in masks else slope for name, slope in slopes.items()]


def _zeroing(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.mul_(mask)

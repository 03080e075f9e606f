"""Three true steps of a run on made-up data, and what they show."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.experiments.bench.memory import LiveBytes
from flatsparse.experiments.clock import clock
from flatsparse.experiments.reproduce.made_up import made_up, shapes_of
from flatsparse.experiments.run.build import Parts, build
from flatsparse.experiments.run.config import ResolvedRun, change
from flatsparse.experiments.run.epoch import take_step
from flatsparse.experiments.run.learning_rate import start_schedule
from flatsparse.experiments.run.method import plan_of
from flatsparse.measure.flops import Cost
from flatsparse.methods import kind_of, options_of
from flatsparse.sam.base import SharpnessAware
from flatsparse.sam.state_entry import PERTURBED

STEPS = (
    3  # the first makes the optimizer's state, the second the first perturbed weights and the first masks of an update
)
EVERY = 2  # steps between updates of the masks: no rule acts at the first


@dataclass(frozen=True)
class Memory:
    """Memory of a run's training in bytes, without workspaces of operations.

    Attributes:
        weights: with batch norm's statistics, and their moving average if there is one.
        optimizer: its state, such as momentum.
        perturbed: the second copy of the weights of a sharpness-aware optimizer.
        masks: and what rules keep.
        sample: what is kept for the backward pass, for each sample of a batch.
    """

    weights: int
    gradients: int
    optimizer: int
    perturbed: int
    masks: int
    sample: float

    def at(self, samples: float) -> float:
        """Return the memory with so many samples in a batch."""
        fixed = self.weights + self.gradients + self.optimizer + self.perturbed + self.masks
        return fixed + self.sample * samples


@dataclass(frozen=True)
class Steps:
    """The steps of a run that were taken.

    Attributes:
        samples: in each.
        losses: of each step.
        radii: the norm of the perturbation of each step's gradient; 0 where it is not perturbed.
        updates: changes of the masks.
        moved: weights that were masked or grown by them.
        seconds: of the last step.
    """

    samples: int
    losses: tuple[float, ...]
    radii: tuple[float, ...]
    updates: int
    moved: int
    parameters: int
    seconds: float
    memory: Memory
    cost: Cost


def take_steps(run: ResolvedRun, samples: int) -> Steps:
    """Take three steps of a run by the engine's own step, with masks that change among them if its method changes any.

    All is as in the run but for the data, the batch, the period of the masks, 2 steps, and a late ρ, which is there from the
    start. Between rounds of a method in rounds the net is pruned after the first step.

    Args:
        run: whose model, method, optimizer and sharpness are used.
        samples: in each step.
    """
    batch_size = samples * shapes_of(run).unit
    parts = build(_short(run, batch_size), task=made_up(run, STEPS * samples))
    watch = _Watch(parts)
    losses, seconds, updates, moved = [], 0.0, 0, 0
    parts.net.train()
    with watch.attached():
        for number, batch in enumerate(_batches(parts, batch_size)):
            began = clock()
            before = _masks(parts)
            if number == 1 and parts.training.rounds > 1:
                parts.training.next_round()
                parts.schedule = start_schedule(parts.run, parts.optimizer, parts.steps_per_epoch)
            watch.radii.append(0.0)
            losses.append(float(take_step(parts, [batch]).losses) / batch.samples)
            parts.optimizer.zero_grad()
            parts.schedule.step()
            seconds = clock() - began
            changed = sum(int((mask != before[name]).sum()) for name, mask in parts.training.masks.items())
            updates, moved = updates + bool(changed), moved + changed
    return Steps(
        samples=samples,
        losses=tuple(losses),
        radii=tuple(watch.radii),
        updates=updates,
        moved=moved,
        parameters=sum(p.numel() for p in parts.model.parameters()),
        seconds=seconds,
        memory=watch.memory(samples),
        cost=parts.cost,
    )


def changes_masks(run: ResolvedRun) -> bool:
    """Return if a run's method changes its masks after the start."""
    plan = plan_of(run)
    return bool(plan.rules or plan.rounds)


def _short(run: ResolvedRun, batch_size: int) -> ResolvedRun:
    """Return a run with the batch and the period of a rehearsal."""
    period = {"every": EVERY} if "every" in options_of(kind_of(run.pruning.method)) else {}
    sizes = {"batch_size": batch_size, "accumulate": None, "train_size": None, "validation_size": 0}
    return change(run, **sizes, **period, compile=False, late_share=1.0)


def _batches(parts: Parts, size: int) -> Iterator[Any]:
    return parts.task.splits.train.batches(size, seed=parts.run.seed, augment=parts.task.augmented)


def _masks(parts: Parts) -> dict[str, Tensor]:
    return {name: mask.clone() for name, mask in parts.training.masks.items()}


class _Watch:
    """The norms and bytes that are seen at each forward pass of a net in training.

    Attributes:
        radii: the norm of the perturbation, the largest of each step.
        copied: bytes of the true weights that are kept beside perturbed ones.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.radii: list[float] = []
        self.copied = 0
        self._saved = LiveBytes()  # not entered: it counts what is kept for the backward pass alone
        self._weights: set[int] = set()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """A context in which forward passes are seen."""
        handle = self.parts.net.register_forward_pre_hook(self._look)
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept):
                yield
        finally:
            handle.remove()

    @torch.no_grad()
    def _look(self, module: nn.Module, inputs: object) -> None:
        model, optimizer = self.parts.model, self.parts.optimizer
        held = [*model.parameters(), *model.buffers()]
        self._weights = {tensor.untyped_storage()._cdata for tensor in held}
        true = optimizer.true_weights() if isinstance(optimizer, SharpnessAware) else {}
        norm = math.sqrt(sum(float((p - w).float().square().sum()) for p, w in true.items()))
        self.radii[-1] = max(self.radii[-1], norm)
        self.copied = max(self.copied, sum(w.nbytes for w in true.values()))

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights:
            self._saved._count(storage)
            self._saved.peak = max(self._saved.peak, self._saved.now)
        return tensor.detach()  # and not the tensor itself, which may hold the graph that holds it

    def memory(self, samples: int) -> Memory:
        """Return the memory that training takes."""
        model, optimizer = self.parts.model, self.parts.optimizer
        parameters = sum(p.nbytes for p in model.parameters())
        state = [
            value.nbytes
            for entry in optimizer.state.values()
            for name, value in entry.items()
            if isinstance(value, Tensor) and name != PERTURBED
        ]
        kept = [mask.nbytes for mask in self.parts.training.masks.values()]
        if self.parts.training.plan.momentum is not None:
            kept += [4 * mask.numel() for mask in self.parts.training.masks.values()]
        if self.parts.training.plan.pull is not None:
            kept += [5 * mask.numel() for mask in self.parts.training.masks.values()]
        copies = 2 if self.parts.average else 1
        return Memory(
            weights=copies * (parameters + sum(b.nbytes for b in model.buffers())),
            gradients=parameters,
            optimizer=sum(state),
            perturbed=self.copied,
            masks=sum(kept),
            sample=self._saved.peak / samples,
        )

"""The expected cost of a run in floating-point operations, without training and without its data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from flatsparse.common.errors import check_count
from flatsparse.measure.flops import Cost, cost_of, share, step_flops, warn_of_uncounted
from flatsparse.methods import DEFAULT, as_method, sparsity_for
from flatsparse.methods.presets import left_dense_by
from flatsparse.schedules import DueSteps
from flatsparse.sparse.layers import DENSE, LayerSelector, by_default, prunable
from flatsparse.sparse.masks import Masks
from flatsparse.sparse.plan import Method, Plan, due, due_steps

WALKED = 10_000  # the number of updates that are walked one by one, at most


@dataclass(frozen=True)
class LayerCost:
    """A prunable layer in numbers: its active weights at the end of the run, and its cost in a sample's forward pass."""

    name: str
    shape: tuple[int, ...]
    active: int
    total: int
    dense_flops: int
    chosen: bool

    @property
    def sparsity(self) -> float:
        return 1 - self.active / self.total

    @property
    def flops(self) -> float:
        return self.dense_flops * self.active / self.total


@dataclass(frozen=True)
class Estimate:
    """The expected cost of a run, in operations for one sample.

    Attributes:
        layers: of the kinds that are made sparse by default, and what else is.
        weights: how many all matrices have, in those layers or not.
        inference, inference_dense: a forward pass of the trained net, and of the dense one.
        step: a training step, averaged over the run, or over all rounds of a method that has rounds.
        steps: in the run, all rounds together.
    """

    layers: tuple[LayerCost, ...]
    weights: int
    inference: float
    inference_dense: float
    step: float
    steps: int

    @property
    def inference_ratio(self) -> float:
        """Inference as a share of the dense net's."""
        return share(self.inference, self.inference_dense)

    @property
    def step_ratio(self) -> float:
        """A step as a share of a dense step without sharpness awareness."""
        return share(self.step, 3 * self.inference_dense)

    @property
    def sparsity(self) -> float:
        """The sparsity over the weights that are made sparse."""
        return 1 - sum(x.active for x in self.layers if x.chosen) / sum(x.total for x in self.layers if x.chosen)

    @property
    def overall_sparsity(self) -> float:
        """The sparsity over the weights of all matrices."""
        return sum(layer.total - layer.active for layer in self.layers) / self.weights

    def train(self, batch_size: int) -> float:
        """The cost of the whole run."""
        return self.step * self.steps * batch_size


def estimate(
    model: nn.Module,
    sample: Tensor,
    method: str | Method = DEFAULT,
    *,
    sparsity: float | None = None,
    steps: int,
    passes: int = 1,
    include: Sequence[LayerSelector] = (),
    exclude: Sequence[LayerSelector] = (),
    layers: str = "all",
    elementwise: bool = False,
    **options: Any,
) -> Estimate:
    """Estimate the cost of a run of a method, without training and without its data.

    The plan is walked from update to update with each layer's count of active weights: one by one up to ``WALKED`` updates
    that change counts; of more, about as many, evenly, and a forward pass between two costs the mean of theirs. Counts are
    exact wherever they follow from shapes. What depends on trained weights or data is taken as if scores were drawn by
    chance: a ranking of the whole net then prunes all layers, or groups of channels, alike, and a rule that cannot tell what
    it changes (growth allocated anew by what the weights are) leaves every layer its own.

    Args:
        model: the network; on the ``meta`` device it takes no memory.
        sample: one input with its batch dimension, on the model's device.
        passes: gradients taken in a step, 2 for SAM.
        elementwise: see ``cost``.
        method, sparsity, steps, include, exclude, layers, options: as of ``sparsify``.

    Raises: InputError as ``sparsify`` does.

    >>> import torch
    >>> dense = estimate(nn.Linear(20, 10), torch.ones(1, 20), "dense", sparsity=0.0, steps=100)
    >>> static = estimate(nn.Linear(20, 10), torch.ones(1, 20), "static", sparsity=0.9, steps=100)
    >>> static.inference, round(static.train(batch_size=8) / dense.train(batch_size=8), 3)
    (40.0, 0.1)
    """
    options |= {"steps": steps, "passes": passes, "include": include, "exclude": exclude, "layers": layers}
    options |= {"elementwise": elementwise, "sparsity": sparsity}
    return estimate_of(model, lambda: model(sample), len(sample), method, **options)


def estimate_of(
    model: nn.Module,
    forward: Callable[[], object],
    samples: int,
    method: str | Method = DEFAULT,
    *,
    sparsity: float | None = None,
    steps: int,
    passes: int = 1,
    include: Sequence[LayerSelector] = (),
    exclude: Sequence[LayerSelector] = (),
    layers: str = "all",
    elementwise: bool = False,
    **options: Any,
) -> Estimate:
    """Estimate the cost of a run whose forward pass is any computation with a model, such as its loss; see ``estimate``.

    Args:
        forward, samples: see ``cost_of``.
    """
    chosen = as_method(method, options)
    plan = chosen.plan(sparsity_for(chosen, sparsity), check_count("steps", steps))
    counted = cost_of(model, forward, samples, elementwise=elementwise)
    return estimate_plan(model, counted, plan, steps, passes, include=include, exclude=exclude, layers=layers)


def estimate_plan(
    model: nn.Module,
    forward: Cost,
    plan: Plan,
    steps: int,
    passes: float = 1,
    *,
    include: Sequence[LayerSelector] = (),
    exclude: Sequence[LayerSelector] = (),
    layers: str = "all",
) -> Estimate:
    """Estimate the cost of a run of a plan from that of a forward pass; see ``estimate``.

    Args:
        model: on the ``meta`` device, or any other, without masks.
        forward: of one sample in the dense net.
        passes: gradients taken in a step, on average.
    """
    masks = Masks.of(model, model.parameters(), include, exclude, left_dense=left_dense_by(layers))
    run = _Walk(plan, forward, masks, model, passes)
    for number in range(plan.rounds.count if plan.rounds else 1):
        run.prune(number)
        run.take(steps)
    matrices = prunable(model)
    warn_of_uncounted(
        name
        for name in run.active
        if not forward.layers[name]
        and not by_default(name, matrices[name][1])
        and not isinstance(matrices[name][1], DENSE)
    )
    costs = tuple(
        LayerCost(
            name, tuple(p.shape), run.active.get(name, p.numel()), p.numel(), forward.layers[name], name in run.active
        )
        for name, (p, module) in matrices.items()
        if by_default(name, module) or name in run.active
    )
    return Estimate(costs, masks.overall, run.forward, forward.dense, run.spent / run.steps, run.steps)


class _Walk:
    """A walk through a plan's steps, with expected counts of active weights in place of masks."""

    def __init__(self, plan: Plan, cost: Cost, masks: Masks, model: nn.Module, passes: float) -> None:
        self.plan, self.cost, self.passes = plan, cost, passes
        self.expected = plan.expected_start(masks, model)
        self.spent, self.steps = 0.0, 0

    @property
    def active(self) -> dict[str, int]:
        """The number of active weights of each layer."""
        return self.expected.active

    @property
    def forward(self) -> float:
        """The operations of a forward pass."""
        scores = self.expected.scores
        return self.cost.at({name: count / scores[name].numel() for name, count in self.active.items()})

    def prune(self, number: int) -> None:
        """Prune before a round of training."""
        if self.plan.rounds and number:
            self.expected.active = self.plan.rounds.prune.counts(self.expected, number)

    def take(self, steps: int) -> None:
        """Take more steps."""
        last = self.steps + steps
        changes = due_steps([rule for rule in self.plan.rules if rule.changes_counts], last, after=self.steps)
        dense = due_steps([rule for rule in self.plan.rules if rule.dense_gradient], last, after=self.steps)
        stride = math.ceil(changes.count(0, last) / WALKED) or 1
        before = self.forward
        for step in changes.thinned(stride):
            if stride == 1:  # the update's own step is taken under the masks before it
                self._spend(before, step, dense)
            for rule in due(self.plan, step):
                self.expected.active = rule.counts(self.expected, step)
            if stride > 1:
                self._spend((before + self.forward) / 2, step, dense)
            before = self.forward
        self._spend(before, last, dense)

    def _spend(self, forward: float, until: int, dense: DueSteps) -> None:
        """Add the steps up to one, all with such a forward pass; those at which a dense gradient is read cost more."""
        steps = until - self.steps
        reads = steps if self.plan.momentum is not None else dense.count(self.steps, until)
        for taken, dearer in ((steps - reads, False), (reads, True)):
            self.spent += taken * step_flops(forward, self.cost.dense, self.passes, (), momentum=dearer)
        self.steps = until

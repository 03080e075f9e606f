"""What a net costs in floating-point operations, layer by layer, given its masks. A multiply-add counts as 2.

The accounting of Evci et al. (2020, app. H): convolutions and matrix products only, a backward pass costs two forward
passes, and choosing masks costs nothing but the dense gradients that it reads. Which it reads is declared by scores,
rules and plans, so that a new method is counted right without a line here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flatsparse.errors import InputError, check_count
from flatsparse.layers import PRUNABLE, Pattern, prunable
from flatsparse.masks import Masks
from flatsparse.methods import as_method, sparsity_for
from flatsparse.plan import Method, Plan
from flatsparse.rules import Rule
from flatsparse.selection import budget
from flatsparse.thinning import Explore


@dataclass(frozen=True)
class Cost:
    """The operations of one sample's forward pass in the dense net.

    Attributes:
        layers: by the name of the layer's weight.
        other: what no prunable layer does.
    """

    layers: Mapping[str, int]
    other: int

    @property
    def dense(self) -> int:
        """The forward pass of the dense net."""
        return sum(self.layers.values()) + self.other

    def forward(self, masks: Mapping[str, Tensor]) -> float:
        """The forward pass when each layer does only what its live weights ask for; layers without a mask are dense."""
        return self.at({name: float(mask.float().mean()) for name, mask in masks.items()})

    def at(self, density: Mapping[str, float]) -> float:
        """The forward pass with such a share of live weights in each layer; layers that are not named are dense."""
        if strange := [name for name in density if name not in self.layers]:
            raise InputError(
                f"the operations of layer '{strange[0]}' cannot be counted: give it no mask, or count by hand"
            )
        return sum(flops * density.get(name, 1.0) for name, flops in self.layers.items()) + self.other


def cost(model: nn.Module, sample: Tensor, *, elementwise: bool = False) -> Cost:
    """Count the operations of a forward pass with torch's own counter.

    Args:
        model: the network; it is run once, in evaluation mode and without gradients.
        sample: one input with its batch dimension, which is divided out.
        elementwise: count batch norms and ReLUs too, as one operation an output each (a batch norm folded into the
            convolution before it leaves a shift). The paper's text leaves them out, but RigL's published ratios are
            met to two digits only with them.

    >>> cost(nn.Sequential(nn.Linear(20, 10)), torch.ones(1, 20)).layers
    {'0.weight': 400}
    """
    modes = {module: module.training for module in model.modules()}
    counter = FlopCounterMode(display=False, custom_mapping=_ELEMENTWISE if elementwise else None)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it is one operation that the counter does not know
    try:
        with torch.no_grad(), counter:
            model.eval()(sample)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes.items():
            module.training = training
    counts = {name: sum(by_kind.values()) // len(sample) for name, by_kind in counter.get_flop_counts().items()}
    root = type(model).__name__
    owners = {id(p): name for name, m in model.named_modules() for p in m.parameters(recurse=False)}
    layers: dict[str, int] = {}
    for name, (p, module) in prunable(model).items():
        owner = owners[id(p)]
        if isinstance(module, PRUNABLE) and (full := f"{root}.{owner}" if owner else root) in counts:
            layers[name] = counts[full]
    return Cost(layers, other=counter.get_total_flops() // len(sample) - sum(layers.values()))


def _one_an_output(*shapes: Any, out_shape: Any, **options: Any) -> int:
    first = (
        out_shape if isinstance(out_shape, torch.Size) else out_shape[0]
    )  # a batch norm gives its statistics as well
    return math.prod(first)


_NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "miopen_batch_norm")
_ELEMENTWISE = {
    getattr(torch.ops.aten, name): _one_an_output
    for name in ("relu", "relu_", *_NORMS)
    if hasattr(torch.ops.aten, name)
}


def step_flops(forward: float, dense: float, passes: int, due: Iterable[Rule], momentum: bool = False) -> float:
    """One training step on one sample (Evci et al. 2020, app. H: a backward pass costs two forward passes).

    Args:
        forward, dense: the forward pass under the masks, and without any.
        passes: gradients taken in the step, 2 for SAM.
        due: the rules that act at this step; one that reads dense gradients makes that part of one backward dense.
        momentum: whether a running average of dense gradients is kept, which makes it dense at every step.
    """
    extra = dense - forward if momentum or any(rule.dense_gradient for rule in due) else 0.0
    return 3 * forward * passes + extra


@dataclass(frozen=True)
class LayerCost:
    """One prunable layer in numbers: its live weights at the end of the run, and what it costs one sample forward."""

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
    """What a run will cost, told before it begins; in operations for one sample.

    Attributes:
        layers: of a prunable kind, made sparse or not.
        inference, inference_dense: a forward pass of the trained net, and of the dense one.
        step: a training step, averaged over the run, or over all rounds of a method that has rounds.
        steps: in the run, all rounds together.
    """

    layers: tuple[LayerCost, ...]
    inference: float
    inference_dense: float
    step: float
    steps: int

    @property
    def inference_ratio(self) -> float:
        """Inference as a share of the dense net's."""
        return self.inference / self.inference_dense

    @property
    def step_ratio(self) -> float:
        """A step as a share of a dense step without sharpness awareness."""
        return self.step / (3 * self.inference_dense)

    @property
    def sparsity(self) -> float:
        """Over the weights that are made sparse."""
        return 1 - sum(x.active for x in self.layers if x.chosen) / sum(x.total for x in self.layers if x.chosen)

    @property
    def overall_sparsity(self) -> float:
        """Over the weights of all layers of a prunable kind."""
        return 1 - sum(layer.active for layer in self.layers) / sum(layer.total for layer in self.layers)

    def train(self, batch_size: int) -> float:
        """The whole run."""
        return self.step * self.steps * batch_size


def estimate(
    model: nn.Module,
    sample: Tensor,
    method: str | Method = "rigl",
    *,
    sparsity: float | None = None,
    steps: int,
    passes: int = 1,
    include: Sequence[Pattern] = (),
    exclude: Sequence[Pattern] = (),
    layers: str = "all",
    elementwise: bool = False,
    **options: Any,
) -> Estimate:
    """What a run of a method will cost, without training and without its data.

    The plan is walked step by step with each layer's count of live weights. Counts are exact wherever they follow from
    shapes. What hangs on trained weights or data is taken as if scores were drawn by chance: a ranking of the whole net
    then prunes all layers, or groups of channels, alike, and a rule without ``counts`` (growth shared out anew, as in DSR
    and SNFS) leaves every layer its own.

    Args:
        model: the network; on the ``meta`` device it takes no memory.
        sample: one input with its batch dimension, on the model's device.
        passes: gradients taken in a step, 2 for SAM.
        elementwise: see ``cost``.
        method, sparsity, steps, include, exclude, layers, options: as of ``sparsify``.

    Raises: InputError as ``sparsify`` does.

    >>> dense = estimate(nn.Linear(20, 10), torch.ones(1, 20), "dense", sparsity=0.0, steps=100)
    >>> static = estimate(nn.Linear(20, 10), torch.ones(1, 20), "static", sparsity=0.9, steps=100)
    >>> static.inference, round(static.train(batch_size=8) / dense.train(batch_size=8), 3)
    (40.0, 0.1)
    """
    check_count("steps", steps)
    chosen = as_method(method, options)
    plan = chosen.plan(sparsity_for(chosen, sparsity), steps)
    masks = Masks.of(model, model.parameters(), include, exclude, layers=layers)
    forward = cost(model, sample, elementwise=elementwise)
    run = _Walk(plan, forward, masks, model, passes)
    for number in range(plan.rounds.count if plan.rounds else 1):
        if plan.rounds and number:
            run.live = plan.rounds.prune.counts(run.scores, run.live, number)
        run.take(steps)
    told = {
        name: LayerCost(
            name, tuple(p.shape), run.live.get(name, p.numel()), p.numel(), forward.layers[name], name in run.live
        )
        for name, (p, _) in prunable(model).items()
        if name in forward.layers
    }
    return Estimate(tuple(told.values()), run.forward, forward.dense, run.spent / run.steps, run.steps)


class _Walk:
    """A plan's way through its steps, with counts of live weights for masks."""

    def __init__(self, plan: Plan, cost: Cost, masks: Masks, model: nn.Module, passes: int) -> None:
        self.plan, self.cost, self.passes = plan, cost, passes
        self.shapes = {w.name: w.weight.shape for w in masks}
        self.widths = plan.widths(model, masks)
        chance = torch.Generator().manual_seed(0)
        self.scores = {name: torch.rand(shape, generator=chance) for name, shape in self.shapes.items()}
        self.spent, self.steps = 0.0, 0
        total = sum(s.numel() for s in self.scores.values())
        if plan.thinning is not None and plan.thinning.first:
            self.live = self._thinned(plan.thinning.first)
        elif plan.pattern is not None:
            self.live = {name: int(plan.pattern.keep(s, name).sum()) for name, s in self.scores.items()}
        else:
            self.live = plan.distribution(self.scores, budget(total, plan.sparsity))

    @property
    def forward(self) -> float:
        return self.cost.at({name: count / self.scores[name].numel() for name, count in self.live.items()})

    def take(self, steps: int) -> None:
        """So many steps more, as ``SparseTraining`` takes them: no rule acts at the very first."""
        momentum = self.plan.momentum is not None
        undisturbed = self._step((), momentum)
        for step in range(self.steps + 1, self.steps + steps + 1):
            due = [rule for rule in self.plan.rules if step > 1 and rule.when(step)] if self.plan.rules else []
            self.spent += self._step(due, momentum) if due else undisturbed
            for rule in due:
                if isinstance(rule, Explore):
                    self.live = self._thinned(rule.removed_by(step))
                elif hasattr(rule, "counts"):
                    self.live = rule.counts(self.scores, self.live, step)
            if due:
                undisturbed = self._step((), momentum)
        self.steps += steps

    def _thinned(self, removed: float) -> dict[str, int]:
        """Live weights where so many channels are gone, of every group alike, and all others are live."""
        assert self.plan.thinning is not None
        assert self.widths is not None
        for g, count in zip(self.widths, self.plan.thinning.alike(self.widths, removed), strict=True):
            g.live = torch.arange(g.group.size) < count
        return {name: int(room.sum()) for name, room in self.widths.masks(self.shapes).items()}

    def _step(self, due: Sequence[Rule], momentum: bool) -> float:
        return step_flops(self.forward, self.cost.dense, self.passes, due, momentum)

"""Scores of a whole net from a sample of the data, before training (SNIP: Lee et al. 2019; GraSP: Wang et al. 2020)."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatsparse.common.distributed import is_sharded
from flatsparse.common.errors import InputError
from flatsparse.sparse.masks import Masks

Batch = tuple[Tensor, Tensor]  # inputs and targets
Loss = Callable[[Tensor, Tensor], Tensor]  # of outputs and targets, a scalar
ModelLoss = Callable[[nn.Module, Any], Tensor]  # of the model and a batch of any form, a scalar
# Every other input, so that both halves hold every class; or what comes before and after the middle.
HALVES: dict[str, Callable[[int], tuple[slice, slice]]] = {
    "alternate": lambda size: (slice(0, None, 2), slice(1, None, 2)),
    "middle": lambda size: (slice(size // 2), slice(size // 2, None)),
}


@dataclass(frozen=True)
class Sensitivity:
    """``|∂L/∂c|`` at c = 1 for a mask c on the weights, which is ``|g ⊙ w|`` (SNIP: Lee et al. 2019, eq. 4 and 5).

    L is the mean of the batches' losses. Beside one batch's graph it takes one buffer of the weights' size. The paper
    divides by the sum of all scores; that changes no order and is left out.

    Attributes:
        batches: pairs of inputs and targets on the model's device; the paper takes a single one. All are read.
        loss_fn: of outputs and targets.
        model_loss: of the model and a batch of any form, in place of ``loss_fn``.
    """

    batches: Iterable[Any] | None
    loss_fn: Loss | None
    model_loss: ModelLoss | None = None

    def __call__(self, masks: Masks, model: nn.Module) -> dict[str, Tensor]:
        batches, loss_of = _given(self.batches, self.loss_fn, self.model_loss)
        weights = [w.weight for w in masks]
        total = [torch.zeros_like(w) for w in weights]
        with undisturbed(model):
            for count, batch in enumerate(batches, start=1):  # noqa: B007
                gradients = torch.autograd.grad(loss_of(model, batch), weights, allow_unused=True)
                for sum_, g in zip(total, gradients, strict=True):
                    if g is not None:
                        sum_ += g
        scores = {w.name: g.mul_(w.weight.detach()).abs_().div_(count) for w, g in zip(masks, total, strict=True)}
        return finite(scores)


@dataclass(frozen=True)
class GradientFlow:
    """``w ⊙ Hg``: what stays is what would take most gradient flow with it (GraSP: Wang et al. 2020, eq. 8, Alg. 1).

    The paper removes the largest ``-w ⊙ Hg``, so the largest ``w ⊙ Hg`` stay. As in its published code the logits are
    divided by a temperature, and the sample is passed in two halves whose gradients and products are added up, so
    that only one half's graph is held at a time. That code also divides the scores by their sum, which changes
    no order, and draws new weights for the scoring; here the weights that will be trained are scored.

    Attributes:
        batches: pairs of inputs and targets on the model's device; all are read.
        loss_fn: of outputs and targets.
        model_loss: of the model and a batch of any form, in place of ``loss_fn``; the batches are then what the halves are, and
            nothing is divided by the temperature.
        per_class: the number of each class in the sample, the first in the batches; None takes all.
        temperature: T, which the outputs are divided by.
        halves: of the sample, which goes class by class: a name in ``HALVES``.
    """

    batches: Iterable[Any] | None
    loss_fn: Loss | None
    per_class: int | None = 10
    temperature: float = 200.0
    halves: str = "alternate"
    model_loss: ModelLoss | None = None

    def __call__(self, masks: Masks, model: nn.Module) -> dict[str, Tensor]:
        halves, loss_of = self._halves()
        weights = [w.weight for w in masks]

        def gradients(half: Any, create_graph: bool) -> tuple[Tensor, ...]:
            loss = loss_of(model, half)
            return torch.autograd.grad(loss, weights, create_graph=create_graph, materialize_grads=True)

        with undisturbed(model), sdpa_kernel(SDPBackend.MATH):  # other forms of attention have no second derivative
            flow = [torch.zeros_like(w) for w in weights]
            for half in halves:
                flow = [a + b for a, b in zip(flow, gradients(half, create_graph=False), strict=True)]
            products = [torch.zeros_like(w) for w in weights]
            for half in halves:
                along = sum((g * d).sum() for g, d in zip(gradients(half, create_graph=True), flow, strict=True))
                assert isinstance(along, Tensor)
                for product, more in zip(
                    products, torch.autograd.grad(along, weights, materialize_grads=True), strict=True
                ):
                    product += more
        scores = {w.name: product * w.weight.detach() for w, product in zip(masks, products, strict=True)}
        return finite(scores)

    def _halves(self) -> tuple[list[Any], ModelLoss]:
        """Return the parts of the sample, and their loss."""
        batches, loss_of = _given(self.batches, self.loss_fn, self.model_loss)
        if self.model_loss is not None:
            return list(batches), loss_of
        inputs, targets = balanced(batches, self.per_class)

        def cooled(model: nn.Module, half: Batch) -> Tensor:
            assert self.loss_fn is not None  # or there is another loss
            return self.loss_fn(model(half[0]) / self.temperature, half[1])

        return [(inputs[part], targets[part]) for part in HALVES[self.halves](len(inputs))], cooled


def balanced(batches: Iterable[Batch], per_class: int | None) -> Batch:
    """Return a sample with equally many of each class, class by class: the first that come.

    Args:
        per_class: of each class; fewer, with a warning, when a class has fewer. None joins the batches as they are.

    Raises: InputError for targets that are not class numbers.
    """
    kept_inputs, kept_targets = [], []
    counts: Counter[int] = Counter()
    for inputs, targets in batches:
        if per_class is not None:
            if targets.ndim != 1 or targets.is_floating_point():
                raise InputError(
                    f"targets of shape {tuple(targets.shape)}, {targets.dtype}, are not class numbers: give"
                    " per_class=None to take the batches as they are"
                )
            wanted = []
            for index, label in enumerate(targets.tolist()):
                counts[label] += 1
                wanted += [index] if counts[label] <= per_class else []
            inputs, targets = inputs[wanted], targets[wanted]
        kept_inputs.append(inputs)
        kept_targets.append(targets)
    inputs, targets = torch.cat(kept_inputs), torch.cat(kept_targets)
    if per_class is None:
        return inputs, targets
    count = min(per_class, *counts.values())
    if count < per_class:
        warnings.warn(
            f"batches hold only {count} of some class, not per_class={per_class}: using {count}", stacklevel=2
        )
    chosen = torch.cat([(targets == label).nonzero().squeeze(1)[:count] for label in sorted(counts)])
    return inputs[chosen], targets[chosen]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """A context with gradients on and the model in training mode, as both papers score, that leaves no trace.

    Modes, buffers (such as running statistics) and the random state are afterwards what they were.

    Raises: InputError for a sharded model, whose gradients exist in its own hooks only.
    """
    if any(is_sharded(p) for p in model.parameters()):
        raise InputError(
            "scores on data cannot be taken through fully_shard: find the masks of an unsharded copy, and give them to"
            " sparsify(…, masks=) and a method that keeps them"
        )
    modes = {module: module.training for module in model.modules()}
    buffers = [(b, b.clone()) for b in model.buffers()]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=[d for d in devices if d is not None]), torch.enable_grad(), _eager(model):
            model.train()
            yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for module, training in modes.items():
            module.training = training


def _eager(model: nn.Module) -> AbstractContextManager[None]:
    """A context in which a model that compiles itself does not: a graph of ours would pass for the user's."""
    compiles = any(module._compiled_call_impl is not None for module in model.modules())
    return torch.compiler.set_stance("force_eager") if compiles else nullcontext()


def _given(
    batches: Iterable[Any] | None, loss_fn: Loss | None, model_loss: ModelLoss | None
) -> tuple[Iterator[Any], ModelLoss]:
    """Return the batches and their loss. Raises InputError, which shows the call, when either is missing."""
    if loss_fn is not None and model_loss is not None:
        raise InputError("loss_fn= and model_loss= are two losses for one scoring: give one")
    if batches is None or (loss_fn is None and model_loss is None):
        missing = "batches=" if batches is None else "loss_fn="
        raise InputError(
            f"the method scores weights on data and got no {missing}: call sparsify(model, optimizer, method, …,"
            " batches=[(inputs, targets)], loss_fn=torch.nn.functional.cross_entropy)"
        )
    if model_loss is not None:
        return each_batch(batches), model_loss
    assert loss_fn is not None  # as checked above
    return each_pair(batches), lambda model, batch: loss_fn(model(batch[0]), batch[1])


def each_batch(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches. Raises InputError when there are none."""
    empty = True
    for batch in batches:
        yield batch
        empty = False
    if empty:
        raise InputError("batches= holds nothing: give at least one batch")


def each_pair(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the batches one by one, so that no more than one need be held."""
    empty = True
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise InputError(f"batches= holds a {type(batch).__name__}: give pairs, such as [(inputs, targets)]")
        yield batch[0], batch[1]
        empty = False
    if empty:
        raise InputError("batches= holds nothing: give pairs, such as [(inputs, targets)]")


def finite(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return scores. Raises InputError for a layer whose scores are not finite."""
    odd = next((name for name, score in scores.items() if not score.isfinite().all()), None)
    if odd is not None:
        raise InputError(f"the scores of layer '{odd}' are not finite: check that the batches, and their loss, are")
    return scores

"""Scores of weights by the inputs that they are multiplied with (Wanda: Sun et al. 2024)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.common.weight_layout import is_conv1d, outputs_first
from flatsparse.sparse.distributions import uniform
from flatsparse.sparse.masks import MaskedWeight, Masks
from flatsparse.sparse.pattern import UNSTRUCTURED, Pattern
from flatsparse.sparse.saliency import ModelLoss, each_batch, each_pair, finite, undisturbed


@dataclass(frozen=True)
class WeightTimesInput:
    """``|w_ij| · ‖x_j‖₂``, ranked within each output's weights (Wanda: Sun et al. 2024, eq. 1 and Alg. 1).

    x_j is the j-th input of the layer over all samples and positions of the batches. A score is minus the weight's rank in its
    row, so that the best of a layer are the best of each of its rows; where a count does not divide among the rows, the
    first have one more. The paper has linear layers; in a convolution (ours) the weights of one input channel share its norm,
    and a row is a filter. It costs a number for each input, and forward passes in evaluation mode, without gradients: one in
    all, or given a sparsity one for each block of layers, and a copy of the weights.

    Attributes:
        batches: pairs of inputs and targets on the model's device, of which the inputs count; all are read.
        model_loss: of the model and a batch of any form, called for its forward pass.
        sparsity: that the masks will have. Given, blocks of layers are scored in the order in which they are first called, each
            on what it receives when those before it are pruned; with None, all on the dense network.
        pattern: that the masks will keep to; read with a sparsity only.
    """

    batches: Iterable[Any] | None
    model_loss: ModelLoss | None = None
    sparsity: float | None = None
    pattern: Pattern = UNSTRUCTURED

    def __call__(self, masks: Masks, model: nn.Module) -> dict[str, Tensor]:
        with undisturbed(model), torch.no_grad():
            model.eval()
            if self.sparsity is None:
                scores = _scores(masks, _all_seen(masks, self._squares(masks, model)))
            else:
                with _restored(masks):
                    scores = self._in_order(masks, model, masks.budget(self.sparsity))
        return {w.name: scores[w.name] for w in masks}

    def _in_order(self, masks: Masks, model: nn.Module, total: int) -> dict[str, Tensor]:
        """Return the scores, block after block; what is scored is pruned, as it will be."""
        scoring = replace(self, batches=None if self.batches is None else list(self.batches))  # read more than once
        counts = self.pattern.counts({w.name: w.weight for w in masks}, total, uniform)
        first = _all_seen(masks, scoring._squares(masks, model))
        scores: dict[str, Tensor] = {}
        for block in _blocks(masks, model, called=first):
            now = scoring._squares(block, model) if scores else {}
            scores |= _scores(block, {**first, **now})  # what pruning keeps from being called has its first inputs
            for w in block:
                if not w.keeps_outside:
                    ranked = self.pattern.ranked(scores[w.name], w.name, w.inputs_first)
                    w.weight.masked_fill_(~self.pattern.best(ranked, counts[w.name], w.inputs_first), 0)
        return scores

    def _squares(self, weights: Iterable[MaskedWeight], model: nn.Module) -> dict[int, Tensor]:
        """Return the sum of squares of each input of a layer, by the id of its weight, in the order of first calls."""
        with _noting_squares(weights, model) as squares:
            self._forward(model)
        return squares

    def _forward(self, model: nn.Module) -> None:
        if self.batches is None:
            raise InputError(
                "the method scores weights on data and got no batches=: call sparsify(model, optimizer, method, …,"
                " batches=[(inputs, targets)])"
            )
        if self.model_loss is not None:
            for batch in each_batch(self.batches):
                self.model_loss(model, batch)
        else:
            for inputs, _ in each_pair(self.batches):
                model(inputs)


def _all_seen(weights: Iterable[MaskedWeight], squares: dict[int, Tensor]) -> dict[int, Tensor]:
    """Return the squares. Raises InputError when those of a weight are not among them."""
    if unseen := [w.name for w in weights if id(w.weight) not in squares]:
        raise InputError(
            f"the inputs of '{unseen[0]}' were not seen: only linear layers and convolutions that are called are scored"
            " by them; leave it out with exclude="
        )
    return squares


def _scores(weights: Iterable[MaskedWeight], squares: dict[int, Tensor]) -> dict[str, Tensor]:
    scores = finite({w.name: _times_norms(w, squares[id(w.weight)].sqrt()) for w in weights})
    return {w.name: _ranks(scores[w.name], w.inputs_first) for w in weights}


def _blocks(masks: Masks, model: nn.Module, called: Iterable[int]) -> Iterator[list[MaskedWeight]]:
    """Yield the weights block by block, in the order of first calls.

    A block is one of several modules of one kind in a ``ModuleList`` or ``Sequential``, such as a transformer's blocks; where
    such lists hold each other, of the outermost. A layer in none is a block of its own.
    """
    owners: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            kinds = Counter(type(child) for child in module)
            for child in module:
                if kinds[type(child)] > 1:
                    owners.update({id(p): id(child) for p in child.parameters() if id(p) not in owners})
    by_block: dict[int, list[MaskedWeight]] = {}
    weights = {id(w.weight): w for w in masks}
    for key in called:
        by_block.setdefault(owners.get(key, key), []).append(weights[key])
    yield from by_block.values()


@contextmanager
def _restored(masks: Masks) -> Iterator[None]:
    """A context after which the weights are what they were before."""
    before = [w.weight.clone() for w in masks]
    try:
        yield
    finally:
        for w, value in zip(masks, before, strict=True):
            w.weight.copy_(value)


@contextmanager
def _noting_squares(weights: Iterable[MaskedWeight], model: nn.Module) -> Iterator[dict[int, Tensor]]:
    """A context that yields a sum of squares for each input of a layer, float32, by the id of its weight, as they are seen."""
    squares: dict[int, Tensor] = {}
    masked = {id(w.weight) for w in weights}

    def noting(key: int) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            seen = _by_input(module, x.detach()).float().square().sum(1)
            squares[key] = squares[key] + seen if key in squares else seen

        return note

    handles = [
        module.register_forward_pre_hook(noting(id(weight)), with_kwargs=True)
        for module in model.modules()
        if _has_inputs(module) and id(weight := module._parameters.get("weight")) in masked
    ]
    try:
        yield squares
    finally:
        for handle in handles:
            handle.remove()


def _has_inputs(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) or is_conv1d(module)


def _by_input(module: nn.Module, x: Tensor) -> Tensor:
    """Return what a layer is called with as (inputs, samples and positions): its features, or its channels."""
    axis = -1 - len(module.kernel_size) if isinstance(module, nn.modules.conv._ConvNd) else -1
    return x.movedim(axis, 0).flatten(1) if x.ndim > 1 else x[:, None]


def _times_norms(w: MaskedWeight, norms: Tensor) -> Tensor:
    """Return ``|w_ij| · ‖x_j‖₂``, (outputs, inputs of a group, …); the groups of a layer read one after the other."""
    rows = outputs_first(w.weight.detach(), w.inputs_first).abs()
    groups = norms.numel() // rows.shape[1]
    own = norms.view(groups, 1, -1, *[1] * (rows.ndim - 2))
    return (rows.unflatten(0, (groups, -1)) * own).flatten(0, 1)


def _ranks(rows: Tensor, inputs_first: int) -> Tensor:
    """Return minus each entry's rank in its row, 0 the largest, ties by index, float32; turned to the layer's own order."""
    flat = rows.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(flat.shape[1], device=flat.device, dtype=torch.float32).expand_as(flat)
    ranks = torch.zeros_like(flat, dtype=torch.float32).scatter_(1, order, -places)
    return outputs_first(ranks.view(rows.shape), inputs_first)

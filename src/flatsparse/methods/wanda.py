"""Wanda (Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models")."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flatsparse.common.errors import InputError
from flatsparse.sparse.block import Block
from flatsparse.sparse.distributions import uniform
from flatsparse.sparse.input_norms import WeightTimesInput
from flatsparse.sparse.pattern import PatternOption, pattern_of
from flatsparse.sparse.plan import Plan
from flatsparse.sparse.saliency import Loss, ModelLoss


@dataclass(frozen=True)
class Wanda:
    """Keep the weights whose size times the norm of their input is largest within each output's, and never change them (Alg. 1).

    For networks that are trained already: the score is ``|w_ij| · ‖x_j‖₂``, over a few calibration samples. Weights are compared
    within each row, so that every output of every layer keeps the same share. As in the paper, block after block of layers is
    pruned, each scored on what the pruned blocks before it give. The paper trains nothing after that, or fine-tunes under the
    masks, as is done here.

    Attributes:
        batches: pairs of inputs and targets, on the model's device; the inputs alone count (128 sequences in the paper).
        loss_fn: not called; taken because other methods that score on data take it.
        model_loss: of the model and a batch of any form, called for its forward pass, such as
            ``lambda model, batch: model(**batch).loss``.
        pattern: N active weights of each M, as a pair, in place of a share of each output's.
        sequential: prune block after block, at the cost of a forward pass of all batches for each. ``False`` (ours, for its
            single pass) scores every layer on the dense network.
    """

    batches: Iterable[Any] | None = None
    loss_fn: Loss | None = None
    model_loss: ModelLoss | None = None
    pattern: PatternOption = None
    sequential: bool = True
    scoring = "batch"

    def plan(self, sparsity: float, steps: int) -> Plan:
        pattern = pattern_of(self.pattern, sparsity)
        if isinstance(pattern, Block):
            raise InputError(
                f"method 'wanda' ranks each output's weights by themselves, not {pattern}: give (2, 4) or none"
            )
        pruned = sparsity if self.sequential else None
        initial = WeightTimesInput(self.batches, self.model_loss, pruned, pattern)
        return Plan(sparsity, initial, uniform, pattern=pattern)

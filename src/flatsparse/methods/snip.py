"""SNIP: single-shot network pruning (Lee et al. 2019, "SNIP: Single-shot Network Pruning based on Connection Sensitivity")."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flatsparse.sparse.distributions import Distribution, global_ranking
from flatsparse.sparse.plan import Plan
from flatsparse.sparse.saliency import Loss, ModelLoss, Sensitivity


@dataclass(frozen=True)
class SNIP:
    """Before training keep the weights that the loss is most sensitive to, and never change them (Alg. 1).

    The sensitivity to a weight is ``|w · ∂L/∂w|``, the effect of its removal on the loss to first order. All weights of the net
    are ranked globally.
    The paper starts from a variance-scaling initialisation; here the model is scored as it is given.

    Attributes:
        batches: pairs of inputs and targets to score on, on the model's device; the paper takes one mini-batch.
        loss_fn: of outputs and targets.
        model_loss: of the model and a batch of any form, in place of ``loss_fn``.
        distribution: the paper ranks all weights globally.
    """

    batches: Iterable[Any] | None = None
    loss_fn: Loss | None = None
    distribution: Distribution = global_ranking
    model_loss: ModelLoss | None = None
    scoring = "batch"

    def plan(self, sparsity: float, steps: int) -> Plan:
        return Plan(sparsity, Sensitivity(self.batches, self.loss_fn, self.model_loss), self.distribution)

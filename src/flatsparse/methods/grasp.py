"""GraSP (Wang et al. 2020, "Picking Winning Tickets Before Training by Preserving Gradient Flow")."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flatsparse.common.errors import check_count, check_finite, unknown
from flatsparse.sparse.distributions import Distribution, global_ranking
from flatsparse.sparse.plan import Plan
from flatsparse.sparse.saliency import HALVES, GradientFlow, Loss, ModelLoss


@dataclass(frozen=True)
class GraSP:
    """Before training keep the weights that carry the gradient flow, and never change them (Alg. 1).

    The score of a weight is ``w · H∂L/∂w``, with H the Hessian: the effect of its removal on the norm of the gradient, to
    first order. All weights of the net are ranked globally, on a sample with equally many images of each class.

    The sample is passed in two halves. The published code splits it in the middle, class by class as it is sorted, so that
    each half holds half of the classes; here each takes every other image. With batch norm, whose statistics are a half's
    own, that matters: on digits, at 90 to 98 %, 81 to 84 % of the active weights are the same for a net of three
    convolutions, and 47 to 60 % for ResNet-20. That code also scores with newly drawn weights (Xavier) in linear layers, by
    default; here the weights that will be trained are scored.

    Attributes:
        batches: pairs of inputs and targets that the sample is taken from, on the model's device.
        loss_fn: of outputs and targets.
        model_loss: of the model and a batch of any form, in place of ``loss_fn``.
        per_class: of each class in the sample (10 on CIFAR-10 in the published code); None takes all batches whole.
        temperature: the divisor of the outputs (T in the published code).
        halves: ``alternate``, or ``middle`` as in the published code.
        distribution: the paper ranks all weights globally.
    """

    batches: Iterable[Any] | None = None
    loss_fn: Loss | None = None
    per_class: int | None = 10
    temperature: float = 200.0
    halves: str = "alternate"
    distribution: Distribution = global_ranking
    model_loss: ModelLoss | None = None
    scoring = "batches"

    def plan(self, sparsity: float, steps: int) -> Plan:
        if self.per_class is not None:
            check_count("per_class", self.per_class, minimum=2)  # a half each
        check_finite("temperature", self.temperature, above=True)
        if self.halves not in HALVES:
            raise unknown("halves=", self.halves, HALVES)
        flow = GradientFlow(self.batches, self.loss_fn, self.per_class, self.temperature, self.halves, self.model_loss)
        return Plan(sparsity, flow, self.distribution)

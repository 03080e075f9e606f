"""GraSP (Wang et al. 2020, "Picking Winning Tickets Before Training by Preserving Gradient Flow")."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flatsparse.distributions import Distribution, ranked_together
from flatsparse.errors import check_count, check_finite
from flatsparse.plan import Plan
from flatsparse.saliency import Batch, GradientFlow, Loss


@dataclass(frozen=True)
class GraSP:
    """Before training keep the weights that carry the gradient flow, and never change them (Alg. 1).

    The score of a weight is ``w · H∂L/∂w``, H the Hessian: what its removal does to the norm of the gradient, to first
    order. All weights of the net are ranked together, on a sample with as many images of each class.

    Attributes:
        batches: pairs of inputs and targets that the sample is taken from, on the model's device.
        loss_fn: of outputs and targets.
        per_class: of each class in the sample (10 on CIFAR-10 in the published code); None takes all batches whole.
        temperature: what the outputs are divided by (T in the published code).
        distribution: the paper ranks all weights together.
    """

    batches: Iterable[Batch] | None = None
    loss_fn: Loss | None = None
    per_class: int | None = 10
    temperature: float = 200.0
    distribution: Distribution = ranked_together

    def plan(self, sparsity: float, steps: int) -> Plan:
        if self.per_class is not None:
            check_count("per_class", self.per_class, minimum=2)  # a half each
        check_finite("temperature", self.temperature, above=True)
        flow = GradientFlow(self.batches, self.loss_fn, self.per_class, self.temperature)
        return Plan(sparsity, flow, self.distribution)

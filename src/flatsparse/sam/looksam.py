"""LookSAM: SAM on some steps only; on the others its last direction, without a second gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatsparse.common.distributed import full_tensor, norm
from flatsparse.common.errors import InputError, check_count, check_finite
from flatsparse.sam.directions import Tensors
from flatsparse.sam.optimizers import SAM
from flatsparse.sam.perturb import TINY
from flatsparse.sam.state_entry import StateEntry
from flatsparse.schedules import Schedule

ORTHOGONAL = "orthogonal"  # the key of g_v in a parameter's optimizer state


class LookSAM(SAM):
    """SAM on every k-th step; in between the gradient plus a kept direction, of length ``α ‖g‖``.

    Liu et al., "Towards Efficient and Scalable Sharpness-Aware Minimization", CVPR 2022, Alg. 1. On a SAM step
    ``g_v = g_s − (⟨g_s, g⟩/‖g‖²) g`` is kept, the part of SAM's gradient g_s that is orthogonal to the gradient g; on
    the others the base steps with ``g + α (‖g‖/‖g_v‖) g_v``. Norms and products are over all parameters together.

    The paper says nothing of masks; here g_v and all norms are those of active weights, and a weight that has become active
    since has no part in g_v. Costs 1 + 1/k gradients a step and two parameter-sized buffers, one of them kept.

    Args:
        every: k. The paper uses 5 and 10.
        alpha: α. The default is the paper's value for images as far as we know; others use 0.2 to 1.
        base, rho, adaptive, eta, mask_perturbation: see ``SharpnessAware``.

    Raises: InputError for a k below 1 or an α that is negative or not finite.

    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer, calls = LookSAM(torch.optim.SGD(model.parameters(), lr=0.1), every=5), []
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     calls.append(model(torch.ones(4, 2)).mean())
    ...     calls[-1].backward()
    ...     return calls[-1]
    >>> for _ in range(10):
    ...     loss = optimizer.step(closure)
    >>> len(calls)
    12
    """

    _copied: ClassVar = (*SAM._copied, "every", "alpha")

    def __init__(
        self,
        base: Optimizer,
        rho: float | Schedule = 0.05,
        *,
        every: int = 5,
        alpha: float = 0.7,
        adaptive: bool = False,
        eta: float = 0.01,
        mask_perturbation: bool = True,
    ) -> None:
        self.every, self.alpha = check_count("every", every), check_finite("alpha", alpha)
        super().__init__(base, rho, adaptive=adaptive, eta=eta, mask_perturbation=mask_perturbation)

    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take a step.

        Args:
            closure: clears the gradients, computes the loss and its gradients. It is called twice on a SAM step, else once.

        Returns: the loss at w.
        Raises: InputError without a closure, because only the step knows whether it needs a second gradient.
        """
        if closure is None:
            raise InputError("LookSAM.step() needs a closure that clears the gradients and computes loss and gradients")
        with torch.enable_grad():
            loss = closure()  # the gradient g, at w
        orthogonal = self._sharpen(closure)  # g_s, at w + ρ g/‖g‖; or g + α (‖g‖/‖g_v‖) g_v
        self.checks.end_step()
        self.base.step()
        self._keep(orthogonal)
        self.radius.advance()
        return loss

    def _sharpen(self, closure: Callable[[], Any]) -> Tensors:
        """Turn the gradient into that of a SAM step, or into the kept direction. Returns the new g_v of a SAM step."""
        gradients = self.perturbation.gradients()
        stored = {p: v for p in gradients if (v := self._entry.get(p)) is not None}
        if gradients and (self.radius.steps_taken % self.every == 0 or not stored):
            with self.perturbed():
                first = {p: g.clone() for p, g in self._active_only(gradients).items()}
                with torch.enable_grad():
                    self.zero_grad()
                    closure()
            return _orthogonal(self._active_only(self.perturbation.gradients()), first)
        if stored:
            length, own = (norm(list(self._active_only(some).values())) for some in (gradients, stored))
            assert length is not None
            assert own is not None
            factor = self.alpha * length / own.clamp(min=TINY)
            factor = torch.where(factor.isfinite(), factor, 0)  # nothing is added to a gradient without a length
            for p, v in self._active_only(stored).items():
                gradients[p].add_(v * factor.clamp(max=torch.finfo(v.dtype).max).to(v))
        return {}

    def _keep(self, orthogonal: Tensors) -> None:
        """Keep a new g_v, after the base's step: Adam would take an entry before its first step for its own."""
        for p, v in self._active_only(orthogonal).items():  # the masks may just have changed
            self._entry[p] = v

    def reset_state(self) -> None:
        """Drop g_v too, and restart a schedule of ρ: the next step is like the first."""
        super().reset_state()
        for group in self.param_groups:
            for p in group["params"]:
                self._entry.pop(p)

    @property
    def _entry(self) -> StateEntry:
        return StateEntry(self.base, ORTHOGONAL)

    def _active_only(self, tensors: Tensors) -> Tensors:
        """Return the tensors, copied and zero outside the masks where there are masks: dense gradients stay for the rules."""
        active = dict(tensors)
        for p, t in tensors.items():
            if p in self.perturbation.masks:
                active[p] = self.perturbation.masks[p].zero_outside(t.clone())
        return active


def _orthogonal(second: Tensors, first: Tensors) -> Tensors:
    """Return the part of one gradient that is orthogonal to another; nothing where one of them is missing.

    It is 0 where the two are parallel but for rounding, as those of a single weight are, and where one is not finite.
    """
    both = [p for p in second if p in first]
    if not both:
        return {}
    length = norm([first[p] for p in both])
    assert length is not None
    unit = {p: first[p] / length.clamp(min=TINY).to(first[p]) for p in both}  # first, so that no square overflows
    share = sum(full_tensor((second[p] * unit[p]).sum(dtype=length.dtype)).to(length.device) for p in both)
    assert isinstance(share, Tensor)
    parts = {p: second[p] - unit[p] * share.to(first[p]) for p in both}
    own, whole = norm(list(parts.values())), norm([second[p] for p in both])
    assert own is not None
    assert whole is not None
    kinds = [torch.finfo(p.dtype) for p in both]
    rounding, largest = 4 * max(kind.eps for kind in kinds), min(kind.max for kind in kinds)
    found = (own > rounding * whole) & (own <= largest) & (length <= largest)  # not where one is NaN
    return {p: v.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) * found.to(v) for p, v in parts.items()}

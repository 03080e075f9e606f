"""LookSAM: SAM on some steps only, and on the others what it has taught, without a second gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.common.distributed import full_tensor, norm
from flatsparse.common.errors import InputError, check_count, check_finite
from flatsparse.sam.base import TINY
from flatsparse.sam.optimizers import SAM
from flatsparse.schedules import Schedule

ORTHOGONAL = "orthogonal"  # the key of g_v in a parameter's optimizer state


class LookSAM(SAM):
    """SAM on every k-th step; in between the gradient plus a kept direction, of length ``α ‖g‖``.

    Liu et al., "Towards Efficient and Scalable Sharpness-Aware Minimization", CVPR 2022, Alg. 1. On a SAM step
    ``g_v = g_s − (⟨g_s, g⟩/‖g‖²) g`` is kept, the part of SAM's gradient g_s that is orthogonal to the gradient g; on
    the others the base steps with ``g + α (‖g‖/‖g_v‖) g_v``. Norms and products are over all parameters together.

    The paper says nothing of masks; here g_v and all norms are those of live weights, and a weight that has come alive
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

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "every": self.every, "alpha": self.alpha}

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
            loss = closure()
        gradients = self._gradients()
        kept = {p: v for p in gradients if (v := self.state.get(p, {}).get(ORTHOGONAL)) is not None}
        fresh: dict[nn.Parameter, Tensor] = {}
        if gradients and (self.param_groups[0]["looks"] % self.every == 0 or not kept):
            with self.perturbed():
                first = {p: g.clone() for p, g in self._live_only(gradients).items()}
                with torch.enable_grad():
                    self.zero_grad()
                    closure()
            fresh = _orthogonal(self._live_only(self._gradients()), first)
        elif kept:
            length, own = (norm(list(self._live_only(some).values())) for some in (gradients, kept))
            assert length is not None
            assert own is not None
            for p, v in self._live_only(kept).items():
                gradients[p].add_(v * (self.alpha * length / own.clamp(min=TINY)).to(v))
        self._looked = False
        self._end_watch()
        self.base.step()
        # Only now: Adam takes an entry that is there before its first step for its own, and the masks may just have changed.
        for p, v in self._live_only(fresh).items():
            self.state[p][ORTHOGONAL] = v
        self._advance()
        return loss

    def reset_state(self) -> None:
        """Forget what was kept, and begin a schedule of ρ anew: the next step is as the first."""
        super().reset_state()
        for group in self.param_groups:
            for p in group["params"]:
                self.state.get(p, {}).pop(ORTHOGONAL, None)

    def _live_only(self, tensors: dict[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
        """The tensors, copied and zero outside the masks where there are masks: dense gradients stay for the rules."""
        live = dict(tensors)
        for p, t in tensors.items():
            if p in self._masked:
                live[p] = t.clone()
                self._masked[p].zero_outside(live[p])
        return live


def _orthogonal(ours: dict[nn.Parameter, Tensor], first: dict[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
    """The part of one gradient that is orthogonal to another; nothing where one of them is missing."""
    both = [p for p in ours if p in first]
    if not both:
        return {}
    length = norm([first[p] for p in both])
    assert length is not None
    unit = {p: first[p] / length.clamp(min=TINY).to(first[p]) for p in both}  # first, so that no square overflows
    share = sum(full_tensor((ours[p] * unit[p]).sum(dtype=length.dtype)).to(length.device) for p in both)
    assert isinstance(share, Tensor)
    return {p: ours[p] - unit[p] * share.to(first[p]) for p in both}

"""The gradients of a step: those that are hidden from the optimizer, and those that rules can choose no weights by."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.common.distributed import full_tensor
from flatsparse.sparse.masked_weight import MaskedWeight

Withheld = list[tuple[nn.Parameter, Tensor]]  # parameters, and the gradients that are hidden from the optimizer


def withheld_from(base: Optimizer) -> Withheld:
    """Hide every gradient from an optimizer, which then updates neither weights nor state."""
    withheld = []
    for group in base.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                withheld.append((p, p.grad))
                p.grad = None
    return withheld


def give_back(withheld: Withheld) -> None:
    """Give hidden gradients back, and hold them no longer: the step may stay suspended until the next."""
    for p, grad in withheld:
        p.grad = grad
    withheld.clear()


def clear_unusable(withheld: Withheld) -> bool:
    """Set hidden gradients to 0, and return True, if one is not finite: with no weight step, none is to go along them either."""
    finite = [bool(full_tensor(g.isfinite().all())) for _, g in withheld]  # of all, for processes ask together
    if all(finite):
        return False
    for _, grad in withheld:
        grad.zero_()
    return True


def forget_unusable(masked: Sequence[MaskedWeight]) -> bool:
    """Let a layer count as one without a gradient where that of its active weights is not finite, or all of it is 0.

    Only at steps whose rules go by the gradient, because a host waits for the answer. Gradients outside the masks may be
    anything: they count as 0 where they are not finite.

    Args:
        masked: weights whose gradients are 0 outside the masks, and were copied before.

    Returns: True if a gradient is not finite.
    """
    odd = False
    for w in masked:
        grad, dense = w.weight.grad, w.dense_grad
        if grad is None or dense is None:
            continue
        finite = bool(full_tensor(grad.isfinite().all()))
        odd |= not finite
        if not finite or not bool(full_tensor(dense.any())):
            w.dense_grad = None
    return odd


class Unusable:
    """Whether gradients of a step are not finite, and whether that was warned of.

    Attributes:
        found: in this step, so far.
    """

    def __init__(self) -> None:
        self.found = self._warned = False

    def end_step(self, step: int) -> None:
        """Warn, once, if any was found in a step: at its end, for a warning may be an error."""
        found, self.found = self.found, False
        if found and not self._warned:
            self._warned = True
            warnings.warn(
                f"a gradient is not finite at an update of the masks (step {step}), so it chooses no weights: skip such steps"
                " (torch.amp.GradScaler does), or lower the learning rate",
                stacklevel=2,
            )

"""The pull of weights towards a sparse copy of them: the penalty of an augmented Lagrangian, added to their gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.common.distributed import distribute
from flatsparse.schedules import Schedule
from flatsparse.sparse.masked_weight import MaskedWeight, zero_outside
from flatsparse.sparse.optimizer_state import groups_by_parameter
from flatsparse.sparse.rules import PruneTo
from flatsparse.sparse.split import Split
from flatsparse.sparse.state import TrainingState


def magnitude_with_dual(w: MaskedWeight) -> Tensor:
    """``|w + u|``, with u the dual of a plan's pull; ``|w|`` before it has one."""
    weight = w.weight.detach()
    return (weight if w.split is None else weight + w.split.u.to(weight)).abs()


@dataclass(frozen=True)
class Pull:
    """Pull the weights towards a sparse copy z: gradients of ``λ/2 ‖w − z + u‖²`` are added to theirs (ADMM, scaled form).

    It acts in the base's step and nowhere else, like weight decay: at the true weights, after clipping, and without a part in
    the direction of a perturbation. Entries are pulled through the base's momentum and denominators.

    Attributes:
        strength: λ, by step.
        projection: the masks that it gives are where z is kept; when it is due, z and u are made anew after the step.
        until: the last step that pulls. z and u are forgotten after it.
    """

    strength: Schedule
    projection: PruneTo
    until: int

    def acts(self, step: int) -> bool:
        """Return whether weights are pulled at a step."""
        return step <= self.until

    def lend(self, state: TrainingState, base: Optimizer, scale: Tensor | None) -> LentGradients:
        """Give the optimizer gradients with the pull in them for its step.

        Args:
            state: its steps are those before this one. Weights without z and u get theirs.
            base: the innermost optimizer.
            scale: what the gradients are multiplied by, if a scaler has left that in them.
        """
        step, lent = state.steps_taken + 1, LentGradients()
        if not self.acts(step):
            return lent
        if any(w.split is None for w in state.masks.trained()):
            self._begin(state, step)
        strength, groups = self.strength(step), groups_by_parameter(base)
        for w in state.masks.trained():
            if strength and w.weight.grad is not None and w.split is not None:
                lent.add(w, -strength if groups[w.weight].get("maximize") else strength, scale)
        return lent

    def _begin(self, state: TrainingState, step: int) -> None:
        kept = self.projection(state.gathered(), step)
        for w in state.masks.trained():
            if w.split is None:
                w.split = Split.of(w.weight.detach(), distribute(kept[w.name], like=w.mask))

    def after_step(self, state: TrainingState) -> None:
        """Make z and u anew if it is time, of the weights as the step left them."""
        step = state.steps_taken
        if step == self.until:
            for w in state.masks:
                w.split = None
        elif self.acts(step) and self.projection.when(step):
            kept = self.projection(state.gathered(), step)
            for w in state.masks.trained():
                if w.split is not None:
                    w.split = w.split.projected(w.weight.detach(), distribute(kept[w.name], like=w.mask))


class LentGradients:
    """Gradients that an optimizer has for the time of its step in place of the loss's, which come back unchanged."""

    def __init__(self) -> None:
        self._lent: list[tuple[nn.Parameter, Tensor, Tensor, int]] = []  # own, lent, and its version

    def __bool__(self) -> bool:
        return bool(self._lent)

    def add(self, w: MaskedWeight, strength: float, scale: Tensor | None) -> None:
        """Lend a weight's gradient with the pull in it, which is zero outside the mask."""
        assert w.split is not None
        own = w.weight.grad
        assert own is not None
        if w.split.difference.device != own.device:  # the model was moved after it was made sparse
            w.split = w.split.on(own.device)
        pull = torch.sub(w.weight.detach(), w.split.difference).mul_(strength)
        lent = (pull if scale is None else pull.mul_(scale)).to(own.dtype).add_(own)
        zero_outside([w], [lent])
        w.weight.grad = lent
        self._lent.append((w.weight, own, lent, lent._version))

    def give_back(self) -> None:
        """Put the gradients of the loss in place again; one that was replaced meanwhile is newer and stays."""
        for p, own, lent, _ in self._lent:
            if p.grad is lent:
                p.grad = own
        self._lent.clear()

    def give_back_untouched(self) -> None:
        """The same for a step that was never finished: what was written to since is newer, and stays."""
        self._lent = [entry for entry in self._lent if entry[2]._version == entry[3]]
        self.give_back()

"""Weights that grew under an optimizer that is older than they are, and the correction of their steps to those of a new one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatsparse.common.distributed import local_tensor
from flatsparse.sparse.masks import MaskedWeight
from flatsparse.sparse.optimizer_state import Group, correction, decay_factor, groups_by_parameter, settling_age


@dataclass
class _Young:
    """The recently grown weights of a layer.

    Attributes:
        indices: flat, in row-major order, int64.
        cohorts: at which update each grew, an index into ``born``, int32.
        born: the optimizer's step count at those updates.
        now: its step count by now. It is counted here, because to read it makes a host wait for an accelerator.
    """

    indices: Tensor
    cohorts: Tensor
    born: list[float]
    now: float

    def keep(self, which: Tensor) -> None:
        """Drop all but some (bool, an entry an index)."""
        self.indices, self.cohorts = self.indices[which], self.cohorts[which]

    def add(self, indices: Tensor) -> None:
        """Add weights that have just grown."""
        self.indices = torch.cat([self.indices.to(indices.device), indices])
        cohort = torch.full_like(indices, len(self.born), dtype=torch.int32)
        self.cohorts = torch.cat([self.cohorts.to(indices.device), cohort])
        self.born.append(self.now)

    def forget(self, age: float) -> None:
        """Drop those of an age and older; they come first."""
        if self.born and self.now - self.born[0] >= age:
            old = sum(self.now - born >= age for born in self.born)
            self.keep(self.cohorts >= old)
            self.cohorts -= old
            del self.born[:old]


class GrownWeights:
    """The active weights that are younger than the optimizer's state, and the correction of their steps.

    The averages of such a weight are those of a new optimizer; only their divisors are not. So the optimizer takes its step,
    and the steps of young weights are then multiplied by what is missing. It costs
    some gathers and scatters of young weights, and nothing for optimizers that correct nothing.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._young: dict[str, _Young] = {}
        self._before: dict[str, Tensor] = {}

    def note(self, weights: Iterable[MaskedWeight], grown: Mapping[str, Tensor]) -> None:
        """Note that some have grown (by layer, bool, of its shape), and that others may have been pruned."""
        groups = groups_by_parameter(self._optimizer)
        for w in weights:
            if w.name in grown:
                self._note(w, grown[w.name], groups.get(w.weight, {}))

    def _note(self, w: MaskedWeight, grown: Tensor, group: Group) -> None:
        state = self._optimizer.state.get(w.weight, {})
        if correction(self._optimizer, group, state, 1.0) is None:
            return
        now, indices = float(state.get("step", group.get("step"))), local_tensor(grown).reshape(-1).nonzero().squeeze(1)
        young = self._young.setdefault(w.name, _Young(indices[:0], indices[:0].int(), [], now))
        young.now = now
        self.forget_pruned([w])
        young.add(indices)

    @torch.no_grad()
    def before_step(self, weights: Iterable[MaskedWeight]) -> None:
        """Remember where the young weights are."""
        if not self._young:
            return
        weights = list(weights)
        for w in weights:
            if not self._optimizer.state.get(w.weight):  # cleared: its averages begin anew, for all weights
                self._young.pop(w.name, None)
        self._before = {
            w.name: local_tensor(w.weight.detach()).reshape(-1)[w.places(young.indices)]
            for w in weights
            if (young := self._young.get(w.name)) is not None and young.born and w.weight.grad is not None
        }

    @torch.no_grad()
    def after_step(self, weights: Iterable[MaskedWeight]) -> None:
        """Make the steps of young weights those of a new optimizer."""
        if not self._before:
            return
        groups = groups_by_parameter(self._optimizer)
        for w in weights:
            if (before := self._before.get(w.name)) is not None:
                self._correct(w, before, self._young[w.name], groups[w.weight])
        self._before = {}

    def _correct(self, w: MaskedWeight, before: Tensor, young: _Young, group: Group) -> None:
        young.now += 1
        own, state = correction, self._optimizer.state[w.weight]
        old = own(self._optimizer, group, state, young.now)
        factors = [own(self._optimizer, group, state, young.now - born) / old for born in young.born]  # type: ignore[operator]
        # Moved without blocking, for a tensor that is made on an accelerator makes the host wait.
        factor = torch.tensor(factors, dtype=before.dtype).to(before.device, non_blocking=True)[young.cohorts]
        weight, places = local_tensor(w.weight.detach()), w.places(young.indices)
        decayed = before * decay_factor(self._optimizer, group)
        flat = weight.reshape(-1)
        flat[places] = torch.lerp(decayed, flat[places], factor)
        if not weight.is_contiguous():  # then it was a copy (channels-last weights)
            weight.copy_(flat.view(weight.shape))
        young.forget(settling_age(group))

    def forget_pruned(self, weights: Iterable[MaskedWeight]) -> None:
        """Forget weights that are active no longer, after masks were loaded without what was kept here with them."""
        for w in weights:
            if (young := self._young.get(w.name)) is not None:
                young.keep(local_tensor(w.mask).reshape(-1)[young.indices])

    def clear(self) -> None:
        """Forget all, because the optimizer's state is new: no weight is younger than it."""
        self._young = {}

    def state_dict(self) -> dict[str, Any]:
        """Return indices, cohorts and step counts by layer."""
        return {
            name: {
                "places": young.indices.clone(),
                "cohorts": young.cohorts.clone(),
                "born": [*young.born],
                "now": young.now,
            }
            for name, young in self._young.items()
        }

    def load_state_dict(self, state: Mapping[str, Any], weights: Iterable[MaskedWeight]) -> None:
        """Load what ``state_dict`` returned."""
        devices = {w.name: w.weight.device for w in weights}
        self._young = {
            name: _Young(
                saved["places"].to(devices[name]),
                saved["cohorts"].to(devices[name], copy=True),
                [*saved["born"]],
                saved["now"],
            )
            for name, saved in state.items()
        }

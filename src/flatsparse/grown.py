"""Weights that grew under an optimizer that is older than they are, and steps of theirs as a new optimizer would take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatsparse.masks import MaskedWeight
from flatsparse.optimizer_state import decay_factor, groups_by_parameter, settling_age, step_correction
from flatsparse.shards import local


@dataclass
class _Young:
    """A layer's weights that grew not long ago.

    Attributes:
        places: in row-major order, int64; those that grew together lie together.
        counts, born: how many grew at one update, and the optimizer's step count then.
    """

    places: Tensor
    counts: list[int]
    born: list[float]

    def keep(self, live: Tensor) -> None:
        """Forget those that were pruned (bool, an entry a weight)."""
        alive = live[self.places]
        self.counts = [int(part.sum()) for part in alive.split(self.counts)]
        self.places = self.places[alive]

    def forget(self, groups: int) -> None:
        """Forget the oldest groups."""
        self.places = self.places[sum(self.counts[:groups]) :]
        del self.counts[:groups], self.born[:groups]


class GrownWeights:
    """Which live weights are younger than the optimizer's state, and the correction of their steps.

    The averages of such a weight are what a new optimizer's would be; only what they are divided by is not. So the
    optimizer takes its step, and the way that young weights have gone is then multiplied by what is missing. It costs
    some gathers and scatters of young weights, and nothing for optimizers that correct nothing.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._young: dict[str, _Young] = {}
        self._before: dict[str, Tensor] = {}

    def note(self, w: MaskedWeight, grown: Tensor) -> None:
        """Weights of a layer have grown (bool, its shape), others may have gone."""
        state = self._optimizer.state.get(w.weight, {})
        group = groups_by_parameter(self._optimizer).get(w.weight, {})
        if (young := self._young.get(w.name)) is not None:
            young.keep(local(w.mask).reshape(-1))
        if step_correction(self._optimizer, group, state, 1.0) is None:
            return
        places = local(grown).reshape(-1).nonzero().squeeze(1)
        young = self._young.setdefault(w.name, _Young(places[:0], [], []))
        young.places = torch.cat([young.places.to(places.device), places])
        young.counts.append(len(places))
        young.born.append(float(state.get("step", group.get("step", 0))))

    @torch.no_grad()
    def before_step(self, weights: Iterable[MaskedWeight]) -> None:
        """Remember where the young weights are."""
        self._before = {
            w.name: local(w.weight.detach()).reshape(-1)[young.places]
            for w in weights
            if (young := self._young.get(w.name)) is not None and len(young.places) and w.weight.grad is not None
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

    def _correct(self, w: MaskedWeight, before: Tensor, young: _Young, group: Mapping[str, Any]) -> None:
        state = self._optimizer.state[w.weight]
        now = float(state.get("step", group.get("step", 0)))
        factors = [step_correction(self._optimizer, group, state, max(1.0, now - born)) or 1.0 for born in young.born]
        counts = torch.tensor(young.counts, device=before.device)
        factor = torch.tensor(factors, dtype=before.dtype, device=before.device).repeat_interleave(counts)
        weight = local(w.weight.detach())
        decayed = before * decay_factor(self._optimizer, group)
        flat = weight.reshape(-1)
        flat[young.places] = torch.lerp(decayed, flat[young.places], factor)
        if not weight.is_contiguous():  # then it was a copy (channels-last weights)
            weight.copy_(flat.view(weight.shape))
        young.forget(sum(now - born >= settling_age(group) for born in young.born))

    def clear(self) -> None:
        """The optimizer's state is new: nobody is younger than it."""
        self._young = {}

    def state_dict(self) -> dict[str, Any]:
        """By layer: places, counts and births."""
        return {
            name: {"places": young.places.clone(), "counts": list(young.counts), "born": list(young.born)}
            for name, young in self._young.items()
        }

    def load_state_dict(self, state: Mapping[str, Any], weights: Iterable[MaskedWeight]) -> None:
        """Take over what ``state_dict`` gave."""
        devices = {w.name: w.weight.device for w in weights}
        self._young = {
            name: _Young(saved["places"].to(devices[name]), list(saved["counts"]), list(saved["born"]))
            for name, saved in state.items()
        }

"""The state of a sparse training: masks, channels, and the memory of rules and rounds. It saves and loads itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatsparse.common.distributed import full_tensor
from flatsparse.common.errors import InputError, as_number
from flatsparse.common.optimizers import mask_aware
from flatsparse.sparse.channel_state import ChannelState
from flatsparse.sparse.frozen import FrozenOutside
from flatsparse.sparse.grown_weights import GrownWeights
from flatsparse.sparse.masks import MaskedWeight, Masks
from flatsparse.sparse.optimizer_state import begin_outside
from flatsparse.sparse.packing import Packing
from flatsparse.sparse.split import Split

Outside = Literal["zero", "frozen"]  # what weights are outside the masks: 0, or what they were
ZERO: Outside = "zero"
FROZEN: Outside = "frozen"


@dataclass(eq=False)
class TrainingState:
    """Everything that a sparse training remembers between steps; the argument of rules, which may add to its memory.

    Attributes:
        masks: the prunable weights and their masks.
        channels: the channels that may be pruned; of a plan that prunes none it has no group.
        memory: numbers that rules keep from one update to the next, by name.
        explored: where masks were ever true, by name; from the first update on.
        grown: the weights that are younger than the optimizer's state; None to treat them like the others.
        rewind: the model that later rounds go back to.
        steps_taken: the number of optimizer steps so far, all rounds together.
        round: the number of the round, from 0.
        packing: of weights between the steps that need them whole; None where there is none.
        frozen: keeps the values of weights outside the masks through steps; None where they are zero.
        steps: the number of optimizer steps that the plan was made for, in each round; None if it is not known.
    """

    masks: Masks
    channels: ChannelState = field(default_factory=ChannelState)
    memory: dict[str, float] = field(default_factory=dict)
    explored: dict[str, Tensor] = field(default_factory=dict)
    grown: GrownWeights | None = None
    rewind: dict[str, Tensor] = field(default_factory=dict)
    steps_taken: int = 0
    round: int = 0
    packing: Packing | None = None
    frozen: FrozenOutside | None = None
    steps: int | None = None

    def freeze_outside(self, optimizer: Optimizer) -> None:
        """Let all weights keep their values outside the masks, which are zero otherwise."""
        self.frozen = FrozenOutside(optimizer)
        for w in self.masks:
            w.keeps_outside = True

    @property
    def masked(self) -> Iterator[MaskedWeight]:
        """All that is masked: the weights, and the vectors that are zero where channels are pruned, which no rule sees."""
        yield from self.masks
        yield from self.channels.vectors

    def gathered(self) -> TrainingState:
        """Return the state as a rule sees it: without frozen weights, and with whole ones where they are sharded."""
        return dataclasses.replace(self, masks=self.masks.trained().gathered())

    def unpack(self, *, closing: bool = True) -> None:
        """Let all weights have the shape of their masks; see ``Packing``."""
        if self.packing is not None:
            self.packing.unpack(closing=closing)

    def share_masks(self, optimizer: Optimizer) -> None:
        """Give the masks to the optimizer's wrappers, which also makes them put the true weights in place."""
        for wrapper in mask_aware(optimizer):
            wrapper.set_masks({w.weight: w for w in self.masked})

    @torch.no_grad()
    def update(self, new: Mapping[str, Tensor], optimizer: Optimizer) -> None:
        """Set new masks, by name, of weights that are trained.

        Weights, gradients and the optimizer's state become 0 outside the masks, so that what grows begins as new; in
        channels that are restored, and where weights outside are frozen, it begins from the weight it last had.
        """
        trained = {w.name for w in self.masks.trained()}
        grown = self.masks.update({name: mask for name, mask in new.items() if name in trained})
        grown |= self.channels.update_vectors()
        for w in self.channels.vectors:
            w.apply_to_gradient()
            w.apply()
        self.channels.restore(self.masks)
        begin_outside(self.masked, optimizer)
        if self.grown is not None:
            self.grown.note(self.masked, grown)

    def explore(self) -> None:
        """Note where the masks are true now."""
        for w in self.masks:
            active = self.explored.get(w.name)
            self.explored[w.name] = w.mask.clone() if active is None else active.to(w.mask.device) | w.mask

    @property
    def exploration(self) -> float:
        """The fraction of prunable weights that were ever active."""
        counts = (full_tensor(self.explored.get(w.name, w.mask).sum()) for w in self.masks)
        return sum(map(int, counts)) / self.masks.total

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all but the model and the optimizer's state; what there is no channel or round for is left out."""
        saved = {
            "steps_taken": self.steps_taken,
            "masks": {w.name: w.mask.clone() for w in self.masks},
            "explored": {name: mask.clone() for name, mask in self.explored.items()},
            "momentum": {w.name: w.momentum.clone() for w in self.masks if w.momentum is not None},
            "memory": dict(self.memory),
            "grown": {} if self.grown is None else self.grown.state_dict(),
        }
        if self.frozen is not None:
            saved["outside"] = FROZEN
        if splits := {w.name: w.split for w in self.masks if w.split is not None}:
            saved["splits"] = {
                name: {"difference": s.difference.clone(), "kept": s.kept.clone()} for name, s in splits.items()
            }
        return {**saved, "channels": self.channels.state_dict()} if self.channels else saved

    def check(self, saved: Mapping[str, Any], method: str) -> None:
        """Raise InputError for a saved state that lacks something, or is of another method or of other layers or shapes."""
        needed = {"method", "steps_taken", "masks", *(("channels",) if self.channels else ())}
        if missing := needed - set(saved):
            raise InputError(f"this is no state of a sparse training: it lacks {', '.join(sorted(missing))}")
        if not as_number(saved["steps_taken"]) >= 0:
            raise InputError(f"this is no state of a sparse training: it has taken {saved['steps_taken']!r} steps")
        if saved["method"] != method:
            raise InputError(f"saved masks are of method '{saved['method']}', not '{method}': sparsify with that one")
        outside, here = saved.get("outside", ZERO), ZERO if self.frozen is None else FROZEN
        if outside != here:
            raise InputError(f"saved masks are of outside='{outside}', not '{here}': sparsify with outside='{outside}'")
        own = {w.name: tuple(w.mask.shape) for w in self.masks}
        given = {name: tuple(m.shape) for name, m in saved["masks"].items()}
        if own != given:
            odd = next(n for n in [*own, *given] if own.get(n) != given.get(n))
            raise InputError(
                f"saved masks do not fit: layer '{odd}' is {given.get(odd, 'absent')} there and"
                f" {own.get(odd, 'absent')} here; load them into the model they were made for"
            )

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Load all of a saved state but the masks, which may have to bring weights back: see ``Loading``."""
        if self.channels:
            self.channels.load_state_dict(saved["channels"], self.masks)
        self.steps_taken = saved["steps_taken"]
        self.explored = {name: mask.clone() for name, mask in saved.get("explored", {}).items()}
        self.memory = dict(saved.get("memory", {}))
        self.round = saved.get("round", 0)
        self.rewind = {name: value.clone() for name, value in saved.get("rewind", {}).items()}
        for w in self.masks:
            if w.momentum is not None and w.name in saved.get("momentum", {}):
                w.momentum.copy_(saved["momentum"][w.name])
            parts = saved.get("splits", {}).get(w.name)
            w.split = None if parts is None else Split(parts["difference"].to(w.weight).clone(), parts["kept"].clone())
        if self.grown is not None:
            self.grown.load_state_dict(saved.get("grown", {}), self.masked)

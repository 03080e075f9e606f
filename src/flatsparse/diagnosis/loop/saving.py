"""Checks of checkpoints, and of averages of the weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from flatsparse.common.distributed import is_sharded
from flatsparse.diagnosis.finding import users_line
from flatsparse.diagnosis.loop.events import EventCheck, tensors_in
from flatsparse.diagnosis.objects.elsewhere import entries_outside, outside_finding, pairs_of
from flatsparse.diagnosis.objects.masks import out_of_step
from flatsparse.diagnosis.subject import address
from flatsparse.sparse.loading import MASK, TRAINING
from flatsparse.sparse.masked_weight import MaskedWeight

AVERAGING = ("add_", "lerp_", "copy_", "_foreach_add_", "_foreach_lerp_", "_foreach_copy_")
# What a file has that is to be resumed from, and one that only keeps a result has not.
RESUMED = ("epoch", "step", "iter", "sched", "optim", "scaler")
FILES = ("checkpoint", "ckpt", "resume", "last")  # what such a file is called


class MasksNotSaved(EventCheck):
    """A checkpoint in the midst of a run, to resume from, with weights and without masks."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._lines: list[str] = []  # where checkpoints without masks were saved since the last step
        self._masks = False

    def saved(self, thing: Any, file: Any) -> None:
        if self.subject.state is None or self.subject.plan is None or not isinstance(thing, dict):
            return
        self._masks |= _has_masks(thing)
        inside = any(word in str(key).lower() for key in thing for word in RESUMED) and self._has_weights(thing)
        if inside or (self._has_weights({"": thing}) and _is_checkpoint(file)):
            self._lines.append(users_line())

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        if not self.is_own(optimizer):
            return
        if self._lines and not self._masks:
            self.report(
                "masks-not-saved",
                "a checkpoint to resume from has the weights and no masks, so that a resumed run begins with other ones",
                "save training.state_dict() too, or optimizer.state_dict(), which holds the masks",
                self._lines[0],
            )
        self._lines, self._masks = [], False

    def _has_weights(self, thing: dict[Any, Any]) -> bool:
        assert self.subject.state is not None
        names = {w.name for w in self.subject.state.masks}
        return any(isinstance(value, dict) and names & {_plain(key) for key in value} for value in thing.values())


def _is_checkpoint(file: Any) -> bool:
    return isinstance(file, (str, os.PathLike)) and any(word in Path(file).name.lower() for word in FILES)


def _plain(name: Any) -> str:
    return str(name).replace("_orig_mod.", "").removeprefix("module.")


def _has_masks(thing: Any) -> bool:
    """Return whether masks are anywhere in nested dicts and lists."""
    if isinstance(thing, dict):
        if {MASK, TRAINING} & set(map(str, thing)) or ("masks" in thing and "steps_taken" in thing):
            return True
        return any(map(_has_masks, thing.values())) or _are_masks(thing)
    return isinstance(thing, (list, tuple)) and any(map(_has_masks, thing))


def _are_masks(thing: dict[Any, Any]) -> bool:
    return bool(thing) and all(
        isinstance(v, Tensor) and not v.is_floating_point() and v.ndim > 1 for v in thing.values()
    )


class MasksOutOfStep(EventCheck):
    """Masks that are changed between two steps, and make weights active that are 0."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._before: dict[str, Tensor] = {}  # as the last step left them

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        if not self.is_own(optimizer) or not self._before:
            return
        zero = new = 0
        with self.subject.true_weights():
            for w in self.subject.zeroed:
                before = self._before.get(w.name)
                if before is not None and before.shape == w.mask.shape == w.weight.shape:
                    grown = w.mask & ~before
                    new += int(grown.sum())
                    zero += int((grown & w.weight.detach().eq(0)).sum())
        if 2 * zero > new:
            self._report(out_of_step(zero, new))

    def after_step(self, optimizer: Optimizer) -> None:
        if self.is_own(optimizer):
            self._before = {w.name: w.mask.clone() for w in self.subject.zeroed if not is_sharded(w.mask)}


class AverageOutsideMasks(EventCheck):
    """An average of the weights that a loop makes by itself, with entries of several masks."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._averages: list[tuple[MaskedWeight, Tensor, str]] = []  # updated since the last step

    def operation(self, name: str, args: tuple[Any, ...]) -> None:
        if name not in AVERAGING:
            return
        masked = {address(w.weight): w for w in self.subject.zeroed}
        targets = tensors_in(args[:1])
        for target, source in zip(targets, tensors_in(args[1:])[: len(targets)], strict=False):
            w = masked.get(address(source))
            if w is not None and address(target) not in masked and target.shape == w.mask.shape:
                self._averages.append((w, target, users_line()))

    def averaged(self, average: Any) -> None:
        self._averages += [(w, a, users_line()) for w, a in pairs_of(average, self.subject)]

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        if not self.is_own(optimizer):
            return
        if outside := entries_outside((w, average) for w, average, _ in self._averages):
            self._report(outside_finding(outside, self._averages[0][2]))
        self._averages = []

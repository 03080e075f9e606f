"""A plan: what a method does to a net, as data. A method with its options makes one for a run."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from flatsparse.common.errors import InputError, as_number, check_count
from flatsparse.schedules import Every
from flatsparse.sparse.channel_rules import Thinning
from flatsparse.sparse.channel_state import Widths
from flatsparse.sparse.distributions import Distribution
from flatsparse.sparse.masks import Masks
from flatsparse.sparse.n_of_m import Pattern
from flatsparse.sparse.rounds import Rounds
from flatsparse.sparse.rules import Rule
from flatsparse.sparse.scores import Saliency
from flatsparse.sparse.topk import keep_top


@dataclass(frozen=True)
class Plan:
    """What a method does to a net, as data.

    Attributes:
        sparsity: of the initial masks.
        initial: scores that choose the initial masks.
        distribution: how the live weights are shared out between layers at the start.
        rules: what changes the masks later, in order.
        momentum: what share of its running average of dense gradients (``MaskedWeight.momentum``) each layer keeps at
            a step; with None there is no average. It costs a copy of the weights, and dense gradients at every step.
        pattern: what every mask keeps to, such as 2 live weights of each 4.
        rounds: of training, for methods that train more than once.
        thinning: what is done to channels, for methods whose rules remove some.
    """

    sparsity: float
    initial: Saliency
    distribution: Distribution
    rules: tuple[Rule, ...] = ()
    momentum: float | None = None
    pattern: Pattern | None = None
    rounds: Rounds | None = None
    thinning: Thinning | None = None

    def widths(self, model: nn.Module, masks: Masks) -> Widths | None:
        """The channels that its rules may remove, all of them live; None for a plan that removes none."""
        thin = self.thinning
        return None if thin is None else Widths.of(model, masks, eligible=thin.eligible, restores=thin.restores)

    def initial_masks(self, masks: Masks, model: nn.Module) -> dict[str, Tensor]:
        """The masks to start from."""
        if self.thinning is not None:
            masks.widths = self.widths(model, masks)
            room = self.thinning.start(masks)
            if self.thinning.first:  # dense but for the channels
                return room
        scores = self.initial(masks, model)
        if self.pattern is not None:
            return {w.name: self.pattern.keep(scores[w.name], w.name, w.inputs_first) for w in masks}
        counts = self.distribution(scores, masks.budget(self.sparsity))
        return {name: keep_top(s, counts[name]) for name, s in scores.items()}


class Method(Protocol):
    """A way to train sparsely, with its options chosen."""

    def plan(self, sparsity: float, steps: int) -> Plan:
        """What it does in a run (or a round, if it has them) of so many steps that shall end at a sparsity."""
        ...


def share_of(steps: int, share: float, every: int | None) -> int:
    """The period that was given, or else a share of the run, at least one step; for papers that count in epochs."""
    return max(1, round(share * steps)) if every is None else every


def updates(every: int, until: float, steps: int, *, spare: int = 0) -> Every:
    """A timetable of one update every so many steps.

    Args:
        every: the period in steps. One too long for a single update is shortened to about ten, with a warning:
            a method that silently never updates would be another method.
        until: the last step that may update, as a step (int) or as a share of all steps (float in (0, 1]).
        steps: of the run.
        spare: so many steps at its end never update: what grew at the last would be live and never trained.

    Raises: InputError when ``every`` or ``until`` is out of range, or no step is left: none updates at the first.
    """
    every = check_count("every", every)
    number = as_number(until)
    if isinstance(number, float) and 0 < number <= 1:
        end = min(steps, max(2, round(number * steps)))
    elif isinstance(number, int) and number >= 1:
        end = min(number, steps)
    else:
        raise InputError(
            f"until {until!r} is not usable: give a step (a whole number) or a share of the steps in (0.0, 1.0]"
        )
    if end < 2:
        raise InputError(
            f"a run of steps={steps} with until={until} is too short: masks change from the second step on, so give more steps"
        )
    end = min(end, max(2, steps - spare))
    if every > end:
        shorter = max(2, end // 10)  # an update can take the place of the weight step: some must be left
        warnings.warn(f"every={every} leaves no update in {end} steps: using every={shorter}", stacklevel=4)
        every = shorter
    return Every(every, until=end)

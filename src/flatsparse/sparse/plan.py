"""Plans: the actions of methods on a net, as data. A method with its options makes one for a run."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from flatsparse.common.errors import InputError, as_number, check_count
from flatsparse.schedules import DueSteps, Every
from flatsparse.sparse.channel_rules import ChannelPruning, even_counts
from flatsparse.sparse.channel_state import ChannelState
from flatsparse.sparse.distributions import Distribution
from flatsparse.sparse.expected import ExpectedCounts
from flatsparse.sparse.masks import Masks
from flatsparse.sparse.pattern import UNSTRUCTURED, Pattern
from flatsparse.sparse.pull import Pull
from flatsparse.sparse.rounds import Rounds
from flatsparse.sparse.rules import Rule
from flatsparse.sparse.scores import Saliency
from flatsparse.sparse.state import TrainingState

# No rule acts at the first step: an optimizer creates its state there, and nothing is known of the weights yet.
EARLIEST = 2


@dataclass(frozen=True)
class Plan:
    """The plan of a method for a run, as data.

    Attributes:
        sparsity: of the initial masks.
        initial: scores that choose the initial masks.
        distribution: allocates the active weights to layers at the start.
        rules: change the masks later, in order.
        momentum: the share of its running average of dense gradients (``MaskedWeight.momentum``) that each layer keeps at
            a step; with None there is no average. It costs a copy of the weights, and dense gradients at every step.
        pull: what pulls the weights towards a sparse copy of them, before a rule prunes them. It costs five bytes a weight.
        pattern: what every mask keeps to, such as 2 active weights of each 4, or whole blocks.
        rounds: of training, for methods that train more than once.
        channel_pruning: what is done to channels, for methods whose rules prune some.
    """

    sparsity: float
    initial: Saliency
    distribution: Distribution
    rules: tuple[Rule, ...] = ()
    momentum: float | None = None
    pull: Pull | None = None
    pattern: Pattern = UNSTRUCTURED
    rounds: Rounds | None = None
    channel_pruning: ChannelPruning | None = None

    def __post_init__(self) -> None:
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise InputError(
                    f"{type(rule).__name__} is no rule of a plan: derive it from flatsparse.sparse.rules.Rule, with"
                    " __call__(state, step), which returns new masks"
                )

    def channels(self, model: nn.Module, masks: Masks) -> ChannelState:
        """Return the channels that its rules may prune, all of them active; none for a plan that prunes none."""
        chosen = self.channel_pruning
        if chosen is None:
            return ChannelState()
        return ChannelState.of(model, masks, eligible=chosen.eligible, restores=chosen.restores)

    def initial_masks(self, state: TrainingState, model: nn.Module) -> dict[str, Tensor]:
        """Return the masks to start from, by name."""
        masks = state.masks
        if self.channel_pruning is not None:
            growable = self.channel_pruning.start(state)
            if self.channel_pruning.first:  # dense but for the channels
                return growable
        turned = masks.inputs_first
        scores = self._ranked(self.initial(masks, model), turned)
        counts = self.pattern.counts(scores, masks.budget(self.sparsity), self.distribution)
        return {name: self.pattern.best(s, counts[name], turned[name]) for name, s in scores.items()}

    def _ranked(self, scores: Mapping[str, Tensor], inputs_first: Mapping[str, int]) -> dict[str, Tensor]:
        return {name: self.pattern.ranked(s, name, inputs_first[name]) for name, s in scores.items()}

    def expected_start(self, masks: Masks, model: nn.Module) -> ExpectedCounts:
        """Return the counts of active weights to start from, as far as they follow from shapes."""
        chance = torch.Generator().manual_seed(0)
        scores = {w.name: torch.rand(w.weight.shape, generator=chance) for w in masks}
        expected = ExpectedCounts(scores, {}, self.channels(model, masks))
        pruning = self.channel_pruning
        if pruning is not None and pruning.first:
            counts = even_counts(expected.channels, pruning.first, pruning.floors(expected.channels))
            expected.active = expected.after_pruning(counts)
        else:
            ranked = self._ranked(scores, masks.inputs_first)
            expected.active = self.pattern.counts(ranked, masks.budget(self.sparsity), self.distribution)
        return expected


def due(plan: Plan, step: int) -> list[Rule]:
    """Return the rules of a plan that act at an optimizer step, counted from 1."""
    return [rule for rule in plan.rules if step >= EARLIEST and rule.when(step)]


def due_steps(rules: Iterable[Rule], last: int, after: int = 0) -> DueSteps:
    """Return the steps after one, up to the last, at which at least one of some rules acts."""
    return DueSteps([rule.when for rule in rules], max(EARLIEST, after + 1), last)


class Method(Protocol):
    """A way to train sparsely, with its options chosen."""

    def plan(self, sparsity: float, steps: int) -> Plan:
        """Return the plan for a run (or a round, if it has rounds) of a number of steps that ends at a sparsity."""
        ...


def share_of(steps: int, share: float, every: int | None) -> int:
    """Return the period that was given, or else a share of the run, at least one step; for papers that count in epochs."""
    return max(1, round(share * steps)) if every is None else every


def updates(every: int, until: float, steps: int, *, spare: int = 0) -> Every:
    """Return a timetable of one update every few steps.

    Args:
        every: the period in steps. One too long for a single update is shortened to about ten, with a warning:
            a method that silently never updates would be another method.
        until: the last step that may update, as a step (int) or as a share of all steps (float in (0, 1]).
        steps: of the run.
        spare: the number of steps at its end that never update: what grew at the last would be active and never trained.

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

"""Rounds of training, and what iterative pruning does between them: prune, go back, train again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatsparse.common.distributed import reshard
from flatsparse.common.errors import InputError, check_count
from flatsparse.common.names import plain_names
from flatsparse.schedules import Every
from flatsparse.sparse.distributions import global_ranking
from flatsparse.sparse.rules import PruneTo
from flatsparse.sparse.scores import magnitude
from flatsparse.sparse.state import TrainingState


@dataclass(frozen=True)
class Remaining:
    """The sparsity after a number of prunings that each take a fraction of what remains; held at the target.

    >>> [round(Remaining(0.2, 0.5)(n), 3) for n in range(5)]
    [0.0, 0.2, 0.36, 0.488, 0.5]
    """

    fraction: float
    target: float

    def __call__(self, prunings: int) -> float:
        return min(self.target, 1 - (1 - self.fraction) ** prunings)

    @property
    def prunings(self) -> int:
        """The number of prunings that reach the target."""
        # What rounding in the logarithms leaves must not cost a round of its own.
        return math.ceil(math.log(1 - self.target) / math.log(1 - self.fraction) - 1e-9)


@dataclass(frozen=True)
class Rounds:
    """Training in rounds, the first one dense.

    Attributes:
        count: the number of rounds, with the dense one.
        prune: the rule that prunes before a round, given its number instead of a step.
        rewind: the step of the first round to whose model every later round goes back; None keeps the weights.
    """

    count: int
    prune: PruneTo
    rewind: int | None


def by_magnitude(fraction: float, sparsity: float, rewind: int | None, steps: int) -> Rounds:
    """Return rounds that each prune a fraction of the remaining weights, the smallest of the whole net.

    Raises: InputError for a fraction that prunes nothing or all, or a rewinding point outside a round.
    """
    if not 0 < fraction < 1:
        raise InputError(f"drop_fraction {fraction} is not in (0, 1): give the share of active weights a round prunes")
    if rewind is not None and check_count("rewind", rewind, minimum=0) > steps:
        raise InputError(f"rewind {rewind} is not in a round of {steps} steps: give a step of the first round")
    reach = Remaining(fraction, sparsity)
    prune = PruneTo(Every(1, until=reach.prunings), sparsity=reach, keep=magnitude, distribution=global_ranking)
    return Rounds(1 + reach.prunings, prune, rewind)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by plain name."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return dict(zip(plain_names(list(tensors)), tensors.values(), strict=True))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all parameters and buffers."""
    reshard(model)
    return {name: value.detach().clone() for name, value in _tensors(model).items()}


@torch.no_grad()
def write_back(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Write a snapshot back into the model."""
    reshard(model)
    for name, value in _tensors(model).items():
        value.copy_(saved[name])


def keep_rewind_point(state: TrainingState, rounds: Rounds | None, model: nn.Module | None) -> None:
    """Keep a snapshot of the model if this is the step that later rounds go back to."""
    if rounds and rounds.rewind == state.steps_taken and state.round == 0 and model is not None:
        state.rewind = snapshot(model)

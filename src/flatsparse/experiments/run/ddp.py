"""The processes that train one run together, as ``torchrun`` starts them; without it, one alone."""

from __future__ import annotations

import contextlib
import datetime
import gc
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flatsparse.common.errors import InputError, check_finite

TIMEOUT = "FLATSPARSE_TIMEOUT"  # seconds that processes wait for each other
USUAL = 1800.0  # an evaluation by the leader, for which all wait, may be long
LONGEST = 1e8  # three years; a longer time has no form that torch takes


class Unanswered(InputError):
    """Another process of the run has stopped or ended. Each process says so, for it may be the leader."""


@dataclass(frozen=True)
class Team:
    """This process's place among those of a run."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    @property
    def part(self) -> slice:
        """This process's images of a batch: every so many."""
        return slice(self.rank, None, self.size)

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model to train through, so that all have the same gradients: their mean."""
        return model if self.size == 1 else nn.parallel.DistributedDataParallel(model)

    def sum(self, *counts: Tensor) -> None:
        """Add up each tensor over all processes, in place."""
        if self.size > 1:
            for count in counts:
                dist.all_reduce(count)

    def lead(self, act: Callable[[], object]) -> None:
        """Let the leader do something for all; all wait, and have its InputError when it has one."""
        if self.size == 1:
            act()
            return
        problem = None
        if self.leads:
            try:
                act()
            except InputError as found:
                problem = str(found)
        if (problem := self.told(problem)) is not None:
            raise InputError(problem)

    def told(self, value: Any) -> Any:
        """What the leader says; what others say is not heard. Also a point that none passes before the leader."""
        said = [value]
        if self.size > 1:
            dist.broadcast_object_list(said, src=0)
        return said[0]


ALONE = Team()


def started_together() -> bool:
    """Whether ``torchrun`` started this process, and not as the only one."""
    return dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


# What the backends say, and what it means.
LOST = {
    "timed out": f"did not answer within {{:g}} s ({TIMEOUT} is how long is waited)",
    "timeout": f"did not answer within {{:g}} s ({TIMEOUT} is how long is waited)",
    "connection closed": "has ended",
    "connection reset": "has ended",
}


def _seconds() -> float:
    """How long processes wait for each other. Raises InputError for what is no time."""
    given = os.environ.get(TIMEOUT, "")
    try:
        seconds = float(given or USUAL)
    except ValueError:
        seconds = math.nan
    return min(check_finite(f"{TIMEOUT}={given}", seconds, above=True), LONGEST)


@contextlib.contextmanager
def joined(device: str) -> Iterator[Team]:
    """A context in which the processes that ``torchrun`` started are one team.

    Raises: InputError when there are more processes on a machine than devices, and when another does not answer in time.
    """
    if not started_together():
        yield ALONE
        return
    cuda, place = device.startswith("cuda"), int(os.environ["LOCAL_RANK"])
    if cuda:
        if place >= torch.cuda.device_count():
            raise InputError(
                f"process {place} of this machine has no GPU of its own ({torch.cuda.device_count()} are there): start at most"
                " as many processes with torchrun --nproc-per-node"
            )
        torch.cuda.set_device(place)
    seconds = _seconds()
    # Of filters of one pixel or one channel, whose strides can be told in two ways; nothing is wrong or slow.
    warnings.filterwarnings("ignore", message="(?s).*Grad strides do not match bucket view strides")
    try:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=datetime.timedelta(seconds=seconds))
        yield Team(dist.get_rank(), dist.get_world_size())
    except RuntimeError as problem:
        what = next((told for said, told in LOST.items() if said in str(problem).lower()), None)
        if what is None:
            raise
        raise Unanswered(
            f"another process of this run {what.format(seconds)}: start all anew with --resume, which goes on from the last"
            " checkpoint"
        ) from None
    finally:
        gc.collect()  # a wrapped model that outlives the group's threads brings the process down at its exit
        if dist.is_initialized():
            dist.destroy_process_group()

"""The processes that train one run together, as ``torchrun`` starts them; without it, one alone."""

from __future__ import annotations

import contextlib
import gc
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flatsparse.errors import InputError


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


@contextlib.contextmanager
def joined(device: str) -> Iterator[Team]:
    """A context in which the processes that ``torchrun`` started are one team.

    Raises: InputError when there are more processes on a machine than devices.
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
    dist.init_process_group("nccl" if cuda else "gloo")
    # Of filters of one pixel or one channel, whose strides can be told in two ways; nothing is wrong or slow.
    warnings.filterwarnings("ignore", message="(?s).*Grad strides do not match bucket view strides")
    try:
        yield Team(dist.get_rank(), dist.get_world_size())
    finally:
        gc.collect()  # a wrapped model that outlives the group's threads brings the process down at its exit
        dist.destroy_process_group()

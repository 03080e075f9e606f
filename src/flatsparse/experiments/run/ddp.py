"""Data-parallel training: the processes of one run, as ``torchrun`` starts them, or a single one."""

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
USUAL = 1800.0  # an evaluation by the main process, for which all wait, may be long
LONGEST = 1e8  # three years; a longer time has no form that torch takes


class WorkerLost(InputError):
    """Another process of the run has stopped or ended. Each process reports it, for it may be the main one."""


@dataclass(frozen=True)
class DistContext:
    """The rank of this process among those of a run, and what they do together."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Return if this process prints and writes for all."""
        return self.rank == 0

    @property
    def shard(self) -> slice:
        """The samples of a batch that are this process's: one in ``size``."""
        return slice(self.rank, None, self.size)

    def parallel(self, model: nn.Module) -> nn.Module:
        """Return the model to train through, so that all processes have the same gradients: their mean."""
        return model if self.size == 1 else nn.parallel.DistributedDataParallel(model)

    def sum(self, *counts: Tensor) -> None:
        """Add up each tensor over all processes, in place."""
        if self.size > 1:
            for count in counts:
                dist.all_reduce(count)

    def on_main(self, act: Callable[[], object]) -> None:
        """Call a function on the main process; all wait, and raise its InputError when it raises one."""
        if self.size == 1:
            act()
            return
        message = None
        if self.is_main:
            try:
                act()
            except InputError as problem:
                message = str(problem)
        if (message := self.broadcast(message)) is not None:
            raise InputError(message)

    def broadcast(self, value: Any) -> Any:
        """Return the main process's value; those of others are ignored. No process gets past it before the main one."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]


SINGLE = DistContext()


def under_torchrun() -> bool:
    """Return if ``torchrun`` started this process, and not as the only one."""
    return dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


NO_ANSWER = f"did not answer within {{:g}} s ({TIMEOUT} is how long is waited)"
# Messages of the backends, and their meaning.
LOST = {
    "timed out": NO_ANSWER,
    "timeout": NO_ANSWER,
    "connection closed": "has ended",
    "connection reset": "has ended",
}


def _seconds() -> float:
    """Return how long processes wait for each other. Raises InputError for what is no time."""
    given = os.environ.get(TIMEOUT, "")
    try:
        seconds = float(given or USUAL)
    except ValueError:
        seconds = math.nan
    return min(check_finite(f"{TIMEOUT}={given}", seconds, above=True), LONGEST)


@contextlib.contextmanager
def distributed(device: str) -> Iterator[DistContext]:
    """A context in which the processes that ``torchrun`` started train together.

    Raises: InputError when there are more processes on a machine than devices, and when another does not answer in time.
    """
    if not under_torchrun():
        yield SINGLE
        return
    cuda = device.startswith("cuda")
    if cuda:
        _take_gpu(int(os.environ["LOCAL_RANK"]))
    seconds = _seconds()
    # Of filters of one pixel or one channel, whose strides can be given in two ways; nothing is wrong or slow.
    warnings.filterwarnings("ignore", message="(?s).*Grad strides do not match bucket view strides")
    try:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=datetime.timedelta(seconds=seconds))
        yield DistContext(dist.get_rank(), dist.get_world_size())
    except RuntimeError as problem:
        meaning = next((meaning for part, meaning in LOST.items() if part in str(problem).lower()), None)
        if meaning is None:
            raise
        raise WorkerLost(
            f"another process of this run {meaning.format(seconds)}: start all again with --resume, which continues from the last"
            " checkpoint"
        ) from None
    finally:
        gc.collect()  # a wrapped model that outlives the group's threads brings the process down at its exit
        if dist.is_initialized():
            dist.destroy_process_group()


def _take_gpu(rank: int) -> None:
    """Make the GPU of a process of this machine the current one. Raises InputError when there are too few."""
    if rank >= torch.cuda.device_count():
        raise InputError(
            f"process {rank} of this machine has no GPU of its own ({torch.cuda.device_count()} are there): start at most"
            " as many processes with torchrun --nproc-per-node"
        )
    torch.cuda.set_device(rank)

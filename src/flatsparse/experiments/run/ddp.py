"""Data-parallel training: the processes of one run, as ``torchrun`` starts them, or a single one."""

from __future__ import annotations

import contextlib
import datetime
import gc
import math
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flatsparse.common.errors import InputError, check_finite, first_line
from flatsparse.experiments.run.heartbeat import AGAIN, GRACE, QUICK, Heartbeat
from flatsparse.experiments.run.signs import connected

TIMEOUT = "FLATSPARSE_TIMEOUT"  # seconds that processes wait for each other
USUAL = 1800.0  # an evaluation by the main process, for which all wait, may be long
NCCL_LATER = 60.0  # seconds
LONGEST = 1e8  # three years; a longer time has no form that torch takes


class WorkerLost(InputError):
    """Another process of the run has stopped or ended."""


@dataclass(frozen=True)
class DistContext:
    """The rank of this process among those of a run, and what they do together.

    Attributes:
        heartbeat: tells the others what this process does.
    """

    rank: int = 0
    size: int = 1
    heartbeat: Heartbeat | None = None

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
        if self.size == 1:
            return model
        wrapped = nn.parallel.DistributedDataParallel(model)
        _settle_layout(wrapped)
        return wrapped

    def note(self, doing: str, at: int | None = None) -> None:
        """Note what this process begins to do, and how far it is, for the others to name if they lose it."""
        if self.heartbeat is not None:
            self.heartbeat.note(doing, at)

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

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return the main process's value; those of others are ignored. No process gets past it before the main one."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]


SINGLE = DistContext()


def _settle_layout(wrapped: nn.parallel.DistributedDataParallel) -> None:
    """Let DDP lay gradients out anew, as it does after the first backward pass, by one that computes nothing.

    Where a gradient lies decides how the sum of three or more is rounded: a resumed run would end in other bits.
    """
    model = wrapped.module
    own = model.__dict__.get("forward")
    model.forward = lambda: sum(p.sum() for p in model.parameters() if p.requires_grad)
    try:
        wrapped().backward()
    finally:
        del model.forward
        if own is not None:
            model.forward = own
    model.zero_grad()


def under_torchrun() -> bool:
    """Return if ``torchrun`` started this process, and not as the only one."""
    return dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


# What the messages of the backends say of another process: that it was waited for in vain, or has ended.
TIMED_OUT, ENDED = ("timed out", "timeout"), ("connection closed", "connection reset", "broken pipe", "socket closed")


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
    # A collective call of NCCL that times out ends the process by itself, so that the heartbeat must come first.
    timeout = datetime.timedelta(seconds=seconds + (NCCL_LATER if cuda else 0))
    with Heartbeat(seconds).beating() as heartbeat:
        try:
            dist.init_process_group("nccl" if cuda else "gloo", timeout=timeout, **_meeting(timeout))
            yield DistContext(dist.get_rank(), dist.get_world_size(), heartbeat)
        except RuntimeError as problem:
            _raise_if_lost(heartbeat, problem, seconds)
            heartbeat.failed()
            raise
        except InputError as problem:
            problem.is_first = heartbeat.failed()
            raise
        except BaseException:
            heartbeat.failed()
            raise
        finally:
            gc.collect()  # a wrapped model that outlives the group's threads brings the process down at its exit
            if dist.is_initialized():
                dist.destroy_process_group()


def _meeting(timeout: datetime.timedelta) -> dict[str, Any]:
    """Return where the processes find each other, as options of ``init_process_group``.

    torchrun (2.13) keeps one store for all restarts, and torch the same keys in it, so that restarted processes would look for
    those that have ended. On several machines torchrun's counts of restarts may differ, and are no key.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return {}
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return {"store": connected("group", timeout), "rank": rank, "world_size": size}


def _raise_if_lost(heartbeat: Heartbeat, problem: BaseException, seconds: float) -> None:
    """Raise WorkerLost when an error comes of another process."""
    text = str(problem).lower()
    timed_out = any(part in text for part in TIMED_OUT)
    alone = not timed_out and not any(part in text for part in ENDED)  # it may be an error of this process only
    lost = heartbeat.lost(timed_out=timed_out, seconds=QUICK if alone else GRACE)
    if lost is None and alone:
        return
    who = lost.text if lost else f"another process of this run has ended ({first_line(problem)})"
    late = f", and did not answer within {seconds:g} s ({TIMEOUT} is how long is waited)" if timed_out else ""
    more = f"wait longer, or {AGAIN}" if lost and lost.slow else AGAIN
    if torch.cuda.is_available() and hasattr(signal, "alarm"):
        signal.alarm(int(NCCL_LATER))  # a collective call that still runs may keep the process from its end
    found = WorkerLost(f"{who}{late}: {more}")
    found.is_first = lost is None or lost.is_first
    raise found from None


def _take_gpu(rank: int) -> None:
    """Make the GPU of a process of this machine the current one. Raises InputError when there are too few."""
    if rank >= torch.cuda.device_count():
        raise InputError(
            f"process {rank} of this machine has no GPU of its own ({torch.cuda.device_count()} are there): start at most"
            " as many processes with torchrun --nproc-per-node"
        )
    torch.cuda.set_device(rank)

"""Memory that evaluations may take, and how many samples fit into it."""

from __future__ import annotations

import re
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from flatsparse.common.errors import InputError
from flatsparse.common.memory import free_memory
from flatsparse.experiments.data.split import Split
from flatsparse.experiments.run.config import ResolvedRun
from flatsparse.experiments.tasks.run_task import RunTask

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
USUAL = 1000  # samples at once, where they fit
SHARE = 0.5  # of the free memory: other runs may be at work beside this one
_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[bool, int]] = weakref.WeakKeyDictionary()  # see ``sample_bytes``


def as_bytes(text: str) -> int:
    """Return an amount of memory in bytes. Raises InputError for what is none.

    >>> as_bytes("1.5GB") == as_bytes("1536 MiB") == 3 * 2**29
    True
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    amount = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if amount < 1:
        raise InputError(f"--memory '{text}' is no amount of memory: give e.g. 8GB or 500MB")
    return amount


def samples_at_once(
    run: ResolvedRun, task: RunTask, model: nn.Module, split: Split, *, gradients: bool = False, most: int = USUAL
) -> int:
    """Return how many samples of a split to compute at once: ``most``, or as many as fit into the run's memory.

    Ours, because the size changes results in the last bits only, and a size that does not fit ends the run.

    Args:
        gradients: all that the forward pass made is kept until the backward pass.
    """
    most = split.at_once(most)
    if most <= 1:
        return 1
    limit = as_bytes(run.runtime.memory) if run.runtime.memory else int(SHARE * free_memory(run.runtime.device))
    return max(1, min(most, limit // max(1, sample_bytes(task, model, split, gradients=gradients))))


def sample_bytes(task: RunTask, model: nn.Module, split: Split, *, gradients: bool = False) -> int:
    """Return the memory that one sample's evaluation takes, about: what is alive at once, or all that is made.

    Measured once for a network, on two samples: a loss may not take one alone.
    """
    known = _KNOWN.setdefault(model, {})
    if gradients not in known:
        known[gradients] = _measured_bytes(task, model, split, gradients)
    return known[gradients]


def _measured_bytes(task: RunTask, model: nn.Module, split: Split, gradients: bool) -> int:
    batch = next(split.first(2).batches(2))
    modes = {module: module.training for module in model.modules()}
    counter = _Allocations()
    with torch.random.fork_rng(devices=[]), torch.no_grad(), counter:
        model.eval()
        task.summed(model, batch)
    for module, training in modes.items():
        module.training = training
    held = sum(leaf.nbytes for leaf in pytree.tree_leaves(batch.content) if isinstance(leaf, Tensor))
    return (held + (2 * counter.made if gradients else 3 * counter.largest)) // batch.samples


class _Allocations(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations make.

    Attributes:
        made: of all; views count too, so that this is more than is kept.
        largest: of one operation's outputs. Inputs, outputs and a residual are alive together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        size = sum(leaf.nbytes for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor))
        self.made += size
        self.largest = max(self.largest, size)
        return out

"""Which channels of a model can only be removed together."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.graph.trace import Slot, Trace

__all__ = ["Group", "Slot", "channel_groups"]


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together.

    Attributes:
        size: how many there are.
        writes: weights and biases whose outputs they are, those of depthwise convolutions too.
        norms: weight, bias, running_mean and running_var of batch norms over them.
        reads: weights that take them in.
        why_kept: None where channels may go, else what forbids it; the slots of such a group may be incomplete.
    """

    size: int
    writes: tuple[Slot, ...]
    norms: tuple[Slot, ...]
    reads: tuple[Slot, ...]
    why_kept: str | None


def channel_groups(model: nn.Module, example: Tensor | None = None) -> tuple[Group, ...]:
    """The groups of channels of a model, in the order in which they are first written.

    Ours: ``torch.fx`` traces the model in evaluation mode, and channels are followed through convolutions (transposed ones
    too), linear layers, batch norms, element-wise functions, sums and products, pooling, means over space, flattening and
    concatenation. Channels that meet anything else, a grouped (not depthwise) convolution, a layer that is used twice
    (which is in no group itself) or has a forward hook, a sum of other divisions or the model's output are kept. Inputs are
    taken to have a batch dimension, and a batch norm that follows a linear layer to see (N, C).

    Args:
        model: the network, bare or in ``torch.compile`` or ``DistributedDataParallel``; names are those of the bare one.
        example: an input, needed only where shapes cannot be told otherwise (two flattened maps concatenated, say).

    Raises: InputError when ``torch.fx`` cannot trace the model, because what it does depends on its input's values.

    >>> net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> [(group.size, group.why_kept) for group in channel_groups(net)]
    [(16, None), (3, "the model's output")]
    """
    found = Trace(unwrapped(model), example).all()
    return tuple(Group(c.size, tuple(c.writes), tuple(c.norms), tuple(c.reads), c.why_kept) for c in found)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without what ``torch.compile``, ``DistributedDataParallel`` and ``DataParallel`` put around it."""
    wrapped = isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel))
    inner = model.module if wrapped else getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def copy_of(model: nn.Module) -> nn.Module:
    """A copy of the bare model. Raises InputError where torch cannot copy one."""
    try:
        return copy.deepcopy(unwrapped(model))
    except RuntimeError as problem:
        if "deepcopy" not in str(problem):
            raise
        # a weight that a hook computes, as those of torch.nn.utils.prune and the older weight_norm do
        raise InputError(
            f"this {type(unwrapped(model)).__name__} cannot be copied ({str(problem).partition('. ')[0]}): call"
            " torch.nn.utils.prune.remove or remove_weight_norm first"
        ) from problem

"""Groups of channels of a model that can only be removed together."""

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
        size: the number of channels.
        writes: weights and biases whose outputs they are, those of depthwise convolutions too.
        norms: weight, bias, running_mean and running_var of batch norms over them.
        reads: weights whose inputs they are.
        why_kept: None where channels may be removed, else the reason why not; such a group's slots may be incomplete.
    """

    size: int
    writes: tuple[Slot, ...]
    norms: tuple[Slot, ...]
    reads: tuple[Slot, ...]
    why_kept: str | None


def channel_groups(model: nn.Module, example: Tensor | None = None) -> tuple[Group, ...]:
    """The groups of channels of a model, in the order in which they are first written.

    Ours: ``torch.fx`` traces the model in evaluation mode, and channels are propagated through convolutions (transposed
    ones too), linear layers, batch norms, element-wise functions, sums and products, pooling, means over space, flattening
    and concatenation. Channels that reach anything else, a grouped (not depthwise) convolution, a layer that is used twice
    (which is in no group itself) or has a forward hook, a sum of other divisions or the model's output are kept. Inputs are
    assumed to have a batch dimension, and a batch norm after a linear layer to take (N, C).

    Args:
        model: the network, bare or in ``torch.compile`` or ``DistributedDataParallel``; names are those of the model inside.
        example: an input, needed only where shapes are not known otherwise (two flattened maps concatenated, say).

    Raises: InputError when ``torch.fx`` cannot trace the model, because what it does depends on its input's values.

    >>> net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> [(group.size, group.why_kept) for group in channel_groups(net)]
    [(16, None), (3, "the model's output")]
    """
    channels = Trace(unwrapped(model), example).channels()
    return tuple(Group(c.size, tuple(c.writes), tuple(c.norms), tuple(c.reads), c.why_kept) for c in channels)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, Lightning Fabric, ``DistributedDataParallel`` and ``DataParallel``."""
    wrapped = isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel))
    inner = model.module if wrapped else getattr(model, "_orig_mod", getattr(model, "_forward_module", None))
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def copy_of(model: nn.Module) -> nn.Module:
    """A copy of the unwrapped model. Raises InputError where torch cannot copy one."""
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

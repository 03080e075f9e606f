"""Channels that no longer count, and the ordinary smaller model without them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.common.names import plain_names
from flatsparse.common.weight_layout import inputs_first
from flatsparse.graph.constant_channels import constant_inputs
from flatsparse.graph.groups import Group, Slot, channel_groups, copy_of, unwrapped
from flatsparse.graph.trace import Trace


def active_channels(
    model: nn.Module,
    groups: Sequence[Group],
    masks: Mapping[str, Tensor] | None = None,
    example: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Which channels of each group still count in evaluation mode, bool, one tensor of ``(size,)`` a group.

    Ours, exact: a channel is dead when nothing reads it, or when it is constant and what it sends on is 0 or can be folded
    into the bias of every layer that reads it. One that stays at another constant in front of zero padding is live, because
    it shows where the border is. What dies with a dead channel is found too. Groups that are kept, and the first
    channel of a group that would be empty, count as live.

    Args:
        model, groups: the network and its ``channel_groups``.
        masks: bool by the weight's name, as in ``SparseTraining.masks``; weights are taken as 0 outside. None: as they are.
        example: as for ``channel_groups``.
    """
    return _find_active(Trace(unwrapped(model), example), groups, masked_state(model, masks))


def shrink(model: nn.Module, masks: Mapping[str, Tensor] | None = None, example: Tensor | None = None) -> nn.Module:
    """An ordinary model of the same class with narrower layers, and the same outputs in evaluation mode.

    Ours: a copy without the channels that ``live_channels`` finds dead; what they still sent on is folded into biases.
    Outputs equal those of the masked model up to the rounding of its floats. It can be trained on, but then differs:
    a removed channel no longer learns.

    Args:
        model, masks, example: as for ``live_channels``; the model stays as it is.

    Raises: InputError as ``channel_groups`` does, and for a model that computes with its layers' widths as numbers.

    >>> net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> with torch.no_grad():
    ...     _ = net[2].weight[:, 4:].zero_()
    >>> shrink(net)
    Sequential(
      (0): Linear(in_features=6, out_features=4, bias=True)
      (1): ReLU()
      (2): Linear(in_features=4, out_features=3, bias=True)
    )
    """
    groups, tensors, trace = (
        channel_groups(model, example),
        masked_state(model, masks),
        Trace(unwrapped(model), example),
    )
    live = _find_active(trace, groups, tensors)
    small = copy_of(model)
    small.load_state_dict({**small.state_dict(), **tensors})  # true weights, even in a window, with what was folded
    small = _without(small, groups, live)
    if str(Trace(small).graph) != str(trace.graph):
        raise InputError(
            f"{type(small).__name__} computes with the widths of its layers as numbers, which change when channels go: take"
            " them from a tensor's shape in its forward"
        )
    return small


def widths(model: nn.Module, example: Tensor | None = None) -> dict[str, int]:
    """How many channels each group has that may lose some, by the name of the first tensor that writes them.

    Of a shrunk model it is all that ``narrow`` needs to make an empty one like it.
    """
    return {group.writes[0].name: group.size for group in channel_groups(model, example) if group.why_kept is None}


def narrow(model: nn.Module, widths: Mapping[str, int], example: Tensor | None = None) -> nn.Module:
    """A copy of an ordinary model as narrow as a shrunk one, to load that one's state into.

    Args:
        model: of the size that was shrunk; it stays as it is.
        widths: of the small model (see ``widths``).
        example: as for ``channel_groups``.

    Raises: InputError when the widths are of another model, or larger than this one's.

    >>> net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> narrow(net, {"0.weight": 4})[2]
    Linear(in_features=4, out_features=3, bias=True)
    """
    groups = channel_groups(model, example)
    mine = {group.writes[0].name: group.size for group in groups if group.why_kept is None}
    if missing := sorted(
        set(mine) - set(widths)
    ):  # more of them there may be: a depthwise channel alone is an ordinary one
        raise InputError(
            f"the widths are not of this {type(unwrapped(model)).__name__}: they lack '{missing[0]}'; give both of the same run"
        )
    if wrong := [name for name, size in mine.items() if not 1 <= widths[name] <= size]:
        raise InputError(
            f"'{wrong[0]}' cannot have {widths[wrong[0]]} channels: give 1 to {mine[wrong[0]]}, what the ordinary model has"
        )
    kept = [widths.get(group.writes[0].name, group.size) for group in groups]
    live = [torch.arange(group.size) < count for group, count in zip(groups, kept, strict=True)]
    return _without(copy_of(model), groups, live)


def masked_state(model: nn.Module, masks: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Copies of a model's parameters and buffers, masked, by the names that they have in the bare model.

    Raises: InputError for a mask that fits none of them.
    """
    inner, state = unwrapped(model), model.state_dict()
    named = {name: t for name, t in zip(inner.state_dict(), state.values(), strict=True) if isinstance(t, Tensor)}
    tensors = copy.deepcopy(named)  # at once, so that names that share memory still do
    own = [name for name, _ in inner.named_parameters(remove_duplicate=False)]
    names = dict(zip(plain_names(own), own, strict=True))
    for plain, mask in (masks or {}).items():
        name = names.get(plain, plain)
        if name not in tensors or tensors[name].shape != mask.shape:
            raise InputError(f"the mask of '{name}' fits no weight of the model: give the masks of this model")
        tensors[name].masked_fill_(~mask.to(tensors[name].device), 0)
    return tensors


@torch.no_grad()
def _find_active(trace: Trace, groups: Sequence[Group], tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Find dead channels until there are no more. Tensors lose what those write and read, and gain what is folded."""
    live = tuple(torch.ones(group.size, dtype=torch.bool) for group in groups)
    changed = True
    while changed:
        changed = False
        constants = constant_inputs(trace, tensors)
        for group, alive in zip(groups, live, strict=True):
            if group.why_kept is not None:
                continue
            dead = torch.ones(group.size, dtype=torch.bool)
            for slot in group.reads:
                dead &= _removable(slot, group.size, tensors, constants)
            dead &= alive
            if dead.sum() == alive.sum():
                dead[alive.nonzero()[0]] = False
            if dead.any():
                changed = True
                alive &= ~dead
                for slot in group.reads:
                    _fold_into_bias(slot, dead, tensors, constants)
                for slot in group.writes:
                    _zero_channels(slot, dead, tensors)
    return live


def _removable(slot: Slot, size: int, tensors: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> Tensor:
    """The channels that a layer does not read, or that always send it what it can do without."""
    where = slice(slot.offset, slot.offset + size * slot.block)
    unread = tensors[slot.name].movedim(slot.dim, 0).flatten(1).eq(0).all(1)[where].cpu()
    sent = constants[slot.name][where]
    spare = ~sent.isnan() if _bias_name(slot) in tensors else sent == 0
    return (unread | spare).view(size, slot.block).all(1)


def _fold_into_bias(slot: Slot, dead: Tensor, tensors: dict[str, Tensor], constants: Mapping[str, Tensor]) -> None:
    """Let a layer's bias say what dead channels always sent it, and the layer read them no more."""
    weight, places = tensors[slot.name], _indices(slot, dead)
    if (bias := tensors.get(_bias_name(slot))) is not None:
        kernels = weight.movedim(slot.dim, 1)[:, places.to(weight.device)].double()
        kernels = kernels.flatten(2).sum(2) if kernels.ndim > 2 else kernels
        sent = constants[slot.name][places].nan_to_num().to(kernels.device)
        bias += (kernels @ sent).to(bias.dtype)
    _zero_channels(slot, dead, tensors)


def _zero_channels(slot: Slot, dead: Tensor, tensors: Mapping[str, Tensor]) -> None:
    tensor = tensors[slot.name]
    tensor.index_fill_(slot.dim, _indices(slot, dead).to(tensor.device), 0)


def _indices(slot: Slot, chosen: Tensor) -> Tensor:
    """The indices along a slot's dimension that belong to the chosen channels."""
    return chosen.repeat_interleave(slot.block).nonzero().squeeze(1) + slot.offset


def _bias_name(slot: Slot) -> str:
    return f"{slot.name.removesuffix('weight')}bias"


@torch.no_grad()
def _without(model: nn.Module, groups: Sequence[Group], live: Sequence[Tensor]) -> nn.Module:
    """Take dead channels out of a model's tensors and say so in its layers."""
    gone: dict[tuple[str, int], list[Tensor]] = {}
    for group, alive in zip(groups, live, strict=True):
        if not alive.all():
            for slot in (*group.writes, *group.norms, *group.reads):
                gone.setdefault((slot.name, slot.dim), []).append(_indices(slot, ~alive))
    for (name, dim), places in gone.items():
        owner, _, own = name.rpartition(".")
        module = model.get_submodule(owner)
        tensor = getattr(module, own)
        keep = torch.ones(tensor.shape[dim], dtype=torch.bool)
        keep[torch.cat(places)] = False
        rest = tensor.index_select(dim, keep.nonzero().squeeze(1).to(tensor.device))
        parameter = isinstance(tensor, nn.Parameter)
        setattr(module, own, nn.Parameter(rest, tensor.requires_grad) if parameter else rest)
        _update_attributes(module)
    return model


def _update_attributes(module: Any) -> None:
    """Let a layer's attributes follow from its tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        told = module.running_mean if module.weight is None else module.weight
        module.num_features = len(told)
    else:
        first, second = module.weight.shape[:2]
        if module.groups > 1:  # depthwise; no other is cut
            module.groups, second = first, first
        module.out_channels, module.in_channels = (second, first) if inputs_first(module) == 1 else (first, second)

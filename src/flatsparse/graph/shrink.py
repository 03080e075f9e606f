"""Active channels of a masked model, and the ordinary smaller model without the others."""

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
    """The channels of each group that matter in evaluation mode, bool, one tensor (size,) per group.

    Ours, exact: a channel is inactive when nothing reads it, or when it is constant and either 0 or foldable into the bias
    of every layer that reads it. One that stays at another constant before zero padding is active, because it shows where
    the border is. Channels that are inactive only because others are, are found too. Groups that are kept, and the first
    channel of a group that would be empty, count as active.

    Args:
        model, groups: the network and its ``channel_groups``.
        masks: bool by the weight's name, as in ``SparseTraining.masks``; weights outside count as 0. None: no masks.
        example: as for ``channel_groups``.
    """
    return _find_active(Trace(unwrapped(model), example), groups, masked_state(model, masks))


def shrink(model: nn.Module, masks: Mapping[str, Tensor] | None = None, example: Tensor | None = None) -> nn.Module:
    """An ordinary model of the same class with narrower layers, and the same outputs in evaluation mode.

    Ours: a copy without the channels that ``active_channels`` leaves out; their constant outputs are folded into biases.
    Outputs equal those of the masked model up to the rounding of its floats. It can be trained further, but then differs:
    a removed channel no longer learns.

    Args:
        model, masks, example: as for ``active_channels``; the model is not changed.

    Raises: InputError as ``channel_groups`` does, and for a model that computes with its layers' numbers of channels.

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
    active = _find_active(trace, groups, tensors)
    small = copy_of(model)
    small.load_state_dict(
        {**small.state_dict(), **tensors}
    )  # true weights, even while they are perturbed, and folded biases
    small = _without(small, groups, active)
    if str(Trace(small).graph) != str(trace.graph):
        raise InputError(
            f"{type(small).__name__} computes with the widths of its layers as numbers, which change when channels go: take"
            " them from a tensor's shape in its forward"
        )
    return small


def widths(model: nn.Module, example: Tensor | None = None) -> dict[str, int]:
    """The number of channels of each prunable group, by the name of the first tensor that writes them.

    Those of a shrunk model are all that ``narrow`` needs to make an empty one like it.
    """
    return {group.writes[0].name: group.size for group in channel_groups(model, example) if group.why_kept is None}


def narrow(model: nn.Module, widths: Mapping[str, int], example: Tensor | None = None) -> nn.Module:
    """A copy of an ordinary model as narrow as a shrunk one, to load that one's state into.

    Args:
        model: of the size that was shrunk; it is not changed.
        widths: of the small model (see ``widths``).
        example: as for ``channel_groups``.

    Raises: InputError when the widths are of another model, or larger than this one's.

    >>> net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> narrow(net, {"0.weight": 4})[2]
    Linear(in_features=4, out_features=3, bias=True)
    """
    groups = channel_groups(model, example)
    sizes = {group.writes[0].name: group.size for group in groups if group.why_kept is None}
    if missing := sorted(
        set(sizes) - set(widths)
    ):  # there may be more of them: a depthwise channel alone is an ordinary one
        raise InputError(
            f"the widths are not of this {type(unwrapped(model)).__name__}: they lack '{missing[0]}'; give both of the same run"
        )
    if wrong := [name for name, size in sizes.items() if not 1 <= widths[name] <= size]:
        raise InputError(
            f"'{wrong[0]}' cannot have {widths[wrong[0]]} channels: give 1 to {sizes[wrong[0]]}, what the ordinary model has"
        )
    counts = [widths.get(group.writes[0].name, group.size) for group in groups]
    active = [torch.arange(group.size) < count for group, count in zip(groups, counts, strict=True)]
    return _without(copy_of(model), groups, active)


def masked_state(model: nn.Module, masks: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Copies of a model's parameters and buffers, masked, by their names in the unwrapped model.

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
    """Find inactive channels until there are no more; their weights in ``tensors`` become 0, and biases take their outputs."""
    active = tuple(torch.ones(group.size, dtype=torch.bool) for group in groups)
    changed = True
    while changed:
        changed = False
        constants = constant_inputs(trace, tensors)
        for group, mask in zip(groups, active, strict=True):
            if group.why_kept is not None:
                continue
            dead = torch.ones(group.size, dtype=torch.bool)
            for slot in group.reads:
                dead &= _removable(slot, group.size, tensors, constants)
            dead &= mask
            if dead.sum() == mask.sum():
                dead[mask.nonzero()[0]] = False
            if dead.any():
                changed = True
                mask &= ~dead
                for slot in group.reads:
                    _fold_into_bias(slot, dead, tensors, constants)
                for slot in group.writes:
                    _zero_channels(slot, dead, tensors)
    return active


def _removable(slot: Slot, size: int, tensors: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> Tensor:
    """The channels (size,), bool, that a layer does not read, or whose constant values it can do without."""
    own = slice(slot.offset, slot.offset + size * slot.block)
    unread = tensors[slot.name].movedim(slot.dim, 0).flatten(1).eq(0).all(1)[own].cpu()
    values = constants[slot.name][own]
    foldable = ~values.isnan() if _bias_name(slot) in tensors else values == 0
    return (unread | foldable).view(size, slot.block).all(1)


def _fold_into_bias(slot: Slot, dead: Tensor, tensors: dict[str, Tensor], constants: Mapping[str, Tensor]) -> None:
    """Add the contribution of constant channels to a layer's bias, and zero the weights that read them."""
    weight, indices = tensors[slot.name], _indices(slot, dead)
    if (bias := tensors.get(_bias_name(slot))) is not None:
        kernels = weight.movedim(slot.dim, 1)[:, indices.to(weight.device)].double()
        kernels = kernels.flatten(2).sum(2) if kernels.ndim > 2 else kernels
        values = constants[slot.name][indices].nan_to_num().to(kernels.device)
        bias += (kernels @ values).to(bias.dtype)
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
def _without(model: nn.Module, groups: Sequence[Group], active: Sequence[Tensor]) -> nn.Module:
    """Remove the other channels from a model's tensors, in place, and update its layers' attributes."""
    removed: dict[tuple[str, int], list[Tensor]] = {}
    for group, mask in zip(groups, active, strict=True):
        if not mask.all():
            for slot in (*group.writes, *group.norms, *group.reads):
                removed.setdefault((slot.name, slot.dim), []).append(_indices(slot, ~mask))
    for (name, dim), indices in removed.items():
        owner, _, own = name.rpartition(".")
        module = model.get_submodule(owner)
        tensor = getattr(module, own)
        keep = torch.ones(tensor.shape[dim], dtype=torch.bool)
        keep[torch.cat(indices)] = False
        rest = tensor.index_select(dim, keep.nonzero().squeeze(1).to(tensor.device))
        parameter = isinstance(tensor, nn.Parameter)
        setattr(module, own, nn.Parameter(rest, tensor.requires_grad) if parameter else rest)
        _update_attributes(module)
    return model


def _update_attributes(module: Any) -> None:
    """Set a layer's sizes from its tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        tensor = module.running_mean if module.weight is None else module.weight
        module.num_features = len(tensor)
    else:
        first, second = module.weight.shape[:2]
        if module.groups > 1:  # depthwise; no other grouped convolution loses channels
            module.groups, second = first, first
        module.out_channels, module.in_channels = (second, first) if inputs_first(module) == 1 else (first, second)

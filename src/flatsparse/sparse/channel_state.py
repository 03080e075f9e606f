"""The active channels of a net, as state, and the masks that follow from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.common.distributed import is_sharded
from flatsparse.common.errors import InputError
from flatsparse.graph.groups import Group, Slot
from flatsparse.sparse.channel_choice import Eligible, removable
from flatsparse.sparse.channel_scores import Filters, finite
from flatsparse.sparse.masks import MaskedWeight, Masks


@dataclass(eq=False)
class ChannelGroup:
    """A group of channels that may be pruned, and which of them are active.

    No layer reads a pruned channel. A group that no layer reads by itself is a term of a sum, which goes on without its
    pruned channels: their biases and the weights and biases of their batch norms are 0 too (``vectors``).

    Attributes:
        group: where its channels lie in the model's tensors.
        writes: the weights that write it, by slot; all of them masked.
        vectors: the biases, and batch norms' weights and biases, that are 0 where a channel is pruned.
        active: bool, (channels,), on the CPU wherever the model is.
    """

    group: Group
    writes: tuple[tuple[Slot, MaskedWeight], ...]
    vectors: tuple[MaskedWeight, ...]
    active: Tensor

    @property
    def name(self) -> str:
        """The name of the first weight that writes it."""
        return self.writes[0][1].name

    @property
    def generator(self) -> torch.Generator:
        """The source of its random choices at this step."""
        return self.writes[0][1].generator

    def filters(self) -> Filters:
        """Return weights and mask of each layer that writes it, channels first."""
        return [(self._rows(w.weight.detach(), slot), self._rows(w.mask, slot)) for slot, w in self.writes]

    def matrix(self, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the filters as columns, (inputs · kernel positions, channels); of the weights, or of tensors by name."""
        values = [
            self._rows(w.weight.detach() if tensors is None else tensors[w.name], slot) for slot, w in self.writes
        ]
        return torch.cat([v.flatten(1) for v in values], dim=1).T

    def _rows(self, tensor: Tensor, slot: Slot) -> Tensor:
        rows = tensor.narrow(slot.dim, slot.offset, self.group.size * slot.block).movedim(slot.dim, 0)
        return rows.reshape(self.group.size, slot.block * rows.shape[1], *rows.shape[2:])


class ChannelState(Sequence[ChannelGroup]):
    """The groups of channels of a net that may be pruned, and the values that pruned channels last had; often no group.

    Attributes:
        restores: channels that return take up the values that they last had; else pruned channels are gone for good.
        latest: those values of weights, biases and batch norms, by name; empty unless ``restores``, as it costs a copy of
            the weights.
    """

    def __init__(
        self, groups: Sequence[ChannelGroup] = (), owners: Mapping[str, nn.Module] | None = None, restores: bool = False
    ) -> None:
        self._groups = list(groups)
        self._owners = owners or {}  # modules, since moving a model replaces its buffers
        self.restores = restores
        self.latest: dict[str, Tensor] = {}
        self._recorded: set[str] = set()  # weights that have not changed since their values were recorded

    @classmethod
    def of(cls, model: nn.Module, masks: Masks, *, eligible: Eligible = removable, restores: bool) -> ChannelState:
        """Return the channels of a model, all active: the eligible groups whose weights are all masked.

        Raises: InputError when the model's weights are sharded, when it cannot be traced, or no group is left.
        """
        if any(is_sharded(p) for p in model.parameters()):
            raise InputError(
                "channels cannot be scored where weights are sharded: use DistributedDataParallel, not fully_shard"
            )
        by_name = {w.name: w for w in masks}
        modules = dict(model.named_modules())
        groups, owners = [], {}
        for group in eligible(model):
            names = {slot.name for slot in (*group.writes, *group.reads)}
            matrices = {name for name in names if _tensor(modules, name).ndim > 1}
            if matrices <= set(by_name):
                writes = tuple((slot, by_name[slot.name]) for slot in group.writes if slot.name in by_name)
                summed = () if group.reads else (*group.writes, *group.norms)
                own = ((slot.name, _tensor(modules, slot.name)) for slot in summed)
                vectors = tuple(MaskedWeight(n, t, 0) for n, t in own if t.ndim == 1 and isinstance(t, nn.Parameter))
                groups.append(ChannelGroup(group, writes, vectors, torch.ones(group.size, dtype=torch.bool)))
                slots = (*group.writes, *group.norms, *group.reads)
                owners.update({slot.name: modules[slot.name.rpartition(".")[0]] for slot in slots})
        if not groups:
            raise InputError(
                "no channels to prune: all are kept, summed or read by layers without a mask; check include=, exclude="
                " and layers=, and give explore='removable', or sums=True for residual channels"
            )
        return cls(groups, owners, restores)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # Sequence's overloads say no more than this
        return self._groups[index]

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def all_of(self, masks: Masks) -> list[ChannelGroup]:
        """Return the groups all of whose weights are among these masks; a rule may change only them."""
        names = {w.name for w in masks}
        return [g for g in self if names.issuperset(self._matrices(g))]

    @property
    def vectors(self) -> tuple[MaskedWeight, ...]:
        """The vectors of all groups."""
        return tuple(w for g in self for w in g.vectors)

    def update_vectors(self) -> dict[str, Tensor]:
        """Mask the vectors by what is active. Returns where their entries became active, by name."""
        return {w.name: w.set_mask(g.active) for g in self for w in g.vectors}

    @property
    def total(self) -> int:
        """The number of channels that may be pruned."""
        return sum(g.group.size for g in self)

    @property
    def pruned(self) -> float:
        """The fraction of them that is pruned."""
        return sum(int((~g.active).sum()) for g in self) / self.total

    def scales(self, groups: Sequence[ChannelGroup] | None = None) -> list[Tensor]:
        """Return what ranks the channels of all groups, or of some: ``|γ|`` of their batch norms (CHEX: Hou et al. 2022).

        Where a group has no batch norm with a scale, every group is ranked by the L1 norm of its filters over the mean
        of its layer instead: that is ours, since the two do not compare. Pruned channels come last.
        """
        groups = self if groups is None else groups
        slots = [[slot for slot in g.group.norms if slot.name.endswith("weight")] for g in groups]
        if all(slots):
            scales = [
                torch.cat([self._entries(slot, g, self.tensor(slot.name)).abs().cpu() for slot in own], 1).mean(1)
                for g, own in zip(groups, slots, strict=True)
            ]
        else:
            norms = [finite(g.matrix()).abs().sum(0).cpu() for g in groups]
            scales = [norm / norm[g.active].mean() for g, norm in zip(groups, norms, strict=True)]
        return [torch.where(g.active, finite(s), -torch.inf) for g, s in zip(groups, scales, strict=True)]

    def growable(self, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """Return where weights of such shapes may be active: what no pruned channel writes or reads; on the CPU."""
        growable = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
        for g in self:
            for slot in (*g.group.writes, *g.group.reads):
                if slot.name in growable:
                    off = (~g.active).repeat_interleave(slot.block).nonzero().squeeze(1) + slot.offset
                    growable[slot.name].index_fill_(slot.dim, off, False)
        return growable

    def tensor(self, name: str) -> Tensor:
        """Return a parameter or buffer of the model, as it is now."""
        return _own(self._owners[name], name).detach()

    @torch.no_grad()
    def record(self, masks: Masks) -> None:
        """Record the values of what is active now, to be restored when it returns."""
        for w in masks:
            before = self.latest.get(w.name, w.weight.detach())
            self.latest[w.name] = torch.where(w.mask, w.weight.detach(), before.to(w.weight.device))
        for name, active in self._active_entries().items():
            value = self.tensor(name)
            self.latest[name] = torch.where(active, value, self.latest.get(name, value).to(value.device))
        self._recorded = {w.name for w in masks}

    @torch.no_grad()
    def restore(self, masks: Masks) -> None:
        """Restore the recorded values of active channels after a rule; those that stayed active have them already."""
        if not self._recorded:
            return
        for w in masks:
            if w.name in self._recorded:
                w.weight.copy_(torch.where(w.mask, self.latest[w.name], 0))
        self._recorded = set()
        for name, active in self._active_entries().items():
            value = self.tensor(name)
            value.copy_(torch.where(active, self.latest[name], value))

    def forbid_growth(self, masks: Masks) -> None:
        """Let nothing ever grow in pruned channels."""
        growable = self.growable({w.name: w.weight.shape for w in masks})
        for w in masks:
            w.growable = growable[w.name].to(w.weight.device)

    def state_dict(self) -> dict[str, Any]:
        """Return which channels are active, and the values that the others last had."""
        latest = {name: value.clone() for name, value in self.latest.items()}
        return {"live": {g.name: g.active.clone() for g in self}, "latest": latest}

    def load_state_dict(self, state: Mapping[str, Any], masks: Masks) -> None:
        """Load a saved state of the same net.

        Raises: InputError when it is of other groups.
        """
        if {name: len(active) for name, active in state["live"].items()} != {g.name: g.group.size for g in self}:
            raise InputError(
                "saved channels are of other groups: load them with the same model, explore=, sums=, include= and exclude="
            )
        for g in self:
            g.active = state["live"][g.name].cpu().clone()
        self.update_vectors()
        if self.restores:
            self.latest = {name: value.clone() for name, value in state["latest"].items()}
        else:
            self.forbid_growth(masks)

    def _matrices(self, g: ChannelGroup) -> set[str]:
        """Return the names of the weights that write and read a group."""
        names = {slot.name for slot in (*g.group.writes, *g.group.reads)}
        return {name for name in names if self.tensor(name).ndim > 1}

    def _active_entries(self) -> dict[str, Tensor]:
        """Return where the entries of biases and batch norms belong to active channels, or to none of ours."""
        entries: dict[str, Tensor] = {}
        for g in self:
            for slot in (*g.group.writes, *g.group.norms):
                value = self.tensor(slot.name)
                if value.ndim == 1:
                    active = entries.setdefault(slot.name, torch.ones_like(value, dtype=torch.bool))
                    self._entries(slot, g, active).copy_(g.active.unsqueeze(1))
        return entries

    @staticmethod
    def _entries(slot: Slot, g: ChannelGroup, vector: Tensor) -> Tensor:
        """Return the group's part of a vector, (channels, block)."""
        return vector.narrow(0, slot.offset, g.group.size * slot.block).view(g.group.size, slot.block)


def _own(module: nn.Module, name: str) -> Tensor:
    value = getattr(module, name.rpartition(".")[2])
    assert isinstance(value, Tensor)
    return value


def _tensor(modules: Mapping[str, nn.Module], name: str) -> Tensor:
    return _own(modules[name.rpartition(".")[0]], name)

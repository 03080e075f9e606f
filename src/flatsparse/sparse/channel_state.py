"""Which channels of a net are live, as state; and the masks that follow from it."""

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
class Explored:
    """A group of channels that may be removed, and which of them are live.

    What is removed is read by no layer. A group that no layer reads by itself is a term of a sum, which goes on without its
    removed channels: their biases and the weights and biases of their batch norms are 0 too (``vectors``).

    Attributes:
        group: where its channels lie in the model's tensors.
        writes: the weights that write it, by slot; all of them masked.
        vectors: the biases, and batch norms' weights and biases, that are 0 where a channel is removed.
        live: bool, (channels,), on the CPU wherever the model is.
    """

    group: Group
    writes: tuple[tuple[Slot, MaskedWeight], ...]
    vectors: tuple[MaskedWeight, ...]
    live: Tensor

    @property
    def name(self) -> str:
        """That of the first weight that writes it."""
        return self.writes[0][1].name

    @property
    def generator(self) -> torch.Generator:
        """The source of its random choices at this step."""
        return self.writes[0][1].generator

    def filters(self) -> Filters:
        """Weights and mask of each layer that writes it, channels first."""
        return [(self._rows(w.weight.detach(), slot), self._rows(w.mask, slot)) for slot, w in self.writes]

    def matrix(self, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """The filters as columns, (inputs · kernel positions, channels); of the weights, or of tensors of their names."""
        values = [
            self._rows(w.weight.detach() if tensors is None else tensors[w.name], slot) for slot, w in self.writes
        ]
        return torch.cat([v.flatten(1) for v in values], dim=1).T

    def _rows(self, tensor: Tensor, slot: Slot) -> Tensor:
        rows = tensor.narrow(slot.dim, slot.offset, self.group.size * slot.block).movedim(slot.dim, 0)
        return rows.reshape(self.group.size, slot.block * rows.shape[1], *rows.shape[2:])


class Widths(Sequence[Explored]):
    """The channels of a net that may be removed, and what those that are not live were when they last were.

    Attributes:
        latest: by name, the values of weights, biases and batch norms where they were last live; None where nothing
            is ever restored. It costs a copy of the weights.
    """

    def __init__(self, groups: Sequence[Explored], owners: Mapping[str, nn.Module], restores: bool) -> None:
        self._groups = list(groups)
        self._owners = owners  # modules, since moving a model replaces its buffers
        self.latest: dict[str, Tensor] | None = {} if restores else None
        self._noted: set[str] = set()  # whose values have not changed since they were noted

    @classmethod
    def of(cls, model: nn.Module, masks: Masks, *, eligible: Eligible = removable, restores: bool) -> Widths:
        """All-live channels of a model: the eligible groups whose weights are all masked.

        Raises: InputError when the model's weights are sharded, when it cannot be traced, or no group is left.
        """
        if any(is_sharded(p) for p in model.parameters()):
            raise InputError(
                "channels cannot be scored where weights are sharded: use DistributedDataParallel, not fully_shard"
            )
        by_name = {w.name: w for w in masks}
        modules = dict(model.named_modules())
        found, owners = [], {}
        for group in eligible(model):
            names = {slot.name for slot in (*group.writes, *group.reads)}
            matrices = {name for name in names if _tensor(modules, name).ndim > 1}
            if matrices <= set(by_name):
                writes = tuple((slot, by_name[slot.name]) for slot in group.writes if slot.name in by_name)
                summed = () if group.reads else (*group.writes, *group.norms)
                own = ((slot.name, _tensor(modules, slot.name)) for slot in summed)
                vectors = tuple(MaskedWeight(n, t, 0) for n, t in own if t.ndim == 1 and isinstance(t, nn.Parameter))
                found.append(Explored(group, writes, vectors, torch.ones(group.size, dtype=torch.bool)))
                everything = (*group.writes, *group.norms, *group.reads)
                owners.update({slot.name: modules[slot.name.rpartition(".")[0]] for slot in everything})
        if not found:
            raise InputError(
                "no channels to remove: all are kept, summed or read by layers without a mask; check include=, exclude="
                " and layers=, and give explore='removable', or sums=True for the channels of residual sums"
            )
        return cls(found, owners, restores)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # Sequence's overloads say no more than this
        return self._groups[index]

    def __iter__(self) -> Iterator[Explored]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def among(self, masks: Masks) -> list[Explored]:
        """The groups all of whose weights are among these masks; a rule may move only them."""
        names = {w.name for w in masks}
        return [g for g in self if names.issuperset(self._matrices(g))]

    @property
    def vectors(self) -> tuple[MaskedWeight, ...]:
        """Those of all groups."""
        return tuple(w for g in self for w in g.vectors)

    def mask_vectors(self) -> dict[str, Tensor]:
        """Let the vectors' masks be what is live. Returns where they became live, by name."""
        return {w.name: w.set_mask(g.live) for g in self for w in g.vectors}

    @property
    def total(self) -> int:
        """How many channels may be removed."""
        return sum(g.group.size for g in self)

    @property
    def removed(self) -> float:
        """The fraction of them that is removed."""
        return sum(int((~g.live).sum()) for g in self) / self.total

    def scales(self, groups: Sequence[Explored] | None = None) -> list[Tensor]:
        """What ranks the channels of all groups, or of some: ``|γ|`` of their batch norms (CHEX: Hou et al. 2022).

        Where a group has no batch norm with a scale, every group is ranked by the L1 norm of its filters over the mean
        of its layer instead: that is ours, since the two do not compare. Channels that are not live come last.
        """
        groups = self if groups is None else groups
        found = [[slot for slot in g.group.norms if slot.name.endswith("weight")] for g in groups]
        if all(found):
            scales = [
                torch.cat([self._entries(slot, g, self.tensor(slot.name)).abs().cpu() for slot in slots], 1).mean(1)
                for g, slots in zip(groups, found, strict=True)
            ]
        else:
            norms = [finite(g.matrix()).abs().sum(0).cpu() for g in groups]
            scales = [norm / norm[g.live].mean() for g, norm in zip(groups, norms, strict=True)]
        return [torch.where(g.live, finite(s), -torch.inf) for g, s in zip(groups, scales, strict=True)]

    def masks(self, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """Where weights of such shapes may be live: what no removed channel writes or reads; on the CPU."""
        room = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
        for g in self:
            for slot in (*g.group.writes, *g.group.reads):
                if slot.name in room:
                    off = (~g.live).repeat_interleave(slot.block).nonzero().squeeze(1) + slot.offset
                    room[slot.name].index_fill_(slot.dim, off, False)
        return room

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer of the model, as it is now."""
        return _own(self._owners[name], name).detach()

    @torch.no_grad()
    def note(self, masks: Masks) -> None:
        """Remember what is live as it is now."""
        assert self.latest is not None
        for w in masks:
            before = self.latest.get(w.name, w.weight.detach())
            self.latest[w.name] = torch.where(w.mask, w.weight.detach(), before.to(w.weight.device))
        for name, live in self._vectors().items():
            value = self.tensor(name)
            self.latest[name] = torch.where(live, value, self.latest.get(name, value).to(value.device))
        self._noted = {w.name for w in masks}

    @torch.no_grad()
    def restore(self, masks: Masks) -> None:
        """After a rule that noted what was live: give all that now is the value it last had. What stayed has it already."""
        if self.latest is None or not self._noted:
            return
        for w in masks:
            if w.name in self._noted:
                w.weight.copy_(torch.where(w.mask, self.latest[w.name], 0))
        self._noted = set()
        for name, live in self._vectors().items():
            value = self.tensor(name)
            value.copy_(torch.where(live, self.latest[name], value))

    def confine(self, masks: Masks) -> None:
        """Let nothing ever grow in removed channels."""
        room = self.masks({w.name: w.weight.shape for w in masks})
        for w in masks:
            w.room = room[w.name].to(w.weight.device)

    def state_dict(self) -> dict[str, Any]:
        """Which channels are live, and what the others last were."""
        latest = {name: value.clone() for name, value in (self.latest or {}).items()}
        return {"live": {g.name: g.live.clone() for g in self}, "latest": latest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state of the same net.

        Raises: InputError when it is of other groups.
        """
        if {name: len(live) for name, live in state["live"].items()} != {g.name: g.group.size for g in self}:
            raise InputError(
                "saved channels are of other groups: load them with the same model, explore=, sums=, include= and exclude="
            )
        for g in self:
            g.live = state["live"][g.name].cpu().clone()
        self.mask_vectors()
        if self.latest is not None:
            self.latest = {name: value.clone() for name, value in state["latest"].items()}

    def _matrices(self, g: Explored) -> set[str]:
        """The names of the weights that write and read a group."""
        names = {slot.name for slot in (*g.group.writes, *g.group.reads)}
        return {name for name in names if self.tensor(name).ndim > 1}

    def _vectors(self) -> dict[str, Tensor]:
        """Where the entries of biases and batch norms belong to live channels, or to none of ours."""
        found: dict[str, Tensor] = {}
        for g in self:
            for slot in (*g.group.writes, *g.group.norms):
                value = self.tensor(slot.name)
                if value.ndim == 1:
                    live = found.setdefault(slot.name, torch.ones_like(value, dtype=torch.bool))
                    self._entries(slot, g, live).copy_(g.live.unsqueeze(1))
        return found

    @staticmethod
    def _entries(slot: Slot, g: Explored, vector: Tensor) -> Tensor:
        """The group's part of a vector, (channels, block)."""
        return vector.narrow(0, slot.offset, g.group.size * slot.block).view(g.group.size, slot.block)


def _own(module: nn.Module, name: str) -> Tensor:
    value = getattr(module, name.rpartition(".")[2])
    assert isinstance(value, Tensor)
    return value


def _tensor(modules: Mapping[str, nn.Module], name: str) -> Tensor:
    return _own(modules[name.rpartition(".")[0]], name)

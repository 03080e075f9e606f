"""The layout of perturbed weights: what stays from step to step, so that a step need only check that it has not changed."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.common.distributed import PLAIN
from flatsparse.sam.swap import Swap, Swaps

Groups = Sequence[Mapping[str, Any]]


def same(these: Sequence[Any], those: Sequence[Any]) -> bool:
    """True when two sequences hold the same objects in the same order."""
    return len(these) == len(those) and all(map(operator.is_, these, those))


@dataclass(frozen=True)
class Layout:
    """Which parameters are perturbed, and where their u is.

    Attributes:
        swaps: each parameter and its u, in the order of the optimizer's groups.
        held: all parameters of the optimizer, in that order.
        sizes: the number of parameters of each group.
        group_of: the number of each perturbed parameter's group.
        kinds: what tells which scale a parameter takes: the number of its group, its device and its type; each once.
        kind_of: the number of each parameter's kind.
        plain: whether neither a parameter nor its u is sharded or compact.
        memory: what tells that a parameter, if plain, still has the memory that its u was made for.
    """

    swaps: Swaps
    held: Sequence[nn.Parameter]
    sizes: Sequence[int]
    group_of: Sequence[int]
    kinds: Sequence[tuple[int, torch.device, torch.dtype]]
    kind_of: Sequence[int]
    plain: bool
    memory: Sequence[tuple[int, torch.Size, torch.dtype]]

    @classmethod
    def of(cls, swaps: Iterable[Swap], groups: Groups) -> Layout:
        """Return the layout of swaps that are in the order of the groups."""
        columns = Swaps.of(swaps)
        number_of = {p: number for number, group in enumerate(groups) for p in group["params"]}
        group_of = [number_of[p] for p in columns.parameters]
        own = [(number, p.device, p.dtype) for number, p in zip(group_of, columns.parameters, strict=True)]
        kinds = list(dict.fromkeys(own))
        plain = columns.whole and all(type(p) in PLAIN for p in columns.parameters)
        memory = _memory(columns.parameters) if plain else []
        sizes = [len(group["params"]) for group in groups]
        return cls(columns, _held(groups), sizes, group_of, kinds, [kinds.index(kind) for kind in own], plain, memory)

    def is_of(self, parameters: Sequence[nn.Parameter], buffers: Sequence[Tensor | None], groups: Groups) -> bool:
        """True if it is the layout of these parameters, with these u, of an optimizer with these groups; plain ones only."""
        return (
            self.plain
            and same(parameters, self.swaps.parameters)
            and same(buffers, self.swaps.others)
            and same(_held(groups), self.held)
            and [len(group["params"]) for group in groups] == self.sizes
            and _memory(parameters) == self.memory
        )


def _held(groups: Groups) -> list[nn.Parameter]:
    return list(itertools.chain.from_iterable(group["params"] for group in groups))


def _memory(parameters: Sequence[nn.Parameter]) -> list[tuple[int, torch.Size, torch.dtype]]:
    return [(p.data_ptr(), p.shape, p.dtype) for p in parameters]

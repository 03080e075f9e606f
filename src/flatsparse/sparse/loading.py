"""Loading model, optimizer and sparse training in any order, and what is said when one of them is missing.

The masks and everything else that a sparse training remembers also travel in the optimizer's ``state_dict``, because
trainers save that and know of nothing else.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.common.distributed import full_tensor
from flatsparse.sparse.masks import MaskedWeight, Masks

if TYPE_CHECKING:
    from flatsparse.sparse.training import SparseTraining

MASK = "sparse_mask"  # the key of a mask in a parameter's saved optimizer state, which sharded checkpoints keep too
TRAINING = "sparse_training"  # the key of all the rest in an optimizer's saved state


class LoadedWeights:
    """Weights as they were before they were zeroed outside masks that may not be theirs, until the first step."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._state: dict[str, dict[str, Tensor]] = {}  # of the optimizer, by layer and key
        self._lost: dict[str, int] = {}  # how many weights, of a net that looks sparse by other masks

    def keep(self, weights: Iterable[MaskedWeight], *, may_be_dense: bool = False) -> None:
        """Remember weights as they are; they are about to be zeroed.

        Args:
            may_be_dense: that a weight with fewer zeros than its mask is no sign of a loss: a dense net is made sparse.
        """
        for w in weights:
            self._kept[w.name] = w.weight.detach().clone()
            nonzero = w.weight.detach().ne(0)
            looks_sparse = w.weight.numel() - int(full_tensor(nonzero.sum())) >= w.weight.numel() - w.active
            lost = int(full_tensor((nonzero & ~w.mask).sum())) if looks_sparse or not may_be_dense else 0
            self._lost[w.name] = lost

    def keep_state(self, weights: Iterable[MaskedWeight], optimizer: Optimizer) -> None:
        """Remember what an optimizer keeps for weights."""
        for w in weights:
            entry = optimizer.state.get(w.weight, {})
            alike = {k: v.clone() for k, v in entry.items() if isinstance(v, Tensor) and v.shape == w.weight.shape}
            self._state[w.name] = alike

    def forget_state(self) -> None:
        """The optimizer has loaded another."""
        self._state = {}

    def give_back(self, w: MaskedWeight, optimizer: Optimizer) -> None:
        """Put a weight and its state back as they were, if nothing has written to it since; its mask has changed."""
        if w.name in self._kept and w.is_as_seen:
            w.weight.copy_(self._kept[w.name])
        for key, value in self._state.get(w.name, {}).items():
            if key in optimizer.state.get(w.weight, {}):
                optimizer.state[w.weight][key].copy_(value)
        self._lost.pop(w.name, None)

    def forget(self) -> None:
        """The first step comes: say what was lost, and let go."""
        if lost := sum(self._lost.values()):
            warnings.warn(
                f"{lost} loaded weights that are not zero lie outside the masks and were set to 0: to go on with a sparse"
                " training, load its training.state_dict() as well, or the state of its optimizer, which holds the masks;"
                " to keep a net as others pruned it, give sparsify masks=flatsparse.masks_from(model)",
                stacklevel=8,
            )
        self._kept, self._state, self._lost = {}, {}, {}

    def __bool__(self) -> bool:
        return bool(self._kept)


def with_training(state: dict[str, Any], base: Optimizer, training: SparseTraining) -> dict[str, Any]:
    """An optimizer's saved state with that of a sparse training in it: masks beside each parameter's own state."""
    saved = training.state_dict()
    entries = dict(state["state"])
    names = _names(state, base, training.masked_weights)
    if isinstance(base, torch.optim.SGD):  # it may keep nothing; others take an entry for a sign that they have begun
        everything = [key for group in state["param_groups"] for key in group["params"]]
        entries = {key: {MASK: torch.ones((), dtype=torch.bool)} for key in everything if key not in entries} | entries
    for key in names.keys() & entries.keys():
        entries[key] = {**entries[key], MASK: saved["masks"][names[key]]}
    return {**state, "state": entries, TRAINING: saved}


def without_training(
    state: dict[str, Any], base: Optimizer, masked: Masks
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any] | None]:
    """An optimizer's saved state as it would be by itself; the masks that were in it, by name; and the rest, if there."""
    names = _names(state, base, masked)
    masks, entries = {}, {}
    for key, entry in state["state"].items():
        if isinstance(entry, dict) and MASK in entry:
            entry = dict(entry)
            mask = entry.pop(MASK)
            if key in names:
                masks[names[key]] = mask.bool()
        if entry:
            entries[key] = entry
    rest = state.get(TRAINING)
    return {k: v for k, v in state.items() if k != TRAINING} | {"state": entries}, masks, rest


def left_masks(base: Optimizer, masked: Masks) -> dict[str, Tensor]:
    """The masks of a state that an optimizer loaded before it trained sparsely, taken out of its state."""
    names: dict[Tensor, str] = {w.weight: w.name for w in masked}
    left = {p: entry.pop(MASK) for p, entry in base.state.items() if isinstance(entry, dict) and MASK in entry}
    for p in [p for p in left if not base.state[p]]:
        del base.state[p]
    return {names[p]: mask.bool() for p, mask in left.items() if p in names}


def _names(state: dict[str, Any], base: Optimizer, masked: Masks) -> dict[Any, str]:
    """The names of masked weights by their keys in a saved state."""
    by_parameter = {w.weight: w.name for w in masked}
    return {
        key: by_parameter[p]
        for packed, group in zip(state["param_groups"], base.param_groups, strict=False)
        for key, p in zip(packed["params"], group["params"], strict=False)
        if p in by_parameter
    }


class AfterModelLoad:
    """The hook of a layer that dies with its training and in copies of the model."""

    def __init__(self, training: SparseTraining | None, weights: list[MaskedWeight]) -> None:
        self._training = weakref.ref(training) if training is not None else None
        self._weights = weights

    def __reduce__(self) -> tuple[Any, ...]:
        return AfterModelLoad, (None, [])

    def __call__(self, module: nn.Module, keys: Any) -> None:
        if self._training is not None and (training := self._training()) is not None:
            training.after_model_load(self._weights)

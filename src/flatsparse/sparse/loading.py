"""Saving and loading of model, optimizer and sparse training in any order, and warnings when one of them is missing.

The masks and all else that a sparse training remembers also travel in the optimizer's ``state_dict``, because
trainers save that and know of nothing else.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from flatsparse.common.optimizers import innermost, mask_aware
from flatsparse.sparse.copies import count_outside
from flatsparse.sparse.loaded_masks import MovedMasks
from flatsparse.sparse.masks import MaskedWeight, Masks
from flatsparse.sparse.model_hooks import ModelHook
from flatsparse.sparse.optimizer_state import begin_outside, beginning, groups_by_parameter
from flatsparse.sparse.pattern import Pattern
from flatsparse.sparse.state import TrainingState
from flatsparse.sparse.zeroed_weights import AT_THE_CALL, AT_THE_LOAD, AT_THE_STEP, ZeroedWeights

MASK = "sparse_mask"  # the key of a mask in a parameter's saved optimizer state, which sharded checkpoints keep too
TRAINING = "sparse_training"  # the key of all the rest in an optimizer's saved state


class Loading:
    """The saving and loading of a sparse training, of its model and of its optimizer, in any order.

    Weights are zeroed outside the masks as soon as they are loaded. Their own masks may be loaded later: until the next step
    they can be brought back.

    Args:
        pattern: of masks that move in training; see ``MovedMasks``. None for masks that stay.
    """

    def __init__(
        self, state: TrainingState, optimizer: Optimizer, method: str, *, in_rounds: bool, pattern: Pattern | None
    ) -> None:
        self._state = state
        self._optimizer = optimizer
        self._base = innermost(optimizer)
        self._method = method
        self._in_rounds = in_rounds
        self._zeroed = ZeroedWeights()
        self._moved = MovedMasks(pattern, self._base)
        self._evaluations: list[RemovableHandle] = []  # hooks on layers that lost weights when they were loaded
        self._saw_outside = False  # whether a save has warned of weights outside the masks
        self._saw_replaced = False  # whether a load has warned of parameters that are others now
        self._unsettled = False  # weights or state may have been loaded that do not fit the masks
        self._masks_loaded, self._all_loaded = False, False

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        """Register hooks for loading and saving on the optimizer and the layers."""
        handles = [
            self._base.register_load_state_dict_pre_hook(self._before_load),
            self._base.register_load_state_dict_post_hook(self._after_load),
            self._base.register_state_dict_post_hook(self._after_save),
        ]
        for module in model.modules():  # a part of the model may be loaded by itself
            own = {id(p) for p in module.parameters(recurse=False)}
            if weights := [w for w in self._state.masked if id(w.weight) in own]:
                handles.append(module.register_load_state_dict_post_hook(ModelHook(self._after_model_load, weights)))
        handles.append(model.register_state_dict_post_hook(ModelHook(self._after_model_save)))
        for handle in handles:
            weakref.finalize(self, handle.remove)  # or each training that is dropped would leave some on the model
        return handles

    @torch.no_grad()
    def start(self, initial: Mapping[str, Tensor], *, given: bool) -> None:
        """Set the first masks, or those that the optimizer has loaded already.

        Args:
            initial: by name.
            given: they are the user's; those that a method has chosen may not be those that a model was pruned by.
        """
        state = self._state
        for w in state.masks:
            if w.name in initial:
                w.set_mask(initial[w.name])
        loaded = masks_left_in(self._base, state.masks)
        state.channels.update_vectors()
        self._zeroed.keep(state.masked, may_be_dense=True)
        if not given and state.frozen is None:
            self._zeroed.note_woken(state.masks)
        self._zeroed.keep_state(state.masked, self._base)
        state.update({}, self._base)
        if loaded:
            self._take_masks(loaded)

    def state_dict(self) -> dict[str, Any]:
        """Return the saved state of the training."""
        saved = {"method": self._method, **self._state.state_dict()}
        if self._in_rounds:
            saved |= {"round": self._state.round, "rewind": dict(self._state.rewind)}
        return saved

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Load a saved state.

        Raises: InputError when it is of another method, or of other layers or shapes.
        """
        self._state.check(saved, self._method)
        self._state.unpack()
        self._state.load_state_dict(saved)
        self._state.share_masks(self._optimizer)
        self._take_masks(saved["masks"])
        self._all_loaded = True

    def settle(self) -> bool:
        """Make weights and state fit the masks before the next step, and warn of what was lost or is missing.

        Returns: True if masks were loaded since the last step.
        """
        self._expect_no_evaluation()
        if self._zeroed:
            self._zeroed.forget()
        grown = self._moved.settle(self._state.masked)
        if masks_loaded := self._masks_loaded:
            self._warn_of_missing()
        if self._unsettled:
            for w in self._state.masked:
                w.apply()
            begin_outside(self._state.masked, self._base)
        if grown and self._state.grown is not None:
            self._state.grown.note(self._state.masked, grown)
        self._unsettled = self._masks_loaded = self._all_loaded = False
        return masks_loaded

    def _warn_of_missing(self) -> None:
        if not self._all_loaded:
            warnings.warn(
                "the masks came with the optimizer's state, but not how many steps were taken and what rules remember: load"
                " training.state_dict() too",
                stacklevel=AT_THE_STEP,
            )

    @torch.no_grad()
    def _take_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Set loaded masks, and restore the weights that were zeroed outside the masks before them."""
        left_out = {w.name for w in self._state.masks} - set(masks)
        for w in self._state.masked:
            if w.name not in left_out:
                if w.name in masks:  # those of vectors follow from the channels
                    w.set_mask(masks[w.name])
                self._moved.undo(w)
                self._zeroed.give_back(w, self._base)
                w.apply()
        if self._state.grown is not None:
            self._state.grown.forget_pruned(self._state.masked)
        self._unsettled = self._masks_loaded = True
        self._expect_no_evaluation()

    def _after_save(self, base: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return with_training(state, base, self._state.masks, self.state_dict())

    def _before_load(self, base: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        self._state.unpack()
        plain, masks, rest = without_training(state, base, self._state.masks)
        if rest is not None:
            if rest.get("method") == self._method:  # that of another is no state of ours, but its momentum may serve
                self.load_state_dict(rest)
        elif masks:
            self._take_masks(masks)
        return plain

    def _after_load(self, base: Optimizer) -> None:
        self._unsettled = True
        self._zeroed.forget_state()
        self._moved.forget_state()

    @torch.no_grad()
    def _after_model_load(self, weights: list[MaskedWeight], module: nn.Module, keys: Any) -> None:
        """Zero loaded weights outside the masks, but keep a copy: their own masks may be loaded next. Frozen ones stay."""
        self._warn_of_replaced(weights, module)
        self._zeroed.keep(weights)
        if self._state.frozen is not None:
            self._state.frozen.end()
        if moved := self._moved.follow(weights):
            self._state.share_masks(self._optimizer)
        for w in moved:
            self._zeroed.spare(w)
        for w in weights:
            w.apply()
        if self._zeroed.have_lost(weights):
            self._evaluations.append(module.register_forward_pre_hook(ModelHook(self._before_evaluation)))
            weakref.finalize(self, self._evaluations[-1].remove)

    def _warn_of_replaced(self, weights: list[MaskedWeight], module: nn.Module) -> None:
        own = {id(p) for p in module.parameters(recurse=False)}
        gone = [w.name for w in weights if id(w.weight) not in own]
        if gone and not self._saw_replaced:
            self._saw_replaced = True
            warnings.warn(
                f"load_state_dict(assign=True) has put another parameter in the place of '{gone[0]}', which has no mask and which"
                " the optimizer does not train: load without assign, or make optimizer and training after the load",
                stacklevel=AT_THE_LOAD,
            )

    def _before_evaluation(self, module: nn.Module, args: Any) -> None:
        """Warn of lost weights before a layer is evaluated without them; in training the step warns."""
        if not module.training:
            self._expect_no_evaluation()
            self._zeroed.warn_of_lost(AT_THE_CALL)

    def _expect_no_evaluation(self) -> None:
        for handle in self._evaluations:
            handle.remove()
        self._evaluations.clear()

    def _after_model_save(self, model: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        """Warn of weights outside the masks, which something must have written that leaves no trace."""
        perturbed = any(getattr(wrapper, "is_perturbed", False) for wrapper in mask_aware(self._optimizer))
        if perturbed or self._saw_outside or self._state.frozen is not None:
            return
        if outside := count_outside(self._state.masks):
            self._saw_outside = True
            warnings.warn(
                f"{outside} weights that are saved lie outside the masks: another optimizer than the sparse one has stepped, or"
                " something has written to them through .data, such as a moving average that was copied into the model; give"
                " the loop this optimizer, and call training.zero_outside(average) after each update of an average, or"
                " training.zero_outside(model) before the save",
                stacklevel=4,
            )


def with_training(state: dict[str, Any], base: Optimizer, masks: Masks, saved: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's saved state with that of a sparse training in it: masks beside each parameter's own state."""
    entries = dict(state["state"])
    names = _names(state, base, masks)
    entries |= _whole(state, base, masks)
    if isinstance(base, torch.optim.SGD):  # it may keep nothing; others take an entry for a sign that they have begun
        keys = [key for group in state["param_groups"] for key in group["params"]]
        entries = {key: {MASK: torch.ones((), dtype=torch.bool)} for key in keys if key not in entries} | entries
    for key in names.keys() & entries.keys():
        entries[key] = {**entries[key], MASK: saved["masks"][names[key]]}
    return {**state, "state": entries, TRAINING: saved}


def _whole(state: dict[str, Any], base: Optimizer, masks: Masks) -> dict[Any, Any]:
    """Return the saved entries of packed weights as they are of whole ones."""
    packed, entries = {w.name: w for w in masks if w.is_packed}, state["state"]
    if not packed:
        return {}
    groups = groups_by_parameter(base)

    def whole(w: MaskedWeight, key: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.shape != w.weight.shape:
            return value
        first = beginning(key, base, groups[w.weight])
        return w.whole(value) if first == 0 else w.whole(value - first) + first

    return {
        at: {key: whole(packed[name], key, value) for key, value in entries[at].items()}
        for at, name in _names(state, base, masks).items()
        if name in packed and at in entries
    }


def without_training(
    state: dict[str, Any], base: Optimizer, masked: Masks
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any] | None]:
    """Return an optimizer's saved state as it would be by itself, the masks that were in it, by name, and the rest, if there."""
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


def masks_left_in(base: Optimizer, masked: Masks) -> dict[str, Tensor]:
    """Take the masks out of a state that an optimizer loaded before it trained sparsely, and return them by name."""
    names: dict[Tensor, str] = {w.weight: w.name for w in masked}
    left = {p: entry.pop(MASK) for p, entry in base.state.items() if isinstance(entry, dict) and MASK in entry}
    for p in [p for p in left if not base.state[p]]:
        del base.state[p]
    return {names[p]: mask.bool() for p, mask in left.items() if p in names}


def _names(state: dict[str, Any], base: Optimizer, masked: Masks) -> dict[Any, str]:
    """Return the names of masked weights by their keys in a saved state."""
    by_parameter = {w.weight: w.name for w in masked}
    return {
        key: by_parameter[p]
        for packed, group in zip(state["param_groups"], base.param_groups, strict=False)
        for key, p in zip(packed["params"], group["params"], strict=False)
        if p in by_parameter
    }

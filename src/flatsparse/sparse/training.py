"""A sparse training as a user sees it: what ``sparsify`` returns."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.common.distributed import full_tensor, process_group, process_group_around
from flatsparse.common.errors import InputError
from flatsparse.common.optimizers import innermost, mask_aware
from flatsparse.sparse.copies import zero_copy
from flatsparse.sparse.loading import TRAINING, Loading
from flatsparse.sparse.masks import Masks
from flatsparse.sparse.packing import Packing, Wanted
from flatsparse.sparse.plan import Plan, due
from flatsparse.sparse.report import LayerReport, Report
from flatsparse.sparse.rounds import keep_rewind_point, write_back
from flatsparse.sparse.rules import Rule
from flatsparse.sparse.state import FROZEN, ZERO, Outside, TrainingState
from flatsparse.sparse.step import SparseStep


class SparseTraining:
    """A model's masks, kept through its optimizer's steps and changed by the rules of a plan. See ``sparsify``.

    Attributes:
        method: the name of the method.
        plan: what the method does.
    """

    def __init__(
        self,
        model: nn.Module,
        state: TrainingState,
        optimizer: Optimizer,
        plan: Plan,
        method: str,
        initial: Mapping[str, Tensor],
        *,
        masks_given: bool,
    ) -> None:
        self.method = method
        self.plan = plan
        self._model = weakref.ref(model)
        self._optimizer = optimizer
        self._state = state
        moves = bool(plan.rules) and plan.channel_pruning is None
        self._loading = Loading(
            state, optimizer, method, in_rounds=plan.rounds is not None, pattern=plan.pattern if moves else None
        )
        self._step = SparseStep(model, state, optimizer, plan, self._loading)
        state.share_masks(optimizer)
        state.packing, self._group = Packing(optimizer), process_group(model)
        self._handles = [*self._step.attach(), *self._loading.attach(model)]
        self._loading.start(initial, given=masks_given)
        keep_rewind_point(state, plan.rounds, model)
        self._masks_all = all(getattr(wrapper, "mask_perturbation", True) for wrapper in mask_aware(optimizer))

    # -- read by a user -----------------------------------------------------------------------------------------

    @property
    def masks(self) -> dict[str, Tensor]:
        """Each prunable weight's mask by name, bool, in the order of ``named_parameters``."""
        return {w.name: w.mask for w in self._state.masks}

    @property
    def masked_weights(self) -> Masks:
        """The prunable weights with their masks, as rules see them."""
        return self._state.masks

    @property
    def sparsity(self) -> float:
        """The fraction of prunable weights that are zero; with ``outside="frozen"``, of those that are not trained."""
        return 1 - self._state.masks.active / self._state.masks.total

    @property
    def outside(self) -> Outside:
        """What weights are outside the masks: ``"zero"``, or ``"frozen"``, what they were."""
        return ZERO if self._state.frozen is None else FROZEN

    @property
    def channels(self) -> float | None:
        """The fraction of channels that is pruned, of those that may be; None for a method that prunes none."""
        return self._state.channels.pruned if self._state.channels else None

    @property
    def exploration(self) -> float:
        """The fraction of prunable weights that were ever active (the exploration rate R_s of ITOP: Liu et al. 2021).

        It is counted in a byte a weight, from the first update of the masks on.
        """
        return self._state.exploration

    def report(self) -> Report:
        """Return the masks in numbers, layer by layer."""
        masks = self._state.masks
        layers = (LayerReport(w.name, tuple(w.mask.shape), w.active, w.size) for w in masks)
        return Report(tuple(layers), masks.overall)

    @property
    def state(self) -> TrainingState:
        """All that the training remembers between steps, as rules see it."""
        return self._state

    @property
    def is_attached(self) -> bool:
        """True until ``detach``."""
        return bool(self._handles)

    @property
    def steps_taken(self) -> int:
        """The number of optimizer steps so far, all rounds together."""
        return self._state.steps_taken

    @property
    def round(self) -> int:
        """The number of the round, from 0."""
        return self._state.round

    @property
    def rounds(self) -> int:
        """The number of rounds of training: one, but for methods that prune and train again."""
        return self.plan.rounds.count if self.plan.rounds else 1

    def due(self, step: int) -> list[Rule]:
        """Return the rules that act at an optimizer step, counted from 1."""
        return due(self.plan, step)

    def keeps_masks(self) -> bool:
        """Return whether the model runs at weights that are zero outside the masks: until ``detach``, if e is masked too."""
        return self._masks_all and bool(self._handles) and self.outside == ZERO

    def zero_outside(self, copy: nn.Module) -> None:
        """Zero the weights of a copy of the model outside the masks, in place: of a moving average, after each update.

        An average of moving masks is denser than the model, since what leaves a mask only fades from it. Zeroed, what enters
        again is averaged from 0, as it is trained from 0.

        Args:
            copy: a copy of the model, or what holds one as its ``module`` (torch's ``AveragedModel``, timm's ``ModelEmaV3``).

        Raises: InputError when it lacks a weight that has a mask, and with ``outside="frozen"``, where none is zero.
        """
        if self.outside == FROZEN:
            raise InputError("with outside='frozen' no weight is zero outside the masks: leave out zero_outside")
        zero_copy(copy, self._state.masked)

    def zeroing(self) -> dict[nn.Parameter, Callable[[Tensor], Tensor]]:
        """Return for each masked parameter a function that zeroes a tensor of its shape outside its mask, in place."""
        return {w.weight: w.zero_outside for w in self._state.masked}

    # -- packed weights -------------------------------------------------------------------------------------------

    def pack_weights(self, wanted: Wanted) -> Callable[[], None]:
        """Pack weights whenever the coming step needs no zeros: not its rules, nor an average of dense gradients.

        Args:
            wanted: asked after a step whether to pack a weight then.

        Returns: what ends it, and unpacks.
        """
        packing = self._state.packing
        assert packing is not None
        model = self._model()
        group = self._group or (process_group_around(model) if model is not None else None)
        if group is not None or self._state.channels or self.plan.momentum is not None or self.outside == FROZEN:
            return lambda: None
        packing.wanted = wanted
        handle = self._optimizer.register_step_post_hook(self._pack)

        def end() -> None:
            handle.remove()
            packing.wanted = None
            packing.unpack()

        return end

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def _pack(self, *_: Any) -> None:
        packing = self._state.packing
        assert packing is not None
        pull = self.plan.pull
        if (
            self.due(self.steps_taken + 1)
            or not self._handles
            or (pull is not None and pull.acts(self.steps_taken + 1))
        ):
            packing.unpack()
        else:
            packing.pack(self._state.masks.trained())

    def unpack(self, *, closing: bool = True) -> None:
        """Let all weights, gradients and optimizer state have the shape of their masks, until the next step.

        Accelerated layers keep active entries alone between steps; see ``accelerate``.

        Args:
            closing: also between a forward at perturbed weights and the step, where it puts the true ones in place.
        """
        self._state.unpack(closing=closing)

    # -- called by a user -----------------------------------------------------------------------------------------

    def mask_gradients(self) -> None:
        """Zero the gradients outside the masks now, e.g. before clipping, so that their norm is the active weights'.

        A rule that is due at the coming step still sees the dense gradient. With a ``GradScaler``, call it after
        ``scaler.unscale_``: what it keeps for the rule is the gradient as it is now.
        """
        self._step.mask_gradients(self.due(self.steps_taken + 1), scale=None)

    @torch.no_grad()
    def next_round(self) -> None:
        """Prune, go back to where the method rewinds to, and clear the optimizer's state. See ``rounds``.

        The caller restarts the learning rate and its schedule.

        Raises: InputError after the last round, when the first was shorter than the step to rewind to, or when the
            model was deleted.
        """
        state, rounds, model = self._state, self.plan.rounds, self._model()
        if rounds is None or self.round + 1 >= rounds.count:
            raise InputError(f"method '{self.method}' has {self.rounds} rounds, and this was the last: stop here")
        if model is None:
            raise InputError("the model that was made sparse was deleted: keep it for as long as its rounds last")
        if rounds.rewind is not None and not state.rewind:
            raise InputError(
                f"the first round took {self.steps_taken} steps and never reached rewind={rounds.rewind}: train it longer"
            )
        self.unpack()
        if odd := [w.name for w in state.masks if not bool(full_tensor(w.weight.isfinite().all()))]:
            raise InputError(
                f"the weights of '{odd[0]}' are not finite after round {self.round}, so that none can be chosen by size: train"
                " the round again, with a lower learning rate"
            )
        # Loading nothing clears the momentum of whatever optimizer this is, and puts the true weights in place.
        saved = self._optimizer.state_dict()
        self._optimizer.load_state_dict({**{k: v for k, v in saved.items() if k != TRAINING}, "state": {}})
        if state.grown is not None:
            state.grown.clear()
        for wrapper in mask_aware(self._optimizer):
            wrapper.reset_state()
        state.round += 1
        if not state.explored:
            state.explore()
        pruned = rounds.prune(state.gathered(), state.round)
        if rounds.rewind is not None:
            write_back(model, state.rewind)
        state.update(pruned, innermost(self._optimizer))

    def state_dict(self) -> dict[str, Any]:
        """Return the masks, counts and the memory of rules and rounds; all else is in the model and the optimizer."""
        return self._loading.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load saved masks; the model and the optimizer load their own parts, in any order.

        Raises: InputError when the masks are of another method, or of other layers or shapes.
        """
        self._loading.load_state_dict(state)

    def detach(self) -> None:
        """Remove all hooks from model and optimizer: from now on nothing keeps the masks, nor weights outside them."""
        self.unpack()
        if self._state.frozen is not None:
            self._state.frozen.end()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for wrapper in mask_aware(self._optimizer):
            wrapper.set_masks({})

    def __reduce__(self) -> Any:
        raise InputError(
            "a sparse training cannot be copied or pickled, because it lives on a model and an optimizer: save its"
            " state_dict(), and load it into what sparsify gives for the copies; a model that is copied, as for an average of its"
            " weights, must not hold it as an attribute"
        )

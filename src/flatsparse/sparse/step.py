"""The order of a training step: what happens to gradients, weights and masks before and after the optimizer's own step."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from flatsparse.common.distributed import local_tensor, process_group, process_group_around
from flatsparse.common.errors import InputError
from flatsparse.common.optimizers import innermost
from flatsparse.sparse.agreement import check_agreement
from flatsparse.sparse.gradients import Unusable, clear_unusable, forget_unusable, give_back, withheld_from
from flatsparse.sparse.loading import Loading
from flatsparse.sparse.masked_weight import MaskedWeight, reapply, record, zero_outside
from flatsparse.sparse.masks import Masks
from flatsparse.sparse.optimizer_state import ELEMENTWISE
from flatsparse.sparse.plan import Plan, due
from flatsparse.sparse.pull import LentGradients
from flatsparse.sparse.rounds import keep_rewind_point
from flatsparse.sparse.rules import Rule
from flatsparse.sparse.state import TrainingState


class SparseStep:
    """A step of sparse training, in order (``_in_order``), on the innermost optimizer, where gradients are plain.

    A step that a gradient scaler skips does nothing at all.
    """

    def __init__(
        self, model: nn.Module, state: TrainingState, optimizer: Optimizer, plan: Plan, loading: Loading
    ) -> None:
        self._model = weakref.ref(model)
        self._state = state
        self._optimizer = optimizer
        self._base = innermost(optimizer)
        self._plan = plan
        self._loading = loading
        self._elementwise = type(self._base) in ELEMENTWISE
        self._group = process_group(model)
        self._agreed = False
        self._unusable = Unusable()
        self._copied: dict[str, Tensor] = {}  # the gradients that dense copies were made of
        self._running: Iterator[None] | None = None
        # The optimizer's lists of parameters, when they were last looked at.
        self._checked: list[list[nn.Parameter]] = []

    @property
    def state(self) -> TrainingState:
        """The state of the training whose step this is."""
        return self._state

    @property
    def plan(self) -> Plan:
        """The plan of that training."""
        return self._plan

    def attach(self) -> list[RemovableHandle]:
        """Register hooks on the optimizer's steps."""
        return [
            self._base.register_step_pre_hook(self._before),
            self._base.register_step_post_hook(self._after),
        ]

    def _in_order(self) -> Iterator[None]:
        """Take a step; the optimizer takes its own at the ``yield``.

        1. Due rules that score by gradient get a copy of the dense one;
        2. gradients are zeroed outside the masks;
        3. the optimizer steps under the old masks, with the plan's pull in the gradients (unless a due rule takes the place of
           the weight step); frozen weights outside the masks are written back;
        4. due rules give new masks; weights that are not frozen, gradients and optimizer state are zeroed outside them.
        """
        state, grown, frozen = self._state, self._state.grown, self._state.frozen
        # In float16 Adam's eps of 1e-8 is 0, and a step along a gradient of 0 is 0/0.
        elementwise = self._elementwise and not any(w.weight.dtype == torch.float16 for w in state.masks)
        self._settle()
        rules = due(self._plan, state.steps_taken + 1)
        if rules:
            state.unpack()  # they were before the forward, unless what is due has changed since
        self.mask_gradients(rules, scale=getattr(self._base, "grad_scale", None))  # 1 and 2
        self._average_gradients()
        withheld = [] if all(rule.weight_step for rule in rules) else withheld_from(self._base)
        self._unusable.found |= clear_unusable(withheld)
        lent = self._with_pull()
        if grown is not None:
            grown.before_step(state.masked)

        try:
            yield  # 3
        except GeneratorExit:  # another step begins, inside this one or after it has failed
            lent.give_back_untouched()
            raise

        if lent:
            lent.give_back()
            state.share_masks(self._optimizer)  # what a wrapper has made of them it makes anew, as below
        if grown is not None:
            grown.after_step(state.masked)
        give_back(withheld)
        if frozen is not None:
            frozen.write_back()
            frozen.reset_state(before_update=bool(rules))
            # What a wrapper has made within the step (``kernel=True``) it makes anew, of the weights as they are now.
            state.share_masks(self._optimizer)
        elif not elementwise:
            masked = list(state.masked)
            zero_outside(masked, [w.weight for w in masked])
        state.steps_taken += 1
        if self._plan.pull is not None:
            self._plan.pull.after_step(state)
        if rules:
            self._update(rules)  # 4
        self._check_agreement(updated=bool(rules))
        masked = list(state.masked)
        for w in masked:
            w.dense_grad = None
        record(masked)
        self._copied = {}
        if frozen is not None:
            frozen.end()
        keep_rewind_point(state, self._plan.rounds, self._model())
        self._unusable.end_step(state.steps_taken)

        # A subclass may write to weights after its parent's step, which has these hooks too.
        if frozen is not None and not elementwise:
            frozen.keep(state.masked)
        while not elementwise:
            yield
            if frozen is not None:
                frozen.write_back()
            for w in state.masked:
                w.apply()

    @torch._disable_dynamo  # type: ignore[attr-defined]  # a traced hook would count one step for all
    def _before(self, base: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        frozen = self._state.frozen
        if frozen is not None:
            frozen.begin(self._state.masked)
        if closure is None:
            self._begin()
            return None

        def masked_closure() -> Any:  # torch calls this hook before the closure has made any gradient
            # LBFGS comes several times, along directions that it has from other masks.
            reapply(list(self._state.masked))
            if frozen is not None:
                frozen.write_back()
            loss = closure()
            self._begin()
            return loss

        return (args[0], masked_closure), {k: v for k, v in kwargs.items() if k != "closure"}

    @torch.no_grad()
    def _begin(self) -> None:
        """Run up to the optimizer's own step: the gradients are complete."""
        skipped = _scaler_skips(self._base) or _is_pretended(self._base)
        self._running = None if skipped else self._in_order()
        if self._running is not None:
            next(self._running)

    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def _after(self, base: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._running is not None:
            next(self._running, None)
        elif (frozen := self._state.frozen) is not None:
            frozen.write_back()
            frozen.end()

    def _settle(self) -> None:
        """Make weights fit the masks again, whatever was loaded or has written to them since the last step."""
        held = [group["params"] for group in self._base.param_groups]
        if len(held) != len(self._checked) or any(a is not b for a, b in zip(held, self._checked, strict=True)):
            check_not_replaced(self._state.masks, [p for params in held for p in params], self._model())
            self._checked = held
        if self._loading.settle():
            self._agreed = False
        reapply(list(self._state.masked))

    @torch.no_grad()
    def mask_gradients(self, rules: Sequence[Rule], scale: Tensor | None) -> None:
        """Zero the gradients outside the masks, after a copy of the dense ones for rules that score by them.

        Args:
            rules: that act at this step.
            scale: what the gradients are multiplied by, if a scaler has left that in them.
        """
        keep_dense = self._plan.momentum is not None or any(rule.dense_gradient for rule in rules)
        masked = list(self._state.masked)
        gradients = [w.weight.grad for w in masked]
        if keep_dense:
            for w, grad in zip(masked, gradients, strict=True):
                if grad is not None:
                    self._copy_dense(w, grad, scale)
        zero_outside(masked, gradients)
        if rules and keep_dense:
            self._unusable.found |= forget_unusable(masked)

    def _copy_dense(self, w: MaskedWeight, grad: Tensor, scale: Tensor | None) -> None:
        # It may have been copied before it was clipped. A masked gradient is zero outside; one that is not is new.
        if self._copied.get(w.name) is not grad or (local_tensor(grad) * ~local_tensor(w.mask)).any():
            w.dense_grad = grad.clone() if scale is None else grad / scale
            self._copied[w.name] = grad

    def _with_pull(self) -> LentGradients:
        """Let the optimizer have the plan's pull in its gradients, if there is one."""
        pull = self._plan.pull
        return (
            LentGradients()
            if pull is None
            else pull.lend(self._state, self._base, getattr(self._base, "grad_scale", None))
        )

    def _average_gradients(self) -> None:
        if self._plan.momentum is not None:
            for w in self._state.masks:
                w.average(self._plan.momentum)

    def _update(self, rules: Sequence[Rule]) -> None:
        """Let due rules act, one after the other."""
        state = self._state
        state.masks.seed_generators(state.steps_taken)
        if not state.explored:
            state.explore()
        for rule in rules:
            if len(state.masks.trained()):
                state.update(rule(state.gathered(), state.steps_taken), self._base)
            state.explore()
        state.share_masks(self._optimizer)

    def _check_agreement(self, updated: bool) -> None:
        model = self._model()
        if self._group is None and not self._agreed and model is not None:
            self._group = process_group_around(model)
        if self._group is not None and (updated or not self._agreed):
            check_agreement(self._state.masks, self._group, self._state.steps_taken)
        self._agreed = True


def sparse_step_of(optimizer: Optimizer) -> SparseStep | None:
    """Return the step of sparse training that an innermost optimizer's hooks take; None if it takes none."""
    owners = (getattr(hook, "__self__", None) for hook in optimizer._optimizer_step_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, SparseStep)), None)


def check_not_replaced(masks: Masks, trained: Sequence[nn.Parameter], model: nn.Module | None) -> None:
    """Raise InputError for a masked weight in whose place model and optimizer have another, which would fill."""
    if model is None:
        return
    known = {id(p) for p in trained} | {id(p) for p in model.parameters()}
    if gone := [w.name for w in masks if id(w.weight) not in known]:
        raise InputError(
            f"'{gone[0]}' was replaced in the model and in the optimizer after it was made sparse, as sharding does (fully_shard,"
            " Accelerate's prepare with FSDP), so that nothing would keep its zeros: call sparsify after that"
        )


def _scaler_skips(base: Optimizer) -> bool:
    """True if a gradient scaler hands its verdict to a fused optimizer, which then does nothing on its own."""
    found_inf = getattr(base, "found_inf", None)
    return found_inf is not None and bool(found_inf.item())


def _is_pretended(base: Optimizer) -> bool:
    """True for the step of no length that torch.distributed.checkpoint takes to make an optimizer's state."""
    if base.state or any(group["lr"] != 0 for group in base.param_groups):
        return False
    gradients = [p.grad for group in base.param_groups for p in group["params"] if p.grad is not None]
    return not any(bool((local_tensor(g) != 0).any()) for g in gradients)

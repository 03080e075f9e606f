"""Checks of who takes steps, and of schedulers."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from flatsparse.common.distributed import local_tensor
from flatsparse.diagnosis.finding import users_line
from flatsparse.diagnosis.loop.events import Call, EventCheck
from flatsparse.diagnosis.objects.elsewhere import is_elsewhere, scheduled_elsewhere
from flatsparse.diagnosis.objects.masks import rounds_left
from flatsparse.diagnosis.objects.optimizers import base_was_stepped
from flatsparse.diagnosis.subject import unwrapped
from flatsparse.sparse.plan import due_steps

MANY = 3  # steps of another optimizer, after which it is no warm-up
PATIENCE = 2  # what a loop may do once, such as its first step, it does not do twice in a row


class BaseStepped(EventCheck):
    """A base that is stepped by the loop itself."""

    _inside = False

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        if self.is_own(optimizer):
            self._inside = True
        elif optimizer is self.subject.base and not self._inside:
            self._report(base_was_stepped(type(self.subject.optimizer).__name__, users_line()))

    def after_step(self, optimizer: Optimizer) -> None:
        if self.is_own(optimizer):
            self._inside = False


class AnotherOptimizer(EventCheck):
    """Another optimizer that steps the same parameters, in between or in the place of the subject's."""

    _began, _between, _strange = False, "", 0

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        if self.is_own(optimizer):
            if self._between:
                self.report(
                    "two-optimizers",
                    "another optimizer steps parameters of this one in between, without its masks and its perturbation",
                    "give each parameter to one optimizer",
                    self._between,
                )
            self._began = True
        elif all(optimizer is not o for o in self.subject.optimizers) and self._shares(optimizer):
            self._strange += 1
            if self._began:
                self._between = users_line() or "?"
            elif self._strange == MANY:
                self.report(
                    "another-optimizer-stepped",
                    f"the loop steps another {type(optimizer).__name__} with the same parameters, and never the optimizer that"
                    " keeps the masks or the perturbation",
                    "step the optimizer that sparsify, S2SAM or SAM was given",
                )

    def _shares(self, optimizer: Optimizer) -> bool:
        held = {id(p) for p in self.subject.parameters}
        return any(id(p) in held for group in optimizer.param_groups for p in group["params"])


class SchedulerElsewhere(EventCheck):
    """A scheduler of an optimizer that never steps."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._stepped: set[int] = set()

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        self._stepped.add(id(optimizer))

    def scheduled(self, scheduler: Any) -> None:
        if id(self.subject.optimizer) not in self._stepped or getattr(scheduler, "_step_count", 2) <= 1:
            return
        if is_elsewhere(scheduler, self.subject) and id(unwrapped(scheduler.optimizer)) not in self._stepped:
            self._report(scheduled_elsewhere(scheduler, users_line()))


class NoGradient(EventCheck):
    """Steps without any gradient."""

    _times = 0

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        if optimizer is not self.subject.base or closure:
            return
        gradients = [local_tensor(p.grad) for p in self.subject.parameters if p.grad is not None]
        there = any(g.layout != torch.strided or bool(g.ne(0).any()) for g in gradients)
        self._times = 0 if there else self._times + 1
        if self._times == PATIENCE:
            self.report(
                "no-gradient",
                f"{PATIENCE} steps in a row had no gradient, so that nothing is trained",
                "call zero_grad() before the backward or after the step, not between, and make the loss of the model that the"
                " optimizer holds",
            )


class TrainedInEvalMode(EventCheck):
    """A loop that trains a model in evaluation mode, whose forwards S²-SAM leaves at w."""

    _trained, _evaluated, _times = False, False, 0

    def before_call(self, call: Call) -> None:
        self._trained |= call.trains
        self._evaluated |= call.records and not call.trains

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        if not self.is_own(optimizer) or closure or self.subject.s2sam is None:
            return
        perturbed_by_hand = self.subject.s2sam.perturbation.was_applied
        missed = self._evaluated and not self._trained and not perturbed_by_hand
        self._times = self._times + 1 if missed else 0
        if self._times == PATIENCE:
            self.report(
                "trained-in-eval-mode",
                "the model is in evaluation mode in its training steps, where S²-SAM perturbs nothing",
                "call model.train() after each evaluation; to freeze batch norms alone, call eval() on them",
            )
        self._trained = self._evaluated = False


class ScheduleUnfinished(EventCheck):
    """A script that ends long before the steps that ``sparsify`` was told."""

    def ended(self) -> None:
        state, plan = self.subject.state, self.subject.plan
        if state is None or plan is None or state.steps is None or not state.steps_taken:
            return
        if plan.rounds is not None and state.round + 1 < plan.rounds.count:
            self._report(rounds_left(state.steps_taken, state.round, plan.rounds.count, self.subject.made_at))
        if state.steps_taken < 0.75 * state.steps and due_steps(plan.rules, state.steps, state.steps_taken).count(
            state.steps_taken, state.steps
        ):
            self.report(
                "schedule-unfinished",
                f"the run ended after {state.steps_taken} optimizer steps, and sparsify was told steps={state.steps}, so that"
                " its schedule never ended",
                "give sparsify the number of optimizer steps: with accumulation, fewer than there are batches",
                self.subject.made_at,
            )

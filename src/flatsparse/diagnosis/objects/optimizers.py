"""Checks of the optimizer: its parameters, its state, and what it has warned of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.common.distributed import local_tensor
from flatsparse.diagnosis.finding import Finding, from_message
from flatsparse.diagnosis.subject import Subject
from flatsparse.sam.state_entry import PERTURBED
from flatsparse.sparse.optimizer_state import CODES, ELEMENTWISE, beginning, correction, groups_by_parameter
from flatsparse.sparse.rules import PruneTo

NEGLIGIBLE = 1e-3  # state outside the masks, against the largest: Adamax leaves its eps there


def other_model(subject: Subject) -> Iterator[Finding]:
    """An optimizer, or a SAM, of another model, or of parameters that the model no longer has."""
    if subject.model is None:
        return
    own = list(subject.model.parameters())
    known, held = {id(p) for p in own}, {id(p) for p in subject.parameters}
    strange = [p for p in subject.parameters if id(p) not in known]
    left_out = [p for p in own if p.requires_grad and id(p) not in held]
    if strange and not known & held:
        yield Finding(
            "optimizer-of-another-model",
            "the optimizer holds none of the model's parameters, so that its steps never change this model",
            "make the optimizer of the parameters of the model that the loop calls, not of one that was copied or sharded since",
        )
    elif strange and left_out:
        yield Finding(
            "parameters-replaced",
            f"{len(strange)} parameters of the optimizer (one of shape {tuple(strange[0].shape)}) are not the model's, and"
            f" {len(left_out)} of the model's (one of shape {tuple(left_out[0].shape)}) are not the optimizer's",
            "replace layers first, and make the optimizer and call sparsify after that",
        )
    elif subject.sharpness is not None and (followed := list(subject.sharpness.followed)):
        parts = set(subject.model.modules())
        if not any(f in parts or subject.model in set(f.modules()) for f in followed):
            yield Finding(
                "follows-another-model",
                f"{type(subject.sharpness).__name__} follows another model than the one given, whose forwards are not perturbed",
                "call optimizer.follow(model) with the model that the loop calls",
            )


def base_stepped(subject: Subject) -> Iterator[Finding]:
    """A base that was stepped in place of its wrapper, as its state shows."""
    s2sam = subject.s2sam
    if s2sam is None or s2sam.checks.steps or s2sam.perturbation.weights.kept():
        return
    began = any(entry for entry in subject.base.state.values()) or bool(subject.state and subject.state.steps_taken)
    if began and any(s2sam.radius.of(group) for group in s2sam.param_groups):
        yield base_was_stepped(type(s2sam).__name__)


def base_was_stepped(wrapper: str, where: str = "") -> Finding:
    """The finding of a loop that steps the base."""
    return Finding(
        "base-stepped",
        f"the loop calls step() of the base optimizer, not that of {wrapper}, so that nothing is ever perturbed",
        f"call step() of the {wrapper} itself, and give it, not its base, to schedulers, scalers and trainers",
        where,
    )


def _grows(subject: Subject) -> bool:
    return subject.plan is not None and any(not isinstance(rule, PruneTo) for rule in subject.plan.rules)


def state_outside_masks(subject: Subject) -> Iterator[Finding]:
    """State of pruned weights that is not what a new optimizer would have."""
    base, groups = subject.base, groups_by_parameter(subject.base)
    if type(base) not in ELEMENTWISE or subject.state is None or not subject.state.steps_taken:
        return
    masked_too = subject.sharpness is None or subject.sharpness.mask_perturbation
    for w in subject.zeroed:
        for key, value in base.state.get(w.weight, {}).items():
            if not isinstance(value, Tensor) or value.shape != w.weight.shape or not value.is_floating_point():
                continue
            if key == PERTURBED and not masked_too:
                continue
            values = local_tensor(value).float() - beginning(key, base, groups.get(w.weight, {}))
            outside = values[~local_tensor(w.mask).to(values.device)].abs()
            if outside.numel() and float(outside.max()) > NEGLIGIBLE * float(values.abs().max()):
                yield Finding(
                    "state-outside-masks",
                    f"{type(base).__name__} keeps '{key}' of pruned weights of '{w.name}', with which they would begin when they"
                    " grow",
                    "leave the optimizer's state to its steps and to load_state_dict, after sparsify",
                )
                return


def state_of_rows(subject: Subject) -> Iterator[Finding]:
    """State that is not kept entry by entry, so that a grown weight begins with its neighbours'."""
    if not _grows(subject):
        return
    for w in subject.masked:
        entry = subject.base.state.get(w.weight, {})
        if any(codes in entry for codes in CODES.values()):
            continue
        for key, value in entry.items():
            if key != PERTURBED and isinstance(value, Tensor) and value.numel() > 1 and value.shape != w.weight.shape:
                yield Finding(
                    "state-of-rows",
                    f"{type(subject.base).__name__} keeps '{key}' of shape {tuple(value.shape)} for '{w.name}' of shape"
                    f" {tuple(w.weight.shape)}, so a weight that grows begins with the state of its neighbours",
                    "use an optimizer with a number for each weight, such as AdamW or SGD, or a method whose masks do not grow",
                )
                return


def state_begins_otherwise(subject: Subject) -> Iterator[Finding]:
    """State of an optimizer of one's own that does not begin as 0, which is what grown weights get."""
    base = subject.base
    if not _grows(subject) or type(base) in ELEMENTWISE or not base.state:
        return
    for key, value in _new_state(base).items():
        if isinstance(value, Tensor) and value.shape == (2, 2) and bool(value.ne(0).any()):
            yield Finding(
                "state-begins-otherwise",
                f"{type(base).__name__} begins '{key}' as {float(value.flatten()[0]):.3g}, and a weight that grows gets 0",
                "use an optimizer whose state begins as 0, such as AdamW or SGD, or a method whose masks do not grow",
            )
            return


def _new_state(base: Optimizer) -> dict[str, Any]:
    """Return what a new optimizer of a kind keeps of a zero weight after a zero gradient; nothing where it cannot be made."""
    p = nn.Parameter(torch.zeros(2, 2))
    p.grad = torch.zeros(2, 2)
    try:
        new: Optimizer = type(base)([p], **base.defaults)
        new.step()
    except Exception:  # whatever its constructor wants
        return {}
    return dict(new.state.get(p, {}))


def state_not_fresh(subject: Subject) -> Iterator[Finding]:
    """Adam and its kin, whose first steps of grown weights are too long when nothing corrects them."""
    if not _grows(subject) or subject.state is None or subject.state.grown is not None:
        return
    base, groups = subject.base, groups_by_parameter(subject.base)
    for w in subject.state.masks:
        if correction(base, groups.get(w.weight, {}), base.state.get(w.weight, {}), 1.0) is not None:
            yield Finding(
                "state-not-fresh",
                f"with fresh_state=False a weight that grows under {type(base).__name__} takes first steps that are several"
                " times too long, because the optimizer corrects its averages by the age of the whole tensor",
                "leave fresh_state=False out, unless published code is to be repeated",
            )
            return


def warned(subject: Subject) -> Iterator[Finding]:
    """All that the optimizer has warned of so far."""
    if subject.sharpness is not None:
        for topic, message in subject.sharpness.warn.given.items():
            yield from_message(topic, message)

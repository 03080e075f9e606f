"""Checks of what other objects hold: memory of the weights, averages of them, and schedulers of other optimizers."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from flatsparse.common.names import plain_names
from flatsparse.common.tensors import shared_storage
from flatsparse.diagnosis.finding import Finding
from flatsparse.diagnosis.subject import Subject, unwrapped
from flatsparse.sam.addresses import address_holder
from flatsparse.sparse.masked_weight import MaskedWeight

ALIKE = 0.5  # the cosine of a model's weights and an average of them is more than that of two models' weights


def shared_memory(subject: Subject) -> Iterator[Finding]:
    """Two parameters on the same memory."""
    if subject.model is None:
        return
    for one, other in shared_storage(subject.model.named_parameters()):
        yield Finding(
            "shared-memory",
            f"'{one}' and '{other}' are two parameters on the same memory, so that the mask and the perturbation of one are"
            " undone by the other",
            "tie them as one (b.weight = a.weight, not b.weight.data = a.weight.data), or clone one of them",
        )
        return


def address_held(subject: Subject) -> Iterator[Finding]:
    """A module that keeps the address of a weight, whose storage SAM and S²-SAM exchange."""
    sharpness = subject.sharpness
    if subject.model is None or sharpness is None or sharpness.in_place:
        return
    with subject.true_weights():
        holder = address_holder(subject.model, subject.parameters)
    if holder is not None:
        yield Finding(
            "address-held",
            f"{holder} keeps the address of a parameter's storage, which is exchanged when weights are perturbed, so it sees"
            " no perturbation",
            f"give {type(sharpness).__name__} in_place=True",
        )


def other_objects(subject: Subject) -> Iterator[Finding]:
    """Averages of the weights, and schedulers, that are anywhere in this process."""
    if _living():
        gc.collect()  # so that those of earlier runs are gone
    averages = [thing for thing in _living() if isinstance(thing, AveragedModel) and int(thing.n_averaged)]
    for average in averages:
        pairs = pairs_of(average, subject)
        if pairs and _are_alike(pairs) and (outside := entries_outside(pairs)):
            yield outside_finding(outside)
            break
    for thing in _living():
        if isinstance(thing, LRScheduler) and is_elsewhere(thing, subject):
            stepped: Any = getattr(thing.optimizer, "_opt_called", False)
            if thing._step_count > 1 and not stepped and subject.base.state:
                yield scheduled_elsewhere(thing)
                break


def _living() -> list[Any]:
    """The averages and schedulers of this process."""
    return [thing for thing in gc.get_objects() if issubclass(type(thing), (AveragedModel, LRScheduler))]


def pairs_of(average: AveragedModel, subject: Subject) -> list[tuple[MaskedWeight, Tensor]]:
    """Return the masked weights with their averages, by name and shape."""
    named = {name: p.detach() for name, p in average.module.named_parameters()}
    averages = dict(zip(plain_names(list(named)), named.values(), strict=True))
    pairs = [(w, averages[w.name]) for w in subject.zeroed if w.name in averages]
    return [(w, average) for w, average in pairs if average.shape == w.mask.shape]


def entries_outside(pairs: Iterable[tuple[MaskedWeight, Tensor]]) -> int:
    """Return the number of entries of averages that are not 0 outside their weights' masks."""
    return sum(int((average.ne(0) & ~w.mask.to(average.device)).sum()) for w, average in pairs)


def outside_finding(count: int, where: str = "") -> Finding:
    """The finding of an average with entries outside the masks."""
    return Finding(
        "average-outside-masks",
        f"an average of the weights has {count} entries outside the masks, from masks of earlier steps, so what is evaluated and"
        " saved of it is denser than the model",
        "call training.zero_outside(average) after each of its updates",
        where,
    )


def _are_alike(pairs: Sequence[tuple[MaskedWeight, Tensor]]) -> bool:
    """Return whether averages are near the weights."""
    own = torch.cat([w.weight.detach().reshape(-1).double().cpu() for w, _ in pairs])
    other = torch.cat([average.reshape(-1).double().cpu() for _, average in pairs])
    return float(torch.cosine_similarity(own, other, dim=0)) > ALIKE


def is_elsewhere(scheduler: Any, subject: Subject) -> bool:
    """Return whether a scheduler is of an optimizer that is none of a subject's and has its parameters, or copies of them."""
    optimizer = unwrapped(getattr(scheduler, "optimizer", None))
    if not isinstance(optimizer, torch.optim.Optimizer) or any(optimizer is o for o in subject.optimizers):
        return False
    own, theirs = subject.parameters, [p for group in optimizer.param_groups for p in group["params"]]
    return not {id(p) for p in own}.isdisjoint(map(id, theirs)) or [p.shape for p in own] == [p.shape for p in theirs]


def scheduled_elsewhere(scheduler: Any, where: str = "") -> Finding:
    """The finding of a scheduler of another optimizer."""
    return Finding(
        "scheduler-elsewhere",
        f"the {type(scheduler).__name__} changes the learning rate of another {type(scheduler.optimizer).__name__}, which never"
        " steps, and not of the optimizer that does",
        "make the scheduler of the optimizer whose step() the loop calls; S2SAM and SAM share their groups with their base",
        where,
    )

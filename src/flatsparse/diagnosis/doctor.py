"""``doctor``: what is wrong with the objects of a training loop as they are now."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn
from torch.optim import Optimizer

from flatsparse.diagnosis.finding import Finding
from flatsparse.diagnosis.objects import elsewhere, masks, optimizers
from flatsparse.diagnosis.subject import Subject
from flatsparse.sparse.training import SparseTraining

# A new check of objects is a function, here.
CHECKS: tuple[Callable[[Subject], Iterator[Finding]], ...] = (
    masks.weights_revived,
    masks.masks_written,
    masks.masks_out_of_step,
    masks.masks_of_replaced_weights,
    masks.masks_on_another_optimizer,
    masks.perturbation_unmasked,
    masks.steps_exceeded,
    masks.rules_never_due,
    optimizers.other_model,
    optimizers.base_stepped,
    optimizers.state_outside_masks,
    optimizers.state_of_rows,
    optimizers.state_not_fresh,
    optimizers.state_begins_otherwise,
    optimizers.warned,
    elsewhere.shared_memory,
    elsewhere.address_held,
)


def examined(subject: Subject) -> Iterator[Finding]:
    """What the checks find, without a search for objects that nobody has given."""
    for check in CHECKS:
        yield from check(subject)


def doctor(model: nn.Module, optimizer: Optimizer, training: SparseTraining | None = None) -> list[Finding]:
    """Return what is wrong with a training loop, as far as its model, its optimizer and its masks show it now.

    Ours, because most of these mistakes are silent. Nothing is changed. The order in which a loop calls things is not in its
    objects: ``watching`` looks at that, for some steps.

    Args:
        model: the one that the loop calls.
        optimizer: the one whose ``step`` the loop calls.
        training: what ``sparsify`` gave, if it was called.

    Returns: findings, each with ``name``, ``what`` and ``cure``; none for a loop in which nothing is wrong.
    Raises: InputError for objects of other kinds.

    >>> import flatsparse as fs, torch
    >>> model = torch.nn.Linear(20, 10)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> training = fs.sparsify(model, optimizer, "static", sparsity=0.9, steps=100)
    >>> fs.doctor(model, optimizer, training)
    []
    >>> _ = torch.nn.init.ones_(model.weight)  # after sparsify
    >>> [finding.name for finding in fs.doctor(model, optimizer, training)]
    ['weights-revived']
    """
    subject = Subject.of(model, optimizer, training)
    return [*examined(subject), *elsewhere.other_objects(subject)]

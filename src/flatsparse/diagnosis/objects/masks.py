"""Checks of masks and of the weights that they belong to, as they are."""

from __future__ import annotations

from collections.abc import Iterator

from flatsparse.common.distributed import full_tensor, local_tensor
from flatsparse.diagnosis.finding import Finding
from flatsparse.diagnosis.subject import Subject
from flatsparse.sparse.plan import due, due_steps
from flatsparse.sparse.step import sparse_step_of

EMPTY = 0.5  # a larger share of active weights that are 0 is no accident
SPARE = 1.05  # loops round their number of steps up and down


def weights_revived(subject: Subject) -> Iterator[Finding]:
    """Weights outside the masks that are not 0."""
    counts: dict[str, int] = {}
    with subject.true_weights():
        for w in subject.zeroed:
            weight = local_tensor(w.weight.detach())
            mask = local_tensor(w.mask).to(weight.device)
            if weight.shape == mask.shape and (count := int((weight.ne(0) & ~mask).sum())):
                counts[w.name] = count
    if counts:
        most = max(counts, key=lambda name: counts[name])
        yield Finding(
            "weights-revived",
            f"{sum(counts.values())} weights outside the masks are not 0 ({counts[most]} of them in '{most}'), so something"
            " other than the optimizer's step writes to them",
            "write weights before optimizer.step(), which zeroes them again, or multiply what is written by training.masks",
        )


def masks_written(subject: Subject) -> Iterator[Finding]:
    """Masks whose content is not what was set."""
    for w in subject.masked:
        if int(full_tensor(w.mask.sum())) != w.active:
            yield Finding(
                "masks-written",
                f"the mask of '{w.name}' was written to in place, and no longer is what the training counts and saves",
                "leave training.masks as they are, and give masks of your own to sparsify as masks=",
            )
            return


def masks_out_of_step(subject: Subject) -> Iterator[Finding]:
    """Masks of another moment than the weights: most of what they call active is 0."""
    state, plan = subject.state, subject.plan
    if (
        state is None or plan is None or not state.steps_taken or due(plan, state.steps_taken)
    ):  # what has just grown is 0
        return
    with subject.true_weights():
        weights = [w for w in subject.masked if w.weight.requires_grad and w.weight.ndim == w.mask.ndim]
        active = sum(w.active for w in weights)
        zero = active - sum(int((full_tensor(w.weight.detach()).ne(0)).sum()) for w in weights)
    if active and zero > EMPTY * active:
        yield out_of_step(zero, active)


def out_of_step(zero: int, active: int, where: str = "") -> Finding:
    """The finding of masks that are not those of their weights."""
    return Finding(
        "masks-out-of-step",
        f"{zero} of {active} weights that the masks call active are 0, as when masks are loaded without the weights that they"
        " belong to",
        "save and load model, optimizer and training together, from one moment",
        where,
    )


def masks_of_replaced_weights(subject: Subject) -> Iterator[Finding]:
    """Masked weights that the model no longer has."""
    if subject.model is None or subject.state is None:
        return
    own = {id(p) for p in subject.model.parameters()}
    masked = list(subject.state.masked)
    gone = [w.name for w in masked if id(w.weight) not in own]
    if gone and len(gone) < len(masked):  # all of them: another model, see ``optimizers.other_model``
        yield Finding(
            "masked-weights-replaced",
            f"'{gone[0]}' is masked, but the model has another parameter in its place, which no mask keeps sparse",
            "replace layers first, then make the optimizer, then call sparsify",
        )


def masks_on_another_optimizer(subject: Subject) -> Iterator[Finding]:
    """Masks that another optimizer than the one of the loop keeps."""
    training, step = subject.training, subject.step
    if training is None or not training.is_attached or (step is not None and step.state is training.state):
        return
    yield Finding(
        "masks-on-another-optimizer",
        "sparsify was called with another optimizer than this one, whose steps therefore neither mask nor count",
        "give sparsify the optimizer whose step() the loop calls",
    )


def perturbation_unmasked(subject: Subject) -> Iterator[Finding]:
    """A SAM or S²-SAM that was made after ``sparsify`` and knows no masks."""
    sharpness = subject.sharpness
    if sharpness is None or not sharpness.mask_perturbation or sparse_step_of(subject.base) is None:
        return
    if not sharpness.perturbation.masks:
        name = type(sharpness).__name__
        yield Finding(
            "perturbation-unmasked",
            f"{name} was made around an optimizer that trains sparsely already, so it perturbs pruned weights too, and follows"
            " no model by itself",
            f"make {name} first, and give it to sparsify",
        )


def steps_exceeded(subject: Subject) -> Iterator[Finding]:
    """More steps than ``sparsify`` was told."""
    state, plan = subject.state, subject.plan
    if state is None or plan is None or state.steps is None:
        return
    allowed = state.steps * (state.round + 1)
    if state.steps_taken <= allowed * SPARE + 1 or not (plan.rules or plan.rounds):
        return
    if plan.rounds is not None and state.round + 1 < plan.rounds.count:
        yield rounds_left(state.steps_taken, state.round, plan.rounds.count)
    else:
        yield Finding(
            "steps-exceeded",
            f"{state.steps_taken} optimizer steps were taken, and sparsify was told steps={state.steps}, so that its schedule"
            " ended too early",
            "give sparsify the number of optimizer steps of the whole run, epochs times steps per epoch",
        )


def rounds_left(steps: int, number: int, count: int, where: str = "") -> Finding:
    """The finding of rounds that were not taken."""
    return Finding(
        "rounds-never-begun",
        f"after {steps} steps the method is in round {number + 1} of {count}, and prunes nothing more until the next begins",
        "write the loop inside: for round in fs.rounds(training)",
        where,
    )


def rules_never_due(subject: Subject) -> Iterator[Finding]:
    """Rules that act at no step of the run."""
    state, plan = subject.state, subject.plan
    if state is None or plan is None or not plan.rules or state.steps is None:
        return
    if due_steps(plan.rules, state.steps).count(0, state.steps) == 0:
        yield Finding(
            "rules-never-due",
            f"no rule of the method acts in any of the {state.steps} steps, so that the masks never change",
            "give a shorter every= or a later until=, or the steps= that the run really has",
        )

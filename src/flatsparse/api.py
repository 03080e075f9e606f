"""The library's entry points: ``sparsify``, which makes a model sparse, and ``rounds``."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.acceleration.modules import SAVED_AS
from flatsparse.common.distributed import full_tensor
from flatsparse.common.errors import InputError, check_count, unknown
from flatsparse.common.optimizers import check_dense, check_hooks, innermost, mask_aware, unprepared
from flatsparse.graph.groups import unwrapped
from flatsparse.methods import DEFAULT, as_method, name_of, sparsity_for
from flatsparse.methods.presets import left_dense_by
from flatsparse.sparse.distributions import check_budget
from flatsparse.sparse.grown_weights import GrownWeights
from flatsparse.sparse.import_masks import fitting
from flatsparse.sparse.layers import LayerSelector, prunable
from flatsparse.sparse.masks import Masks
from flatsparse.sparse.plan import Method, Plan
from flatsparse.sparse.state import FROZEN, ZERO, Outside, TrainingState
from flatsparse.sparse.step import sparse_step_of
from flatsparse.sparse.training import SparseTraining


def sparsify(
    model: nn.Module,
    optimizer: Optimizer,
    method: str | Method = DEFAULT,
    *,
    sparsity: float | None = None,
    steps: int,
    seed: int = 0,
    include: Sequence[LayerSelector] = (),
    exclude: Sequence[LayerSelector] = (),
    layers: str = "all",
    masks: Mapping[str, Tensor] | None = None,
    fresh_state: bool = True,
    outside: Outside = ZERO,
    **options: Any,
) -> SparseTraining:
    """Make a model sparse now and keep it so through every step of the optimizer.

    Args:
        model: any module. Sparse are the matrices of its linear, convolutional, recurrent and attention layers that
            the optimizer holds.
        optimizer: any ``torch.optim`` optimizer, or a wrapper with a ``base``. ``S2SAM`` and
            ``SAM`` then follow the model automatically. It may have been prepared by Accelerate, or be so later.
        method: a name in ``METHODS``, or a method object such as ``flatsparse.methods.RigL(every=50)``.
        sparsity: the fraction of the prunable weights to set to zero, in [0, 1). Leave it out with ``masks``, and for a
            method that takes ``channels=`` instead, the fraction of channels to remove.
        steps: the number of optimizer steps of the run, or of each round of a method that has rounds (see ``rounds``).
        seed: of all random choices; the same in all processes of a run.
        include, exclude: choose layers by shell patterns of their names, such as ``"layer1.*"``, or by kind, such as
            ``nn.Conv2d`` or ``"Conv2d"``.
        layers: a name in ``flatsparse.methods.presets.PRESETS``, which leaves dense what a paper does; ``"all"`` nothing.
        masks: to start from in place of the method's own, bool tensors by parameter name, such as ``masks_from`` gives;
            they fix the layers and their sparsity. ``"static"`` keeps them, so that a pruned model stays sparse.
        fresh_state: let a weight that grows take steps as under a new optimizer. Adam and its kin correct their averages by one
            step count for the whole tensor, so its first steps would otherwise be several times too long; ``False`` is the
            behaviour of published code.
        outside: what weights are outside the masks. ``"zero"``; or ``"frozen"``, what they are now, bit for bit, so that only
            the masks' own are trained (sparse fine-tuning, ours; ``flatsparse.export.save_delta`` writes the change). For
            methods that neither prune nor rewind. Where masks move, what leaves keeps the value that it has then, and what
            enters starts from its own. It costs a copy of the weights during each step.
        options: override a named method's own, such as ``every=``, ``until=`` (a step, or a share of the steps) and
            ``drop_fraction=``.

    Returns: the training, with ``masks``, ``sparsity`` and ``report()``.
    Raises: InputError for a choice that cannot be met; the model is then unchanged.

    >>> import flatsparse as fs
    >>> model = torch.nn.Linear(20, 10)
    >>> training = fs.sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), "rigl", sparsity=0.9, steps=1000)
    >>> training.sparsity, int((model.weight != 0).sum())
    (0.9, 20)
    """
    steps, optimizer = check_count("steps", steps), unprepared(optimizer)
    if outside not in (ZERO, FROZEN):
        raise unknown("outside=", outside, (ZERO, FROZEN))
    _check_objects(model, optimizer)
    chosen = as_method(method, options)
    if not isinstance(masks, Mapping | None):
        raise InputError(
            f"masks= got {type(masks).__name__}, wanted bool tensors by name: give masks=flatsparse.masks_from({masks!r:.80})"
        )
    given = {} if masks is None else fitting(masks, model)
    if given:
        if sparsity is not None or include or exclude or layers != "all":
            raise InputError(
                "masks= already fixes the layers and their sparsity: leave out sparsity=, include=, exclude= and layers="
            )
        include = [glob.escape(name) for name in given]
    wanted = None if given else sparsity_for(chosen, sparsity)
    parameters = (p for group in innermost(optimizer).param_groups for p in group["params"])
    state = TrainingState(Masks.of(model, parameters, include, exclude, seed, left_dense_by(layers)), steps=steps)
    if wanted is None:
        if outside == ZERO:
            _check_left(given, state.masks, model)
        given = {w.name: given[w.name] for w in state.masks}
        wanted = 1 - sum(int(mask.sum()) for mask in given.values()) / state.masks.total
    plan = chosen.plan(float(wanted), steps)
    if given:
        _check_start(given, state.masks, wanted, plan, name_of(chosen))
    if outside == FROZEN:
        _check_moves_only(plan, name_of(chosen))
        state.freeze_outside(innermost(optimizer))
    initial = given or _initial_masks(plan, state, wanted, model, optimizer)
    _check_free(innermost(optimizer))
    for wrapper in mask_aware(optimizer):
        wrapper.follow(model)
    if fresh_state:
        state.grown = GrownWeights(innermost(optimizer))
    if plan.momentum is not None:
        state.masks.keep_momentum()
    return SparseTraining(model, state, optimizer, plan, name_of(chosen), initial, masks_given=bool(given))


def rounds(training: SparseTraining) -> Iterator[int]:
    """Yield the number of each round, from 0, the dense one; prune, rewind and reset the optimizer before each later one.

    Between rounds the smallest weights are pruned, the early weights are written back into the others, if the method rewinds,
    and the optimizer's state is cleared. Restart the learning-rate schedule in each round. A training that
    loads a state continues in the round it was saved in. A method without rounds has one.

    >>> import flatsparse as fs
    >>> model = torch.nn.Linear(20, 10)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> training = fs.sparsify(model, optimizer, "lth", sparsity=0.4, steps=100)
    >>> [(number, round(training.sparsity, 3)) for number in fs.rounds(training)]  # train 100 steps in each
    [(0, 0.0), (1, 0.2), (2, 0.36), (3, 0.4)]
    """
    yield training.round
    while training.round + 1 < training.rounds:
        training.next_round()
        yield training.round


def _initial_masks(
    plan: Plan, state: TrainingState, sparsity: float, model: nn.Module, optimizer: Optimizer
) -> dict[str, Tensor]:
    """Return the masks that a plan starts from, scored at the true weights."""
    check_budget(state.masks.budget(sparsity), state.masks.total, len(state.masks), plan.pattern.size)
    with contextlib.ExitStack() as stack:
        for wrapper in mask_aware(optimizer):
            stack.enter_context(wrapper.disabled())
        # Scores are each process's own, and need gradients of gradients that no compiler gives: without wrappers.
        state.channels = plan.channels(unwrapped(model), state.masks)
        return plan.initial_masks(state.gathered(), unwrapped(model))


def _check_objects(model: object, optimizer: Any) -> None:
    """Raise InputError unless these are a model and an optimizer that can train sparsely."""
    if not isinstance(model, nn.Module) or not isinstance(innermost(optimizer), Optimizer):
        raise InputError(
            f"sparsify got {type(model).__name__} and {type(optimizer).__name__}: give the model first, then its optimizer"
        )
    if any(SAVED_AS in module.__dict__ for module in model.modules()):
        raise InputError(
            "this model is accelerated for another training, which would keep its weights and gradients: call restore() on"
            " what accelerate gave, and accelerate again for the new training"
        )
    check_hooks(innermost(optimizer))
    check_dense(innermost(optimizer))


def _check_free(optimizer: Optimizer) -> None:
    """Raise InputError for an optimizer that trains sparsely already."""
    if sparse_step_of(optimizer) is not None:
        raise InputError(
            "this optimizer trains sparsely already: call detach() on what sparsify gave before, or make a new one"
        )


@torch.no_grad()
def _check_left(given: Mapping[str, Tensor], masked: Masks, model: nn.Module) -> None:
    """Raise InputError for a mask of a weight that is not trained and not zero outside it."""
    trained = {w.name for w in masked}
    for name, (p, _) in prunable(model).items():
        if name in given and name not in trained and bool((full_tensor(p).ne(0) & ~given[name].to(p.device)).any()):
            raise InputError(
                f"the optimizer does not train '{name}', which is not zero outside its mask: leave that mask out, or give"
                " the optimizer the weight"
            )


def _check_moves_only(plan: Plan, method: str) -> None:
    """Raise InputError for a plan that prunes or rewinds weights, which keep their values where they are frozen."""
    if plan.channel_pruning is not None or plan.rounds or any(rule.changes_counts for rule in plan.rules):
        raise InputError(
            f"method '{method}' prunes weights while it trains, and outside='frozen' prunes none: give a method whose"
            " number of active weights stays, such as static, snip or rigl"
        )


def _check_start(given: Mapping[str, Tensor], masked: Masks, sparsity: float, plan: Plan, method: str) -> None:
    """Raise InputError when a method cannot start from these masks."""
    if plan.channel_pruning is not None:
        raise InputError(f"method '{method}' chooses its own channels to start with: leave out masks=")
    if plan.sparsity != sparsity or plan.rounds:
        raise InputError(
            f"method '{method}' starts denser than it ends, not from masks=: give a method that starts at its sparsity"
        )
    for w in masked:
        if not plan.pattern.holds(given[w.name], w.name, w.inputs_first):
            raise InputError(
                f"the mask of '{w.name}' does not keep to {plan.pattern}: leave out pattern=, or give other masks"
            )
    if plan.rules and (held := [name for name in given if name.endswith("_orig")]):
        raise InputError(
            f"torch.nn.utils.prune still holds '{held[0]}' and hides its dense gradient: call prune.remove first"
        )

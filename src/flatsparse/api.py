"""Making a model sparse: what is asked is checked, masks are chosen, and a training begins."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.common.distributed import full_tensor
from flatsparse.common.errors import InputError, check_count
from flatsparse.common.optimizers import MaskAware, chain, check_dense, check_hooks, innermost
from flatsparse.graph.groups import unwrapped
from flatsparse.methods import as_method, name_of, sparsity_for
from flatsparse.sparse.distributions import check_budget
from flatsparse.sparse.import_masks import fitting
from flatsparse.sparse.layers import Pattern, prunable
from flatsparse.sparse.masks import Masks
from flatsparse.sparse.plan import Method, Plan
from flatsparse.sparse.training import SparseTraining


def sparsify(
    model: nn.Module,
    optimizer: Optimizer,
    method: str | Method = "rigl",
    *,
    sparsity: float | None = None,
    steps: int,
    seed: int = 0,
    include: Sequence[Pattern] = (),
    exclude: Sequence[Pattern] = (),
    layers: str = "all",
    masks: Mapping[str, Tensor] | None = None,
    fresh_state: bool = True,
    **options: Any,
) -> SparseTraining:
    """Make a model sparse now and keep it so through every step of the optimizer.

    Args:
        model: any module. Sparse are the matrices of its linear, convolutional, recurrent and attention layers that
            the optimizer holds.
        optimizer: any ``torch.optim`` optimizer, or a wrapper with a ``base``. ``S2SAM`` and
            ``SAM`` then follow the model by themselves.
        method: a name in ``METHODS``, or a method object such as ``flatsparse.methods.RigL(every=50)``.
        sparsity: the fraction of the prunable weights that shall be zero, in [0, 1); not given beside ``masks``, nor for
            ``chex``, which takes ``channels=``, the fraction of channels to remove.
        steps: how many optimizer steps the run has, or each round of a method that has rounds (see ``rounds``).
        seed: of everything random; all processes of a run give the same.
        include, exclude: choose layers by shell patterns of their names, such as ``"layer1.*"``, or by kind, such as
            ``nn.Conv2d`` or ``"Conv2d"``.
        layers: leave dense what a paper does: ``"rigl"`` the first convolution, ``"dsr"`` shortcuts too, ``"mest"`` the
            classifier too; ``"grasp"`` and ``"all"`` nothing.
        masks: to start from in place of the method's own, bool tensors by parameter name, such as ``masks_from`` gives;
            they stand for ``sparsity`` and the choice of layers. ``"static"`` keeps them, so that a pruned model stays sparse.
        fresh_state: let a weight that grows take steps as under a new optimizer. Adam and its kin correct their averages by one
            step count for the whole tensor, so its first steps would else be several times as long; ``False`` is the
            behaviour of published code.
        options: override a named method's own, such as ``every=``, ``until=`` (a step, or a share of the steps) and
            ``drop_fraction=``.

    Returns: the live part, with ``masks``, ``sparsity`` and ``report()``.
    Raises: InputError for a choice that cannot be honoured; the model is then as it was.

    >>> import flatsparse as fs
    >>> model = torch.nn.Linear(20, 10)
    >>> training = fs.sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), "rigl", sparsity=0.9, steps=1000)
    >>> training.sparsity, int((model.weight != 0).sum())
    (0.9, 20)
    """
    steps = check_count("steps", steps)
    if not isinstance(model, nn.Module) or not isinstance(innermost(optimizer), Optimizer):
        got = f"{type(model).__name__} and {type(optimizer).__name__}"
        raise InputError(f"sparsify got {got}: give the model first, then its optimizer")
    check_hooks(innermost(optimizer))
    check_dense(innermost(optimizer))
    chosen = as_method(method, options)
    given = {} if masks is None else fitting(masks, model)
    if given:
        if sparsity is not None or include or exclude or layers != "all":
            raise InputError(
                "masks= say themselves which layers are how sparse: leave out sparsity= and choices of layers"
            )
        include = [glob.escape(name) for name in given]
    else:
        sparsity = sparsity_for(chosen, sparsity)
    held = (p for group in innermost(optimizer).param_groups for p in group["params"])
    masked = Masks.of(model, held, include, exclude, seed, layers)
    if given:
        _check_left(given, masked, model)
        given = {w.name: given[w.name] for w in masked}
        sparsity = 1 - sum(int(mask.sum()) for mask in given.values()) / masked.total
    assert sparsity is not None
    plan = chosen.plan(float(sparsity), steps)
    if given and plan.thinning is not None:
        raise InputError(f"method '{name_of(chosen)}' chooses its own channels to start with: leave out masks=")
    if given:
        _check_start(given, masked, sparsity, plan, name_of(chosen))
        initial = given
    else:
        check_budget(masked.budget(sparsity), masked.total, len(masked))
        with contextlib.ExitStack() as stack:
            for wrapper in chain(optimizer):
                if isinstance(wrapper, MaskAware):
                    stack.enter_context(wrapper.disabled())  # scores are those of the true weights
            # Scores are each process's own, and need gradients of gradients that no compiler gives: without wrappers.
            initial = plan.initial_masks(masked.whole(), unwrapped(model))
    for hook in innermost(optimizer)._optimizer_step_pre_hooks.values():
        if isinstance(getattr(hook, "__self__", None), SparseTraining):
            raise InputError(
                "this optimizer trains sparsely already: call detach() on what sparsify gave before, or make a new one"
            )
    for wrapper in chain(optimizer):
        if isinstance(wrapper, MaskAware):
            wrapper.follow(model)
    return SparseTraining(model, masked, optimizer, plan, name_of(chosen), initial, fresh_state=fresh_state)


def rounds(training: SparseTraining) -> Iterator[int]:
    """The rounds of a training, from 0, the dense one; before each later one it prunes, rewinds and clears.

    Between rounds the smallest weights go, ``lth`` writes the early weights back into what is left (``lrr`` keeps
    them) and the optimizer forgets all its state. Start the learning-rate schedule anew in each round. Loaded into a
    training, a state goes on in the round it was saved in. A method without rounds has one.

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


@torch.no_grad()
def _check_left(given: Mapping[str, Tensor], masked: Masks, model: nn.Module) -> None:
    """Raises InputError when a mask is not true of a weight that is not trained, and so would never become true."""
    trained = {w.name for w in masked}
    for name, (p, _) in prunable(model).items():
        if name in given and name not in trained and bool((full_tensor(p).ne(0) & ~given[name].to(p.device)).any()):
            raise InputError(
                f"the optimizer does not train '{name}', which is not zero outside its mask: leave that mask out, or give"
                " the optimizer the weight"
            )


def _check_start(given: Mapping[str, Tensor], masked: Masks, sparsity: float, plan: Plan, method: str) -> None:
    """Raises InputError when a method cannot start from these masks."""
    if plan.sparsity != sparsity or plan.rounds:
        raise InputError(f"method '{method}' starts denser than it ends, not from masks=: give 'static', or 'rigl'")
    if plan.pattern is not None:
        for w in masked:
            mask = given[w.name]
            if not torch.equal(plan.pattern.keep(mask.float(), w.name, w.inputs_first), mask):
                pair = f"{plan.pattern.live}:{plan.pattern.of}"
                raise InputError(
                    f"the mask of '{w.name}' does not keep to {pair}: leave out pattern=, or give other masks"
                )
    if plan.rules and (held := [name for name in given if name.endswith("_orig")]):
        raise InputError(
            f"torch.nn.utils.prune still holds '{held[0]}' and hides its dense gradient: call prune.remove first"
        )

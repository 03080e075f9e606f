"""The base's step within that of S²-SAM, and the gradients that the next direction is made of: plain, unmasked, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from flatsparse.common.distributed import norm, squares_fit
from flatsparse.common.errors import InputError
from flatsparse.sam import kernel
from flatsparse.sam.perturb import TINY
from flatsparse.sam.perturbation import Perturbation, Tensors

BaseStep = Callable[[Perturbation], Tensors | None]


def base_step(*, masked: bool, compiled: bool) -> BaseStep:
    """Return how the base's step is taken."""
    if compiled:
        return compiled_step
    return masked_step if masked else unmasked_step


def masked_step(perturbation: Perturbation) -> Tensors:
    """Take the base's step. Returns the gradients as masks leave them, which act in its hooks."""
    perturbation.base.step()
    return perturbation.gradients()


def unmasked_step(perturbation: Perturbation) -> Tensors:
    """Take the base's step. Returns the gradients as they were before, each in the buffer that its u will have.

    The hooks of a base mask its gradients and all its state, so the buffers are out of the state meanwhile.
    """
    weights, dense = perturbation.weights, {}
    for p, g in perturbation.gradients().items():
        dense[p] = weights.buffer(p).copy_(g)
        weights.store.pop(p, None)
    perturbation.base.step()
    for p, u in dense.items():
        weights.store[p] = u
    return {**perturbation.gradients(), **dense}


def compiled_step(perturbation: Perturbation) -> Tensors | None:
    """Take SGD's step and make the perturbed weights along the gradients, in one compiled pass.

    Returns: None; or the gradients, when something was not as the pass needs it, or the step's hooks have set masks since.
    """
    perturbation.weights.invalidate()
    Optimizer.profile_hook_step(lambda base: _compiled_pass(base, perturbation))(perturbation.base)
    return None if perturbation.weights.are_new else perturbation.gradients()


def _compiled_pass(base: Any, perturbation: Perturbation) -> None:
    """Take the base's own step, between its hooks, and make the perturbed weights if all is as usual."""
    rows = []
    for group in base.param_groups:
        params = [p for p in group["params"] if p.grad is not None]
        momenta = [base.state[p].get("momentum_buffer") for p in params]
        rows.append(
            (group, params, [p.grad for p in params], momenta, [perturbation.weights.buffer(p) for p in params])
        )
    base._opt_called = True  # for a scheduler that asks whether the base has stepped
    usual = kernel.suits(base) and all(
        perturbation.radius.of(group) != 0
        and all(m is not None and kernel.takes(p, g, m, u) for p, g, m, u in zip(*row, strict=True))
        for group, *row in rows
    )
    if not usual:
        torch.optim.SGD.step.__wrapped__(base)  # type: ignore[attr-defined]  # without the hooks, which have run
        return
    length = sum(kernel.square(gradients) for _, _, gradients, _, _ in rows) ** 0.5
    if not squares_fit(length):
        length = float(norm([g for _, _, gradients, _, _ in rows for g in gradients]) or 0.0)
    for group, params, gradients, momenta, perturbed in rows:
        kernel.step(group, params, gradients, momenta, perturbed, perturbation.radius.of(group) / max(length, TINY))
    perturbation.weights.record(
        [(p, u, None) for _, params, *_, perturbed in rows for p, u in zip(params, perturbed, strict=True)]
    )


def check_kernel(base: Optimizer, *, plain: bool) -> None:
    """Raise InputError for a base or options that the compiled pass is not for, or where it cannot be built."""
    if not kernel.suits(base) or not plain:
        raise InputError(
            "kernel=True is for torch.optim.SGD with momentum, along the previous gradient on active weights: leave it out for"
            f" {type(base).__name__} or other options"
        )
    kernel.library()

"""The base's step within that of S²-SAM, and the gradients that the next direction is made of: plain, or unmasked."""

from __future__ import annotations

from flatsparse.sam.perturbation import Perturbation, Tensors


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

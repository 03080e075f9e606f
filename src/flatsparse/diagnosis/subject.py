"""The objects of one training loop, which the checks look at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.common.errors import InputError
from flatsparse.common.optimizers import chain, innermost
from flatsparse.sam.base import SharpnessAware
from flatsparse.sam.optimizers import S2SAM
from flatsparse.sparse.masked_weight import MaskedWeight
from flatsparse.sparse.plan import Plan
from flatsparse.sparse.state import TrainingState
from flatsparse.sparse.step import SparseStep, sparse_step_of
from flatsparse.sparse.training import SparseTraining


class Subject:
    """A model, its optimizer and its sparse training.

    Attributes:
        model: None while it is not known.
        optimizer: the outermost of the chain.
        training: what ``sparsify`` gave; None where it was not given.
        made_at: the line of the user's code that made it.
    """

    def __init__(
        self, model: nn.Module | None, optimizer: Optimizer, training: SparseTraining | None, made_at: str = ""
    ) -> None:
        self.model, self.optimizer, self.training, self.made_at = model, unwrapped(optimizer), training, made_at

    @classmethod
    def of(cls, model: Any, optimizer: Any, training: Any = None) -> Subject:
        """Return the subject of a user's objects. Raises InputError for other kinds of things."""
        inner = unwrapped(optimizer)
        if not isinstance(model, nn.Module) or not isinstance(inner, Optimizer):
            raise InputError(
                f"the doctor got {type(model).__name__} and {type(optimizer).__name__}: give the model first, then its optimizer"
            )
        if training is not None and not isinstance(training, SparseTraining):
            raise InputError(f"training is {type(training).__name__}: give what sparsify returned, or leave it out")
        return cls(model, inner, training)

    @property
    def base(self) -> Optimizer:
        """The optimizer under all wrappers."""
        return innermost(self.optimizer)

    @property
    def optimizers(self) -> list[Optimizer]:
        """All optimizers of the chain, the outermost first."""
        return list(chain(self.optimizer))

    @property
    def sharpness(self) -> SharpnessAware | None:
        """The SAM or S²-SAM of the chain, if there is one."""
        return next((o for o in self.optimizers if isinstance(o, SharpnessAware)), None)

    @property
    def s2sam(self) -> S2SAM | None:
        """The S²-SAM of the chain, if there is one."""
        return next((o for o in self.optimizers if isinstance(o, S2SAM)), None)

    @property
    def step(self) -> SparseStep | None:
        """The step of sparse training in the base's hooks, if there is one."""
        return sparse_step_of(self.base)

    @property
    def state(self) -> TrainingState | None:
        """The state of the sparse training, if there is one."""
        if self.training is not None:
            return self.training.state
        return None if self.step is None else self.step.state

    @property
    def plan(self) -> Plan | None:
        """The plan of the sparse training, if there is one."""
        if self.training is not None:
            return self.training.plan
        return None if self.step is None else self.step.plan

    @property
    def masked(self) -> list[MaskedWeight]:
        """All that is masked, but for weights that are packed, which have nothing outside their masks."""
        return [] if self.state is None else [w for w in self.state.masked if not w.is_packed]

    @property
    def zeroed(self) -> list[MaskedWeight]:
        """All that is masked and 0 outside its mask: not weights that are frozen there."""
        return [w for w in self.masked if not w.keeps_outside]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that the optimizer holds."""
        return [p for group in self.base.param_groups for p in group["params"]]

    @property
    def is_perturbed(self) -> bool:
        """True while the parameters hold w + e."""
        return any(getattr(o, "is_perturbed", False) for o in self.optimizers)

    @property
    def perturbed(self) -> dict[int, nn.Parameter]:
        """The parameters that hold w + e at this moment, by the address of what they hold."""
        sharpness = self.sharpness
        shown: list[nn.Parameter] = sharpness.perturbation.swapped if sharpness is not None else []
        return {address(p): p for p in shown}

    @contextlib.contextmanager
    def true_weights(self) -> Iterator[None]:
        """A context in which the parameters hold w, and after which they hold what they did before."""
        if self.sharpness is None or not self.is_perturbed:
            yield
        else:
            with self.sharpness.restored():
                yield


def unwrapped(optimizer: Any) -> Any:
    """Return the optimizer that a trainer's wrapper (``accelerator.prepare``) holds in its ``optimizer``."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def address(tensor: Tensor) -> int:
    """Return the address of a plain tensor's storage; 0 for one that has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0

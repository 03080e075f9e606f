"""An arm of a comparison: what a user's training function asks, so that its runs differ in sharpness awareness alone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from flatsparse.api import sparsify
from flatsparse.common.optimizers import innermost
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.run.method import with_method_options
from flatsparse.experiments.run.optimizer import sharpness_aware
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.scripts.cost import StepMeter
from flatsparse.methods import kind_of, traits_of
from flatsparse.sam.wrapper import check_base
from flatsparse.sparse.plan import Method
from flatsparse.sparse.training import SparseTraining

FIXED_BY_MASKS = ("sparsity", "layers", "include", "exclude")


class Arm:
    """One arm of a comparison, with one seed: a function ``train(arm)`` takes its optimizer and its masks from it.

    Attributes:
        name: the kind of sharpness awareness, such as ``"none"``, ``"sam"``, ``"s2sam"`` or ``"random"``.
        seed: torch, numpy and ``random`` are seeded with it before the function is called.
        rho: the radius ρ; 0 for ``"none"``.
        method, sparsity: of the sparse training, for code that does not call ``sparsify``.
        device: ``"cpu"`` or ``"cuda"``, as the comparison was asked.
        folder: a folder of this arm and seed alone, for whatever the function saves. What a killed run left is still there.
    """

    def __init__(self, requested: RunConfig, folder: Path) -> None:
        self._requested, self._run = requested, resolve(requested)
        self.name: str = requested.sharpness
        self.seed = requested.seed
        self.rho = 0.0 if requested.sharpness == "none" else requested.rho
        self.method: str = self._run.pruning.method
        self.sparsity: float = self._run.pruning.sparsity
        self.device: str = self._run.runtime.device
        self.folder = folder
        self.meters: dict[Optimizer, StepMeter] = {}
        self._gave, self._stepped = False, False

    def __repr__(self) -> str:
        return f"<Arm {self.name}, seed {self.seed}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Arm:
        return self  # also in a copy of a module that holds it

    def optimizer(self, base: Optimizer, **options: Any) -> Optimizer:
        """Return the arm's optimizer around a base: the base itself for ``"none"``, else SAM, S²-SAM or another around it.

        Args:
            base: an instance, such as ``torch.optim.SGD(model.parameters(), lr=0.1)``.
            options: of the wrapper, in place of the comparison's own, such as ``in_place=True``.

        Raises: InputError for a base or an option that the wrapper refuses.
        """
        check_base(base)
        optimizer = sharpness_aware(self._run, base, 0, **options)
        self._count(base)
        self._gave = True
        optimizer.register_step_post_hook(self._has_stepped)
        return optimizer

    def warn_of_plain_training(self) -> None:
        """Warn where the function has finished without a step of the arm's optimizer, so that it may not differ from plain."""
        if self.name == "none" or self._stepped:
            return
        if not self._gave:
            warnings.warn(
                "arm.optimizer was not called, so this is plain training unless the function makes its optimizer by arm.rho",
                stacklevel=2,
            )
        else:
            warnings.warn(
                "the optimizer that arm.optimizer returned took no step, so this is plain training", stacklevel=2
            )

    def _has_stepped(self, *_: Any) -> None:
        self._stepped = True

    def sparsify(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        method: str | Method | None = None,
        *,
        steps: int,
        **options: Any,
    ) -> SparseTraining:
        """Make a model sparse by the comparison's method, as ``flatsparse.sparsify`` does with the same arguments.

        Args:
            method: in place of the comparison's own, a name or an object.
            steps: the number of optimizer steps of the run, or of each round.
            options: in place of the comparison's own, such as ``sparsity=`` or ``every=``.

        Raises: InputError for what ``flatsparse.sparsify`` refuses.
        """
        if method is None or isinstance(method, str):
            method, own = self._method(method, steps, {"every", "masks"}.isdisjoint(options))
            if "masks" in options:
                own = {name: value for name, value in own.items() if name not in FIXED_BY_MASKS}
            options = {**own, **options}
        training = sparsify(model, optimizer, method, steps=steps, **{"seed": self.seed, **options})
        self._count(innermost(optimizer))
        return training

    def _method(self, name: str | None, steps: int, says_period: bool) -> tuple[str, dict[str, Any]]:
        """Return a method's name, and its options as the command line has them for a run of this length."""
        run = self._run if name is None else resolve(change(self._requested, method=name))
        resolved, options = with_method_options(run, steps)
        pruning, kind = resolved.pruning, kind_of(resolved.pruning.method)
        own = getattr(kind(), "every", None)
        if says_period and own is not None and self._requested.pruning.every is None and options["every"] != own:
            text = (
                f"masks are updated every {options['every']} steps, not {own}, so that {steps} steps have ten updates"
            )
            warnings.warn(text, stacklevel=3)
        choice = {"include": pruning.include, "exclude": pruning.exclude}
        chosen: dict[str, Any] = {name: patterns for name, patterns in choice.items() if patterns}
        if traits_of(kind).takes_sparsity:
            chosen["sparsity"] = pruning.sparsity
        return pruning.method, {**chosen, "layers": pruning.layers, **options}

    def _count(self, base: Optimizer) -> None:
        if base not in self.meters:
            self.meters[base] = StepMeter(base)

"""The base class of SAM and S²-SAM: an optimizer around another that takes its gradient at perturbed weights ``u = w + e``."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.common.optimizers import Masked
from flatsparse.sam import hooks
from flatsparse.sam.gradient_checks import GradientChecks
from flatsparse.sam.old_keys import with_new_keys
from flatsparse.sam.options import Options
from flatsparse.sam.perturbation import Perturbation
from flatsparse.sam.perturbed_weights import Memory, Store
from flatsparse.sam.radius import Radius
from flatsparse.sam.state_entry import PERTURBED
from flatsparse.sam.warn_once import WarnOnce
from flatsparse.sam.wrapper import Wrapper, check_base
from flatsparse.schedules import Schedule


class SharpnessAware(Wrapper):
    """An optimizer around a base, with which it shares its state, and the perturbation of its weights.

    Args:
        base: the optimizer that takes the step, an instance. Its ``param_groups`` and ``state`` are shared.
        rho: the radius ρ, the norm of the perturbation over all groups together; a group may carry its own, and the
            norm of the direction is taken over the groups whose ρ is not 0. A schedule, a function of the step such as
            ``flatsparse.schedules.Cosine(0.1, 0.0, until=1000)``, is for all groups without a ρ of their own. Its key in
            a group is ``rho``, or ``sam_rho`` where the base has a ``rho`` that means something else (Adadelta's decay).
        adaptive: scale each weight's share of the perturbation by the weight (ASAM: Kwon et al. 2021, sec. 3):
            ``e = ρ T² d / ‖T d‖`` with ``T = |w| + η``, for biases too (the published code leaves them unscaled). Useful
            ρ are some ten times as large.
        eta: ASAM's η, which lets weights near 0 move.
        mask_perturbation: whether a mask (see ``sparsify``) keeps the perturbation to the active weights. ``False``
            perturbs masked weights too, as the released code of Ji et al. (2024) does.
        compact: keep perturbed values of active weights only: at 90 % sparsity a fifth of a parameter-sized buffer (value
            and index), for some more time in the step (``flatsparse bench step`` measures it).
        budget: σ, the loss that the perturbation may add to first order, at most: a number or a schedule; None for no such
            limit. The radius is then ``min(ρ, σ/‖g‖)``, with g the gradient that the perturbation is along, so that where the
            loss is steep the perturbation is small, and ρ is its largest. σ/‖g‖ of the last one is ``budget_rho`` of each
            group. Wang et al., "Fix the Loss, Not the Radius", ICML 2026 (LE-SAM, arXiv 2605.10183), as their code has it:
            σ = 0.35, ρ = 0.3, with σ rising from 0 over 10 epochs and falling along half a cosine from epoch 160 to the last,
            200. With ``adaptive`` it is ``σ/‖T g‖``. Gradients must be unscaled when the perturbation is made.
        in_place: exchange contents instead of storage when weights are perturbed and restored, for objects that hold
            addresses, such as a captured CUDA graph; costs two more passes over the weights. Sharded parameters (FSDP2)
            are always treated so.

    Raises: InputError when the base is not an optimizer instance, needs a closure (LBFGS), takes sparse gradients only or
        holds complex parameters, or ρ or σ is negative or not finite.
    """

    _copied: ClassVar = (*Wrapper._copied, "perturbation", "checks", "warn")

    def __init__(
        self,
        base: Optimizer,
        rho: float | Schedule = 0.05,
        *,
        adaptive: bool = False,
        eta: float = 0.01,
        mask_perturbation: bool = True,
        compact: bool = False,
        in_place: bool = False,
        budget: float | Schedule | None = None,
    ) -> None:
        check_base(base)
        options = Options(adaptive, eta, mask_perturbation, compact, in_place)
        radius = Radius(rho, base, budget)
        self.warn = WarnOnce(type(self).__name__)
        self.perturbation = Perturbation(base, radius, options, self._store(base), self.warn)
        self.checks = GradientChecks(self.perturbation, self.warn)
        super().__init__(base, radius)

    def _store(self, base: Optimizer) -> Store:
        """The store of the perturbed weights: plain memory, when none are needed after the step."""
        return Memory()

    # -- the options; those that kept state depends on are read-only -----------------------------------------------

    @property
    def adaptive(self) -> bool:
        """True if each weight's share of the perturbation is scaled by the weight."""
        return self.perturbation.options.adaptive

    @adaptive.setter
    def adaptive(self, value: bool) -> None:
        self.perturbation.change(adaptive=value)

    @property
    def eta(self) -> float:
        """ASAM's η."""
        return self.perturbation.options.eta

    @eta.setter
    def eta(self, value: float) -> None:
        self.perturbation.change(eta=value)

    @property
    def mask_perturbation(self) -> bool:
        """True if masks keep the perturbation to the active weights."""
        return self.perturbation.options.mask_perturbation

    @property
    def compact(self) -> bool:
        """True if perturbed values of active weights only are kept."""
        return self.perturbation.options.compact

    @property
    def in_place(self) -> bool:
        """True if contents are exchanged instead of storage."""
        return self.perturbation.options.in_place

    # -- one state with the base ----------------------------------------------------------------------------------

    def _share(self, *_: object) -> None:
        super()._share()
        self.perturbation.weights.reload()
        self.checks.begin_loaded(self)

    def _base_state(self) -> dict[str, Any]:
        """The same while the weights are perturbed as otherwise."""
        inside = self.is_perturbed
        with self.restored():
            state = super()._base_state()
            if inside:  # where contents are exchanged, w is about to stand in the place of u again
                state["state"] = {key: _with_copy(entry, PERTURBED) for key, entry in state["state"].items()}
        return state

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this optimizer, or of its base alone (then the first step is unperturbed again)."""
        self.perturbation.restore()
        super().load_state_dict(with_new_keys(state_dict))

    # -- what a loop and a sparse training call -------------------------------------------------------------------

    def follow(self, model: nn.Module) -> SharpnessAware:
        """Attach to a model's calls: see the subclass. Returns the optimizer."""
        hooks.follow(model, self)
        if not self.checks.steps:
            self.checks.begin_loaded(self)
        return self

    def unfollow(self, model: nn.Module | None = None) -> None:
        """Take the hooks off a model (all that are followed, by default), which then can be scripted or exported strictly.

        The true weights are restored. ``follow`` attaches anew.
        """
        self.perturbation.restore()
        self.checks.forget_parts()
        hooks.unfollow(model, self)

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """A context in which the parameters hold w + e, for loops of one's own; on exit w is back, bit for bit.

        Forward and backward both belong inside: what autograd keeps of a parameter it reads again in the backward pass.
        """
        with self.perturbation.applied():
            yield

    def disabled(self) -> AbstractContextManager[None]:
        """A context in which the parameters hold the true weights, whatever is called."""
        return self.perturbation.disabled()

    def train(self) -> None:
        """Pass the call to a base that has the method (the convention of schedule-free optimizers)."""
        if hasattr(self.base, "train"):  # some trainers call this before every forward
            self.restore("optimizer.train()")  # the base may write the weights
            self.base.train()

    def eval(self) -> None:
        """Restore the true weights; then pass the call on, as ``train`` does."""
        self.restore("optimizer.eval()")
        getattr(self.base, "eval", lambda: None)()

    def set_masks(self, masks: Mapping[nn.Parameter, Masked]) -> None:
        """Restore the true weights, and keep directions within masks: those of ``sparsify``, by parameter."""
        self.perturbation.set_masks(masks)

    def is_packable(self) -> bool:
        """Return whether weights may be packed: all that is kept of an entry is in the state, and lies within the masks."""
        return not self.compact and self.mask_perturbation

    def rearranging(self) -> AbstractContextManager[None]:
        """Return a context in which weights and their perturbed weights are packed or unpacked, alike."""
        return self.perturbation.weights.rearranging()

    def reset_state(self) -> None:
        """Drop the perturbed weights, and restart a schedule of ρ: the next step is like the first."""
        self.perturbation.restore()
        self.radius.restart()
        self.perturbation.weights.forget()
        self.perturbation.was_applied = False

    # -- what the hooks on a model call: see ``hooks.Perturbing`` ---------------------------------------------------

    @property
    def followed(self) -> weakref.WeakSet[nn.Module]:
        """The models whose calls are followed."""
        return self.perturbation.models

    @property
    def is_perturbed(self) -> bool:
        """True while the parameters hold w + e."""
        return self.perturbation.is_applied

    def perturb(self) -> None:
        """Do what belongs before a followed model's training forward; nothing, unless a subclass says so."""

    def note_forward(self, module: nn.Module) -> None:
        """Take note of a followed module's training forward; nothing, unless a subclass says so."""

    def skip(self, reason: str) -> None:
        """Take note of a followed model's forward that cannot be perturbed."""
        self.checks.skipped = reason

    def restore(self, cause: str) -> None:
        """Restore the true weights before the step. A gradient that comes after that is warned of, with the cause."""
        self.checks.restore(cause)

    def restored(self) -> AbstractContextManager[None]:
        """A context in which the parameters hold the true weights, and after which they hold w + e again if they did."""
        return self.perturbation.restored()

    def true_weights(self) -> dict[nn.Parameter, Tensor]:
        """Copies of the w behind every parameter that is perturbed at this moment."""
        masks = self.perturbation.masks
        return {p: masks[p].whole(w) if p in masks else w for p, w in self.perturbation.true_weights().items()}


def _with_copy(entry: Any, key: str) -> Any:
    return {**entry, key: entry[key].clone()} if isinstance(entry, dict) and key in entry else entry

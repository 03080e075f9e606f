"""S²-SAM, SAM, and the control that both need: in which direction the neighbour lies, and when it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.common.distributed import distribute, norm, squares_fit
from flatsparse.common.errors import InputError, unknown
from flatsparse.common.optimizers import Masked
from flatsparse.common.seeds import generator
from flatsparse.sam import hooks, kernel
from flatsparse.sam.base import NEIGHBOUR, TINY, Look, SharpnessAware
from flatsparse.sam.gradient_checks import Inspection, is_inspected
from flatsparse.schedules import Schedule


def previous_gradient(optimizer: S2SAM, gradients: Tensors) -> Tensors:
    """The gradient just used, which the next step will look along (Ji et al. 2024, eq. 5-7)."""
    return gradients


def momentum(optimizer: S2SAM, gradients: Tensors) -> Tensors:
    """Down the base's momentum, as far as it has one (MSAM: Becker et al., arXiv 2401.12033, whose code looks down the descent).

    The base's ``momentum_buffer`` (SGD) or ``exp_avg`` (Adam and kin); SGD's contains the weight decay. The published MSAM
    applies the decay at the perturbed point; here it acts at w.
    """
    kept = {p: optimizer.state.get(p, {}) for p in gradients}
    found = {p: entry.get("momentum_buffer", entry.get("exp_avg")) for p, entry in kept.items()}
    found = {p: m for p, m in found.items() if m is not None}  # a first gradient may have come on a step of a rule
    if not found and not any(group.get("momentum") or "betas" in group for group in optimizer.param_groups):
        raise InputError(
            f"direction 'momentum' needs a base with a momentum buffer, and {type(optimizer.base).__name__} has none: give"
            " SGD momentum=0.9, or use direction='average'"
        )
    return found


momentum.downhill = True  # type: ignore[attr-defined]  # a function may say which way it means


def average(optimizer: S2SAM, gradients: Tensors) -> Tensors:
    """A running average of past gradients, ``d ← β d + (1 − β) g`` (VaSSO: Li & Giannakis 2023; β = 0.9 is ours).

    Costs another parameter-sized buffer, which it keeps in the optimizer's state.
    """
    averages = {}
    for p, g in gradients.items():
        entry = optimizer.state[p]
        entry["average"] = entry["average"].lerp_(g, 1 - AVERAGE) if "average" in entry else g.clone()
        averages[p] = entry["average"]
    return averages


def random_direction(optimizer: S2SAM, gradients: Tensors) -> Tensors:
    """Gaussian noise (ours: the control that a claim for any other direction needs)."""
    source = generator(optimizer.seed, "direction", optimizer.param_groups[0]["looks"])
    return {
        p: distribute(torch.randn(g.shape, generator=source).to(g.device, g.dtype), like=g)
        for p, g in gradients.items()
    }


AVERAGE = 0.9  # how much of the running average stays at a step
Tensors = dict[nn.Parameter, Tensor]
Direction = Callable[["S2SAM", Tensors], Tensors]
DIRECTIONS: dict[str, Direction] = {
    "previous": previous_gradient,
    "momentum": momentum,
    "average": average,
    "random": random_direction,
}


class S2SAM(SharpnessAware):
    """Single-step SAM: each step's only gradient is taken at ``w + ρ g/‖g‖``, with g the previous step's gradient.

    Ji et al., "A Single-Step, Sharpness-Aware Minimization is All You Need to Achieve Efficient and Accurate Sparse
    Training", NeurIPS 2024, eq. 5-7. The base's decay and momentum act on w. The first step is unperturbed (the
    paper leaves it open). The paper says nothing of masks; here direction, norm and perturbation live on the active
    weights, and all parameters, biases and norms included, are perturbed.

    Costs one gradient a step and one parameter-sized buffer, u, which is made in ``step`` from the gradient.

    Args:
        base, rho, adaptive, eta, mask_perturbation, compact, in_place: see ``SharpnessAware``. The paper uses ρ = 0.05 on
            CIFAR and 1.0 on ImageNet, and its Remark 1 a falling ``flatsparse.schedules.InverseSqrt(0.05)``.
        direction: ``"previous"`` (the paper), ``"momentum"``, ``"average"``, ``"random"`` (a control of the same norm), or
            a function of the optimizer and the gradients that gives a direction for each parameter.
        seed: of the random direction.
        kernel: take the base's step and make the neighbours in one compiled pass; for ``SGD`` with momentum on float32
            weights on a CPU, along the previous gradient. Built by the machine's C compiler when first used.

    Raises: InputError for a choice that cannot be honoured.

    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = S2SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05).follow(model)
    >>> for _ in range(2):
    ...     model(torch.ones(4, 2)).mean().backward()  # a training forward runs at w + e
    ...     optimizer.step()  # takes the step from w
    ...     optimizer.zero_grad()
    """

    def __init__(
        self,
        base: Optimizer,
        rho: float | Schedule = 0.05,
        *,
        direction: str | Direction = "previous",
        seed: int = 0,
        adaptive: bool = False,
        eta: float = 0.01,
        mask_perturbation: bool = True,
        compact: bool = False,
        in_place: bool = False,
        kernel: bool = False,
    ) -> None:
        if isinstance(direction, str) and direction not in DIRECTIONS:
            raise unknown("direction", direction, DIRECTIONS)
        self.direction, self.seed, self.kernel = direction, seed, kernel
        if kernel:
            _check_kernel(base, plain=direction == "previous" and mask_perturbation and not (adaptive or compact))
        super().__init__(
            base,
            rho,
            adaptive=adaptive,
            eta=eta,
            mask_perturbation=mask_perturbation,
            compact=compact,
            in_place=in_place,
        )

    _looks_made = False  # whether the compiled pass has made the neighbours, under the masks as they are
    _steps_here = 0  # taken since this object was made
    _inspection: Inspection | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "direction": self.direction, "seed": self.seed, "kernel": self.kernel}

    def _share(self, *_: object) -> None:
        super()._share()
        self._made = any(NEIGHBOUR in entry for entry in self.state.values())

    def follow(self, model: nn.Module) -> S2SAM:
        """From now on a forward of the model in training mode, with gradients on, opens a window; ``step`` closes it.

        Inside the window evaluation without gradients and ``model.state_dict()`` see w; evaluation with gradients
        on, ``load_state_dict`` and ``eval()`` close it. Direct reads and ``deepcopy`` see w + e.

        Raises: InputError for a model that has already run compiled (its graph would miss the window).
        """
        super().follow(model)
        return self

    def before_training_forward(self) -> None:
        """Open the window: this forward, and its backward, run at w + e."""
        self._missed = ""
        self._open()

    # u lives in the optimizer's state, beside momentum, so that every tool that saves or shards state finds it.

    def _neighbour(self, p: nn.Parameter) -> Tensor | None:
        entry = self.state.get(p)
        return None if entry is None else entry.get(NEIGHBOUR)

    def _keep_neighbour(self, p: nn.Parameter, u: Tensor) -> None:
        self.state[p][NEIGHBOUR] = u

    def _forget_neighbour(self, p: nn.Parameter) -> None:
        if p in self.state:
            self.state[p].pop(NEIGHBOUR, None)

    @torch._disable_dynamo  # type: ignore[attr-defined]  # a traced step would make neighbours once; the base's may be compiled
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take the base's step from w with the gradient found at w + e, then make the next neighbour.

        Args:
            closure: computes loss and gradients, as for any optimizer; it is called once, inside the window.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad(), self.perturbed():
                loss = closure()
        self._close()
        self._end_checks()
        if not self._looked and self._made and self._gradients():
            cure = ": call optimizer.follow(model), or run forward and backward inside optimizer.perturbed()"
            plain = f"two steps without a perturbed forward, so this is plain {type(self.base).__name__}"
            self._warn("unperturbed", plain + (self._missed or cure))
        self._looked = False
        self._advance()
        dense: Tensors = {}
        if not self.mask_perturbation:  # the base's hooks are about to mask the gradients and all state
            for p, g in self._gradients().items():
                dense[p] = self._buffer(p, None).copy_(g)
                self._forget_neighbour(p)
        if self.kernel:
            self._looks_made = False
            Optimizer.profile_hook_step(self._step_and_look)(self.base)
            if self._looks_made:
                self._begin_checks()
                return loss
        else:
            self.base.step()
        for p, waiting in dense.items():  # where its neighbour will be
            self._keep_neighbour(p, waiting)
        choose = DIRECTIONS[self.direction] if isinstance(self.direction, str) else self.direction
        directions = choose(self, self._begun({**self._gradients(), **dense}))
        if self.direction not in ("previous", "momentum", "average"):  # those are zero outside the masks already
            for p, d in directions.items():
                if p in self._masked:
                    self._masked[p].zero_outside(d)
        self._make_neighbours(directions, downhill=getattr(choose, "downhill", False))
        self._begin_checks()
        return loss

    def _begin_checks(self) -> None:
        """Watch the coming step, if it is one of those that are watched and its forward shall be perturbed."""
        self._steps_here += 1
        if is_inspected(self._steps_here + 1) and self._made:
            self._inspection = Inspection(self)

    def _end_checks(self) -> None:
        self._end_watch()
        if self._inspection is not None:
            self._inspection.end(self)
        self._inspection = None

    def set_masks(self, masks: Mapping[nn.Parameter, Masked]) -> None:
        """Keep directions within masks; neighbours made under others no longer count."""
        super().set_masks(masks)
        self._looks_made = False

    def _step_and_look(self, base: Optimizer) -> None:
        """In the place of the base's own step, between its hooks: that step, and the neighbours if all is as usual."""
        rows = []
        for group in base.param_groups:
            live = [p for p in group["params"] if p.grad is not None]
            momenta = [base.state[p].get("momentum_buffer") for p in live]
            rows.append((group, live, [p.grad for p in live], momenta, [self._buffer(p, None) for p in live]))
        base._opt_called = True  # type: ignore[attr-defined]  # for a scheduler that asks whether the base has stepped
        usual = kernel.suits(base) and all(
            self._radius(group) != 0
            and all(m is not None and kernel.takes(p, g, m, u) for p, g, m, u in zip(*row, strict=True))
            for group, *row in rows
        )
        if not usual:
            torch.optim.SGD.step.__wrapped__(base)  # type: ignore[attr-defined]  # without the hooks, which have run
            return
        made: list[Look] = []
        length = sum(kernel.square(gradients) for _, _, gradients, _, _ in rows) ** 0.5
        if not squares_fit(length):
            length = float(norm([g for _, _, gradients, _, _ in rows for g in gradients]) or 0.0)
        for group, live, gradients, momenta, neighbours in rows:
            group["neighbour_rho"] = rho = self._radius(group)
            kernel.step(group, live, gradients, momenta, neighbours, rho / max(length, TINY))
            looks = dict(zip(live, neighbours, strict=True))
            made += [(p, u, None) for p, u in looks.items()]
            for p in group["params"]:
                if p in looks:
                    self._keep_neighbour(p, looks[p])
                else:
                    self._forget_neighbour(p)
        self._note(made)
        self._looks_made = bool(made)

    def _begun(self, gradients: dict[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
        """Without the parameters whose state the base has yet to create: Adam would take our entry for its own."""
        if isinstance(self.base, torch.optim.SGD):  # it does not ask whether an entry is the first
            return gradients
        begun = {p: g for p, g in gradients.items() if set(self.state.get(p, ())) - {NEIGHBOUR}}
        return begun or gradients  # a base may keep no state at all


def _check_kernel(base: Optimizer, plain: bool) -> None:
    if not kernel.suits(base) or not plain:
        raise InputError(
            "kernel=True is for torch.optim.SGD with momentum, along the previous gradient on live weights: leave it out for"
            f" {type(base).__name__} or other options"
        )
    kernel.library()


class SAM(SharpnessAware):
    """Sharpness-aware minimization: the gradient is taken at ``w + ρ g/‖g‖``, with g this batch's own gradient at w.

    Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021, Alg. 1 with
    p = 2. Costs two gradients a step, and a parameter-sized buffer while the second is taken.

    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = model(torch.ones(4, 2)).mean()
    ...     loss.backward()
    ...     return loss
    >>> loss = optimizer.step(closure)  # the loss at w, before the step
    """

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """A context in which the parameters hold w + e, with e along the gradients they have on entry.

        The gradients are yours to clear inside. Batch-norm statistics are what they were when it ends: the first pass has
        already counted this batch.
        """
        for p, masked in self._masked.items():
            if p.grad is not None:
                masked.zero_outside(p.grad)
        self._make_neighbours(self._gradients())  # without a name of ours, so that they can be freed inside
        with hooks.frozen_statistics(self):
            self._open()
            try:
                yield
            finally:
                self._close()
                self._neighbours.clear()
                self._fresh = []

    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take a step with the gradient at w + e.

        Args:
            closure: clears the gradients, computes the loss and its gradients. It is called twice, once when every
                ρ is 0. Without one, the second gradient must have been taken inside ``perturbed()``.

        Returns: the loss at w.
        Raises: InputError without a closure and without a gradient from ``perturbed()``.
        """
        loss = None
        aware = any(self._radius(group) != 0 for group in self.param_groups)
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
                if aware:
                    with self.perturbed():
                        self.zero_grad()
                        closure()
        elif aware and not self._looked:
            raise InputError(
                "SAM.step() has no second gradient: give it a closure, or take the gradient inside"
                " optimizer.perturbed(); S2SAM needs neither"
            )
        self._close()  # when the step is taken inside perturbed()
        self._end_watch()
        self._looked = False
        self.base.step()
        self._advance()
        return loss

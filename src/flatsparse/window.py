"""An optimizer that takes its gradient at a neighbour ``u = w + e`` of the weights: what S²-SAM and SAM share.

What a window is: while it is open the parameters point at the storage of u, and the true w are kept aside; closing
points them back. Nothing is added or subtracted, so w returns bit for bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from flatsparse import following
from flatsparse.errors import InputError, check_finite
from flatsparse.masks import Mark, mark

TINY = 1e-12  # keeps a zero gradient from dividing by zero; far below the norm of any other

Zeroing = Callable[[Tensor], Tensor]  # makes a tensor zero outside a parameter's mask, in place


class SharpnessAware(Optimizer):
    """What SAM and S²-SAM share: one state with the base optimizer, and the window.

    Args:
        base: the optimizer that takes the step, an instance. Its ``param_groups`` and ``state`` are shared.
        rho: the radius ρ, the norm of the perturbation over all groups together; a group may carry its own, and the
            norm of the direction is taken over the groups whose ρ is not 0.
        mask_perturbation: whether a mask (see ``sparsify``) confines the perturbation to the live weights. ``False``
            perturbs masked weights too, as the released code of Ji et al. (2024) does, at the price of a copy of
            the gradients.

    Raises: InputError when the base is not an optimizer instance, or ρ is negative or not finite.
    """

    def __init__(self, base: Optimizer, rho: float = 0.05, *, mask_perturbation: bool = True) -> None:
        if not isinstance(base, Optimizer) or isinstance(base, SharpnessAware):
            got = base.__name__ if isinstance(base, type) else type(base).__name__
            raise InputError(f"base is {got}: give an instance of a plain optimizer, e.g. torch.optim.SGD(..., lr=0.1)")
        check_finite("rho", rho)
        for group in base.param_groups:
            check_finite("rho", group.get("rho", rho))
        super().__init__(base.param_groups, {**base.defaults, "rho": rho})
        self.base = base
        self.mask_perturbation = mask_perturbation
        self._window: list[tuple[nn.Parameter, Tensor]] = []  # the true w of every perturbed parameter, while open
        self._looked = False  # whether a perturbed forward has run since the last step
        self._warned: set[str] = set()
        self._neighbours: dict[nn.Parameter, Tensor] = {}
        self._marks: dict[nn.Parameter, Mark] = {}  # of each w when its u was made
        self._made = False  # whether the last step made neighbours to look at
        self._drops = 0  # windows in a row that found their neighbours stale
        self._zeroing: Mapping[nn.Parameter, Zeroing] = {}
        self._share()

    # -- one state ------------------------------------------------------------------------------------------------

    def _share(self, *_: object) -> None:
        """Use the base's groups and state as our own; it replaces both when it loads, so this follows each load."""
        self.param_groups, self.state = self.base.param_groups, self.base.state
        for group in self.param_groups:
            self._radius(group)
        if self._share not in self.base._optimizer_load_state_dict_post_hooks.values():
            self.base.register_load_state_dict_post_hook(self._share)

    def _radius(self, group: dict[str, Any]) -> float:
        """A group's ρ; a group that was added to the base, or loaded from it, has ours."""
        rho: float = group.setdefault("rho", self.defaults["rho"])
        return rho

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base; it may carry its own ``rho``."""
        if "base" not in self.__dict__:  # torch's constructor adopts the base's groups through this method
            super().add_param_group(param_group)
            return
        check_finite("rho", param_group.setdefault("rho", self.defaults["rho"]))
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base's state with each neighbour u in it; the same inside a window as outside."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this optimizer, or of its base alone (then the first step is unperturbed again)."""
        self._close()
        self.base.load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("defaults", "base", "mask_perturbation", "_window", "_looked", "_warned", "_made", "_drops")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Masks and followed models attach themselves anew; marks are those of the originals.
        super().__setstate__({**state, "_zeroing": {}, "_neighbours": {}, "_marks": {}})
        self._share()

    # -- the window -----------------------------------------------------------------------------------------------

    def follow(self, model: nn.Module) -> SharpnessAware:
        """Tie the windows to a model: see the subclass. Returns the optimizer."""
        following.follow(model, self)
        return self

    def confine(self, zeroing: Mapping[nn.Parameter, Zeroing]) -> None:
        """Keep directions within masks: for each masked parameter, what zeroes a tensor outside its mask."""
        self._close()  # whoever confines is about to write the true weights
        self._zeroing = zeroing if self.mask_perturbation else {}

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """A context in which the parameters hold w + e, for loops of one's own; on exit w is back, bit for bit."""
        self._open()
        try:
            yield
        finally:
            self._close()

    def train(self) -> None:
        """Nothing to do; here because some trainers call it (the convention of schedule-free optimizers)."""

    def eval(self) -> None:
        """Make the parameters hold the true w, by closing the window."""
        self._close()

    @property
    def is_open(self) -> bool:
        """Whether the parameters hold w + e at this moment."""
        return bool(self._window)

    def true_weights(self) -> dict[nn.Parameter, Tensor]:
        """The w behind every parameter that is perturbed at this moment."""
        return dict(self._window)

    def before_training_forward(self) -> None:
        """What a followed model's training forward does first."""

    def _open(self) -> None:
        if self._window:
            return
        self._drop_stale_neighbours()
        pairs = []
        for group in self.param_groups:
            rho = self._radius(group)
            made_at = group.get("neighbour_rho", rho)
            if rho == 0 or made_at == 0:  # no neighbours are wanted, or none were made
                continue
            for p in group["params"]:
                if (u := self._neighbour(p)) is None:
                    continue
                if rho != made_at:  # ρ was changed after the step that made u
                    torch.lerp(p.detach(), u, rho / made_at, out=u)
                pairs.append((p, u))
            group["neighbour_rho"] = rho
        self._window = _point(pairs)
        self._looked |= bool(self._window)

    def _close(self) -> None:
        _point(self._window)
        self._window = []

    @contextmanager
    def _closed(self) -> Iterator[None]:
        """A context in which an open window is shut, and after which it is open again as it was."""
        looks = _point(self._window)
        self._window = []
        try:
            yield
        finally:
            self._window = _point(looks)

    # -- neighbours -----------------------------------------------------------------------------------------------

    def _neighbour(self, p: nn.Parameter) -> Tensor | None:
        """The u kept for a parameter, if any."""
        return self._neighbours.get(p)

    def _keep_neighbour(self, p: nn.Parameter, u: Tensor) -> None:
        self._neighbours[p] = u

    def _forget_neighbour(self, p: nn.Parameter) -> None:
        self._neighbours.pop(p, None)

    @torch.no_grad()
    def _make_neighbours(self, directions: Mapping[nn.Parameter, Tensor]) -> None:
        """Write ``u = w + ρ d/‖d‖`` for each parameter with a direction; the others have no neighbour.

        The norm stays a tensor on its device, so the host never waits for it.
        """
        _check_kinds(directions)
        norm = _norm(list(directions.values()))
        for group in self.param_groups:
            group["neighbour_rho"] = rho = self._radius(group)
            scales: dict[tuple[torch.device, torch.dtype], Tensor] = {}
            for p in group["params"]:
                if norm is None or p not in directions:
                    self._forget_neighbour(p)
                    continue
                u = self._neighbour(p)
                u = torch.empty_like(p, requires_grad=False) if u is None else u
                kind = p.device, p.dtype
                if kind not in scales:  # clamped, because float16 makes an infinity of the scale of a tiny gradient
                    scales[kind] = (rho / (norm + TINY)).clamp(max=torch.finfo(p.dtype).max).to(*kind)
                torch.addcmul(p.detach(), directions[p], scales[kind], out=u)
                self._keep_neighbour(p, u)
                self._marks[p] = mark(p)
        self._made = norm is not None
        self._warn_of_rounding(directions)

    @torch.no_grad()
    def _drop_stale_neighbours(self) -> None:
        """Forget neighbours of weights that were since replaced, e.g. by loading others without their optimizer.

        Only weights that were written to since are measured: a neighbour further than 2ρ from its weights is stale.
        Writing through ``p.data.copy_`` leaves no mark and goes unnoticed; ``p.copy_`` under ``no_grad`` does not.
        """
        pairs = [(p, u) for g in self.param_groups for p in g["params"] if (u := self._neighbour(p)) is not None]
        stale = [p for p, u in pairs if u.device != p.device or u.dtype != p.dtype]
        written = [(p, u) for p, u in pairs if self._marks.get(p) != mark(p)]
        if written and not stale:
            distance = _norm([p.detach() - u for p, u in written])
            reach = sum(g.get("neighbour_rho", 0.0) ** 2 for g in self.param_groups) ** 0.5
            stale = [p for p, _ in written if distance is None or not distance <= 2 * reach]
        for p in stale:
            self._forget_neighbour(p)
            self._made = False
        self._drops = self._drops + 1 if stale else 0
        if self._drops > 1:  # one alone is a load
            self._warn(
                "stale",
                "the weights are rewritten by more than 2ρ after each step, so nothing is perturbed: write them before"
                " optimizer.step()",
            )
        self._marks.update((p, mark(p)) for p, _ in written)

    def _warn_of_rounding(self, directions: Mapping[nn.Parameter, Tensor]) -> None:
        coarse = next((p.dtype for p in directions if p.dtype in (torch.bfloat16, torch.float16)), None)
        if coarse is not None:
            self._warn(
                "coarse",
                f"weights are {coarse}: rounding swallows much of a perturbation of this size (most of it in large"
                " nets); keep the weights in float32 and use torch.autocast for speed",
            )

    def _warn(self, topic: str, message: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            warnings.warn(f"{type(self).__name__}: {message}", stacklevel=4)

    def _gradients(self) -> dict[nn.Parameter, Tensor]:
        """The gradients that make a direction: of every parameter that has one and whose ρ is not 0."""
        groups = [g for g in self.param_groups if self._radius(g) != 0]
        return {p: p.grad for g in groups for p in g["params"] if p.grad is not None}


def _point(pairs: list[tuple[nn.Parameter, Tensor]]) -> list[tuple[nn.Parameter, Tensor]]:
    """Point each parameter at other storage; returns what they pointed at."""
    before = [(p, p.data) for p, _ in pairs]
    for p, tensor in pairs:
        p.data = tensor
    if pairs and torch.is_autocast_cache_enabled():
        torch.clear_autocast_cache()  # it holds casts of the old contents, by parameter
    return before


def _check_kinds(directions: Mapping[nn.Parameter, Tensor]) -> None:
    """Raise InputError for tensors that have no neighbour that a window could show."""
    for p, d in directions.items():
        if is_traceable_wrapper_subclass(p):
            raise InputError(
                f"parameters are {type(p.data).__name__}, whose storage a window cannot swap yet: use sharpness-aware"
                " optimizers with plain or DistributedDataParallel models"
            )
        if d.layout != torch.strided or not p.is_floating_point():
            raise InputError(
                f"a gradient is {d.layout}, {d.dtype}: sharpness-aware optimizers need dense real ones (for an embedding,"
                " sparse=False)"
            )


def _norm(tensors: list[Tensor]) -> Tensor | None:
    """The L2 norm over all tensors together, in float32 at least, on the first one's device; None of nothing."""
    if not tensors:
        return None
    wide = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    norms = torch._foreach_norm(tensors, 2, dtype=wide)
    return torch.linalg.vector_norm(torch.stack([n.to(tensors[0].device) for n in norms]))

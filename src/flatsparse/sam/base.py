"""An optimizer that takes its gradient at a neighbour ``u = w + e`` of the weights: what S²-SAM and SAM share.

What a window is: while it is open the parameters show u, and the true w are kept aside; closing shows w again. Plain
tensors change storage, others contents. Nothing is added or subtracted, so w returns bit for bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from flatsparse.common.distributed import full_tensor, is_sharded, local_tensor, norm, reshard
from flatsparse.common.errors import InputError, check_finite
from flatsparse.common.optimizers import Masked, check_dense, check_hooks, needs_closure
from flatsparse.common.tensors import Version, version
from flatsparse.sam import hooks
from flatsparse.sam.gradient_checks import ArrivalWatch
from flatsparse.schedules import Schedule

NEIGHBOUR = "neighbour"  # the key of u in a parameter's optimizer state
TINY = torch.finfo(torch.float32).tiny  # keeps a zero gradient from dividing by zero; below the norm of any other

Look = tuple[nn.Parameter, Tensor, Tensor | None]  # a parameter, what it shows in turn, and where, if not everywhere


class SharpnessAware(Optimizer):
    """What SAM and S²-SAM share: one state with the base optimizer, and the window.

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
        mask_perturbation: whether a mask (see ``sparsify``) confines the perturbation to the live weights. ``False``
            perturbs masked weights too, as the released code of Ji et al. (2024) does.
        compact: keep neighbours of live weights only: at 90 % sparsity a fifth of a parameter-sized buffer (value and
            place), for some more time in the step (``flatsparse bench step`` measures it).
        in_place: let a window exchange contents instead of storage, for what holds on to addresses, such as a captured
            CUDA graph; costs two more passes over the weights. Sharded parameters (FSDP2) are always treated so.

    Raises: InputError when the base is not an optimizer instance, needs a closure (LBFGS), takes sparse gradients only or
        holds complex parameters, or ρ is negative or not finite.
    """

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
    ) -> None:
        if not isinstance(base, Optimizer) or isinstance(base, SharpnessAware):
            got = base.__name__ if isinstance(base, type) else type(base).__name__
            raise InputError(f"base is {got}: give an instance of a plain optimizer, e.g. torch.optim.SGD(..., lr=0.1)")
        check_hooks(base)
        check_dense(base)
        if needs_closure(base):
            raise InputError(
                f"{type(base).__name__} takes several gradients a step, each of which would need a direction of its own:"
                " give a base that takes one, e.g. torch.optim.SGD"
            )
        self._schedule = rho if callable(rho) else None
        first = rho(1) if callable(rho) else rho
        check_finite("rho", first)
        check_finite("eta", eta)
        if compact and not mask_perturbation:
            raise InputError("compact keeps neighbours of live weights only: it cannot go with mask_perturbation=False")
        self._key = "sam_rho" if "rho" in base.defaults else "rho"
        for group in base.param_groups:
            self._check_group(group, first)
            group.setdefault("rho_scheduled", self._key not in group)
            group.setdefault(self._key, first)
        super().__init__(base.param_groups, {**base.defaults, self._key: first})
        self.base = base
        self.mask_perturbation, self.compact, self.in_place = mask_perturbation, compact, in_place
        self.adaptive, self.eta = adaptive, eta
        self._window: list[Look] = []  # the true w of every perturbed parameter, while open
        self._looked = False  # whether a perturbed forward has run since the last step
        self._missed = ""  # why a forward of a followed model was not perturbed
        self._interrupted = ""  # what closed a window between a forward and its backward
        self._versions: list[int] = []  # of the perturbed parameters, when the window opened
        self._watch: ArrivalWatch | None = None  # of gradients that come after the window was closed from outside
        self._warned: set[str] = set()
        self._neighbours: dict[nn.Parameter, Tensor] = {}
        self._fresh: list[tuple[Look, Version]] = []  # the neighbours as they were made, with a mark of each w
        self._made = False  # whether the last step made neighbours to look at
        self._shut = False  # whether windows stay closed, whatever is called
        self._drops = 0  # windows in a row that found their neighbours stale
        self._masked: Mapping[nn.Parameter, Masked] = {}
        self._share()

    # -- one state ------------------------------------------------------------------------------------------------

    def _share(self, *_: object) -> None:
        """Use the base's groups and state as our own; it replaces both when it loads, so this follows each load."""
        self.param_groups, self.state = self.base.param_groups, self.base.state
        self._fresh = []
        for group in self.param_groups:
            self._radius(group)
            group.setdefault("looks", 0)
        if self._share not in self.base._optimizer_load_state_dict_post_hooks.values():
            self.base.register_load_state_dict_post_hook(self._share)

    def _radius(self, group: dict[str, Any]) -> float:
        """A group's ρ; a group that was added to the base, or loaded from it, has ours."""
        if self._key not in group:
            looks = self.param_groups[0].get("looks", 0)
            group[self._key] = self.defaults[self._key] if self._schedule is None else self._schedule(looks + 1)
            group["rho_scheduled"] = True
        rho: float = group[self._key]
        return rho

    def _check_group(self, group: dict[str, Any], rho: float = 0.0) -> None:
        """Raise InputError for a group whose ρ, or whose parameters, a perturbation cannot have."""
        if check_finite("rho", group.get(self._key, rho)) and any(p.is_complex() for p in group["params"]):
            raise InputError(
                "complex parameters cannot be perturbed: give their group rho=0, or hold them as pairs of reals"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base; it may carry its own ``rho``."""
        if "base" not in self.__dict__:  # torch's constructor adopts the base's groups through this method
            super().add_param_group(param_group)
            return
        given = param_group["params"]
        params = [given] if isinstance(given, Tensor) else list(given)
        self._check_group(
            {**param_group, "params": [p[1] if isinstance(p, tuple) else p for p in params]}, self.defaults[self._key]
        )
        self.base.add_param_group({**param_group, "params": params})
        for group in self.param_groups:
            self._radius(group)

    @torch._disable_dynamo  # type: ignore[attr-defined]  # as torch.optim does
    def state_dict(self) -> dict[str, Any]:
        """The base's state with each neighbour u in it; the same inside a window as outside."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        inside = self.is_open
        with self._closed():
            state = self.base.state_dict()
            if inside:
                # Where contents are exchanged, w is about to stand in the place of u again.
                state["state"] = {key: _with_copy(entry, NEIGHBOUR) for key, entry in state["state"].items()}
        for after in self._optimizer_state_dict_post_hooks.values():
            state = after(self, state) or state
        return state

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this optimizer, or of its base alone (then the first step is unperturbed again)."""
        self._close()
        state_dict = state_dict.copy()
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        self.base.load_state_dict(state_dict)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        chosen = (
            "defaults",
            "base",
            "mask_perturbation",
            "compact",
            "in_place",
            "adaptive",
            "eta",
            "_schedule",
            "_key",
        )
        now = ("_window", "_looked", "_missed", "_interrupted", "_warned", "_made", "_drops")
        return {name: self.__dict__[name] for name in (*chosen, *now)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Masks and followed models attach themselves anew; marks are those of the originals.
        super().__setstate__({**state, "_masked": {}, "_neighbours": {}, "_fresh": [], "_shut": False, "_watch": None})
        self._versions = [p._version for p, _, _ in self._window]
        self._share()

    # -- the window -----------------------------------------------------------------------------------------------

    def follow(self, model: nn.Module) -> SharpnessAware:
        """Tie the windows to a model: see the subclass. Returns the optimizer."""
        hooks.follow(model, self)
        return self

    def unfollow(self, model: nn.Module | None = None) -> None:
        """Take the hooks off a model (all that are followed, by default), which then can be scripted or exported strictly.

        An open window closes. ``follow`` ties it again.
        """
        self._close()
        hooks.unfollow(model, self)

    def set_masks(self, masks: Mapping[nn.Parameter, Masked]) -> None:
        """Keep directions within masks: those of ``sparsify``, by parameter."""
        self._close()  # whoever confines is about to write the true weights
        self._fresh = []
        self._masked = masks if self.mask_perturbation else {}

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """A context in which the parameters hold w + e, for loops of one's own; on exit w is back, bit for bit.

        Forward and backward both belong inside: what autograd keeps of a parameter it reads again in the backward pass.
        """
        self._open()
        try:
            yield
        finally:
            self._close()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """A context in which no window is open and none opens."""
        self._close()
        self._shut = True
        try:
            yield
        finally:
            self._shut = False

    def train(self) -> None:
        """Pass the call on to a base that has the method (the convention of schedule-free optimizers)."""
        if hasattr(self.base, "train"):  # some trainers call this before every forward
            self.interrupt("optimizer.train()")  # the base may write the weights
            self.base.train()

    def eval(self) -> None:
        """Make the parameters hold the true w, by closing the window; then pass the call on, as ``train`` does."""
        self.interrupt("optimizer.eval()")
        getattr(self.base, "eval", lambda: None)()

    def interrupt(self, cause: str) -> None:
        """Close a window that a forward has used. A gradient that comes after that belongs to no point: it is warned of."""
        perturbed = [p for p, _, _ in self._window]
        self._close()
        if perturbed and self._looked:
            self._interrupted = (
                f"{cause} came between a forward at w + e and its backward, whose gradient then belongs to no point: take"
                " the backward first, or evaluate under torch.no_grad()"
            )
            self._watch = self._watch or ArrivalWatch(perturbed, self)

    def _end_watch(self) -> None:
        """The step comes: whatever closed its windows, its gradients are there."""
        if self._watch is not None:
            self._watch.remove()
        self._watch, self._interrupted = None, ""

    @property
    def is_open(self) -> bool:
        """Whether the parameters hold w + e at this moment."""
        return bool(self._window)

    def true_weights(self) -> dict[nn.Parameter, Tensor]:
        """Copies of the w behind every parameter that is perturbed at this moment."""
        perturbed = [p for p, _, _ in self._window]
        with self._closed():
            return {p: p.detach().clone() for p in perturbed}

    def before_training_forward(self) -> None:
        """What a followed model's training forward does first."""

    def _open(self) -> None:
        if self._window or self._shut:
            return
        self._window = self._exchange(self._as_made() or self._found())
        self._versions = [p._version for p, _, _ in self._window]
        self._looked |= bool(self._window)

    def _found(self) -> list[Look]:
        """What a window shows when something has happened since the last step: a load, say, or another ρ."""
        self._drop_stale_neighbours()
        looks: list[Look] = []
        for group in self.param_groups:
            rho = self._radius(group)
            made_at = group.get("neighbour_rho", rho)
            if rho == 0 or made_at == 0:  # no neighbours are wanted, or none were made
                continue
            for p in group["params"]:
                if (u := self._neighbour(p)) is None:
                    continue
                where = self._places(p, u)
                if rho != made_at:  # ρ was changed after the step that made u
                    torch.lerp(
                        _take(local_tensor(p).detach(), where), local_tensor(u), rho / made_at, out=local_tensor(u)
                    )
                looks.append((p, u, where))
            group["neighbour_rho"] = rho
        self._fresh = [(look, version(look[0])) for look in looks]
        return looks

    def _close(self) -> None:
        looks, self._window = self._true(), []
        if [p._version for p, _, _ in looks] != self._versions:
            self._warn(
                "written",
                "weights were written to while they held w + e, and the write is lost: write them after optimizer.step(),"
                " or call optimizer.eval() before",
            )
        self._exchange(looks)
        self._versions = []

    @contextmanager
    def _closed(self) -> Iterator[None]:
        """A context in which an open window is shut, and after which it is open again as it was."""
        looks = self._exchange(self._true())
        self._window = []
        try:
            yield
        finally:
            self._window = self._exchange(looks)

    def _true(self) -> list[Look]:
        """The true weights as their parameters are by now, for a model may be cast or moved inside a window."""
        if all(w.dtype is p.dtype for p, w, _ in self._window):
            return self._window
        return [(p, w.to(p.device, p.dtype), where) for p, w, where in self._window]

    @torch.no_grad()
    def _exchange(self, looks: list[Look]) -> list[Look]:
        """Let each parameter show the other tensor; returns what then does it the other way round."""
        if any(is_sharded(p) for p, _, _ in looks):  # after a no-grad forward FSDP2 keeps what it has gathered
            for model in hooks.followed(self):
                reshard(model)
        turned: list[Look] = []
        for p, other, where in looks:
            if where is None and not self.in_place and not is_sharded(p):
                before = p.data
                p.data = other
                turned.append((p, before, None))
            else:  # through .data, so that what autograd has kept of p still counts as unchanged
                here, there = local_tensor(p).data, local_tensor(other).data
                before = _take(here, where).clone() if where is None else _take(here, where)
                _put(here, where, there)
                there.copy_(before)
                turned.append((p, other, where))
        if looks and torch.is_autocast_cache_enabled():
            torch.clear_autocast_cache()  # it holds casts of the old contents, by parameter
        return turned

    # -- neighbours -----------------------------------------------------------------------------------------------

    def _neighbour(self, p: nn.Parameter) -> Tensor | None:
        """The u kept for a parameter, if any."""
        return self._neighbours.get(p)

    def _keep_neighbour(self, p: nn.Parameter, u: Tensor) -> None:
        self._neighbours[p] = u

    def _forget_neighbour(self, p: nn.Parameter) -> None:
        self._neighbours.pop(p, None)

    def _places(self, p: nn.Parameter, u: Tensor) -> Tensor | None:
        """Where in a parameter the entries of a compact u belong; None for one of the parameter's own shape."""
        return None if u.shape == p.shape else self._masked[p].indices

    def _live(self, p: nn.Parameter) -> Tensor | None:
        """The places of a parameter's live weights, if its neighbour shall be compact."""
        masked = self._masked.get(p) if self.compact else None
        return None if masked is None or masked.active == p.numel() else masked.indices

    @torch.no_grad()
    def _make_neighbours(self, directions: Mapping[nn.Parameter, Tensor], *, downhill: bool = False) -> None:
        """Write ``u = w + ρ d/‖d‖`` for each parameter with a direction; the others have no neighbour.

        Downhill it is minus, and so it is along gradients of what a group's base maximizes.

        The norm stays a tensor on its device, so the host never waits for it, and no other buffer is made.
        """
        self._check_kinds(directions)
        rows = []
        for group in self.param_groups:
            group["neighbour_rho"] = rho = self._radius(group)
            for p in group["params"]:
                if (d := directions.get(p)) is None:
                    self._forget_neighbour(p)
                    continue
                where = self._live(p)
                reach = -rho if downhill or group.get("maximize") else rho
                rows.append((reach, p, d, where, self._buffer(p, where)))
        if self.adaptive:  # u holds T d until its norm is known
            for _, p, d, where, u in rows:
                torch.mul(_take(p.detach(), where).abs().add_(self.eta), _take(d, where), out=u)
        length = norm([u if self.adaptive else d for _, _, d, _, u in rows])
        scales: dict[tuple[float, torch.device, torch.dtype], Tensor] = {}
        for reach, p, d, where, u in rows:
            assert length is not None
            kind = reach, p.device, p.dtype
            if kind not in scales:  # clamped, because float16 makes an infinity of the scale of a tiny gradient
                most = torch.finfo(p.dtype).max
                scales[kind] = (reach / length.clamp(min=TINY)).clamp(-most, most).to(*kind[1:])
            w, out = _take(local_tensor(p).detach(), where), local_tensor(u)
            if self.adaptive:
                torch.addcmul(w, out.mul_(w.abs().add_(self.eta)), scales[kind], out=out)
            else:
                torch.addcmul(w, _take(local_tensor(d), where), scales[kind], out=out)
            self._keep_neighbour(p, u)
        self._note([(p, u, where) for _, p, _, where, u in rows])
        self._warn_of_rounding(directions)

    def _note(self, looks: list[Look]) -> None:
        """Remember the neighbours just made, and their weights as they were then."""
        self._fresh = [(look, version(look[0])) for look in looks]
        self._made = bool(looks)

    def _as_made(self) -> list[Look]:
        """What the next window shows; nothing, if a weight was written to, or a ρ changed, since the neighbours were made."""
        if any(group.get("neighbour_rho") != self._radius(group) for group in self.param_groups):
            return []
        if any(version(look[0]) != m for look, m in self._fresh):
            return []
        self._drops = 0
        return [look for look, _ in self._fresh]

    def _buffer(self, p: nn.Parameter, where: Tensor | None) -> Tensor:
        """Room for a parameter's neighbour: that of the last one, if it fits."""
        u, size = self._neighbour(p), p.shape if where is None else where.shape
        if u is not None and u.shape == size and u.device == p.device and u.dtype == p.dtype:
            return u
        return torch.empty_like(p, requires_grad=False) if where is None else p.new_empty(size, requires_grad=False)

    def reset_state(self) -> None:
        """Forget all neighbours, and begin a schedule of ρ anew: the next step is as the first."""
        self._close()
        for group in self.param_groups:
            group["looks"] = 0
            if self._schedule is not None and group.get("rho_scheduled"):
                group["rho"] = self._schedule(1)
            for p in group["params"]:
                self._forget_neighbour(p)
        self._fresh, self._made, self._looked = [], False, False

    def _advance(self) -> None:
        """Count a step, and let a schedule give the ρ of the next."""
        taken = self.param_groups[0]["looks"] + 1
        for group in self.param_groups:
            group["looks"] = taken
            if self._schedule is not None and group.get("rho_scheduled"):
                group["rho"] = self._schedule(taken + 1)

    @torch.no_grad()
    def _drop_stale_neighbours(self) -> None:
        """Forget neighbours of weights that were since replaced, e.g. by loading others without their optimizer.

        Only weights that were written to since are measured: a neighbour further than 2ρ from its weights is stale.
        Writing through ``p.data.copy_`` leaves no mark and goes unnoticed; ``p.copy_`` under ``no_grad`` does not.
        """
        pairs = [(p, u) for g in self.param_groups for p in g["params"] if (u := self._neighbour(p)) is not None]
        stale = [p for p, u in pairs if u.device != p.device or u.dtype != p.dtype or not self._fits(p, u)]
        marks = {look[0]: m for look, m in self._fresh}
        written = [(p, u) for p, u in pairs if marks.get(p) != version(p)]
        if written and not stale:
            distance = norm([_take(p.detach(), self._places(p, u)) - u for p, u in written])
            reach: float | Tensor = sum(g.get("neighbour_rho", 0.0) ** 2 for g in self.param_groups) ** 0.5
            if self.adaptive:
                reach *= max(full_tensor(p.detach().abs().max()) for p, _ in written) + self.eta
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

    def _fits(self, p: nn.Parameter, u: Tensor) -> bool:
        """Whether a u is of the parameter's shape, or has an entry for each of its live weights."""
        return u.shape == p.shape or (p in self._masked and u.shape == self._masked[p].indices.shape)

    def _check_kinds(self, directions: Mapping[nn.Parameter, Tensor]) -> None:
        """Raise InputError for tensors that have no neighbour that a window could show."""
        for p, d in directions.items():
            if d.layout != torch.strided or not p.is_floating_point():
                raise InputError(
                    f"a gradient is {d.layout}, {d.dtype}: sharpness-aware optimizers need dense real ones (for an"
                    " embedding, sparse=False)"
                )
            if type(p) is not nn.Parameter and is_traceable_wrapper_subclass(p) and not is_sharded(p):
                raise InputError(
                    f"parameters are {type(p.data).__name__}, which a window cannot change: use plain tensors or FSDP2's"
                )
            if is_sharded(p) and self.compact:
                raise InputError("compact=True cannot hold sharded parameters: leave it out, shards are small already")

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
        return {p: grad for g in groups for p in g["params"] if (grad := p.grad) is not None}


def _take(tensor: Tensor, where: Tensor | None) -> Tensor:
    """A tensor's entries at places in row-major order; the tensor itself when it is wanted everywhere."""
    return tensor if where is None else tensor.reshape(-1).index_select(0, where)


def _put(tensor: Tensor, where: Tensor | None, values: Tensor) -> None:
    if where is None:
        tensor.copy_(values)
        return
    flat = tensor.reshape(-1)  # a copy only where rows do not lie one after the other (channels-last weights)
    flat.index_copy_(0, where.long(), values)
    if not tensor.is_contiguous():
        tensor.copy_(flat.view(tensor.shape))


def _with_copy(entry: Any, key: str) -> Any:
    return {**entry, key: entry[key].clone()} if isinstance(entry, dict) and key in entry else entry

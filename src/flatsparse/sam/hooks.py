"""Hooks on a model that perturb and restore its weights at its own calls.

Hooks stay outside compiled graphs, hold nothing alive, and go dead in copies: a deep copy of a model (an average of
weights, say) or a pickled one follows nobody.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flatsparse.common.distributed import is_sharded
from flatsparse.common.errors import InputError
from flatsparse.common.tensors import shared_storage

_followed_classes: weakref.WeakSet[type] = weakref.WeakSet()


class Perturbing(Protocol):
    """An optimizer that perturbs a model's weights, as the hooks see it."""

    param_groups: list[dict[str, Any]]

    @property
    def followed(self) -> weakref.WeakSet[nn.Module]:
        """The models that carry its hooks."""
        ...

    @property
    def is_perturbed(self) -> bool:
        """True while the parameters hold w + e."""
        ...

    def perturb(self) -> None:
        """Do what belongs before a training forward."""
        ...

    def note_forward(self, module: nn.Module, /) -> None:
        """Take note of a training forward."""
        ...

    def skip(self, reason: str) -> None:
        """Take note of a forward that cannot be perturbed."""
        ...

    def restore(self, cause: str) -> None:
        """Put the true weights back for good; a backward that is still to come is warned of, with the cause."""
        ...

    def restored(self) -> AbstractContextManager[None]:
        """Return a context in which the parameters hold the true weights."""
        ...

    def true_weights(self) -> dict[nn.Parameter, Tensor]:
        """Return copies of the true weights of every parameter that holds w + e."""
        ...

    def warn(self, topic: str, message: str, /) -> None:
        """Warn once of each topic."""
        ...


def follow(model: nn.Module, optimizer: Perturbing) -> None:
    """Let a model's calls perturb and restore the weights of an optimizer. Twice is once."""
    if any(f.follows(model, optimizer) for f in _followers(model)):
        return
    if has_run_compiled(model):
        raise InputError(
            f"this {type(getattr(model, '_orig_mod', model)).__name__}, or another, has already run compiled, and its"
            " graph would not see the perturbation: follow (or sparsify) before the first compiled call, or call"
            " torch.compiler.reset() first"
        )
    held = {p for group in optimizer.param_groups for p in group["params"]}
    if held.isdisjoint(model.parameters()):
        raise InputError(
            f"the optimizer holds none of the parameters of this {type(model).__name__}: make it of model.parameters(),"
            " after fully_shard, which replaces them"
        )
    for one, other in shared_storage(model.named_parameters()):
        raise InputError(
            f"'{one}' and '{other}' are two parameters on the same memory, which a perturbation would part: tie them as one"
            " (b.weight = a.weight, not b.weight.data = a.weight.data), or clone one of them"
        )
    _Follower(model, optimizer).attach()


def unfollow(model: nn.Module | None, optimizer: Perturbing) -> None:
    """Take an optimizer's hooks off a model, or off all that it follows."""
    for followed in list(optimizer.followed) if model is None else [model]:
        for follower in list(_followers(followed)):
            if follower.follows(followed, optimizer):
                follower.detach()


def enter(model: nn.Module, module: nn.Module, args: Any, optimizer: Perturbing) -> None:
    """Follow the calls of a part of a followed model too, which is called by itself, beginning with this one."""
    for follower in _followers(model):
        if follower.follows(model, optimizer) and not follower.is_inside and not follower.is_on(module):
            follower.attach_to(module)
            follower.before_forward(module, args)


def has_run_compiled(model: nn.Module) -> bool:
    """Return whether ``torch.compile`` has already made a graph of the model's forward.

    Graphs belong to code, so another model of the class counts too, unless one of that class was followed before.
    """
    inner = getattr(model, "_orig_mod", model)
    if type(inner) in _followed_classes or (inner is model and model._compiled_call_impl is None):
        return False
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list

    compiled = getattr(model.forward, "_torchdynamo_orig_callable", None)  # what torch.compile(model) calls
    codes = [getattr(call, "__code__", None) for call in (type(inner).forward, compiled)]
    return any(_debug_get_cache_entry_list(code) for code in codes if code is not None)


class _Follower:
    """The hooks of one optimizer on one model, and on those of its parts that are called by themselves."""

    def __init__(self, model: nn.Module | None, optimizer: Perturbing | None) -> None:
        self._model = weakref.ref(model) if model is not None else _nobody
        self._class = type(model)
        self._optimizer = weakref.ref(optimizer) if optimizer is not None else _nobody
        self._called: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._pauses: list[ExitStack] = []
        self._unrecorded = False  # whether the last forward in training mode ran without gradients
        self._handles: list[Any] = []
        # The attributes of the model that hold the optimizer's parameters.
        self._slots: list[tuple[dict[str, Any], str, nn.Parameter]] = []

    def attach(self) -> None:
        model, optimizer = self._model(), self._optimizer()
        assert model is not None
        assert optimizer is not None
        held = {p for group in optimizer.param_groups for p in group["params"]}
        for module in model.modules():
            own = [(name, p) for name, p in module._parameters.items() if p is not None and p in held]
            # Sharded ones are others while they are gathered.
            self._slots += [(module._parameters, name, p) for name, p in own if not is_sharded(p)]
            if own or module is model:  # a part may be loaded by itself
                self._keep(module.register_load_state_dict_pre_hook(self.before_load))
        for whole in _wholes(model):
            # torch marks this hook by setting an attribute, which a bound method does not take.
            self._keep(whole.register_state_dict_post_hook(partial(self.after_state_dict)))
        self.attach_to(model)
        others = [other for other in _followers(model) if other._optimizer() is not None]
        model.__dict__["_flatsparse_followers"] = [*others, self]
        optimizer.followed.add(model)
        _followed_classes.add(type(getattr(model, "_orig_mod", model)))

    def attach_to(self, module: nn.Module) -> None:
        """Follow the calls of a module."""
        self._called.add(module)
        self._keep(module.register_forward_pre_hook(self.before_forward, prepend=True))
        self._keep(module.register_forward_hook(self.after_forward, always_call=True))

    def _keep(self, handle: Any) -> None:
        self._handles.append(handle)
        weakref.finalize(self._optimizer(), handle.remove)  # or each new optimizer would leave one more behind

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        if (model := self._model()) is not None:
            model.__dict__["_flatsparse_followers"].remove(self)
            if (optimizer := self._optimizer()) is not None:
                optimizer.followed.discard(model)

    def follows(self, model: nn.Module, optimizer: Perturbing) -> bool:
        return self._model() is model and self._optimizer() is optimizer

    def is_on(self, module: nn.Module) -> bool:
        """Return whether a module's calls are followed."""
        return module in self._called

    @property
    def is_inside(self) -> bool:
        """True while a call of the model, or of one of its parts, is running."""
        return bool(self._pauses)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Follower, (None, None)  # for pickles and deep copies alike

    def _optimizer_of(self, module: nn.Module) -> Perturbing | None:
        return self._optimizer() if self.is_on(module) else None

    # A traced hook would swap weights once, while it is traced, and never again: dynamo must leave these alone.
    @torch._disable_dynamo  # type: ignore[attr-defined]  # what torch.optim uses; its public twin imports dynamo at once
    def before_forward(self, module: nn.Module, args: Any) -> None:
        if (optimizer := self._optimizer_of(module)) is None:
            return
        if module is self._model() and type(module) is not self._class and hasattr(module, "unshard"):
            raise InputError(
                "this model was sharded after it was followed, so its forwards would miss the perturbation: make the optimizer"
                " and call follow (or sparsify) after fully_shard"
            )
        pause = ExitStack()
        self._pauses.append(pause)
        if module is not self._model() and len(self._pauses) > 1:  # a part, within a call of the whole
            return
        trains = module.training and torch.is_grad_enabled()
        if trains and self._is_recomputed(optimizer):
            return
        self._unrecorded = module.training and not trains
        if trains:
            optimizer.note_forward(module)
            if optimizer.is_perturbed:
                return
        absent = [(owner, name) for owner, name, p in self._slots if owner.get(name) is not p]
        if absent and len(absent) == len(self._slots):  # torch.func and torch.export call it with tensors of their own
            optimizer.skip(
                ": the model was called with other tensors in the place of its parameters (torch.func), so take these inside"
                " optimizer.perturbed(), together with the gradient"
            )
        elif trains:
            optimizer.perturb()
            if absent and optimizer.is_perturbed:
                optimizer.warn(
                    "replaced",
                    f"{len(absent)} of the {len(self._slots)} parameters that the optimizer perturbs ('{absent[0][1]}' is one)"
                    " are no longer the model's own, so gradients are not taken at w + e there: make a new optimizer"
                    " after parameters were replaced, or take gradients inside optimizer.perturbed()",
                )
        elif torch.is_grad_enabled():
            if module is self._model():
                optimizer.skip(
                    ": the model is in evaluation mode, as from_pretrained leaves it, where nothing is perturbed: call"
                    " model.train() before it is trained"
                )
            optimizer.restore("an evaluation with gradients on")
        else:
            pause.enter_context(optimizer.restored())

    def _is_recomputed(self, optimizer: Perturbing) -> bool:
        """Return whether a backward pass runs again what ran without gradients, and so at w. Warns if so."""
        backward = torch._C._current_graph_task_id() != -1  # type: ignore[attr-defined]
        if backward and self._unrecorded:
            optimizer.warn(
                "recomputed",
                "the whole model is checkpointed with use_reentrant=True, so its forward runs without gradients, at w, and its"
                " gradient is not taken at w + e: checkpoint with use_reentrant=False, or parts of the model",
            )
        return backward and self._unrecorded

    @torch._disable_dynamo  # type: ignore[attr-defined]  # what torch.optim uses; its public twin imports dynamo at once
    def after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._pauses and self._optimizer_of(module):  # none when a hook before ours stopped the call
            self._pauses.pop().close()

    def after_state_dict(self, model: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        """Put copies of the true weights where w + e stands."""
        if (optimizer := self._optimizer()) is None or not optimizer.is_perturbed:
            return
        true = optimizer.true_weights()
        for name, p in model.named_parameters(remove_duplicate=False):
            if p in true and prefix + name in state:
                state[prefix + name] = true[p]

    def before_load(self, model: nn.Module, *_: Any) -> None:
        if self._model() is not None and (optimizer := self._optimizer()) is not None:
            optimizer.restore("load_state_dict")


def _wholes(model: nn.Module) -> Iterator[nn.Module]:
    """A model, and what is inside it with all of its parameters: wrappers such as Lightning Fabric's save that instead."""
    count, whole = sum(1 for _ in model.parameters()), [model]
    while whole:
        yield whole[0]
        whole = [part for part in whole[0].children() if sum(1 for _ in part.parameters()) == count][:1]


def _followers(model: nn.Module) -> list[_Follower]:
    return model.__dict__.get("_flatsparse_followers", [])


def _nobody() -> None:
    return None

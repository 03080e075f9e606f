"""What ties an optimizer's windows to a model's own calls: its hooks, and its batch-norm statistics.

Hooks stay outside compiled graphs, hold nothing alive, and go dead in copies: a deep copy of a model (an average of
weights, say) or a pickled one follows nobody.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from flatsparse.errors import InputError

if TYPE_CHECKING:
    from flatsparse.window import SharpnessAware


_followed_classes: weakref.WeakSet[type] = weakref.WeakSet()


def follow(model: nn.Module, optimizer: SharpnessAware) -> None:
    """Let a model's calls open, shut and close an optimizer's windows. Twice is once."""
    if any(f.follows(model, optimizer) for f in _followers(model)):
        return
    if has_run_compiled(model):
        raise InputError(
            f"this {type(getattr(model, '_orig_mod', model)).__name__}, or another, has already run compiled, and its"
            " graph would not see the window: follow (or sparsify) before the first compiled call, or call"
            " torch.compiler.reset() first"
        )
    held = {p for group in optimizer.param_groups for p in group["params"]}
    if held.isdisjoint(model.parameters()):
        raise InputError(
            f"the optimizer holds none of the parameters of this {type(model).__name__}: make it of model.parameters(),"
            " after fully_shard, which replaces them"
        )
    _Follower(model, optimizer).attach()


def followed(optimizer: SharpnessAware) -> list[nn.Module]:
    """The models that an optimizer follows."""
    return list(optimizer.__dict__.get("_followed", ()))


def has_run_compiled(model: nn.Module) -> bool:
    """Whether ``torch.compile`` has already made a graph of the model's forward.

    Graphs belong to code, so another model of the class counts too, unless one of that class was followed before.
    """
    inner = getattr(model, "_orig_mod", model)
    if type(inner) in _followed_classes or (inner is model and model._compiled_call_impl is None):
        return False
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list

    compiled = getattr(model.forward, "_torchdynamo_orig_callable", None)  # what torch.compile(model) calls
    codes = [getattr(call, "__code__", None) for call in (type(inner).forward, compiled)]
    return any(_debug_get_cache_entry_list(code) for code in codes if code is not None)


@contextmanager
def frozen_statistics(optimizer: SharpnessAware) -> Iterator[None]:
    """A context that leaves running statistics of normalization layers as they were when it began.

    Without ``follow`` the layers are found when they are called inside the context.
    """
    kept: dict[torch.Tensor, torch.Tensor] = {}

    def keep(module: nn.Module, *_: Any) -> None:
        if isinstance(module, _NormBase) and module.training:
            for buffer in module.buffers(recurse=False):
                if buffer not in kept:
                    kept[buffer] = buffer.clone()

    models = followed(optimizer)
    for model in models:
        for module in model.modules():
            keep(module)
    hook = None if models else nn.modules.module.register_module_forward_pre_hook(keep)
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
        with torch.no_grad():
            for buffer, old in kept.items():
                buffer.copy_(old)


class _Follower:
    """The hooks of one optimizer on one model."""

    def __init__(self, model: nn.Module | None, optimizer: SharpnessAware | None) -> None:
        self._model = weakref.ref(model) if model is not None else _nobody
        self._class = type(model)
        self._optimizer = weakref.ref(optimizer) if optimizer is not None else _nobody
        self._pauses: list[ExitStack] = []

    def attach(self) -> None:
        model, optimizer = self._model(), self._optimizer()
        assert model is not None
        assert optimizer is not None
        handles = [
            model.register_forward_pre_hook(self.before_forward, prepend=True),
            model.register_forward_hook(self.after_forward, always_call=True),
            # torch marks this hook by setting an attribute, which a bound method does not take.
            model.register_state_dict_post_hook(partial(self.after_state_dict)),
            model.register_load_state_dict_pre_hook(self.before_load),
        ]
        for handle in handles:
            weakref.finalize(optimizer, handle.remove)  # or each new optimizer would leave one more behind
        model.__dict__.setdefault("_flatsparse_followers", []).append(self)
        optimizer.__dict__.setdefault("_followed", weakref.WeakSet()).add(model)
        _followed_classes.add(type(getattr(model, "_orig_mod", model)))

    def follows(self, model: nn.Module, optimizer: SharpnessAware) -> bool:
        return self._model() is model and self._optimizer() is optimizer

    def __reduce__(self) -> tuple[Any, ...]:
        return _Follower, (None, None)  # for pickles and deep copies alike

    def _live(self, model: nn.Module) -> SharpnessAware | None:
        return self._optimizer() if self._model() is model else None

    # A traced hook would swap weights once, while it is traced, and never again: dynamo must leave these alone.
    @torch._disable_dynamo  # type: ignore[attr-defined]  # what torch.optim uses; its public twin imports dynamo at once
    def before_forward(self, model: nn.Module, args: Any) -> None:
        if (optimizer := self._live(model)) is None:
            return
        if type(model) is not self._class and hasattr(model, "unshard"):
            raise InputError(
                "this model was sharded after it was followed, so its windows would go unseen: make the optimizer and call"
                " follow (or sparsify) after fully_shard"
            )
        pause = ExitStack()
        if not torch.is_grad_enabled():
            pause.enter_context(optimizer._closed())
        elif model.training:
            optimizer.before_training_forward()
        else:
            optimizer._close()
        self._pauses.append(pause)

    @torch._disable_dynamo  # type: ignore[attr-defined]  # what torch.optim uses; its public twin imports dynamo at once
    def after_forward(self, model: nn.Module, args: Any, output: Any) -> None:
        if self._pauses and self._live(model):  # none when a hook before ours stopped the call
            self._pauses.pop().close()

    def after_state_dict(self, model: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        """Put copies of the true weights where w + e stands."""
        if (optimizer := self._live(model)) is None or not optimizer.is_open:
            return
        true = optimizer.true_weights()
        for name, p in model.named_parameters(remove_duplicate=False):
            if p in true and prefix + name in state:
                state[prefix + name] = true[p]

    def before_load(self, model: nn.Module, *_: Any) -> None:
        if (optimizer := self._live(model)) is not None:
            optimizer._close()


def _followers(model: nn.Module) -> list[_Follower]:
    return model.__dict__.get("_flatsparse_followers", [])


def _nobody() -> None:
    return None

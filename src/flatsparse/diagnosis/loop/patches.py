"""What is put in the place of functions of torch and Python while a loop is watched, and passes all on unchanged."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode

from flatsparse.diagnosis.finding import called_by_us
from flatsparse.diagnosis.loop.gradients import NORMS, SCALINGS
from flatsparse.diagnosis.loop.windows import COPIES, WRITES

WATCHED = frozenset((*NORMS, *SCALINGS, *COPIES, *WRITES))
ORDER = "Detected call of `lr_scheduler.step()` before `optimizer.step()`"  # torch's own warning of a loop


@contextmanager
def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """A context in which an attribute is what a function makes of it."""
    original = vars(owner)[name]
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def saves_watched(tell: Callable[[Any, Any], None]) -> Iterator[None]:
    """A context in which each ``torch.save`` is told of, with the thing that is saved and the file."""

    def make(save: Any) -> Any:
        @functools.wraps(save)
        def told(obj: Any, f: Any, *args: Any, **kwargs: Any) -> Any:
            tell(obj, f)
            return save(obj, f, *args, **kwargs)

        return told

    with replaced(torch, "save", make):
        yield


def _then(tell: Callable[[Any], None]) -> Callable[[Any], Any]:
    """Return what makes a method that tells of its object after it was called."""

    def make(method: Any) -> Any:
        @functools.wraps(method)
        def told(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = method(self, *args, **kwargs)
            tell(self)
            return result

        return told

    return make


@contextmanager
def schedulers_watched(tell: Callable[[Any], None]) -> Iterator[None]:
    """A context in which each step of a scheduler is told of."""
    with replaced(LRScheduler, "step", _then(tell)), replaced(ReduceLROnPlateau, "step", _then(tell)):
        yield


@contextmanager
def averages_watched(tell: Callable[[Any], None]) -> Iterator[None]:
    """A context in which each update of an ``AveragedModel`` is told of."""
    with replaced(AveragedModel, "update_parameters", _then(tell)):
        yield


@contextmanager
def scalers_watched(tell: Callable[[str, Any], None]) -> Iterator[None]:
    """A context in which calls of gradient scalers that are enabled are told of, with the optimizer that they are given."""

    def make(name: str) -> Callable[[Any], Any]:
        def wrap(method: Any) -> Any:
            @functools.wraps(method)
            def told(self: Any, given: Any, *args: Any, **kwargs: Any) -> Any:
                if self.is_enabled():
                    tell(name, None if name == "scale" else given)
                return method(self, given, *args, **kwargs)

            return told

        return wrap

    with (
        replaced(GradScaler, "scale", make("scale")),
        replaced(GradScaler, "unscale_", make("unscale_")),
        replaced(GradScaler, "step", make("step")),
    ):
        yield


@contextmanager
def warnings_watched(tell: Callable[[str], None]) -> Iterator[None]:
    """A context in which each warning that this package gives, or torch of a scheduler, is told of, shown or not."""

    def make(warn: Any) -> Any:
        @functools.wraps(warn)
        def told(message: Any, category: Any = None, stacklevel: int = 1, *args: Any, **kwargs: Any) -> Any:
            if str(sys._getframe(1).f_globals.get("__name__")).startswith("flatsparse.") or ORDER in str(message):
                tell(str(message))
            return warn(message, category, stacklevel + 1, *args, **kwargs)

        return told

    with replaced(warnings, "warn", make):
        yield


class Operations(TorchFunctionMode):
    """A mode in which some of torch's operations are told of; all are passed on as they are."""

    def __init__(self, tell: Callable[[str, tuple[Any, ...]], None]) -> None:
        super().__init__()
        self._tell, self._telling = tell, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not torch.compiler.is_compiling():
            self._note(func, args)
        return func(*args, **(kwargs or {}))

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def _note(self, func: Any, args: tuple[Any, ...]) -> None:
        name = getattr(func, "__name__", "")
        if name in WATCHED and not self._telling and not called_by_us():
            self._telling = True
            try:
                self._tell(name, args)
            finally:
                self._telling = False

"""Hooks on a sparse model that call a sparse training's methods, and die with it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any


class ModelHook:
    """A hook of a module that calls a method, with arguments of its own before those of the hook.

    It holds the method's object weakly, so that it has no effect once the training was deleted, nor in copies of the model.
    """

    def __init__(self, method: Callable[..., None] | None, *arguments: Any) -> None:
        self._method = None if method is None else weakref.WeakMethod(method)
        self._arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return ModelHook, (None,)

    def __call__(self, *call: Any) -> None:
        if self._method is not None and (method := self._method()) is not None:
            method(*self._arguments, *call)

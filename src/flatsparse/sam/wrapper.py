"""An optimizer around another, the base, with which it shares its groups and its state."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatsparse.common.errors import InputError
from flatsparse.common.optimizers import check_dense, check_hooks, needs_closure
from flatsparse.sam.radius import Radius


class Wrapper(Optimizer):
    """An optimizer whose ``param_groups``, ``state`` and ``state_dict`` are those of its base, and which keeps ρ there."""

    _copied: ClassVar[tuple[str, ...]] = (
        "defaults",
        "base",
        "radius",
    )  # the attributes that a copy or a pickle has too

    def __init__(self, base: Optimizer, radius: Radius) -> None:
        super().__init__(base.param_groups, {**base.defaults, radius.key: radius.default})
        self.base, self.radius = base, radius
        self._share()

    def _share(self, *_: object) -> None:
        """Use the base's groups and state as our own; it replaces both when it loads, so this follows each load."""
        self.param_groups, self.state = self.base.param_groups, self.base.state
        self.radius.complete_groups()
        if self._share not in self.base._optimizer_load_state_dict_post_hooks.values():
            self.base.register_load_state_dict_post_hook(self._share)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base; it may carry its own ``rho``."""
        if "base" not in self.__dict__:  # torch's constructor adopts the base's groups through this method
            super().add_param_group(param_group)
            return
        given = param_group["params"]
        params = [given] if isinstance(given, Tensor) else list(given)
        self.radius.check(param_group, [p[1] if isinstance(p, tuple) else p for p in params])
        self.base.add_param_group({**param_group, "params": params})
        self.radius.complete_groups()

    @torch._disable_dynamo  # type: ignore[attr-defined]  # as torch.optim does
    def state_dict(self) -> dict[str, Any]:
        """The base's state, with our entries in it."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state = self._base_state()
        for after in self._optimizer_state_dict_post_hooks.values():
            state = after(self, state) or state
        return state

    def _base_state(self) -> dict[str, Any]:
        return self.base.state_dict()

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this optimizer, or of its base alone."""
        state_dict = state_dict.copy()
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        self.base.load_state_dict(state_dict)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self._copied}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()


def check_base(base: Any) -> None:
    """Raise InputError for what cannot be wrapped: no plain optimizer, or one that takes its gradients in other ways."""
    if not isinstance(base, Optimizer) or isinstance(base, Wrapper):
        got = base.__name__ if isinstance(base, type) else type(base).__name__
        raise InputError(f"base is {got}: give an instance of a plain optimizer, e.g. torch.optim.SGD(..., lr=0.1)")
    check_hooks(base)
    check_dense(base)
    if needs_closure(base):
        raise InputError(
            f"{type(base).__name__} takes several gradients a step, and each would need its own direction:"
            " give a base that takes one, e.g. torch.optim.SGD"
        )

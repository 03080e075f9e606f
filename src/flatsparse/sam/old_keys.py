"""Optimizer states that were saved under the keys of earlier versions."""

from __future__ import annotations

from typing import Any

ENTRY_KEYS = {"neighbour": "perturbed"}  # old and new, of a parameter's entry
GROUP_KEYS = {"looks": "perturbation_step", "neighbour_rho": "perturbed_rho"}


def with_new_keys(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state under the keys of now; tensors are shared, and nothing given is changed."""
    renamed = dict(state_dict)
    if isinstance(state := state_dict.get("state"), dict):
        renamed["state"] = {p: _renamed(entry, ENTRY_KEYS) for p, entry in state.items()}
    if isinstance(groups := state_dict.get("param_groups"), list):
        renamed["param_groups"] = [_renamed(group, GROUP_KEYS) for group in groups]
    return renamed


def _renamed(entry: Any, keys: dict[str, str]) -> Any:
    if not isinstance(entry, dict) or keys.keys().isdisjoint(entry):
        return entry
    return {keys.get(key, key): value for key, value in entry.items()}

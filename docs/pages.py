"""Writes docs/methods: a page per method, from its docstring, its plan and the count of its cost; and docs/directions.

`make docs` runs it.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import direction_pages
import torch
from page_text import table, unwrapped

import flatsparse as fs
from flatsparse.measure.estimate import estimate
from flatsparse.methods import ALIASES, traits_of
from flatsparse.sparse.distributions import global_ranking
from flatsparse.sparse.redistribution import Redistribute

DOCS = Path(__file__).parent
STEPS, SPARSITY = 10_000, 0.9  # of the plan that is shown
SPARSITIES = 0.8, 0.9, 0.95
CHANNELS = 0.3, 0.5, 0.7  # removed, of a method that takes no sparsity
TRAITS = {name: traits_of(kind) for name, kind in fs.METHODS.items()}


def pages() -> dict[str, str]:
    """The text of every file in the folder, by its name."""
    written = {f"{name}.md": page(name) for name in fs.METHODS}
    rows = [[f"[`{name}`]({name}.md)", _first_line(kind)] for name, kind in fs.METHODS.items()]
    index = [
        "# Methods",
        table(["method", ""], rows),
        "[Add a method](../add-a-method.md). These pages are made by `make docs`; change the docstrings instead.",
    ]
    return {"README.md": "\n\n".join(index) + "\n", **written}


def page(name: str) -> str:
    kind: Any = fs.METHODS[name]
    doc = inspect.cleandoc(kind.__doc__ or "")
    idea, _, attributes = doc.partition("Attributes:")
    source = inspect.cleandoc(inspect.getmodule(kind).__doc__ or "")  # type: ignore[union-attr]
    aliases = [alias for alias, known in ALIASES.items() if known == name]
    parts = [
        f"# `{name}`" + "".join(f", `{alias}`" for alias in aliases),
        unwrapped(source),
        unwrapped(idea),
        "## Parts",
        f"In a run of {STEPS:,} steps" + ("" if _sparsity(name) == 0 else f" at {SPARSITY:.0%} sparsity") + ":",
        table(["part", "is"], plan_rows(plan_of(name))),
        "## Defaults",
        defaults(kind, attributes),
        "## What it costs",
        costs(name),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def plan_of(name: str) -> Any:
    """The plan that is shown, of a method's defaults."""
    return fs.METHODS[name]().plan(_sparsity(name), STEPS)


def _sparsity(name: str) -> float:
    """The sparsity that is shown; 0 for a method that takes none, or no other."""
    return SPARSITY if TRAITS[name].takes_sparsity and TRAITS[name].default_sparsity else 0.0


def plan_rows(plan: Any) -> list[list[str]]:
    rows = [["initial masks", described(plan.initial)], ["allocated by", described(plan.distribution)]]
    if plan.channel_pruning is not None and plan.channel_pruning.first:
        rows = [
            [
                "channels removed at the start",
                f"{plan.channel_pruning.first:.0%}, the smallest by L1 norm; the rest is active",
            ]
        ]
    elif plan.rules:
        rows.insert(0, ["sparsity at the start", f"{plan.sparsity:.0%}"])
    rows += [["rule", described(rule)] for rule in plan.rules] or [["rules", "none: the masks stay"]]
    if plan.rounds:
        rewind = "" if plan.rounds.rewind is None else f", each from the weights of step {plan.rounds.rewind}"
        rows[-1:] = [
            ["rounds", f"{plan.rounds.count}, the first dense{rewind}; between them {described(plan.rounds.prune)}"]
        ]
    if plan.momentum is not None:
        rows.append(["running average of dense gradients", f"keeps {plan.momentum:g} of itself a step"])
    if plan.pull is not None:
        rows.append(["before that", described(plan.pull)])
    return rows


def described(thing: Any) -> str:
    """A part with its own parts, in Markdown."""
    if inspect.isfunction(thing):
        score = inspect.getclosurevars(thing).nonlocals.get("score")  # of each()
        return described(score) if score is not None else f"`{thing.__name__}`"
    if isinstance(thing, frozenset):
        steps = sorted(thing)
        return f"{steps[0]:,}" if len(steps) == 1 else f"{len(steps)} from {steps[0]:,} to {steps[-1]:,}"
    if isinstance(thing, tuple):
        return " and ".join(map(described, thing))
    if dataclasses.is_dataclass(thing):
        shown = [f for f in dataclasses.fields(thing) if getattr(thing, f.name) not in (f.default, None)]
        inner = ", ".join(f"{f.name.replace('_', ' ')} {described(getattr(thing, f.name))}" for f in shown)
        return f"`{type(thing).__name__}`" + (f" ({inner})" if inner else "")
    return f"{thing:,}" if isinstance(thing, int) and not isinstance(thing, bool) else str(thing)


def defaults(kind: Any, attributes: str) -> str:
    fields = dataclasses.fields(kind)
    if not fields:
        return "It has no options."
    explained: dict[str, str] = {}
    for names, text in re.findall(r"^    ([\w, ]+): (.*(?:\n {5,}.*)*)", attributes, re.MULTILINE):
        explained.update({name.strip(): unwrapped(text) for name in names.split(",")})
    rows = [[f"`{f.name}`", _default(f.default), explained.get(f.name, "")] for f in fields]
    return table(["option", "default", ""], rows)


def _default(value: Any) -> str:
    return f"`{value.__name__}`" if inspect.isfunction(value) else f"`{value}`"


def costs(name: str) -> str:
    with torch.device("meta"):
        model, sample = fs.models.resnet20(), torch.empty(1, 3, 32, 32)
    rows = []
    by_channels = not TRAITS[name].takes_sparsity
    asked: list[dict[str, float]] = [{"sparsity": sparsity} for sparsity in (SPARSITIES if _sparsity(name) else (0.0,))]
    if by_channels:
        asked = [{"channels": channels} for channels in CHANNELS]
    for choice in asked:
        expected = estimate(model, sample, name, **choice, steps=32_000)  # type: ignore[arg-type]
        runs = expected.steps // 32_000
        rows.append(
            [
                *([f"{choice['channels']:.0%}"] if by_channels else []),
                f"{expected.sparsity:.0%}",
                f"{expected.inference_ratio:.3f}",
                f"{runs * expected.step_ratio:.3f}" + (f" ({runs} rounds)" if runs > 1 else ""),
            ]
        )
    plan = plan_of(name)
    dense = "It never needs the gradient of a pruned weight."
    if plan.momentum is not None:
        dense = "It needs the gradient of every weight, active or pruned, at every step."
    elif any(rule.dense_gradient for rule in plan.rules):
        dense = "It needs the gradient of every weight, active or pruned, at the steps that change its masks."
    shares = [plan.distribution, *(getattr(rule, "distribution", None) for rule in plan.rules)]
    if plan.channel_pruning is not None and plan.channel_pruning.first:
        dense += (
            " What each layer keeps depends on the data; this count takes all groups of channels to be pruned alike."
        )
    elif plan.rounds or global_ranking in shares or any(isinstance(rule, Redistribute) for rule in plan.rules):
        dense += " What each layer keeps depends on the data; this count takes all layers to be pruned alike."
    columns = [*(["channels removed"] if by_channels else []), "sparsity", "inference", "training"]
    head = "FLOPs as a share of dense ResNet-20's on CIFAR images over 32,000 steps a round, all layers sparse:"
    return f"{head}\n\n" + table(columns, rows) + f"\n\n{dense}"


def _first_line(kind: Any) -> str:
    return unwrapped((kind.__doc__ or "").strip().splitlines()[0])


def main() -> None:
    for folder, texts in (DOCS / "methods", pages()), (DOCS / "directions", direction_pages.pages()):
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.md"):
            if old.name not in texts:
                old.unlink()
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

"""Writes `docs/api`, the pages of the library's names, from which autodoc makes pages out of docstrings. Git ignores them."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import flatsparse as fs


def _modules(names: str) -> tuple[str, ...]:
    return tuple(f"flatsparse.{name}" for name in names.split())


# A page: its title, and its modules. What `import flatsparse` shows is on the first.
PAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "library": ("The library", ("flatsparse", "flatsparse.acceleration.accelerate.Accelerated")),
    "methods": ("Methods", _modules("methods methods.presets")),
    "parts": (
        "Parts of a method",
        _modules(
            "sparse.plan sparse.rules sparse.scores sparse.saliency sparse.distributions sparse.redistribution sparse.threshold"
            " sparse.pattern sparse.channel_rules sparse.channel_scores sparse.rounds sparse.pull"
        ),
    ),
    "state": (
        "What parts work on",
        _modules("sparse.state sparse.masks sparse.masked_weight sparse.expected sparse.channel_state sparse.report"),
    ),
    "schedules": ("Schedules", _modules("schedules")),
    "sharpness": ("Sharpness", _modules("sam.directions sam.looksam sam.stalesam sam.base")),
    "models": (
        "Models",
        _modules(
            "models models.resnet_cifar models.vgg_cifar models.mobilenet_cifar models.resnet_imagenet models.efficientnet"
            " models.vit models.transformer models.gpt"
        ),
    ),
    "channels": ("Channels", _modules("graph.groups graph.shrink")),
    "measures": (
        "Measures",
        _modules(
            "measure.estimate measure.flops measure.topology measure.sharpness measure.directions measure.hessian"
            " measure.surface measure.theory curvature"
        ),
    ),
    "export": ("Export", _modules("export export.ethos_u export.vela")),
    "experiments": (
        "Experiments",
        _modules(
            "experiments.run.load experiments.run.loop experiments.run.folder experiments.grid.store"
            " experiments.recipes.recipe experiments.recipes.setting experiments.robustness experiments.robustness_table"
            " experiments.data.corruptions experiments.data.corrupted experiments.tracking.tracker experiments.tracking.tracking"
        ),
    ),
}


def page(title: str, modules: tuple[str, ...]) -> str:
    parts = [heading(title, "=")]
    for name in modules:
        of, _, last = name.rpartition(".")
        if name == "flatsparse":
            parts += [entry(name, public) for public in sorted(fs.__all__, key=str.lower)]
        elif last[0].isupper():
            parts.append(entry(of, last))
        else:
            parts += [heading(f"``{name}``", "-")] * (len(modules) > 1)
            parts.append(f".. automodule:: {name}\n   :members:")
    return "\n\n".join(part for part in parts if part) + "\n"


def heading(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}"


def entry(module: str, name: str) -> str:
    """The directive of a public name; none of a module, which has a page of its own."""
    value: Any = getattr(importlib.import_module(module), name)
    if inspect.ismodule(value):
        return ""
    if inspect.isclass(value):
        ours = any(base.__module__.startswith("flatsparse.") for base in value.__bases__)
        return f".. autoclass:: {module}.{name}\n   :members:" + "\n   :show-inheritance:" * ours
    if not callable(value):
        return f".. py:data:: {module}.{name}\n\n   The classes of :doc:`the methods </methods/README>`, by name."
    return f".. autofunction:: {module}.{name}"


def write(app: Any, config: Any) -> None:
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    written = {f"{name}.rst": page(*contents) for name, contents in PAGES.items()}
    for old in folder.iterdir():
        if old.name not in written:
            old.unlink()
    for name, text in written.items():
        file = folder / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:  # else Sphinx would read it again
            file.write_text(text, encoding="utf-8")


def without_edit_link(app: Any, name: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """The repository has no file of such a page."""
    if name.startswith("api/"):
        context["page_source_suffix"] = ""


def setup(app: Any) -> dict[str, bool]:
    app.connect("html-page-context", without_edit_link)
    app.connect("config-inited", write)
    return {"parallel_read_safe": True}

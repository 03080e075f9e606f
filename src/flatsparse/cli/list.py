"""``flatsparse list``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro
from rich.table import Table as Grid
from rich.text import Text

from flatsparse.common.errors import InputError, check_count, unknown
from flatsparse.experiments.data import sources
from flatsparse.experiments.recipes import recipes
from flatsparse.experiments.report.text import layer_table, left_dense
from flatsparse.experiments.run.config import Pruning, names_of_methods
from flatsparse.experiments.run.sharpness import SHARPNESS
from flatsparse.experiments.tasks.built_in import TASKS
from flatsparse.experiments.terminal import Console
from flatsparse.measure.estimate import Estimate, estimate
from flatsparse.methods import ALIASES, METHODS, kind_of, traits_of
from flatsparse.methods.presets import PRESETS
from flatsparse.models import IMAGES, LANGUAGE_MODELS, MODELS, TRANSLATION_MODELS
from flatsparse.sparse.distributions import DISTRIBUTIONS

CHANNELS = f"For layers: fraction of the channels that {names_of_methods('channels', 'or')} removes. By default the method's own."


@dataclass(frozen=True)
class List:
    """List the available choices; or, with layers, what a choice makes sparse and what it costs, without training."""

    what: tyro.conf.Positional[str] = "all"
    """methods, models, data, distributions, presets (of --layers), sharpness, recipes, all of these, or layers."""
    model: str = "resnet32"
    """For layers: the network."""
    method: str = Pruning.method
    """For layers: the method, by name or as path/to/file.py:Name."""
    sparsity: float | None = None
    """For layers: fraction of the chosen weights that are zero. By default as in training."""
    channels: Annotated[float | None, tyro.conf.arg(help=CHANNELS)] = None
    distribution: str | None = None
    """For layers: how active weights are allocated to layers. By default the method's own."""
    layers: str = "all"
    """For layers: the convention for what is left dense."""
    include: tuple[str, ...] = ()
    """For layers: only those whose names or kinds match."""
    exclude: tuple[str, ...] = ()
    """For layers: leave out those whose names or kinds match."""
    steps: int = 32_000
    """For layers: optimizer steps of the run, or of each round of a method with rounds."""
    image: tuple[int, int, int] | None = None
    """For layers: channels, height and width of an image. By default the size that the papers use."""

    def __call__(self) -> None:
        if self.what == "layers":
            print(layer_table(self._estimate()))
            return
        sections = _sections()
        if self.what not in {"all", *sections}:
            raise unknown("list", self.what, ["all", "layers", *sections])
        grid = Grid(box=None, show_header=False, pad_edge=False)
        for section, entries in sections.items():
            if self.what in ("all", section):
                grid.add_row(Text(section, style="bold"))
                for name, entry in entries.items():
                    aliases = [alias for alias, known in ALIASES.items() if section == "methods" and known == name]
                    grid.add_row("  " + ", ".join([name, *aliases]), _first_line(entry))
        Console().print(grid, highlight=False)

    def _estimate(self) -> Estimate:
        """Return sparsity and cost of the chosen method on the chosen network."""
        if self.model not in MODELS:
            raise unknown("model", self.model, MODELS)
        image = IMAGES[self.model] if self.image is None else self.image
        for size in image:
            check_count("--image", size)
        with torch.device("meta"):  # shapes are enough
            model, sample = MODELS[self.model](in_channels=image[0]), torch.empty(1, *image)
        own = {"distribution": self.distribution, "channels": self.channels}
        options: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
        try:
            return estimate(
                model,
                sample,
                self.method,
                sparsity=traits_of(kind_of(self.method)).sparsity_or_default(self.sparsity),
                steps=self.steps,
                layers=self.layers,
                include=self.include,
                exclude=self.exclude,
                **options,
            )
        except RuntimeError as problem:  # torch's, of shapes
            reason = str(problem).splitlines()[0]
            raise InputError(f"--image {' '.join(map(str, image))} does not fit '{self.model}': {reason}") from None


def _sections() -> dict[str, Mapping[Any, Any]]:
    return {
        "methods": METHODS,
        "models": {**MODELS, **TRANSLATION_MODELS, **LANGUAGE_MODELS},
        "data": {**sources.SOURCES, **{name: task.about for name, task in TASKS.items()}},
        "distributions": DISTRIBUTIONS,
        "presets": {name: left_dense(name) for name in PRESETS},
        "sharpness": SHARPNESS,
        "recipes": {name: recipe.title for name, recipe in recipes().items()},
    }


def _first_line(entry: Any) -> str:
    text = entry if isinstance(entry, str) else entry.__doc__ or ""
    return text.strip().splitlines()[0] if text else ""

"""``flatsparse list``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.table import Table as Grid
from rich.text import Text
from torch import nn

from flatsparse.common.errors import InputError, check_count, first_line, harmless, unknown
from flatsparse.common.plugins import errors_of
from flatsparse.experiments.data import sources
from flatsparse.experiments.data.known_file_sets import KNOWN_FILE_SETS
from flatsparse.experiments.recipes import recipes
from flatsparse.experiments.report.text import layer_table, left_dense
from flatsparse.experiments.run.config import Pruning, names_of_methods
from flatsparse.experiments.run.sharpness import SHARPNESS
from flatsparse.experiments.tasks.built_in import TASKS
from flatsparse.experiments.tasks.networks import TEXT_MODELS, check_network, network
from flatsparse.experiments.tasks.settings import Dataset
from flatsparse.experiments.tasks.user import user_task
from flatsparse.experiments.terminal import Console
from flatsparse.measure.estimate import Estimate, estimate_of
from flatsparse.methods import ALIASES, METHODS, kind_of, traits_of
from flatsparse.methods.presets import PRESETS
from flatsparse.models import IMAGES, LANGUAGE_MODELS, MODELS, TRANSLATION_MODELS
from flatsparse.sparse.distributions import DISTRIBUTIONS

USUAL = "resnet32"
CHANNELS = f"For layers: fraction of the channels that {names_of_methods('channels', 'or')} removes. By default the method's own."


@dataclass(frozen=True)
class List:
    """List the available choices; or, with layers, what a choice makes sparse and what it costs, without training."""

    what: tyro.conf.Positional[str] = "all"
    """methods, models, data, distributions, presets (of --layers), sharpness, recipes, all of these, or layers."""
    model: str = USUAL
    """For layers: the network, of 10 classes: a name, timm:NAME, torchvision:NAME, or path/to/file.py:function, whose code is
    then run."""
    task: str | None = None
    """For layers: a task of your own in place of --model: path/to/file.py:function, whose code is then run."""
    method: str = Pruning.method
    """For layers: the method, by name or as path/to/file.py:Name, whose code is then run."""
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
            print(harmless(layer_table(self._estimate())))
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
        if self.task is not None:
            return self._of_task(self.task)
        if ".py:" in self.model:
            with errors_of(Path(self.model.rpartition(":")[0])):
                return self._of_model()
        return self._of_model()

    def _of_task(self, name: str) -> Estimate:
        if self.model != USUAL or self.image is not None:
            flag = "--image" if self.image is not None else f"--model {self.model}"
            raise InputError(f"{flag} has no use beside --task, which has a model and data of its own: leave it out")
        task = user_task(Dataset(task=name), seed=0, label_noise=0.0, label_smoothing=0.0)
        model = task.fresh()
        return self._of(model, *task.sample_forward(model))

    def _of_model(self) -> Estimate:
        check_network(self.model)
        if self.model in TEXT_MODELS:
            raise InputError(
                f"--model {self.model} reads text, and only layers of networks for images are listed: give another --model"
            )
        image = self._image()
        for size in image:
            check_count("--image", size)
        with torch.device("meta" if self.model in MODELS else "cpu"):  # shapes are enough of ours
            model, sample = network(self.model, 10, image[0]), torch.zeros(1, *image)
        try:
            return self._of(model, lambda: model(sample), 1)
        except InputError:
            raise
        except Exception as problem:  # torch's, of shapes; a library's network may raise any
            reason = first_line(problem) or type(problem).__name__
            raise InputError(f"--image {' '.join(map(str, image))} does not fit '{self.model}': {reason}") from None

    def _image(self) -> tuple[int, int, int]:
        """Return channels, height and width."""
        if self.image is not None:
            return self.image
        if self.model in IMAGES:
            return IMAGES[self.model]
        if ".py:" in self.model:
            raise InputError(
                f"--model {self.model} takes images of a size that is not known: give it, e.g. --image 3 32 32"
            )
        return 3, 224, 224

    def _of(self, model: nn.Module, forward: Callable[[], object], samples: int) -> Estimate:
        own = {"distribution": self.distribution, "channels": self.channels}
        options: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
        return estimate_of(
            model,
            forward,
            samples,
            self.method,
            sparsity=traits_of(kind_of(self.method)).sparsity_or_default(self.sparsity),
            steps=self.steps,
            layers=self.layers,
            include=self.include,
            exclude=self.exclude,
            **options,
        )


def _sections() -> dict[str, Mapping[Any, Any]]:
    return {
        "methods": METHODS,
        "models": {**MODELS, **TRANSLATION_MODELS, **LANGUAGE_MODELS},
        "data": {
            **sources.SOURCES,
            **{name: known.about for name, known in KNOWN_FILE_SETS.items()},
            **{name: task.about for name, task in TASKS.items()},
        },
        "distributions": DISTRIBUTIONS,
        "presets": {name: left_dense(name) for name in PRESETS},
        "sharpness": SHARPNESS,
        "recipes": {name: recipe.title for name, recipe in recipes().items()},
    }


def _first_line(entry: Any) -> str:
    text = entry if isinstance(entry, str) else entry.__doc__ or ""
    return text.strip().splitlines()[0] if text else ""

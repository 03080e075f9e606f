"""What the commands do; each is a dataclass of its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.table import Table as Grid
from rich.text import Text

from flatsparse.common.errors import InputError, check_count, unknown
from flatsparse.experiments import compare as comparing
from flatsparse.experiments import export
from flatsparse.experiments.claims import plain_name
from flatsparse.experiments.data import sources
from flatsparse.experiments.plotting import save
from flatsparse.experiments.progress import Progress
from flatsparse.experiments.recipes import recipes
from flatsparse.experiments.report import figures, pages
from flatsparse.experiments.report.sentences import topology_warnings
from flatsparse.experiments.report.text import layer_table, left_dense, print_comparison
from flatsparse.experiments.run.config import ResolvedRun, RunConfig
from flatsparse.experiments.run.ddp import joined, started_together
from flatsparse.experiments.run.devices import usable_device
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.run.loop import train
from flatsparse.experiments.run.method import rounds_of
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.run.sharpness import SHARPNESS
from flatsparse.experiments.run.task import NETWORKS
from flatsparse.experiments.terminal import Console
from flatsparse.measure.flops import estimate
from flatsparse.methods import ALIASES, METHODS, kind_of, name_of_kind, traits_of
from flatsparse.models import IMAGES, MODELS
from flatsparse.sparse.distributions import DISTRIBUTIONS
from flatsparse.sparse.layers import PRESETS


@dataclass(frozen=True)
class Train:
    """Train one sparse network and write its run folder."""

    run: RunConfig = field(default_factory=RunConfig)
    out: Path | None = None
    """The run's folder. By default runs/ and a name made of the settings."""
    resume: bool = False
    """Go on with the run that the folder holds."""
    parent: Path | None = None
    """Folder of dense first rounds that runs of lth and lrr share; one that is missing is put there."""

    def __call__(self) -> None:
        run = resolve(self.run)
        method = name_of_kind(kind_of(run.pruning.method))
        thin = "" if run.pruning.channels is None else f"-channels{run.pruning.channels:g}"
        pruned = f"{method}{run.pruning.sparsity:g}{thin}"
        name = f"{sources.slug(run.dataset.data)}-{run.model}-{pruned}-{run.sharpness}-seed{run.seed}"
        out = self.out or Path("runs") / plain_name(name).strip("._")  # data may be a path, and lie elsewhere
        with joined(run.runtime.device) as team:
            console = Console(quiet=not team.leads)
            with _RunBar(console) as watcher:
                result = train(run, out, resume=self.resume, watcher=watcher, team=team, parent=self.parent)
        if not team.leads:
            return
        flops, seconds = result["flops"], result["seconds"]
        thinned = f", {result['channels']:.1%} of the channels removed" if "channels" in result else ""
        told = Text.assemble(
            "test accuracy ",
            (f"{result['test_accuracy']:.2f} %", "bold"),
            f", training accuracy {result['train_accuracy']:.2f} %,"
            f" sparsity {result['sparsity']['prunable']:.4f} ({result['sparsity']['overall']:.4f} of all matrices){thinned}\n"
            f"training took {seconds['train']:.1f} s at {result['images_per_second']:.0f} images/s, "
            f"{result['gradient_evaluations']} gradients, {flops['train'] / flops['train_dense']:.1%} of dense training's FLOPs\n"
            f"report: {pages.write_run(run, result, out)}",
        )
        console.print(told)


@dataclass(frozen=True)
class Compare:
    """Compare none, SAM, S²-SAM and a random direction on the same sparse training, seed by seed."""

    comparison: comparing.Comparison = field(default_factory=comparing.Comparison)
    out: Path = Path("comparison")
    """The comparison's folder: its runs, compare.json and compare.png."""
    resume: bool = False
    """Go on with the comparison that the folder holds; what is finished is not run again."""

    def __call__(self) -> None:
        if started_together():
            raise InputError("compare starts its own processes: run it without torchrun, with --jobs")
        console = Console()
        tables = comparing.compare(self.comparison, self.out, resume=self.resume, console=console)
        print_comparison(tables, console)
        save(figures.differences(tables), self.out / "compare.png")
        report = pages.write_comparison(tables, self.comparison.resolved(), self.out)
        console.print(f"\nreport: {report}, numbers: {self.out / 'compare.json'}", highlight=False)


@dataclass(frozen=True)
class Export:
    """Write a finished run in forms that others can use, each checked by reading it back."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    format: tuple[str, ...] = ("dense", "masks")
    """dense (with zeros), masks, small (fewer channels), csr, 2:4 (needs an NVIDIA GPU) or onnx (needs the extra onnx)."""
    out: Path | None = None
    """Where to write. By default the folder export in the run's."""
    images: int = 1000
    """So many test images are computed by the run and by what was read back."""
    device: str = "cpu"
    """Where they are computed."""
    data_dir: Path | None = None
    """Where copies of data sets lie. By default where the run found them."""

    def __call__(self) -> None:
        check_count("--images", self.images)
        finished = load_run(self.run, device=usable_device(self.device), data_dir=self.data_dir)
        console, out = Console(), self.out or self.run / "export"
        tell: Callable[[str], None] = lambda text: console.print(text, highlight=False, soft_wrap=True)  # noqa: E731
        record = export.export(
            finished,
            self.format,
            out,
            images=self.images,
            tell=lambda name, found: tell(export.line(name, found)),
        )
        run = record["run"]
        tell(
            f"the run itself has {run['accuracy']:.2f} % on {run['images']} test images; {out / export.RECORD} has it all"
        )


@dataclass(frozen=True)
class List:
    """List what can be chosen; or, with layers, what a choice makes sparse and costs, without training."""

    what: tyro.conf.Positional[str] = "all"
    """methods, models, data, distributions, presets (of --layers), sharpness, recipes, all of these, or layers."""
    model: str = "resnet32"
    """For layers: the network."""
    method: str = "rigl"
    """For layers: the method, by name or as path/to/file.py:Name."""
    sparsity: float | None = None
    """For layers: fraction of the chosen weights that are zero. By default 0.9; chex takes --channels instead."""
    channels: float | None = None
    """For layers: fraction of the channels that chex or chase removes. By default the method's own."""
    distribution: str | None = None
    """For layers: how live weights are shared out. By default the method's own."""
    layers: str = "all"
    """For layers: what is left dense, by whose convention."""
    include: tuple[str, ...] = ()
    """For layers: only those whose names or kinds match."""
    exclude: tuple[str, ...] = ()
    """For layers: none whose names or kinds match."""
    steps: int = 32_000
    """For layers: optimizer steps of the run, in each round of lth and lrr."""
    image: tuple[int, int, int] | None = None
    """For layers: channels, height and width of an image. By default what the papers give the network."""

    def __call__(self) -> None:
        if self.what == "layers":
            return self._layers()
        sections: dict[str, Mapping[Any, Any]] = {
            "methods": METHODS,
            "models": NETWORKS,
            "data": sources.SOURCES,
            "distributions": DISTRIBUTIONS,
            "presets": {name: left_dense(name) for name in PRESETS},
            "sharpness": SHARPNESS,
            "recipes": {name: recipe.title for name, recipe in recipes().items()},
        }
        if self.what not in {"all", *sections}:
            raise unknown("list", self.what, ["all", "layers", *sections])
        grid = Grid(box=None, show_header=False, pad_edge=False)
        for section, entries in sections.items():
            if self.what in ("all", section):
                grid.add_row(Text(section, style="bold"))
                for name, thing in entries.items():
                    aliases = [alias for alias, known in ALIASES.items() if section == "methods" and known == name]
                    grid.add_row("  " + ", ".join([name, *aliases]), _first_line(thing))
        Console().print(grid, highlight=False)
        return None

    def _layers(self) -> None:
        if self.model not in MODELS:
            raise unknown("model", self.model, MODELS)
        image = IMAGES[self.model] if self.image is None else self.image
        for size in image:
            check_count("--image", size)
        with torch.device("meta"):  # shapes are enough
            model, sample = MODELS[self.model](in_channels=image[0]), torch.empty(1, *image)
        own = {"distribution": self.distribution, "channels": self.channels}
        shared: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
        try:
            found = estimate(
                model,
                sample,
                self.method,
                sparsity=traits_of(kind_of(self.method)).sparsity_or_default(self.sparsity),
                steps=self.steps,
                layers=self.layers,
                include=self.include,
                exclude=self.exclude,
                **shared,
            )
        except RuntimeError as problem:  # torch's, of shapes
            reason = str(problem).splitlines()[0]
            raise InputError(f"--image {' '.join(map(str, image))} does not fit '{self.model}': {reason}") from None
        print(layer_table(found))


def _first_line(thing: Any) -> str:
    text = thing if isinstance(thing, str) else thing.__doc__ or ""
    return text.strip().splitlines()[0] if text else ""


class _RunBar:
    """The progress of a run: a bar on a terminal, a line an epoch elsewhere; a context."""

    def __init__(self, console: Console) -> None:
        self.console, self.bar = console, Progress(console, "epoch 1", None)

    def __enter__(self) -> _RunBar:
        self.bar.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        self.bar.__exit__(*problem)

    def started(self, run: ResolvedRun, setting: str) -> None:
        self.last: dict[str, Any] | None = None
        self.epochs_a_round = run.schedule.whole_epochs
        self.epochs, self.rounds = rounds_of(run) * run.schedule.whole_epochs, rounds_of(run)
        self.console.print(
            f"{run.model} on {run.dataset.data}, {run.pruning.method}, sharpness {run.sharpness}: {setting}",
            highlight=False,
        )

    def stepped(self, step: int, steps: int, images_per_second: float) -> None:
        self.bar.update(step, whole=steps, note=f"{images_per_second:.0f} images/s")

    def finished_epoch(self, record: dict[str, Any]) -> None:
        coming = min(record["epoch"] + 1, self.epochs)
        of_rounds = f", round {(coming - 1) // self.epochs_a_round + 1}/{self.rounds}" if self.rounds > 1 else ""
        self.bar.update(title=f"epoch {coming}/{self.epochs}{of_rounds}")
        there = f"  round {record['round'] + 1}/{self.rounds}" if "round" in record else ""
        looked = record["validation_accuracy"]
        held_out = "" if looked is None else f"validation {looked:.2f} %  "
        self.console.print(
            f"epoch {record['epoch']:>3}/{self.epochs}{there}  "
            f"loss {record['train_loss']:.4f}  train {record['train_accuracy']:.2f} %  "
            f"{held_out}{record['images_per_second']:.0f} images/s",
            highlight=False,
        )
        for warning in topology_warnings(record, self.last):
            self.console.print(f"warning: {warning}", style="yellow", highlight=False)
        self.last = record

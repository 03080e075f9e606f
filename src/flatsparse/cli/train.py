"""``flatsparse train``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.text import Text

from flatsparse.experiments.claims import plain_name
from flatsparse.experiments.data import sources
from flatsparse.experiments.labels import scores_text
from flatsparse.experiments.report import pages
from flatsparse.experiments.run.config import ResolvedRun, RunConfig
from flatsparse.experiments.run.ddp import distributed
from flatsparse.experiments.run.loop import train
from flatsparse.experiments.run.progress import RunBar
from flatsparse.experiments.run.records import RunResult
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.terminal import Console
from flatsparse.experiments.tracking.tracking import TrackerName, Tracking, check_trackers
from flatsparse.methods import kind_of, name_of_kind


@dataclass(frozen=True)
class Train:
    """Train one sparse network and write its run folder."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    out: Path | None = None
    """The run's folder. By default runs/ and a name made of the settings."""
    resume: bool = False
    """Continue the run in the folder."""
    parent: Path | None = None
    """Folder of dense first rounds, shared by runs of methods with rounds; a missing one is trained and saved there."""

    track: tuple[TrackerName, ...] = ()
    """Also show the run in these: TensorBoard, trackio, Weights & Biases (each a package of its own); with --resume, as the
    same run. They change no result."""

    def __call__(self) -> None:
        check_trackers(self.track)
        run = resolve(self.run)
        out = self.out or usual_folder(run)
        with distributed(run.runtime.device) as context:
            console = Console(quiet=not context.is_main)
            with RunBar(console) as watcher:
                result = train(
                    run,
                    out,
                    resume=self.resume,
                    watcher=watcher,
                    context=context,
                    shared_rounds=self.parent,
                    tracking=Tracking.named(self.track),
                )
        if context.is_main:
            report = pages.write_run(run, result, out)
            console.print(summary(result), f"report: {report}", sep="\n", highlight=False)


def usual_folder(run: ResolvedRun) -> Path:
    """Return the default folder of a run."""
    pruning = run.pruning
    channels = "" if pruning.channels is None else f"-channels{pruning.channels:g}"
    method = f"{name_of_kind(kind_of(pruning.method))}{pruning.sparsity:g}{channels}"
    subject = run.dataset.task or f"{sources.slug(run.dataset.data)}-{run.model}"
    start = "" if run.init is None else "-init"
    name = f"{subject}-{method}-{run.sharpness}{start}-seed{run.seed}"
    return Path("runs") / plain_name(plain_name(name).strip("._"))  # data may be a path to another folder


def summary(result: RunResult) -> Text:
    """Return accuracy, sparsity and cost of a run in two lines."""
    flops, sparsity, gradients = result.flops, result.sparsity, round(result.gradient_evaluations, 2)
    channels = "" if result.channels is None else f", {result.channels:.1%} of the channels removed"
    return Text.assemble(
        *_scores(result),
        f" sparsity {sparsity.prunable:.4f} ({sparsity.overall:.4f} of all matrices){channels}\n"
        f"training took {result.seconds.train:.1f} s at {result.images_per_second:.0f} {result.unit}/s, "
        f"{gradients:.10g} gradients, {flops.train_share:.1%} of dense training's FLOPs",
    )


def _scores(result: RunResult) -> list[str | tuple[str, str]]:
    """Return the accuracies, or the scores of a task, as pieces of text."""
    if result.scores and result.train_scores:
        trained = scores_text({result.metric: result.train_value})
        return ["test ", (scores_text(result.scores), "bold"), f", training {trained},"]
    return [
        "test accuracy ",
        (f"{result.test_accuracy:.2f} %", "bold"),
        f", training accuracy {result.train_value:.2f} %,",
    ]

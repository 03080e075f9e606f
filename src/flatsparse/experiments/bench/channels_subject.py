"""The network that is measured with and without some of its channels: a finished run's, or one as it is made."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import nn

from flatsparse.common.errors import InputError
from flatsparse.experiments.bench.cases import Batch, Case, images
from flatsparse.experiments.bench.channels import SMALL, TARGET, Thinned, without_channels
from flatsparse.experiments.data.split import Batches
from flatsparse.experiments.run.load import Finished, load_run
from flatsparse.experiments.tasks.classification import Classification
from flatsparse.methods import methods_with
from flatsparse.models import IMAGES, MODELS


def of_run(folder: Path, count: int, *, device: str, data_dir: Path | None) -> tuple[str, Case, Thinned]:
    """The network of a finished run with the channels that its method removed, by name, on batches of its samples.

    Raises: InputError for a run that cannot be read, that is of another task, or that removed no channels.
    """
    finished = load_run(folder, device=device, data_dir=data_dir)
    if not isinstance(finished.task, Classification):
        raise InputError(f"'{folder}' is a run of a task of its own: give one on images")
    train, name = finished.task.splits.train, str(finished.run.model)
    title = f"{name}, {finished.run.pruning.method} on {finished.run.dataset.title}, {count} samples"

    def batch(source: torch.Generator) -> Batch:
        drawn = int(torch.randint(2**31, (), generator=source))
        inputs, targets = next(train.batches(count, seed=drawn)).content
        return inputs, targets

    thinned = trained(finished)
    targets = {SMALL: TARGET} if round(thinned.channels, 2) == 0.5 else {}
    return name, Case(title, lambda: finished.model, batch, targets), thinned


def of_model(name: str, channels: float, count: int, *, quick: bool) -> tuple[str, Case, Thinned]:
    """A network as it is made, without a share of its channels, by name, on batches of random images; a tiny one if quick."""
    name, count = ("digitnet", 4) if quick else (name, count)
    height = IMAGES[name][1]
    make = functools.partial(MODELS[name], in_channels=3)
    targets = {SMALL: TARGET} if channels == 0.5 and not quick else {}
    case = Case(f"{name}, {count} images of {height}×{height}", make, images(count, height, 10), targets)
    return name, case, drawn(case, channels)


def drawn(case: Case, channels: float) -> Thinned:
    """A network as it is made, and a share of the channels of each group, drawn at random."""
    torch.manual_seed(0)
    model = case.model()
    return Thinned(model, without_channels(model, channels), channels)


def trained(run: Finished) -> Thinned:
    """A finished run's network, and what its method removed.

    Raises: InputError for a run that removed no channel.
    """
    if not run.result.channels:
        raise InputError(f"'{run.folder}' removed no channels: give one of {' or '.join(methods_with('channels'))}")
    return Thinned(run.model, run.masks, run.result.channels, functools.partial(_accuracy, run))


@torch.no_grad()
def _accuracy(run: Finished, model: nn.Module) -> float:
    test = run.task.splits.test
    return run.task.evaluate(model, Batches(test, 250), len(test)).value

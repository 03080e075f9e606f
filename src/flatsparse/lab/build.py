"""A run's live parts, made from its configuration alone."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from flatsparse.flops import Cost, cost
from flatsparse.lab.data import Splits, split
from flatsparse.lab.run import Run
from flatsparse.lab.sources import load
from flatsparse.methods import METHODS
from flatsparse.models import MODELS
from flatsparse.seeds import derive
from flatsparse.sharpness import S2SAM, SAM
from flatsparse.sparsifier import SparseTraining, sparsify

UPDATES = 10  # a run has at least so many mask updates


@dataclass
class Parts:
    """The live parts of a run."""

    model: nn.Module
    optimizer: Optimizer
    training: SparseTraining
    schedule: LRScheduler
    cost: Cost
    splits: Splits
    augment: bool
    steps_per_epoch: int
    gradient: Tensor | None = None  # of the step before, on steps that compare the two


def build(run: Run) -> Parts:
    """Make a run's data, network, optimizer and masks, all from its seed."""
    device = torch.device(run.device)
    data = load(run.data, run.data_dir)
    splits = split(
        data,
        train_size=run.train_size,
        validation_size=run.validation_size,
        label_noise=run.label_noise,
        seed=run.seed,
    )
    splits = dataclasses.replace(
        splits, train=splits.train.to(device), validation=splits.validation.to(device), test=splits.test.to(device)
    )
    torch.manual_seed(derive(run.seed, "model"))
    assert run.model is not None  # resolved
    assert run.sparsity is not None  # resolved
    layout = torch.channels_last if run.channels_last else torch.contiguous_format
    model = MODELS[run.model](num_classes=data.classes, in_channels=splits.train.images.shape[-1])
    model.to(device=device)
    model.to(memory_format=layout)  # type: ignore[call-overload]  # torch's own stubs leave this form out
    optimizer = _optimizer(run, model)
    steps_per_epoch = math.ceil(len(splits.train) / run.batch_size)
    steps = run.epochs * steps_per_epoch
    training = sparsify(
        model,
        optimizer,
        run.method,
        sparsity=run.sparsity,
        steps=steps,
        seed=run.seed,
        include=run.include,
        exclude=run.exclude,
        **_method_options(run, steps),
    )
    schedule = CosineAnnealingLR(optimizer, T_max=steps)
    sample = torch.zeros(1, splits.train.images.shape[-1], *splits.train.images.shape[1:3], device=device)
    return Parts(model, optimizer, training, schedule, cost(model, sample), splits, data.augmented, steps_per_epoch)


def _optimizer(run: Run, model: nn.Module) -> Optimizer:
    base: Optimizer
    if run.optimizer == "sgd":
        base = torch.optim.SGD(model.parameters(), lr=run.lr, momentum=0.9, weight_decay=run.weight_decay)
    else:
        base = torch.optim.AdamW(model.parameters(), lr=run.lr, weight_decay=run.weight_decay)
    if run.sharpness == "sam":
        return SAM(base, rho=run.rho)
    if run.sharpness == "s2sam":
        return S2SAM(base, rho=run.rho)
    if run.sharpness == "random":
        return S2SAM(base, rho=run.rho, direction="random", seed=run.seed)
    return base


def _method_options(run: Run, steps: int) -> dict[str, Any]:
    """What the run overrides of its method's own options, and a period that leaves at least ten updates."""
    named = {
        "distribution": run.distribution,
        "every": run.every,
        "until": run.until,
        "drop_fraction": run.drop_fraction,
    }
    options = {name: value for name, value in named.items() if value is not None}
    method: Any = METHODS[run.method]()
    if hasattr(method, "every") and run.every is None:
        end = round((run.until or method.until) * steps)
        options["every"] = max(1, min(method.every, end // UPDATES))
    return options


def describe(parts: Parts) -> str:
    """The parts in a sentence."""
    rules = parts.training.plan.rules
    when = f", masks updated every {rules[0].when.period} steps" if rules else ""  # type: ignore[attr-defined]
    report = parts.training.report()
    return (
        f"{len(parts.splits.train)} training, {len(parts.splits.validation)} validation and {len(parts.splits.test)} test"
        f" images; {report.active:,} of {report.total:,} prunable weights live ({report.sparsity:.2%} sparse){when}"
    )

"""One run, from its configuration to its folder: the loop, evaluation, checkpoints and resume."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

import flatsparse
from flatsparse.errors import InputError
from flatsparse.flops import Cost, cost, step_flops
from flatsparse.lab import data as datasets
from flatsparse.lab.data import Images, Splits, batches
from flatsparse.lab.files import claim, save_tensors, write_json, write_whole
from flatsparse.lab.run import Run
from flatsparse.methods import METHODS
from flatsparse.models import MODELS
from flatsparse.seeds import derive
from flatsparse.sharpness import SAM, S2SAM
from flatsparse.sparsifier import SparseTraining, sparsify

UPDATES = 10  # a run has at least so many mask updates
PROBE_EVERY = 10  # steps between looks at the angle between consecutive gradients


class Watcher(Protocol):
    """What is told how a run gets on."""

    def started(self, run: Run, setting: str) -> None: ...
    def stepped(self, step: int, steps: int, images_per_second: float) -> None: ...
    def finished_epoch(self, record: dict[str, Any]) -> None: ...


class Silent:
    """A watcher that says nothing."""

    def started(self, run: Run, setting: str) -> None: ...
    def stepped(self, step: int, steps: int, images_per_second: float) -> None: ...
    def finished_epoch(self, record: dict[str, Any]) -> None: ...


@dataclass
class Progress:
    """What a run has gathered so far; saved with each checkpoint."""

    epoch: int = 0
    step: int = 0
    gradient_evaluations: int = 0
    train_flops: float = 0.0
    seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)


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


def train(run: Run, out: Path, *, resume: bool = False, watcher: Watcher | None = None, test: bool = True) -> dict[str, Any]:
    """Train one run into a folder and return its result.

    Args:
        run: what to train; see ``Run``.
        out: the run's folder: ``config.json``, ``metrics.jsonl``, ``checkpoint.pt`` after each epoch, and at the end
            ``model.safetensors``, ``masks.safetensors`` and ``result.json``.
        resume: go on from the folder's checkpoint, or return its result if it is finished.
        watcher: is told of progress.
        test: read the test set at the end. Without it the result is for choices, on the validation images.

    Raises: InputError for what cannot be run, a folder that holds another run, or a loss that is not finite.
    """
    run, watcher = run.resolved(), watcher or Silent()
    parts = build(run)  # before the folder is touched, so that a bad choice leaves nothing behind
    claim(out, "config.json", run.as_dict(), resume=resume, about=_environment(), free=("data_dir",))
    if (out / "result.json").is_file():
        result: dict[str, Any] = json.loads((out / "result.json").read_text())
        return result
    progress = _resume(out, parts)
    watcher.started(run, _describe(parts))
    while progress.epoch < run.epochs:
        record = _epoch(run, parts, progress, watcher)
        if not math.isfinite(record["train_loss"]):
            raise InputError(
                f"the loss became {record['train_loss']} in epoch {progress.epoch}: lower --lr {run.lr:g} or --rho {run.rho:g};"
                f" the last good checkpoint is kept in {out}"
            )
        with (out / "metrics.jsonl").open("a") as lines:
            lines.write(json.dumps(record) + "\n")
        _checkpoint(out, parts, progress)
        watcher.finished_epoch(record)
    return _finish(run, out, parts, progress, test)


def build(run: Run) -> Parts:
    """Make a run's data, network, optimizer and masks, all from its seed."""
    device = torch.device(run.device)
    data = datasets.load(run.data, run.data_dir)
    splits = datasets.split(
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
    assert run.model is not None and run.sparsity is not None  # resolved
    layout = torch.channels_last if run.channels_last else torch.contiguous_format
    model = MODELS[run.model](num_classes=data.classes, in_channels=splits.train.images.shape[-1])
    model.to(device=device, memory_format=layout)
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
    named = {"distribution": run.distribution, "every": run.every, "until": run.until, "drop_fraction": run.drop_fraction}
    options = {name: value for name, value in named.items() if value is not None}
    own = {f.name: f.default for f in dataclasses.fields(METHODS[run.method])}  # type: ignore[arg-type]  # a dataclass
    if "every" in own and run.every is None:
        end = round(float(run.until or own["until"]) * steps)
        options["every"] = max(1, min(own["every"], end // UPDATES))
    return options


def _describe(parts: Parts) -> str:
    rules = parts.training.plan.rules
    when = f", masks updated every {rules[0].when.period} steps" if rules else ""  # type: ignore[attr-defined]
    report = parts.training.report()
    return (
        f"{len(parts.splits.train)} training, {len(parts.splits.validation)} validation and {len(parts.splits.test)} test"
        f" images; {report.active:,} of {report.total:,} prunable weights live ({report.sparsity:.2%} sparse){when}"
    )


# -- the loop ---------------------------------------------------------------------------------------------------------


def _epoch(run: Run, parts: Parts, progress: Progress, watcher: Watcher) -> dict[str, Any]:
    """Train on every image once, then evaluate on the validation images."""
    model, training, splits = parts.model.train(), parts.training, parts.splits
    losses = torch.zeros((), device=run.device)
    correct = torch.zeros((), dtype=torch.int64, device=run.device)
    started, images, steps = time.perf_counter(), 0, run.epochs * parts.steps_per_epoch
    forward = parts.cost.forward(training.masks)
    batch = batches(splits.train, splits, run.batch_size, augment=parts.augment, seed=run.seed, epoch=progress.epoch)
    for inputs, targets in batch:
        due = training.due(training.steps_taken + 1)
        began = time.perf_counter()
        loss, outputs = _step(run, parts, inputs, targets)
        progress.step_seconds.append(time.perf_counter() - began)
        progress.train_flops += len(inputs) * step_flops(forward, parts.cost.dense, run.passes, due)
        if due:
            forward = parts.cost.forward(training.masks)
        _probe(parts, progress)
        parts.optimizer.zero_grad()
        parts.schedule.step()
        losses += loss.detach() * len(inputs)
        correct += (outputs.detach().argmax(1) == targets).sum()
        images += len(inputs)
        progress.step += 1
        watcher.stepped(progress.step, steps, images / (time.perf_counter() - started))
    progress.gradient_evaluations += parts.steps_per_epoch * run.passes
    progress.epoch += 1
    lasted = time.perf_counter() - started
    progress.seconds += lasted
    accuracy, loss_there = evaluate(run, parts.model, splits.validation, splits)
    return {
        "epoch": progress.epoch,
        "step": progress.step,
        "train_loss": float(losses) / images,
        "train_accuracy": 100 * int(correct) / images,
        "validation_loss": loss_there,
        "validation_accuracy": accuracy,
        "lr": parts.schedule.get_last_lr()[0],
        "sparsity": training.sparsity,
        "images_per_second": images / lasted,
    }


def _step(run: Run, parts: Parts, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """One optimizer step; returns the loss and the outputs of its first forward."""
    first: list[Tensor] = []

    def gradient() -> Tensor:
        with _precision(run):
            outputs = parts.model(inputs)
            loss = F.cross_entropy(outputs, targets)
        loss.backward()
        first[:] = first or [loss, outputs]
        return loss

    if run.passes == 2:
        parts.optimizer.step(gradient)
    else:
        gradient()
        parts.optimizer.step()
    return first[0], first[1]


def _probe(parts: Parts, progress: Progress) -> None:
    """Now and then note the cosine between the gradients of two consecutive steps, within an epoch."""
    phase = progress.step % parts.steps_per_epoch % PROBE_EVERY
    if phase > 1:
        return
    gradients = [p.grad.flatten() for g in parts.optimizer.param_groups for p in g["params"] if p.grad is not None]
    now = torch.cat(gradients).float()
    if phase == 1 and parts.gradient is not None:
        progress.cosines.append(float(F.cosine_similarity(parts.gradient, now, dim=0)))
    parts.gradient = now if phase == 0 else None


@torch.no_grad()
def evaluate(run: Run, model: nn.Module, images: Images, splits: Splits) -> tuple[float, float]:
    """Accuracy in percent and mean loss, in evaluation mode; NaN of no images."""
    if len(images) == 0:
        return math.nan, math.nan
    model.eval()
    correct, loss = 0, 0.0
    for inputs, targets in batches(images, splits, size=1000):
        with _precision(run):
            outputs = model(inputs).float()
        correct += int((outputs.argmax(1) == targets).sum())
        loss += float(F.cross_entropy(outputs, targets, reduction="sum"))
    return 100 * correct / len(images), loss / len(images)


def _precision(run: Run) -> contextlib.AbstractContextManager[Any]:
    if run.precision == "bf16":
        return torch.autocast(torch.device(run.device).type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


# -- the folder -------------------------------------------------------------------------------------------------------


def _checkpoint(out: Path, parts: Parts, progress: Progress) -> None:
    state = {
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "training": parts.training.state_dict(),
        "schedule": parts.schedule.state_dict(),
        "progress": dataclasses.asdict(progress),
        "torch": torch.get_rng_state(),
    }
    write_whole(out / "checkpoint.pt", lambda file: torch.save(state, file))


def _resume(out: Path, parts: Parts) -> Progress:
    file = out / "checkpoint.pt"
    if not file.is_file():
        write_whole(out / "metrics.jsonl", "")
        return Progress()
    state = torch.load(file, map_location="cpu", weights_only=True)
    parts.model.load_state_dict(state["model"])
    parts.optimizer.load_state_dict(state["optimizer"])
    parts.training.load_state_dict(state["training"])
    parts.schedule.load_state_dict(state["schedule"])
    torch.set_rng_state(state["torch"])
    progress = Progress(**state["progress"])
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    write_whole(out / "metrics.jsonl", "".join(lines[: progress.epoch]))  # an epoch may have been noted but not saved
    return progress


def _finish(run: Run, out: Path, parts: Parts, progress: Progress, test: bool) -> dict[str, Any]:
    """Measure the trained net and write everything down; the result comes last, because it says that all is there."""
    splits, report = parts.splits, parts.training.report()
    test_accuracy, test_loss = evaluate(run, parts.model, splits.test, splits) if test else (None, None)
    train_accuracy, train_loss = evaluate(run, parts.model, splits.train, splits)
    validation_accuracy, validation_loss = evaluate(run, parts.model, splits.validation, splits)
    samples = run.epochs * len(splits.train)
    result = {
        "method": run.method,
        "sharpness": run.sharpness,
        "rho": run.rho if run.sharpness != "none" else 0.0,
        "model": run.model,
        "data": run.data,
        "seed": run.seed,
        "test_accuracy": test_accuracy,
        "test_loss": test_loss,
        "train_accuracy": train_accuracy,
        "train_loss": train_loss,
        "validation_accuracy": validation_accuracy,
        "validation_loss": validation_loss,
        "epochs": run.epochs,
        "steps": progress.step,
        "gradient_evaluations": progress.gradient_evaluations,
        "gradient_cosine": statistics.fmean(progress.cosines) if progress.cosines else None,
        "sparsity": {"prunable": report.sparsity, "overall": report.overall_sparsity},
        "flops": {
            "train": progress.train_flops,
            "train_dense": 3.0 * parts.cost.dense * samples,
            "inference": parts.cost.forward(parts.training.masks),
            "inference_dense": float(parts.cost.dense),
        },
        "seconds": {"train": progress.seconds, "step_median": statistics.median(progress.step_seconds)},
        "images_per_second": samples / progress.seconds,
    }
    weights = {name: tensor.contiguous() for name, tensor in parts.model.state_dict().items()}
    save_tensors(out / "model.safetensors", weights, {"format": "pt"})
    save_masks(out / "masks.safetensors", parts.training)
    write_json(out / "result.json", result)
    return result


def save_masks(file: Path, training: SparseTraining) -> None:
    """Write masks with one bit a weight: each in row-major order, eight to a byte, the first in the lowest bit."""
    import numpy as np

    packed = {
        name: torch.from_numpy(np.packbits(mask.cpu().contiguous().flatten().numpy(), bitorder="little"))
        for name, mask in training.masks.items()
    }
    shapes = json.dumps({name: list(mask.shape) for name, mask in training.masks.items()})
    about = {"format": "flatsparse-masks-1", "method": training.method, "step": str(training.steps_taken), "shapes": shapes}
    save_tensors(file, packed, about)


def _environment() -> dict[str, Any]:
    return {
        "versions": {"flatsparse": flatsparse.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
    }

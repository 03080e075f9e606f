"""One run, from its configuration to its folder: the loop and evaluation."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json, write_json
from flatsparse.common.masks_file import save_masks
from flatsparse.common.tensor_files import save_tensors
from flatsparse.experiments.claims import claim
from flatsparse.experiments.data.splits import DataSet, Images, Splits, at_once, batches
from flatsparse.experiments.run import task
from flatsparse.experiments.run.build import Parts, build, describe
from flatsparse.experiments.run.checkpoint import (
    CHECKPOINT,
    CURVE,
    PROBES,
    RESULT,
    Progress,
    environment,
    load_checkpoint,
    read_metrics,
    read_probes,
    read_result,
    save_checkpoint,
    write_metrics,
)
from flatsparse.experiments.run.config import ResolvedRun, RunConfig, as_json
from flatsparse.experiments.run.ddp import ALONE, Team
from flatsparse.experiments.run.lr import start_schedule
from flatsparse.experiments.run.metrics import REACHED, above_chance, confusion, macro, steps_to
from flatsparse.experiments.run.precision import has_bf16
from flatsparse.experiments.run.probe import Probe
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.run.shared_round import has_parent, load_parent, prepare, save_parent, shared
from flatsparse.measure.flops import step_flops
from flatsparse.measure.sharpness import worst_case_sharpness
from flatsparse.measure.topology import churn, health

CHECKPOINT_SECONDS = 0.0  # between checkpoints, at least: none, so that a kill costs only the epoch in hand
BALL_RADIUS, BALL_IMAGES = 0.1, 1000  # of the sharpness figure: the same for every run, so that runs compare
PROBE_EVERY = 10  # steps between looks at the angle between consecutive gradients


class Diverged(InputError):
    """The loss of a run is no longer finite."""


class Watcher(Protocol):
    """What is told how a run gets on."""

    def started(self, run: ResolvedRun, setting: str) -> None: ...
    def stepped(self, step: int, steps: int, images_per_second: float) -> None: ...
    def finished_epoch(self, record: dict[str, Any]) -> None: ...


class Silent:
    """A watcher that says nothing."""

    def started(self, run: ResolvedRun, setting: str) -> None: ...
    def stepped(self, step: int, steps: int, images_per_second: float) -> None: ...
    def finished_epoch(self, record: dict[str, Any]) -> None: ...


def train(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    watcher: Watcher | None = None,
    test: bool = True,
    team: Team = ALONE,
    parent: Path | None = None,
) -> dict[str, Any]:
    """Train one run into a folder and return its result.

    Args:
        config: what to train; see ``RunConfig``.
        out: the run's folder: ``config.json``, ``metrics.jsonl``, with probes ``probes.jsonl``, ``checkpoint.pt`` every few
            epochs, and at the end ``model.safetensors``, ``masks.safetensors`` and ``result.json``.
        resume: go on from the folder's checkpoint, or return its result if it is finished.
        watcher: is told of progress.
        test: read the test set at the end. Without it the result is for choices, on the validation images.
        team: the processes that train it together, each on its part of every batch; all must see the folder, and the leader
            writes it. Batch norm's statistics are each process's own, and the leader's are kept.
        parent: a folder of dense first rounds, for methods in rounds whose first is dense: the run's own is taken from there, or
            put there. The result counts it as if the run had trained it.

    Raises: InputError for what cannot be run, a folder that holds another run or that another process is at work in, or a
        loss that is not finite.
    """
    parts, watcher = build(resolve(config), team), watcher or Silent()  # before the folder is touched by a bad choice
    run = parts.run
    if run.runtime.precision == "bf16" and not has_bf16(run.runtime.device) and team.leads:
        warnings.warn(
            "--precision bf16 on a device without units for it, which takes several times as long as float32: leave it out",
            stacklevel=2,
        )
    about = {"data_set": parts.data.identity, **environment(team, run.runtime.device)} if team.leads else {}
    with contextlib.ExitStack() as held:
        team.lead(lambda: held.enter_context(_claimed(out, run, parts.data, resume=resume, about=about)))
        if (out / RESULT).is_file():
            return _finished(run, out, parts)
        return _train(parts, out, watcher, test, team, parent)


def _finished(run: ResolvedRun, out: Path, parts: Parts) -> dict[str, Any]:
    """The result of a run that is finished; a curve that was deleted is written anew, and one that is damaged refused."""
    result = read_result(out)
    if run.probe_every or not (out / CURVE).is_file():
        progress = load_checkpoint(out, run, parts)  # which alone knows how many probes there were
        if not (out / CURVE).is_file() or (progress.probes and not (out / PROBES).is_file()):
            write_metrics(out, progress)
        read_probes(out, len(progress.probes))
    read_metrics(out, result)
    return result


def _train(parts: Parts, out: Path, watcher: Watcher, test: bool, team: Team, parent: Path | None) -> dict[str, Any]:
    """Train a run on, from where its folder has it, to its result."""
    run = parts.run
    progress = load_checkpoint(out, run, parts)
    shares = parent if shared(parts.training.plan) else None
    if shares:
        team.lead(lambda: prepare(shares))
    if shares and progress.epoch == 0 and team.told(has_parent(shares, run)):
        progress = load_parent(shares, run, parts) or progress
    if team.leads:
        write_metrics(out, progress)  # an epoch may have been noted, or half noted, after the checkpoint
    gone = f"; going on after epoch {progress.epoch}" if progress.epoch else ""
    watcher.started(run, describe(parts) + gone)
    probe = Probe(run.probe_every, parts) if run.probe_every and team.leads else None
    saved = time.monotonic()
    while progress.epoch < run.schedule.whole_epochs * parts.training.rounds:
        if progress.epoch == run.schedule.whole_epochs * (parts.training.round + 1):
            parts.training.next_round()
            parts.schedule = start_schedule(run, parts.optimizer, parts.steps_per_epoch)
        record = _epoch(run, parts, progress, watcher, team, probe)
        _check(run, progress, record["train_loss"], record["validation_loss"], out=out)
        progress.records.append(record)
        if team.leads:
            write_metrics(out, progress)
            if shares and progress.epoch == run.schedule.whole_epochs:
                save_parent(shares, run, parts, progress)
        if team.leads and time.monotonic() - saved >= CHECKPOINT_SECONDS:
            save_checkpoint(out, run, parts, progress)
            saved = time.monotonic()
        watcher.finished_epoch(record)
    return team.told(_finish(run, out, parts, progress, test) if team.leads else None)


@contextlib.contextmanager
def _claimed(out: Path, run: ResolvedRun, data: DataSet, *, resume: bool, about: dict[str, Any]) -> Iterator[None]:
    """``claim`` a run's folder. Raises InputError for one whose work was done on other data of the same name too."""
    with claim(out, "config.json", as_json(run), resume=resume, about=about, free=("data_dir",)):
        data.check_same(read_json(out / "config.json"), f"'{out}'")
        yield


def _check(run: ResolvedRun, progress: Progress, *losses: float | None, out: Path | None = None) -> None:
    """Raise Diverged when a loss is not finite; ``out`` is where the checkpoint is from before that."""
    odd = [loss for loss in losses if loss is not None and not math.isfinite(loss)]
    if odd:
        kept = f"; the last good checkpoint is kept in {out}" if out and (out / CHECKPOINT).is_file() else ""
        raise Diverged(
            f"the loss became {odd[0]} in epoch {progress.epoch}:"
            f" lower --lr {run.optim.lr:g}{'' if run.sharpness == 'none' else f' or --rho {run.rho:g}'}{kept}"
        )


def _epoch(
    run: ResolvedRun, parts: Parts, progress: Progress, watcher: Watcher, team: Team, probe: Probe | None
) -> dict[str, Any]:
    """Train on every image once, then evaluate on the validation images."""
    training, splits = parts.training, parts.splits
    parts.net.train()
    losses = torch.zeros((), device=run.runtime.device)
    correct = torch.zeros((), dtype=torch.int64, device=run.runtime.device)
    started, images = time.perf_counter(), 0
    steps = run.schedule.whole_epochs * training.rounds * parts.steps_per_epoch
    forward = parts.cost.forward(training.masks)
    moved: list[float] = []  # churn of this epoch's updates
    mine: dict[str, Any] = {"augment": parts.augment, "seed": run.seed, "epoch": progress.epoch, "part": team.part}
    for inputs, targets in batches(splits.train, splits, run.optim.batch_size, **mine):
        size = min(run.optim.batch_size, len(splits.train) - images)  # of the whole batch
        due = training.due(training.steps_taken + 1)
        before = {name: mask.clone() for name, mask in training.masks.items()} if due else {}
        began = _clock(run)
        loss, outputs, passes = _step(run, parts, inputs, targets, share=team.size * len(inputs) / size)
        progress.step_seconds.append(_clock(run) - began)
        progress.train_flops += size * step_flops(
            forward, parts.cost.dense, passes, due, momentum=training.plan.momentum is not None
        )
        if due:
            forward = parts.cost.forward(training.masks)
            moved.append(churn(before, training.masks))
        _compare_gradients(parts, progress)
        if probe:
            started += probe(parts, progress)  # as if no time had passed
        progress.gradient_evaluations += passes
        parts.optimizer.zero_grad()
        parts.schedule.step()
        losses += loss.detach() * len(inputs)
        correct += task.correct(outputs, targets)
        images += size
        progress.step += 1
        watcher.stepped(progress.step, steps, images / (time.perf_counter() - started))
    progress.epoch += 1
    lasted = time.perf_counter() - started
    progress.seconds += lasted
    team.sum(losses, correct)
    looking = (
        progress.epoch % run.runtime.validate_every == 0
        or progress.epoch == run.schedule.whole_epochs * training.rounds
    )
    looked = evaluate(run, parts.model, splits.validation, splits) if looking and team.leads else (None, None)
    found = health(training.masks, parts.model)
    accuracy, loss_there = team.told(looked)
    return {
        "epoch": progress.epoch,
        **({"round": training.round} if training.rounds > 1 else {}),
        "step": progress.step,
        "train_loss": float(losses) / images,
        "train_accuracy": 100 * int(correct) / splits.train.targets,
        "validation_loss": loss_there,
        "validation_accuracy": accuracy,
        "lr": parts.schedule.get_last_lr()[0],
        "sparsity": training.sparsity,
        "updates": len(moved),
        "churn": statistics.fmean(moved) if moved else None,
        "exploration": training.exploration,
        "dead_filters": found.dead / found.filters,
        "collapsed": found.collapsed,
        "images_per_second": images / lasted,
    }


def _clock(run: ResolvedRun) -> float:
    """The time when the device has done all it was asked to."""
    if run.runtime.device.startswith("cuda"):
        torch.cuda.synchronize(run.runtime.device)
    return time.perf_counter()


def _step(run: ResolvedRun, parts: Parts, inputs: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor, int]:
    """One optimizer step; returns the loss and the outputs of its first forward, and how many gradients it took.

    Args:
        share: what this process's mean loss counts in the mean over processes, 1 when all have as many images.
    """
    passes: list[tuple[Tensor, Tensor]] = []

    def gradient() -> Tensor:
        with _precision(run):
            outputs = parts.net(inputs)
            loss = task.loss(outputs, targets, label_smoothing=run.optim.label_smoothing)
        (loss * share if share != 1 else loss).backward()
        passes.append((loss.detach(), outputs.detach()))
        return loss

    if run.sharpness in ("sam", "looksam"):  # which know whether a step needs a second gradient
        parts.optimizer.step(gradient)  # type: ignore[arg-type]  # torch's stubs want a float of it
    else:
        gradient()
        parts.optimizer.step()
    return *passes[0], len(passes)


def _compare_gradients(parts: Parts, progress: Progress) -> None:
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
def evaluate(
    run: ResolvedRun, model: nn.Module, images: Images, splits: Splits, counts: Tensor | None = None
) -> tuple[float | None, float | None]:
    """Accuracy in percent and mean loss, in evaluation mode; of no images, none. ``confusion`` is added to ``counts``."""
    if len(images) == 0:
        return None, None
    model.eval()
    correct, loss = 0, 0.0
    for inputs, targets in batches(images, splits, run.runtime.eval_batch_size or at_once(images)):
        with _precision(run):
            outputs = model(inputs).float()
        correct += int(task.correct(outputs, targets))
        loss += float(task.loss(outputs, targets, reduction="sum"))
        if counts is not None:
            counts += confusion(outputs, targets, len(counts))
    return 100 * correct / images.targets, loss / images.targets


def _renew_statistics(run: ResolvedRun, parts: Parts) -> None:
    """Batch norm's running statistics anew, as means over the training images at the weights as they are (Izmailov et al. 2018).

    Images are as in training, cropped and flipped where that does.
    """
    passed = batches(parts.splits.train, parts.splits, run.optim.batch_size, augment=parts.augment, seed=run.seed)
    with _precision(run):
        torch.optim.swa_utils.update_bn(passed, parts.model)


def _ball_increase(run: ResolvedRun, parts: Parts) -> float:
    """The worst-case sharpness of the loss on training images at the final weights; see ``sharpness.DEFINITION``."""
    images = parts.splits.train.take(torch.arange(min(BALL_IMAGES, len(parts.splits.train))))
    size = max(1, (run.runtime.eval_batch_size or at_once(images)) // 4)

    def gradient() -> float:
        parts.model.zero_grad()
        total = 0.0
        for inputs, targets in batches(images, parts.splits, size):
            loss = task.loss(parts.model(inputs).float(), targets, reduction="sum") / images.targets
            loss.backward()
            total += float(loss.detach())
        return total

    parts.model.eval()
    return worst_case_sharpness(parts.model, parts.training.zeroing(), gradient, BALL_RADIUS)


def _precision(run: ResolvedRun) -> contextlib.AbstractContextManager[Any]:
    if run.runtime.precision == "bf16":
        return torch.autocast(torch.device(run.runtime.device).type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _mean_churn(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Over all updates of the run; none when there were none."""
    updates = sum(record["updates"] for record in records)
    return sum(r["churn"] * r["updates"] for r in records if r["updates"]) / updates if updates else None


def _finish(run: ResolvedRun, out: Path, parts: Parts, progress: Progress, test: bool) -> dict[str, Any]:
    """Measure the trained net and write everything down; the result comes last, because it says that all is there."""
    splits, report = parts.splits, parts.training.report()
    if run.runtime.batch_norm == "final":
        _renew_statistics(run, parts)
    counts = torch.zeros(parts.classes, parts.classes, dtype=torch.int64, device=run.runtime.device)
    test_accuracy, test_loss = evaluate(run, parts.model, splits.test, splits, counts) if test else (None, None)
    train_accuracy, train_loss = evaluate(run, parts.model, splits.train, splits)
    validation_accuracy, validation_loss = evaluate(run, parts.model, splits.validation, splits)
    _check(run, progress, train_loss, validation_loss, test_loss)  # nothing may have looked since the last step
    found = health(parts.training.masks, parts.model)
    samples = len(splits.train) * run.schedule.epochs  # what dense training would take: one round of ordinary length
    result = {
        "method": run.pruning.method,
        "sharpness": run.sharpness,
        "rho": run.rho if run.sharpness != "none" else 0.0,
        "model": run.model,
        "data": run.dataset.data,
        "data_set": parts.data.identity,
        "seed": run.seed,
        "test_accuracy": test_accuracy,
        "test_loss": test_loss,
        "macro": macro(counts) if test else None,
        "above_chance": above_chance(counts) if test else None,
        "train_accuracy": train_accuracy,
        "train_loss": train_loss,
        "generalization_gap": None
        if test_accuracy is None or train_accuracy is None
        else train_accuracy - test_accuracy,
        "validation_accuracy": validation_accuracy,
        "validation_loss": validation_loss,
        "epochs": progress.epoch,
        "rounds": parts.training.rounds,
        "steps": progress.step,
        "gradient_evaluations": progress.gradient_evaluations,
        "steps_to": {str(level): steps_to(progress.records, level) for level in REACHED},
        "gradient_cosine": statistics.fmean(progress.cosines) if progress.cosines else None,
        "ball": {"radius": BALL_RADIUS, "increase": _ball_increase(run, parts) if test else None},
        "sparsity": {"prunable": report.sparsity, "overall": report.overall_sparsity},
        **({} if parts.training.channels is None else {"channels": parts.training.channels}),
        "exploration": parts.training.exploration,
        "health": {
            "churn": _mean_churn(progress.records),
            "dead_filters": found.dead,
            "filters": found.filters,
            "collapsed": found.collapsed,
        },
        "flops": {
            "train": progress.train_flops,
            "train_dense": 3.0 * parts.cost.dense * samples,
            "inference": parts.cost.forward(parts.training.masks),
            "inference_dense": float(parts.cost.dense),
        },
        "seconds": {"train": progress.seconds, "step_median": statistics.median(progress.step_seconds)},
        "images_per_second": len(splits.train) * progress.epoch / progress.seconds,
    }
    save_checkpoint(out, run, parts, progress)
    save_tensors(out / "model.safetensors", parts.model.state_dict(), {"format": "pt"})
    save_masks(out / "masks.safetensors", parts.training.masks, method=run.pruning.method, step=progress.step)
    write_json(out / RESULT, result)
    return result

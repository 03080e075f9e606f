"""Training a run into its folder: epoch by epoch, from its last checkpoint to its result."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

from flatsparse.common.distributed import checksum
from flatsparse.common.errors import InputError
from flatsparse.experiments.claims import claim
from flatsparse.experiments.clock import clock
from flatsparse.experiments.data.loading import deaths_told
from flatsparse.experiments.run.build import Parts, build, describe
from flatsparse.experiments.run.checkpoint import CHECKPOINT, Progress, load_checkpoint, save_checkpoint
from flatsparse.experiments.run.config import FREE, RunConfig, as_json
from flatsparse.experiments.run.ddp import SINGLE, DistContext
from flatsparse.experiments.run.environment import environment
from flatsparse.experiments.run.epoch import train_epoch
from flatsparse.experiments.run.finish import check_finite_losses, finish
from flatsparse.experiments.run.folder import (
    CONFIG,
    MASKS,
    METRICS,
    PROBES,
    RESULT,
    WEIGHTS,
    read_config,
    read_metrics,
    read_probes,
    read_result,
    write_metrics,
    write_metrics_again,
)
from flatsparse.experiments.run.learning_rate import start_schedule
from flatsparse.experiments.run.precision import warn_of_slow_bf16
from flatsparse.experiments.run.probe import Probe
from flatsparse.experiments.run.records import RunResult
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.run.shared_round import is_shareable, load_first_round, prepare, save_first_round
from flatsparse.experiments.run.watcher import Silent, Watcher
from flatsparse.experiments.tracking.tracking import Tracking

CHECKPOINT_SECONDS = 0.0  # between checkpoints, at least: none, so that a kill costs only the epoch in hand


def train(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    watcher: Watcher | None = None,
    test: bool = True,
    context: DistContext = SINGLE,
    shared_rounds: Path | None = None,
    tracking: Tracking | None = None,
) -> RunResult:
    """Train one run into a folder and return its result.

    Args:
        config: what to train; see ``RunConfig``.
        out: the run's folder: ``config.json``, ``metrics.jsonl``, with probes ``probes.jsonl``, ``checkpoint.pt`` every
            epoch, and at the end ``model.safetensors``, ``masks.safetensors`` and ``result.json``.
        resume: continue from the folder's checkpoint, or return its result if it is finished.
        watcher: is notified of progress.
        test: evaluate on the test set at the end. Without it the result is for choices, on the validation images.
        context: the processes that train it together, each on its shard of every batch; all must see the folder, and the main
            one writes it. Batch norm's statistics are each process's own, and the main one's are kept.
        shared_rounds: a folder of dense first rounds, for methods in rounds whose first is dense: the run's own is taken from
            there, or put there. The result counts it as if the run had trained it.
        tracking: the trackers that the main process logs to, such as ``Tracking([TensorBoard()])``; they change no result.

    Raises: InputError for what cannot be run, a folder that holds another run or that another process is at work in, or a
        loss that is not finite.
    """
    context.note("building the network and the data")
    parts = build(resolve(config), context)  # before the folder is touched by a bad choice
    if context.is_main:
        warn_of_slow_bf16(parts.run)
    with contextlib.ExitStack() as held:
        context.on_main(lambda: held.enter_context(_claimed(out, parts, resume=resume)))
        if (out / RESULT).is_file() and not _lacks_weights(out):
            return _finished(out, parts)
        held.enter_context(deaths_told(parts.task.name))
        followed = held.enter_context(tracking if tracking and context.is_main else Tracking())
        return _train(out, parts, watcher or Silent(), test, shared_rounds, followed)


@contextlib.contextmanager
def _claimed(out: Path, parts: Parts, *, resume: bool) -> Iterator[None]:
    """``claim`` a run's folder. Raises InputError for one whose work was done on other data of the same name too."""
    about = {"data_set": parts.task.identity, **environment(parts.run.runtime.device, parts.context.size)}
    with claim(out, CONFIG, as_json(parts.run), resume=resume, about=about, free=FREE):
        parts.task.check_same(read_config(out), f"'{out}'")
        yield


def _lacks_weights(out: Path) -> bool:
    """Return if a finished run's weights or masks were deleted, as damaged ones may be, and its checkpoint has them."""
    return (out / CHECKPOINT).is_file() and not all((out / name).is_file() for name in (WEIGHTS, MASKS))


def _finished(out: Path, parts: Parts) -> RunResult:
    """Return the result of a finished run; deleted metrics are written again, and damaged ones refused."""
    result = read_result(out)
    if parts.run.probe_every or not (out / METRICS).is_file():
        progress = load_checkpoint(out, parts)  # which alone knows how many probes there were
        if not (out / METRICS).is_file() or (progress.probes and not (out / PROBES).is_file()):
            result = write_metrics_again(out, result, progress.records, progress.probes)
        read_probes(out, result, len(progress.probes))
    read_metrics(out, result)
    return result


def _train(
    out: Path, parts: Parts, watcher: Watcher, test: bool, shared_rounds: Path | None, tracking: Tracking
) -> RunResult:
    """Train a run from where its folder has it to its result."""
    run, context = parts.run, parts.context
    progress = load_checkpoint(out, parts)
    _check_same_state(out, parts, progress)
    shares = shared_rounds if is_shareable(parts.training.plan) else None
    if shares:
        context.on_main(functools.partial(prepare, shares))
        if progress.epoch == 0:
            progress = load_first_round(shares, parts) or progress
    if context.is_main:
        write_metrics(out, progress.records, progress.probes)  # an epoch may have been noted, or half noted, since
    resumed = f"; continuing after epoch {progress.epoch}" if progress.epoch else ""
    watcher.started(run, describe(parts) + resumed)
    tracking.start(out, as_json(run), [record.to_json() for record in progress.records])
    probe = Probe(run.probe_every, parts) if run.probe_every and context.is_main else None
    saved = clock()
    while progress.epoch < run.schedule.whole_epochs * parts.training.rounds:
        if progress.epoch == run.schedule.whole_epochs * (parts.training.round + 1):
            parts.training.next_round()
            if parts.average:
                parts.average.restart()
            parts.schedule = start_schedule(run, parts.optimizer, parts.steps_per_epoch)
        record = train_epoch(parts, progress, watcher, probe, out)
        check_finite_losses(parts, progress.epoch, record.train_loss, record.validation_loss, out=out)
        progress.records.append(record)
        tracking.log(record.to_json())  # before the checkpoint: what is lost with a process is trained again
        if context.is_main:
            context.note(f"the checkpoint of epoch {progress.epoch}")
            saved = _save(out, parts, progress, shares, saved)
        watcher.finished_epoch(record)
    context.note("the closing measurements")
    result: RunResult = context.broadcast(finish(out, parts, progress, test, watcher) if context.is_main else None)
    tracking.finish(result.to_json())
    return result


def _check_same_state(out: Path, parts: Parts, progress: Progress) -> None:
    """Raise InputError, on all processes, when they are not at the same epoch with the same masks."""
    if parts.context.size > 1:
        states = parts.context.gather((progress.epoch, checksum(parts.training.masks.values())))
        if odd := [rank for rank, state in enumerate(states) if state != states[0]]:
            raise InputError(
                f"processes {odd} do not start where process 0 does, with the masks after epoch {states[0][0]} in '{out}': let"
                " all see one folder, with the same files"
            )


def _save(out: Path, parts: Parts, progress: Progress, shares: Path | None, saved: float) -> float:
    """Write the files of a run after an epoch; return when its last checkpoint was written."""
    write_metrics(out, progress.records, progress.probes)
    if shares and progress.epoch == parts.run.schedule.whole_epochs:
        save_first_round(shares, parts, progress)
    if clock() - saved < CHECKPOINT_SECONDS:
        return saved
    save_checkpoint(out, parts, progress)
    return clock()

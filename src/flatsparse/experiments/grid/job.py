"""The job of a grid: one run of a store, trained to its end unless another process is training it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from flatsparse.common.errors import InputError, described, first_line
from flatsparse.experiments.claims import Busy, locked
from flatsparse.experiments.run.config import ResolvedRun, change
from flatsparse.experiments.run.folder import FAILURE, RESULT, read_failure, write_failure
from flatsparse.experiments.run.loop import train
from flatsparse.experiments.run.method import plan_of
from flatsparse.experiments.run.records import EpochRecord
from flatsparse.experiments.run.shared_round import first_round_key, has_first_round, is_shareable
from flatsparse.experiments.run.watcher import Silent
from flatsparse.experiments.tracking.tracking import Tracking


@dataclass(frozen=True)
class JobOutcome:
    """The end of a job: finished, failed for a reason, or not begun because another process is training the run."""

    failure: str | None = None
    busy: bool = False


class FolderJob(Protocol):
    """A job of a grid, whose result or failure is in a folder of its own. Such a job may run on another machine."""

    @property
    def folder(self) -> Path:
        """Its folder, which holds ``result.json`` or ``failure.json`` when it has ended."""
        ...

    @property
    def device(self) -> str:
        """The device that it computes on."""
        ...

    def elsewhere(self) -> FolderJob:
        """Return the job with whole paths, for processes that stand in other folders."""
        ...

    def run(self) -> JobOutcome:
        """Do the work. Raise what should stop the other jobs too."""
        ...

    def lost(self, reason: str) -> JobOutcome:
        """Write down that the process of the job died."""
        ...


SomeFolderJob = TypeVar("SomeFolderJob", bound=FolderJob)


@dataclass(frozen=True)
class RunJob:
    """A run and its place in a store.

    Attributes:
        config: what to train.
        folder: the run's.
        store: the folder that holds the locks and the dense first rounds.
        retry: try again what failed.
        test: see ``train``.
        exclusive: no other process uses the store, so take no locks and share no first rounds.
        track: names of trackers that the run is shown in, as one of a group that has the store's name.
    """

    config: ResolvedRun
    folder: Path
    store: Path
    retry: bool = False
    test: bool = True
    exclusive: bool = False
    track: tuple[str, ...] = ()

    @property
    def device(self) -> str:
        return self.config.runtime.device

    def elsewhere(self) -> RunJob:
        data_dir, init = self.config.dataset.data_dir, self.config.init
        config = change(self.config, data_dir=data_dir and data_dir.resolve(), init=init and init.resolve())
        return dataclasses.replace(self, config=config, folder=self.folder.resolve(), store=self.store.resolve())

    def run(self) -> JobOutcome:
        """Train the run to its end, unless another process is training it, or the first round that it would share.

        A failure is written down before the lock is given back, so that no other process meets the run without one.
        """
        try:
            with contextlib.ExitStack() as held:
                if not (self.exclusive or held.enter_context(store_lock(self.store, self.folder.name))):
                    return JobOutcome(busy=True)
                if (self.folder / RESULT).is_file():
                    return JobOutcome()
                failure = None if self.retry else read_failure(self.folder)
                if failure is not None:  # in another process, since the grid began
                    return JobOutcome(failure)
                (self.folder / FAILURE).unlink(missing_ok=True)
                round_lock = contextlib.ExitStack()
                if shares := not self.exclusive and is_shareable(plan_of(self.config)):
                    held.enter_context(round_lock)
                    if not round_lock.enter_context(store_lock(self.store, f"first-{first_round_key(self.config)}")):
                        return JobOutcome(busy=True)
                return self._train(round_lock if shares else None)
        except (InputError, OSError) as problem:
            return JobOutcome(reason_of(problem))

    def _train(self, round_lock: contextlib.ExitStack | None) -> JobOutcome:
        rounds = self.store / "parents"
        try:
            train(
                self.config,
                self.folder,
                resume=True,
                test=self.test,
                shared_rounds=None if self.exclusive else rounds,
                watcher=_RoundSharing(rounds, round_lock) if round_lock is not None else None,
                tracking=Tracking.named(self.track, self.store.resolve().name),
            )
        except Busy:  # with flatsparse train
            return JobOutcome(busy=True)
        except (Exception, SystemExit) as problem:  # whatever it is, the other runs continue
            return fail(self.folder, reason_of(problem), problem)
        return JobOutcome()

    def lost(self, reason: str) -> JobOutcome:
        """Write down that the process of the run died."""
        return fail(self.folder, f"{reason}, with --retry")


def fail(folder: Path, reason: str, problem: BaseException | None = None) -> JobOutcome:
    """Write down why a run failed, and return that as its outcome."""
    with contextlib.suppress(InputError, OSError):  # a full disk is a reason to fail, and no place to write it down
        write_failure(folder, reason, problem)
    return JobOutcome(reason)


def reason_of(problem: BaseException) -> str:
    """Return why a run failed, in one line."""
    return first_line(problem) if isinstance(problem, InputError) else described(problem)


class _RoundSharing(Silent):
    """Releases the lock of a shared first round as soon as the round is available to others."""

    def __init__(self, rounds: Path, lock: contextlib.ExitStack) -> None:
        self.rounds, self.lock = rounds, lock

    def started(self, run: ResolvedRun, setting: str) -> None:
        self.run = run  # with the sizes of its data, which the round's file is named by
        self._release()

    def finished_epoch(self, record: EpochRecord) -> None:
        self._release()

    def _release(self) -> None:
        if has_first_round(self.rounds, self.run):
            self.lock.close()


@contextlib.contextmanager
def store_lock(store: Path, name: str) -> Iterator[bool]:
    """A context that is true when this process has a lock of the store. Raises InputError on a file system without locks."""
    (store / "locks").mkdir(parents=True, exist_ok=True)
    with locked(store / "locks" / name, keep=True) as got:
        yield got

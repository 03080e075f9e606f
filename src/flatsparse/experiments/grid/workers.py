"""Those who run tasks: this process, or several side by side. Each run has one thread, wherever it is run."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from flatsparse.common.errors import InputError
from flatsparse.experiments.claims import Busy, locked
from flatsparse.experiments.grid.pool import end_with_parent
from flatsparse.experiments.run.config import ResolvedRun
from flatsparse.experiments.run.folder import FAILURE, RESULT, read_failure, write_failure
from flatsparse.experiments.run.loop import train
from flatsparse.experiments.run.method import plan_of
from flatsparse.experiments.run.records import EpochRecord
from flatsparse.experiments.run.shared_round import first_round_key, has_first_round, is_shareable
from flatsparse.experiments.run.watcher import Silent

PATIENCE = 0.5  # seconds between looks at how far runs are


@dataclass(frozen=True)
class Task:
    """A resolved run, its folder, the store that it belongs to, and whether to try again what failed."""

    run: ResolvedRun
    folder: Path
    store: Path
    retry: bool = False


@dataclass(frozen=True)
class End:
    """How a task ended: finished, failed for a reason, or not begun because another process is at it."""

    failure: str | None = None
    busy: bool = False


class Crew(ABC):
    """Who runs tasks."""

    @property
    @abstractmethod
    def free(self) -> bool:
        """Whether another task can begin."""

    @abstractmethod
    def begin(self, task: Task) -> None:
        """Begin a task."""

    @abstractmethod
    def finished(self) -> list[tuple[Task, End]]:
        """What has ended. Waits a moment for the first."""

    @abstractmethod
    def close(self) -> None:
        """Stop what is still running; all of it can be resumed."""


def work(task: Task) -> End:
    """Run a task to its end on one thread, unless another process is at it, or at the first round that it would share.

    A failure is written down before the lock is given back, so that no other process meets the run without one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with contextlib.ExitStack() as held:
            if not held.enter_context(_lock(task.store, task.folder.name)):
                return End(busy=True)
            if (task.folder / RESULT).is_file():
                return End()
            failure = None if task.retry else read_failure(task.folder)
            if failure is not None:  # in another process, since the grid began
                return End(failure)
            (task.folder / FAILURE).unlink(missing_ok=True)
            first = contextlib.ExitStack()
            if shares := is_shareable(plan_of(task.run)):
                held.enter_context(first)
                if not first.enter_context(_lock(task.store, f"first-{first_round_key(task.run)}")):
                    return End(busy=True)
            try:
                train(
                    task.run,
                    task.folder,
                    resume=True,
                    shared_rounds=task.store / "parents",
                    watcher=_Sharing(task.store / "parents", first) if shares else None,
                )
            except Busy:  # with flatsparse train
                return End(busy=True)
            except (Exception, SystemExit) as problem:  # whatever it is, the other runs go on
                return fail(task.folder, _reason(problem), problem)
    except (InputError, OSError) as problem:
        return End(_reason(problem))
    finally:
        torch.set_num_threads(threads)
    return End()


def fail(folder: Path, reason: str, problem: BaseException | None = None) -> End:
    """The end of a task that failed, which is written down."""
    with contextlib.suppress(InputError, OSError):  # a full disk is a reason to fail, and no place to say so
        write_failure(folder, reason, problem)
    return End(reason)


def _reason(problem: BaseException) -> str:
    first = next(iter(str(problem).splitlines()), "")
    return first if isinstance(problem, InputError) else f"{type(problem).__name__}: {first}"


class _Sharing(Silent):
    """Gives the lock of a shared first round back as soon as the round is there for others."""

    def __init__(self, parents: Path, lock: contextlib.ExitStack) -> None:
        self.parents, self.lock = parents, lock

    def started(self, run: ResolvedRun, setting: str) -> None:
        self.run = run  # with the sizes of its data, which the round's file is named by
        self._look()

    def finished_epoch(self, record: EpochRecord) -> None:
        self._look()

    def _look(self) -> None:
        if has_first_round(self.parents, self.run):
            self.lock.close()


@contextlib.contextmanager
def _lock(store: Path, name: str) -> Iterator[bool]:
    """Whether this process has got a lock of the store. Raises InputError on a file system that has no locks."""
    (store / "locks").mkdir(parents=True, exist_ok=True)
    with locked(store / "locks" / name, keep=True) as got:
        yield got


class Alone(Crew):
    """This process, one run at a time."""

    def __init__(self) -> None:
        self.task: Task | None = None

    @property
    def free(self) -> bool:
        return self.task is None

    def begin(self, task: Task) -> None:
        self.task = task

    def finished(self) -> list[tuple[Task, End]]:
        task, self.task = self.task, None
        return [] if task is None else [(task, work(task))]

    def close(self) -> None:
        """Nothing runs on."""


@dataclass
class Hand:
    """A process that runs one task after the other, and what it is at."""

    process: BaseProcess
    pipe: Connection
    task: Task | None = None


class Processes(Crew):
    """Processes side by side. One that is killed fails its own run; the next task gets a new one.

    Ours, because a ``ProcessPoolExecutor`` breaks as a whole and does not say whose process died.
    """

    def __init__(self, count: int) -> None:
        self.count, self.hands = count, list[Hand]()

    @property
    def free(self) -> bool:
        return sum(hand.task is not None for hand in self.hands) < self.count

    def begin(self, task: Task) -> None:
        for hand in [hand for hand in self.hands if hand.task is None]:
            try:
                hand.pipe.send(task)
            except OSError:  # it died while it was idle
                self._part(hand)
                continue
            hand.task = task
            return
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()  # so that the pipe ends with the process
        self.hands.append(Hand(process, ours, task))
        with contextlib.suppress(OSError):  # one that died at once is found by the end of its pipe
            ours.send(task)

    def finished(self) -> list[tuple[Task, End]]:
        busy: dict[Any, Hand] = {hand.pipe: hand for hand in self.hands if hand.task is not None}
        ends = []
        for pipe in wait(list(busy), timeout=PATIENCE):
            hand = busy[pipe]
            task, hand.task = hand.task, None
            assert task is not None  # it is busy
            try:
                ends.append((task, hand.pipe.recv()))
            except (EOFError, OSError):
                ends.append((task, fail(task.folder, _death(self._part(hand)))))
        return ends

    def _part(self, hand: Hand) -> int | None:
        self.hands.remove(hand)
        hand.pipe.close()
        hand.process.join(5)
        return hand.process.exitcode

    def close(self) -> None:
        for hand in self.hands:
            hand.process.kill()  # files are whole or absent, at any moment
        for hand in list(self.hands):
            self._part(hand)


def _death(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed, perhaps for want of memory: try fewer --jobs, and --retry"
    told = signal.Signals(-code).name if code is not None and code < 0 else f"status {code}"
    return f"its process ended with {told}: try again with --retry"


def _serve(pipe: Connection) -> None:
    """Run what comes through the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear
    threading.Thread(target=end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(work(pipe.recv()))

"""Executors: run jobs serially or in worker processes, each job on one thread."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Protocol, TypeVar

import torch

from flatsparse.common.errors import described

PATIENCE = 0.5  # seconds that an executor waits for a job to end


class Job(Protocol):
    """A piece of work that another process can be given."""

    def run(self) -> Any:
        """Do the work and return its outcome. Raise what should stop the other jobs too."""

    def lost(self, reason: str) -> Any:
        """Return the outcome of a job whose process died, or raise an error; the reason ends in what to do."""


SomeJob = TypeVar("SomeJob", bound=Job)


class Executor(ABC, Generic[SomeJob]):
    """Runs jobs, some at a time; a context.

    A job has one thread wherever it runs, so that its numbers do not depend on how many run at once.
    """

    @property
    @abstractmethod
    def free(self) -> bool:
        """True while another job can be submitted."""

    @abstractmethod
    def submit(self, job: SomeJob) -> None:
        """Start a job."""

    @abstractmethod
    def finished(self) -> list[tuple[SomeJob, Any]]:
        """The jobs that have ended, with their outcomes; waits a moment for the first. Raises what a job raised."""

    @abstractmethod
    def close(self) -> None:
        """Stop what is still running; all of it can be resumed."""

    def map(self, jobs: Iterable[SomeJob]) -> Iterator[tuple[SomeJob, Any]]:
        """Run all jobs; yield each with its outcome as it ends."""
        waiting, running = deque(jobs), 0
        while waiting or running:
            while waiting and self.free:
                self.submit(waiting.popleft())
                running += 1
            for ended in self.finished():
                running -= 1
                yield ended

    def __enter__(self) -> Executor[SomeJob]:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()


def local_executor(jobs: int) -> Executor[Any]:
    """Return the executor on this machine that runs this many jobs in parallel."""
    return Serial() if jobs == 1 else Workers(jobs)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs(device: str) -> int:
    """The number of jobs that a device runs at once: one for each core, and a single one on an accelerator."""
    return cores() if device == "cpu" else 1


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """A context in which torch computes on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Serial(Executor[SomeJob]):
    """Runs one job at a time, in this process."""

    def __init__(self) -> None:
        self.job: SomeJob | None = None

    @property
    def free(self) -> bool:
        return self.job is None

    def submit(self, job: SomeJob) -> None:
        self.job = job

    def finished(self) -> list[tuple[SomeJob, Any]]:
        job, self.job = self.job, None
        if job is None:
            return []
        with one_thread():
            return [(job, job.run())]

    def close(self) -> None:
        """Do nothing, as no job is left running."""


@dataclass
class Worker:
    """A process that runs one job after the other, and the job it is running."""

    process: BaseProcess
    pipe: Connection
    job: Any = None


@dataclass(frozen=True)
class _Raised:
    """An error that a job raised."""

    problem: BaseException


class Workers(Executor[SomeJob]):
    """Runs jobs in worker processes. One that is killed loses its own job; the next job gets a new one.

    Ours, because a ``ProcessPoolExecutor`` breaks as a whole and does not say whose process died.
    """

    def __init__(self, count: int) -> None:
        self.count, self.workers = count, list[Worker]()

    @property
    def free(self) -> bool:
        return sum(worker.job is not None for worker in self.workers) < self.count

    def submit(self, job: SomeJob) -> None:
        for worker in [worker for worker in self.workers if worker.job is None]:
            try:
                worker.pipe.send(job)
            except OSError:  # it died while it was idle
                self._remove(worker)
                continue
            worker.job = job
            return
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there,), daemon=True)
        process.start()
        there.close()  # so that the pipe ends with the process
        self.workers.append(Worker(process, here, job))
        with contextlib.suppress(OSError):  # one that died at once is found by the end of its pipe
            here.send(job)

    def finished(self) -> list[tuple[SomeJob, Any]]:
        busy: dict[Any, Worker] = {worker.pipe: worker for worker in self.workers if worker.job is not None}
        ended = []
        for pipe in wait(list(busy), timeout=PATIENCE):
            worker = busy[pipe]
            job, worker.job = worker.job, None
            try:
                outcome = worker.pipe.recv()
            except (EOFError, OSError):
                outcome = job.lost(_death(self._remove(worker)))
            if isinstance(outcome, _Raised):
                raise outcome.problem
            ended.append((job, outcome))
        return ended

    def _remove(self, worker: Worker) -> int | None:
        self.workers.remove(worker)
        worker.pipe.close()
        worker.process.join(5)
        return worker.process.exitcode

    def close(self) -> None:
        for worker in self.workers:
            worker.process.kill()  # files are whole or absent, at any moment
        for worker in list(self.workers):
            self._remove(worker)


def _death(code: int | None) -> str:
    names: dict[int | None, str] = {-number: number.name for number in signal.Signals}  # those of this system
    end = names.get(code, f"status {code}")
    if end == "SIGKILL":
        return "its process was killed, perhaps for lack of memory: try fewer --jobs"
    return f"its process ended with {end}: try again"


def _serve(pipe: Connection) -> None:
    """Run the jobs that come through the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    multiprocessing.current_process().daemon = (
        False  # else a job could not have processes of its own, that read its data
    )
    with contextlib.suppress(EOFError, OSError):
        while True:
            job = pipe.recv()
            try:
                outcome = job.run()
            except Exception as problem:
                outcome = _Raised(_picklable(problem))
            pipe.send(outcome)


def _picklable(problem: Exception) -> Exception:
    """Return an error that can go through a pipe: itself, or where it cannot, one with its text."""
    try:
        pickle.loads(pickle.dumps(problem))
    except Exception:  # whatever its class does
        return RuntimeError(described(problem))
    return problem


def _exit_with_parent() -> None:
    """Exit when the parent is killed: a pipe's other end may live on in another worker."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

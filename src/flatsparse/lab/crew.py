"""Those who run tasks: this process, several processes, or a Ray cluster. All give each run one thread of a CPU."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flatsparse.errors import InputError
from flatsparse.lab.pool import end_with_parent
from flatsparse.lab.run import Run
from flatsparse.lab.training import train
from flatsparse.storage import write_whole

PATIENCE = 0.5  # seconds between looks at how far runs are
End = tuple["Task", "str | None"]


@dataclass(frozen=True)
class Task:
    """A run, its folder, and the store that it belongs to."""

    run: Run
    folder: Path
    store: Path

    @property
    def parents(self) -> Path:
        """Where dense first rounds are shared."""
        return self.store / "parents"


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
    def finished(self) -> list[End]:
        """What has ended, each with the reason of its failure, or None. Waits a moment for the first."""


@contextmanager
def crew(jobs: int | None, cluster: str | None) -> Iterator[Crew]:
    """Those who run tasks: on a cluster by its address, else so many processes, of which a single one is this."""
    if cluster is not None:
        with ray_cluster(cluster, jobs) as ray:
            yield OnRay(ray, jobs)
    elif jobs == 1:
        yield Alone()
    else:
        with contextlib.closing(Processes(jobs or 1)) as processes:
            yield processes


def work(task: Task) -> str | None:
    """Run a task to its end, on one thread; the reason of its failure, or None.

    Another process may be at the same run: then this one waits for it, and finds it finished.
    """
    threads = torch.get_num_threads()
    if task.run.device == "cpu":
        torch.set_num_threads(1)
    try:
        with _lock(task):
            train(task.run, task.folder, resume=(task.folder / "config.json").is_file(), parent=task.parents)
    except InputError as problem:  # what cannot be run, and a loss that is not finite
        return str(problem)
    except Exception as problem:
        return f"{type(problem).__name__}: {next(iter(str(problem).splitlines()), '')}"
    finally:
        torch.set_num_threads(threads)
    return None


@contextmanager
def _lock(task: Task) -> Iterator[None]:
    """Hold a run for this process; the lock goes with the process, however it ends."""
    locks = task.store / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / task.folder.name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Alone(Crew):
    """This process, one run at a time."""

    def __init__(self) -> None:
        self.task: Task | None = None

    @property
    def free(self) -> bool:
        return self.task is None

    def begin(self, task: Task) -> None:
        self.task = task

    def finished(self) -> list[End]:
        task, self.task = self.task, None
        return [] if task is None else [(task, work(task))]


class Processes(Crew):
    """Processes side by side. One that is killed takes its siblings' pool with it, so they all begin anew, those that were at
    work alone: what dies once more is the one to blame."""

    def __init__(self, count: int) -> None:
        self.count, self.waiting = count, dict[Future, Task]()
        self.suspects: list[Task] = []
        self.pool = self._pool()

    def _pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        return ProcessPoolExecutor(self.count, context, initializer=_enter)

    @property
    def free(self) -> bool:
        return len(self.waiting) < self.count and not self.suspects

    def begin(self, task: Task) -> None:
        self.waiting[self.pool.submit(work, task)] = task

    def finished(self) -> list[End]:
        if self.suspects and not self.waiting:
            self.begin(self.suspects[0])
        done, _ = wait(self.waiting, timeout=PATIENCE, return_when=FIRST_COMPLETED)
        ends: list[End] = []
        for future in done:
            task = self.waiting.pop(future)
            try:
                ends.append((task, future.result()))
            except BrokenProcessPool:
                if task in self.suspects:
                    ends.append((task, "its process was killed, perhaps for want of memory: try fewer --jobs"))
                else:
                    self.suspects.append(task)
                    continue
            if task in self.suspects:
                self.suspects.remove(task)
        if any(future.done() and isinstance(future.exception(), BrokenProcessPool) for future in done):
            self.pool.shutdown(wait=False, cancel_futures=True)
            self.suspects += [task for task in self.waiting.values() if task not in self.suspects]
            self.waiting.clear()
            self.pool = self._pool()
        return ends

    def close(self) -> None:
        """After a failure, or Ctrl-C, what has not begun shall not begin."""
        self.pool.shutdown(cancel_futures=True)


def _enter() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear
    threading.Thread(target=end_with_parent, daemon=True).start()


@contextmanager
def ray_cluster(address: str, jobs: int | None) -> Iterator[Any]:
    """Ray, joined to a cluster, or started on this machine for ``local``. Nothing is reported to anyone."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise InputError("--cluster needs Ray, which is not installed: pip install 'flatsparse[cluster]'") from None
    local: dict[str, Any] = {"num_cpus": jobs, "include_dashboard": False} if address == "local" else {}
    try:
        ray.init(None if address == "local" else address, log_to_driver=False, configure_logging=False, **local)
    except (ConnectionError, ValueError, RuntimeError) as problem:
        reason = str(problem).splitlines()[0].rstrip(".")
        raise InputError(
            f"--cluster {address} cannot be joined ({reason}): give local, auto or ray://HOST:PORT"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


class OnRay(Crew):
    """A Ray cluster, a task each run; what a run leaves behind comes back with it when the store is not shared."""

    def __init__(self, ray: Any, jobs: int | None) -> None:
        self.ray, self.waiting = ray, dict[Any, Task]()
        self.limit = jobs or max(1, int(ray.cluster_resources().get("CPU", 1)))

    @property
    def free(self) -> bool:
        return len(self.waiting) < self.limit

    def begin(self, task: Task) -> None:
        gpus = 0 if task.run.device == "cpu" else 1
        remote = self.ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_work_far_away)
        absolute = Task(task.run, task.folder.resolve(), task.store.resolve())
        self.waiting[remote.remote(absolute)] = task

    def finished(self) -> list[End]:
        done, _ = self.ray.wait(list(self.waiting), num_returns=1, timeout=PATIENCE)
        ends: list[End] = []
        for reference in done:
            task = self.waiting.pop(reference)
            try:
                failure, files = self.ray.get(reference)
            except self.ray.exceptions.RayError as problem:
                failure, files = f"{type(problem).__name__}: {str(problem).splitlines()[0]}", {}
            if failure is None and not (task.folder / "result.json").is_file():
                for name, content in files.items():
                    write_whole(task.folder / name, content)
            ends.append((task, failure))
        return ends


def _work_far_away(task: Task) -> tuple[str | None, dict[str, bytes]]:
    failure = work(task)
    names = [file.name for file in task.folder.iterdir()] if failure is None else []
    kept = sorted((n for n in names if n != "checkpoint.pt"), key=lambda name: name == "result.json")  # that one last
    return failure, {name: (task.folder / name).read_bytes() for name in kept}

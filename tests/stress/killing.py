"""Commands that are started in processes of their own, killed at random moments, and started again until they end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from flatsparse.cli.entry import main
from flatsparse.experiments.grid import workers

SECONDS = 300.0  # for one start; a fault if it takes more
PATIENCE = (
    12.0  # seconds in which processes must notice that their parent was killed; torch's that read data look every five
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = ("os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir")  # and files opened to be written


class Fault(Exception):
    """A command did what it must not."""


@dataclass(frozen=True)
class Moment:
    """When a process is killed: so many seconds after its start, or before its n-th change of a file; never by default."""

    seconds: float | None = None
    change: int | None = None


@dataclass
class Watched:
    """A started command: the leader of a session of its own, by which its processes are found."""

    pid: int
    log: Path

    def living(self) -> list[int]:
        """Return the processes of its session that have not ended, without the first."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.pid:
                with contextlib.suppress(OSError):
                    state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                    if int(session) == self.pid and state not in "ZX":
                        found.append(int(entry.name))
        return found

    def ended(self, seconds: float) -> int | None:
        """Return its exit status, minus the number of the signal that ended it; None if it has not ended so much later."""
        until = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                return None
            time.sleep(0.002)

    def kill(self, *, alone: bool) -> None:
        """Kill the first process, alone or with its whole group, and wait for it."""
        (os.kill if alone else os.killpg)(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def check_gone(self, name: str) -> float:
        """Return the seconds until the last of its processes had ended. Raises Fault when some have not."""
        began = time.monotonic()
        while left := self.living():
            if time.monotonic() - began > PATIENCE:
                lines = [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:80] for pid in left]
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                raise Fault(f"{name}: {len(left)} processes were left behind: {lines}")
            time.sleep(0.01)
        return time.monotonic() - began


def start(arguments: Sequence[str], folder: Path, moment: Moment | None = None, *, alone: bool = False) -> Watched:
    """Start a command line in a folder, in a fork: a fresh interpreter would spend its life on imports.

    Args:
        moment: if by a change of a file, the process kills itself there; by seconds is the caller's to do.
        alone: then only the first process is killed, and not its group.
    """
    log = folder / "log"
    sys.stdout.flush()
    sys.stderr.flush()
    ready, done = os.pipe()
    pid = os.fork()
    if pid:
        os.close(done)
        os.read(ready, 1)  # its group is there before anyone kills it
        os.close(ready)
        return Watched(pid, log)
    code = 70
    try:
        os.setsid()
        os.close(ready), os.close(done)
        os.chdir(folder)
        _redirect(log)
        torch.set_num_threads(1)
        counted = Changes(moment.change if moment else None, os.getpid(), alone)
        sys.addaudithook(counted)
        code = _status(arguments)
        counted.limit = None
        (folder / "changes").write_text(str(counted.count))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _redirect(log: Path) -> None:
    nowhere, file = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, descriptor in ((0, nowhere), (1, file), (2, file)):
        os.dup2(descriptor, number)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)


def _status(arguments: Sequence[str]) -> int:
    try:
        main(list(arguments))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else bool(end.code)
    return 0


class Changes:
    """An audit hook that counts the changes of files, and kills before one of them."""

    def __init__(self, limit: int | None, first: int, alone: bool) -> None:
        self.count, self.limit, self.first, self.alone = 0, limit, first, alone

    def __call__(self, event: str, about: tuple[Any, ...]) -> None:
        if event == "open":
            if not (isinstance(about[2], int) and about[2] & WRITES) or str(about[0]).startswith("/dev/"):
                return
        elif event not in EVENTS:
            return
        self.count += 1
        if self.count == self.limit:
            (os.kill if self.alone else os.killpg)(self.first, signal.SIGKILL)


# -- workers ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def quick_workers() -> Any:
    """A context in which worker processes are forks that keep none of their parent's open files, as fresh ones have none."""
    usual = workers.multiprocessing
    names = {name: getattr(multiprocessing, name) for name in ("current_process", "parent_process")}
    context = multiprocessing.get_context("fork")
    quick = SimpleNamespace(
        Pipe=context.Pipe, Process=lambda target, args, daemon: _Fork(context, target, args, daemon)
    )
    workers.multiprocessing = SimpleNamespace(get_context=lambda _: quick, **names)
    try:
        yield
    finally:
        workers.multiprocessing = usual


def _Fork(context: Any, target: Callable[..., None], args: tuple[Any, ...], daemon: bool) -> Any:
    import resource  # Windows has none, nor forks

    def alone(pipe: Any) -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        kept = {0, 1, 2, pipe.fileno(), parent.sentinel}
        for number in range(min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0])):
            if number not in kept:
                with contextlib.suppress(OSError):
                    os.close(number)
        target(pipe)

    return context.Process(target=alone, args=args, daemon=daemon)


# -- until it ends ----------------------------------------------------------------------------------------------------


@dataclass
class Killer:
    """Starts a command again and again, killing it at random moments.

    Attributes:
        source: of what is random.
        seconds, changes: of an undisturbed command.
        survived: called after each kill.
        waited: the longest time that processes outlived their parent.
        alone: the kills of the first process alone.
    """

    source: random.Random
    seconds: float
    changes: int
    survived: Callable[[], None] = lambda: None
    waited: float = 0.0
    alone: int = 0
    before: list[Watched] = field(default_factory=list)

    def until_done(self, starter: Callable[[Moment, bool], Watched], most: int, name: str) -> int:
        """Kill so often at most, then let it end. Returns the number of kills. Raises Fault for any other status than 0."""
        kills = 0
        while True:
            moment = self._moment(certain=kills == 0) if kills < most else Moment()
            alone = self.source.random() < 0.5
            watched = starter(moment, alone)
            status = watched.ended(SECONDS if moment.seconds is None else moment.seconds)
            if status is None and moment.seconds is None:
                watched.kill(alone=False)
                raise Fault(f"{name}: it has not ended after {SECONDS:.0f} seconds, with {kills} kills before")
            if status is None:
                watched.kill(alone=alone)
            if status in (None, -signal.SIGKILL):
                kills, self.alone = kills + 1, self.alone + alone
                self._after(watched, name)
                continue
            if status != 0:
                raise Fault(f"{name}: exit status {status} after {kills} kills: {watched.log.read_text()[-3000:]}")
            for one in (watched, *self.before):
                self.waited = max(self.waited, one.check_gone(name))
            return kills

    def _moment(self, *, certain: bool) -> Moment:
        if certain and self.changes:
            return Moment(change=self.source.randint(1, self.changes))
        share = self.source.random() ** 2  # early ones, as a command that has been killed before has less left to do
        if self.changes and self.source.random() < 0.5:
            return Moment(change=1 + int(share * self.changes))
        return Moment(seconds=share * self.seconds)

    def _after(self, watched: Watched, name: str) -> None:
        """Let the others of a killed command end, or start the next beside them."""
        if self.source.random() < 0.5:
            self.waited = max(self.waited, watched.check_gone(name))
        else:
            self.before.append(watched)
        self.survived()

"""Heartbeats of the processes of a run, in the store that ``torchrun`` gives them, so that one that is lost can be named."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from flatsparse.experiments.run.signs import DONE, FAILED, RUNNING, WAITED, Sign, connected, is_gone, is_stopped, named

BEAT = 1.0  # seconds between heartbeats
GRACE = 3 * BEAT  # a process that does not write within it gives no sign of life
QUICK = 0.5  # seconds that the death of another process, which torchrun has noticed, is looked for
STUCK = 5.0  # seconds after which a main thread that does not answer is ended by the heartbeat's
CONNECTING = 30.0

REPORTED = "reported"  # the key that counts reports of a loss
AGAIN = "start all again with --resume, which continues from the last checkpoint"


@dataclass(frozen=True)
class Lost:
    """Processes that the others wait for in vain.

    Attributes:
        text: who they are, and what they were last known to do.
        slow: they are alive.
        is_first: no other process has reported it.
    """

    text: str
    slow: bool
    is_first: bool


class Heartbeat:
    """A thread that writes a sign of life of this process to the store every second, and reads those of the others.

    It ends this process when a process gives no sign of life for a time and the main thread is stuck in a collective call, as
    NCCL's are, and when ``torchrun`` is gone.
    """

    def __init__(self, seconds: float) -> None:
        """Args: seconds: how long another process may give no sign of life."""
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._seconds, self._parent = seconds, os.getppid()
        self._beats, self._at, self._doing, self._state = 0, 0, "its start", RUNNING
        self._store: Any = None
        self._lost: Lost | None = None
        self._looking = threading.Lock()
        self._ending, self._answering = threading.Event(), False
        self._reader, self._writer = socket.socketpair()  # Windows waits for sockets only
        self._writer.setblocking(False)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def note(self, doing: str, at: int | None = None) -> None:
        """Note what the main thread begins to do, and how far it is."""
        self._doing, self._at = doing, self._at if at is None else at

    @contextlib.contextmanager
    def beating(self) -> Iterator[Heartbeat]:
        """A context in which the thread runs, and ends this process at SIGTERM, which ``torchrun`` sends where a process died."""
        handled = (
            threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        )
        if handled:
            # Nothing is raised: it could be anywhere, also where errors are ignored. The thread reads the signal's number.
            signal.signal(signal.SIGTERM, self._terminate)
            woken = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=self._forget)
        self._thread.start()
        try:
            yield self
            self._set(DONE)
        finally:
            if handled:
                signal.set_wakeup_fd(woken)
                # A process that ends with an error is about to say so, and torchrun kills one that does not end.
                signal.signal(signal.SIGTERM, signal.SIG_DFL if self._state == DONE else signal.SIG_IGN)
            self._ending.set()
            self._wake()
            self._thread.join(STUCK)

    def failed(self) -> bool:
        """Note that this process ends with an error of its own; return True if no other has reported one."""
        self._set(FAILED)
        count = 1
        with self._store_or_none():
            if self._store is not None:
                count = self._store.add(REPORTED, 1)
        return count == 1

    def lost(self, *, timed_out: bool, seconds: float = GRACE) -> Lost | None:
        """Return which processes are lost; None if none is, as far as this one can know.

        Args:
            timed_out: this process has waited for the others in vain, so that one that is alive may be lost too.
            seconds: how long to look, if no process has died.
        """
        self._answering = True
        if timed_out:
            self._set(WAITED)
        if self._lost is None:
            looking = threading.Thread(target=self._look, args=(timed_out, seconds), daemon=True)
            looking.start()
            looking.join(seconds + STUCK)  # the store may not answer either
        if self._lost is not None:
            self._set(WAITED)
        self._answering = self._lost is not None
        return self._lost

    # -- in the main thread -------------------------------------------------------------------------------------------

    def _terminate(self, *_: object) -> None:
        pass

    def _set(self, state: str) -> None:
        self._state = state
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._writer.send(b"\0")

    def _forget(self) -> None:
        """Leave SIGTERM to a process forked from this one, if it still has it."""
        if signal.getsignal(signal.SIGTERM) == self._terminate:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    # -- in the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        neighbour, silent = -1, 0
        beat = time.monotonic()
        while not self._ending.is_set():
            if os.getppid() != self._parent:
                text = f"torchrun (process {self._parent}), which started this process, has ended"
                self._end(text, is_first=os.environ.get("LOCAL_RANK", "0") == "0")
            with self._store_or_none():
                self._write()
                if time.monotonic() >= beat + BEAT:
                    # Counted in beats of our own: all may have been stopped and continued.
                    sign = self._read((self.rank + 1) % self.size)
                    same = sign is not None and sign.state == RUNNING and sign.beats == neighbour
                    neighbour, silent = (sign.beats if sign else -1), silent + 1 if same else 0
                    beat = time.monotonic()
            if silent * BEAT > self._seconds + GRACE:
                self._end_if_lost(GRACE)
                silent = 0
            if select.select([self._reader], [], [], BEAT)[0] and signal.SIGTERM in self._reader.recv(1024):
                self._end_if_lost(QUICK)
                if not self._answering and self._state == RUNNING:
                    os._exit(128 + signal.SIGTERM)
        with self._store_or_none():
            self._write()

    @contextlib.contextmanager
    def _store_or_none(self) -> Iterator[None]:
        """A context after which the store is not used again if it failed: torch prints every failure, with a trace."""
        try:
            yield
        except RuntimeError:
            self._store = None

    def _write(self) -> None:
        if self._store is None and self._beats == 0:
            store = connected("heartbeats", timedelta(seconds=CONNECTING))
            if self.rank == 0:  # of an earlier start
                store.delete_key(REPORTED)
            self._store = store
        if self._store is None:
            return
        self._beats += 1
        host, node = socket.gethostname(), os.environ.get("GROUP_RANK", "0")
        sign = Sign(self.rank, host, node, os.getpid(), self._beats, self._at, self._doing, self._state)
        self._store.set(str(self.rank), json.dumps(dataclasses.asdict(sign)))

    def _read(self, rank: int) -> Sign | None:
        store = self._store
        if store is None or not store.check([str(rank)]):
            return None
        return Sign(**json.loads(store.get(str(rank))))

    def _end_if_lost(self, seconds: float) -> None:
        """End this process if another is lost and the main thread does not find that out by itself, as in a call of NCCL's."""
        if self._lost is None and not self._answering:
            self._look(timed_out=False, seconds=seconds)
        end = time.monotonic() + STUCK
        while self._lost is not None and not self._answering and self._state == RUNNING:
            if time.monotonic() > end:
                self._end(self._lost.text, is_first=self._lost.is_first)
            time.sleep(0.05)

    def _end(self, text: str, *, is_first: bool) -> None:
        if is_first:
            with contextlib.suppress(OSError):
                print(f"flatsparse: error: {text}: {AGAIN}", file=sys.stderr, flush=True)
        os._exit(2)

    # -- who is lost --------------------------------------------------------------------------------------------------

    def _look(self, timed_out: bool, seconds: float) -> None:
        end = time.monotonic() + seconds
        with self._looking, self._store_or_none():
            if self._lost is not None or self._store is None:
                return
            first, text = self._others(), ""
            while True:
                now = self._others()
                if any(sign and sign.state == FAILED for sign in now.values()):
                    self._lost = Lost("", slow=False, is_first=False)  # it has said why itself
                    return
                unsaid = {rank: sign for rank, sign in now.items() if sign is None or sign.state == RUNNING}
                text = named(unsaid, "has ended", is_gone)
                if timed_out and not text:
                    text = named(unsaid, "is stopped", is_stopped)
                if text or not unsaid or time.monotonic() > end:
                    break
                time.sleep(0.1)
            if not text and seconds >= GRACE:
                text = named(unsaid, "gives no sign of life", lambda sign: sign == first.get(sign.rank))
            slow = not text
            if timed_out and not text:
                absent = [f"rank {rank}" for rank, sign in unsaid.items() if sign is None]
                behind = min((sign.at for sign in unsaid.values() if sign), default=0)
                alive = named(unsaid, "is alive", lambda sign: sign.at == behind)
                text = f"{', '.join(absent)} has not started" if absent else alive
            if text:
                self._lost = Lost(text, slow=slow, is_first=self._store.add(REPORTED, 1) == 1)

    def _others(self) -> dict[int, Sign | None]:
        return {rank: self._read(rank) for rank in range(self.size) if rank != self.rank}

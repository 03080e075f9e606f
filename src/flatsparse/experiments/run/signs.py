"""Signs of life of the processes of a run: what each last wrote of itself into the store that ``torchrun`` holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

RUNNING, WAITED, FAILED, DONE = "running", "waited", "failed", "done"
MOST = 4  # processes that are named


@dataclass(frozen=True)
class Sign:
    """What a process last wrote of itself.

    Attributes:
        node: which ``torchrun`` started it.
        beats: the number of its heartbeats.
        at: how far it is, comparable between processes.
        doing: the same, in words.
        state: running; waited in vain for the others; failed, which it reports itself; done.
    """

    rank: int
    host: str
    node: str
    pid: int
    beats: int
    at: int
    doing: str
    state: str

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"


def connected(part: str, timeout: timedelta) -> Any:
    """Return a part of the store that ``torchrun`` holds, of this start of the run, by a connection of its own."""
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    restart = count if os.environ.get("GROUP_WORLD_SIZE", "1") == "1" else "any"  # machines may count differently
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, is_master=False, timeout=timeout)  # type: ignore[attr-defined]
    return dist.PrefixStore(f"flatsparse/{restart}/{part}", store)  # type: ignore[attr-defined]


def named(signs: Mapping[int, Sign | None], how: str, test: Callable[[Sign], bool]) -> str:
    """Return the processes whose sign passes a test, each with what it was last known to do; empty for none."""
    passing = [sign for sign in signs.values() if sign is not None and test(sign)]
    more = f", and {len(passing) - MOST} more" if len(passing) > MOST else ""
    return "; ".join(f"{sign} {how}, last at {sign.doing}" for sign in passing[:MOST]) + more


def is_gone(sign: Sign) -> bool:
    """True for a process of this machine that has ended."""
    return _system_state(sign) in ("gone", "Z", "X")


def is_stopped(sign: Sign) -> bool:
    """True for a process of this machine that is stopped, as by SIGSTOP."""
    return _system_state(sign) in ("T", "t")


def _system_state(sign: Sign) -> str:
    """Return the state that the system gives a process; empty where it cannot be known."""
    if os.name == "nt" or sign.node != os.environ.get("GROUP_RANK", "0"):
        return ""
    try:
        os.kill(sign.pid, 0)  # no signal, but an error if it is gone
        return Path(f"/proc/{sign.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return "gone"
    except OSError:
        return ""

"""Trainings by several processes, of which one is killed, stopped, slow or stuck: the others name it, and a restart ends alike.

``python tests/stress/ranks.py 60`` runs 60 cases under ``torchrun``'s own agent, at random moments in random ways; it ends at the
first fault with the line that repeats it, or with its counts and the longest time that the others took to end.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import importlib
import os
import random
import re
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from flatsparse.cli import train as _train  # imported once, and not by each process  # noqa: F401
from flatsparse.cli.entry import main as command
from flatsparse.common.masks_file import load_masks
from flatsparse.common.tensor_files import load_tensors
from flatsparse.experiments.run import epoch

TIMEOUT = 6.0  # seconds of FLATSPARSE_TIMEOUT
ENDING = 10.0  # seconds more within which the others end, as docs/compiled-and-distributed.md says
EPOCH = 0.2  # seconds, about
LIMIT = 240.0  # for one training
IMPORTED = (
    "sklearn.datasets",
    "scipy.stats",
    "matplotlib.pyplot",
    "tyro.extras",
    "torch._dynamo",
    "torch.distributed.launcher.api",
    "torch.onnx",
)
TRAIN = (
    "train --train-size 96 --validation-size 50 --batch-size 24 --epochs 10 --sparsity 0.8 --sharpness s2sam --rho 0.2"
)
WAYS = ("kill", "kill", "stop", "stop", "slow", "stuck", "restart")


class Fault(Exception):
    """The processes did what they must not."""


@dataclass(frozen=True)
class Case:
    """A blow: to which rank of how many, how, and when, in epochs; before the first ends it is a share of the start's time."""

    way: str
    world: int
    rank: int
    moment: float


def drawn(seed: int) -> Case:
    """A case at random."""
    source = random.Random(seed)
    world = source.choice((2, 2, 3))
    return Case(source.choice(WAYS), world, source.randrange(world), source.uniform(0.0, 11.0))


class Training:
    """A training under ``torchrun``'s agent, forked, because fresh processes would spend their lives on imports."""

    def __init__(self, folder: Path, world: int, *, restarts: int = 0, stuck: int | None = None):
        self.folder, self.world, self.restarts = folder, world, restarts
        self.log = folder / "log"
        for file in folder.glob("process.*"):
            file.unlink()
        self.began = time.monotonic()
        self.agent = os.fork()
        if self.agent == 0:
            _launch(folder, world, restarts, stuck)

    def process(self, rank: int, restart: int = 0) -> int:
        """The process of a rank, waited for."""
        file = self.folder / f"process.{rank}.{restart}"
        while not file.is_file():
            if self.has_ended():
                raise Fault(f"no process of rank {rank}: {self.said()}")
            time.sleep(0.01)
        return int(file.read_text())

    def has_ended(self) -> bool:
        """True once the agent has."""
        try:
            return os.waitpid(self.agent, os.WNOHANG)[0] != 0
        except ChildProcessError:
            return True

    def wait(self) -> None:
        """Wait for the end."""
        while not self.has_ended():
            if time.monotonic() > self.began + LIMIT:
                for process in [self.agent, *self.processes()]:
                    os.kill(process, signal.SIGKILL)
                raise Fault(f"it does not end: {self.said()}")
            time.sleep(0.02)
        if left := [process for process in self.processes() if is_alive(process)]:
            raise Fault(f"processes {left} were left behind: {self.said()}")

    def processes(self) -> list[int]:
        """All processes so far."""
        return [int(file.read_text()) for file in self.folder.glob("process.*")]

    def said(self) -> str:
        """What all processes have printed."""
        return self.log.read_text(errors="replace") if self.log.is_file() else ""

    def lines(self) -> list[str]:
        """The errors that the command printed."""
        return re.findall(r"flatsparse: error: (.*)", self.said())


def _launch(folder: Path, world: int, restarts: int, stuck: int | None) -> None:
    """Be the agent, as ``torchrun --standalone --max-restarts N`` is. Does not return."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    status = 1
    try:
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, "utf-8") for number in (1, 2))
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=world,
            run_id=f"{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=restarts,
            monitor_interval=0.1,
            start_method="fork",
        )
        elastic_launch(config, member)(str(folder), stuck)
        status = 0
    except BaseException as problem:
        print(f"agent: {type(problem).__name__}", flush=True)
    finally:
        os._exit(status)


def member(folder: str, stuck: int | None) -> None:
    """One process of a training; rank ``stuck`` stops for long at its twentieth step, and stays alive."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):  # the agent's, as a fork has them
        signal.signal(number, signal.SIG_DFL)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    rank = os.environ["RANK"]
    os.environ["FLATSPARSE_TIMEOUT"] = f"{TIMEOUT:g}"
    half = Path(folder, f"half.{rank}")
    half.write_text(str(os.getpid()))
    half.replace(Path(folder, f"process.{rank}.{os.environ['TORCHELASTIC_RESTART_COUNT']}"))
    if stuck is not None and rank == str(stuck):
        usual = epoch.take_step

        def slowly(parts, batch):
            if parts.training.steps_taken == 20:
                time.sleep(10 * TIMEOUT)
            return usual(parts, batch)

        epoch.take_step = slowly
    command([*TRAIN.split(), "--out", f"{folder}/run", "--resume"])


def is_alive(process: int) -> bool:
    """True unless a process is gone, or ended and not yet waited for."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (ProcessLookupError, FileNotFoundError):
        return False


def undisturbed(folder: Path, world: int) -> float:
    """Train to the end and return the seconds; raises Fault if it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    training = Training(folder, world)
    training.wait()
    if not (folder / "run" / "result.json").is_file():
        raise Fault(f"undisturbed training failed: {training.said()}")
    return time.monotonic() - training.began


def check(case: Case, folder: Path, whole: Path, seconds: float) -> tuple[str, float]:
    """Run a case; return how it ended and how long the others took to end. Raises Fault."""
    restarts, stuck = 2 if case.way == "restart" else 0, case.rank if case.way == "stuck" else None
    training = Training(folder, case.world, restarts=restarts, stuck=stuck)
    victim = training.process(case.rank)
    others = [training.process(rank) for rank in range(case.world) if rank != case.rank]
    whole_epochs = 5 if case.way == "stuck" else int(case.moment)
    while whole_epochs and f"epoch{whole_epochs:>4}/10" not in training.said() and not training.has_ended():
        time.sleep(0.01)
    if case.way != "stuck":
        time.sleep(case.moment % 1 * (EPOCH if whole_epochs else seconds / 2))
    was_done = (folder / "run" / "result.json").is_file()
    is_early = not (folder / "run" / "checkpoint.pt").is_file()
    struck = time.monotonic()
    if case.way in ("kill", "restart") and is_alive(victim):
        os.kill(victim, signal.SIGKILL)
    elif case.way in ("stop", "slow") and is_alive(victim):
        os.kill(victim, signal.SIGSTOP)
    if case.way == "slow":
        time.sleep(TIMEOUT / 3)
        if is_alive(victim):
            os.kill(victim, signal.SIGCONT)
    took, end = 0.0, "finished"
    if case.way in ("kill", "stop", "stuck") and not was_done:
        while any(map(is_alive, others)) and time.monotonic() < struck + TIMEOUT + ENDING + 5:
            time.sleep(0.01)
        took = time.monotonic() - struck
        allowed = ENDING + (0 if case.way == "kill" else TIMEOUT)
        if any(map(is_alive, others)) or took > allowed:
            for process in filter(is_alive, others):
                os.kill(process, signal.SIGUSR1)
            time.sleep(0.5)
            raise Fault(f"others took {took:.1f} of {allowed:g} s: {training.said()}")
    if is_alive(victim) and case.way in ("stop", "stuck"):
        os.kill(victim, signal.SIGKILL)  # torchrun would, half a minute later
    training.wait()
    lines = training.lines()
    if re.search("^Traceback", training.said(), re.MULTILINE):
        raise Fault(f"a traceback: {training.said()}")
    if case.way in ("kill", "stop", "stuck") and not was_done:
        end = "named"
        names = (f"rank {case.rank} (process {victim}", f"rank {case.rank} has not started")
        if len(lines) != 1 or not lines[0].startswith(names):
            if lines or not (is_early or (folder / "run" / "result.json").is_file()):
                raise Fault(f"it is not named once: {lines}: {training.said()}")
            end = "before training began" if is_early else "after it had ended"
    elif case.way == "slow" and lines:
        raise Fault(f"one that was only slow ended it: {training.said()}")
    if case.way in ("slow", "restart") and not (folder / "run" / "result.json").is_file():
        raise Fault(f"it did not go on: {training.said()}")
    undisturbed(folder, case.world)  # the same command again
    for file, load in (("model.safetensors", load_tensors), ("masks.safetensors", load_masks)):
        ours, theirs = (load(place / "run" / file)[0] for place in (folder, whole))
        if odd := [name for name in theirs if not torch.equal(ours[name], theirs[name])]:
            raise Fault(f"{file} differs from the undisturbed one's in {odd[:3]}")
    return f"{case.way}: {end}", took


def run(cases: list[tuple[int, Case]], *, verbose: bool = False) -> tuple[collections.Counter[str], dict[str, float]]:
    """Run cases, each with its seed; return the numbers of outcomes and the longest time of each. Raises Fault."""
    counts: collections.Counter[str] = collections.Counter()
    for name in IMPORTED:  # once, and not by each process
        importlib.import_module(name)
    longest: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        times: dict[int, float] = {}
        for seed, case in cases:
            whole = Path(temporary, f"whole{case.world}")
            if case.world not in times:
                times[case.world] = undisturbed(whole, case.world)
            folder = Path(temporary, str(seed))
            folder.mkdir()
            try:
                outcome, took = check(case, folder, whole, times[case.world])
            except Fault as fault:
                raise Fault(f"{case}: {fault}\nrepeat: python tests/stress/ranks.py 1 --seed {seed}") from None
            if verbose:
                print(f"{seed} {case}: {outcome}, {took:.1f} s", flush=True)
            counts[outcome] += 1
            longest[case.way] = max(longest.get(case.way, 0.0), took)
    return counts, longest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--verbose", action="store_true", help="print every case")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    try:
        cases = [(seed, drawn(seed)) for seed in range(given.seed, given.seed + given.count)]
        counts, longest = run(cases, verbose=given.verbose)
    except Fault as fault:
        sys.exit(f"fault: {fault}")
    numbers = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))
    ended = ", ".join(f"{way} {seconds:.1f} s" for way, seconds in sorted(longest.items()) if seconds)
    print(
        f"ranks: {given.count} cases in {time.monotonic() - began:.0f} seconds: {numbers};"
        f" longest until the others had ended: {ended}, of {ENDING:g} s after a death and {TIMEOUT + ENDING:g} s otherwise"
    )


if __name__ == "__main__":
    main()

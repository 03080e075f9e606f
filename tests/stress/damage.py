"""Files that are damaged: readers must notice, name the file in one line, and neither use nor remove what they cannot read.

``python tests/stress/damage.py 1000`` damages one file in each of 1,000 copies of a small set of all that is written; it ends
at the first fault with the line that repeats it, or with its counts.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from flatsparse.common.errors import InputError
from tests.folders import inside
from tests.stress.damaging import damage, kind_of
from tests.stress.written import REST, RUN_PARTS, Part, make_rest, make_runs, told

SECONDS = 120  # for one reading; a fault if it takes more
UNCHANGED, NAMED, ANOTHER = "same result as undamaged", "named in one line", "read as another valid record"
IMPORTED = ("matplotlib.pyplot", "onnxruntime", "scipy.stats", "sklearn.datasets", "safetensors.torch")
KINDS = (".json", ".jsonl", ".safetensors", ".pt", ".onnx")  # of files that are read back


class Fault(Exception):
    """A reader did what it must not."""


def outcome_of(read: Callable[[], Any]) -> tuple[str, str, list[str]]:
    """Return what a reader returned or raised, in a process of its own, and the files that it did not write before it read."""
    out, into = os.pipe()
    process = os.fork()
    if process == 0:
        answer: tuple[str, str] = "fault", "the reader ended its process"
        met: dict[str, str] = {}  # the first event of each file
        try:
            signal.alarm(SECONDS)
            sys.addaudithook(functools.partial(_note, met))
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1), os.dup2(nowhere, 2)
            answer = "value", told(read())
        except InputError as problem:
            answer = "refused", str(problem)
        except BaseException:
            answer = "fault", traceback.format_exc()
        finally:
            with open(into, "wb") as stream:
                read_first = [name for name, event in met.items() if event == "open"]
                stream.write(json.dumps([*answer, read_first]).encode())
            os._exit(0)
    os.close(into)
    with open(out, "rb") as stream:
        text = stream.read()
    _, status = os.waitpid(process, 0)
    if not text:
        return "fault", f"the reader was ended by signal {os.WTERMSIG(status)}", []
    return tuple(json.loads(text))


def _note(met: dict[str, str], event: str, about: tuple[Any, ...]) -> None:
    if event in ("open", "os.rename"):
        met.setdefault(os.path.normpath(str(about[event == "os.rename"])), event)


@dataclass(frozen=True)
class Undamaged:
    """A part of the set: what its reader returns, and the files that it reads."""

    value: str
    files: tuple[Path, ...]


def undamaged(part: Part, whole: Path) -> Undamaged:
    """Read a part of the set as it is."""
    with copied(part, whole):
        there = [f for f in sorted(Path(part.folder).rglob("*")) if f.is_file() and f.stat().st_size]
        kind, value, opened = outcome_of(part.read)
        files = tuple(f for f in there if str(f) in opened and f.suffix in KINDS)
    if kind != "value":
        raise Fault(f"{part.name}: cannot be read undamaged: {value}")
    return Undamaged(value, files)


def check(part: Part, whole: Path, before: Undamaged, source: random.Random) -> tuple[str, str]:
    """Damage a file of a copy of the set and read it. Returns the outcome, and what was done."""
    groups = collections.defaultdict(list)
    for file in before.files:
        groups[kind_of(file)].append(file)
    file = source.choice(groups[source.choice(sorted(groups))])
    with copied(part, whole):
        how, spoilt = damage(file, before.files, source)
        contents = {one: one.read_bytes() for one in spoilt}
        kind, value, _ = outcome_of(part.read)
        about = f"{part.name}: {file}, {how}"
        if kind == "fault":
            raise Fault(f"{about}\n{value}")
        if kind == "refused":
            if "\n" in value or not value:
                raise Fault(f"{about}: not one line: {value!r}")
            names = {str(one) for one in spoilt}
            if how.startswith(("swap", "reshape")):  # what is in them is whole, and of other work
                names |= {str(one.parent) for one in spoilt}
            if not any(name in value for name in names):
                raise Fault(f"{about}: not named: {value}")
            if any(not one.is_file() or one.read_bytes() != content for one, content in contents.items()):
                raise Fault(f"{about}: told, but removed or written over: {value}")
            return NAMED, f"{about}: {value}"
        if value == before.value:
            return UNCHANGED, about
        if how.startswith("reshape"):
            return ANOTHER, about
        raise Fault(f"{about}: silently another result\n{value[:3000]}\nnot\n{before.value[:3000]}")


@contextlib.contextmanager
def copied(part: Part, whole: Path) -> Iterator[None]:
    """A context in a folder with a copy of what a part needs."""
    with tempfile.TemporaryDirectory() as folder, inside(folder):
        for name in (part.folder, *part.needs):
            (shutil.copytree if (whole / name).is_dir() else shutil.copy)(whole / name, name)
        yield


def run(
    count: int, seed: int, whole: Path, parts: Sequence[Part], *, first: int = 0, go_on: bool = False
) -> dict[str, int]:
    """Make a set, damage it so many times, and return the numbers of outcomes. Raises Fault, with what repeats it."""
    counts: collections.Counter[str] = collections.Counter()
    before: dict[str, Undamaged] = {}
    for number in range(first, first + count):
        source = random.Random(f"{seed} {number}")
        part = parts[source.randrange(len(parts))]
        try:
            if part.name not in before:
                before[part.name] = undamaged(part, whole)
            outcome, about = check(part, whole, before[part.name], source)
        except Fault as fault:
            if not go_on:
                raise Fault(
                    f"{fault}\nrepeat: python tests/stress/damage.py 1 --seed {seed} --first {number}"
                ) from None
            outcome, about = "fault", f"FAULT {number} {fault}"
        counts[outcome] += 1
        if go_on:
            print(number, outcome, about, flush=True)
    return dict(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--set", help="an empty folder, or one with the set of an earlier call")
    parser.add_argument("--go-on", action="store_true", help="print every case, and go on after faults")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for name in IMPORTED:  # once, and not by each reader
        importlib.import_module(name)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        whole = chosen.set or temporary
        with inside(whole):
            if not Path("runs").exists():
                make_runs()
                make_rest()
        try:
            counts = run(
                chosen.count, chosen.seed, Path(whole), [*RUN_PARTS, *REST], first=chosen.first, go_on=chosen.go_on
            )
        except Fault as fault:
            sys.exit(f"fault: {fault}")
    numbers = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))
    print(f"damage: {chosen.count} cases in {time.monotonic() - began:.0f} seconds: {numbers}")
    if "fault" in counts:
        sys.exit(1)


if __name__ == "__main__":
    main()

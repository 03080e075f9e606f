"""Hostile input: command lines, records, code of a user's own, names, and files that lead away, drawn at random by hypothesis.

``python tests/stress/inputs.py 10000`` tries 10,000 cases in a small set of runs, records, images and code. Every one must end
with status 0, or with 2 and one line that says why, and must neither lose nor write over a file. It ends at the first fault with
the line that repeats it, or with the counts of each part.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, strategies

from flatsparse.common.errors import shown
from tests.folders import inside
from tests.stress import command_lines, hostile_files, hostile_names, leading_away, own_code
from tests.stress.calling import Fault, Kept, make_files


@dataclass(frozen=True)
class Part:
    """A kind of input.

    Attributes:
        cases: at random.
        check: tries one in a folder with the set; returns what came of it, or raises Fault.
        share: of all cases.
    """

    cases: Callable[[], strategies.SearchStrategy[Any]]
    check: Callable[[Any, Kept], str]
    share: float


PARTS = {
    "command lines": Part(command_lines.command_lines, command_lines.check, 0.27),
    "processes": Part(command_lines.words_for_processes, command_lines.check_process, 0.001),
    "records": Part(hostile_files.hostile_files, hostile_files.check, 0.09),
    "code": Part(own_code.own_codes, own_code.check, 0.03),
    "names": Part(hostile_names.hostile_names, hostile_names.check, 0.579),
    "leading away": Part(leading_away.leading_away, leading_away.check, 0.03),
}


def tried(part: str, count: int, seed: int, files: Kept, *, go_on: bool = False) -> dict[str, int]:
    """Try cases of a part and return the numbers of outcomes. Raises Fault, with what repeats it."""
    counts: collections.Counter[str] = collections.Counter()
    chosen = PARTS[part]

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(chosen.cases())
    def attempt(case: Any) -> None:
        try:
            outcome = chosen.check(case, files)
        except Exception as problem:
            fault = problem if isinstance(problem, Fault) else "".join(traceback.format_exception(problem))
            if not go_on:
                again = f"python tests/stress/inputs.py --part '{part}' --seed {seed} {count}"
                raise Fault(f"{part}: {shown(case, 3000)}\n{str(fault)[-5000:]}\nrepeat: {again}") from None
            outcome = "fault"
            print(f"FAULT {part}: {shown(case, 3000)}\n{str(fault)[-5000:]}", flush=True)
        counts[outcome] += 1

    with inside(files.folder):
        attempt()
    return dict(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=PARTS, help="one part alone")
    parser.add_argument("--go-on", action="store_true", help="go on after faults")
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.pop("FLATSPARSE_DATA", None)
    shares = {name: 1.0 if given.part else part.share for name, part in PARTS.items() if given.part in (None, name)}
    began, faults, parts = time.monotonic(), 0, []
    with tempfile.TemporaryDirectory() as folder:
        files = made(Path(folder))
        for name, share in shares.items():
            before = time.monotonic()
            count = max(1, round(share * given.count))
            try:
                counts = tried(name, count, given.seed, files, go_on=given.go_on)
            except Fault as fault:
                sys.exit(f"fault: {fault}")
            faults += counts.get("fault", 0)
            parts.append(f"{name}: {said(counts)}")
            print(f"{parts[-1]}; {time.monotonic() - before:.0f} seconds", flush=True)
    print(f"inputs: {'; '.join(parts)}; {faults} faults; {time.monotonic() - began:.0f} seconds")
    sys.exit(faults > 0)


def made(folder: Path) -> Kept:
    """Make the set in a folder."""
    whole = folder / "set"
    whole.mkdir()
    with inside(whole), open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        make_files()
    return Kept(whole)


def said(counts: Mapping[str, int]) -> str:
    """Return the counts of outcomes as text."""
    return f"{sum(counts.values())} cases ({', '.join(f'{number} {what}' for what, number in sorted(counts.items()))})"


if __name__ == "__main__":
    main()

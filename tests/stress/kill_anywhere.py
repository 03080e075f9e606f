"""Commands that are killed at any moment must end, when they are started again, as if nothing had happened.

``python tests/stress/kill_anywhere.py 1000`` kills so often: ``train`` with every method, with tasks of one's own, with images
that are streamed, accelerated and not; ``compare``, of a script too; ``reproduce``, ``landscape``, ``export`` and
``evaluate``. Half of the kills are of the first process alone, half of all its processes; half at a random time, half before
a random change of a file. It ends at the first fault with the line that repeats it, or with its counts.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import io
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

import matplotlib.figure
import torch
from PIL import Image

from flatsparse.acceleration import layers
from flatsparse.cli.entry import main
from tests.folders import inside
from tests.stress.kill_cases import Case, cases, make_set
from tests.stress.kill_checks import Folder, check_equal
from tests.stress.killing import Fault, Killer, Moment, Watched, quick_workers, start

IMPORTED = (
    *("matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "onnxruntime", "onnxscript", "scipy.stats"),
    *("torch.onnx", "torch._dynamo", "sklearn.datasets", "PIL.PngImagePlugin", "jinja2", "pyarrow.parquet"),
    *(f"flatsparse.cli.{name}" for name in ("train", "compare", "reproduce", "landscape", "export", "evaluate")),
)
MOST = 12  # kills of one command


@dataclass(frozen=True)
class Held:
    """What came of a case: its kills, those of the first process alone, and how long others outlived it at most."""

    kills: int
    alone: int
    waited: float


def check(case: Case, whole_set: Path, folder: Path, source: random.Random, most: int) -> Held:
    """Run a case undisturbed, then kill it until it ends; all that it leaves must be equal. Raises Fault."""
    begin = fresh if case.fresh else start
    work = folder / "work"  # of the one, then of the other: records name the places of data
    _prepared(case, whole_set, work)
    began = time.monotonic()
    with _temporary(work / "system"):
        Killer(source, 0.0, 0).until_done(lambda *_: begin(case.line, work), 0, str(case))
    lasted, changes = time.monotonic() - began, 0 if case.fresh else int((work / "changes").read_text())
    work.rename(folder / "whole")
    _prepared(case, whole_set, work)
    checked = Folder(work / "out", str(case))
    killer = Killer(source, lasted, changes, checked.check)

    def again(moment: Moment, alone: bool) -> Watched:
        return begin(case.line, work, moment, alone=alone)

    with _temporary(work / "system"):
        kills = killer.until_done(again, most, str(case))
    checked.check()
    check_equal(case, folder / "whole", work)
    return Held(kills, killer.alone, killer.waited)


def _prepared(case: Case, whole_set: Path, work: Path) -> None:
    for need in case.needs:
        place, target = whole_set / need, work / need
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if place.is_dir() else shutil.copy)(place, target)
    (work / "system").mkdir(parents=True)


@contextlib.contextmanager
def _temporary(place: Path) -> Iterator[None]:
    """A context with a folder of its own for what programs keep for a while."""
    with mock.patch.dict(os.environ, {"TMPDIR": str(place)}), mock.patch.object(tempfile, "tempdir", str(place)):
        yield


def fresh(arguments: tuple[str, ...], folder: Path, moment: Moment | None = None, *, alone: bool = False) -> Watched:
    """Start a command line as users do."""
    with open(folder / "log", "a") as log:
        program = [sys.executable, "-m", "flatsparse", *arguments]
        started = subprocess.Popen(program, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    started.returncode = 0  # it is waited for by its number
    return Watched(started.pid, folder / "log")


def written_set(folder: Path) -> Path:
    """Write what the cases work on, in this process, so that its forks have all that a first run makes."""
    folder.mkdir()
    for line in make_set(folder):
        with inside(folder), contextlib.redirect_stdout(io.StringIO()):
            main(line)
    return folder


def run(wanted: int, seed: int, *, first: int = 0, kinds: tuple[str, ...] = ()) -> collections.Counter[str]:
    """Kill so often and return the counts. Raises Fault, with the line that repeats it."""
    counts: collections.Counter[str] = collections.Counter()
    waited, began = 0.0, time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        whole_set = written_set(Path(place, "set"))
        for number, case in enumerate(itertools.islice(cases(seed), first, None), first):
            if kinds and case.kind not in kinds:
                continue
            folder, source = Path(place, str(number)), random.Random(f"{seed} {number}")
            try:
                held = check(case, whole_set, folder, source, min(2 if case.fresh else MOST, wanted - counts["kills"]))
            except Fault as fault:
                repeat = f"repeat: python tests/stress/kill_anywhere.py {MOST} --seed {seed} --first {number}"
                raise Fault(f"{fault}\n{repeat}\nbefore: {dict(counts)}") from None
            shutil.rmtree(folder)
            counts.update({"kills": held.kills, "alone": held.alone, "commands": 1, case.kind: held.kills})
            waited = max(waited, held.waited)
            so_far = f"{counts['kills']} in {time.monotonic() - began:.0f} s, outlived {held.waited:.1f} s"
            print(f"case {number}, {held.kills} kills ({so_far}): {case}", flush=True)
            if counts["kills"] >= wanted:
                counts["milliseconds outlived"] = round(1000 * waited)
                return counts
    raise AssertionError("there are always more cases")


def _main() -> int:
    """Kill as often as the command line says. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--kinds", nargs="*", default=(), help="only these")
    given = parser.parse_args()
    began = time.monotonic()
    try:
        with prepared():
            counts = run(given.count, given.seed, first=given.first, kinds=tuple(given.kinds))
    except Fault as fault:
        print(f"fault: {fault}")
        return 1
    kills, commands, alone, waited = (counts.pop(n) for n in ("kills", "commands", "alone", "milliseconds outlived"))
    print(
        f"{kills} kills of {commands} commands held, {alone} of the first process alone, which others outlived by"
        f" {waited / 1000:.1f} seconds at most ({', '.join(f'{n} {kind}' for kind, n in sorted(counts.items()))});"
        f" {time.monotonic() - began:.0f} seconds"
    )
    return 0


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """A context in which commands start at once.

    What they import is imported; which accelerated layers run sparse is chosen without a measurement, which would come out
    as it may; and nothing is drawn, which takes more time than all else, in which kills would be in vain.
    """
    torch.set_num_threads(1)
    for name in IMPORTED:
        importlib.import_module(name)
    with (
        mock.patch.object(layers, "speedup", lambda kind: float(kind.density < 50)),
        mock.patch.object(matplotlib.figure.Figure, "savefig", _small_picture),
        quick_workers(),
    ):
        yield


def _small_picture(self: Any, stream: Any, *, format: str, **_: Any) -> None:
    """Write a picture of one dot."""
    picture = io.BytesIO()
    Image.new("L", (1, 1)).save(picture, "PNG")
    stream.write("<svg/>" if format == "svg" else picture.getvalue())


if __name__ == "__main__":
    sys.exit(_main())

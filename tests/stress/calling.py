"""The command line called in this process, on hostile input: what it must leave, and a small set of files for it to work on."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import traceback
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from flatsparse.cli import main

ODD = "o\udcff $x\n<b>"  # a folder's name
ERROR, WARNING = "flatsparse: error: ", "flatsparse: warning: "
QUICK = ("--train-size", "64", "--validation-size", "50", "--batch-size", "32", "--epochs", "1")

OWN = """
from dataclasses import dataclass
import torch
from torch import nn
from torch.utils.data import TensorDataset
from flatsparse import Task
from flatsparse.experiments.recipes.recipe import Cell, Recipe
from flatsparse.experiments.run.config import RunConfig
from flatsparse.methods import SET

@dataclass(frozen=True)
class Method:
    def plan(self, shapes, steps):
        return SET().plan(shapes, steps)

def numbers(count, seed):
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs[:, :2].sum(1))

def network(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, classes))

def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()

def score(model, batches):
    return {"error": sum(float(loss(model, batch)) for batch in batches)}

def task():
    return Task(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0)),
        numbers(40, 0), numbers(20, 1), loss, score, better="lower")

def train(arm):
    model = nn.Linear(8, 4)
    optimizer = arm.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    arm.sparsify(model, optimizer, steps=3)
    for _ in range(3):
        model(torch.randn(5, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"size": float(model.weight.detach().square().sum())}

def cells(scale):
    run = dict(task=__file__ + ":task", epochs=1, batch_size=20)
    return [Cell("row", "column", RunConfig.of(**run, sharpness=name)) for name in ("none", "sam")]

RECIPE = Recipe("own", "Own", "ours", cells=cells, seeds={"smoke": 1, "laptop": 1, "paper": 1})

if __name__ == "__main__":
    class Arm:
        def optimizer(self, base):
            import flatsparse
            return flatsparse.S2SAM(base)
        def sparsify(self, model, optimizer, steps):
            import flatsparse
            return flatsparse.sparsify(model, optimizer, "static", sparsity=0.5, steps=steps)
    train(Arm())
"""


class Fault(AssertionError):
    """A command did what it must not."""


class Reached(BaseException):
    """Raised in the place of work, which a command begins when its input has passed all checks."""


@dataclass(frozen=True)
class Outcome:
    """What a command left.

    Attributes:
        status: the exit status; 0 too where the work was reached.
        out, err: what it wrote.
    """

    status: int
    out: str
    err: str


def called(arguments: Sequence[str]) -> Outcome:
    """Call a command. Raises Fault where it ends with anything but status 0, or 2 and a line that says why."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="") for _ in range(2)]
    status: object = 0
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            main(list(arguments))
    except Reached:
        pass
    except SystemExit as end:
        status = 0 if end.code is None else end.code
    except BaseException as problem:
        raise Fault(f"{list(arguments)!r}: a traceback\n{''.join(traceback.format_exception(problem)[-12:])}") from None
    out, err = (_written(stream) for stream in streams)
    checked(arguments, status, err)
    return Outcome(2 if status else 0, out, err)


def checked(arguments: Sequence[str], status: object, err: str) -> None:
    """Raise Fault where a command ended with anything but status 0, or 2 and a line that says why."""
    lines = err.splitlines()
    if err.count("\n") != len(lines) or any(not line.isprintable() for line in lines):
        raise Fault(f"{list(arguments)!r}: on standard error not lines of plain text: {err!r}")
    errors = [line for line in lines if not line.startswith(WARNING)]
    if status not in (0, 2) or len(errors) != (status == 2) or any(not line.startswith(ERROR) for line in errors):
        raise Fault(f"{list(arguments)!r}: ended with {status!r} and {err!r}")
    if errors and not errors[0][len(ERROR) :].strip():
        raise Fault(f"{list(arguments)!r}: an error without a word")


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode("utf-8", "surrogateescape")  # type: ignore[attr-defined]  # it is BytesIO


def make_files() -> None:
    """Write a small set: finished runs, a comparison, a store with its table, images, and code."""
    Path("own.py").write_text(OWN)
    main(["train", *QUICK, "--out", "run"])
    main(["train", *QUICK, "--sharpness", "s2sam", "--out", "other"])
    main(
        [
            "compare",
            "own.py:train",
            "--seeds",
            "1",
            "--sharpness",
            "s2sam",
            "--jobs",
            "1",
            "--device",
            "cpu",
            "--out",
            "compared",
        ]
    )
    main(["reproduce", "own.py", "--jobs", "1", "--device", "cpu", "--out", "store"])
    source = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in ("a", "b"):
            folder = Path("images", part, label)
            folder.mkdir(parents=True)
            for number in range(8):
                Image.fromarray(source.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
    Path(ODD).mkdir()
    shutil.copytree("images", Path(ODD, "images"))
    Path(ODD, "own.py").write_text(OWN)
    Path("notes.txt").write_text("a file of somebody's own\n")
    Path("mine").mkdir()
    Path("mine", "notes.txt").write_text("another\n")
    Path("away").symlink_to("nowhere")


class Kept:
    """A folder that is to stay as it is, and a copy of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.copy = folder, folder.with_name(f"{folder.name}-copy")
        shutil.copytree(folder, self.copy, symlinks=True)
        self.before = self._entries()

    @contextlib.contextmanager
    def watched(self, again: Collection[str] = ()) -> Iterator[None]:
        """A context after which what is new is gone. Raises Fault where what was there is not as it was.

        Args:
            again: names of files that commands write again.
        """
        try:
            yield
        finally:
            missing = [path for path in self._restored() if os.path.basename(path) not in again]
        if missing:
            raise Fault(f"lost or written over: {', '.join(missing)}")

    def _restored(self) -> list[str]:
        """Make the folder what it was; return what had not the content that it had."""
        after, other = self._entries(), []
        for path in sorted(after.keys() - self.before.keys(), reverse=True):
            self._remove(path)
        for path in sorted(self.before):
            if after.get(path) != self.before[path] and not self._is_same(path):
                other.append(path)
                self._remove(path)
                self._bring_back(path)
        self.before = self._entries()
        return other

    def _entries(self) -> dict[str, tuple[int, ...]]:
        """Return size, time and number of each file and link, and the mode of each folder, by its path."""
        found: dict[str, tuple[int, ...]] = {}
        for place, folders, files in os.walk(self.folder):
            for name in (*folders, *files):
                path = os.path.join(place, name)
                about = os.lstat(path)
                is_folder = stat.S_ISDIR(about.st_mode)
                own = (about.st_mode,) if is_folder else (about.st_size, about.st_mtime_ns, about.st_ino)
                found[os.path.relpath(path, self.folder)] = own
        return found

    def _is_same(self, path: str) -> bool:
        ours, theirs = self.folder / path, self.copy / path
        if ours.is_symlink() or theirs.is_symlink() or not (ours.is_file() and theirs.is_file()):
            return ours.is_dir() and theirs.is_dir() and not ours.is_symlink()
        return ours.read_bytes() == theirs.read_bytes()

    def _remove(self, path: str) -> None:
        place = self.folder / path
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)

    def _bring_back(self, path: str) -> None:
        if (self.copy / path).is_dir() and not (self.copy / path).is_symlink():
            (self.folder / path).mkdir(exist_ok=True)
        else:
            shutil.copy2(self.copy / path, self.folder / path, follow_symlinks=False)

"""The commands that ``kill_anywhere.py`` kills, each with tiny settings, and what they work on."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from flatsparse.experiments.run.sharpness import SHARPNESS
from flatsparse.methods import METHODS
from tests.experiments.own_tasks import KINDS, NOISY, STREAM, written

IMAGES, CLASSES = 300, ("a", "b", "c")  # more images than are worth no worker
DATA = ("--train-size", "96", "--validation-size", "50")
QUICK = (*DATA, "--batch-size", "16", "--epochs", "3", "--device", "cpu")
RIGL = ("--method", "rigl", "--sparsity", "0.9")
ROUNDS = ("lth", "lrr")
SCRIPT = """import torch
def train(arm):
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    optimizer = arm.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    training = arm.sparsify(model, optimizer, steps=40)
    for _ in range(40):
        loss = model(torch.randn(5, 8)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"size": sum(float(w.detach().square().sum()) for w in model.parameters()), "sparsity": training.sparsity}
"""
RECIPE = """from flatsparse.experiments.recipes.recipe import Cell, Recipe
from flatsparse.experiments.run.config import RunConfig
def cells(scale):
    quick = dict(train_size=64, validation_size=50, batch_size=16, epochs=2, device="cpu")
    for method, sharpness in (("rigl", "none"), ("rigl", "s2sam"), ("lth", "s2sam"), ("lrr", "s2sam")):
        options = {"drop_fraction": 0.5, "sparsity": 0.7} if method != "rigl" else {"sparsity": 0.9}
        yield Cell(method, "tiny", RunConfig.of(method=method, sharpness=sharpness, **options, **quick))
RECIPE = Recipe("own", "T", "S", cells, seeds={"smoke": 1})
"""
MEASURED = """from flatsparse.experiments.recipes.on_corrupted import ON_CORRUPTED, accuracy_on_corrupted
from flatsparse.experiments.recipes.recipe import Cell, Recipe
from flatsparse.experiments.run.config import RunConfig
def cells(scale):
    quick = dict(train_size=64, validation_size=50, batch_size=16, epochs=1, sparsity=0.9, device="cpu")
    return [Cell("rigl", "90%", RunConfig.of(sharpness=s, **quick)) for s in ("none", "s2sam")]
RECIPE = Recipe("measured", "T", "S", cells, metric=ON_CORRUPTED, seeds={"smoke": 1}, measure=accuracy_on_corrupted(images=5))
"""


@dataclass(frozen=True)
class Case:
    """A command that is killed.

    Attributes:
        kind: what it is counted as.
        needs: the files and folders of the set that it works on.
        fresh: it runs in an interpreter of its own, as users start it, and so do its workers.
    """

    kind: str
    line: tuple[str, ...]
    needs: tuple[str, ...] = ()
    fresh: bool = False

    def __str__(self) -> str:
        return " ".join(self.line)


def make_set(folder: Path) -> list[tuple[str, ...]]:
    """Write what the cases work on; returns the command lines that write the rest."""
    for name, text in KINDS.items():
        written(folder, text, name=f"{name}.py")
    written(folder, NOISY, 'better="lower")', 'better="lower", workers=2)', name="noisy-read-ahead.py")
    written(folder, STREAM, 'better="lower")', 'better="lower", workers=1)', name="stream-read-ahead.py")
    for name, text in (("script.py", SCRIPT), ("recipe.py", RECIPE), ("measured.py", MEASURED)):
        (folder / name).write_text(text)
    source = np.random.default_rng(0)
    for part, count in (("train", IMAGES), ("test", 30)):
        for number in range(count):
            place = folder / "images" / part / CLASSES[number % len(CLASSES)]
            place.mkdir(parents=True, exist_ok=True)
            pixels = source.integers(0, 256, (10, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    return [
        ("train", *QUICK, *RIGL, "--sharpness", "s2sam", "--seed", str(seed), "--out", f"runs/{name}")
        for seed, name in enumerate("ab")
    ]


def _train(method: str, sharpness: str, *more: str, kind: str = "train", needs: tuple[str, ...] = ()) -> Case:
    options = [] if method in ("dense", "chex") else ["--sparsity", "0.9"]
    if method in ROUNDS:
        options += ["--drop-fraction", "0.5", "--epochs", "1"]
    quick = QUICK[len(DATA) :] if "--task" in more else QUICK  # a stream cannot be divided
    line = ("train", *quick, *more, "--method", method, *options, "--sharpness", sharpness, "--out", "out", "--resume")
    return Case(kind, line, needs)


def _cases() -> dict[str, list[Case]]:
    """Return the cases by the name of their group."""
    sharp, methods = itertools.cycle(SHARPNESS), itertools.cycle(("rigl", "lth", "set", "gmp", "snip", "mest"))
    runs, quick = ("runs",), ("--device", "cpu")
    both = ("runs/a", "runs/b")
    return {
        "train": [_train(method, next(sharp)) for _ in range(len(SHARPNESS)) for method in METHODS],
        "train on text": [
            _train(method, sharpness, "--data", "numbers", "--train-size", "60", "--validation-size", "20", "--batch-size",
                "120", "--optimizer", "adamw", "--lr", "3e-3", "--eval-batch-size", "2000", "--epochs", "2",
                kind="train on text")
            for method, sharpness in (("mest", "s2sam"), ("lrr", "none"), ("gmp", "sam"))
        ],
        "train --accelerate": [
            _train(method, sharpness, "--accelerate", kind="train --accelerate")
            for method in ("rigl", "static", "mest", "lth", "gmp")
            for sharpness in ("s2sam", "none", "sam")
        ],
        "train --task": [
            _train(next(methods), next(sharp), "--task", f"{name}.py:task", *more, kind="train --task", needs=(f"{name}.py",))
            for more in ((), ("--accelerate",))
            for name in (*KINDS, "noisy-read-ahead", "stream-read-ahead")
        ],
        "train, streamed": [
            _train(method, "s2sam", "--data", "images", "--image-size", "8", "--model", "digitnet", "--train-size", "270",
                "--validation-size", "30", "--batch-size", "90", "--workers", workers, *more,
                kind=f"train, streamed{', --accelerate' if more else ''}", needs=("images",))
            for method in ("rigl", "lth", "chex", "snip")
            for workers in ("2", "0")
            for more in ((), ("--accelerate",))
        ],
        "compare": [
            Case("compare", ("compare", *QUICK[:-4], "--epochs", "2", *quick, *RIGL, "--seeds", "2", "--sharpness", "s2sam",
                "--jobs", jobs, *more, "--out", "out", "--resume"))
            for jobs in ("1", "2")
            for more in ((), ("--tune", "--rho-grid", "0.1", "0.5", "--tune-seeds", "1"), ("--label-noise", "0", "0.2"),
                ("--method", "lth", "--sparsity", "0.5", "--drop-fraction", "0.5"), ("--accelerate",))
        ],
        "compare a script": [
            Case("compare a script", ("compare", "script.py:train", "--seeds", "3", "--sharpness", *kinds, *quick, "--jobs",
                jobs, "--out", "out", "--resume"), ("script.py",))
            for jobs in ("1", "2")
            for kinds in (("s2sam", "random"), ("momentum", "average"))
        ],
        "reproduce": [
            Case("reproduce", ("reproduce", file, "--jobs", jobs, *quick, "--out", "out"), (file,))
            for jobs in ("1", "2")
            for file in ("recipe.py", "measured.py")
        ],
        "landscape": [
            Case("landscape", ("landscape", *both, "--points", "11", "--images", "48", "--pairs", "2", "--hessian-images",
                hessian, "--jobs", jobs, *quick, "--out", "out", "--resume"), runs)
            for jobs in ("1", "2")
            for hessian in ("8", "0")
        ],
        "export": [
            Case("export", ("export", "runs/a", "--format", *forms, "--images", "40", "--out", "out"), runs)
            for forms in (("dense", "masks", "small", "csr"), ("csr", "masks"), ("small", "dense"), ("csr", "onnx", "masks"))
        ],
        "evaluate": [
            Case("evaluate", ("evaluate", *both, "--images", "100", "--jobs", "1", *quick, "--out", "out"), runs),
            Case("evaluate", ("evaluate", "runs/a", "--jobs", "1", *quick, "--out", "out"), runs),
        ],
        "evaluate --after": [
            Case("evaluate --after", ("evaluate", *both, "--after", "int8", "prune30", "noise0.2", "finetune1", "--images",
                "50", "--jobs", jobs, *quick, "--out", "out"), runs)
            for jobs in ("1", "2")
        ],
        "evaluate --corruptions": [
            Case("evaluate --corruptions", ("evaluate", *both, "--corruptions", "--only", "fog", "contrast", "--images", "20",
                "--jobs", jobs, *quick, "--out", "out"), runs)
            for jobs in ("1", "2")
        ],
        "fresh interpreters": [
            Case("fresh interpreters", ("compare", *QUICK, *RIGL, "--seeds", "1", "--sharpness", "s2sam", "--jobs", "2",
                "--out", "out", "--resume"), fresh=True),
            Case("fresh interpreters", ("landscape", *both, "--points", "11", "--images", "48", "--pairs", "1",
                "--hessian-images", "0", "--jobs", "2", *quick, "--out", "out", "--resume"), runs, fresh=True),
        ],
    }  # fmt: skip


# How often a group comes in a cycle.
SHARES = {
    "train": 7,
    "train --task": 3,
    "train, streamed": 2,
    "compare": 3,
    "compare a script": 2,
    "reproduce": 2,
    "landscape": 2,
    "export": 2,
}


def example(kind: str, *words: str) -> Case:
    """Return the first case of a kind whose command line has some words."""
    every = itertools.chain(*_cases().values())
    return next(case for case in every if case.kind == kind and set(words) <= set(case.line))


def cases(seed: int) -> Iterator[Case]:
    """Yield cases without end: every group in each cycle, and every case of a group before one comes again."""
    source = random.Random(seed)
    groups = {name: _shuffled(group, source) for name, group in _cases().items()}
    cycle = [name for name in groups for _ in range(SHARES.get(name, 1))]
    while True:
        for name in source.sample(cycle, len(cycle)):
            yield next(groups[name])


def _shuffled(group: list[Case], source: random.Random) -> Iterator[Case]:
    """Yield a group without end, at random; of trainings first every method once, then again with another sharpness."""
    size = len(METHODS) if len(group) > 2 * len(METHODS) else len(group)
    while True:
        for part in (group[first : first + size] for first in range(0, len(group), size)):
            yield from source.sample(part, len(part))

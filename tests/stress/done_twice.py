"""One of the cases of ``same_bits.py``: a run, a comparison or a recipe, done in one way or another, and what it comes to."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPT = """
import random
import numpy as np
import torch

def train(arm):
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 2))
    optimizer = arm.optimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    arm.sparsify(model, optimizer, steps=12)
    for step in range(12):
        inputs = torch.randn(8, 6) + 0.1 * random.random() + 0.1 * np.random.rand()
        loss = torch.nn.functional.cross_entropy(model(inputs), (inputs[:, 0] > 0).long())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"loss": float(loss), "first": float(model[0].weight.sum())}
"""


@dataclass(frozen=True)
class Case:
    """What is done twice, and in which other way the second time.

    Attributes:
        kind: a run, a comparison of data or of a script, or a recipe.
        options: of the command line, for a run as ``RunConfig.of`` takes them.
        data: of a run; all but digits are made anew, in a folder of the process's own.
        workers: which read the data the second time; 0 the first time.
        stop: the epochs after which the second run is stopped and resumed.
        jobs: at once the second time; 1 the first time.
    """

    kind: str
    options: dict[str, Any]
    data: str = "digits"
    workers: int = 0
    stop: tuple[int, ...] = ()
    jobs: int = 1


def contents_of(case: Case, folder: Path, *, plain: bool) -> Any:
    """Return what a case comes to, by content and without times; ``plain`` for the first way."""
    from flatsparse.common.errors import InputError

    disturb(0 if plain else 1)
    try:
        return (_run if case.kind == "run" else _command)(case, folder, plain)
    except InputError as problem:
        return str(problem).replace(str(folder), "FOLDER")


def disturb(seed: int) -> None:
    """Draw from every global generator, as other code may have done before."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    for _ in range(seed * 7):
        random.random(), np.random.rand(), torch.rand(3)


def _run(case: Case, folder: Path, plain: bool) -> Any:
    from flatsparse.experiments.run import loop
    from flatsparse.experiments.run.config import RunConfig

    options = {**case.options, **_data(case.data, folder)}
    if not plain and case.data not in ("digits",):
        options["workers"] = case.workers
    elif case.data != "digits":
        options["workers"] = 0
    run, out = RunConfig.of(**options), folder / "run"
    before, loop.CHECKPOINT_SECONDS = loop.CHECKPOINT_SECONDS, 0.0
    try:
        for epoch in () if plain else case.stop:
            with contextlib.suppress(_Stopped):
                loop.train(run, out, watcher=_stopping(epoch), resume=out.exists())
        loop.train(run, out, resume=out.exists())
    finally:
        loop.CHECKPOINT_SECONDS = before
    return finished(out, folder)


class _Stopped(BaseException):
    """Stands for a kill between two epochs."""


def _stopping(epoch: int) -> Any:
    from flatsparse.experiments.run.watcher import Silent

    class Stopping(Silent):
        def finished_epoch(self, record: Any) -> None:
            if record.epoch == epoch:
                raise _Stopped

    return Stopping()


def _data(name: str, folder: Path) -> dict[str, str]:
    if name == "digits":
        return {}
    (folder / "given").mkdir(parents=True)
    if name == "images":
        from tests.experiments.images import write_class

        for part, label in ((part, label) for part in ("train", "test") for label in ("cat", "dog")):
            write_class(folder / "given" / part / label, 24)
        return {"data": str(folder / "given")}
    from tests.experiments.own_tasks import KINDS, written

    return {"task": written(folder / "given", KINDS[name])}


def _command(case: Case, folder: Path, plain: bool) -> Any:
    """Run a command with one job, or start it, stop it where it may be and go on with several."""
    from flatsparse.cli import main

    seed, method = case.options["seed"], case.options["method"]
    folder.mkdir(parents=True)
    (folder / "mine.py").write_text(SCRIPT, encoding="utf-8")
    jobs = 1 if plain else case.jobs
    common = f"--method {method} --sparsity 0.8 --seeds 2 --sharpness none s2sam"
    command = {
        "compare": f"compare {common} --train-size 64 --validation-size 50 --batch-size 16 --epochs 2 --label-noise 0.2",
        "script": f"compare {folder}/mine.py:train {common}",
        "reproduce": f"reproduce noise --scale smoke --only RigL*{20 * (seed % 2 + 1)}%* --seeds 1",
    }[case.kind]
    with contextlib.redirect_stdout(io.StringIO()):
        main([*command.split(), "--jobs", str(jobs), "--out", str(folder / "out")])
    return {
        file.relative_to(folder).as_posix(): _json(file, folder) for file in sorted((folder / "out").rglob("*.json"))
    } | {
        file.parent.name: finished(file.parent, folder) for file in sorted((folder / "out").rglob("model.safetensors"))
    }


def finished(out: Path, folder: Path) -> Any:
    """What a finished run's folder holds: its result, and a hash of each file's content, of which result.json has some."""
    from flatsparse.common.tensor_files import load_tensors, tensor_digest

    result = _json(out / "result.json", folder)
    result["files"].pop("config.json")  # which has the data's path
    weights = {name: tensor_digest(*load_tensors(out / name)) for name in ("model.safetensors", "masks.safetensors")}
    return {**result, **weights}


TIMED = re.compile("second|time|median")
OTHER = {"machine", "sha256", "jobs", "data_dir", "workers"}


def _json(file: Path, folder: Path) -> Any:
    return _without_times(json.loads(file.read_text(encoding="utf-8").replace(str(folder), "FOLDER")))


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if not (TIMED.search(k) or k in OTHER)}
    return [_without_times(v) for v in value] if isinstance(value, list) else value

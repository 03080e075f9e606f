"""One small set of all that is written, and for each part of it the reader that a user would come with."""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import flatsparse as fs
from flatsparse.cli.compare import Compare
from flatsparse.cli.evaluate import Evaluate
from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json
from flatsparse.common.tensor_files import load_tensors
from flatsparse.experiments import export as exporting
from flatsparse.experiments.compare import Comparison, compare
from flatsparse.experiments.evaluate.record import evaluate
from flatsparse.experiments.evaluate.settings import Evaluation
from flatsparse.experiments.export import export
from flatsparse.experiments.export_forms import FORMS
from flatsparse.experiments.grid.store import run_grid
from flatsparse.experiments.landscape.measure import measure
from flatsparse.experiments.landscape.settings import Landscape
from flatsparse.experiments.recipes.on_corrupted import ON_CORRUPTED, accuracy_on_corrupted
from flatsparse.experiments.recipes.recipe import Cell, Recipe
from flatsparse.experiments.report.store import records
from flatsparse.experiments.report.tables import write
from flatsparse.experiments.report.text import print_landscape
from flatsparse.experiments.reproduce.run import Choice, run_recipe
from flatsparse.experiments.run import loop
from flatsparse.experiments.run.config import RunConfig, Setting, change
from flatsparse.experiments.run.folder import read_metrics, read_probes
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.run.watcher import Silent
from flatsparse.experiments.scripts.comparison import ScriptComparison, compare_script
from flatsparse.experiments.scripts.report import compare_and_report
from flatsparse.experiments.scripts.script import Script
from flatsparse.experiments.terminal import Console
from flatsparse.export import apply_delta, save_delta

# Files of these settings are kept in tests/kept: they stay as they are, and more may be added.
QUICK: dict[str, Any] = {"train_size": 64, "validation_size": 50, "batch_size": 16, "epochs": 2, "sparsity": 0.9}
RUNS = [RunConfig.of(**QUICK, sharpness="s2sam", probe="every=8", seed=seed) for seed in (0, 1)]
STOPPED = [RunConfig.of(**{**QUICK, "epochs": 4}, sharpness="s2sam", seed=seed) for seed in (0, 1)]
ROUNDS = {"method": "lth", "train_size": 64, "validation_size": 50, "batch_size": 16, "epochs": 1, "drop_fraction": 0.5}
IN_ROUNDS = [RunConfig.of(**ROUNDS, sparsity=sparsity) for sparsity in (0.4, 0.5)]
COMPARED = Comparison(
    setting=Setting.of(**{**QUICK, "epochs": 1}), sharpness=("s2sam",), seeds=2, tune=True, rho_grid=(0.1, 0.5),
    tune_seeds=1, jobs=1,
)  # fmt: skip
ARMS = ScriptComparison(sharpness=("s2sam",), seeds=2, jobs=1)
SCRIPT = """import torch
def train(arm):
    model = torch.nn.Linear(8, 4)
    optimizer = arm.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    arm.sparsify(model, optimizer, steps=3)
    for _ in range(3):
        model(torch.randn(5, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"size": float(model.weight.detach().square().sum())}
"""
FORMATS = ("dense", "masks", "small", "csr", "onnx")  # the other needs a GPU
FINISHED = (Path("runs/a"), Path("runs/b"))
SURFACES = Landscape(runs=FINISHED, points=7, images=32, pairs=2, stride=1, hessian_images=8, jobs=1)
CHANGED = Evaluation(FINISHED, after=("int4", "noise0.2"), images=40, jobs=1)
CORRUPTED = Evaluation(FINISHED, corruptions=True, only=("gaussian_noise",), images=20, jobs=1)
RECIPE = Recipe(
    name="noise", title="T", source="S", notes=(), metric=ON_CORRUPTED, seeds={"smoke": 1},
    cells=lambda scale: [Cell("rigl", "90%", RunConfig.of(**{**QUICK, "epochs": 1}, sharpness=s)) for s in ("none", "s2sam")],
    measure=accuracy_on_corrupted(images=10),
)  # fmt: skip
TIMES = (
    *("seconds", "images_per_second", "step_seconds", "step_time", "step_times", "time"),
    *("when", "inference", "training", "measured_on", "machine"),
)
quiet = Console(quiet=True)


class _Stop(BaseException):
    """Ends a run between two epochs, as a kill would."""


class _After(Silent):
    def finished_epoch(self, record: Any) -> None:
        if record.epoch == 3:
            raise _Stop


def plain(value: Any) -> Any:
    """Return a value without the times in it, as what two readings of equal files share."""
    if isinstance(value, Tensor):
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.detach().numpy().tobytes()).hexdigest()]
    if isinstance(value, nn.Module):
        return plain(value.state_dict())
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items() if name not in TIMES}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return value if isinstance(value, (int, float, str, type(None))) else str(value)


def _stop(run: RunConfig, out: Path) -> None:
    try:
        loop.train(run, out, watcher=_After())
    except _Stop:
        return
    raise AssertionError("the run was not stopped")


def _masks() -> dict[str, Tensor]:
    return {"a.weight": torch.arange(350).view(25, 14) % 3 == 0, "b.weight": torch.arange(40).view(5, 8) % 2 == 0}


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))


def make_runs() -> None:
    """Write two finished and two stopped runs, masks and a change."""
    for run, name in zip(RUNS, "ab", strict=True):
        loop.train(run, Path("runs", name))
    for run, name in zip(STOPPED, "ab", strict=True):
        _stop(run, Path("stopped", name))
    Path("plain").mkdir()
    fs.save_masks("plain/masks.safetensors", _masks(), method="rigl", step=7)
    base, new = _net(), _net()
    with torch.no_grad():
        new[0].weight[:3, 1:5] += 1
        new[2].bias += 1
    save_delta("plain/delta.safetensors", new, base)


def make_rest(*, store: bool = True) -> None:
    """Write what comparisons, stores, measurements and exports of these runs leave."""
    Path("own.py").write_text(SCRIPT)
    if store:
        run_grid(IN_ROUNDS, Path("store"), jobs=1, console=quiet)
    compare(COMPARED, Path("compared"), console=quiet)
    compare_script(Script.named("own.py:train"), ARMS, Path("arms"), console=quiet)
    measure(SURFACES, Path("surfaces"), console=quiet)
    evaluate(CHANGED, Path("changed"), quiet)
    evaluate(CORRUPTED, Path("corrupted"), quiet)
    run_recipe(RECIPE, Choice(jobs=1), Path("recipes"), quiet)
    _export(FORMATS)


# -- readers ----------------------------------------------------------------------------------------------------------


def _load() -> Any:
    runs = [load_run(folder) for folder in FINISHED]
    return [(run.digest, run.model, run.masks, run.result) for run in runs]


def _resume_finished() -> Any:
    results = [loop.train(run, folder, resume=True) for run, folder in zip(RUNS, FINISHED, strict=True)]
    return results, [(read_metrics(f, r), read_probes(f, r, 1)) for f, r in zip(FINISHED, results, strict=True)]


def _resume_stopped() -> Any:
    folder = Path("stopped/a")
    result = loop.train(STOPPED[0], folder, resume=True)
    return result, load_run(folder).digest, read_metrics(folder, result)


def _masks_and_change() -> Any:
    return fs.load_masks("plain/masks.safetensors"), apply_delta("plain/delta.safetensors", _net())


def _grid() -> Any:
    runs = [*IN_ROUNDS, change(IN_ROUNDS[0], sparsity=0.6)]  # the last takes its first round from the store
    outcomes = run_grid(runs, Path("store"), jobs=1, console=quiet)
    if failure := next((outcome.failure for outcome in outcomes if outcome.failure), None):
        raise InputError(failure)
    return [outcome.result for outcome in outcomes]


def _compare() -> Any:
    Compare(comparison=COMPARED, out=Path("compared"), resume=True)()
    record = read_json(Path("compared/compare.json"))
    return _without_failures(record, *(table["failures"] for table in record["tables"]))


def _compare_arms() -> Any:
    compare_and_report(Script.named("own.py:train"), ARMS, Path("arms"), resume=True, console=quiet)
    record = read_json(Path("arms/compare.json"))
    return _without_failures(record, [failure["reason"] for failure in record["failures"]])


def _without_failures(value: Any, *failures: list[str]) -> Any:
    """Return a value; where runs have failed, which is told with the value, raise the first reason."""
    if reasons := [reason for some in failures for reason in some]:
        raise InputError(reasons[0])
    return value


def _landscape() -> Any:
    found = measure(SURFACES, Path("surfaces"), resume=True, console=quiet)
    print_landscape(found, SURFACES.resolved(), quiet)
    return found


def _evaluate(settings: Evaluation, out: str) -> Any:
    Evaluate(settings, Path(out))()
    return read_json(Path(out, "evaluation.json"))


def _export(formats: tuple[str, ...]) -> Any:
    exporting.SECONDS, exporting.ROUNDS = 0.0, 3
    return export(load_run(Path("runs/a")), formats, Path("exported"), images=20, report=lambda *_: None)


def _read_exports() -> Any:
    run = load_run(Path("runs/a"))
    inputs = next(run.task.splits.test.batches(8)).content[0]
    with torch.no_grad():
        models = {name: FORMS[name].load(run, Path("exported", FORMS[name].file), run.model) for name in FORMATS[1:]}
        return load_tensors(Path("exported/dense.safetensors")), {name: model(inputs) for name, model in models.items()}


def _report() -> Any:
    tables = records(Path("recipes"))
    page = write(tables, Path("recipes"), Path("report.html")).read_text()
    if told := re.search(r"[^\"<>]*\bis damaged\b[^\"<>]*", page):  # in the cell of a run
        raise InputError(html.unescape(told[0]).encode().decode("unicode_escape"))
    return tables


@dataclass(frozen=True)
class Part:
    """A part of the set, and one that reads it.

    Attributes:
        folder: whose files are damaged.
        needs: what else is there.
        read: returns what is the same for the same files.
    """

    name: str
    folder: str
    read: Callable[[], Any]
    needs: tuple[str, ...] = ()


RUN_PARTS = [
    Part("finished runs loaded", "runs", _load),
    Part("finished runs resumed", "runs", _resume_finished),
    Part("stopped runs resumed", "stopped", _resume_stopped),
    Part("masks and changes loaded", "plain", _masks_and_change),
]
REST = [
    Part("store run again", "store", _grid),
    Part("comparison resumed", "compared", _compare),
    Part("comparison of a script resumed", "arms", _compare_arms, ("own.py",)),
    Part("surfaces resumed", "surfaces", _landscape, ("runs",)),
    Part("changes evaluated again", "changed", lambda: _evaluate(CHANGED, "changed"), ("runs",)),
    Part("corruptions evaluated again", "corrupted", lambda: _evaluate(CORRUPTED, "corrupted"), ("runs",)),
    Part("recipe run again", "recipes", lambda: run_recipe(RECIPE, Choice(jobs=1), Path("recipes"), quiet)),
    Part("report", "recipes", _report),
    Part("exports read", "exported", _read_exports, ("runs",)),
    Part("export repeated", "exported", lambda: _export(("dense", "masks", "csr")), ("runs",)),
]


def told(value: Any) -> str:
    """Return what a reader returned as text."""
    return json.dumps(plain(value), sort_keys=True).replace(str(Path.cwd()), ".")

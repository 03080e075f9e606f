"""All places that show a name: pages, pictures, terminals, files, flags and records."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import os
import shlex
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from flatsparse.cli.doctor import _table
from flatsparse.cli.entry import _plain_warnings, _print_line
from flatsparse.cli.train import summary, usual_folder
from flatsparse.common.errors import InputError, harmless
from flatsparse.common.json_files import read_json, write_json
from flatsparse.diagnosis.finding import Finding
from flatsparse.experiments import plotting
from flatsparse.experiments.claims import plain_name
from flatsparse.experiments.data.folders import read_folder
from flatsparse.experiments.evaluate.after_picture import after_picture
from flatsparse.experiments.evaluate.after_table import AfterTable
from flatsparse.experiments.evaluate.settings import Evaluation
from flatsparse.experiments.grid.store import name_by_key
from flatsparse.experiments.progress import Progress
from flatsparse.experiments.report import figures, pages, store, tables
from flatsparse.experiments.report.columns import TERMINAL, columns
from flatsparse.experiments.report.flags import flags
from flatsparse.experiments.report.text import (
    layer_table,
    print_compared,
    print_evaluation,
    print_record,
    print_sentences,
)
from flatsparse.experiments.run.config import ResolvedRun, RunConfig, change
from flatsparse.experiments.run.folder import read_config, read_result
from flatsparse.experiments.run.load import run_of
from flatsparse.experiments.run.records import RunResult
from flatsparse.experiments.scripts.comparison import ScriptComparison
from flatsparse.experiments.scripts.cost import Cost
from flatsparse.experiments.scripts.job import ArmResult
from flatsparse.experiments.scripts.report import columns_of, sentences, write_page
from flatsparse.experiments.scripts.table import ArmOutcomes, tabulate
from flatsparse.experiments.terminal import Console
from flatsparse.measure.estimate import Estimate, LayerCost

from .calling import Fault

KEPT = {
    "scale",
    "better",
    "verdict",
    "folders",
    "pictures",
    "fingerprint",
}  # of a record: words of ours, and paths that are checked


@dataclasses.dataclass
class Shown:
    """What shows a name.

    Attributes:
        page: of HTML; empty without one.
        printed: on terminals.
        pictures: functions that make figures.
    """

    page: str = ""
    printed: str = ""
    pictures: tuple[Callable[[], Any], ...] = ()


def _folder(name: str) -> Path:
    """Return a new folder with as much of a name in its own as a file system takes."""
    allowed = "".join(c for c in name if c not in "/\0" and not "\ud800" <= c < "\udc80")
    folder = Path("named", f"n{os.fsdecode(os.fsencode(allowed)[:200])}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _renamed(value: Any, name: str, key: str = "") -> Any:
    """Return a record with a name in the place of its texts, and at the front of the names of its numbers."""
    if key in KEPT:
        return value
    if isinstance(value, dict):
        return {k: _renamed(v, name, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_renamed(part, name, key) for part in value]
    return name if isinstance(value, str) and (key, value) != ("sharpness", "none") else value


@functools.cache
def _result() -> RunResult:
    return read_result(Path("run"))


@functools.cache
def _run() -> ResolvedRun:
    return run_of(read_config(Path("run"))["settings"], Path("run"))


def _console() -> Console:
    return Console(file=io.StringIO(), width=100, force_terminal=True)


def _printed(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]  # it is ours


# -- the places -------------------------------------------------------------------------------------------------------


def of_tables(name: str) -> Shown:
    """The page and the text of a recipe's table."""
    (record,) = (_renamed(record, name) for record in store.records(Path("store")))
    console = _console()
    print_record(record, console)
    file = tables.write([record], Path("store"), Path("named.html"))
    return Shown(file.read_text(encoding="utf-8"), _printed(console))


def of_run(name: str) -> Shown:
    """The page and the summary of a run."""
    folder = _folder(name)
    for file in Path("run").glob("*.*s*"):
        shutil.copy(file, folder / file.name)
    scores = {name: 1.0, f"{name} too": 2.0}
    health = dataclasses.replace(_result().health, collapsed={name: 0.5})
    result = dataclasses.replace(
        _result(),
        model=name,
        task=name,
        better="lower",
        scores=scores,
        train_scores=scores,
        validation_scores=scores,
        health=health,
    )
    run = change(_run(), model=name, data=name, include=(name, "*"), method=name)
    layers = [{"name": name, "shape": (1, 2), "active": 1, "sparsity": 0.5}]
    with mock.patch.object(pages, "_layers", return_value=layers):
        page = pages.write_run(run, result, folder)
    console = _console()
    console.print(summary(result), f"report: {page}", sep="\n", highlight=False)
    return Shown(page.read_text(encoding="utf-8"), _printed(console))


def of_script(name: str) -> Shown:
    """The page, the text and the picture of a comparison of a script."""
    cost = Cost(1.0, 3, 3, 0.1)
    results = {
        0: ArmResult({name: 1.0, f"{name} too": 0.5}, cost, (name,)),
        1: ArmResult({name: 1.5, f"{name} too": 0.5}, cost, ()),
    }
    arms = [ArmOutcomes(arm, rho, results, {2: name}) for arm, rho in (("none", 0.0), ("s2sam", 0.05))]
    table = tabulate(f"{name}.py:train", arms, "higher")
    console = _console()
    print_compared([table], table.metric.name, columns(TERMINAL, columns_of(table)), console)
    print_sentences(sentences(table), console)
    page = write_page(table, ScriptComparison(), _folder(name))
    return Shown(page.read_text(encoding="utf-8"), _printed(console), (lambda: figures.differences([table]),))


def of_evaluation(name: str) -> Shown:
    """The page and the text of an evaluation on test samples."""
    run = {
        "run": name,
        "samples": 3,
        "loss": 1.0,
        "scores": {name: 1.0},
        "recorded": {"loss": 1.0, "scores": {name: 1.0}},
    }
    record = {"runs": [run], "settings": {}}
    console = _console()
    print_evaluation(record, console)
    page = pages.write_evaluation(record, Evaluation((Path("runs", name),)), _folder(name))
    return Shown(page.read_text(encoding="utf-8"), _printed(console))


def of_changes(name: str) -> Shown:
    """The page, the text and the picture of an evaluation after changes."""
    changes = ["as trained", f"int4 {name}"]
    after = {change: {"scores": {name: 1.0, f"{name} too": 2.0}, "validation": None} for change in changes}
    runs = [
        {"arm": {"sharpness": arm, name: name}, "seed": seed, "after": after}
        for arm in ("none", name)
        for seed in (0, 1)
    ]
    record = {"runs": runs, "changes": changes, "better": "higher", "settings": {}}
    console = _console()
    print_evaluation(record, console)
    page = pages.write_evaluation(record, Evaluation((Path("runs", name),)), _folder(name))
    return Shown(page.read_text(encoding="utf-8"), _printed(console), (lambda: after_picture(AfterTable.of(record)),))


def of_layers(name: str) -> Shown:
    """The table of a network's layers, and a title and a label in a picture."""
    estimate = Estimate((LayerCost(name, (2, 3), 3, 6, 10, True),), 6, 1.0, 2.0, 3.0, 10)
    return Shown(printed=harmless(layer_table(estimate)), pictures=(lambda: _figure(name),))


def _figure(name: str) -> Any:
    """A picture with a name as its title, as a label and at a tick."""
    from matplotlib.figure import Figure

    figure = Figure()
    axis = figure.subplots()
    axis.set_title(plotting.caption(name))
    axis.plot([0], [0], label=plotting.caption(name))
    axis.set_xticks([0], [plotting.caption(name)])
    axis.legend()
    return figure


def of_terminal(name: str) -> Shown:
    """Lines, tables, titles of bars, warnings and errors."""
    console = _console()
    console.print(name, f"report: {name}", highlight=False, style="bold")
    console.print(_table((Finding(name, name, name, name),)))
    with Progress(console, name, 3, note=name) as progress:
        progress.advance()
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="replace", newline="")
    with contextlib.redirect_stderr(err):
        _print_line(f"error: {name}")
        with _plain_warnings():
            err.write(warnings.formatwarning(name, UserWarning, "own.py", 1))
    err.flush()
    said = err.buffer.getvalue().decode()  # type: ignore[attr-defined]  # it is BytesIO
    if said.count("\n") != 2 or not all(line.isprintable() for line in said.splitlines()):
        raise Fault(f"an error and a warning of {name!r} are {said!r}")
    return Shown(
        printed=_printed(console)
        .replace("\x1b[?25l", "")
        .replace("\x1b[?25h", "")
        .replace("\r", "")
        .replace("\x1b[2K", "")
        .replace("\x1b[1A", "")
    )


def of_files(name: str) -> Shown:
    """Names of folders, flags, and records."""
    run = change(_run(), model=name, data=f"a/{name}", method="rigl", include=(name,), distribution=name)
    with mock.patch("flatsparse.experiments.grid.store.key", return_value="0" * 16):
        made = [plain_name(name), usual_folder(run).name, name_by_key(run).removeprefix("runs/")]
    for one in made:
        if len(os.fsencode(one)) > 230 or set(one) & set('/\\\0<>:"|?*\n') or one in (".", ".."):
            raise Fault(f"{name!r} became the file {one!r}")
    words = shlex.split(flags(change(RunConfig(), include=(name,))))
    if words != ["--include", name]:
        raise Fault(f"{name!r} became the flags {words}")
    write_json(Path("named.json"), {"it": name, "keys": {name: 1}})
    if read_json(Path("named.json")) != {"it": name, "keys": {name: 1}}:
        raise Fault(f"{name!r} is not what was written: {json.dumps(name)}")
    return Shown()


def of_data(name: str) -> Shown:
    """What is said of a folder of images with a class of a name, and of a table with such a column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    console = _console()
    folder = _folder(name)
    for part, label in (("train", "a"), ("train", folder.name), ("test", "a"), (folder.name, "a")):
        (folder / part / label).mkdir(parents=True, exist_ok=True)
        shutil.copy("images/train/a/0.png", folder / part / label / f"{folder.name[:80]}.png")
    data = read_folder(folder)
    console.print(data.name, *data.notes, *(data.class_names or ()), sep="\n", highlight=False)
    table = folder / "tables"
    table.mkdir()
    for part in ("train", "test"):
        with (table / f"{part}.parquet").open("wb") as stream:
            pq.write_table(pa.table({name.encode(errors="replace").decode(): [1]}), stream)
    try:
        read_folder(table)
    except InputError as problem:
        console.print(f"{problem}", highlight=False)
    else:
        raise Fault(f"a table with the column {name!r} was read")
    return Shown(printed=_printed(console))


PLACES: dict[str, Callable[[str], Shown]] = {
    f.__name__.removeprefix("of_"): f
    for f in (of_files, of_terminal, of_layers, of_data, of_evaluation, of_script, of_changes, of_run, of_tables)
}

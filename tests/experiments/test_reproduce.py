"""Recipes: each runs in smoke; what they claim is judged as defined; a new one is one file."""

import dataclasses
import io
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from flatsparse.cli import main
from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json, write_json
from flatsparse.experiments.grid.store import Outcome, key
from flatsparse.experiments.labels import label
from flatsparse.experiments.recipes import load, recipes, surfaces
from flatsparse.experiments.recipes.imagenet import PUBLISHED
from flatsparse.experiments.recipes.recipe import (
    ACCURACY,
    SCALES,
    Cell,
    Metric,
    Published,
    Recipe,
    Work,
    both,
    controls,
)
from flatsparse.experiments.report.text import print_record
from flatsparse.experiments.reproduce.pictures import front, pareto
from flatsparse.experiments.reproduce.run import Choice, elsewhere, run_recipe
from flatsparse.experiments.reproduce.select import matches, selected, with_controls
from flatsparse.experiments.reproduce.table import Line, TableRow, tabulate
from flatsparse.experiments.reproduce.text import judged
from flatsparse.experiments.reproduce.verdict import VERDICTS, Claim, judge
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.stats import deviation, seeds_needed
from flatsparse.methods import kind_of

from .own_tasks import NOISY, SEVERAL, written
from .results import run_result

NAMES = ["table1", "table2", "table3", "table4", "table5", "table6", "tableA1", "figure1", "figure2", "figure3"]
NAMES += ["sweep", "lrr", "lt", "imagenet95", "set5x", "noise", "ablation", "wmt14"]
NAMES += ["evidence-main", "evidence-digits-masking"]
# The fast suite runs some places of the widest, the slow one all.
SOME = {
    "table1": "RigL CIFAR-10 95%",
    "tableA1": "RigL CIFAR-100 95%",
    "table2": "RigL ERK 80%",
    "table3": "40%.*90%",
    "table5": "GraSP",
    "table6": "VGG",
    "figure1": "98%",
    "figure3": "MEST.*9[58]%",
    "sweep": "dense|98%",
    "lrr": "80%",
    "lt": "40%",
    "imagenet95": "RigL",
    "set5x": "80%",
    "noise": "RigL.*[02]0%",
    "wmt14": "90%",
    "ablation": "perturbation|batch norm",
    "evidence-main": "RigL 98%",
    "evidence-digits-masking": "20%",
}
PLAIN, SHARP = RunConfig(), RunConfig.of(sharpness="s2sam")
SMALL = RunConfig.of(train_size=40, validation_size=20, batch_size=10, epochs=1)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """The folder that all recipes share, so that none trains what another has."""
    return tmp_path_factory.mktemp("reproduce")


def made(recipe, store, **choice):
    choice = {"seeds": 1, "jobs": 1, "device": "cpu", **choice}
    return run_recipe(recipe, Choice(**choice), store, Console(quiet=True))


def check_whole(record, store, only=None):
    """Every row has its values, from masks that were trained, and the table is told beside what was printed."""
    rows = [row for row in record["rows"] if matches(f"{row['row']} {row['column']}", only)]
    assert rows
    for row in rows:
        assert row["needs"] is None
        assert row["failures"] == []
        assert len(row["values"]) >= 1
        for folder in row["folders"]:
            check_trained(store / folder)
        if row["sharpness"] == "s2sam" and not row["control"] and row["folders"]:
            assert row["verdict"] in VERDICTS
            assert row["verdict"] != "not run at this scale"
    for picture in record["pictures"]:
        assert (store / picture).read_bytes().startswith(b"\x89PNG")
    written = read_json(store / f"{record['name']}-{record['scale']}.json")
    assert {name: written[name] for name in record} == record
    console = Console(record=True, width=150, file=io.StringIO())
    print_record(record, console, only)
    text = console.export_text()
    for row in rows:
        assert f"{row['mean']:.2f}" in text
        assert row["published"] is None or f"{row['published']['value']:.2f}" in text


def check_trained(folder):
    """A dynamic method's masks were updated ten times or more; lth and lrr pruned in rounds."""
    settings = json.loads((folder / "config.json").read_text())["settings"]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    if settings["method"] in ("lth", "lrr"):
        assert result["rounds"] >= 4
    elif kind_of(settings["method"])().plan(settings["sparsity"] or 0.0, 10_000).rules:
        assert sum(record["updates"] for record in records) >= 10


LONG = {"wmt14", "set5x", "table5"}  # half a minute each and more


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in NAMES])
def test_recipe_in_smoke(name, store):
    record = made(load(name), store, only=SOME.get(name))
    check_whole(record, store, SOME.get(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_the_whole_of_a_wide_recipe_in_smoke(name, store):
    check_whole(made(load(name), store), store)


def test_every_recipe_is_found_and_every_cell_of_every_scale_can_be_configured():
    assert set(NAMES) <= set(recipes())
    for recipe in recipes().values():
        for scale in SCALES:
            places = Counter()
            for cell in recipe.cells(scale):
                if cell.needs is None:
                    resolve(cell.run)
                places[cell.name, cell.label, cell.run] += 1
            assert not places or max(places.values()) == 1, f"{recipe.name} has a cell twice"


ON_IMAGENET = ("table2", "table3", "table5", "table6", "imagenet95", "set5x")


@pytest.mark.parametrize("name", [*ON_IMAGENET, "wmt14"])
def test_cells_of_the_papers_scale_are_of_the_printed_data_and_say_what_is_missing(tmp_path, name):
    recipe = load(name)
    data = {cell.run.dataset.data for cell in recipe.cells("paper")}
    wanted = {"wmt14"} if name == "wmt14" else {"imagenet"}
    assert data == wanted | ({"cifar10"} if name == "table6" else set())
    with pytest.raises(InputError, match=f"no {wanted.pop()} under .* name .* with --data-dir"):
        made(
            dataclasses.replace(recipe, measure=None), tmp_path, scale="paper", data_dir=tmp_path, only=PAPER.get(name)
        )
    assert {cell.run.dataset.data for cell in recipe.cells("laptop")} <= {"cifar10", "multi30k"}


PAPER = {"table6": "ImageNet"}


def test_the_settings_of_methods_on_imagenet_are_the_published_ones():
    runs = {
        cell.row: cell.run for name in ON_IMAGENET for cell in load(name).cells("paper") if "CIFAR" not in cell.column
    }
    assert {run.rho for run in runs.values()} == {1.0}
    rigl, chex, mest = runs["RigL ERK 5×"], runs["CHEX"], runs["MEST(EM&S) 1.7×"]
    assert (rigl.optim.batch_size, rigl.optim.lr, rigl.schedule.milestones) == (4096, 1.6, (0.3, 0.7, 0.9))
    assert (rigl.pruning.every, rigl.pruning.drop_fraction, rigl.schedule.whole_epochs) == (100, 0.3, 500)
    assert (chex.optim.batch_size, chex.optim.momentum, chex.optim.weight_decay) == (1024, 0.875, 3.05e-5)
    assert chex.pruning.every == 2 * 1252  # two epochs of 1,281,167 images
    assert (mest.schedule.whole_epochs, mest.pruning.every, mest.pruning.layers) == (250, 5 * 626, "mest")
    assert runs["MEST(EM) 0.67×"].schedule.whole_epochs == 100
    assert runs["DSR"].pruning.drop_fraction == pytest.approx(400_000 / (0.1 * 25.503e6), rel=1e-4)
    lengths = {row: runs[row].schedule.epochs for row in ("EfficientNet-B0", "ResNet-34", "ResNet-50")}
    assert lengths == {"EfficientNet-B0": 350, "ResNet-34": 150, "ResNet-50": 150}


def test_what_is_unknown_of_settings_on_imagenet_is_told():
    for name in ON_IMAGENET:
        methods = {cell.run.pruning.method for cell in load(name).cells("paper") if cell.run.dataset.data == "imagenet"}
        notes = " ".join(load(name).notes)
        for method in methods:
            assert f"ImageNet settings of {method}: " in notes
            assert PUBLISHED[method].unknown in notes


def test_the_documented_settings_on_imagenet_are_those_of_the_runs():
    page = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text(encoding="utf-8")
    for method, published in PUBLISHED.items():
        (row,) = [line.split(" | ") for line in page.splitlines() if line.startswith(f"| {method} | ")]
        of = published.settings
        known = [method, str(of["epochs"]), f"{of['batch_size']:,}", f"{of['lr']:g}"]
        assert [cell.strip("| ") for cell in row[:4]] == known
        assert row[6] == f"{of['weight_decay']:g}"
        every = of.get("every", published.period().get("every"))
        assert every is None or f"every {every:,} steps" in row[8]
        assert published.source in row[9]
        assert published.unknown in row[9]


def test_at_laptop_every_row_has_its_own_network_and_our_studies_a_small_one():
    assert {cell.run.model for cell in load("table1").cells("laptop")} == {"resnet32"}
    assert {cell.run.model for cell in load("tableA1").cells("laptop")} == {"vgg19"}
    assert {cell.run.model for cell in load("ablation").cells("laptop")} == {"resnet20"}
    models = {cell.row: cell.run.model for cell in load("table6").cells("laptop")}
    assert models == {cell.row: cell.run.model for cell in load("table6").cells("paper")}


KEPT = {  # keys of runs in stores of November 2026
    ("table1", "smoke"): "5cd3fd952e17b0f5",
    ("table1", "paper"): "08aeb4b74e6312b6",
    ("evidence-main", "laptop"): "20c8331666cad9a9",
    ("ablation", "laptop"): "3d90661afabcd4e3",
    ("tableA1", "paper"): "14427efcd1d8ae92",
}


@pytest.mark.parametrize("place", KEPT, ids="-".join)
def test_runs_of_old_stores_still_count(place, monkeypatch):
    monkeypatch.setattr("flatsparse.experiments.recipes.setting.has_bf16", lambda device: False)
    name, scale = place
    assert key(change(load(name).cells(scale)[1].run, device="cpu")) == KEPT[place]


def of_task(tmp_path, *texts, **settings):
    """A recipe whose cells are of tasks, each in a file of its own, and each with S²-SAM."""
    specs = [written(tmp_path, text, name=f"task{number}.py") for number, text in enumerate(texts)]
    quick = {"method": "set", "sparsity": 0.5, "epochs": 1, "batch_size": 16}
    runs = [RunConfig.of(task=spec, **quick) for spec in specs]
    cells = [cell for number, run in enumerate(runs) for cell in both(str(number), "", run)]
    return Recipe("tasks", "", "ours", lambda scale: cells, **settings)


def test_a_table_of_a_task_is_of_its_score_and_in_its_direction(tmp_path):
    recipe, store = of_task(tmp_path, NOISY), tmp_path / "store"
    record = made(recipe, store)
    assert (record["metric"], record["better"]) == ("error", "lower")
    assert {row["also"]["scored"] for row in record["rows"]} == {"error"}
    with pytest.raises(InputError, match="says that higher is better, and its runs that lower is: correct its metric"):
        made(dataclasses.replace(recipe, metric=Metric("my error")), store)
    own = made(dataclasses.replace(recipe, metric=Metric("my error", "lower")), store)
    assert (own["metric"], own["better"]) == ("my error", "lower")


def test_runs_of_two_metrics_are_no_table(tmp_path):
    with pytest.raises(InputError, match=r"of several metrics \(error \(lower is better\), "):
        made(of_task(tmp_path, NOISY, SEVERAL), tmp_path / "store")


def test_a_new_table_is_one_file(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        "from flatsparse.experiments.recipes.recipe import Published, Recipe, both\n"
        "from flatsparse.experiments.run.config import RunConfig\n"
        "RUN = RunConfig.of(method='set', train_size=40, validation_size=20, batch_size=10, epochs=1)\n"
        "RECIPE = Recipe('mine', 'Mine', 'here', lambda scale: both('SET', '90%', RUN, Published(12.34)))\n"
    )
    out = tmp_path / "out"
    main(["reproduce", str(file), "--out", str(out), "--seeds", "2", "--jobs", "1"])
    told = capsys.readouterr().out
    assert "12.34" in told
    assert "S²-SAM" in told
    record = json.loads((out / "mine-smoke.json").read_text())
    assert [len(row["values"]) for row in record["rows"]] == [2, 2]
    assert record["rows"][1]["difference"]["pairs"] == 2
    before = {f: f.stat().st_mtime_ns for f in out.glob("runs/*/result.json")}
    assert len(before) == 4
    main(["reproduce", str(file), "--out", str(out), "--seeds", "2", "--jobs", "1"])
    assert before == {f: f.stat().st_mtime_ns for f in out.glob("runs/*/result.json")}  # nothing ran again


def test_files_without_a_recipe_are_refused(tmp_path):
    with pytest.raises(InputError, match="no file"):
        load(str(tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(InputError, match="has no recipe"):
        load(str(tmp_path / "empty.py"))
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(InputError, match="does not run: ZeroDivisionError"):
        load(str(tmp_path / "broken.py"))
    for name in ("table1", "../x"):
        named = f"from flatsparse.experiments.recipes.recipe import Recipe\nRECIPE = Recipe({name!r}, '', '')\n"
        (tmp_path / "named.py").write_text(named)
        with pytest.raises(InputError, match="cannot be used: give one of its own"):
            load(str(tmp_path / "named.py"))
    with pytest.raises(InputError, match=r"unknown recipe 'tabel1'.*table1"):
        load("tabel1")


@pytest.mark.parametrize(
    ("cells", "told"),
    [("[1 / 0]", "does not run: ZeroDivisionError"), ("[]", "at least one"), ("['RigL']", "give Cells")],
)
def test_cells_of_ones_own_that_cannot_be_made_are_told_in_one_line(tmp_path, cells, told):
    file = tmp_path / "own.py"
    file.write_text(
        f"from flatsparse.experiments.recipes.recipe import Recipe\nRECIPE = Recipe('own', '', '', lambda scale: {cells})\n"
    )
    with pytest.raises(InputError, match=told):
        load(str(file)).cells("smoke")


@pytest.mark.parametrize("problem", ["ValueError('odd')", "SystemExit(0)"])
def test_a_measure_of_ones_own_that_fails_is_told_in_one_line(tmp_path, problem):
    file = tmp_path / "own.py"
    file.write_text(
        "from flatsparse.experiments.recipes.recipe import Recipe\n"
        f"def measure(runs, work):\n    raise {problem}\n"
        "RECIPE = Recipe('own', '', '', measure=measure)\n"
    )
    with pytest.raises(InputError, match=rf"does not run: {problem.partition('(')[0]}"):
        load(str(file)).measure([], None)


def test_only_takes_shell_patterns_and_regular_expressions_and_tells_the_near_ones():
    cells = load("table1").cells("smoke")
    assert {cell.name for cell in selected(cells, "rigl*98%")} == {"RigL CIFAR-10 98%", "RigL CIFAR-100 98%"}
    assert {cell.name for cell in selected(cells, r"^SET .*-10 9[05]")} == {"SET CIFAR-10 90%", "SET CIFAR-10 95%"}
    assert len({cell.name for cell in selected(cells, "MEST(EM) CIFAR-10 9")}) == 3
    with pytest.raises(InputError, match="measured without any: leave it out"):
        selected(load("table4").cells("smoke"), "rigl*")
    with pytest.raises(InputError, match=r"meets none of 48 places: near it are .*RigL CIFAR-10 90%"):
        selected(cells, "rigle cifar-10 90%")


def test_controls_join_every_cell_with_s2sam():
    plain, ours = load("sweep").cells("paper")[-2:]
    joined = with_controls([plain, ours])
    assert joined[:2] == [plain, ours]
    found = {cell.control: cell.run for cell in joined[2:]}
    assert len(found) == len(controls(ours)) == 5
    assert found["sam"] == change(ours.run, sharpness="sam")
    assert found["random direction"] == change(ours.run, sharpness="random")
    longer = found["plain, twice as long"]
    assert longer == change(plain.run, multiplier=2.0)
    sam = found["sam"]
    assert longer.schedule.whole_epochs * longer.passes == sam.schedule.whole_epochs * sam.passes  # as many gradients
    assert found["s2sam, weight decay 0.0005"].optim.weight_decay == 5e-4
    assert len(with_controls(load("table6").cells("paper")[:3])) == 3 + 4  # SAM is there already


def test_a_figure_goes_on_with_another_number_of_jobs(store):
    first = made(load("figure3"), store, only="MEST.*98%")
    assert made(load("figure3"), store, only="MEST.*98%", jobs=2)["rows"] == first["rows"]


def test_places_measured_without_runs_stand_together_and_count_rounds(tmp_path):
    record = made(load("figure2"), tmp_path)
    places = [(row["row"], row["column"]) for row in record["rows"]]
    assert [len(list(group)) for _, group in itertools.groupby(places)] == [3, 3, 3]
    console = Console(record=True, width=150, file=io.StringIO())
    print_record(record, console)
    text = console.export_text()
    assert "n: rounds" in text
    for valley in ("narrow", "wide"):  # who ends nearest is said, whoever it is
        column = f"distance to the {valley} valley"
        rows = [row for row in record["rows"] if row["column"] == column]
        (first,) = [row for row in rows if row["mean"] == min(r["mean"] for r in rows)]
        name = label(first["sharpness"])
        assert f"{name} ends nearest the {valley} valley, {first['mean']:.2f} away" in text


def test_the_table_shows_macro_f1_and_the_generalization_gap_and_names_the_data(store):
    record = made(load("sweep"), store, only="98%")
    record["data_sets"] = [{"name": "cifar100", "source": "/data/cifar100_q90", "fingerprint": "x"}]
    console = Console(record=True, width=150, file=io.StringIO())
    print_record(record, console, "98%")
    text = console.export_text()
    for row in record["rows"][-2:]:
        assert f"{row['also']['macro']['f1']:.2f}" in text
        assert f"{row['also']['generalization_gap']:.2f}" in text
    assert "F1: macro F1" in text
    assert "data: cifar100 from /data/cifar100_q90" in text
    readings = made(load("figure2"), store)
    console = Console(record=True, width=150, file=io.StringIO())
    print_record(readings, console)
    assert "F1" not in console.export_text()


def test_a_recipe_without_seeds_for_a_scale_asks_for_them(tmp_path):
    with pytest.raises(InputError, match="how many seeds it has in smoke: give --seeds"):
        made(Recipe("part", "", "", lambda scale: [Cell("a", "", SMALL)], seeds={}), tmp_path, seeds=None)


def test_what_is_not_chosen_is_not_run_but_what_is_known_of_it_is_kept(tmp_path):
    recipe = Recipe("part", "", "", lambda scale: [Cell("a", "", SMALL), Cell("b", "", change(SMALL, seed=9, lr=0.2))])
    first = made(recipe, tmp_path, only="a")
    assert [len(row["values"]) for row in first["rows"]] == [1, 0]
    second = made(recipe, tmp_path, only="b")
    assert [len(row["values"]) for row in second["rows"]] == [1, 1]
    assert second["rows"][0] == first["rows"][0]


def test_a_missing_data_set_says_how_to_get_it_and_other_cells_run(tmp_path, monkeypatch):
    monkeypatch.setattr("flatsparse.experiments.data.cifar.hub_parts", unreachable)
    gone = change(SMALL, data="cifar10", model="resnet20")
    cells = (Cell("a", "here", SMALL), Cell("b", "gone", gone))
    (tmp_path / "data").mkdir()
    record = made(Recipe("part", "", "", lambda scale: cells), tmp_path / "out", data_dir=tmp_path / "data")
    assert len(record["rows"][0]["values"]) == 1
    assert record["rows"][1]["values"] == []
    assert "cifar-10-batches-py" in record["rows"][1]["needs"]
    with pytest.raises(InputError, match="cifar-10-batches-py"):
        made(Recipe("none", "", "", lambda scale: cells[1:]), tmp_path / "out", data_dir=tmp_path / "data")


def test_a_table_says_what_its_runs_saw_and_when_that_is_not_one_set(tmp_path):
    recipe = Recipe("part", "", "", lambda scale: [Cell("a", "", SMALL)])
    record = made(recipe, tmp_path, seeds=2)
    assert [told["name"] for told in record["data_sets"]] == ["digits"]
    assert record["said"] == []
    (result, *_) = sorted((tmp_path / "runs").glob("*/result.json"))
    told = read_json(result)
    write_json(result, {**told, "data_set": {**told["data_set"], "fingerprint": "another"}})
    record = made(recipe, tmp_path, seeds=2)
    assert len(record["data_sets"]) == 2
    assert "digits saw different images" in record["said"][0]


def test_what_is_finished_stays_in_the_table_when_its_data_is_gone(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    source = np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 10)):
        images = source.integers(0, 255, (count, 8, 8, 1), dtype=np.uint8)
        np.savez(data / f"{part}.npz", images=images, labels=np.arange(count) % 10)
    recipe = Recipe("part", "", "", lambda s: (Cell("a", "", SMALL), Cell("b", "", change(SMALL, data=str(data)))))
    first = made(recipe, tmp_path / "out")
    assert [len(row["values"]) for row in first["rows"]] == [1, 1]
    data.rename(tmp_path / "away")
    assert made(recipe, tmp_path / "out") == first
    more = made(recipe, tmp_path / "out", seeds=2)["rows"][1]  # the second seed cannot be run
    assert more["values"] == first["rows"][1]["values"]
    assert str(data) in more["needs"]


def test_a_file_in_the_folders_place_is_left_alone(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match=r"cannot write to .*give another --out"):
        made(Recipe("part", "", "", lambda scale: [Cell("a", "", SMALL)]), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def unreachable(source, name):
    raise InputError(f"'{name}' cannot be read: no network here")


def test_a_run_that_fails_is_told_and_the_others_go_on(tmp_path):
    wild = change(SMALL, lr=1e30)
    cells = (Cell("wild", "", wild), Cell("tame", "", SMALL))
    record = made(Recipe("part", "", "", lambda scale: cells), tmp_path)
    assert "loss became" in record["rows"][0]["failures"][0]
    assert len(record["rows"][1]["values"]) == 1


# -- what may be said ---------------------------------------------------------------------------------------------------


def outcome(cell, seed, accuracy):
    folder = f"runs/{cell.row}-{cell.label}{seed}"
    return Outcome(change(cell.run, seed=seed), folder, run_result(accuracy), None)


def json_rows(rows):
    """The rows as a record holds them, from which they can be read again."""
    plain = [row.to_json() for row in rows]
    assert [TableRow.from_json(json.loads(json.dumps(row))) for row in plain] == rows
    return plain


def rows_of(scale, plain, ours, printed=(90.0, 91.0)):
    first = Cell("r", "c", RunConfig(), Published(printed[0]))
    other = Cell("r", "c", RunConfig.of(sharpness="s2sam"), Published(printed[1]))
    lines = [
        Line(cell, [outcome(cell, seed, value) for seed, value in values.items()])
        for cell, values in ((first, plain), (other, ours))
    ]
    return json_rows(tabulate(Recipe("x", "", ""), scale, lines, None, "."))


def test_rows_are_paired_by_seed_and_judged_by_sign_away_from_the_papers_scale():
    plain, ours = {0: 80.0, 1: 85.0, 2: 83.0}, {1: 85.31, 2: 83.29, 0: 80.3}
    laptop, paper = (rows_of(scale, plain, ours)[1] for scale in ("laptop", "paper"))
    assert laptop["difference"]["mean"] == pytest.approx(0.3)
    assert laptop["difference"]["published"] == paper["difference"]["published"] == 1.0
    assert laptop["verdict"] == "helps"
    assert paper["verdict"] == "less than claimed"  # but by 0.3, not by 1
    base = rows_of("paper", plain, ours)[0]
    assert base["difference"] is base["verdict"] is None
    assert (
        laptop["difference"]["equivalence"]["excluded"] == "difference"
    )  # the gain is sure, and less than half a point
    assert judged(laptop) == "helps, no difference larger than 0.5"


EDGE = (81.0, 80.6, 81.5, 80.5)  # of 80: p = 0.03 alone


def table_of(cells, scale="laptop", folders=lambda cell, seed: f"{cell.row}-{cell.label}{seed}"):
    """A table whose plain runs are at 80 %, and those with S²-SAM at its edge."""
    lines = []
    for cell in cells:
        values = EDGE if cell.run.sharpness == "s2sam" else (80.0,) * 4
        found = [outcome(cell, seed, value) for seed, value in enumerate(values)]
        lines.append(Line(cell, [dataclasses.replace(o, folder=folders(cell, n)) for n, o in enumerate(found)]))
    return json_rows(tabulate(Recipe("x", "", ""), scale, lines, None, "."))


def shown(rows):
    record = {"title": "", "source": "", "scale": "laptop", "metric": "m", "better": "higher", "notes": [], "said": []}
    console = Console(record=True, width=150, file=io.StringIO())
    print_record({**record, "rows": rows}, console)
    return console.export_text()


def test_cells_of_the_same_runs_are_one_claim_told_and_counted_once():
    cells = [cell for n in range(6) for cell in both(f"r{n}", "c", RunConfig())]
    rows = table_of(cells, folders=lambda cell, seed: f"{cell.label}{seed}")
    (alone,) = table_of(cells[:2])[1:]
    ours = rows[1::2]
    assert {row["verdict"] for row in ours} == {alone["verdict"]} == {"helps"}
    assert {row["difference"]["p_holm"] for row in ours} == {alone["difference"]["p_holm"]}
    assert {row["difference"]["seeds_needed"] for row in ours} == {alone["difference"]["seeds_needed"]}
    assert len({row["claim"] for row in ours}) == 1
    assert [row["same_runs"] for row in rows] == [None] * 2 + ["r0, c"] * 10
    assert "helps (1)" in shown(rows)
    assert shown(rows).count("same runs as r0, c") == 10
    distinct = table_of(cells)  # the same numbers of other runs are other claims
    assert {row["verdict"] for row in distinct[1::2]} == {"within noise"}
    assert "within noise (6)" in shown(distinct)
    assert not any(row["same_runs"] for row in distinct)


def test_the_same_runs_against_another_number_or_another_base_are_another_claim():
    first = both("r0", "c", RunConfig(), Published(90.0), Published(91.0))
    other = both("r1", "c", RunConfig(), Published(90.0), Published(95.0))
    for scale, claims in (("laptop", 1), ("paper", 2)):
        rows = table_of([*first, *other], scale, folders=lambda cell, seed: f"{cell.label}{seed}")
        assert len({row["claim"] for row in rows[1::2]}) == claims
    ours = [*first, *other]
    rows = table_of(ours, folders=lambda cell, n: f"{cell.row if cell.run.sharpness == 'none' else ''}{cell.label}{n}")
    assert len({row["claim"] for row in rows[1::2]}) == 2


def test_a_table_whose_runs_are_all_anothers_says_so():
    (told,) = elsewhere(load("tableA1"), "smoke")
    assert "Every run here is one of table1's too" in told


@pytest.mark.parametrize(
    ("name", "scale"), [("tableA1", "paper"), ("tableA1", "laptop"), ("figure3", "laptop"), ("table2", "laptop")]
)
def test_a_table_with_runs_or_a_measure_of_its_own_does_not(name, scale):
    assert elsewhere(load(name), scale) == []


def test_a_seed_without_its_pair_does_not_count():
    row = rows_of("paper", {0: 80.0}, {0: 81.0, 1: 99.0})[1]
    assert row["difference"]["pairs"] == 1
    assert row["difference"]["interval95"] == [None, None]
    assert row["verdict"] == "one seed only"
    assert rows_of("paper", {}, {0: 81.0})[1]["verdict"] == "not run at this scale"


@pytest.mark.parametrize("which", [0, 1])
def test_seeds_that_failed_or_gave_no_finite_number_are_counted_beside_the_verdict(which):
    cells = both("r", "c", RunConfig())
    lines = [Line(cell, [outcome(cell, n, v) for n, v in enumerate(EDGE)]) for cell in cells]
    odd = list(lines[which].outcomes)
    odd[1] = dataclasses.replace(odd[1], result=None, failure="the loss became nan")
    odd[3] = dataclasses.replace(odd[3], result=run_result(float("nan"), generalization_gap=0.0))
    lines[which] = dataclasses.replace(lines[which], outcomes=odd)
    rows = json_rows(tabulate(Recipe("x", "", ""), "laptop", lines, None, "."))
    assert rows[1]["difference"]["pairs"] == 2
    assert rows[1]["unpaired"] == 2
    assert rows[which]["failures"] == ["seed 1: the loss became nan", "seed 3: what was measured is nan"]
    assert "without 2 seeds that failed" in shown(rows)
    assert "1 runs failed: the loss became nan" in shown(rows)


def test_verdicts_are_what_their_definitions_say():
    sure, unsure = (1.0, 1.1, 0.9, 1.05), (1.0, -0.5, 0.2, -0.3)
    assert judge([Claim(sure)])[0].verdict == "helps"
    assert judge([Claim(sure, printed=1.0)])[0].verdict == "helps"
    assert judge([Claim(sure, printed=0.2)])[0].verdict == "helps"  # more than was printed
    assert judge([Claim(sure, printed=3.0)])[0].verdict == "less than claimed"
    assert judge([Claim(tuple(-g for g in sure))])[0].verdict == "hurts"
    assert judge([Claim(tuple(-g for g in sure), printed=1.0)])[0].verdict == "hurts"
    assert judge([Claim(unsure, printed=0.4)])[0].verdict == "within noise"
    assert (
        judge([Claim((0.01, -0.01, 0.0), printed=2.0)])[0].verdict == "less than claimed"
    )  # no effect, so not that effect
    assert judge([Claim((0.5, 0.5))])[0].verdict == "within noise"  # accuracies come in steps
    assert judge([Claim((5.0,))])[0].verdict == "one seed only"
    assert judge([Claim(())])[0].verdict == "not run at this scale"


def test_many_claims_need_more_evidence_than_one():
    edge = (1.0, 0.6, 1.5, 0.5)  # p = 0.03 alone
    alone = judge([Claim(edge)])[0]
    among = judge([Claim(edge)] * 20 + [Claim(())] * 5)[0]  # what has not run claims nothing
    assert alone.verdict == "helps"
    assert among.verdict == "within noise"
    assert among.p == pytest.approx(20 * alone.p)


def test_seeds_needed_count_the_claims_of_the_table_and_no_printed_number_of_another_kind():
    def needed(claims, metric=ACCURACY):
        cells = [
            (Cell(f"r{n}", "c", PLAIN, Published(20.0)), Cell(f"r{n}", "c", SHARP, Published(23.0)))
            for n in range(claims)
        ]
        lines = [
            Line(cell, [outcome(cell, seed, value) for seed, value in enumerate(values)])
            for pair in cells
            for cell, values in zip(pair, ((80.0, 80.0, 80.0), (81.0, 79.0, 80.5)), strict=True)
        ]
        return json_rows(tabulate(Recipe("x", "", "", metric=metric), "laptop", lines, None, "."))[1]["difference"]

    spread = deviation([1.0, -1.0, 0.5])
    for claims in (1, 20):
        assert needed(claims)["seeds_needed"] == seeds_needed(spread, 3.0, claims=claims)
    other = needed(1, Metric("words", effect=0.7, comparable=False))
    assert (other["effect"], other["seeds_needed"]) == (0.7, seeds_needed(spread, 0.7))


@pytest.mark.parametrize(
    ("better", "best"), [("higher", {(1.0, 5.0), (2.0, 6.0)}), ("lower", {(1.0, 5.0), (2.0, 4.0)})]
)
def test_the_picture_joins_the_best_in_the_metrics_own_direction(better, best):
    points = [(1.0, 5.0), (2.0, 4.0), (2.0, 6.0)]
    rows = [
        {"column": "c", "sharpness": "none", "control": None, "mean": value, "also": {"flops_train": cost}}
        for cost, value in points
    ]
    (axis,) = pareto(rows, Metric("m", better)).axes
    assert {tuple(xy) for line in axis.lines if line.get_linestyle() == "-" for xy in line.get_xydata()} == best


def test_controls_stand_in_nobodys_place_in_a_figure(tmp_path, monkeypatch):
    cells = both("MEST(EM)", "90%", RunConfig.of(method="mest", sparsity=0.9))
    runs = [(cell, [tmp_path / cell.label]) for cell in with_controls(cells)]
    drawn = {}
    monkeypatch.setattr(
        surfaces.measure,
        "measure",
        lambda settings, *_, **__: [{"run": str(folder), "ra": {"value": 1.0}} for folder in settings.runs],
    )
    monkeypatch.setattr(surfaces.pictures, "surface", lambda record, *_: record["run"])
    measured = surfaces.surfaces(lambda shown: drawn.update(shown) or Figure(), lambda cell: (cell.run.sharpness,))
    found = measured(runs, Work("smoke", tmp_path, None, "cpu", 1, Console(quiet=True)))
    assert drawn == {("none",): str(tmp_path / "none"), ("s2sam",): str(tmp_path / "s2sam")}
    assert len(found.values) == len(runs)


def test_front_keeps_what_nothing_beats():
    points = [(1.0, 5.0), (2.0, 4.0), (2.0, 6.0), (3.0, 6.0), (0.5, 1.0)]
    kept = front(points)
    plain = [p for p in points if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)]
    assert sorted(kept) == sorted(plain)

import dataclasses
import io
import json
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.text import Text
from rich.console import Console

from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json, write_json
from flatsparse.experiments.compare import Comparison, compare
from flatsparse.experiments.comparison_table import Table, tabulate
from flatsparse.experiments.grid import job
from flatsparse.experiments.grid.store import Outcome
from flatsparse.experiments.recipes.recipe import TUNING_SEEDS, Cell
from flatsparse.experiments.report import columns, figures, pages
from flatsparse.experiments.report.sentences import UNLEARNED, comparison_sentences
from flatsparse.experiments.report.text import print_comparison
from flatsparse.experiments.reproduce.table import Line
from flatsparse.experiments.run.config import RunConfig, Setting, change
from flatsparse.experiments.run.records import Seconds
from flatsparse.experiments.tasks.class_scores import above_chance
from flatsparse.sam.directions import DIRECTIONS

from .results import run_result

SMALL = Comparison(
    Setting.of(train_size=64, validation_size=50, batch_size=32, epochs=2),
    seeds=2,
    rhos={"sam": 0.1},
    label_noise=(0.0, 0.2),
    jobs=2,
)


def result(accuracy, rho=0.0, step=0.01, gradients=10):
    return run_result(accuracy, rho=rho, gradient_evaluations=gradients, seconds=Seconds(1.0, step))


def table_of(results, tried=None):
    """The table of results by sharpness, seed by seed; a text in the place of one says why its run failed."""
    lines = []
    for name, found in results.items():
        runs = [RunConfig(sharpness=name, seed=seed) for seed in range(len(found))]
        folders = [Path(f"runs/noise0-{name}-seed{run.seed}") for run in runs]
        outcomes = [
            Outcome(run, folder, None, given) if isinstance(given, str) else Outcome(run, folder, given, None)
            for run, folder, given in zip(runs, folders, found, strict=True)
        ]
        lines.append(Line(Cell(name, "clean", runs[0]), outcomes))
    return tabulate(lines, tried={"sam": tried} if tried else None)


def test_rows_are_paired_seed_by_seed():
    results = {
        "none": [result(90.0), result(80.0), result(85.0)],
        "s2sam": [
            result(91.0, rho=0.1, step=0.011),
            result(81.2, rho=0.1, step=0.011),
            result(85.9, rho=0.1, step=0.011),
        ],
        "random": [result(90.1), result(79.9), result(85.0)],
    }
    table = table_of(results)
    row = table.row("s2sam")
    assert row.difference.mean == pytest.approx(statistics.fmean([1.0, 1.2, 0.9]))
    assert row.difference.verdict == "helps"  # by far, although the seeds themselves differ by ten points
    assert row.step_time == pytest.approx(1.1)
    assert table.row("random").difference.verdict == "within noise"
    assert table.over_random.verdict == "helps"
    told = " ".join(comparison_sentences(table))
    assert "S²-SAM (ρ = 0.1) helps: +1.03 points" in told
    assert "random (ρ = 0) is within noise" in told


def test_nets_that_learned_nothing_are_not_compared():
    results = {
        name: [dataclasses.replace(result(10.0 + step * n), above_chance=False) for n in range(3)]
        for name, step in (("none", 0.0), ("s2sam", 1.0), ("random", 1.0))
    }
    table = table_of(results)
    assert comparison_sentences(table) == [UNLEARNED]
    plain = table.to_json()
    told = [row["difference"]["verdict"] for row in plain["rows"] if row["difference"]]
    assert {*told, plain["over_random"]["verdict"]} == {"nothing learned"}
    results["s2sam"][2] = dataclasses.replace(results["s2sam"][2], above_chance=True)  # one that did is a difference
    assert UNLEARNED not in comparison_sentences(table_of(results))


def test_above_chance_is_above_the_commonest_class_by_more_than_luck():
    always = torch.tensor([[60, 0], [40, 0]])  # names class 0 each time
    assert not above_chance(always)
    assert not above_chance(torch.tensor([[60, 0], [30, 10]]))  # 70 of 100, by luck
    assert above_chance(torch.tensor([[60, 0], [20, 20]]))


def test_a_run_that_diverges_is_named(tmp_path):
    wild = dataclasses.replace(
        SMALL, setting=change(SMALL.setting, lr=1e30), seeds=1, label_noise=(0.0,), sharpness=("sam",), jobs=1
    )
    with pytest.raises(InputError, match=r"run noise0-none-seed0: the loss became .* lower --lr"):
        compare(wild, tmp_path / "out", console=Console(quiet=True))


def test_a_seed_that_failed_has_no_pair_and_is_counted():
    results = {
        "none": [result(90.0), result(80.0), "the loss became nan", result(70.0)],
        "sam": [result(91.0, rho=0.1), "MemoryError: no", result(99.0, rho=0.1), result(73.0, rho=0.1)],
        "s2sam": ["the loss became inf"] * 4,
        "random": ["MemoryError: no", "MemoryError: no", result(50.0), "MemoryError: no"],
    }
    table = table_of(results)
    row = table.row("sam")
    assert (row.seeds, row.accuracies) == ((0, 2, 3), (91.0, 99.0, 73.0))
    assert (row.gaps, row.difference.n, row.unpaired) == ((1.0, 3.0), 2, 2)
    assert row.folders == tuple(f"runs/noise0-sam-seed{seed}" for seed in (0, 2, 3))
    assert [r.sharpness for r in table.rows] == ["none", "sam"]  # the others have no pair
    assert len(table.failures) == 1 + 1 + 4 + 3
    assert "s2sam, seed 3: the loss became inf" in table.failures
    told = comparison_sentences(table)
    assert "Without 2 seeds that failed" in told[0]
    assert "Failed: sam, seed 1: MemoryError: no." in told
    assert len(figures.differences([table]).axes) == 1
    assert Table.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_without_a_plain_run_nothing_is_compared():
    with pytest.raises(InputError, match=r"none has finished: run noise0-none-seed0: the loss became nan"):
        table_of({"none": ["the loss became nan"], "sam": [result(90.0)]})


@pytest.mark.slow
def test_a_radius_too_long_for_a_seed_ends_no_comparison(tmp_path):
    wild = dataclasses.replace(SMALL, seeds=1, label_noise=(0.0,), sharpness=("sam", "s2sam"), rhos={"sam": 1e30})
    (table,) = compare(wild, tmp_path / "out", console=Console(quiet=True))
    assert [row.sharpness for row in table.rows] == ["none", "s2sam"]
    (failure,) = table.failures
    assert failure.startswith("sam, seed 0: the loss became")
    assert pages.write_comparison([table], wild.resolved(), tmp_path / "out").is_file()
    saved = read_json(tmp_path / "out" / "compare.json")["tables"]
    assert [Table.from_json(one) for one in saved] == [table]


def test_a_choice_that_lacks_a_run_for_another_reason_than_its_radius_is_not_made(tmp_path, monkeypatch):
    def burst(*args, **kwargs):
        raise MemoryError("no more")

    chosen = dataclasses.replace(SMALL, tune=True, tune_seeds=1, seeds=1, jobs=1, rho_grid=(0.1,), rhos={})
    with monkeypatch.context() as patch:
        patch.setattr(job, "train", burst)
        with pytest.raises(InputError, match=r"cannot be chosen without run noise0-sam-rho0.1-seed1000: MemoryError"):
            compare(chosen, tmp_path / "out", console=Console(quiet=True))
    assert len(compare(dataclasses.replace(chosen, retry=True), tmp_path / "out", resume=True)) == 2


def test_a_run_with_another_radius_than_the_chosen_one_is_not_taken_for_it(tmp_path):
    chosen = dataclasses.replace(SMALL, seeds=1, jobs=1, label_noise=(0.0,), sharpness=("sam",))
    compare(chosen, tmp_path / "out", console=Console(quiet=True))
    file = tmp_path / "out" / "runs" / "noise0-sam-seed0" / "result.json"
    write_json(file, {**read_json(file), "rho": 0.3})
    with pytest.raises(InputError, match=r"holds a run with --rho 0.3, and 0.1 is chosen now"):
        compare(chosen, tmp_path / "out", resume=True, console=Console(quiet=True))


def test_a_comparison_goes_on_with_other_jobs_and_comes_to_the_same(small_comparison, tmp_path):
    """Each run has one thread, however many run at once."""
    _, tables = small_comparison
    first = dataclasses.replace(SMALL, jobs=1)
    found = compare(first, tmp_path / "out", console=Console(quiet=True))
    assert [[row.accuracies for row in table.rows] for table in found] == [
        [row.accuracies for row in table.rows] for table in tables
    ]
    assert compare(SMALL, tmp_path / "out", resume=True, console=Console(quiet=True)) == found


def test_the_same_twice_is_compared_once():
    twice = dataclasses.replace(SMALL, label_noise=(0.2, 0.0, 0.2), rho_grid=(0.1, 0.1, 0.2), sharpness=("sam", "sam"))
    found = twice.resolved()
    assert (found.label_noise, found.rho_grid, found.sharpness) == ((0.2, 0.0), (0.1, 0.2), ("none", "sam"))


def test_a_radius_at_the_edge_of_its_grid_is_told():
    results = {"none": [result(90.0)] * 2, "sam": [result(91.0, rho=0.5)] * 2}
    at_edge = table_of(results, {"0.1": 88.0, "0.5": 89.0})
    inside = table_of(results, {"0.1": 88.0, "0.5": 89.0, "1": 80.0})
    assert "largest tried" in comparison_sentences(at_edge)[0]
    assert "tried" not in comparison_sentences(inside)[0]


def test_one_seed_claims_nothing():
    table = table_of({"none": [result(90.0)], "sam": [result(99.0, rho=0.1, gradients=20)]})
    (told,) = comparison_sentences(table)
    assert "nothing can be said" in told
    assert "2 gradients a step" in told


@pytest.fixture(scope="module")
def small_comparison(tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison") / "out"
    return out, compare(SMALL, out, console=Console(quiet=True))


def test_a_comparison_runs_every_cell_and_writes_what_it_says(small_comparison):
    out, tables = small_comparison
    assert len(list(out.glob("runs/*/result.json"))) == 2 * 4 * 2
    assert {file.name for file in out.iterdir()} == {"comparison.json", "compare.json", "runs"}
    saved = json.loads((out / "compare.json").read_text())
    assert [t["label_noise"] for t in saved["tables"]] == [0.0, 0.2]
    assert tables[0].row("sam").rho == 0.1
    assert tables[0].row("s2sam").rho == 0.05
    for table, plain in zip(tables, saved["tables"], strict=True):
        for row, values in zip(table.rows, plain["rows"], strict=True):
            noise = f"{table.label_noise:g}"
            found = [
                json.loads((out / f"runs/noise{noise}-{row.sharpness}-seed{s}/result.json").read_text()) for s in (0, 1)
            ]
            assert list(row.accuracies) == values["accuracies"] == [r["test_accuracy"] for r in found]


def test_the_table_fits_a_terminal_and_the_picture_is_drawn(small_comparison, tmp_path):
    _, tables = small_comparison
    said = io.StringIO()
    print_comparison(tables, Console(width=80, file=said))
    said = said.getvalue()
    assert "…" not in said
    assert "S²-SAM ρ=0.05" in said
    figures.differences(tables).savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_comparison_is_told_again_without_running(small_comparison, monkeypatch):
    out, tables = small_comparison
    written = {file: file.stat().st_mtime_ns for file in out.glob("runs/*/model.safetensors")}
    assert compare(SMALL, out, resume=True, console=Console(quiet=True)) == tables
    assert {file: file.stat().st_mtime_ns for file in written} == written


def test_another_comparison_is_refused(small_comparison):
    out, _ = small_comparison
    with pytest.raises(InputError, match="--resume"):
        compare(SMALL, out)
    with pytest.raises(InputError, match="--lr"):
        compare(dataclasses.replace(SMALL, setting=change(SMALL.setting, lr=0.3)), out, resume=True)


def test_radii_are_chosen_on_validation_images_of_other_seeds(tmp_path):
    chosen = Comparison(
        **{
            **vars(SMALL),
            "tune": True,
            "rho_grid": (0.05, 4.0),
            "rhos": {},
            "tune_seeds": 1,
            "label_noise": (0.0,),
            "sharpness": ("sam",),
            "seeds": 1,
            "jobs": 1,
        }
    )
    (table,) = compare(chosen, tmp_path / "out", console=Console(quiet=True))
    tried = table.tried["sam"]
    assert table.row("sam").rho == max((0.05, 4.0), key=lambda rho: tried[f"{rho:g}"])
    for file in (tmp_path / "out" / "tuning").glob("*/result.json"):
        assert json.loads(file.read_text())["test_accuracy"] is None
        assert json.loads(file.read_text())["seed"] >= TUNING_SEEDS


def test_a_radius_that_diverges_is_the_worst_and_stops_nothing(tmp_path, monkeypatch):
    chosen = dataclasses.replace(
        SMALL,
        tune=True,
        rho_grid=(0.1, 1e30),
        tune_seeds=1,
        label_noise=(0.0,),
        sharpness=("sam",),
        rhos={},
        seeds=1,
        jobs=1,
    )
    (table,) = compare(chosen, tmp_path / "out", console=Console(quiet=True))
    assert table.row("sam").rho == 0.1
    assert table.tried["sam"]["1e+30"] == 0.0
    (failed,) = (tmp_path / "out" / "tuning").glob("*1e+30*")  # as in a grid, and no finished run
    assert "the loss became" in read_json(failed / "failure.json")["reason"]
    assert not (failed / "result.json").exists()
    trained = []
    monkeypatch.setattr(job, "train", lambda *given, **how: trained.append(given))
    (again,) = compare(chosen, tmp_path / "out", resume=True, console=Console(quiet=True))
    assert (again.rows[1].rho, again.tried, trained) == (0.1, table.tried, [])


def test_a_radius_that_was_given_is_not_chosen(tmp_path):
    chosen = dataclasses.replace(
        SMALL, tune=True, rho_grid=(0.1, 0.2), tune_seeds=1, label_noise=(0.0,), rhos={"sam": 0.7}, seeds=1, jobs=1
    )
    (table,) = compare(chosen, tmp_path / "out", console=Console(quiet=True))
    assert table.row("sam").rho == 0.7
    assert set(table.tried) == {"s2sam", "random"}


def test_curves_go_through_what_was_looked_at():
    seed = [SimpleNamespace(train_loss=3.0 - n, validation_accuracy=[None, 70.0, None, 80.0][n]) for n in range(4)]
    loss, accuracy = figures.curves({"none": [seed, seed]}).axes
    assert [list(line.get_xdata()) for line in accuracy.get_lines()] == 3 * [[2, 4]]
    assert [list(line.get_xdata()) for line in loss.get_lines()] == 3 * [[1, 2, 3, 4]]
    unseen = [SimpleNamespace(train_loss=1.0, validation_accuracy=None) for _ in seed]
    assert not figures.curves({"none": [unseen]}).axes[1].has_data()


def edges(text):
    """The left and the right edge of a text in a picture."""
    extent = text.get_window_extent()
    return extent.x0, extent.x1


def test_a_column_is_one_entry_that_is_shown_on_the_terminal_on_the_page_and_in_the_picture(tmp_path, monkeypatch):
    comparison = dataclasses.replace(SMALL, seeds=1, label_noise=(0.0,), sharpness=("none", "momentum"), rhos={})
    (table,) = compare(comparison, tmp_path, console=Console(quiet=True))
    column = columns.Column(
        "gradients in all",
        lambda row: sum(result.gradient_evaluations for result in row.results),
        "d",
        (columns.TERMINAL, columns.COST),
        short="in all",
        note="gradients of all seeds",
        in_pictures="{} gradients of all seeds",
    )
    monkeypatch.setattr(columns, "COLUMNS", (*columns.COLUMNS, column))
    taken = sum(
        read_json(tmp_path / folder / "result.json")["gradient_evaluations"] for folder in table.rows[1].folders
    )
    with io.StringIO() as told:
        print_comparison([table], Console(file=told, width=400))
        assert f"{taken:>6}" in told.getvalue()
        assert "; in all: gradients of all seeds" in told.getvalue()
    with io.StringIO() as told:
        print_comparison([table], Console(file=told, width=40))
        assert "…" not in told.getvalue()  # a narrow terminal breaks lines, and cuts no number off
    page = pages.write_comparison([table], comparison.resolved(), tmp_path).read_text()
    assert "<th>gradients in all</th>" in page
    assert f"<td>{taken}</td>" in page
    picture = figures.differences([table])
    assert picture.axes[0].get_yticklabels()[0].get_text().endswith(f"{taken} gradients of all seeds")
    picture.draw_without_rendering()
    (below,) = picture.findobj(
        lambda part: isinstance(part, Text) and part.get_text().startswith("difference to plain")
    )
    left, right = edges(below)
    assert picture.bbox.x0 <= left < right <= picture.bbox.x1  # it is longer than axes beside long names


@pytest.mark.slow
def test_the_page_describes_the_ways_that_were_compared_and_no_others(tmp_path):
    comparison = dataclasses.replace(SMALL, seeds=1, label_noise=(0.0,), sharpness=("none", "momentum"), rhos={})
    tables = compare(comparison, tmp_path, console=Console(quiet=True))
    page = pages.write_comparison(tables, comparison.resolved(), tmp_path).read_text()
    assert f"<li>momentum: {DIRECTIONS['momentum'].summary}</li>" in page
    assert page.count("<li>plain: ") == 1
    assert "S²-SAM" not in page.split("<h2>Accuracy</h2>")[0].split("<h1>")[-1]
    assert DIRECTIONS["random"].summary not in page


def scored(error, **values):
    scores = {"scores": {"error": error}, "train_scores": {"error": error / 2}, "validation_scores": {"error": error}}
    about = {"task": "mine.py:task", "data": "mine.py:task", "better": "lower", "macro": None, "steps_to": {}}
    missing = dict.fromkeys(("train_accuracy", "validation_accuracy", "generalization_gap"))
    return dataclasses.replace(run_result(0.0), test_accuracy=None, **{**scores, **about, **missing, **values})


def test_of_a_score_where_lower_is_better_less_helps():
    table = table_of(
        {
            "none": [scored(0.50), scored(0.52), scored(0.51)],
            "sam": [scored(0.60, rho=0.1), scored(0.625, rho=0.1), scored(0.61, rho=0.1)],
            "s2sam": [scored(0.40, rho=0.1), scored(0.425, rho=0.1), scored(0.41, rho=0.1)],
            "random": [scored(0.50, rho=0.1), scored(0.521, rho=0.1), scored(0.509, rho=0.1)],
        }
    )
    assert (table.metric.name, table.metric.better, table.metric.decimals) == ("error", "lower", 3)
    assert table.learned  # of a score nothing is known of chance
    assert [row.verdict for row in table.rows] == [None, "hurts", "helps", "within noise"]
    assert table.row("s2sam").difference.mean == pytest.approx(-0.098, abs=1e-3)
    saved = json.loads(json.dumps(table.to_json()))
    assert saved["metric"] == {"name": "error", "better": "lower", "decimals": 3}
    assert saved["rows"][2]["difference"]["verdict"] == saved["over_random"]["verdict"] == "helps"
    assert saved["rows"][2]["values"] == [0.40, 0.425, 0.41]
    assert not {"accuracies", "train_accuracy", "validation_accuracy"} & set(saved["rows"][2])
    assert Table.from_json(saved) == table
    told = " ".join(comparison_sentences(table))
    assert "S²-SAM (ρ = 0.1) helps: -0.098, 95 % interval" in told
    assert "SAM (ρ = 0.1) hurts: +0.102" in told
    assert "points" not in told
    assert "mine.py:task: plain 0.510" in [axis.get_title() for axis in figures.differences([table]).axes]
    assert "a random direction: -0.098" in told
    assert "so the direction matters" in told

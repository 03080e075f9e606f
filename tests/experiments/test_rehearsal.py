"""Rehearsals: the steps are a run's own, on made-up data of the real shapes, and what they say of a run holds."""

import dataclasses
import io
import json

import pytest
import torch

from flatsparse.cli import main
from flatsparse.experiments.metric import ACCURACY
from flatsparse.experiments.recipes import load, recipes
from flatsparse.experiments.recipes.recipe import Cell, Recipe
from flatsparse.experiments.report.rehearsal_text import print_rehearsal
from flatsparse.experiments.reproduce import steps as steps_of
from flatsparse.experiments.reproduce.made_up import SHAPES, ImageShapes, made_up, training_samples
from flatsparse.experiments.reproduce.rehearsal_job import fault, whole_run
from flatsparse.experiments.reproduce.rehearse import Rehearsal, rehearse
from flatsparse.experiments.reproduce.steps import STEPS, take_steps
from flatsparse.experiments.run.build import build
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.terminal import Console
from tests.cli.test_cli import fails

SMALL = RunConfig.of(method="rigl", sparsity=0.8, batch_size=10, epochs=4, device="cpu")
# Cells of the papers' scale, all with S²-SAM, that the fast suite takes the steps of.
SOME = {"table1": "RigL CIFAR-100 95%", "imagenet95": "RigL 95%", "wmt14": "MEST(EM) 90%"}


def rehearsed(recipe, tmp_path, **choice):
    choice = {"scale": "paper", "device": "cpu", "jobs": 1, "data_dir": tmp_path, **choice}
    return rehearse([recipe], Rehearsal(**choice), Console(quiet=True))


def text_of(record):
    console = Console(record=True, width=150, file=io.StringIO())
    print_rehearsal(record, console)
    return console.export_text()


def check_whole(record):
    """Every run took its steps, and each cell is of a run."""
    for run in record["runs"].values():
        assert run["runs"], run["why"]
        assert len(run["steps"]["losses"]) == STEPS
        assert run["flops"]["train"] > 0 < run["gpu_hours"]
        if run["sharpness"] == "s2sam":
            assert run["steps"]["radii"][0] == 0  # nothing is known of a gradient before
            assert run["steps"]["radii"][-1] == pytest.approx(run["rho"], rel=1e-3)
        if run["method"] in ("rigl", "mest", "set", "dsr", "snfs", "chex", "chase", "lth", "lrr"):
            assert run["steps"]["moved"] > 0
    assert {cell["run"] for table in record["tables"] for cell in table["cells"]} == set(record["runs"])


@pytest.mark.parametrize("name", SOME)
def test_cells_of_the_papers_scale_take_their_steps(tmp_path, name):
    recipe = load(name)
    cells = [c for c in recipe.cells("paper") if c.name == SOME[name] and c.run.sharpness == "s2sam"]
    if name == "wmt14":  # as it is in the slow suite
        smaller = {"vocabulary": 1000, "model": "transformer_small"}
        cells = [dataclasses.replace(cell, run=change(cell.run, **smaller)) for cell in cells]
    record = rehearsed(dataclasses.replace(recipe, cells=lambda scale: cells), tmp_path)
    assert len(record["runs"]) == 1
    check_whole(record)
    for run in record["runs"].values():
        assert any(reason.startswith("data: no ") for reason in run["missing"])
    text = text_of(record)
    assert "yes" in text
    assert "missing for 1 runs: data: no " in text


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes())
def test_every_cell_of_the_papers_scale_takes_its_steps(tmp_path, name):
    check_whole(rehearsed(load(name), tmp_path))


def test_the_command_writes_and_prints_it(tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--scale", "paper", "--rehearse", "--only", "MEST(EM) CIFAR-10 98%", "--device", "cpu", "--jobs", "1"]
    main(["reproduce", "table1", *words, "--data-dir", str(tmp_path), "--out", str(out), "--gpu-tflops", "100"])
    printed = capsys.readouterr().out
    record = json.loads((out / "rehearsal.json").read_text())
    assert record["gpu_tflops"] == 100
    assert "GPU of 100 TFLOP/s" in printed
    assert "1.86M" in printed
    assert "1.86M" in (out / "rehearsal.txt").read_text()
    assert [file.name for file in sorted(out.iterdir())] == ["rehearsal.json", "rehearsal.txt"]  # nothing was trained
    assert "tflops 0" in fails(capsys, "reproduce", "lt", "--rehearse", "--gpu-tflops", "0")
    assert "meets none" in fails(capsys, "reproduce", "lt", "--rehearse", "--only", "xyz")


def test_equal_runs_are_rehearsed_once(tmp_path):
    cells = [Cell(row, "c", SMALL) for row in ("a", "b")]
    record = rehearsed(Recipe("x", "X", "", lambda scale: cells, metric=ACCURACY), tmp_path)
    assert len(record["tables"][0]["cells"]) == 2
    assert len(record["runs"]) == 1


def test_what_is_measured_without_runs_has_nothing_to_rehearse(tmp_path):
    record = rehearsed(load("figure2"), tmp_path)
    assert record["runs"] == {}
    assert "nothing to rehearse" in text_of(record)


def test_a_run_that_fails_is_told_and_the_others_go_on(tmp_path, capsys):
    file = tmp_path / "own.py"
    file.write_text(
        "from flatsparse.experiments.recipes.recipe import Cell, Recipe\n"
        "from flatsparse.experiments.run.config import RunConfig\n"
        "run = RunConfig.of(method='rigl', sparsity=0.8, batch_size=10, epochs=4)\n"
        "wild = RunConfig.of(method='rigl', sparsity=0.8, batch_size=10, epochs=4, lr=1e30)\n"
        "RECIPE = Recipe('own', '', '', lambda scale: [Cell('a', 'c', run), Cell('b', 'c', wild)])\n"
    )
    out = tmp_path / "out"
    words = ["reproduce", str(file), "--rehearse", "--device", "cpu", "--jobs", "1", "--out", str(out)]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "1 of 2 runs do not run" in capsys.readouterr().err
    runs = json.loads((out / "rehearsal.json").read_text())["runs"].values()
    assert sorted(run["runs"] for run in runs) == [False, True]
    assert any("the loss became" in (run["why"] or "") for run in runs)


def test_a_run_on_data_of_unknown_shapes_is_told(tmp_path):
    cells = [Cell("a", "c", change(SMALL, data=str(tmp_path), model="resnet20"))]
    (run,) = rehearsed(Recipe("x", "X", "", lambda scale: cells), tmp_path)["runs"].values()
    assert run["runs"] is None
    assert "no shapes of" in run["why"]


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ({"radii": (0.0, 0.0, 0.0)}, "no weight was perturbed"),
        ({"moved": 0}, "no mask changed"),
        ({"losses": (1.0, float("inf"), 1.0)}, "the loss became inf"),
    ],
)
def test_steps_that_did_not_do_what_the_run_does_are_a_fault(broken, told):
    run = resolve(change(SMALL, sharpness="s2sam"))
    steps = take_steps(run, 2)
    assert fault(run, steps) is None
    assert told in fault(run, dataclasses.replace(steps, **broken))


def test_a_radius_that_comes_late_is_there_in_the_steps_of_a_rehearsal():
    run = resolve(change(SMALL, sharpness="sam", rho_schedule="late", late_share=0.25))
    steps = take_steps(run, 2)
    assert fault(run, steps) is None
    assert run.passes == 1.25


def test_the_steps_are_those_of_the_engine(monkeypatch):
    """Without the engine's step nothing is learned: the losses are those that a run on these data would have."""
    run = resolve(change(SMALL, sharpness="sam", rho=0.1))
    taken = take_steps(run, 2)
    short = steps_of._short(run, 2)
    parts = build(short, task=made_up(run, STEPS * 2))
    losses = []
    for batch in parts.task.splits.train.batches(2, seed=run.seed, augment=False):
        inputs, targets = batch.content

        def closure(inputs=inputs, targets=targets):
            parts.optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(parts.model(inputs), targets)
            loss.backward()
            return loss

        losses.append(float(parts.optimizer.step(closure).detach()))
        parts.schedule.step()
    assert taken.losses == pytest.approx(losses)
    assert taken.radii == pytest.approx([0.1] * STEPS, rel=1e-3)


@pytest.mark.parametrize("name", SHAPES)
def test_made_up_data_have_the_shapes_of_the_real(name):
    run = resolve(RunConfig.of(data=name, device="cpu"))
    task = made_up(run, 4)
    batch = next(task.splits.train.batches(4 * SHAPES[name].unit))
    assert batch.samples == 4
    if isinstance(SHAPES[name], ImageShapes):
        images, labels = batch.content
        height, width, channels = SHAPES[name].shape
        assert images.shape == (4, channels, height, width)
        assert sorted(labels.tolist()) == [0, 0, 1, 1]
        assert task.classes == SHAPES[name].classes
    else:
        assert batch.content.source.shape == batch.content.target.shape == (4, SHAPES[name].unit)
        assert len(task.vocabulary) == SHAPES[name].vocabulary


def test_training_samples_are_those_of_a_run():
    run = resolve(RunConfig.of(data="cifar10", device="cpu"))
    assert training_samples(run) == 45_000
    assert training_samples(change(run, validation_size=0)) == 50_000
    assert training_samples(change(run, train_size=300)) == 300


def test_memory_and_flops_are_those_of_the_net():
    run = resolve(change(SMALL, sharpness="s2sam", epochs=10))
    steps = take_steps(run, 2)
    weights = 4 * steps.parameters
    memory = steps.memory
    assert memory.gradients == memory.optimizer == memory.perturbed == weights
    assert memory.at(20) - memory.at(10) == pytest.approx(10 * memory.sample)
    again = take_steps(run, 6).memory
    assert again.sample == pytest.approx(memory.sample, rel=0.1)  # it is a sample's, whatever the batch
    assert take_steps(change(run, sharpness="none"), 2).memory.perturbed == 0
    assert take_steps(change(run, ema=0.9), 2).memory.weights == 2 * memory.weights
    estimate = whole_run(run, steps.cost)
    assert estimate.steps == 10 * 70  # 700 of 1,000 digits in batches of 10
    assert estimate.inference_dense == steps.cost.dense

import json
import re
import subprocess
import sys

import pytest

from flatsparse.cli import main

QUICK = ["--train-size", "64", "--validation-size", "50", "--batch-size", "32", "--epochs", "2"]


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    said = capsys.readouterr()
    assert end.value.code == 2
    assert said.err.startswith("flatsparse: error: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
    return said.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("train --sparsity 1", "[0, 1)"),
        ("train --sparsity -0.1", "[0, 1)"),
        ("train --sparsity nan", "[0, 1)"),
        ("train --rho -1", "--rho -1"),
        ("train --rho inf", "--rho inf"),
        ("train --lr 0", "--lr 0"),
        ("train --lr nan", "--lr nan"),
        ("train --epochs 0", "--epochs 0"),
        ("train --epochs half", "--epochs"),
        ("train --until nan", "--until nan"),
        ("train --device meta", "--device meta"),
        ("train --validation-size 100000", "cannot hold out 100000"),
        ("train --epochs 1 --train-size 100", "too short"),
        ("train --batch-size 0", "--batch-size 0"),
        ("train --label-noise 1.5", "--label-noise"),
        ("train --method riggle", "rigl"),
        ("train --method dense --sparsity 0.5", "dense"),
        ("train --model resnet2", "resnet20"),
        ("train --data digit", "digits"),
        ("train --distribution erks", "erk"),
        ("train --sharpness flat", "s2sam"),
        ("train --exclude nothing*", "matches no layer"),
        ("train --include 12.*", "matches no layer"),
        ("train --sparsity 0.99999", "every layer keeps one"),
        ("train --data cifar10 --data-dir absent", "absent"),
        ("train --train-size 5000", "--train-size"),
        ("train --validate-every 0", "--validate-every"),
        ("train --device moon", "--device moon"),
        ("train --sede 3", "--seed"),
        ("trane", "train"),
        ("compare --rhos flat 1", "flat"),
        ("compare --rhos none 0.5", "--rhos none"),
        ("compare --sharpness sam --rhos momentum 0.5", "--rhos momentum"),
        ("compare --rho 0.05 0.2", "--tune chooses among --rho-grid 0.05 0.2"),
        ("compare --rho 1e-3 0.2 --seeds 1", "--tune chooses among --rho-grid 1e-3 0.2"),
        ("compare own.py", "'own.py' is no script: give FILE.py:FUNCTION"),
        ("compare absent.py:train", "no file 'absent.py' for script 'absent.py:train'"),
        ("compare absent.py:train --epochs 3", "--epochs is of no use with a script"),
        ("compare absent.py:train --tune", "--tune is of no use with a script"),
        ("compare --better lower", "--better is for a script"),
        ("compare --threads 2", "--threads is for a script"),
        ("compare --sharpness none", "nothing to compare"),
        ("compare --sharpness", "nothing to compare"),
        ("compare --tune --seeds 1001", "--seeds 1001"),
        ("train --warmup 30", "--warmup 30"),
        ("train --model=", "unknown model ''"),
        ("train --pattern 2", "pattern '2' is not usable: give (2, 4) or '2:4'"),
        ("train --pattern block:16x1", "has 10 outputs, which pattern block:16x1 does not divide"),
        ("train --method gmp --pattern 2 4 --sparsity 0.5", "has 1 inputs, which pattern 2:4 does not divide"),
        ("compare --seeds 0", "--seeds 0"),
        ("compare --tune --validation-size 0", "--tune"),
        ("compare --jobs 0", "--jobs 0"),
        ("list method", "methods"),
        ("list layers --model resnet23", "resnet32"),
        ("list layers --layers mst", "mest"),
        ("list layers --image 3 0 32", "--image 0"),
        ("list layers --image -3 32 32", "--image -3"),
        ("list layers --model vgg19 --image 3 4 4", "--image 3 4 4 does not fit 'vgg19'"),
        ("reproduce evidence-main --seeds 1001", "--seeds 1001"),
        ("landscape a b/../a", "given twice"),
        ("list layers --exclude nothing*", "matches no layer"),
        ("list layers --sparsity 1", "[0, 1)"),
        ("train --layers mst", "mest"),
        ("train --method absent.py:Mine", "absent.py"),
    ],
)
def test_bad_input_is_one_line_and_status_two_and_leaves_nothing_behind(capsys, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert told in fails(capsys, *arguments.split())
    assert not list(tmp_path.iterdir())


EXITS, ODD = ("SystemExit(0)", "SystemExit('done')"), ("BaseException('odd')", "GeneratorExit()")


@pytest.mark.parametrize(
    ("when", "problem"),
    [(when, problem) for when in ("loaded", "made", "planned") for problem in (*EXITS, *ODD)]
    + [("training", problem) for problem in EXITS],
)
def test_code_of_ones_own_that_ends_the_process_is_an_error_in_one_line(capsys, tmp_path, when, problem):
    lines = {
        "loaded": f"raise {problem}",
        "made": f"class M:\n    def __post_init__(self): raise {problem}\n    def plan(self, s, n): pass",
        "planned": f"class M:\n    def plan(self, s, n): raise {problem}",
        "training": "from flatsparse.methods import SET\nclass M:\n    def plan(self, s, n):\n"
        f"        if n < 100: raise {problem}\n        return SET().plan(s, n)",
    }[when]
    decorated = lines.replace("class M", "@dataclass(frozen=True)\nclass M")
    (tmp_path / "own.py").write_text(f"from dataclasses import dataclass\n{decorated}\n")
    told = fails(capsys, "train", *QUICK, "--method", f"{tmp_path}/own.py:M", "--out", str(tmp_path / "run"))
    assert problem.partition("(")[0] in told


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import not_there_at_all", "does not run: ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("def fit(arm):\n    return {}", "has no function 'train' (it has: fit)"),
        ("def train(arm):\n    raise SystemExit(0)", "nothing can be compared, as plain training has not finished"),
        ("def train(arm):\n    raise GeneratorExit", "(plain, seed 0: GeneratorExit: (line 2 of own.py))"),
    ],
)
def test_a_script_that_cannot_be_compared_is_an_error_in_one_line(capsys, tmp_path, text, problem):
    (tmp_path / "own.py").write_text(f"{text}\n")
    with pytest.raises(SystemExit) as end:
        main(["compare", f"{tmp_path}/own.py:train", "--seeds", "1", "--jobs", "1", "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("flatsparse: error: ")]
    assert problem in told


SPEECHLESS = """
class Speechless(Exception):
    def __str__(self): raise ValueError("no text")
    __repr__ = __str__
"""


def test_an_error_of_ones_own_that_cannot_say_what_it_is_is_an_error_in_one_line(capsys, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(f"{SPEECHLESS}raise Speechless\n")
    for arguments in (["doctor"], ["reproduce"], ["train", "--method"]):
        name = f"{file}:M" if arguments[0] == "train" else str(file)
        assert "does not run: Speechless: (line 5)" in fails(capsys, *arguments, name)
    file.write_text(f"{SPEECHLESS}raise SystemExit(Speechless())\n")
    assert "ended itself with a Speechless" in fails(capsys, "doctor", str(file))
    file.write_text(f"{SPEECHLESS}def train(arm): raise Speechless\n")
    with pytest.raises(SystemExit) as end:
        main(["compare", f"{file}:train", "--seeds", "1", "--jobs", "1", "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert "(plain, seed 0: Speechless: (line 5 of own.py))" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("'mine'", "{}", "RECIPE.name is of the wrong kind"),
        ("'title'", "None", "RECIPE.title is of the wrong kind"),
        ("cells=cells", "cells=1", "cells or measure is no function"),
        ("cells=cells", "cells=cells, metric='error'", "metric is no Metric"),
        ("cells=cells", "cells=cells, seeds=3", "RECIPE.seeds is of the wrong kind"),
        ("'row'", "1", "the cell.row is of the wrong kind"),
        ("RunConfig.of(epochs=1)", "None", "run is no RunConfig"),
        ("epochs=1", "epochs='1'", "run.epochs is of the wrong kind"),
        ("epochs=1)", "epochs=1), 3", "published is no Published"),
        ("epochs=1)", "epochs=1), Published('3')", "published.value is of the wrong kind"),
        ("[Cell(", "[3, Cell(", "it is no Cell"),
        ("return [Cell('row', 'column', RunConfig.of(epochs=1))]", "return []", "it has none"),
    ],
)
def test_a_recipe_with_a_field_of_another_kind_is_an_error_in_one_line(capsys, tmp_path, old, new, told):
    text = """from flatsparse.experiments.recipes.recipe import Cell, Published, Recipe
from flatsparse.experiments.run.config import RunConfig
def cells(scale):
    return [Cell('row', 'column', RunConfig.of(epochs=1))]
RECIPE = Recipe('mine', 'title', 'ours', cells=cells)
"""
    assert old in text
    (tmp_path / "own.py").write_text(text.replace(old, new))
    assert told in fails(capsys, "reproduce", f"{tmp_path}/own.py", "--out", str(tmp_path / "out"))


def test_a_stop_while_code_of_ones_own_is_loaded_is_a_stop(tmp_path, capsys):
    (tmp_path / "own.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(SystemExit) as end:
        main(["train", "--method", f"{tmp_path}/own.py:M"])
    assert end.value.code == 130


def test_a_warning_is_one_line_without_code(tmp_path):
    command = [sys.executable, "-m", "flatsparse", "train", *QUICK, "--every", "1000", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.startswith("flatsparse: warning: every=1000 leaves no update")
    assert done.stderr.count("\n") == 1


def test_an_output_folder_with_another_run_is_left_alone(capsys, tmp_path):
    main(["train", *QUICK, "--out", str(tmp_path / "run")])
    before = (tmp_path / "run" / "result.json").read_bytes()
    capsys.readouterr()
    assert "--resume" in fails(capsys, "train", *QUICK, "--out", str(tmp_path / "run"))
    assert "--seed 0, not 1" in fails(
        capsys, "train", *QUICK, "--seed", "1", "--resume", "--out", str(tmp_path / "run")
    )
    assert (tmp_path / "run" / "result.json").read_bytes() == before


def test_an_output_place_that_cannot_be_made_is_named(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in fails(capsys, "train", *QUICK, "--out", str(tmp_path / "file" / "run"))


def test_train_tells_accuracy_sparsity_and_cost(capsys, tmp_path):
    main(["train", *QUICK, "--sharpness", "s2sam", "--out", str(tmp_path / "run")])
    said = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert f"{result['test_accuracy']:.2f} %" in said
    assert "images/s" in said


@pytest.mark.parametrize(("chosen", "told"), [("--validation-size 0", 0), ("--validate-every 2", 1)])
def test_an_epoch_tells_validation_accuracy_when_it_was_looked_at(capsys, tmp_path, chosen, told):
    main(["train", *QUICK, *chosen.split(), "--out", str(tmp_path / "run")])
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2
    assert sum("validation" in line for line in lines) == told


def test_list_names_everything_that_can_be_chosen(capsys):
    main(["list"])
    said = capsys.readouterr().out
    assert all(
        name in said
        for name in ("rigl", "gmp", "resnet32", "efficientnet_b0", "vit_tiny_64", "gpt2", "transformer_base")
    )
    assert all(name in said for name in ("digits", "cifar10", "erk", "s2sam"))


def test_list_layers_tells_shapes_sparsity_and_cost_without_training(capsys):
    main(["list", "layers", "--model", "resnet32", "--method", "mest", "--sparsity", "0.9", "--layers", "mest"])
    said = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in said.splitlines()}
    assert len(said.splitlines()) == 1 + 34 + 3
    assert lines["conv1.weight"][1:4] == ["32x3x3x3", "864", "dense"]
    assert lines["stage1.0.conv1.weight"][1:4] == ["32x32x3x3", "922", "90.00%"]
    assert "0.9000 of the chosen layers, 0.8940 of all" in said


def test_a_layer_that_collapses_is_told_once_while_training(capsys, tmp_path):
    arguments = ["--method", "static", "--sparsity", "0.99", "--distribution", "uniform", "--include", "3", "6"]
    main(["train", *QUICK, *arguments, "--out", str(tmp_path / "fine")])
    assert "warning" not in capsys.readouterr().out
    main(["train", *QUICK, *arguments[:3], "0.9999", *arguments[4:], "--out", str(tmp_path / "worse")])
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("layer 3.weight has collapsed") == said.count("layer 6.weight has collapsed") == 1
    report = (tmp_path / "worse" / "report.html").read_text()
    assert "Collapsed, with nearly all filters dead: 3.weight, 6.weight" in report
    assert "weights replaced" in report


def test_the_module_runs_as_a_command():
    done = subprocess.run([sys.executable, "-m", "flatsparse", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "compare" in done.stdout


def test_a_terminal_without_utf8_gets_no_traceback():
    plain = {"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "flatsparse", "train", "--help"]
    done = subprocess.run(command, capture_output=True, env=plain, check=False)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


def test_flags_that_turn_something_off_are_told_as_what_they_do(capsys):
    for command in ("train", "compare"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        told = " ".join(re.sub("[│|]", " ", capsys.readouterr().out).split())
        assert "--no-augmentation Take training images as they are, neither cropped nor flipped. " in told
        assert "--no-mask-perturbation Perturb pruned weights too" in told
        assert "default: True" not in told


def test_a_run_that_diverges_is_one_line_and_goes_on_elsewhere(tmp_path, capsys):
    wild = ["train", *QUICK, "--method", "dense", "--sparsity", "0", "--optimizer", "adamw"]
    with pytest.raises(SystemExit) as end:
        main([*wild, "--lr", "1e30", "--out", str(tmp_path / "run")])
    assert end.value.code == 2
    line = r"flatsparse: error: the loss became (nan|inf) in epoch 1: lower --lr 1e\+30, with another --out\n"
    assert re.fullmatch(line, capsys.readouterr().err.splitlines(keepends=True)[-1])
    assert "--lr 1e+30, not 0.01" in fails(capsys, *wild, "--lr", "0.01", "--resume", "--out", str(tmp_path / "run"))
    main([*wild, "--lr", "0.01", "--out", str(tmp_path / "other")])
    assert json.loads((tmp_path / "other" / "result.json").read_text())["epochs"] == 2


WILD = """from flatsparse.experiments.recipes.recipe import Cell, Recipe
from flatsparse.experiments.run.config import RunConfig
def cells(scale):
    quick = dict(train_size=50, validation_size=50, batch_size=32, epochs=1, optimizer="adamw", method="dense", sparsity=0.0)
    return [Cell(f"lr {lr:g}", "", RunConfig.of(lr=lr, **quick)) for lr in (1e30, 0.01)]
RECIPE = Recipe("wild", "T", "S", cells, seeds={"smoke": 1})
"""


def test_a_table_without_a_finished_run_is_shown_and_refused(tmp_path, capsys):
    (tmp_path / "wild.py").write_text(WILD)
    quick = ("reproduce", str(tmp_path / "wild.py"), "--scale", "smoke", "--jobs", "1", "--device", "cpu")
    with pytest.raises(SystemExit) as end:
        main([*quick, "--only", "*1e+30*", "--out", str(tmp_path / "none")])
    assert end.value.code == 2
    assert re.fullmatch(
        r"flatsparse: error: no run of wild was finished \(.* lower --lr 1e\+30.*\n", capsys.readouterr().err
    )
    assert (tmp_path / "none" / "wild-smoke.json").exists()
    main([*quick, "--out", str(tmp_path / "some")])  # one that fails beside one that does not is a row of the table

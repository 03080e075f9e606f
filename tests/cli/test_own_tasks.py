"""A task of one's own, and a network of one's own, through every command, as a user types them."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from flatsparse.cli import main
from flatsparse.common.json_files import read_json
from flatsparse.common.tensor_files import load_tensors

from ..experiments.own_tasks import DICTS, STREAM, written
from .test_cli import fails

EXAMPLE = Path(__file__).parents[2] / "examples" / "tabular_regression.py"
TASK = f"{EXAMPLE}:task"
QUICK = ["--task", TASK, "--epochs", "2"]
PAGES = re.compile(r"<(svg|style|script)\b.*?</\1>|<[^>]+>", re.DOTALL)


def page(file):
    """The text of a page, without its settings, which have a name for everything."""
    return PAGES.sub(" ", file.read_text()).split("What was run")[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("journey") / "run"
    main(["train", *QUICK, "--sharpness", "s2sam", "--probe", "every=6", "--out", str(out)])
    return out


def test_the_example_is_at_most_forty_lines():
    assert len(EXAMPLE.read_text().splitlines()) <= 40


def test_train_says_scores_by_their_names(run, capsys, tmp_path):
    main(["train", *QUICK, "--out", str(tmp_path / "run")])
    said = " ".join(capsys.readouterr().out.split())
    result = read_json(tmp_path / "run" / "result.json")
    scores = ", ".join(f"{name} {value:.6g}" for name, value in result["scores"].items())
    assert f"test {scores}, training mean error {result['train_scores']['mean error']:.6g}, sparsity" in said
    assert "validation mean error" in said
    assert "318 training, 35 validation and 89 test samples" in said
    assert "images" not in said
    assert "accuracy" not in said


def test_the_page_of_a_run_speaks_of_its_scores_and_samples(run):
    text, whole = page(run / "report.html"), (run / "report.html").read_text()
    assert "Sequential on" in text
    assert re.search(r"Test mean error \S+, largest error \S+, read once at the end; training mean error", text)
    assert "lower mean error is better" in text
    assert "mean loss on training samples" in PAGES.sub(" ", whole)
    assert "samples a second" in text
    for word in ("accuracy", "images", "cross-entropy"):
        assert word not in PAGES.sub(" ", whole)
    assert f"flatsparse train --task {TASK}" in whole
    assert len((run / "probes.jsonl").read_text().splitlines()) == 1


def test_a_run_that_is_killed_is_resumed_to_the_same_end(tmp_path):
    command = [sys.executable, "-c", "from flatsparse.cli import main; main()", "train", *QUICK, "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, str(tmp_path / "killed"), "--epochs", "16"], env=environment, stdout=-3, stderr=-3
    )
    while process.poll() is None and not (tmp_path / "killed" / "checkpoint.pt").is_file():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "result.json").exists()
    main(["train", *QUICK, "--out", str(tmp_path / "killed"), "--resume", "--epochs", "16"])
    main(["train", *QUICK, "--out", str(tmp_path / "whole"), "--epochs", "16"])
    ours, theirs = (load_tensors(tmp_path / name / "model.safetensors")[0] for name in ("killed", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_comparison_that_goes_on_with_a_changed_file_says_so(tmp_path, capsys):
    spec, out = written(tmp_path), str(tmp_path / "out")
    settings = ["--epochs", "1", "--batch-size", "16", "--seeds", "1", "--sharpness", "s2sam", "--jobs", "1"]
    command = ["compare", "--task", spec, *settings, "--out", out]
    main(command)
    main([*command, "--resume"])
    assert "has changed" not in capsys.readouterr().out
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text() + "# mended\n")
    main([*command, "--resume"])
    assert "warning: a file of yours has changed since this" in " ".join(capsys.readouterr().out.split())


def test_compare_judges_a_score_in_its_own_direction(tmp_path, capsys):
    settings = ["--epochs", "2", "--seeds", "2", "--sharpness", "s2sam", "--jobs", "1"]
    tuned = ["--tune", "--rho-grid", "0.01", "1000", "--tune-seeds", "1"]
    main(["compare", "--task", TASK, *settings, *tuned, "--out", str(tmp_path)])
    said = " ".join(capsys.readouterr().out.split())
    assert "Test mean error, mean ± deviation over 2 seeds" in said
    assert "lower is better" in said
    for word in ("points", "accuracy", "%.", "images", "clean labels"):
        assert word not in said
    (table,) = read_json(tmp_path / "compare.json")["tables"]
    assert {name: table["metric"][name] for name in ("name", "better")} == {"name": "mean error", "better": "lower"}
    tried = table["tried"]["s2sam"]
    assert tried["1000"] is None or tried["1000"] > tried["0.01"]  # so far away that it is worse, or diverges
    row = next(row for row in table["rows"] if row["sharpness"] == "s2sam")
    assert row["rho"] == 0.01
    errors = [read_json(tmp_path / folder / "result.json")["scores"]["mean error"] for folder in row["folders"]]
    assert row["values"] == errors
    text = page(tmp_path / "report.html")
    assert "Is it better on unseen samples" in text
    assert "the lowest was taken" in text
    for word in ("accuracy", "Accuracy", "images", "points", "In percent"):
        assert word not in text
    assert (tmp_path / "compare.png").is_file()


def test_landscape_export_and_list_take_a_task(run, tmp_path, capsys):
    small = ["--points", "5", "--pairs", "1", "--images", "50", "--hessian-images", "20", "--jobs", "1"]
    main(["landscape", str(run), *small, "--out", str(tmp_path / "landscape")])
    text = page(tmp_path / "landscape" / "report.html") + (tmp_path / "landscape" / "report.html").read_text()
    assert "Mean loss over the first 50 training samples" in PAGES.sub(" ", text)
    for word in ("cross-entropy", "training images"):
        assert word not in PAGES.sub(" ", text)
    capsys.readouterr()
    main(["export", str(run), "--format", "dense", "masks", "csr", "small", "--out", str(tmp_path / "export")])
    record, said = read_json(tmp_path / "export" / "export.json"), " ".join(capsys.readouterr().out.split())
    scores = read_json(run / "result.json")["scores"]
    for form in (record["run"], *record["formats"].values()):
        assert form["scores"] == pytest.approx(scores, rel=1e-4)
        assert form["images"] == 89
    assert f"the run itself has mean error {record['run']['scores']['mean error']:.6g}, largest error" in said
    assert "on 89 test samples" in said
    main(["list", "layers", "--task", TASK])
    said = capsys.readouterr().out
    saved = read_json(run / "result.json")["flops"]
    assert f"({saved['inference_dense']:.4g})" in said
    assert "2.weight" in said


def test_a_clip_below_the_loss_is_refused_before_anything_is_measured(run, tmp_path, capsys):
    told = fails(capsys, "landscape", str(run), "--clip", "0.001", "--out", str(tmp_path / "out"))
    assert "at its weights, and all above --clip 0.001 is cut: give more, such as --clip" in told
    assert not (tmp_path / "out").exists()


def test_export_of_a_network_that_takes_more_than_a_tensor(tmp_path, capsys):
    out = str(tmp_path / "run")
    main(["train", "--task", written(tmp_path, DICTS), "--epochs", "2", "--batch-size", "8", "--out", out])
    capsys.readouterr()
    assert "format 'onnx' is for a model of one tensor" in fails(capsys, "export", out, "--format", "onnx")
    assert "format '2:4' is for a model of one tensor" in fails(capsys, "export", out, "--format", "2:4")
    main(["export", out, "--format", "dense", "csr", "small"])  # its loss calls the model by the names of its arguments
    assert read_json(tmp_path / "run" / "export" / "export.json")["formats"].keys() == {"dense", "csr", "small"}


def test_rho_cannot_be_chosen_without_validation_samples(tmp_path, capsys):
    told = fails(capsys, "compare", "--task", written(tmp_path, STREAM), "--tune", "--out", str(tmp_path / "out"))
    assert "--tune chooses ρ on validation samples" in told
    assert not (tmp_path / "out").exists()


# -- bad input, as it is told on the command line ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("train --task absent.py:task", "no file 'absent.py'"),
        (f"train --task {TASK}s", "has no function 'tasks' (nearest: task"),
        (f"train --task {TASK} --data cifar10", "--data cifar10 has no use beside --task"),
        (f"train --task {TASK} --model resnet20", "--model resnet20 has no use beside --task"),
        (f"train --task {TASK} --image-size 64", "--image-size has no use beside --task"),
        (f"train --task {TASK} --no-augmentation", "--no-augmentation has no use beside --task"),
        ("train --resize 64", "--resize 64 is of images read while training: give --image-size too"),
        ("train --data numbers --image-size 64", "--image-size is for images, and 'numbers' is"),
        (f"train --task {TASK} --label-noise 0.2", "--label-noise is for images with a class each"),
        (f"compare --task {TASK} --label-noise 0.2", "--label-noise is for images with a class each"),
        (f"train --task {TASK} --label-smoothing 0.1", "--label-smoothing is for images with a class each"),
        (f"list layers --task {TASK} --model resnet20", "--model resnet20 has no use beside --task"),
        (f"list layers --task {TASK} --image 3 8 8", "--image has no use beside --task"),
        ("list layers --task absent.py:task", "no file 'absent.py'"),
        ("list layers --model nothing", "unknown model 'nothing'"),
        ("list layers --model timm:nothing", "--model timm:nothing"),
        ("list layers --model transformer_tiny", "--model transformer_tiny reads text"),
        ("train --model torchvision:resnet18", "needs torchvision, which cannot be imported"),
        ("train --workers -1", "--workers"),
        ("train --memory much", "--memory 'much' is no amount of memory"),
    ],
)
def test_bad_input_about_tasks_is_one_line(arguments, told, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # as where it is not installed
    monkeypatch.chdir(tmp_path)
    assert told in fails(capsys, *arguments.split())


# -- networks of one's own for built-in data --------------------------------------------------------------------------

NETWORKS = """
from torch import nn
def net(classes):
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, classes))
def scores_too_many(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes + 1))
def number(classes):
    return classes
def broken(classes):
    return nn.Linear(classes)
class Picky(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(64, classes)
    def forward(self, images):
        assert images.shape[-1] == 224
def picky(classes):
    return Picky(classes)
"""


@pytest.fixture
def networks(tmp_path):
    (tmp_path / "nets.py").write_text(NETWORKS)
    return tmp_path / "nets.py"


SMALL = ["--train-size", "64", "--validation-size", "50", "--batch-size", "32", "--epochs", "2"]


def test_a_network_of_ones_own_is_trained_and_exported_and_listed(networks, tmp_path, capsys):
    main(["train", "--model", f"{networks}:net", *SMALL, "--out", str(tmp_path / "run")])
    assert read_json(tmp_path / "run" / "result.json")["test_accuracy"] >= 0
    main(["export", str(tmp_path / "run"), "--format", "dense"])
    main(["list", "layers", "--model", f"{networks}:net", "--image", "1", "8", "8"])
    assert "3.weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("scores_too_many", "gives (2, 11) for 2 images, wanted (2, 10): return a score for each class"),
        ("number", "number is a int: return a torch.nn.Module"),
        ("broken", "nets.py' does not run: TypeError"),
        ("picky", "cannot take images of 8x8x1 (AssertionError): give another --model"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_a_network_of_ones_own_that_does_not_fit_is_told_in_a_line(networks, name, told, tmp_path, capsys):
    assert told in fails(capsys, "train", "--model", f"{networks}:{name}", *SMALL, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_file_imports_what_lies_beside_it(networks, tmp_path, capsys):
    (tmp_path / "mine.py").write_text("from nets import net as own")
    main(["list", "layers", "--model", f"{tmp_path / 'mine.py'}:own", "--image", "1", "8", "8"])
    assert "3.weight" in capsys.readouterr().out
    assert str(tmp_path) not in sys.path


def test_a_network_of_unknown_size_is_listed_with_the_size_of_its_images(networks, capsys):
    told = fails(capsys, "list", "layers", "--model", f"{networks}:net")
    assert "give it, e.g. --image 3 32 32" in told
    told = fails(capsys, "list", "layers", "--model", f"{networks}:net", "--image", "3", "8", "8")
    assert "--image 3 8 8 does not fit" in told


def made(classes, channels):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
    )


TIMM = SimpleNamespace(
    is_model=lambda name: name == "tiny",
    list_models=lambda: ["tiny"],
    create_model=lambda name, pretrained, num_classes, in_chans: made(num_classes, in_chans),
)
TORCHVISION = SimpleNamespace(
    models=SimpleNamespace(
        list_models=lambda: ["tiny"], get_model=lambda name, weights, num_classes: made(num_classes, 3)
    )
)


def test_names_of_timm(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "timm", TIMM)
    main(["train", "--model", "timm:tiny", *SMALL, "--sparsity", "0.5", "--out", str(tmp_path / "run")])
    assert read_json(tmp_path / "run" / "result.json")["model"] == "timm:tiny"
    main(["list", "layers", "--model", "timm:tiny", "--sparsity", "0.5"])
    assert "4.weight" in capsys.readouterr().out
    assert "unknown model of timm 'tine' (nearest: tiny)" in fails(capsys, "train", "--model", "timm:tine")
    monkeypatch.setitem(sys.modules, "timm", None)
    told = fails(capsys, "export", str(tmp_path / "run"))
    assert "--model timm:tiny needs timm, which cannot be imported" in told


def test_names_of_torchvision(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchvision", TORCHVISION)
    main(["list", "layers", "--model", "torchvision:tiny", "--sparsity", "0.5"])
    assert "4.weight" in capsys.readouterr().out
    told = fails(capsys, "train", "--model", "torchvision:tiny", *SMALL)
    assert "takes images of 3 channels, got 1: give another --model" in told
    assert "unknown model of torchvision 'tine'" in fails(capsys, "train", "--model", "torchvision:tine")

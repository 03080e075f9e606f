"""``flatsparse evaluate`` on the command line: what it prints and writes, and how it refuses."""

import numpy as np
import pytest

from flatsparse.cli import main
from flatsparse.common.json_files import read_json
from tests.cli.test_cli import QUICK, fails


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    main(["train", *QUICK, "--sparsity", "0.5", "--out", str(out)])
    return out


def test_a_run_s_folder_gets_its_evaluation_and_keeps_its_own_page(run, capsys):
    own = (run / "report.html").read_bytes()
    main(["evaluate", str(run)])
    printed = " ".join(capsys.readouterr().out.split())
    result = read_json(run / "result.json")
    assert f"{result['test_accuracy']:.2f} {result['test_accuracy']:.2f}" in printed
    assert read_json(run / "evaluation.json")["runs"][0]["scores"] == {"accuracy": result["test_accuracy"]}
    page = (run / "evaluation.html").read_text()
    assert f"{result['macro']['recall']:.2f}" in page
    assert f"flatsparse evaluate {run} --out {run}" in page
    assert (run / "report.html").read_bytes() == own


def test_weights_are_changed_after_training(run, tmp_path, capsys):
    main(["evaluate", str(run), "--after", "int3", "noise0.2", "--jobs", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    (found,) = read_json(tmp_path / "evaluation.json")["runs"]
    assert [line.split() for line in printed.splitlines() if line.startswith("int3")] == [
        ["int3", f"{found['after']['int3']['scores']['accuracy']:.2f}"],
        [
            "int3",
            f"{found['after']['as trained']['scores']['accuracy'] - found['after']['int3']['scores']['accuracy']:.2f}",
        ],
    ]
    assert (tmp_path / "after.png").read_bytes().startswith(b"\x89PNG")
    assert "noise0.2" in (tmp_path / "evaluation.html").read_text()


def test_corruptions_are_printed_beside_the_clean_accuracy(run, tmp_path, capsys):
    chosen = ["--corruptions", "--only", "fog", "snow", "--images", "50", "--jobs", "1"]
    main(["evaluate", str(run), *chosen, "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    (found,) = read_json(tmp_path / "out" / "evaluation.json")["runs"]
    lines = {line.split()[0]: line.split()[1:] for line in said.out.splitlines() if line.strip()}
    assert lines["clean"] == [f"{found['clean']:.2f}"]
    assert lines["fog"][:5] == [f"{accuracy:.2f}" for accuracy in found["by"]["fog"]]
    assert "snow" in (tmp_path / "out" / "evaluation.html").read_text()
    main(["evaluate", str(run), *chosen, "--out", str(tmp_path / "out")])
    again = capsys.readouterr().out
    assert "11 of 11 parts were measured before" in again
    assert lines["fog"] == next(line.split()[1:] for line in again.splitlines() if line.startswith("fog"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("evaluate", "got no run"),
        ("evaluate absent", "is no run's folder"),
        ("evaluate RUN --corruptions --corrupted x", "give one of the two"),
        ("evaluate RUN --corrupted absent", "'absent' is not a folder"),
        ("evaluate RUN --corrupted empty", "holds no corruption that is known"),
        ("evaluate RUN --corrupted other", "labels from 0 to 12, but there are 10 classes"),
        ("evaluate RUN --corruptions --only fogg", "nearest: fog"),
        ("evaluate RUN --corruptions --reference absent", "is no run's folder"),
        ("evaluate RUN --corruptions --reference alexnet", "ImageNet-C"),
        ("evaluate RUN --images 0", "--images 0"),
        ("evaluate RUN --device nowhere", "--device nowhere"),
        ("evaluate unfinished", "unfinished run"),
    ],
)
def test_bad_input_is_one_line_and_status_two(run, tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    np.save(tmp_path / "other" / "fog.npy", np.zeros((65, 8, 8, 1), np.uint8))
    np.save(tmp_path / "other" / "labels.npy", np.tile(np.arange(13), 5))
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.json").write_bytes((run / "config.json").read_bytes())
    before = sorted(tmp_path.rglob("*"))
    assert told in fails(capsys, *arguments.replace("RUN", str(run)).split())
    assert sorted(tmp_path.rglob("*")) == before


def test_a_users_task_is_evaluated_and_has_no_corruptions(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "import torch, flatsparse as fs\n"
        "X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))\n"
        "DATA = torch.utils.data.TensorDataset(X, X.sum(1, keepdim=True))\n"
        "def loss(model, batch): return ((model(batch[0]) - batch[1]) ** 2).mean()\n"
        "def score(model, batches): return {'error': sum(float(loss(model, b)) for b in batches)}\n"
        "def net(): return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))\n"
        "def task(): return fs.Task(model=net, train=DATA, test=DATA, loss=loss, score=score, better='lower')\n"
    )
    main(["train", "--task", "own.py:task", "--epochs", "1", "--batch-size", "16", "--sparsity", "0.5", "--out", "run"])
    main(["evaluate", "run"])
    capsys.readouterr()
    assert read_json(tmp_path / "run" / "evaluation.json")["runs"][0]["scores"].keys() == {"error"}
    assert "'run' is not a run on images" in fails(capsys, "evaluate", "run", "--corruptions")

"""The command line ends with status 2 and one line on a file that would execute code, and nothing is executed."""

from __future__ import annotations

import contextlib

import pytest

pytest.importorskip("tyro")

from flatsparse.cli import main
from flatsparse.common.checkpoints import save_state
from flatsparse.common.json_files import read_json, write_json
from flatsparse.experiments.run import folder as files
from tests.security import evil
from tests.test_kept_files import RUN, kept

FILES = ("config.json", "result.json", "model.safetensors", "masks.safetensors")


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "ran"


def refused(capsys, marker, *arguments):
    """Run a command that ends with status 2 and one line, and executes nothing. Returns the line."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    assert line.startswith("flatsparse: error: ")
    assert not marker.exists()
    return line


@pytest.mark.parametrize("content", [evil.pickled, evil.zipped, evil.legacy, "with a checksum"])
def test_a_checkpoint(content, tmp_path, marker, capsys):
    folder = kept("unfinished-run", tmp_path)
    if content == "with a checksum":
        save_state(folder / "checkpoint.pt", {"x": evil.Evil(marker)})
    else:
        (folder / "checkpoint.pt").write_bytes(content(marker))
    assert "checkpoint.pt" in refused(capsys, marker, *RUN.split(), "--resume", "--out", folder)


@pytest.mark.parametrize("command", ["evaluate", "export", "landscape"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_run(command, name, tmp_path, marker, capsys):
    folder = kept("finished-run", tmp_path)
    (folder / name).write_bytes(evil.zipped(marker))
    assert name in refused(capsys, marker, command, folder, "--out", tmp_path / "out")


@pytest.mark.parametrize(("name", "content"), [("train.npz", evil.arrays), ("test.npz", evil.arrays)])
def test_a_folder_of_data(name, content, tmp_path, marker, capsys):
    import numpy as np

    (tmp_path / "set").mkdir()
    for part in ("train.npz", "test.npz"):
        np.savez(tmp_path / "set" / part, images=np.zeros((40, 8, 8, 3), np.uint8), labels=np.arange(40) % 2)
    (tmp_path / "set" / name).write_bytes(content(marker))
    assert name in refused(capsys, marker, "train", "--data", tmp_path / "set", "--out", tmp_path / "run")


def test_batches_of_cifar(tmp_path, marker, capsys):
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(evil.batch(marker))
    line = refused(capsys, marker, "train", "--data", "cifar10", "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert "data_batch_1" in line


def test_published_corruptions(tmp_path, marker, capsys):
    (tmp_path / "set").mkdir()
    for name in ("gaussian_noise.npy", "labels.npy"):
        (tmp_path / "set" / name).write_bytes(evil.array(marker))
    run = kept("finished-run", tmp_path)
    refused(capsys, marker, "evaluate", run, "--corrupted", tmp_path / "set", "--out", tmp_path / "out")


# -- folders that name code -------------------------------------------------------------------------------------------


def names_code(folder, marker, setting):
    """Let a run's configuration name a file that makes the marker, with all checksums right."""
    file = folder.parent / "mine.py"
    file.write_text(f"import os\nos.mkdir({str(marker)!r})\ndef name(classes=10): pass\n")
    config = read_json(folder / "config.json")
    config["settings"][setting] = f"{file}:name"
    write_json(folder / "config.json", config)
    if (folder / "result.json").is_file():
        result = read_json(folder / "result.json")
        if "files" in result:
            result["files"]["config.json"] = files._hash_of(folder / "config.json")
            write_json(folder / "result.json", result)


@pytest.mark.parametrize("setting", ["task", "model", "method"])
def test_a_resumed_run_executes_nothing_that_its_folder_names(setting, tmp_path, marker, capsys):
    folder = kept("unfinished-run", tmp_path)
    names_code(folder, marker, setting)
    assert f"--{setting}" in refused(capsys, marker, *RUN.split(), "--resume", "--out", folder)


@pytest.mark.parametrize("setting", ["task", "model", "method"])
def test_a_report_executes_nothing_that_its_runs_name(setting, tmp_path, marker, capsys):
    store = kept("store", tmp_path)
    for run in (store / "runs").iterdir():
        names_code(run, marker, setting)
    with contextlib.suppress(SystemExit):
        main(["report", "--store", str(store), "--out", str(tmp_path / "report.html")])
    assert not marker.exists()


@pytest.mark.parametrize("setting", ["task", "model"])
def test_that_others_do_is_what_the_security_page_says(setting, tmp_path, marker):
    folder = kept("finished-run", tmp_path)
    names_code(folder, marker, setting)
    with pytest.raises(SystemExit):
        main(["export", str(folder), "--format", "masks", "--out", str(tmp_path / "out")])
    assert marker.is_dir()

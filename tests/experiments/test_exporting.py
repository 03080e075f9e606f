"""``flatsparse export``: written, read back, compared; nothing else touched."""

import json
import shutil
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import flatsparse as fs
from flatsparse.cli import main
from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json, write_json
from flatsparse.common.tensor_files import load_tensors, save_tensors
from flatsparse.experiments import export, export_forms
from flatsparse.experiments.run.load import load_run
from tests.cli.test_cli import QUICK, fails

FORMATS = ("dense", "masks", "small", "csr", "onnx")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    main(["train", "--data", "digits", "--method", "static", "--sparsity", "0.9", *QUICK, "--out", str(run)])
    return run


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SECONDS", 0.0)
    return shutil.copytree(trained, tmp_path / "run")


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_every_format_that_needs_no_gpu(run, capsys):
    before = contents(run)
    main(["export", str(run), "--format", *FORMATS])
    said = capsys.readouterr().out.splitlines()
    record = read_json(run / "export" / "export.json")
    finished = load_run(run)
    assert list(record["formats"]) == list(FORMATS)
    assert len(said) == len(FORMATS) + 1
    assert {name: f["difference"] for name, f in record["formats"].items() if name in ("dense", "masks")} == {
        "dense": 0.0,
        "masks": 0.0,
    }
    assert all(found["difference"] <= found["tolerance"] <= 1e-4 for found in record["formats"].values())
    assert all(found["accuracy"] == record["run"]["accuracy"] for found in record["formats"].values())
    assert record["run"]["accuracy"] == pytest.approx(finished.result.test_accuracy)
    assert {found["file"] for found in record["formats"].values()} | {"export.json"} == {
        file.name for file in (run / "export").iterdir()
    }
    for name in ("small", "csr", "onnx"):
        found = record["formats"][name]["inference"]
        assert found["low"] <= found["ratio"] <= found["high"]
        assert found["rounds"] == 3
    assert "training" in record["formats"]["small"]
    small = record["formats"]["small"]
    for removed in (0, 1):
        line = export.line("small", {**small, "parameters_removed": removed})
        assert ("no channel could go" in line) == (removed == 0)
    assert {name: text for name, text in contents(run).items() if not name.startswith("export/")} == before
    plain = fs.models.digitnet()
    plain.load_state_dict(load_file(run / "export" / "dense.safetensors"))
    masks = fs.masks_from(run / "export" / "masks.safetensors")
    assert all(torch.equal(masks[n], finished.masks[n]) for n in masks)
    assert all(not plain.get_parameter(n)[~m].any() for n, m in masks.items())


def test_it_can_be_repeated_and_added_to(run):
    main(["export", str(run), "--images", "50"])
    first = contents(run / "export")
    main(["export", str(run), "--images", "50"])
    assert set(contents(run / "export")) == set(first)
    main(["export", str(run), "--images", "50", "--format", "csr"])
    assert list(read_json(run / "export" / "export.json")["formats"]) == ["dense", "masks", "csr"]


@pytest.mark.parametrize("name", ["dense.safetensors", "export.json"])
def test_what_others_wrote_is_not_touched(run, name, capsys):
    out = run / "export"
    out.mkdir()
    (out / name).write_text("{}")
    fails(capsys, "export", str(run))
    assert contents(out) == {name: b"{}"}


@pytest.mark.parametrize("done", ["before", "after"])
def test_an_export_that_was_killed_as_it_moved_a_file_can_be_repeated(run, done, monkeypatch, capsys):
    def killed(source, target):
        if done == "after":
            replace(source, target)
        if str(target).endswith("masks.safetensors"):
            monkeypatch.undo()
            raise KeyboardInterrupt

    replace = export.os.replace
    main(["export", str(run), "--images", "50"])
    form = export.FORMS["masks"]
    other = export_forms.Form(form.file, lambda r, file, x: fs.save_masks(file, r.masks, step=7), form.load, 0.0)
    monkeypatch.setitem(export.FORMS, "masks", other)
    monkeypatch.setattr(export.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        export.export(load_run(run), ("masks",), run / "export", images=50, report=lambda *_: None)
    (run / "export" / ".export-left").mkdir()  # what a real kill leaves
    main(["export", str(run), "--images", "50"])
    assert {f.name for f in (run / "export").iterdir()} == {"export.json", "dense.safetensors", "masks.safetensors"}


def test_an_export_that_is_killed_again_while_it_is_repeated_can_be_repeated(run, monkeypatch):
    """The second kill comes before the turn of the file that the first one put in its place."""
    replace = export.os.replace
    for last in ("masks.safetensors", "dense.safetensors"):

        def killed(source, target, last=last):
            replace(source, target)
            if Path(target) == run / "export" / last:
                raise KeyboardInterrupt

        monkeypatch.setattr(export.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            export.export(load_run(run), ("dense", "masks"), run / "export", images=50, report=lambda *_: None)
        monkeypatch.setattr(export.os, "replace", replace)
    main(["export", str(run), "--format", "dense", "--images", "50"])
    assert read_json(run / "export" / "export.json")["coming"]
    main(["export", str(run), "--images", "50"])
    record = read_json(run / "export" / "export.json")
    assert set(record) == {"run", "formats"}
    assert set(record["formats"]) == {"dense", "masks"}


def test_onnx_puts_nothing_into_the_system_s_temporary_folder(run, monkeypatch):
    """A kill would leave it there."""
    before = tempfile.mkdtemp

    def noted(suffix=None, prefix=None, dir=None):
        assert dir is not None, "a folder in the system's"
        return before(suffix, prefix, dir)

    monkeypatch.setattr(tempfile, "mkdtemp", noted)
    main(["export", str(run), "--format", "onnx", "--images", "20"])


def test_a_folder_that_takes_no_file_is_said_in_a_line(run, capsys):
    assert "cannot write to '/proc'" in fails(capsys, "export", str(run), "--out", "/proc")


def test_an_export_that_was_changed_since_is_not_touched(run, capsys):
    main(["export", str(run), "--images", "50"])
    (run / "export" / "dense.safetensors").write_bytes(b"mine")
    capsys.readouterr()
    assert "not what an export wrote" in fails(capsys, "export", str(run))
    assert (run / "export" / "dense.safetensors").read_bytes() == b"mine"


def test_the_folder_of_another_run_is_not_touched(run, capsys):
    main(["export", str(run), "--images", "50", "--out", str(run / "there")])
    before = contents(run / "there")
    model = load_file(run / "model.safetensors")
    about = load_tensors(run / "model.safetensors")[1]
    save_tensors(run / "model.safetensors", {n: t * 2 for n, t in model.items()}, about)
    capsys.readouterr()
    assert "another run" in fails(capsys, "export", str(run), "--out", str(run / "there"))
    assert contents(run / "there") == before


def test_a_run_that_was_trained_again_to_the_same_bits_is_the_run(run, trained, tmp_path):
    """Whatever its files look like: older ones have their metadata in any order."""
    main(["export", str(run), "--images", "50", "--out", str(tmp_path / "there")])
    again = tmp_path / "again"
    main(["train", "--data", "digits", "--method", "static", "--sparsity", "0.9", *QUICK, "--out", str(again)])
    for name in ("model.safetensors", "masks.safetensors"):
        content = (again / name).read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        header["__metadata__"] = dict(reversed(header["__metadata__"].items()))
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        (again / name).write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
        assert (again / name).read_bytes() != (run / name).read_bytes()
    assert load_run(again).digest == load_run(run).digest
    main(["export", str(again), "--images", "50", "--out", str(tmp_path / "there")])


@pytest.mark.parametrize(
    "spoil", [{"lr": "x"}, {"model": ["digitnet"]}, {"include": 3}, {"data": None}, {"optimizer": "?"}]
)
def test_settings_that_no_run_can_have_are_a_line(run, spoil, capsys):
    config = read_json(run / "config.json")
    write_json(run / "config.json", {**config, "settings": {**config["settings"], **spoil}})
    fails(capsys, "export", str(run))


@pytest.mark.parametrize("name", ["dense", "csr", "small"])
def test_a_file_that_says_something_else_is_not_kept(run, name, monkeypatch):
    """The check can fail: one weight too many is enough."""
    form = export.FORMS[name]

    def spoil(finished, file, sample):
        form.write(finished, file, sample)
        tensors, about = load_tensors(file)
        key = next(k for k, t in tensors.items() if t.is_floating_point() and k.endswith(("weight", "values")))
        tensors[key].view(-1)[0] += 3
        save_tensors(file, tensors, about)

    monkeypatch.setitem(export.FORMS, name, export_forms.Form(form.file, spoil, form.load, form.tolerance))
    with pytest.raises(InputError, match="does not say what the run says"):
        export.export(load_run(run), (name,), run / "export", images=50, report=lambda *_: None)
    assert contents(run / "export") == {}
    assert list((run / "export").iterdir()) == []


def test_masks_that_changed_are_not_kept(run, monkeypatch):
    def spoil(finished, file, sample):
        fs.save_masks(file, {n: torch.ones_like(m) for n, m in finished.masks.items()})

    form = export.FORMS["masks"]
    monkeypatch.setitem(export.FORMS, "masks", export_forms.Form(form.file, spoil, form.load, 0.0))
    with pytest.raises(InputError, match="not the run's"):
        export.export(load_run(run), ("masks",), run / "export", images=50, report=lambda *_: None)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--format", "onyx"], "nearest: onnx"),
        (["--format"], "no format is given"),
        (["--format", "2:4"], "2 of each 4"),
        (["--images", "0"], "--images 0"),
        (["--device", "moon"], "--device moon"),
    ],
)
def test_what_cannot_be_exported_is_said_in_a_line(run, arguments, told, capsys):
    assert told in fails(capsys, "export", str(run), *arguments)
    assert not [file for file in contents(run) if file.startswith("export/")]


def test_a_folder_without_a_run_is_said_in_a_line(tmp_path, capsys):
    assert "no run's folder" in fails(capsys, "export", str(tmp_path))


def test_without_the_extra_it_says_so(run, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert "flatsparse[onnx]" in fails(capsys, "export", str(run), "--format", "onnx")


def test_the_ratio_of_times_is_that_of_the_work(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def work(seconds):
        now[0] += seconds

    found = export._time_ratio(lambda: work(0.02), lambda: work(0.01), "cpu")
    assert found["ratio"] == pytest.approx(2)
    assert 3 <= found["rounds"] <= export.ROUNDS

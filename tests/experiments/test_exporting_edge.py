"""``flatsparse export --format ethos-u xnnpack``: what it writes, records and says."""

import dataclasses
import re
import shutil
import sys

import pytest
import torch

from flatsparse.cli import main
from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json
from flatsparse.experiments import export, export_edge
from flatsparse.experiments.export_checks import one_tensor
from flatsparse.experiments.run.config import change
from flatsparse.experiments.run.load import load_run
from tests.cli.test_cli import QUICK, fails
from tests.export.nets import masked


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    for method, sparsity in (("static", "0.9"), ("dense", None)):
        options = [] if sparsity is None else ["--sparsity", sparsity]
        main(["train", "--data", "digits", "--method", method, *options, *QUICK, "--out", str(folder / method)])
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SECONDS", 0.0)
    return shutil.copytree(trained / "static", tmp_path / "run")


@pytest.fixture
def edge():
    for module in ("executorch", "ethosu", "tosa_reference_model"):
        pytest.importorskip(module, reason="needs the extra edge")


@pytest.mark.slow
@pytest.mark.usefixtures("edge")
def test_both_beside_a_dense_run(run, trained, capsys):
    options = ["--format", "ethos-u", "xnnpack", "--dense", str(trained / "dense"), "--images", "200"]
    main(["export", str(run), *options])
    said = capsys.readouterr().out
    record = read_json(run / "export" / "export.json")
    ethos, xnnpack = (record["formats"][name] for name in ("ethos-u", "xnnpack"))
    assert {file.name for file in (run / "export").iterdir()} == {"export.json", ethos["file"], xnnpack["file"]}
    for form in (ethos, xnnpack):
        assert form["bytes"] == (run / "export" / form["file"]).stat().st_size
        assert form["calibrated_on"] == min(export_edge.CALIBRATION, len(load_run(run).task.splits.train))
        assert form["checked"]["samples"] == export_edge.CHECKED
        assert form["checked"]["difference"] <= form["checked"]["tolerance"]
        assert form["on_cpu"] == {}
        assert abs(form["accuracy"] - record["run"]["accuracy"]) < 5
    assert (ethos["target"], ethos["memory"]) == ("ethos-u85-256", "flash")
    mine, dense = ethos["estimate"], ethos["dense"]["estimate"]
    assert 3 * mine["encoded_weight_bytes"] < dense["encoded_weight_bytes"]
    assert f"{mine['cycles']:,} cycles of {dense['cycles']:,} dense" in said
    assert ethos["dense"]["run"] == load_run(trained / "dense").digest
    assert abs(ethos["dense"]["accuracy"] - ethos["dense"]["float"]["accuracy"]) < 5
    assert f"the dense run in int8 has accuracy {ethos['dense']['accuracy']:.2f} %" in said
    assert xnnpack["inference"]["rounds"] == 3
    main(["export", str(run), *options])  # what it wrote is its own


@pytest.mark.slow
@pytest.mark.usefixtures("edge")
def test_without_a_dense_run_fresh_weights_stand_beside_and_say_so(run, capsys):
    main(["export", str(run), "--format", "ethos-u", "--target", "ethos-u55-64", "--memory", "sram", "--images", "50"])
    assert "dense with fresh weights: it has no accuracy, give --dense RUN" in capsys.readouterr().out
    form = read_json(run / "export" / "export.json")["formats"]["ethos-u"]
    assert (form["target"], form["memory"]) == ("ethos-u55-64", "sram")
    assert form["estimate"]["memory_mode"] == "Sram_Only"
    assert "accuracy" not in form["dense"]
    assert form["dense"]["estimate"]["encoded_weight_bytes"] > 3 * form["estimate"]["encoded_weight_bytes"]


@pytest.mark.slow
@pytest.mark.usefixtures("edge")
def test_a_program_that_says_something_else_is_not_kept(run, monkeypatch, capsys):
    monkeypatch.setattr(export_edge, "TOLERANCE", -1.0)
    assert "TOSA reference model" in fails(capsys, "export", str(run), "--format", "ethos-u", "--images", "50")
    assert list((run / "export").iterdir()) == []


def test_the_line_names_what_the_estimate_leaves_out():
    estimate = {"cycles": 10, "macs": 20, "encoded_weight_bytes": 3000, "traffic": {"sram": {"whole": 4000}}}
    dense = {"run": None, "estimate": {**estimate, "cycles": 40}}
    form = {"target": "T", "memory": "flash", "estimate": estimate, "dense": dense, "on_cpu": {"aten.sort.default": 2}}
    said = export_edge.int8_line(form)
    assert "10 cycles of 40 dense" in said
    assert said.endswith("; left to the CPU: 2 aten.sort.default, which the estimate leaves out")
    assert "left to the CPU" not in export_edge.int8_line({**form, "on_cpu": {}})


def test_calibration_is_of_training_samples_and_always_the_same(run):
    finished = load_run(run)
    samples = export_edge.calibration(finished, "ethos-u")
    assert len(samples) == min(export_edge.CALIBRATION, len(finished.task.splits.train))
    assert samples.equal(export_edge.calibration(load_run(run), "ethos-u"))
    training = {image.numpy().tobytes() for b in finished.task.splits.train.batches(100) for image in b.content[0]}
    assert {sample.numpy().tobytes() for sample in samples} <= training


def test_channels_without_weights_are_not_compiled(run):
    finished = load_run(run)
    name = next(name for name, mask in finished.masks.items() if mask.ndim == 4 and len(mask) == 32)
    masks = {own: torch.ones_like(mask) for own, mask in finished.masks.items()}
    whole = dataclasses.replace(finished, masks=masks)
    assert export_edge.without_channels(whole) == (whole.model, masks)
    masks[name][:8] = False
    model, left = export_edge.without_channels(dataclasses.replace(finished, masks=masks))
    assert left == {}
    assert 24 <= len(model.get_parameter(name)) < 32  # where batch norm makes a constant of one, padding may keep it
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(model(images), masked(finished.model, masks)(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ethos-u", "xnnpack"])
def test_without_the_extra_it_says_so(run, name, capsys, monkeypatch):
    for module in ("executorch.backends.arm.quantizer", "executorch.backends.xnnpack.quantizer.xnnpack_quantizer"):
        monkeypatch.setitem(sys.modules, module, None)
    assert "flatsparse[edge]" in fails(capsys, "export", str(run), "--format", name)
    assert list((run / "export").glob("*.pte")) == []


def test_an_unknown_target_or_memory_is_a_line(run, capsys):
    told = fails(capsys, "export", str(run), "--format", "ethos-u", "--target", "ethos-u85")
    assert "unknown --target 'ethos-u85' (nearest: ethos-u85-" in told
    told = fails(capsys, "export", str(run), "--format", "ethos-u", "--memory", "Flash")
    assert "unknown --memory 'Flash' (nearest: flash)" in told


def test_another_dense_run_is_a_line(run, trained, tmp_path, capsys):
    asked = ("export", str(run), "--format", "ethos-u")
    assert "is sparse: give a run of --method dense" in fails(capsys, *asked, "--dense", str(run))
    for option in (("--dense", str(run)), ("--memory", "sram"), ("--target", "ethos-u55-128")):
        assert f"{option[0]} is for --format ethos-u" in fails(capsys, *asked[:2], *option)
    sparse, dense = load_run(run), load_run(trained / "dense")
    export_edge.check_dense(dense, sparse)
    others = {
        "is of another network, with other names or shapes": dataclasses.replace(dense, model=torch.nn.Linear(2, 2)),
        "is of another data (cifar10, not digits)": dataclasses.replace(dense, run=change(dense.run, data="cifar10")),
        "is of another image size (32, not None)": dataclasses.replace(dense, run=change(dense.run, image_size=32)),
    }
    for told, other in others.items():
        with pytest.raises(InputError, match=re.escape(told)):
            export_edge.check_dense(other, sparse)


class Branches(torch.nn.Module):
    """A net that only torch.export can follow."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)

    def forward(self, x):
        return self.last(self.first(x).relu() if x.shape[0] else x)


def test_a_channel_that_lost_its_weights_by_chance_stays_where_it_cannot_be_removed(run):
    model, masks = Branches(), {"first.weight": torch.ones(16, 8, dtype=torch.bool)}
    masks["first.weight"][3] = False
    by_chance = dataclasses.replace(load_run(run), model=model, masks=masks)
    assert export_edge.without_channels(by_chance) == (model, masks)
    pruned = dataclasses.replace(by_chance, run=change(by_chance.run, method="chex", channels=0.5))
    with pytest.raises(InputError, match="Branches"):
        export_edge.without_channels(pruned)


def test_a_model_of_several_inputs_is_a_line():
    with pytest.raises(InputError, match="format 'ethos-u' is for a model of one tensor"):
        one_tensor((1, 2), {}, "ethos-u")

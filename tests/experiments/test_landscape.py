import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from flatsparse.cli import main
from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json, write_json
from flatsparse.experiments.landscape import curvature, mechanism, pictures, text
from flatsparse.experiments.landscape import measure as measuring
from flatsparse.experiments.landscape.batch_norm_folding import folded
from flatsparse.experiments.landscape.measure import measure
from flatsparse.experiments.landscape.settings import Landscape
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.run.loop import train
from flatsparse.experiments.run.precision import has_bf16
from flatsparse.models import MODELS

from .test_page import Outline

SMALL = {"points": 5, "images": 40, "pairs": 3, "stride": 1, "jobs": 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs that differ in their sharpness."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("none", "s2sam"):
        train(
            RunConfig.of(train_size=64, validation_size=50, batch_size=16, epochs=3, sharpness=name, rho=0.5),
            folder / name,
        )
    return folder / "none", folder / "s2sam"


def quietly(settings, out, **options):
    return measure(settings, out, console=Console(quiet=True), **options)


@pytest.fixture(scope="module")
def measured(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("landscape") / "out"
    settings = Landscape(runs=runs, kinds=("live", "full"), **SMALL)
    return settings, out, quietly(settings, out)


def test_a_finished_run_comes_back_as_it_was(runs):
    run = load_run(runs[1])
    told = read_json(runs[1] / "result.json")
    correct = 0
    loss = 0.0
    for (inputs, targets), *_ in run.task.splits.train.batches(1000):
        with torch.no_grad():
            outputs = run.model(inputs)
        correct += int((outputs.argmax(1) == targets).sum())
        loss += float(F.cross_entropy(outputs, targets, reduction="sum"))
    assert 100 * correct / 64 == told["train_accuracy"]
    assert loss / 64 == pytest.approx(told["train_loss"], rel=1e-5)
    assert run.run.sharpness == "s2sam"
    for name, mask in run.masks.items():
        assert not run.model.get_parameter(name)[~mask].any()
    assert run.digest != load_run(runs[0]).digest


def test_the_record_is_what_the_contract_says(measured):
    settings, out, records = measured
    told = read_json(out / "landscape.json")
    assert told["runs"] == records
    for record in told["runs"]:
        assert record["grid"] == [-1.0, -0.5, 0.0, 0.5, 1.0]
        assert np.shape(record["losses"]) == np.shape(record["also"]["full"]["losses"]) == (5, 5)
        assert record["losses"] != record["also"]["full"]["losses"]
        assert record["centre"] == record["losses"][2][2] == record["also"]["full"]["losses"][2][2]
        low, high = record["ra"]["interval95"]
        assert low < record["ra"]["mean"] < high
    assert text.definition(settings, records).startswith("Mean cross-entropy over the first 40 training images")


def test_the_hessian_is_that_of_the_live_weights(measured, runs):
    """The second difference of the loss along one live weight is at most the largest eigenvalue."""
    for folder, record in zip(runs, measured[2], strict=True):
        run, seen = load_run(folder), record["hessian"]
        live = sum(int(mask.sum()) for mask in run.masks.values())
        unmasked = sum(p.numel() for name, p in run.model.named_parameters() if name not in run.masks)
        assert seen["live"]["weights"] == live + unmasked
        assert seen["all"]["weights"] == sum(p.numel() for p in run.model.parameters())
        assert seen["images"] == 64
        with torch.no_grad():
            bias, found = list(run.model.parameters())[-1], []
            ((inputs, targets), *_) = next(run.task.splits.train.batches(64))
            for step in (-0.05, 0.0, 0.05):
                bias[-1] += step
                found.append(float(F.cross_entropy(run.model(inputs).double(), targets)))
                bias[-1] -= step
        assert 0 < (found[0] - 2 * found[1] + found[2]) / 0.05**2 <= seen["live"]["largest"] * 1.02
        assert seen["live"]["largest"] <= seen["all"]["largest"] * 1.02
        assert sum(seen["spectrum"]["weights"]) == pytest.approx(1)
        assert max(seen["spectrum"]["nodes"]) == pytest.approx(seen["live"]["largest"], rel=0.05)
        gain = record["around"]["gain"]
        assert gain["worst"] >= gain["sam"] > max(gain["random"], gain["previous"])
        assert record["around"]["rho"] == (0.5 if record["sharpness"] == "s2sam" else 0.05)


def test_a_look_leaves_the_model_as_it_was(runs):
    run = load_run(runs[0])
    before = {name: t.clone() for name, t in run.model.state_dict().items()}
    curvature.curvature(run, 40, seed=0)
    assert all(torch.equal(t, before[name]) for name, t in run.model.state_dict().items())
    assert not run.model.training


def test_bf16_rounds_all_but_the_middle(measured, runs, tmp_path):
    settings = Landscape(runs=runs, precision="bf16", hessian_images=0, **SMALL)
    for rounded, exact in zip(quietly(settings, tmp_path / "out"), measured[2], strict=True):
        assert (rounded["precision"], exact["precision"]) == ("bf16", "float32")
        assert rounded["centre"] == exact["centre"] != rounded["rounded_centre"]
        assert rounded["losses"] != exact["losses"]
        np.testing.assert_allclose(rounded["losses"], exact["losses"], rtol=0.05)
        assert "in bf16, whose error at the centre is" in text.definition(settings, [rounded])


def test_only_large_networks_are_rounded_by_default(runs):
    settings = Landscape(runs=runs).resolved()
    assert not settings.in_bf16(1e6)
    assert settings.in_bf16(1e9) == has_bf16("cpu")


def test_no_hessian_when_none_is_asked_for(runs, tmp_path):
    record, *_ = quietly(Landscape(runs=runs[:1], hessian_images=0, **SMALL), tmp_path / "out")
    assert "hessian" not in record
    assert "around" not in record


@pytest.mark.parametrize("name", ["resnet20", "resnet50"])
def test_folded_batch_norms_compute_what_the_model_does(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.weight, 1, 0.2)
            torch.nn.init.normal_(module.bias)
    model.eval()
    quick, fold = folded(model)
    assert not any("batch_norm" in str(node.target) or ".bn" in str(node.target) for node in quick.graph.nodes)
    weights, images = dict(model.named_parameters()), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(
                torch.func.functional_call(quick, fold(weights), (images,)),
                torch.func.functional_call(model, weights, (images,)),
                rtol=1e-4,
                atol=1e-4,
            )
            weights = {name: p + 0.1 * torch.randn_like(p) * p.std().nan_to_num() for name, p in weights.items()}


def test_what_cannot_be_traced_is_not_folded():
    class Fickle(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    model = Fickle()
    assert folded(model)[0] is model


def test_the_centre_is_the_models_loss(measured, runs):
    for folder, record in zip(runs, measured[2], strict=True):
        run = load_run(folder)
        inputs, targets = next(run.task.splits.train.first(40).batches(40)).content
        with torch.no_grad():
            loss = F.cross_entropy(run.model(inputs), targets)
        assert record["centre"] == pytest.approx(float(loss), rel=1e-6)


def test_roughness_and_its_interval_by_hand(measured):
    record = measured[2][1]
    heights = np.array(record["losses"])
    ra = record["ra"]
    assert ra["value"] == pytest.approx(np.abs(heights - heights.mean()).mean())
    inner = heights[1:4, 1:4]
    assert ra["by_range"][0]["value"] == pytest.approx(np.abs(inner - inner.mean()).mean())
    assert [told["reach"] for told in ra["by_range"]] == [0.5, 1.0]  # a quarter of two places is not one
    assert {**ra["by_range"][1], "by_range": ra["by_range"]} == ra
    assert ra["by_pair"][0] == ra["value"]  # every place of the grid is compared here
    half = 4.302653 * np.std(ra["by_pair"], ddof=1) / math.sqrt(3)  # Student's, two degrees of freedom
    assert ra["interval95"] == pytest.approx([np.mean(ra["by_pair"]) - half, np.mean(ra["by_pair"]) + half])
    gaps = np.subtract(ra["by_pair"], measured[2][0]["ra"]["by_pair"])
    assert ra["over_first"]["mean"] == pytest.approx(gaps.mean())
    assert measured[2][0]["ra"]["over_first"] is None


def test_pairs_are_compared_on_a_coarser_grid_with_centre_and_corners(runs, tmp_path):
    settings = Landscape(runs=runs[:1], points=9, images=20, pairs=2, jobs=1).resolved()
    assert settings.stride == 4
    assert settings.axis(1) == (-1.0, 0.0, 1.0)
    (record,) = quietly(settings, tmp_path / "out")
    coarse = np.array(record["losses"])[::4, ::4]
    assert record["ra"]["by_pair"][0] == pytest.approx(np.abs(coarse - coarse.mean()).mean())


class Killed(BaseException):
    """Stands for a kill between two pieces."""


def test_after_a_kill_the_file_is_the_same_and_nothing_is_measured_twice(measured, tmp_path, monkeypatch):
    settings, whole, _ = measured
    works, count = {kind: kind.run for kind in (measuring.Piece, measuring.Curvature)}, []

    def run(piece):
        if len(count) == most:
            raise Killed
        count.append(piece)
        works[type(piece)](piece)

    for kind in works:
        monkeypatch.setattr(kind, "run", run)
    most = 5
    with pytest.raises(Killed):
        quietly(settings, tmp_path / "out")
    assert not (tmp_path / "out" / "landscape.json").exists()
    (tmp_path / "out" / "pieces" / ".some.safetensors.abc.half").write_bytes(b"what a killed process was writing")
    count.clear()
    most = None
    quietly(settings, tmp_path / "out", resume=True)
    assert len(count) == 2 + 2 * 2 * 3 - 5
    assert not list((tmp_path / "out" / "pieces").glob(".*"))
    assert (tmp_path / "out" / "landscape.json").read_bytes() == (whole / "landscape.json").read_bytes()


@pytest.mark.slow
def test_another_run_is_added_without_measuring_the_first_again(runs, tmp_path, monkeypatch):
    quietly(Landscape(runs=runs[:1], **SMALL), tmp_path / "out")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "pieces").iterdir()}
    records = quietly(Landscape(runs=runs, **SMALL), tmp_path / "out", resume=True)
    assert len(records) == 2
    assert all(file.stat().st_mtime_ns == when for file, when in before.items())
    assert len(list((tmp_path / "out" / "pieces").iterdir())) == 2 * len(before)


@pytest.mark.slow
def test_workers_find_the_same(measured, runs, tmp_path):
    settings, _, records = measured
    found = quietly(Landscape(**{**settings.as_dict(), "runs": runs, "jobs": 2}), tmp_path / "out")
    for ours, theirs in zip(found, records, strict=True):
        assert np.allclose(ours["losses"], theirs["losses"], rtol=1e-5)


def test_a_folder_that_holds_another_run_by_now_is_measured_again(runs, tmp_path):
    place, settings = tmp_path / "run", Landscape(runs=(tmp_path / "run",), **SMALL)
    shutil.copytree(runs[0], place)
    (before,) = quietly(settings, tmp_path / "out")
    shutil.rmtree(place)
    shutil.copytree(runs[1], place)
    (after,) = quietly(settings, tmp_path / "out", resume=True)
    assert after["losses"] != before["losses"]


def test_the_runs_are_untouched(runs, tmp_path):
    before = {file: file.read_bytes() for run in runs for file in run.iterdir()}
    quietly(Landscape(runs=runs, **SMALL), tmp_path / "out")
    assert {file: file.read_bytes() for run in runs for file in run.iterdir()} == before


def test_losses_above_the_clip_count_as_it(runs, tmp_path):
    (record,) = quietly(Landscape(runs=runs[:1], **SMALL, clip=1e-3), tmp_path / "out")
    assert record["ra"]["value"] == 0
    assert record["ra"]["clipped"] == 1
    assert pictures.surface(record, 1e-3, "live").heights.max() == 1e-3


def test_a_cut_that_decides_the_roughness_is_told(runs, tmp_path):
    (flat, _) = records = quietly(Landscape(runs=runs, **SMALL), tmp_path / "out")
    assert "are cut" not in text.sentences(records, "live")[0]
    clip = float(np.median(flat["losses"]))
    cut = quietly(Landscape(runs=runs, **SMALL, clip=clip), tmp_path / "out", resume=True)
    assert f"and {cut[0]['ra']['clipped']:.0%} are cut" in text.sentences(cut, "live")[0]
    assert 0.3 < cut[0]["ra"]["clipped"] < 0.5


def test_the_command_draws_and_tells(runs, tmp_path, capsys):
    out = tmp_path / "out"
    chosen = ["--points", "5", "--images", "40", "--pairs", "2", "--jobs", "1"]
    main(["landscape", *map(str, runs), *chosen, "--out", str(out)])
    said = " ".join(capsys.readouterr().out.split())
    assert {file.name for file in out.iterdir()} == {
        "settings.json", "pieces", "landscape.json", "surface-live.png", "contour-live.png", "spectrum.png",
            "report.html",
    }  # fmt: skip
    record = read_json(out / "landscape.json")["runs"][1]
    assert f"{record['ra']['mean']:.4f} ±" in said
    assert f"s2sam against none: to ±1 cannot be told apart, Ra {record['ra']['over_first']['mean']:+.4f} ±" in said
    report = (out / "report.html").read_text()
    outline = Outline(report)
    assert outline.open == []
    assert all(place.startswith("data:") for place in outline.asked)
    assert report.count("<canvas") == 2
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', report)[1])
    assert np.allclose(data["surfaces"][1]["heights"], record["losses"], atol=1e-5)
    assert data["high"] == max(np.max(r["losses"]) for r in read_json(out / "landscape.json")["runs"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"runs": ()}, "no run"),
        ({"points": 4}, "5"),
        ({"points": 1}, "points"),
        ({"reach": 0.0}, "reach"),
        ({"reach": math.nan}, "reach"),
        ({"images": 0}, "images"),
        ({"pairs": 0}, "pairs"),
        ({"stride": 2, "points": 7}, "divisor of 3"),
        ({"clip": -1.0}, "clip"),
        ({"jobs": 0}, "jobs"),
        ({"device": "moon"}, "moon"),
    ],
)
def test_bad_settings_are_told(runs, changes, told):
    with pytest.raises(InputError, match=told):
        Landscape(**{"runs": runs, **changes}).resolved()


def test_a_run_given_twice_is_told(runs):
    with pytest.raises(InputError, match="twice"):
        Landscape(runs=(runs[0], runs[0])).resolved()


def copied(run, to):
    shutil.copytree(run, to)
    return to


def test_folders_that_are_no_finished_run_are_told_and_leave_nothing_behind(runs, tmp_path, capsys):
    unfinished, cut, other, foreign = (copied(runs[0], tmp_path / name) for name in ("a", "b", "c", "d"))
    (unfinished / "result.json").unlink()
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-5])
    config = read_json(other / "config.json")
    write_json(other / "config.json", {**config, "settings": {**config["settings"], "model": "resnet20"}})
    write_json(foreign / "config.json", {**config, "settings": {**config["settings"], "colour": "red"}})
    out = tmp_path / "out"
    for folder, told in [
        (tmp_path / "absent", "no run's folder"),
        (unfinished, "--resume"),
        (cut, "damaged"),
        (other, "resnet20"),
        (foreign, "--colour"),
    ]:
        with pytest.raises(SystemExit) as end:
            main(["landscape", str(folder), "--out", str(out)])
        said = capsys.readouterr().err
        assert end.value.code == 2
        assert said.count("\n") == 1
        assert told in said
        assert not out.exists()


def test_a_damaged_piece_is_named(runs, tmp_path):
    settings = Landscape(runs=runs[:1], **SMALL)
    quietly(settings, tmp_path / "out")
    piece = next((tmp_path / "out" / "pieces").iterdir())
    piece.write_bytes(piece.read_bytes()[:-3] + b"xyz")
    with pytest.raises(InputError, match=piece.name):
        quietly(settings, tmp_path / "out", resume=True)


def test_a_piece_of_another_surface_or_of_another_form_is_named(runs, tmp_path):
    settings = Landscape(runs=runs, hessian_images=8, **SMALL)
    quietly(settings, tmp_path / "out")
    surfaces = sorted((tmp_path / "out" / "pieces").glob("*.safetensors"))
    hessians = sorted((tmp_path / "out" / "pieces").glob("*.json"))
    for one, other in (surfaces[:2], hessians):
        whole = one.read_bytes()
        one.write_bytes(other.read_bytes())
        with pytest.raises(InputError, match=rf"{one.name}' is damaged \(it holds the piece {other.stem}\)"):
            quietly(settings, tmp_path / "out", resume=True)
        one.write_bytes(whole)
    known = read_json(hessians[0])
    for odd in ({"hessian": 1}, {"around": {}}, {"hessian": {**known["hessian"], "live": {}}}):
        write_json(hessians[0], {**known, **odd})
        with pytest.raises(InputError, match=rf"{hessians[0].name}' is damaged"):
            quietly(settings, tmp_path / "out", resume=True)


def test_surfaces_share_one_scale(measured):
    settings, _, records = measured
    surfaces = [pictures.surface(record, settings.clip, "live") for record in records]
    low, high = (pick(np.array([s.heights for s in surfaces])) for pick in (np.min, np.max))
    axes = [axis for axis in pictures.in_space(surfaces).axes if axis.name == "3d"]
    assert len(axes) == 2
    assert all(axis.get_zlim() == pytest.approx((low, high)) for axis in axes)
    assert all(axis.collections[0].norm.vmax == high for axis in axes)


def test_the_papers_figures_have_a_cell_for_each_surface(measured):
    surfaces = [pictures.surface(record, 10.0, "live") for record in measured[2]]
    first = pictures.figure1({("grasp", 0.8): surfaces[0], ("grasp", 0.9): surfaces[1], ("mest", 0.8): surfaces[1]})
    drawn = [axis for axis in first.axes if axis.name == "3d" and axis.collections]
    assert len(drawn) == 3
    assert drawn[0].get_title().startswith("80% sparse\nRa ")
    third = pictures.figure3({("snip", "none", 0.9): surfaces[0], ("snip", "s2sam", 0.9): surfaces[1]})
    words = [text.get_text() for axis in third.axes for text in axis.texts]
    assert words == ["snip, plain", "snip, S²-SAM"]


def test_the_steps_of_figure_2_are_the_optimizers_own():
    start, lr, rho = (-1.25, 0.35), 0.08, 0.3

    def slope(w):
        w = torch.tensor(w, dtype=torch.float32, requires_grad=True)
        mechanism.two_valleys(w).backward()
        return w.grad.double().numpy()

    for name in ("none", "sam", "s2sam"):
        path = mechanism.walk(name, start=start, steps=6, lr=lr, rho=rho)
        w, last = np.array(start), np.zeros(2)
        for step in range(6):
            along = {"none": np.zeros(2), "sam": slope(w), "s2sam": last}[name]
            look = w + rho * along / (np.linalg.norm(along) + 1e-12)
            assert path.perturbed[step] == pytest.approx(look, abs=1e-4)
            last = slope(look)
            w = w - lr * last
            assert path.weights[step + 1] == pytest.approx(w, abs=1e-4)


def test_figure_2_has_a_panel_for_each_optimizer():
    assert [axis.get_title() for axis in mechanism.figure2().axes] == ["plain", "SAM, ρ = 0.3", "S²-SAM, ρ = 0.3"]

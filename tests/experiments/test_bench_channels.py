"""What ``flatsparse bench sparse --model`` and ``--run`` measure; no assertion here is about how long anything takes."""

import copy
import statistics

import numpy as np
import pytest
import torch

import flatsparse as fs
from flatsparse.cli import main
from flatsparse.common.json_files import read_json
from flatsparse.experiments.bench.channels import (
    CONTROL,
    CSR,
    DENSE,
    MASKED,
    SMALL,
    Runner,
    csr,
    verdict,
    without_channels,
)
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.loop import train
from flatsparse.experiments.stats import Interval
from flatsparse.export.csr import SparseRows
from flatsparse.graph.groups import channel_groups
from flatsparse.graph.shrink import active_channels, shrink
from tests.random_nets import RandomNet

from .test_bench import bench


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_share_of_each_group_is_removed(share):
    model = fs.models.resnet20()
    groups = channel_groups(model)
    live = active_channels(model, groups, without_channels(model, share))
    for group, alive in zip(groups, live, strict=True):
        assert int(alive.sum()) == (group.size if group.why_kept else group.size * (1 - share))


def test_a_net_in_csr_form_has_live_weights_only():
    model = RandomNet(0)
    sparse = csr(model, 0.9)
    layers = [module for module in sparse.modules() if isinstance(module, SparseRows)]
    matrices = [p for p in model.parameters() if p.ndim > 1]
    assert len(layers) == len(matrices) > 3
    assert sum(len(layer.values) for layer in layers) == pytest.approx(0.1 * sum(p.numel() for p in matrices), rel=0.2)
    assert sparse(torch.randn(2, 2, 8, 8)).shape == (2, 3)


def test_the_masked_net_stays_masked_and_the_small_one_learns_the_same():
    torch.manual_seed(0)
    model = fs.models.digitnet(in_channels=3)
    masks = without_channels(model, 0.5)
    masked = Runner(copy.deepcopy(model), "cpu", trains=True, masks=masks)
    small = Runner(shrink(model, masks), "cpu", trains=True)
    batch = torch.randn(8, 3, 8, 8), torch.arange(8)
    for _ in range(3):
        masked.step(batch)
        small.step(batch)
    weights = dict(masked.model.named_parameters())
    assert all(not weights[name][~mask].any() for name, mask in masks.items())
    with torch.no_grad():
        torch.testing.assert_close(small.model.eval()(batch[0]), masked.model.eval()(batch[0]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("low", "high", "said"), [(1.7, 2.0, "met"), (1.5, 2.0, "open"), (1.2, 1.5, "missed")])
def test_a_target_is_met_only_by_the_whole_interval(low, high, said):
    assert said in verdict("training", Interval(1.6, low, high, 20), 0.5, 1.6)
    assert "target" not in verdict("training", Interval(1.6, low, high, 20), 0.5, None)


def test_all_forms_are_measured_in_both_ways(tmp_path, capsys):
    told, said, page = bench(tmp_path, capsys, "sparse", "--model", "resnet32", "--threads", "1")
    (case,) = told["cases"]
    assert (case["threads"], case["channels"], case["sparsity"], case["target"]) == (1, 0.5, 0.9, None)
    assert set(case["runs"]["inference"]) == {DENSE, CONTROL, MASKED, SMALL, CSR}
    assert set(case["runs"]["training"]) == {DENSE, CONTROL, MASKED, SMALL}
    for forms in case["runs"].values():
        for form, found in forms.items():
            assert len(found["seconds"]) == 6
            pairs = zip(forms[DENSE]["seconds"], found["seconds"], strict=True)
            if form != DENSE:
                assert found["speed"]["value"] == pytest.approx(statistics.median(a / b for a, b in pairs))
    assert case["outputs_apart"] < 1e-5
    assert case["parameters"][SMALL] < 0.3 * case["parameters"][DENSE]
    assert "Without 50% of the channels inference is" in said
    assert "What sparsity gains in time" in page


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs of a method that removes channels, and of one that does not."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("chex", "rigl"):
        train(RunConfig.of(method=name, train_size=64, validation_size=50, batch_size=16, epochs=4), folder / name)
    return folder


def test_a_runs_own_channels_are_measured_and_its_accuracy_is_kept(runs, tmp_path, capsys):
    chosen = ["--run", str(runs / "chex"), "--quick", "--threads", "1", "--sparsity", "0"]
    main(["bench", "sparse", *chosen, "--out", str(tmp_path / "out")])
    (case,) = read_json(tmp_path / "out" / "bench.json")["cases"]
    result = read_json(runs / "chex" / "result.json")
    assert case["channels"] == result["channels"]
    assert CSR not in case["runs"]["inference"]
    assert case["test_accuracy"] == {MASKED: result["test_accuracy"], SMALL: result["test_accuracy"]}
    assert case["parameters"][SMALL] < case["parameters"][DENSE]
    assert "without the channels" in capsys.readouterr().out


def test_a_run_of_few_classes_is_measured_too(tmp_path):
    source, data = np.random.default_rng(0), tmp_path / "data"
    data.mkdir()
    for part in ("train", "test"):
        images, labels = source.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), source.integers(0, 2, 40)
        np.savez(data / f"{part}.npz", images=images, labels=labels)
    common = {"method": "chex", "validation_size": 10, "batch_size": 10, "epochs": 2, "label_noise": 0.0}
    train(RunConfig.of(data=str(data), model="digitnet", **common), tmp_path / "two")
    out = tmp_path / "out"
    main(["bench", "sparse", "--run", str(tmp_path / "two"), "--quick", "--threads", "1", "--out", str(out)])
    (case,) = read_json(out / "bench.json")["cases"]
    assert case["test_accuracy"][MASKED] == read_json(tmp_path / "two" / "result.json")["test_accuracy"]


def test_a_run_without_channels_to_remove_is_refused(runs, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", "sparse", "--run", str(runs / "rigl"), "--quick"])
    assert end.value.code == 2
    assert "removed no channels" in capsys.readouterr().err

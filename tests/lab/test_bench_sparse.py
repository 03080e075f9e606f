"""What ``flatsparse bench sparse`` measures; no assertion here is about how long anything takes."""

import copy
import statistics

import pytest
import torch
from torch import nn

import flatsparse as fs
from flatsparse.channels import channel_groups
from flatsparse.lab.bench.sparse import (
    CONTROL,
    CSR,
    DENSE,
    MASKED,
    SMALL,
    CSRLayer,
    Runner,
    csr,
    verdict,
    without_channels,
)
from flatsparse.lab.statistics import Median
from flatsparse.shrinking import live_channels, shrink
from tests.random_nets import RandomNet

from .test_bench import bench


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_share_of_each_group_is_removed(share):
    model = fs.models.resnet20()
    groups = channel_groups(model)
    live = live_channels(model, groups, without_channels(model, share))
    for group, alive in zip(groups, live, strict=True):
        assert int(alive.sum()) == (group.size if group.why_kept else group.size * (1 - share))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, 3, stride=2, padding=1),
        nn.Conv2d(3, 5, (1, 3), padding=(0, 2), dilation=(1, 2), bias=False),
        nn.Linear(6, 4),
    ],
)
def test_a_layer_in_csr_form_computes_the_same(layer):
    torch.manual_seed(0)
    inputs = torch.randn(2, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 3, 7, 6)
    with torch.no_grad():
        layer.weight *= torch.rand_like(layer.weight) < 0.3
        torch.testing.assert_close(CSRLayer(layer)(inputs), layer(inputs))


def test_a_net_in_csr_form_has_live_weights_only():
    model = RandomNet(0)
    sparse = csr(model, 0.9)
    layers = [module for module in sparse.modules() if isinstance(module, CSRLayer)]
    assert len(layers) > 3
    assert all(len(layer.rows.values()) == layer.layer.weight.count_nonzero() for layer in layers)
    stored, overall = (sum(len(x.rows.values()) for x in layers), sum(x.layer.weight.numel() for x in layers))
    assert stored < 0.3 * overall  # depthwise convolutions, dense, take their share of the budget
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
    assert said in verdict("training", Median(1.6, low, high), 0.5, 1.6)
    assert "target" not in verdict("training", Median(1.6, low, high), 0.5, None)


def test_all_forms_are_measured_in_both_ways(tmp_path, capsys):
    told, said, page = bench(tmp_path, capsys, "sparse", "--threads", "1")
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

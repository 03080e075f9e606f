import pytest
import torch
from torch import nn

from flatsparse.common.errors import InputError
from flatsparse.measure.estimate import estimate
from flatsparse.measure.flops import cost, step_flops
from flatsparse.methods import RigL
from flatsparse.models import digitnet, resnet32
from flatsparse.sparse.rules import DropAndGrow


def test_a_multiply_add_counts_as_two():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 25, 10))
    found = cost(net, torch.zeros(4, 3, 5, 5))
    assert found.layers == {"0.weight": 2 * 8 * 27 * 25, "2.weight": 2 * 2000}
    assert found.other == 0


def test_grouped_and_depthwise_convolutions_count_only_what_they_multiply():
    grouped = cost(nn.Sequential(nn.Conv2d(6, 9, 3, padding=1, groups=3)), torch.zeros(2, 6, 5, 5))
    depthwise = cost(nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6)), torch.zeros(2, 6, 5, 5))
    assert (grouped.layers, depthwise.layers) == ({"0.weight": 2 * 9 * 18 * 25}, {"0.weight": 2 * 6 * 9 * 25})


def test_resnet32_has_the_multiply_adds_of_the_paper():
    assert cost(resnet32(), torch.zeros(1, 3, 32, 32)).dense / 2 == pytest.approx(275.6e6, rel=1e-3)


def test_masked_weights_cost_nothing_and_layers_without_mask_are_dense():
    net = digitnet()
    found = cost(net, torch.zeros(1, 1, 8, 8))
    mask = torch.zeros_like(net[3].weight, dtype=torch.bool)
    mask[:16] = True
    assert found.forward({"3.weight": mask}) == found.dense - found.layers["3.weight"] * 0.75
    assert found.forward({}) == found.dense


def test_products_outside_layers_are_counted_too():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(4, 4)

        def forward(self, x):
            return x @ self.project(x).mT

    found = cost(Attention(), torch.zeros(2, 3, 4))
    assert found.layers == {"project.weight": 2 * 3 * 16}
    assert found.other == 2 * 3 * 3 * 4


def test_counting_leaves_the_net_in_its_mode():
    net = digitnet().train()
    before = net[1].running_mean.clone()
    cost(net, torch.randn(2, 1, 8, 8))
    assert net.training
    assert torch.equal(net[1].running_mean, before)


def test_a_step_costs_three_forwards_and_a_due_dense_gradient_one_dense_product():
    dense_rule = DropAndGrow(lambda step: True, lambda step: 0.3, drop=lambda w: w.weight, grow=_needs_gradient)
    plain_rule = DropAndGrow(lambda step: True, lambda step: 0.3, drop=lambda w: w.weight, grow=lambda w: w.weight)
    assert step_flops(2.0, 10.0, 1, []) == step_flops(2.0, 10.0, 1, [plain_rule]) == 6.0
    assert step_flops(2.0, 10.0, 1, [dense_rule]) == 2 * 2.0 + 10.0
    assert step_flops(2.0, 10.0, 2, []) == 12.0


def _needs_gradient(w):
    return w.grad


_needs_gradient.dense_gradient = True


def test_batch_norms_and_relus_count_one_operation_an_output_when_asked_for():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(200, 10))
    plain, full = (cost(net, torch.zeros(4, 3, 5, 5), elementwise=elementwise) for elementwise in (False, True))
    assert full.layers == plain.layers
    assert (plain.other, full.other) == (0, 2 * 8 * 25)


def test_a_layer_that_cannot_be_counted_is_named():
    with pytest.raises(InputError, match=r"layer 'rnn\.weight'"):
        cost(digitnet(), torch.zeros(1, 1, 8, 8)).at({"rnn.weight": 0.5})


@pytest.mark.parametrize(
    ("method", "options", "told"),
    [
        (RigL, {}, "such as"),
        (RigL(), {"every": 3}, "beside a method object"),
        ("rigl", {"evry": 3}, "no option 'evry'"),
    ],
)
def test_an_estimate_refuses_what_sparsify_refuses(method, options, told):
    with pytest.raises(InputError, match=told):
        estimate(digitnet(), torch.zeros(1, 1, 8, 8), method, sparsity=0.9, steps=100, **options)

"""EfficientNet-B0: the published sizes, and stochastic depth."""

import pytest
import torch
from torch import nn

import flatsparse as fs
from flatsparse.measure.flops import cost
from flatsparse.models.efficientnet import MBConv


def on_meta(**options):
    with torch.device("meta"):
        return fs.models.efficientnet_b0(**options)


def test_it_has_the_published_count_of_parameters():
    assert sum(p.numel() for p in on_meta().parameters()) == 5_288_548


def test_it_has_the_published_count_of_multiply_adds():
    # Tan & Le 2019, Table 2: 0.39B. Convolutions and the linear layer are counted, neither norms nor gates.
    counted = cost(on_meta(), torch.empty(1, 3, 224, 224, device="meta"))
    assert counted.dense / 2 == pytest.approx(0.39e9, rel=0.0125)
    assert min(counted.layers.values()) > 0
    assert counted.other == 0


@pytest.mark.parametrize(("size", "heights"), [(224, (112, 56, 28, 14, 14, 7, 7)), (64, (32, 16, 8, 4, 4, 2, 2))])
def test_stages_have_the_published_shapes(size, heights):
    # Tan & Le 2019, Table 1; each block there is named by the input's height, here by the output's.
    model, shapes = on_meta(in_channels=1), []
    for index in (0, 2, 4, 7, 10, 14, 15):
        model.blocks[index].register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    model(torch.empty(2, 1, size, size, device="meta"))
    widths = (16, 24, 40, 80, 112, 192, 320)
    assert shapes == [(width, height, height) for width, height in zip(widths, heights, strict=True)]


def test_norms_are_the_released_codes():
    norms = [m for m in on_meta().modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


def test_convolutions_start_with_the_variance_that_their_fan_out_tells():
    torch.manual_seed(0)
    model = fs.models.efficientnet_b0()
    for conv in (model.head[0], model.blocks[14].depthwise[0], model.blocks[15].excitation.expand):
        fan_out = conv.weight.shape[2] ** 2 * (1 if conv.groups > 1 else conv.out_channels)
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)


def test_stochastic_depth_grows_and_leaves_whole_samples_out():
    drops = [block.drop for block in on_meta().blocks]
    assert drops == pytest.approx([0.2 * index / 16 for index in range(16)])
    torch.manual_seed(0)
    block = MBConv(8, 8, expansion=6, stride=1, size=3, drop=0.4).train()
    block.bn = nn.Identity()  # so that a sample does not depend on the others
    for norm in (block.expand[1], block.depthwise[1]):
        norm.eval()
    x = torch.randn(500, 8, 5, 5)
    added = block(x) - x
    block.eval()
    whole = block(x) - x
    left_out = (added == 0).flatten(1).all(1)
    assert 0.3 < float(left_out.float().mean()) < 0.5
    assert torch.allclose(added[~left_out], whole[~left_out] / 0.6, rtol=1e-3, atol=1e-4)


def test_dropout_and_stochastic_depth_can_be_left_out():
    torch.manual_seed(0)
    model, x = fs.models.efficientnet_b0(10, dropout=0.0, stochastic_depth=0.0), torch.randn(4, 3, 32, 32)
    assert torch.equal(model(x), model(x))
    model = fs.models.efficientnet_b0(10)
    assert not torch.equal(model(x), model(x))

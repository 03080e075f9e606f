"""Changes of trained weights: rounding, pruning and noise, beside their plain forms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flatsparse.measure.changes import add_noise, prune_active, round_weights


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Linear(5, 7))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(torch.rand_like(p) < 0.5)
    return model


def plainly_rounded(row, bits):
    most = 2 ** (bits - 1) - 1
    scale = max(abs(v) for v in row) / most
    return [round(v / scale) * scale if scale else 0.0 for v in row]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_is_that_of_each_output_channel(bits):
    model, before = net(), net()
    round_weights(model, bits)
    for index, outputs in ((0, 0), (3, 0)):
        weight, old = model[index].weight.detach(), before[index].weight.detach()
        for row, was in zip(weight.transpose(0, outputs), old.transpose(0, outputs), strict=True):
            wanted = torch.tensor(plainly_rounded(was.flatten().double().tolist(), bits)).to(row)
            assert torch.allclose(row.flatten(), wanted, atol=1e-6)
    # Inputs come first in a transposed convolution: output 4 is the second of the second group, whose inputs are 2 and 3.
    channel, was = (one[2].weight.detach()[2:, 1] for one in (model, before))
    wanted = torch.tensor(plainly_rounded(was.flatten().double().tolist(), bits)).to(channel)
    assert torch.allclose(channel.flatten(), wanted, atol=1e-6)
    for (name, p), q in zip(model.named_parameters(), before.parameters(), strict=True):
        assert p.ndim > 1 or p.equal(q), name
        assert not p[q == 0].any(), "zeros stay zeros"


def test_a_row_of_zeros_stays_one():
    layer = nn.Linear(3, 2)
    layer.weight.data[0] = 0
    round_weights(layer, 4)
    assert not layer.weight[0].any()
    assert layer.weight.isfinite().all()


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 40), fraction=st.floats(0, 1), seed=st.integers(0, 99))
def test_the_smallest_active_weights_are_pruned(size, fraction, seed):
    torch.manual_seed(seed)
    layer = nn.Linear(size, 1, bias=False)
    mask = torch.rand(1, size) < 0.7
    layer.weight.data *= mask
    layer.weight.data[0, 0] = 0  # an active weight may be zero, and counts as one
    before = layer.weight.detach().clone()
    prune_active(layer, {"weight": mask}, fraction)
    order = sorted((abs(float(before[0, i])), i) for i in range(size) if mask[0, i])
    gone = {i for _, i in order[: int(fraction * len(order))]}
    expected = [0.0 if i in gone else float(before[0, i]) for i in range(size)]
    assert layer.weight[0].tolist() == expected


def test_noise_has_the_spread_of_the_active_weights_and_leaves_the_others():
    torch.manual_seed(0)
    layer = nn.Linear(400, 300)
    mask = torch.rand(300, 400) < 0.1
    layer.weight.data *= mask
    before = layer.weight.detach().clone()
    add_noise(layer, {"weight": mask}, 0.4, torch.Generator().manual_seed(1))
    moved = layer.weight.detach() - before
    assert not moved[~mask].any()
    assert float(moved[mask].std() / before[mask].std()) == pytest.approx(0.4, rel=0.03)
    again = nn.Linear(400, 300)
    again.weight.data = before.clone()
    add_noise(again, {"weight": mask}, 0.4, torch.Generator().manual_seed(1))
    assert again.weight.equal(layer.weight)


def test_a_tied_weight_is_changed_once():
    first = nn.Linear(4, 4, bias=False)
    second = nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    before = first.weight.detach().clone()
    add_noise(nn.Sequential(first, second), {}, 1.0, torch.Generator().manual_seed(0))
    alone = nn.Linear(4, 4, bias=False)
    alone.weight.data = before
    add_noise(alone, {}, 1.0, torch.Generator().manual_seed(0))
    assert first.weight.equal(alone.weight)

"""GPT-2: the published size, causality and the tied output."""

import pytest
import torch

import flatsparse as fs
from flatsparse.measure.flops import cost


def test_gpt2_has_the_published_count_of_parameters():
    with torch.device("meta"):
        model = fs.models.gpt2()
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


@pytest.mark.parametrize("length", [1, 16])
def test_every_product_is_counted(length):
    model = fs.models.gpt2_tiny(50, 16)
    counted = cost(model, torch.zeros(2, length, dtype=torch.int64))
    blocks = 2 * length * 4 * 12 * 128**2
    assert sum(counted.layers.values()) == blocks + 2 * length * 50 * 128
    assert counted.layers["tokens.weight"] == 2 * length * 50 * 128
    assert [layer for layer, flops in counted.layers.items() if not flops] == ["positions.weight"]
    assert counted.other == 4 * 4 * length**2 * 128


@torch.no_grad()
def test_no_token_sees_a_later_one():
    torch.manual_seed(0)
    model, tokens = fs.models.gpt2_tiny(20, 12).eval(), torch.randint(20, (3, 12))
    changed = tokens.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 20
    before, after = model(tokens), model(changed)
    assert before.shape == (3, 12, 20)
    assert torch.equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] - after[:, 6:]).abs().amax(dim=(0, 2)).min() > 1e-4


def test_the_output_layer_is_the_token_embedding():
    torch.manual_seed(0)
    model, tokens = fs.models.gpt2_tiny(20, 8), torch.full((1, 8), 3)
    model(tokens)[..., 5].sum().backward()
    assert model.tokens.weight.grad[5].abs().max() > 0  # token 5 is read by no position
    assert model.tokens.weight.grad[6].abs().max() == 0


def test_layers_that_write_into_the_residual_stream_start_smaller():
    torch.manual_seed(0)
    model = fs.models.gpt2_tiny()
    spreads = {name: p.std().item() for name, p in model.named_parameters() if p.ndim == 2}
    for name, spread in spreads.items():
        small = name.endswith(("attention.out.weight", "net.2.weight"))
        assert spread == pytest.approx(0.02 / 8**0.5 if small else 0.02, rel=0.03)

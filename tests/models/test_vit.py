"""Vision Transformers: the published sizes, patches and positions."""

import pytest
import torch

import flatsparse as fs
from flatsparse.common.errors import InputError
from flatsparse.measure.flops import cost


@pytest.mark.parametrize(
    ("name", "count", "multiply_adds"),
    [("vit_tiny", 5_717_416, 1.3e9), ("vit_small", 22_050_664, 4.6e9)],  # operations: Wang et al. 2021 (PVT), of DeiT
)
def test_they_have_the_published_sizes(name, count, multiply_adds):
    with torch.device("meta"):
        model = fs.models.MODELS[name]()
        counted = cost(model, torch.empty(1, 3, 224, 224))
    assert sum(p.numel() for p in model.parameters()) == count
    assert counted.dense / 2 == pytest.approx(multiply_adds, abs=0.05e9)  # of two digits
    assert [layer for layer, flops in counted.layers.items() if not flops] == ["token", "positions"]


def test_attentions_products_are_counted_beside_the_matrices():
    with torch.device("meta"):
        counted = cost(fs.models.vit_tiny_32(), torch.empty(1, 3, 32, 32))
    assert counted.other == 12 * 2 * 2 * 65**2 * 192


@pytest.mark.parametrize("name", ["vit_tiny_32", "vit_tiny_64"])
def test_small_images_have_64_patches(name):
    with torch.device("meta"):
        model = fs.models.MODELS[name](in_channels=1)
    assert model.positions.shape == (1, 65, 192)
    assert fs.models.IMAGES[name][1] == 8 * model.patches.stride[0]


@torch.no_grad()
def test_without_positions_patches_have_no_order():
    torch.manual_seed(0)
    model, x = fs.models.vit_tiny(5, image_size=32, patch=8).eval(), torch.randn(2, 3, 32, 32)
    moved = x.roll(8, dims=3)
    assert (model(x) - model(moved)).abs().max() > 1e-4
    model.positions.zero_()
    assert torch.allclose(model(x), model(moved), atol=1e-5)
    assert (model(x) - model(x.roll(4, dims=3))).abs().max() > 1e-4


def test_images_of_another_size_do_not_fit():
    with pytest.raises(RuntimeError):
        fs.models.vit_tiny_32()(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(("size", "patch"), [(30, 4), (2, 4), (32, 0)])
def test_patches_that_do_not_tile_are_refused(size, patch):
    with pytest.raises(InputError, match=f"patches of {patch} pixels do not tile images of {size}"):
        fs.models.vit_tiny(image_size=size, patch=patch)

"""The networks: their sizes and their shapes."""

import pytest
import torch
from torch import nn

import flatsparse as fs
from flatsparse.masks import Masks


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("classes", "count"), [(10, 1_860_522), (100, 1_872_132)])
def test_resnet32_has_the_published_count_of_parameters(classes, count):
    assert parameters(fs.models.resnet32(classes)) == count


def test_resnet32_has_34_matrices_and_the_published_count_of_weights():
    model = fs.models.resnet32()
    masks = Masks.of(model, model.parameters())
    assert (len(masks), masks.total) == (34, 1_855_584)


def test_resnet20_is_a_quarter_as_wide_and_shallower():
    # Stages of 16-32-64 channels: 3x3 convolutions, two 1x1 shortcuts, norms, and 64x10 + 10.
    convolutions = 27 * 16 + 9 * (6 * 16**2 + 16 * 32 + 5 * 32**2 + 32 * 64 + 5 * 64**2) + 16 * 32 + 32 * 64
    norms = 2 * (7 * 16 + 7 * 32 + 7 * 64)
    assert parameters(fs.models.resnet20()) == convolutions + norms + 650


@pytest.mark.parametrize("name", sorted(fs.models.MODELS))
@pytest.mark.parametrize("classes", [10, 7])
def test_a_model_maps_images_to_a_logit_for_each_class(name, classes):
    size = 8 if name == "digitnet" else 32
    model = fs.models.MODELS[name](num_classes=classes, in_channels=2)
    assert model(torch.zeros(3, 2, size, size)).shape == (3, classes)


@pytest.mark.parametrize("name", sorted(fs.models.MODELS))
def test_a_model_starts_undecided_but_not_dead(name):
    torch.manual_seed(0)
    model = fs.models.MODELS[name](in_channels=1).eval()
    size = 8 if name == "digitnet" else 32
    outputs = model(torch.randn(4, 1, size, size))
    assert outputs.isfinite().all()
    assert outputs.std(dim=0).min() > 0
    assert outputs.abs().max() < 20


def test_the_shortcut_is_a_projection_only_where_the_shape_changes():
    model = fs.models.resnet32()
    kinds = [type(block.shortcut) for stage in (model.stage1, model.stage2, model.stage3) for block in stage]
    assert kinds == [nn.Identity] * 5 + ([nn.Sequential] + [nn.Identity] * 4) * 2


def test_resnet32_halves_the_image_twice():
    sizes = []
    model = fs.models.resnet32()
    for stage in (model.stage1, model.stage2, model.stage3):
        stage.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    model(torch.zeros(1, 3, 32, 32))
    assert sizes == [(32, 32, 32), (64, 16, 16), (128, 8, 8)]

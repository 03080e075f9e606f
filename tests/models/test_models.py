"""The networks: their sizes and their shapes."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import flatsparse as fs
from flatsparse.measure.flops import cost
from flatsparse.sparse.masks import Masks
from tests.helpers import IMAGE_MODELS, image_size


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
    with torch.device("meta"):
        model = fs.models.MODELS[name](num_classes=classes, in_channels=2)
        assert model(torch.zeros(3, 2, *2 * [image_size(name)])).shape == (3, classes)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_a_model_starts_undecided_but_not_dead(name):
    torch.manual_seed(0)
    model = fs.models.MODELS[name](in_channels=1).eval()
    outputs = model(torch.randn(4, 1, *2 * [image_size(name)]))
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


@pytest.mark.parametrize(
    ("name", "count", "prunable"),
    [
        ("resnet18", 11_689_512, 11_678_912),
        ("resnet34", 21_797_672, 21_779_648),
        ("resnet50", 25_557_032, 25_502_912),
    ],
)
def test_the_imagenet_nets_have_the_published_counts_of_parameters(name, count, prunable):
    model = fs.models.MODELS[name](num_classes=1000)
    assert (parameters(model), Masks.of(model, model.parameters()).total) == (count, prunable)


def test_resnet50_halves_the_image_five_times_and_strides_in_its_3x3_convolutions():
    sizes = []
    model = fs.models.resnet50()
    for stage in (model.stage1, model.stage2, model.stage3, model.stage4):
        stage.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    model(torch.zeros(2, 3, 64, 64))
    assert sizes == [(256, 16, 16), (512, 8, 8), (1024, 4, 4), (2048, 2, 2)]
    strided = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert strided == ["conv1", *(f"stage{i}.0.{c}" for i in (2, 3, 4) for c in ("conv2", "shortcut.0"))]


@pytest.mark.parametrize(("classes", "count"), [(10, 20_035_018), (100, 20_081_188)])
def test_vgg19_has_the_published_count_of_parameters(classes, count):
    assert parameters(fs.models.vgg19(classes)) == count


def test_vgg19_halves_the_image_four_times_between_sixteen_convolutions():
    sizes = []
    model = fs.models.vgg19()
    for module in model:
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    model(torch.zeros(2, 3, 32, 32))
    assert sizes == [(64, 32, 32)] * 2 + [(128, 16, 16)] * 2 + [(256, 8, 8)] * 4 + [(512, 4, 4)] * 4 + [(512, 2, 2)] * 4


@pytest.mark.parametrize(("projected", "count"), [(True, 2_296_922), (False, 2_236_682)])
def test_mobilenet_has_the_known_counts_of_parameters(projected, count):
    # The second is torchvision's 3,504,872 for a thousand classes, less 990 of the 1281 numbers each class has.
    assert parameters(fs.models.mobilenet_v2(projected=projected)) == count
    assert count - 60_240 * projected == 3_504_872 - 990 * 1281


def test_mobilenet_halves_a_small_image_three_times():
    sizes = []
    model = fs.models.mobilenet_v2()
    model.head.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    model(torch.zeros(2, 3, 32, 32))
    assert sizes == [(1280, 4, 4)]


def test_the_transformer_has_thirty_million_parameters():
    assert parameters(fs.models.causal_transformer()) == 30_056_448


def test_the_transformer_sees_no_later_token():
    torch.manual_seed(0)
    model = fs.models.causal_transformer(vocabulary=20, width=16, depth=2, heads=2, length=12).train()
    tokens = torch.randint(20, (3, 10))
    changed = tokens.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 20
    before, after = model(tokens), model(changed)
    assert before.shape == (3, 10, 20)
    assert torch.equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] - after[:, 6:]).abs().amax(dim=(0, 2)).min() > 1e-4


def test_the_page_of_models_tells_their_sizes():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| (?:([\d.]+) G)? ?\|", page, re.MULTILINE)
    assert len(rows) == 6
    for name, count, multiply_adds in rows:
        with torch.device("meta"):
            model = getattr(fs.models, name)()
            assert f"{parameters(model):,}" == count
            if multiply_adds:
                assert f"{cost(model, torch.empty(1, 3, 224, 224)).dense / 2e9:.2f}" == multiply_adds

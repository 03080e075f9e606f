import pytest
import torch
from torch import nn

import flatsparse as fs
from flatsparse.common.errors import InputError
from flatsparse.methods.presets import PRESETS, left_dense_by
from flatsparse.sparse.layers import chosen, classifier, first_convolution, prunable, shortcuts
from tests.helpers import sgd, tiny_net


def modules(model):
    return {name: module for name, (_, module) in prunable(model).items()}


def on_meta(model):
    with torch.device("meta"):
        return modules(fs.models.MODELS[model]())


@pytest.mark.parametrize(("model", "count"), [("resnet20", 2), ("resnet32", 2), ("resnet18", 3), ("resnet50", 4)])
def test_first_convolution_shortcuts_and_classifier_of_residual_nets(model, count):
    found = on_meta(model)
    assert first_convolution(found) == {"conv1.weight"}
    assert classifier(found) == {"linear.weight"}
    assert shortcuts(found) == {name for name in found if "shortcut" in name}
    assert len(shortcuts(found)) == count


class Block(nn.Module):
    """A bottleneck whose parts say nothing of what they are."""

    def __init__(self, inputs, width, outputs):
        super().__init__()
        self.a, self.b = nn.Conv2d(inputs, width, 1), nn.Conv2d(width, width, 3)
        self.c, self.d = nn.Conv2d(width, outputs, 1), nn.Conv2d(inputs, outputs, 1)


def test_a_shortcut_is_found_by_structure_whatever_its_name():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), Block(8, 4, 16), Block(16, 8, 32), nn.Linear(32, 5))
    assert shortcuts(modules(net)) == {"1.d.weight", "2.d.weight"}


def test_a_chain_of_pointwise_convolutions_has_no_shortcut():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 8, 1))
    assert shortcuts(modules(net)) == set()


def test_a_shortcut_that_keeps_the_width_is_known_by_its_name():
    net = nn.ModuleDict({"conv": nn.Conv2d(8, 8, 3), "downsample": nn.Conv2d(8, 8, 1)})
    assert shortcuts(modules(net)) == {"downsample.weight"}


@pytest.mark.parametrize(("preset", "dense"), [("all", 0), ("grasp", 0), ("rigl", 1), ("dsr", 3), ("mest", 4)])
def test_presets_leave_dense_what_their_papers_do(preset, dense):
    found = on_meta("resnet32")
    assert len(found) - len(chosen(found, left_dense_by(preset))) == dense


@pytest.mark.parametrize(("sparsity", "overall"), [(0.9, 0.894), (0.95, 0.944), (0.98, 0.973)])
def test_the_mest_profile_on_resnet32_has_the_overall_sparsity_of_its_runs(sparsity, overall):
    model = fs.models.resnet32()
    training = fs.sparsify(model, sgd(model.parameters()), "static", sparsity=sparsity, steps=10, layers="mest")
    report = training.report()
    assert report.sparsity == pytest.approx(sparsity, abs=1e-6)
    assert report.overall_sparsity == pytest.approx(overall, abs=5e-4)
    assert len(training.masks) == 30


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"include": [nn.Conv2d]}, ["0.weight", "3.weight"]),
        ({"include": ["Conv2d"]}, ["0.weight", "3.weight"]),
        ({"exclude": ["Linear"]}, ["0.weight", "3.weight"]),
        ({"exclude": nn.Conv2d}, ["7.weight"]),
        ({"layers": "rigl"}, ["3.weight", "7.weight"]),
        ({"layers": "mest"}, ["3.weight"]),
        ({"layers": "rigl", "exclude": ["7"]}, ["3.weight"]),
        ({"layers": "rigl", "include": ["Conv*"]}, ["3.weight"]),
    ],
)
def test_layers_are_chosen_by_kind_name_and_preset(choice, names):
    model = tiny_net()
    assert list(fs.sparsify(model, sgd(model.parameters()), "static", sparsity=0.5, steps=10, **choice).masks) == names


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ({"layers": "rigel"}, "rigl"),
        ({"exclude": [nn.GRU]}, "GRU"),
        ({"layers": "mest", "include": ["7"]}, "no weight to make sparse"),
    ],
)
def test_a_choice_that_leaves_nothing_or_means_nothing_is_told(choice, told):
    model = tiny_net()
    with pytest.raises(InputError, match=told):
        fs.sparsify(model, sgd(model.parameters()), "static", sparsity=0.5, steps=10, **choice)


def test_every_preset_fits_a_net_without_convolutions():
    found = modules(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)))
    assert all(chosen(found, left_dense_by(preset)) >= {"0.weight"} for preset in PRESETS)

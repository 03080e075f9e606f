"""Which channels may be removed, by whose convention; the numbers are those of the authors' code."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatsparse as fs
from flatsparse.sparse.channel_choice import (
    between_convolutions,
    blocks_and_shortcuts,
    eligible,
    removable,
    with_residual_channels,
)
from tests.sparse.test_channel_rules import Residual, Widening


def meta(name):
    with torch.device("meta"):
        return getattr(fs.models, name)()


def names(groups):
    return [group.writes[0].name.removesuffix(".weight") for group in groups]


def test_channels_of_residual_sums_are_left_unless_asked_for():
    assert names(removable(Residual())) == ["one", "two"]
    assert names(with_residual_channels(Residual())) == ["stem", "one", "two"]


@pytest.mark.parametrize(
    ("model", "explored", "channels"),
    [
        ("resnet50", blocks_and_shortcuts, 11392),  # CHEX's code
        ("resnet50", between_convolutions, 7552),  # Chase's
        ("resnet50", removable, 7616),
        ("resnet34", blocks_and_shortcuts, 4672),
        ("resnet34", between_convolutions, 3776),
        ("resnet18", blocks_and_shortcuts, 2816),
        ("resnet32", blocks_and_shortcuts, 5 * (32 + 64 + 128) + 64 + 128),
        ("resnet32", between_convolutions, 5 * (32 + 64 + 128)),
        ("vgg19", between_convolutions, 5504 - 512),  # all convolutions but the last
        ("vgg19", blocks_and_shortcuts, 5504 - 64),  # all but the first
    ],
)
def test_how_many_channels_there_are(model, explored, channels):
    assert sum(group.size for group in explored(meta(model))) == channels


def test_of_a_resnet_50_blocks_and_shortcuts_are_explored_but_neither_stem_nor_conv3():
    found = names(blocks_and_shortcuts(meta("resnet50")))
    kinds = [name.split(".", 2)[-1] for name in found]
    assert [kinds.count(kind) for kind in ("conv1", "conv2", "shortcut.0")] == [16, 16, 4]
    assert len(found) == 36


@pytest.mark.parametrize(
    ("explore", "channels", "gmacs"),
    [("published", 0.3, 2.514), ("published", 0.5, 1.642), ("published", 0.7, 0.920), ("removable", 0.5, 1.734)],
)
def test_what_a_thinned_resnet_50_costs(explore, channels, gmacs):
    sample = torch.empty(1, 3, 224, 224, device="meta")
    told = fs.estimate(meta("resnet50"), sample, "chex", channels=channels, regrow=0.0, explore=explore, steps=2)
    assert told.inference / 2e9 == pytest.approx(gmacs, abs=5e-4)


def test_what_a_thinned_resnet_34_costs():
    sample = torch.empty(1, 3, 224, 224, device="meta")
    told = fs.estimate(meta("resnet34"), sample, "chex", channels=0.5, regrow=0.0, steps=2)
    assert told.inference / 2e9 == pytest.approx(1.891, abs=5e-4)


class Block(nn.Module):
    """A stem, and what a case makes of its channels; all have six."""

    def __init__(self, form, affine=True):
        super().__init__()
        self.stem, self.head, self.form = nn.Conv2d(1, 6, 1), nn.Conv2d(6, 3, 1), form
        self.one, self.two, self.past = (nn.Conv2d(6, 6, 1) for _ in range(3))
        self.norm = nn.BatchNorm2d(6, affine=affine)

    def forward(self, x):
        return self.head(self.form(self, F.relu(self.stem(x))))


@pytest.mark.parametrize(
    ("form", "shortcut"),
    [
        (lambda m, x: m.two(m.one(x).relu()) + m.past(x), True),
        (lambda m, x: m.past(x) + m.two(m.one(x).relu()), True),
        (lambda m, x: torch.add(m.norm(m.past(x)), m.two(m.one(x).relu())), True),
        (lambda m, x: m.two(m.one(x).relu()).add_(m.past(F.avg_pool2d(x, 1))), True),
        (lambda m, x: m.two(m.one(x).relu()) + m.past(x.relu()), False),  # reads something else
        (lambda m, x: m.two(m.one(x).relu()) * m.past(x), False),  # a gate of 0 is no missing term
        (lambda m, x: m.two(x) + m.past(x), False),  # two alike
        (lambda m, x: m.two(m.one(x).relu()) + m.past(x).relu(), False),
        (lambda m, x: (y := m.past(x)) + m.two(m.one(x).relu()) * y, False),  # read twice
        (lambda m, x: m.past(m.two(m.one(x).relu()) + m.past(x)), False),  # used twice
    ],
)
def test_a_shortcut_is_a_convolution_beside_several_from_the_same_input(form, shortcut):
    assert ("past" in names(blocks_and_shortcuts(Block(form)))) == shortcut


def test_a_shortcut_whose_batch_norm_has_no_weight_cannot_be_silent():
    def form(m, x):
        return m.two(m.one(x).relu()) + m.norm(m.past(x))

    assert "past" in names(blocks_and_shortcuts(Block(form)))
    assert "past" not in names(blocks_and_shortcuts(Block(form, affine=False)))


def test_a_shortcut_is_its_convolution_with_its_bias_and_its_batch_norm():
    found = {group.writes[0].name: group for group in blocks_and_shortcuts(Widening())}
    assert list(found) == ["one.weight", "past.weight"]
    group = found["past.weight"]
    assert [slot.name for slot in group.writes] == ["past.weight", "past.bias"]
    assert [slot.name for slot in group.norms] == [
        f"third.{n}" for n in ("weight", "bias", "running_mean", "running_var")
    ]
    assert (group.size, group.reads) == (10, ())


def test_names_are_those_of_the_bare_model():
    assert names(blocks_and_shortcuts(nn.DataParallel(Widening()))) == ["one", "past"]


def test_which_channels_an_option_names():
    assert eligible("published", False, blocks_and_shortcuts) is blocks_and_shortcuts
    assert eligible("removable", False, blocks_and_shortcuts) is removable
    assert eligible("published", True, blocks_and_shortcuts) is with_residual_channels
    with pytest.raises(fs.InputError, match="unknown choice of channels explore= 'everything'"):
        eligible("everything", False, blocks_and_shortcuts)

"""A shrunk model computes what the masked one does, with fewer channels."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatsparse as fs
from flatsparse.graph.groups import channel_groups
from flatsparse.graph.shrink import active_channels, narrow, shrink, widths
from tests.helpers import IMAGE_MODELS, image_size, same
from tests.random_nets import RandomNet

TOLERANCE = 2e-5  # of float32, relative to the largest output: sums of fewer terms are rounded in another order


def trained_norms(model, seed=0):
    """Batch norms as training leaves them, so that a channel without weights sends on a constant that is not 0."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor, middle in ((module.weight, 1.0), (module.bias, 0.0), (module.running_mean, 0.0)):
                    tensor.copy_(middle + 0.3 * torch.randn(tensor.shape, generator=source))
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=source) + 0.5)
    return model.eval()


def channel_masks(model, share, sides, seed=0):
    """Masks of random channels of each group: of their rows, of their columns, or of either or both, channel by channel."""
    source = torch.Generator().manual_seed(seed)
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.ndim > 1}
    for group in channel_groups(model):
        if group.why_kept is None:
            gone = torch.rand(group.size, generator=source) < share
            side = torch.randint(3, (group.size,), generator=source)
            for slots, skip in ((group.writes, "columns"), (group.reads, "rows")):
                here = gone & (side != (skip == "columns")) if sides == "either" else gone & (sides != skip)
                for slot in slots:
                    if slot.name in masks:
                        places = here.repeat_interleave(slot.block).nonzero().squeeze(1) + slot.offset
                        masks[slot.name].index_fill_(slot.dim, places, False)
    return masks


def masked(model, masks):
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            if name in masks:
                p.mul_(masks[name])
    return twin


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def assert_equal_outputs(model, small, inputs):
    with torch.no_grad():
        wanted, found = model(inputs), small(inputs)
    assert (found - wanted).abs().max() <= TOLERANCE * max(1.0, wanted.abs().max())


@pytest.mark.parametrize("sides", ["rows", "columns", "both", "either"])
@pytest.mark.parametrize("seed", range(25))
def test_random_nets_compute_the_same_when_shrunk(seed, sides):
    torch.manual_seed(seed)
    model = RandomNet(seed).eval()
    masks = channel_masks(model, 0.4, sides, seed)
    small, inputs = shrink(model, masks), torch.randn(4, 2, 8, 8)
    assert_equal_outputs(masked(model, masks), small, inputs)
    if sides in ("columns", "both"):
        gone = sum(int((~live).sum()) for live in active_channels(model, channel_groups(model), masks))
        assert (parameters(small) < parameters(model)) == (gone > 0)


@pytest.mark.parametrize("sides", ["rows", "both"])
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_our_models_compute_the_same_when_shrunk(name, sides):
    torch.manual_seed(0)
    model = trained_norms(fs.models.MODELS[name](num_classes=10))
    masks = channel_masks(model, 0.5, sides)
    small = shrink(model, masks)
    channels, size = fs.models.IMAGES[name][0], image_size(name)
    assert_equal_outputs(masked(model, masks), small, torch.randn(4, channels, size, size))
    if (
        sides == "both"
    ):  # half of the channels on either side of most weights; of a ViT, of two thirds of them on one side
        assert parameters(small) < (0.7 if name.startswith("vit") else 0.4) * parameters(model)


@pytest.mark.parametrize("seed", range(8))
def test_unstructured_masks_lose_only_what_does_not_count(seed):
    torch.manual_seed(seed)
    model = RandomNet(seed).eval()
    masks = {name: torch.rand_like(p) < 0.1 for name, p in model.named_parameters() if p.ndim > 1}
    assert_equal_outputs(masked(model, masks), shrink(model, masks), torch.randn(4, 2, 8, 8))


def test_exactly_the_masked_channels_go():
    model = fs.models.resnet20()
    groups, masks = channel_groups(model), channel_masks(model, 0.5, "columns")
    for group, live in zip(groups, active_channels(model, groups, masks), strict=True):
        read = [masks[slot.name].transpose(0, 1).flatten(1).any(1).view(group.size, slot.block) for slot in group.reads]
        wanted = torch.stack(read).any(0).any(1) if group.why_kept is None else torch.ones(group.size, dtype=torch.bool)
        assert torch.equal(live, wanted)


def silent(bias, padding, second_bias):
    """The first channel's row is masked; its batch norm sends on a constant of the sign of ``bias``."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 1, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 2, 3, padding=padding, bias=second_bias),
    )
    with torch.no_grad():
        model[0].weight[0] = 0
        model[1].bias[0] = bias
    return model.eval()


@pytest.mark.parametrize(
    ("bias", "padding", "second_bias", "goes"),
    [
        (-1.0, 1, False, True),  # ReLU makes it 0
        (1.0, 1, True, False),  # the border would tell
        (1.0, 0, True, True),  # folded
        (1.0, 0, False, False),  # nowhere to fold it
    ],
)
def test_a_silent_channel_goes_only_where_its_constant_can(bias, padding, second_bias, goes):
    model = silent(bias, padding, second_bias)
    small = shrink(model)
    assert small[0].out_channels == (2 if goes else 3)
    assert_equal_outputs(model, small, torch.randn(2, 1, 5, 5))


@pytest.mark.parametrize("change", [lambda x: F.relu(x, True), torch.relu_, lambda x: x.mul_(0.0), lambda x: x.add_(x)])
def test_what_is_written_in_place_is_not_taken_for_what_it_was(change):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            y = self.a(x)
            z = F.dropout(y, 0.1, False)
            return self.b(change(y)) + self.c(z)

    torch.manual_seed(0)
    model = InPlace().eval()
    with torch.no_grad():
        model.a.weight[0] = 0
        model.a.bias[0] = -1.0
    assert_equal_outputs(model, shrink(model), torch.randn(2, 1, 5, 5))


def test_a_reparametrized_layer_is_kept():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), torch.nn.utils.parametrizations.weight_norm(nn.Linear(5, 2)))
    assert [group.why_kept for group in channel_groups(model)] == ["ParametrizedLinear '2' is not understood"]


def test_what_dies_with_a_dead_channel_goes_too():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[4].weight[:, 1:] = 0  # one hidden unit is read, and it reads two
        model[2].weight[0, 2:] = 0
    assert widths(shrink(model)) == {"0.weight": 2, "2.weight": 1}
    assert_equal_outputs(model, shrink(model), torch.randn(3, 4))


def test_a_group_without_a_live_channel_keeps_one():
    model = trained_norms(fs.models.digitnet())
    masks = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.ndim > 1}
    small = shrink(model, masks)
    assert set(widths(small).values()) == {1}
    assert_equal_outputs(masked(model, masks), small, torch.randn(2, 1, 8, 8))


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_a_small_model_is_loaded_into_a_narrow_one(name):
    make = fs.models.MODELS[name]
    model = trained_norms(make())
    small = shrink(model, channel_masks(model, 0.8, "both"))
    again = narrow(make(), widths(small)).eval()
    again.load_state_dict(small.state_dict())
    inputs = torch.randn(2, 3, 32, 32)
    assert same(again(inputs), small(inputs))
    assert repr(again) == repr(small)


def test_a_depthwise_convolution_of_one_channel_is_loaded_too():
    def make():
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 2, 1))

    model, inputs = make(), torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        model[3].weight[:, 1:] = 0
    small = shrink(model)
    again = narrow(make(), widths(small))
    again.load_state_dict(small.state_dict())
    assert (again[1].groups, again[1].in_channels, again[1].out_channels) == (1, 1, 1)
    assert same(again(inputs), small(inputs))
    assert_equal_outputs(model, small, inputs)


def test_a_small_model_says_what_it_is_and_trains():
    model = fs.models.mobilenet_v2()
    small = shrink(model, channel_masks(model, 0.5, "both")).train()
    for module in small.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        if isinstance(module, nn.BatchNorm2d):
            assert len(module.running_mean) == module.num_features
    optimizer = torch.optim.SGD(small.parameters(), lr=0.05)
    inputs, targets = torch.randn(8, 3, 16, 16), torch.arange(8)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(small(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_the_model_stays_as_it_is_and_its_true_weights_count_inside_a_window():
    torch.manual_seed(0)
    model = fs.models.digitnet()
    optimizer = fs.S2SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
    training = fs.sparsify(model, optimizer, "static", sparsity=0.9, steps=10)
    inputs, targets = torch.randn(8, 1, 8, 8), torch.arange(8)
    for _ in range(2):
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    F.cross_entropy(model(inputs), targets).backward()  # a window is open
    before = model.state_dict()
    assert not same(before["0.weight"], model[0].weight)
    small = shrink(model, training.masks)
    assert same(before, model.state_dict())
    optimizer.step()
    twin = fs.models.digitnet()
    twin.load_state_dict(before)
    assert_equal_outputs(twin.eval(), small.eval(), inputs)


class Around(nn.Module):
    """No wrapper that could be taken away."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return 2 * self.module(x)


@pytest.mark.parametrize("wrap", [Around, nn.DataParallel])
def test_a_model_that_wraps_another_is_shrunk_and_written_too(wrap):
    model = fs.models.digitnet().eval()
    masks, inputs = channel_masks(model, 0.5, "both"), torch.rand(2, 1, 8, 8)
    outer = wrap(model).eval()
    for made in (fs.shrink(outer, masks), fs.export.with_zeros(outer, masks)):
        assert_equal_outputs(wrap(masked(model, masks)).eval(), made, inputs)


def test_wrong_masks_and_widths_are_input_errors():
    model = fs.models.digitnet()
    with pytest.raises(fs.InputError, match="the mask of 'nothing' fits no weight"):
        shrink(model, {"nothing": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(fs.InputError, match=r"they lack '0\.weight'"):
        narrow(model, {})
    with pytest.raises(fs.InputError, match=r"'3\.weight' cannot have 65 channels: give 1 to 64"):
        narrow(model, {**widths(model), "3.weight": 65})


def test_a_mask_holds_for_every_use_of_a_tied_weight():
    torch.manual_seed(0)
    first, last = nn.Linear(8, 8), nn.Linear(8, 8)
    last.weight = first.weight
    model = nn.Sequential(first, nn.ReLU(), last)
    masks = {"0.weight": torch.rand(8, 8) < 0.5}
    small, inputs = shrink(model, masks), torch.randn(5, 8)
    with torch.no_grad():
        model[0].weight.mul_(masks["0.weight"])
        torch.testing.assert_close(small(inputs), model(inputs))

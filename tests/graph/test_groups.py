"""Channel groups: the ones that another library finds, and reasons for what is not followed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatsparse as fs
from flatsparse.graph.groups import Group, Slot, channel_groups
from tests.helpers import IMAGE_MODELS, image_size
from tests.random_nets import RandomNet


def reasons(model, example=None):
    return [group.why_kept for group in channel_groups(model, example)]


class Net(nn.Module):
    """Two 4-channel convolutions of a 3-channel image, their outputs combined somehow, and a third one."""

    def __init__(self, combine, inputs=4, features=0):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.c = nn.Linear(features, 2) if features else nn.Conv2d(inputs, 2, 1)
        self.combine = combine

    def forward(self, x):
        return self.c(self.combine(self, x))


def test_what_a_basic_block_ties_together():
    block = fs.models.resnet_cifar.BasicBlock(2, 4, stride=2)
    inner, stream = channel_groups(block)

    def norm(name):
        return tuple(Slot(f"{name}.{part}", 0, 1, 0) for part in ("weight", "bias", "running_mean", "running_var"))

    conv2 = Slot("conv2.weight", 1, 1, 0)
    assert inner == Group(4, (Slot("conv1.weight", 0, 1, 0),), norm("bn1"), (conv2,), None)
    assert {slot.name for slot in stream.writes} == {"conv2.weight", "shortcut.0.weight"}
    assert set(stream.norms) == {*norm("bn2"), *norm("shortcut.1")}
    assert (stream.reads, stream.why_kept) == ((), "the model's output")


def test_a_flatten_gives_each_channel_a_block_and_a_concatenation_an_offset():
    net = Net(lambda net, x: torch.flatten(F.max_pool2d(torch.cat([net.a(x), net.b(x)], 1), 2), 1), features=72)
    a, b, _ = channel_groups(net)
    assert a.reads == (Slot("c.weight", 1, 9, 0),)
    assert b.reads == (Slot("c.weight", 1, 9, 36),)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.view(x.size(0), -1),
        lambda x: x.reshape(x.shape[0], -1),
        lambda x: x.view((x.size()[0], -1)),
        lambda x: x.flatten(1),
    ],
)
def test_all_ways_to_flatten_are_one(view):
    net = Net(lambda net, x: view(net.a(x)), features=36)
    assert channel_groups(net)[0].reads == (Slot("c.weight", 1, 9, 0),)


@pytest.mark.parametrize(
    ("view", "kept"),
    [
        (lambda x, y: y.view(x.size(0), -1), False),
        (lambda x, y: y.view(x[::2].size(0), -1), True),  # two images in a row
        (lambda x, y: F.relu(y).view(y.shape[0], -1), False),
    ],
)
def test_a_view_is_a_flatten_only_with_its_own_batch_size(view, kept):
    net = Net(lambda net, x: view(x, net.a(x)), features=72 if kept else 36)
    assert (reasons(net)[0] is not None) == kept
    assert net(torch.randn(2, 3, 3, 3)).shape[1] == 2


def test_an_example_that_is_no_input_is_an_input_error():
    with pytest.raises(fs.InputError, match=r"^the example \(2, 7\) is no input of the model"):
        channel_groups(fs.models.digitnet(), torch.zeros(2, 7))


@pytest.mark.parametrize(
    ("combine", "reason"),
    [
        (lambda net, x: net.a(x) + net.b(x), None),
        (lambda net, x: torch.add(net.a(x), net.b(x), alpha=2), None),
        (lambda net, x: net.a(x).relu_() * torch.sigmoid(net.b(x)), None),
        (lambda net, x: 1 - net.a(x) / 3, None),
        (lambda net, x: net.a(x) * net.b(x).mean((2, 3), keepdim=True), None),
        (lambda net, x: F.dropout(F.adaptive_avg_pool2d(net.a(x), 1), 0.1), None),
        (lambda net, x: net.a(x) + F.pad(x, (0, 0, 0, 0, 0, 1)), "joined with what no layer gives"),
        (lambda net, x: net.a(x).permute(0, 1, 3, 2), "operation 'permute' is not understood"),
        (lambda net, x: net.a(x)[:, torch.tensor([3, 2, 1, 0])], "operation 'getitem' is not understood"),
        (lambda net, x: net.a(x).view(-1, 4, 3, 3), "operation 'view' is not understood"),
        (lambda net, x: net.a(x).softmax(1), "operation 'softmax' is not understood"),
        (lambda net, x: (y := net.a(x)) * y.shape[1], "operation 'getattr' is not understood"),
        (lambda net, x: torch.cat([net.a(x), net.b(x)], 2), "operation 'cat' is not understood"),
        (lambda net, x: net.a(x) - net.b(x).mean(1, keepdim=True), "joined with what no layer gives"),
    ],
)
def test_channels_are_followed_or_kept_with_a_reason(combine, reason):
    model = Net(combine).train()
    assert reasons(model)[0] == reason
    model(torch.randn(2, 3, 3, 3))


def test_layers_that_are_used_twice_are_in_no_group_and_keep_what_they_read():
    twice = nn.Sequential(nn.Conv2d(4, 4, 1), shared := nn.Conv2d(4, 4, 1), nn.ReLU(), shared, nn.Conv2d(4, 2, 1))
    assert reasons(twice) == ["the weights of '1' are used more than once", "the model's output"]
    tied = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
    tied[1].weight = tied[0].weight
    assert reasons(tied) == ["the model's output"]


def test_grouped_convolutions_keep_what_they_read_and_write():
    grouped = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(6, 2, 1))
    assert reasons(grouped) == ["convolution '1' is grouped"] * 2 + ["the model's output"]


def test_a_depthwise_convolution_writes_the_channels_that_it_reads():
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    first = channel_groups(net)[0]
    assert [slot.name for slot in first.writes] == ["0.weight", "1.weight", "1.bias"]
    assert [slot.name for slot in first.reads] == ["2.weight"]


def test_an_example_tells_shapes_that_the_graph_does_not():
    net = Net(lambda net, x: torch.cat([net.a(x).flatten(1), F.max_pool2d(net.b(x), 3).flatten(1)], 1), features=40)
    assert reasons(net)[0] == "its size after a flatten cannot be told; an example input would tell"
    before = {module: module.training for module in net.modules()}
    a, b, _ = channel_groups(net, torch.randn(2, 3, 3, 3))
    assert (a.reads, b.reads) == ((Slot("c.weight", 1, 9, 0),), (Slot("c.weight", 1, 1, 36),))
    assert before == {module: module.training for module in net.modules()}


def test_a_linear_layer_over_tokens_is_followed():
    net = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))
    assert channel_groups(net) == channel_groups(net, torch.randn(2, 5, 6))


def test_a_model_that_cannot_be_traced_is_an_input_error_of_one_line():
    class Chooses(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(fs.InputError, match=r"^channels of Chooses cannot be followed.*$"):
        channel_groups(Chooses())


def test_compiled_and_wrapped_models_have_the_groups_of_the_bare_one():
    net = fs.models.digitnet()
    assert channel_groups(torch.compile(net)) == channel_groups(net)


# -- against Torch-Pruning ------------------------------------------------------------------------------------------


def ours(model, example):
    """Each group that may go as the layers that it narrows, with the dimension."""
    groups = [group for group in channel_groups(model, example) if group.why_kept is None]
    return {
        frozenset(
            (slot.name.rpartition(".")[0], slot.dim if slot not in group.norms else 0)
            for slot in (*group.writes, *group.norms, *group.reads)
        )
        for group in groups
    }


def theirs(model, example):
    """The same from Torch-Pruning, which follows the gradients of a run; what narrows the model's output is left out."""
    pruning = pytest.importorskip("torch_pruning")
    graph = pruning.DependencyGraph().build_dependency(model, example)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    layers.popitem()
    found = set()
    for layer in layers.values():
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        narrowed = set()
        for dependency, _ in graph.get_pruning_group(layer, prune, list(range(len(layer.weight)))):
            name, module = dependency.target.name.partition(" ")[0], dependency.target.module
            if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)):
                reads = dependency.handler.__name__ == "prune_in_channels" and getattr(module, "groups", 1) == 1
                narrowed.add((name, int(reads and not isinstance(module, nn.modules.batchnorm._BatchNorm))))
        found.add(frozenset(narrowed))
    return found


# Torch-Pruning narrows the width of a ViT too, where ours keeps what its attention reads and writes.
@pytest.mark.parametrize("name", [name for name in IMAGE_MODELS if not name.startswith("vit")])
def test_groups_of_our_models_are_torch_prunings(name):
    model = fs.models.MODELS[name](num_classes=10)
    channels, size = fs.models.IMAGES[name][0], image_size(name)
    assert ours(model, None) == theirs(model.eval(), torch.randn(2, channels, size, size))


def comparable(kinds):
    """Whether a convolution reads every concatenation next.

    Where none does, Torch-Pruning 1.6.0 may ask a layer for channels beyond its last, and ours keeps the terms of a sum with a
    concatenation. What is removed from such nets is judged by what they compute, in ``test_shrinking.py``.
    """
    return all(after == "plain" for kind, after in zip(kinds, [*kinds[1:], "end"], strict=True) if kind == "cat")


@pytest.mark.parametrize("seed", [seed for seed in range(70) if comparable(RandomNet(seed).kinds)])
def test_groups_of_random_nets_are_torch_prunings(seed):
    torch.manual_seed(seed)
    model, example = RandomNet(seed).eval(), torch.randn(2, 2, 8, 8)
    assert ours(model, None) == theirs(model, example) == ours(model, example)

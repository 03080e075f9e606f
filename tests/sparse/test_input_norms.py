"""Wanda's score and masks against a plain form, row by row; what it sees of layers; and that scoring leaves no trace."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatsparse as fs
from flatsparse.sparse.input_norms import WeightTimesInput
from flatsparse.sparse.masks import Masks
from tests.helpers import batch, copied, image_batch, mlp, same, sgd, tiny_net, train_steps


class Conv1D(nn.Module):
    """The linear layer of transformers' GPT-2, which stores (inputs, outputs)."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x):
        return x @ self.weight


LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (8, 6)),
    "linear of sequences": (lambda: nn.Linear(6, 5), (2, 3, 6)),
    "linear of one": (lambda: nn.Linear(6, 5), (6,)),
    "conv1d of transformers": (lambda: Conv1D(5, 6), (2, 3, 6)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3), (2, 4, 5, 5)),
    "convolution of one": (lambda: nn.Conv2d(4, 6, 3), (4, 5, 5)),
    "groups": (lambda: nn.Conv1d(4, 6, 3, groups=2), (2, 4, 7)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), (2, 4, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3), (2, 4, 5, 5)),
    "transposed groups": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), (2, 4, 5)),
}


def connections(layer):
    """Each weight of a layer as (its flat index, its output, its input), by a plain reading of torch's layouts."""
    weight, groups = layer.weight, getattr(layer, "groups", 1)
    turned = isinstance(layer, (nn.modules.conv._ConvTransposeNd, Conv1D))
    for flat in range(weight.numel()):
        first, second, *_ = (int(i) for i in torch.unravel_index(torch.tensor(flat), weight.shape))
        if turned:
            group = first // (weight.shape[0] // groups)
            yield flat, group * weight.shape[1] + second, first
        else:
            group = first // (weight.shape[0] // groups)
            yield flat, first, group * weight.shape[1] + second


def ranked_plainly(layer, inputs):
    """Minus each weight's rank in its output's, of ``|w| · ‖x‖``, by sorting lists."""
    axis = -1 - len(layer.kernel_size) if hasattr(layer, "kernel_size") else -1
    features = torch.cat([x.movedim(axis, 0).reshape(x.shape[axis], -1) for x in inputs], dim=1)
    norms, rows = features.norm(dim=1).tolist(), {}
    flat = layer.weight.detach().abs().flatten().tolist()
    for index, output, source in connections(layer):
        rows.setdefault(output, []).append((-flat[index] * norms[source], index))
    ranks = torch.zeros(len(flat))
    for row in rows.values():
        for rank, (_, index) in enumerate(sorted(row)):
            ranks[index] = -rank
    return ranks.view_as(layer.weight), rows


@pytest.mark.parametrize("name", LAYERS)
def test_scores_are_ranks_within_each_outputs_weights(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make()
    inputs = [torch.randn(shape) * torch.rand(shape).mul_(3).exp() for _ in range(3)]
    scores = WeightTimesInput([(x, None) for x in inputs])(Masks.of(layer, layer.parameters()), layer)
    assert torch.equal(scores["weight"], ranked_plainly(layer, inputs)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_every_output_keeps_the_same_share(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    training = fs.sparsify(layer, sgd(layer.parameters()), "wanda", sparsity=0.5, steps=9, batches=[(x, None)])
    mask = training.masks["weight"].flatten()
    _, rows = ranked_plainly(layer, [x])  # the weights are masked by now, and keep their order
    kept = {output: sum(bool(mask[index]) for _, index in row) for output, row in rows.items()}
    assert max(kept.values()) - min(kept.values()) <= 1
    assert training.sparsity == pytest.approx(0.5, abs=0.02)


def test_the_norm_decides_and_not_the_weight_alone():
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    x = torch.tensor([[0.1, 0.1, 10.0, 10.0]])
    training = fs.sparsify(layer, sgd(layer.parameters()), "wanda", sparsity=0.5, steps=9, batches=[(x, None)])
    assert training.masks["weight"].tolist() == [[False, False, True, True]]


def test_a_pattern_takes_the_best_of_each_group():
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 5), torch.randn(20, 8)
    score = layer.weight.detach().abs() * x.norm(dim=0)
    training = fs.sparsify(
        layer, sgd(layer.parameters()), "wanda", sparsity=0.5, steps=9, batches=[(x, None)], pattern=(2, 4)
    )
    best = score.view(5, 2, 4).argsort(-1, descending=True)[..., :2]
    assert torch.equal(training.masks["weight"].view(5, 2, 4), torch.zeros(5, 2, 4).scatter_(-1, best, 1).bool())


def test_a_case_worked_by_hand():
    """W = [[4, 0, 1, -1], [3, -2, -3, 1]] and inputs of norms 1, 2, 8 and 3.

    The scores are [[4, 0, 8, 3], [3, 4, 24, 3]]; of each row two stay, of the tie at 3 none.
    """
    layer = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[4.0, 0.0, 1.0, -1.0], [3.0, -2.0, -3.0, 1.0]]))
    x = torch.tensor([[0.6, 0.0, 8.0, -1.0], [0.8, 2.0, 0.0, 2.0], [0.0, 0.0, 0.0, -2.0]])
    training = fs.sparsify(layer, sgd(layer.parameters()), "wanda", sparsity=0.5, steps=9, batches=[(x, None)])
    assert layer.weight.tolist() == [[4, 0, 1, 0], [0, -2, -3, 0]]
    assert training.masks["weight"].tolist() == [[True, False, True, False], [False, True, True, False]]


class Block(nn.Module):
    """Two layers that are called the other way round than they are defined in."""

    def __init__(self):
        super().__init__()
        self.second, self.first = nn.Linear(6, 4), nn.Linear(4, 6)

    def forward(self, x):
        return x + self.second(self.first(x).relu())


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.layers = nn.Linear(4, 4), nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.out(x)


def kept_rows(score, count):
    """The largest of each row, by sorting lists."""
    rows = [sorted(range(len(row)), key=lambda j, row=row: -row[j])[:count] for row in score.tolist()]
    return torch.tensor([[j in kept for j in range(score.shape[1])] for kept in rows])


@pytest.mark.parametrize("sequential", [True, False])
@torch.no_grad()
def test_blocks_are_scored_on_what_the_pruned_ones_before_them_give(sequential):
    torch.manual_seed(0)
    model = Blocks()
    batches = [(torch.randn(5, 4) * torch.tensor([1.0, 2.0, 4.0, 0.1]), None) for _ in range(3)]
    plain = copy.deepcopy(model)
    x = torch.cat([batch for batch, _ in batches])  # of the plain form: all at once, and a layer by hand
    masks = {}
    for index, block in enumerate(plain.layers):
        inside = block.first(x).relu()
        masks[f"layers.{index}.first.weight"] = kept_rows(block.first.weight.abs() * x.norm(dim=0), 2)
        masks[f"layers.{index}.second.weight"] = kept_rows(block.second.weight.abs() * inside.norm(dim=0), 3)
        if sequential:
            block.first.weight *= masks[f"layers.{index}.first.weight"]
            block.second.weight *= masks[f"layers.{index}.second.weight"]
        x = block(x)
    masks["out.weight"] = kept_rows(plain.out.weight.abs() * x.norm(dim=0), 2)
    options = {"batches": iter(batches), "sequential": sequential}
    training = fs.sparsify(model, sgd(model.parameters()), "wanda", sparsity=0.5, steps=9, **options)
    assert {name: mask.tolist() for name, mask in training.masks.items()} == {
        name: masks[name].tolist() for name in training.masks
    }


def test_the_order_matters_at_high_sparsity():
    model = [mlp(), mlp()]
    masks = [
        fs.sparsify(m, sgd(m.parameters()), "wanda", sparsity=0.9, steps=9, batches=[batch()], sequential=s).masks
        for m, s in zip(model, (True, False), strict=True)
    ]
    first, *later = masks[0]
    assert torch.equal(masks[0][first], masks[1][first])
    assert not all(torch.equal(masks[0][name], masks[1][name]) for name in later)


class Routed(nn.Module):
    """A second layer that is called no more once the first is pruned."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x)
        return self.second(x) if self.first.weight.all() else x


def test_a_layer_that_pruning_keeps_from_being_called_has_the_inputs_that_it_had():
    torch.manual_seed(0)
    model, x = Routed(), torch.randn(6, 4)
    score = model.second.weight.detach().abs() * model.first(x).detach().norm(dim=0)
    training = fs.sparsify(model, sgd(model.parameters()), "wanda", sparsity=0.5, steps=9, batches=[(x, None)])
    assert torch.equal(training.masks["second.weight"], kept_rows(score, 2))


def test_scoring_in_order_restores_the_weights_and_sees_a_pattern_and_a_frozen_outside():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    before, x = copied(layer.state_dict()), torch.randn(6, 4)
    WeightTimesInput([(x, None)], sparsity=0.5)(Masks.of(layer, layer.parameters()), layer)
    assert same(layer.state_dict(), before)
    inputs = layer[0](x)
    twins = {outside: copy.deepcopy(layer) for outside in ("zero", "frozen")}
    for outside, twin in twins.items():
        options = {"batches": [(x, None)], "pattern": (2, 4), "outside": outside}
        training = fs.sparsify(twin, sgd(twin.parameters()), "wanda", sparsity=0.5, steps=9, **options)
        seen = inputs if outside == "frozen" else twin[0](x)
        score = before["1.weight"].abs() * seen.detach().norm(dim=0)
        assert torch.equal(training.masks["1.weight"], kept_rows(score, 2))


def test_batches_of_any_form_and_a_weight_that_two_layers_share():
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model, x = nn.Sequential(first, second), torch.randn(6, 4)
    scores = WeightTimesInput([{"x": x}], lambda model, batch: model(batch["x"]).sum())
    found = scores(Masks.of(model, model.parameters()), model)
    inputs = [x, first(x).detach()]
    assert torch.equal(found["0.weight"], ranked_plainly(first, inputs)[0])


def test_scoring_leaves_no_trace():
    model = tiny_net()
    model[1].eval()
    before, modes, state = copied(model.state_dict()), [m.training for m in model.modules()], torch.get_rng_state()
    seen = []
    model.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled() or model.training))
    WeightTimesInput([image_batch(0)])(Masks.of(model, model.parameters()), model)
    assert seen == [False]
    assert same(model.state_dict(), before)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_true_weights_are_scored_within_a_window_and_training_goes_on():
    model = mlp()
    optimizer = fs.S2SAM(sgd(model.parameters()), rho=5.0).follow(model)
    train_steps(model, optimizer, 3)
    twin = copy.deepcopy(model)
    model(batch()[0])
    assert optimizer.is_perturbed
    training = fs.sparsify(model, optimizer, "wanda", sparsity=0.5, steps=9, batches=[batch()])
    for part in (twin[1], model[1]):
        part.reset_running_stats()
    masks = fs.sparsify(twin, sgd(twin.parameters()), "wanda", sparsity=0.5, steps=9, batches=[batch()]).masks
    assert torch.equal(masks["0.weight"], training.masks["0.weight"])
    train_steps(model, optimizer, 3)
    assert all(not p[~training.masks[n]].any() for n, p in model.named_parameters() if n in training.masks)


class Uncalled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.attention = nn.Linear(6, 6), nn.MultiheadAttention(6, 2)

    def forward(self, x):
        x = self.layer(x)
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batches": None}, "got no batches="),
        ({"batches": []}, "batches= holds nothing"),
        ({"batches": [torch.zeros(2, 6)]}, "give pairs"),
        ({"batches": [(torch.full((2, 6), torch.nan), None)]}, "are not finite"),
        ({"pattern": "block:2x1"}, "ranks each output's weights"),
        ({}, "the inputs of 'attention.in_proj_weight' were not seen"),
    ],
)
def test_what_cannot_be_scored_is_one_line(options, says):
    torch.manual_seed(0)
    model = Uncalled() if not options else nn.Linear(6, 6)
    before = copied(model.state_dict())
    choice = {"batches": [(torch.randn(2, 6), None)], **options}
    with pytest.raises(fs.InputError, match=says) as caught:
        fs.sparsify(model, sgd(model.parameters()), "wanda", sparsity=0.5, steps=9, **choice)
    assert "\n" not in str(caught.value)
    assert same(model.state_dict(), before)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_network_of_attention_is_scored_without_what_is_called_otherwise():
    model, x = Uncalled(), torch.randn(4, 6)
    training = fs.sparsify(
        model, sgd(model.parameters()), "wanda", sparsity=0.5, steps=9, batches=[(x, None)], exclude=["attention*"]
    )
    assert list(training.masks) == ["layer.weight"]
    F.mse_loss(model(x), x).backward()

"""SNIP's and GraSP's scores against their definitions, and that scoring leaves no trace."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import flatsparse as fs
from flatsparse.sparse.distributions import global_ranking
from flatsparse.sparse.masks import Masks
from flatsparse.sparse.saliency import GradientFlow, Sensitivity, balanced
from tests.helpers import copied, image_batch, same, sgd, tiny_net

SAMPLE = image_batch(0, size=40)
NAMES = {"snip": {}, "grasp": {"per_class": 4}}
methods = pytest.mark.parametrize("method", NAMES)


def mlp():
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 5))


def smooth_net():
    torch.manual_seed(4)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))
    return nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Tanh(), pool)


nets = pytest.mark.parametrize("net", [mlp, smooth_net])


def masks_of(model):
    return Masks.of(model, model.parameters())


def made(method, model=None, **options):
    model = model or tiny_net()
    chosen = {"batches": [SAMPLE], "loss_fn": F.cross_entropy, "sparsity": 0.9, "steps": 10, **NAMES[method], **options}
    return model, fs.sparsify(model, sgd(model.parameters()), method, **chosen)


@nets
def test_sensitivity_is_the_gradient_with_respect_to_a_mask_at_one(net):
    model = net().double()
    batches = [(x.double(), y) for x, y in (image_batch(1), image_batch(2))]
    scores = Sensitivity(batches, F.cross_entropy)(masks_of(model), model)
    c = {name: torch.ones_like(p, requires_grad=True) for name, p in model.named_parameters() if name in scores}
    weights = dict(model.named_parameters())

    def loss(x, y):
        return F.cross_entropy(functional_call(model, {n: c[n] * weights[n] for n in c}, (x,)), y)

    wanted = torch.autograd.grad(sum(loss(x, y) for x, y in batches) / 2, list(c.values()))
    for score, gradient in zip(scores.values(), wanted, strict=True):
        torch.testing.assert_close(score, gradient.abs())
    one = c[next(iter(c))].detach().clone().flatten()
    one[5] = 1 + 1e-6
    with torch.no_grad():
        first = next(iter(c))
        shifted = {**c, first: one.view_as(c[first])}
        moved, still = (
            sum(F.cross_entropy(functional_call(model, {n: m[n] * weights[n] for n in c}, (x,)), y) for x, y in batches)
            / 2
            for m in (shifted, c)
        )
    assert float(scores[first].flatten()[5]) == pytest.approx(abs(float(moved - still)) / 1e-6, rel=1e-3, abs=1e-8)


EVERY_OTHER = slice(None, None, 2), slice(1, None, 2)


def gradient_at(model, sample, parameters=None, parts=EVERY_OTHER):
    """The gradient of GraSP's loss over both halves, as one vector, at given weights."""
    weights = {n: p for n, p in model.named_parameters() if p.ndim > 1} if parameters is None else parameters
    x, y = sample
    loss = sum(F.cross_entropy(functional_call(model, weights, (x[part],)) / 200, y[part]) for part in parts)
    return torch.autograd.grad(loss, list(weights.values()), create_graph=True)


@nets
def test_gradient_flow_is_w_times_a_double_backward_and_finite_differences_agree(net):
    model = net().double()
    x, y = SAMPLE[0].double(), SAMPLE[1]
    scores = GradientFlow([(x, y)], F.cross_entropy, per_class=4)(masks_of(model), model)
    sample = balanced([(x, y)], 4)
    weights = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    g = gradient_at(model, sample)
    flow = [d.detach() for d in g]
    doubled = torch.autograd.grad(g, list(weights.values()), grad_outputs=flow)
    for score, w, product in zip(scores.values(), weights.values(), doubled, strict=True):
        torch.testing.assert_close(score, w.detach() * product)
    length = 1e-3 / float(torch.cat([d.flatten() for d in flow]).norm())
    ends = []
    for sign in (1, -1):
        there = {
            n: (w.detach() + sign * length * d).requires_grad_()
            for (n, w), d in zip(weights.items(), flow, strict=True)
        }
        ends.append(gradient_at(model, sample, there))
    for score, w, up, down in zip(scores.values(), weights.values(), *ends, strict=True):
        torch.testing.assert_close(score, w.detach() * (up - down).detach() / (2 * length), rtol=1e-3, atol=1e-12)


@methods
@pytest.mark.parametrize("seed", range(4))
def test_the_plain_form_chooses_the_same_masks(method, seed):
    model = tiny_net(seed)
    plain = {n: p for n, p in tiny_net(seed).named_parameters() if p.ndim > 1}
    net = tiny_net(seed)
    if method == "snip":
        loss = F.cross_entropy(functional_call(net, plain, (SAMPLE[0],)), SAMPLE[1])
        scores = [
            (w * g).abs() for w, g in zip(plain.values(), torch.autograd.grad(loss, list(plain.values())), strict=True)
        ]
    else:
        sample = balanced([SAMPLE], 4)
        g = gradient_at(net, sample, plain)
        along = sum((a * a.detach()).sum() for a in g)
        removed_first = [
            -w * h for w, h in zip(plain.values(), torch.autograd.grad(along, list(plain.values())), strict=True)
        ]
        scores = [-s / abs(sum(float(s.detach().sum()) for s in removed_first)) for s in removed_first]
    flat = torch.cat([s.detach().flatten() for s in scores])
    kept = torch.zeros(646, dtype=torch.bool)
    kept[flat.argsort(descending=True, stable=True)[: 646 - round(0.7 * 646)]] = True
    _, training = made(method, model, sparsity=0.7)
    assert torch.equal(torch.cat([m.flatten() for m in training.masks.values()]), kept)


@methods
def test_scoring_leaves_no_trace(method):
    model = tiny_net()
    model.append(nn.Dropout(0.5))
    model[1].eval()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before, random = copied(model.state_dict()), torch.get_rng_state()
    scores = {"snip": Sensitivity, "grasp": GradientFlow}[method]([SAMPLE], F.cross_entropy, **NAMES[method])
    with torch.no_grad():
        found = scores(masks_of(model), model)
    assert same(before, model.state_dict())
    assert torch.equal(random, torch.get_rng_state())
    assert [m.training for m in model.modules()] == [m is not model[1] for m in model.modules()]
    assert all((p.grad == 1).all() and p.requires_grad for p in model.parameters())
    assert not any(s.requires_grad for s in found.values())


@methods
def test_what_is_missing_is_said_with_the_call(method):
    model = tiny_net()
    before = copied(model.state_dict())
    for options, said in (
        ({"batches": None}, "got no batches=: call sparsify"),
        ({"loss_fn": None}, "got no loss_fn="),
        ({"batches": []}, "holds nothing"),
        ({"batches": SAMPLE}, "holds a Tensor"),
        ({"batches": [(SAMPLE[0] * torch.nan, SAMPLE[1])]}, "not finite"),
    ):
        with pytest.raises(fs.InputError, match=said):
            made(method, model, **options)
    assert same(before, model.state_dict())


def test_the_sample_of_grasp_can_be_split_in_the_middle_as_published():
    model = smooth_net().double()
    x, y = SAMPLE[0].double(), SAMPLE[1]
    plain, scores = (
        GradientFlow([(x, y)], F.cross_entropy, per_class=4, halves=halves)(masks_of(model), model)
        for halves in ("alternate", "middle")
    )
    g = gradient_at(model, balanced([(x, y)], 4), parts=(slice(10), slice(10, None)))  # the sorted classes
    weights = [p for p in model.parameters() if p.ndim > 1]
    doubled = torch.autograd.grad(g, weights, grad_outputs=[d.detach() for d in g])
    for name, w, product in zip(scores, weights, doubled, strict=True):
        torch.testing.assert_close(scores[name], w.detach() * product)
        assert not torch.allclose(scores[name], plain[name])
    with pytest.raises(fs.InputError, match="unknown halves= 'half'"):
        made("grasp", halves="half")


@methods
def test_an_emptied_layer_keeps_its_best_weight_and_is_named(method):
    model = tiny_net()
    with torch.no_grad():
        model[3].weight.zero_()
    with pytest.warns(UserWarning, match=r"without an active weight.*3\.weight"):
        _, training = made(method, model)
    assert int(training.masks["3.weight"].sum()) == 1
    assert sum(int(m.sum()) for m in training.masks.values()) == 646 - round(0.9 * 646)


def test_ranking_together_warns_of_nothing_when_no_layer_is_emptied(recwarn):
    global_ranking({"a": torch.arange(5.0), "b": torch.arange(5.0)}, 4)
    assert not recwarn


def test_a_sample_has_the_first_of_each_class_from_all_batches():
    y = torch.tensor([0, 0, 1, 0, 1, 1, 0, 1])
    x = torch.arange(8.0)
    taken, labels = balanced([(x[:3], y[:3]), (x[3:], y[3:])], 3)
    assert taken.tolist() == [0, 1, 3, 2, 4, 5]
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.warns(UserWarning, match="hold only 4"):
        assert len(balanced([(x, y)], 5)[0]) == 8
    with pytest.raises(fs.InputError, match="not class numbers"):
        balanced([(x, y.float())], 2)

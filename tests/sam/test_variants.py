"""Other directions, scales and schedules of ρ, and other ways to keep and show perturbed weights."""

from __future__ import annotations

import copy
import math
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import flatsparse as fs
from flatsparse.sam.directions import DIRECTIONS
from flatsparse.schedules import Cosine, InverseSqrt, Late, Linear
from tests.helpers import (
    adamw,
    backward,
    bases,
    batch,
    close,
    conv_net,
    gradients,
    loss_at,
    mlp,
    norm,
    s2sam,
    same,
    saved,
    sgd,
    shift,
    train_steps,
    weights,
)

pytestmark = pytest.mark.filterwarnings("error")

KEPT = {"pointers": {}, "in place": {"in_place": True}, "compact": {"compact": True}}
kept = pytest.mark.parametrize("how", KEPT)


def sparse(model, optimizer, method="rigl", sparsity=0.8, steps=12):
    return fs.sparsify(model, optimizer, method, sparsity=sparsity, steps=steps, every=3)


def perturbation(model, step):
    """What a training forward adds to the weights."""
    before = weights(model)
    loss_at(model, step)
    return shift(model, before)


# -- directions -------------------------------------------------------------------------------------------------------


@bases
def test_momentum_goes_down_the_base_s_own_momentum(base):
    model = mlp(norm=False)
    optimizer = s2sam(model, base, rho=0.5, direction="momentum")
    train_steps(model, optimizer, 3)
    key = "momentum_buffer" if base is sgd else "exp_avg"
    m = [optimizer.state[p][key] for p in model.parameters()]
    found = perturbation(model, 3)
    torch.testing.assert_close(found, [-0.5 * x / norm(m) for x in m], rtol=1e-4, atol=1e-6)


def test_momentum_needs_momentum():
    model = mlp()
    optimizer = s2sam(model, lambda p: torch.optim.SGD(p, lr=0.1), direction="momentum")
    backward(model)
    with pytest.raises(fs.InputError, match=r"\A.*momentum=0.9.*\Z"):
        optimizer.step()


def test_average_goes_up_a_running_average_of_gradients():
    model = mlp(norm=False)
    optimizer, expected = s2sam(model, rho=0.5, direction="average"), None
    for step in range(4):
        backward(model, step)
        g = gradients(model)
        expected = g if expected is None else [0.9 * a + 0.1 * x for a, x in zip(expected, g, strict=True)]
        optimizer.step()
        optimizer.zero_grad()
    found = perturbation(model, 4)
    torch.testing.assert_close(found, [0.5 * x / norm(expected) for x in expected], rtol=1e-3, atol=1e-6)


def test_less_average_goes_along_what_is_left_of_a_gradient_without_those_before():
    model = mlp(norm=False)
    optimizer, mean, expected = s2sam(model, rho=0.5, direction="less_average"), None, None
    for step in range(4):
        backward(model, step)
        g = gradients(model)
        expected = g if mean is None else [x - m for x, m in zip(g, mean, strict=True)]
        mean = g if mean is None else [0.9 * m + 0.1 * x for m, x in zip(mean, g, strict=True)]
        optimizer.step()
        optimizer.zero_grad()
        found = perturbation(model, step + 1)
        optimizer.eval()
        torch.testing.assert_close(found, [0.5 * x / norm(expected) for x in expected], rtol=1e-3, atol=1e-6)


def gradient_of_masks(model, step):
    """Of the multiplicative masks m = 1 of a model's matrices, at ``m w``."""
    named = dict(model.named_parameters())
    masks = {name: torch.ones_like(p, requires_grad=True) for name, p in named.items() if p.ndim > 1}
    masked = {name: p.detach() * masks[name] if name in masks else p.detach() for name, p in named.items()}
    inputs, targets = batch(step)
    loss = nn.functional.cross_entropy(torch.func.functional_call(model, masked, (inputs,)), targets)
    return dict(zip(masks, torch.autograd.grad(loss, list(masks.values())), strict=True))


def test_mask_moves_weights_as_masks_do_that_move_along_their_gradient():
    model = mlp(norm=False)
    optimizer = s2sam(model, lambda p: torch.optim.SGD(p, lr=0.0), rho=0.5, direction="mask")  # so that w stays
    of_masks = gradient_of_masks(model, 0)
    backward(model)
    optimizer.step()
    before = dict(zip(dict(model.named_parameters()), weights(model), strict=True))
    moved = {name: before[name] * g for name, g in of_masks.items()}  # w δ, up to the length of δ
    expected = [0.5 * moved[name] / norm(moved.values()) if name in moved else 0 * w for name, w in before.items()]
    found = perturbation(model, 1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    assert norm(found) == close(0.5)


def test_mask_is_asam_without_eta_but_for_the_length_and_what_has_no_masks():
    found = []
    for options in ({"direction": "mask"}, {"adaptive": True, "eta": 0.0}):
        model = mlp(norm=False)
        optimizer = s2sam(model, rho=0.5, **options)
        backward(model)
        optimizer.step()
        found.append(torch.cat([e.flatten() for e in perturbation(model, 1) if e.ndim > 1]))
    assert torch.cosine_similarity(*found, dim=0) == pytest.approx(1, abs=1e-5)


def test_mask_needs_something_with_masks():
    model = mlp(norm=False)
    optimizer = fs.S2SAM(sgd([p for p in model.parameters() if p.ndim == 1]), direction="mask")
    backward(model)
    with pytest.raises(fs.InputError, match=r"\Adirection 'mask' perturbs the masks.*\Z"):
        optimizer.step()


def asam(w, g, rho, eta=0.01):
    """Kwon et al. 2021 in plain form."""
    scale = [x.abs() + eta for x in w]
    length = norm([t * x for t, x in zip(scale, g, strict=True)])
    return [rho * t * t * x / length for t, x in zip(scale, g, strict=True)]


def test_adaptive_s2sam_scales_each_weight_s_share_by_the_weight():
    model = mlp(norm=False)
    optimizer = s2sam(model, rho=0.5, adaptive=True)
    backward(model)
    g = gradients(model)
    optimizer.step()
    found = perturbation(model, 1)
    torch.testing.assert_close(found, asam(weights_of_w(optimizer, model), g, 0.5), rtol=1e-4, atol=1e-6)


def weights_of_w(optimizer, model):
    optimizer.eval()
    return weights(model)


def test_adaptive_sam_is_asam():
    model = mlp(norm=False)
    optimizer = fs.SAM(sgd(model.parameters()), rho=0.5, adaptive=True)
    backward(model)
    w, g = weights(model), gradients(model)
    with optimizer.perturbed():
        torch.testing.assert_close(shift(model, w), asam(w, g, 0.5), rtol=1e-4, atol=1e-6)
    assert same(weights(model), w)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    "options", [{}, {"adaptive": True}, {"compact": True}, {"compact": True, "adaptive": True}], ids=str
)
def test_every_variant_stays_on_live_weights_and_goes_on_after_a_resume(direction, options):
    def make(seed=0):
        model = conv_net(seed)
        optimizer = s2sam(model, rho=0.5, direction=direction, **options)
        return model, optimizer, sparse(model, optimizer)

    model, optimizer, training = make()
    train_steps(model, optimizer, 5)
    other, resumed, its = make(1)
    other.load_state_dict(saved(model.state_dict()))
    resumed.load_state_dict(saved(optimizer.state_dict()))
    its.load_state_dict(saved(training.state_dict()))
    for step in range(5, 12):
        before = weights(model)
        backward(model, step)
        backward(other, step)
        moved = dict(zip((name for name, _ in model.named_parameters()), shift(model, before), strict=True))
        assert norm(moved.values()) > 0
        assert all((moved[name][~mask] == 0).all() for name, mask in training.masks.items())
        if not options.get("adaptive"):
            assert norm(moved.values()) == close(0.5)
        for one in (optimizer, resumed):
            one.step()
            one.zero_grad()
    assert same(weights(model), weights(other))
    assert same(optimizer.state_dict(), resumed.state_dict())


def test_a_net_loaded_under_an_adaptive_optimizer_is_not_perturbed_to_the_old_weights():
    model, other = mlp(), mlp(1)
    optimizer = s2sam(model, rho=0.5, adaptive=True)
    train_steps(model, optimizer, 2)
    with torch.no_grad():
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            p.copy_(100 * q)
    assert norm(perturbation(model, 0)) == 0


# -- ρ over time ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [InverseSqrt(0.5), Linear(0.5, 0.0, until=4), Cosine(0.2, 0.6, until=5)])
@pytest.mark.parametrize("kind", [fs.S2SAM, fs.SAM])
def test_a_schedule_gives_each_step_its_own_radius(schedule, kind):
    model = mlp()
    optimizer = kind(sgd(model.parameters()), rho=schedule).follow(model)
    lengths = []
    for step in range(1, 5):
        backward(model, step)
        before = weights(model)
        with optimizer.perturbed():
            lengths.append(norm(shift(model, before if kind is fs.SAM else weights_inside(optimizer, model))))
            optimizer.zero_grad()
            backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
    first = 1 if kind is fs.SAM else 2  # the first step of S²-SAM is unperturbed
    assert lengths[first - 1 :] == [close(schedule(step)) for step in range(first, 5)]


@bases
@pytest.mark.parametrize("kind", [fs.S2SAM, fs.SAM])
def test_a_late_radius_is_the_base_bit_for_bit_until_then_and_costs_it_nothing(base, kind):
    plain, ours, passes = mlp(), mlp(), []
    reference, optimizer = base(plain.parameters()), kind(base(ours.parameters()), rho=Late(0.5, after=3)).follow(ours)
    for step in range(6):
        passes.append(0)

        def closure(step=step):
            optimizer.zero_grad()
            passes[-1] += 1
            return backward(ours, step)

        optimizer.step(closure)
        train_steps(plain, reference, 1, start=step)
        assert same(plain.state_dict(), ours.state_dict()) == (step < 3)
    assert passes == [1, 1, 1, *[2 if kind is fs.SAM else 1] * 3]


def weights_inside(optimizer, model):
    true = optimizer.true_weights()
    return [true.get(p, p.detach()) for p in model.parameters()]


def test_a_schedule_leaves_groups_with_a_radius_of_their_own_alone_and_goes_on_after_a_resume():
    def make():
        model = mlp()
        groups = [
            {"params": model[0].parameters(), "rho": 0.25},
            {"params": [*model[1].parameters(), *model[3].parameters()]},
        ]
        return model, fs.S2SAM(sgd(groups), rho=InverseSqrt(0.5)).follow(model)

    model, optimizer = make()
    train_steps(model, optimizer, 3)
    other, resumed = make()
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(saved(optimizer.state_dict()))
    for one, its in ((optimizer, model), (resumed, other)):
        assert [group["rho"] for group in one.param_groups] == [0.25, 0.25]
        train_steps(its, one, 6, start=3)
        assert [group["rho"] for group in one.param_groups] == [0.25, 0.5 / math.sqrt(10)]
    assert same(weights(model), weights(other))


# -- ways to keep and show u ------------------------------------------------------------------------------------------


@bases
@pytest.mark.parametrize("method", ["static", "rigl", "gmp"])
@pytest.mark.parametrize("how", ["in place", "compact"])
def test_how_perturbed_weights_are_kept_changes_nothing(how, method, base):
    ends = []
    for options in (KEPT["pointers"], KEPT[how]):
        model = conv_net()
        optimizer = s2sam(model, base, rho=0.5, **options)
        options = {} if method == "static" else {"every": 3}
        training = fs.sparsify(model, optimizer, method, sparsity=0.7, steps=12, **options)
        for step in range(12):
            loss = loss_at(model, step)
            with torch.no_grad():  # an evaluation between forward and backward
                model(batch(step)[0])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append((weights(model), [m.clone() for m in training.masks.values()]))
    assert same(*ends)


@kept
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_restoration_gives_w_back_bit_for_bit(how, layout):
    model = conv_net().to(memory_format=layout)
    optimizer = s2sam(model, rho=0.5, **KEPT[how])
    sparse(model, optimizer)
    train_steps(model, optimizer, 4)
    w, state, own = weights(model), copy.deepcopy(optimizer.state_dict()), saved(model.state_dict())
    loss = loss_at(model, 4)
    assert optimizer.is_perturbed
    assert norm(shift(model, w)) == close(0.5)
    assert same(saved(optimizer.state_dict()), saved(state))
    inside = model.state_dict()
    assert all(same(inside[name], value) for name, value in own.items() if "running" not in name and "num_" not in name)
    loss.backward()
    optimizer.eval()
    assert same(weights(model), w)
    assert same(saved(optimizer.state_dict()), saved(state))


@kept
def test_a_copy_made_while_perturbed_can_restore_its_own_w(how):
    model = conv_net()
    optimizer = s2sam(model, rho=0.5, **KEPT[how])
    training = sparse(model, optimizer)
    train_steps(model, optimizer, 4)
    w = weights(model)
    loss_at(model, 4)
    twin, its = copy.deepcopy((model, optimizer))
    its.eval()
    assert same(weights(twin), w)
    assert optimizer.is_perturbed
    assert training.sparsity > 0


def test_masks_that_move_leave_no_old_compact_values():
    model = conv_net()
    optimizer = s2sam(model, rho=0.5, compact=True)
    training = sparse(model, optimizer)
    train_steps(model, optimizer, 4)
    state = training.state_dict()
    state["masks"] = {name: ~mask for name, mask in state["masks"].items()}
    training.load_state_dict(state)
    moved = perturbation(model, 4)
    assert all((m[p == 0] == 0).all() for m, p in zip(moved, model.parameters(), strict=True) if p.dim() > 1)


def test_compact_cannot_perturb_dead_weights():
    with pytest.raises(fs.InputError, match=r"\A.*active weights only.*\Z"):
        fs.S2SAM(sgd(mlp().parameters()), compact=True, mask_perturbation=False)


# -- what it costs ----------------------------------------------------------------------------------------------------


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside it take at once."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.seen:
                inputs = {
                    t.untyped_storage()._cdata
                    for t in torch.utils._pytree.tree_leaves((args, kwargs))
                    if isinstance(t, torch.Tensor)
                }
                if storage._cdata in inputs:
                    continue
                self.seen.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
                self.most = max(self.most, self.now)
        return out

    def _free(self, key, size):
        self.seen.discard(key)
        self.now -= size


def bytes_kept(optimizer):
    return sum(
        t.numel() * t.element_size() for entry in optimizer.state.values() for t in entry.values() if torch.is_tensor(t)
    )


@pytest.mark.parametrize(
    ("options", "sparsity", "most"),
    [
        ({}, None, 1.0),
        ({"adaptive": True}, None, 1.0),
        ({}, 0.9, 1.0),
        ({"compact": True}, 0.9, 0.25),
        ({"mask_perturbation": False}, 0.9, 1.0),
    ],
    ids=str,
)
def test_the_extra_state_is_one_buffer_or_a_quarter_of_one(options, sparsity, most):
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(20)])
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    optimizer = s2sam(model, rho=0.1, **options)
    training = None if sparsity is None else fs.sparsify(model, optimizer, "static", sparsity=sparsity, steps=9)
    peaks = []
    for _ in range(3):
        model(torch.ones(2, 64)).square().sum().backward()
        with Peak() as peak:
            optimizer.step()
        peaks.append(peak.most)
        optimizer.zero_grad()
    momentum = sum(entry["momentum_buffer"].nbytes for entry in optimizer.state.values())
    places = (
        0 if training is None else sum(w._indices.nbytes for w in training.masked_weights if w._indices is not None)
    )
    assert (bytes_kept(optimizer) - momentum + places) / size <= most
    assert peaks[-1] / size < 0.15  # a step makes nothing but scraps: the buffer is there


class NoWaiting(TorchDispatchMode):
    """Refuses whatever makes a host wait for its device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("base", [sgd, lambda p: adamw(p, capturable=False, fused=True)], ids=["sgd", "fused adamw"])
@pytest.mark.parametrize(
    "options", [{}, {"compact": True}, {"in_place": True}, {"adaptive": True}, {"rho": InverseSqrt(0.1)}], ids=str
)
def test_a_step_between_updates_never_waits_for_the_device(options, base):
    model = conv_net()
    optimizer = s2sam(model, base, **options)
    sparse(model, optimizer)
    train_steps(model, optimizer, 3)  # the third rewires
    with NoWaiting():
        train_steps(model, optimizer, 2, start=3)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoWaiting():
        float(loss_at(model))

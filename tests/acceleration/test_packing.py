"""Packed weights take no room for zeros, and are the whole ones to everybody who saves, loads, copies or calls them."""

import copy
import gc
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatsparse as fs
from tests.acceleration.nets import always_sparse, compiled, net  # noqa: F401
from tests.helpers import adamw, image_batch, image_loss, same, saved, sgd

pytestmark = pytest.mark.usefixtures("compiled", "always_sparse")

BASES = {
    "sgd": sgd,
    "adamw": adamw,
    "rprop": lambda parameters: torch.optim.Rprop(parameters, lr=1e-3),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-2, initial_accumulator_value=0.1),
}
SHARPNESS = {"none": lambda base: base, "s2sam": lambda base: fs.S2SAM(base, rho=0.1)}
KINDS = {
    **SHARPNESS,
    "mask": lambda base: fs.S2SAM(base, rho=0.1, direction="mask"),
    "less average": lambda base: fs.S2SAM(base, rho=0.1, direction="less_average"),
    "budget": lambda base: fs.S2SAM(base, rho=0.1, budget=0.05),
}
EVERY = 4
LINEAR = ["7.weight", "9.weight"]


class Pair:
    """A model that is trained packed, and its twin that is trained whole."""

    def __init__(self, base=sgd, sharpness="s2sam", method="rigl", **options):
        options = {
            "sparsity": 0.9,
            "distribution": "uniform",
            "steps": 40,
            **({"every": EVERY} if method == "rigl" else {}),
            **options,
        }
        self.models, self.optimizers, self.trainings = [], [], []
        for packed in (True, False):
            model = net()
            optimizer = KINDS[sharpness](base(model.parameters()))
            training = fs.sparsify(model, optimizer, method, **options)
            self.handle = fs.accelerate(model, training, packed=packed)
            for values, one in ((self.models, model), (self.optimizers, optimizer), (self.trainings, training)):
                values.append(one)
        self.taken = 0

    def step(self, count=1):
        for _ in range(count):
            self.taken += 1
            for model, optimizer in zip(self.models, self.optimizers, strict=True):
                image_loss(model, self.taken).backward()
                optimizer.step()
                optimizer.zero_grad()

    def agree(self):
        states = [
            [model.state_dict(), saved(optimizer.state_dict())]
            for model, optimizer in zip(self.models, self.optimizers, strict=True)
        ]
        for a, b in zip(*map(_tensors, states), strict=True):
            assert a.shape == b.shape
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def _tensors(state):
    if isinstance(state, torch.Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return list(itertools.chain(*map(_tensors, parts)))


def is_packed(model, training):
    """The names of the weights that hold no zeros."""
    return [n for n, p in model.named_parameters() if n in training.masks and p.ndim > training.masks[n].ndim]


@pytest.mark.parametrize("sharpness", SHARPNESS)
@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_packed_and_whole_weights_train_alike_and_save_the_same(base, sharpness):
    pair = Pair(base, sharpness)
    for _ in range(3 * EVERY):
        pair.step()
        pair.agree()
        due = bool(pair.trainings[0].due(pair.taken + 1))
        packed = is_packed(pair.models[0], pair.trainings[0])
        # Steps that S2SAM inspects run convolutions densely, and those stay as they are.
        whole = [] if sharpness == "none" else ["0.weight", "3.weight"]
        assert not packed if due else set(pair.trainings[0].masks) - set(packed) <= set(whole)
    assert not is_packed(pair.models[1], pair.trainings[1])


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - SHARPNESS))
def test_other_perturbations_are_the_same_packed(kind):
    pair = Pair(sgd, kind)
    for _ in range(3 * EVERY):
        pair.step()
        pair.agree()
        assert pair.trainings[0].due(pair.taken + 1) or is_packed(pair.models[0], pair.trainings[0])


@pytest.mark.parametrize("base", [sgd, adamw])
def test_what_is_kept_of_packed_weights_is_as_small_as_they_are(base):
    pair = Pair(base)
    pair.step(2)
    kept = []
    for model, optimizer, training in zip(pair.models, pair.optimizers, pair.trainings, strict=True):
        image_loss(model, 9).backward()
        entries = [p for n, p in model.named_parameters() if n in training.masks]
        state = [t for p in entries for t in optimizer.state[p].values() if t.numel() > 1]
        kept.append(sum(t.nbytes for p in entries for t in (p, p.grad)) + sum(t.nbytes for t in state))
    assert kept[0] <= kept[1] / 4


def test_a_window_of_perturbed_weights_is_left_as_it_is_by_saving_and_copying():
    pair = Pair()
    pair.step(2)
    wanted = pair.models[1].state_dict()
    gradients, losses = [], [image_loss(model, 7) for model in pair.models]
    seen = [model.state_dict() for model in pair.models]
    copies = [copy.deepcopy(model) for model in pair.models]
    pickle.loads(pickle.dumps(pair.models[0]))
    assert is_packed(pair.models[0], pair.trainings[0])
    for name, value in seen[0].items():
        torch.testing.assert_close(value, seen[1][name])
        torch.testing.assert_close(copies[0].state_dict()[name], copies[1].state_dict()[name])
        torch.testing.assert_close(seen[1][name], wanted[name]) if "running" not in name and "num" not in name else None
    assert not same(copies[1].state_dict()["7.weight"], seen[1]["7.weight"])  # w + e, and w
    for loss, model, training in zip(losses, pair.models, pair.trainings, strict=True):
        loss.backward()
        gradients.append(
            [training.masked_weights[0].whole(model[0].weight.grad), *[p.grad for p in model[-1].parameters()]]
        )
    torch.testing.assert_close(gradients[0][0], gradients[1][0], rtol=1e-3, atol=1e-6)
    for optimizer in pair.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    pair.step(EVERY)
    pair.agree()


def test_states_load_into_packed_and_whole_models_at_any_moment():
    pair = Pair()
    pair.step(EVERY + 1)
    states = [
        saved([model.state_dict(), o.state_dict()]) for model, o in zip(pair.models, pair.optimizers, strict=True)
    ]
    pair.step(2)
    for model, optimizer, (weights, state) in zip(pair.models, pair.optimizers, reversed(states), strict=True):
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
    pair.agree()
    pair.taken = EVERY + 1
    pair.step(EVERY)
    assert is_packed(pair.models[0], pair.trainings[0])
    pair.agree()


def test_copies_of_model_and_optimizer_still_belong_together():
    pair = Pair(sharpness="none")
    pair.step(2)
    model, optimizer = copy.deepcopy((pair.models[0], pair.optimizers[0]))
    before = model[7].weight.detach().clone()
    image_loss(model, 3).backward()
    optimizer.step()
    assert model[7].weight.ndim == 2
    assert not same(before, model[7].weight)
    pair.step(2)
    pair.agree()


def test_a_loss_that_is_still_held_does_not_remember_the_whole_weight():
    pair = Pair(sharpness="none")
    held = []
    for step in range(1, 2 * EVERY + 2):
        for model, optimizer in zip(pair.models, pair.optimizers, strict=True):
            held.append(image_loss(model, step))
            held[-1].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    pair.agree()


@pytest.mark.filterwarnings("ignore:accelerated layers run densely")
def test_packed_layers_compute_what_kernels_do_not():
    pair = Pair()
    pair.step(EVERY)
    x, targets = image_batch(0)
    plain = copy.deepcopy(pair.models[0]).eval()
    pair.step()
    ours = pair.models[0].eval()
    plain.load_state_dict(ours.state_dict())
    assert is_packed(ours, pair.trainings[0])
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x))
        torch.testing.assert_close(ours[7:](torch.ones(1, 32)), plain[7:](torch.ones(1, 32)))
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(ours(x), plain(x))
    weights = {name: p.detach() for name, p in ours.named_parameters()}

    def loss(weights, model):
        return F.cross_entropy(torch.func.functional_call(model, weights, (x,)), targets)

    packed = torch.func.grad(loss)(weights, ours)
    whole = torch.func.grad(loss)({name: p.detach() for name, p in plain.named_parameters()}, plain)
    for w in pair.trainings[0].masked_weights:
        assert packed[w.name].shape == w.weight.shape
        torch.testing.assert_close(w.whole(packed[w.name]), whole[w.name] * w.mask, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(torch.func.functional_call(ours, dict(plain.named_parameters()), (x,)), plain(x))
    assert same(ours.double()(x.double()), plain.double()(x.double()))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(32, 32), nn.Linear(32, 32)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(self.one(x))


def trained(model, optimizer, **options):
    training = fs.sparsify(model, optimizer, "static", sparsity=0.8, steps=9, **options)
    fs.accelerate(model, training)
    for _ in range(2):
        model(torch.randn(4, 5, 32)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return is_packed(model, training)


def test_weights_that_something_else_reads_stay_whole():
    tied = Tied()
    assert trained(tied, sgd(tied.parameters())) == []
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    assert trained(layer, sgd(layer.parameters())) == []
    with torch.no_grad():
        layer.eval()(torch.randn(2, 5, 32))


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda base: fs.S2SAM(base, compact=True),
        lambda base: fs.S2SAM(base, direction="random"),
        lambda base: fs.S2SAM(base, mask_perturbation=False),
    ],
)
@pytest.mark.filterwarnings("ignore:accelerated layers run densely")
def test_optimizers_that_need_whole_weights_get_them(wrapped):
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    assert trained(model, wrapped(sgd(model.parameters()))) == []


def test_optimizers_that_look_at_shapes_get_whole_weights():
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.ReLU(), nn.Linear(32, 32, bias=False))
    assert trained(model, torch.optim.Muon(model.parameters(), lr=1e-3)) == []
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.ReLU(), nn.Linear(32, 32, bias=False))
    assert trained(model, sgd(model.parameters())) == ["0.weight", "2.weight"]


@pytest.mark.parametrize("end", ["unpack", "restore", "detach"])
def test_weights_are_whole_again_when_they_are_asked_to_be(end):
    pair = Pair()
    pair.step(2)
    model, training = pair.models[0], pair.trainings[0]
    image_loss(model, 3)  # now they hold w + e
    {"unpack": training.unpack, "restore": lambda: None, "detach": training.detach}[end]()
    if end == "restore":
        pair.handle.restore()  # of the twin, which is whole: nothing changes here
        assert is_packed(model, training)
        return
    assert not is_packed(model, training)
    pair.optimizers[0].eval()
    assert same(model[7].weight[~training.masks["7.weight"]], torch.zeros(int((~training.masks["7.weight"]).sum())))
    wanted = pair.models[1].state_dict()["7.weight"]
    torch.testing.assert_close(model[7].weight.detach(), wanted)


def test_frozen_weights_and_reports_are_as_before():
    pair = Pair()
    pair.step(2)
    assert is_packed(pair.models[0], pair.trainings[0])
    reports = [training.report() for training in pair.trainings]
    assert reports[0] == reports[1]
    assert pair.trainings[0].sparsity == pair.trainings[1].sparsity
    for model in pair.models:
        model[7].weight.requires_grad_(False)
    pair.step(EVERY)
    pair.agree()


@pytest.mark.parametrize("unpacks", [copy.deepcopy, lambda model: model.load_state_dict(saved(model.state_dict()))])
@pytest.mark.parametrize("sharpness", SHARPNESS)
def test_weights_that_are_unpacked_in_inference_mode_are_trained_on(sharpness, unpacks):
    pair = Pair(sharpness=sharpness)
    pair.step(2)
    with torch.inference_mode():
        for model in pair.models:
            unpacks(model)
    pair.step(EVERY)
    pair.agree()


@pytest.mark.parametrize("name", ["7.weight", "9.weight"])
def test_perturbed_weights_that_no_longer_fit_are_dropped_though_others_are_unpacked(name):
    pair = Pair()
    pair.step(2)
    for model, training in zip(pair.models, pair.trainings, strict=True):
        with torch.no_grad():
            dict(model.named_parameters())[name].mul_(0.5)
        training.unpack()
    pair.step(EVERY)
    pair.agree()


def test_packed_layers_hold_no_memory_for_a_whole_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(53, 47), nn.ReLU(), nn.Linear(47, 3))
    optimizer = sgd(model.parameters())
    fs.accelerate(model, fs.sparsify(model, optimizer, "static", sparsity=0.9, steps=9))
    for _ in range(3):
        model(torch.randn(4, 53)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    gc.collect()
    held = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == (47, 53) and t.dtype is torch.float32]
    assert not held


@pytest.mark.filterwarnings("ignore:the masks came with the optimizer's state")
def test_masks_that_come_without_the_age_of_their_weights_correct_no_others():
    pair = Pair(adamw, "none")
    pair.step(EVERY + 2)
    states = [
        saved([model.state_dict(), o.state_dict()]) for model, o in zip(pair.models, pair.optimizers, strict=True)
    ]
    pair.step(EVERY - 1)  # now others have grown
    for model, optimizer, (weights, state) in zip(pair.models, pair.optimizers, states, strict=True):
        model.load_state_dict(weights)
        optimizer.load_state_dict({k: v for k, v in state.items() if k != "sparse_training"})
    pair.step(2)
    assert is_packed(pair.models[0], pair.trainings[0]) == []  # they were, in the second step
    pair.agree()


def test_an_accelerated_model_is_not_made_sparse_by_another_training():
    pair = Pair()
    pair.step(2)
    model = pair.models[0]
    with pytest.raises(fs.InputError, match="accelerated for another training"):
        fs.sparsify(model, sgd(model.parameters()), "static", sparsity=0.9, steps=9)


@pytest.mark.parametrize(
    "what", [lambda model, training: copy.deepcopy(model), lambda model, training: training.unpack()]
)
@pytest.mark.parametrize("make", [net, lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))], ids=["net", "head"])
def test_a_gradient_whose_weight_was_unpacked_meanwhile_is_an_error(make, what):
    model = make()
    optimizer = sgd(model.parameters())
    # At 90 % the head has as many active weights as columns, so that torch would broadcast.
    training = fs.sparsify(model, optimizer, "static", sparsity=0.9, distribution="uniform", steps=9)
    fs.accelerate(model, training)
    for _ in range(2):
        loss = model(torch.randn(3, 1, 8, 8)).square().mean()
        if is_packed(model, training):
            what(model, training)
            with pytest.raises(RuntimeError, match="between a forward pass and its backward pass"):
                loss.backward()
            return
        loss.backward()
        optimizer.step()
    pytest.fail("nothing was packed")


def test_packed_entries_are_not_taken_for_whole_ones_or_for_those_of_another_mask():
    model = nn.Sequential(nn.Linear(64, 10))  # as many active entries as columns
    optimizer = sgd(model.parameters())
    training = fs.sparsify(model, optimizer, "rigl", sparsity=0.9, steps=40, every=EVERY, layers="all")
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    fs.accelerate(model, training)
    own, failed = None, 0
    for step in range(1, 3 * EVERY):
        model(torch.randn(8, 64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if is_packed(model, training):
            assert model[0].weight.numel() == 64
            with pytest.raises(RuntimeError, match=r"size of tensor|same size|output with shape"):
                average.update_parameters(model)
        if step % EVERY == 1:
            if own is None:
                own = model[0].weight.detach().clone()
                continue
            with pytest.raises(RuntimeError, match=r"doesn't match|must match"):
                own.lerp_(model[0].weight.detach(), 0.1)
            failed += 1
    assert failed == 2  # once all dimensions had their turn, the first would fit again

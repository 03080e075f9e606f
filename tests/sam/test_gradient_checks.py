"""Whatever a loop does: each gradient is taken at w + e, or the user is told why it is not."""

import copy
import ctypes
import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

import flatsparse as fs
from flatsparse.sam.addresses import address_holder
from flatsparse.sam.gradient_checks import is_inspected
from tests.helpers import batch, gradients, loss_at, mlp, s2sam, same, sgd, train_steps, weights


class Task(nn.Module):
    """A net inside a module that is never called itself, as a LightningModule's is."""

    def __init__(self, depth=1):
        super().__init__()
        self.net = mlp()
        for _ in range(depth - 1):
            self.net = nn.ModuleList([self.net])

    def inner(self):
        net = self.net
        while isinstance(net, nn.ModuleList):
            net = net[0]
        return net


def reference(micro_batches=1, steps=8):
    """The loop that does all as it should."""
    model = mlp()
    optimizer = s2sam(model, sgd, rho=0.5)
    for step in range(steps):
        for part in range(micro_batches):
            loss_at(model, 10 * step + part).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_the_steps_that_are_inspected_are_few_and_the_first_perturbed_one_is_among_them():
    assert [n for n in range(1, 70) if is_inspected(n)] == [2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.filterwarnings("error")
def test_a_part_that_is_called_by_itself_is_perturbed_in_every_micro_batch(depth, micro_batches):
    task = Task(depth)
    optimizer = fs.S2SAM(sgd(task.parameters()), rho=0.5).follow(task)
    for step in range(8):
        for part in range(micro_batches):
            loss_at(task.inner(), 10 * step + part).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert same(weights(task), weights(reference(micro_batches)))


@pytest.mark.filterwarnings("error")
def test_a_method_called_before_the_model_is_part_of_the_perturbed_forward():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(6, 16), nn.ReLU()), nn.Linear(16, 3)

        def forward(self, features):
            return self.head(features)

    def train(wrap):
        torch.manual_seed(0)
        model = Two()
        optimizer = fs.S2SAM(sgd(model.parameters()), rho=0.5).follow(model)
        for step in range(6):
            inputs, targets = batch(step)
            with optimizer.perturbed() if wrap else torch.enable_grad():
                F.cross_entropy(model(model.body(inputs)), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    assert same(weights(train(wrap=False)), weights(train(wrap=True)))


def functional(model, optimizer, step):
    inputs, targets = batch(step)
    found = grad(lambda p: F.cross_entropy(functional_call(model, p, (inputs,)), targets))(
        {name: p.detach() for name, p in model.named_parameters()}
    )
    for name, p in model.named_parameters():
        p.grad = found[name]


def per_sample(model, optimizer, step):
    inputs, targets = batch(step)
    loss = lambda p, x, y: F.cross_entropy(functional_call(model, p, (x[None],)), y[None])  # noqa: E731
    each = vmap(grad(loss), in_dims=(None, 0, 0))({n: p.detach() for n, p in model.named_parameters()}, inputs, targets)
    for name, p in model.named_parameters():
        p.grad = each[name].mean(0)


def reentrant(model, optimizer, step):
    inputs, targets = batch(step)
    F.cross_entropy(checkpoint(model, inputs.requires_grad_(), use_reentrant=True), targets).backward()


def evaluation_between(model, optimizer, step):
    loss = loss_at(model, step)
    model.eval()(batch(step)[0])
    model.train()
    loss.backward()


def eval_between(model, optimizer, step):
    loss = loss_at(model, step)
    optimizer.eval()
    loss.backward()


def load_of_a_part_between(model, optimizer, step):
    loss = loss_at(model, step)
    model[0].load_state_dict(copy.deepcopy(model[0].state_dict()))
    loss.backward()


def backward_outside(model, optimizer, step):
    with optimizer.perturbed():
        loss = loss_at(model, step)
    loss.backward()


def half_in_perturbed(model, optimizer, step):
    optimizer.unfollow()
    loss_at(model, step).backward()
    with optimizer.perturbed():
        loss_at(model, step + 1).backward()


def in_evaluation_mode(model, optimizer, step):
    loss_at(model.eval(), step).backward()  # as from_pretrained leaves a model


def write_between(model, optimizer, step):
    loss_at(model, step).backward()
    with torch.no_grad():
        model[0].weight.clamp_(-0.1, 0.1)


@pytest.mark.parametrize(
    ("loop", "cause"),
    [
        (functional, "torch.func"),
        (per_sample, "torch.func"),
        (reentrant, "use_reentrant=False"),
        (evaluation_between, "an evaluation with gradients on came between"),
        (in_evaluation_mode, r"call model.train\(\) before it is trained"),
        (eval_between, r"optimizer.eval\(\) came between"),
        (load_of_a_part_between, "load_state_dict came between"),
        (backward_outside, r"inside optimizer.perturbed\(\)"),
        (half_in_perturbed, r"inside optimizer.perturbed\(\)"),
        (write_between, "the write is lost"),
    ],
)
def test_a_gradient_that_was_not_taken_at_w_plus_e_is_told_of_once_with_its_cause(loop, cause):
    model = mlp(norm=False)
    optimizer = s2sam(model, sgd, rho=0.5)

    def train():
        for step in range(6):
            loop(model, optimizer, step)
            optimizer.step()
            optimizer.zero_grad()

    with pytest.warns(UserWarning, match=cause) as told:
        train()
    assert len([w for w in told if "S2SAM" in str(w.message)]) <= 2
    assert len({str(w.message) for w in told}) == len(told)


def blocks_checkpointed(model, optimizer, step):
    inputs, targets = batch(step)
    F.cross_entropy(model[2](checkpoint(nn.Sequential(*model[:2]), inputs, use_reentrant=False)), targets).backward()


def whole_checkpointed(model, optimizer, step):
    inputs, targets = batch(step)
    F.cross_entropy(checkpoint(model, inputs, use_reentrant=False), targets).backward()


def evaluation_after(model, optimizer, step):
    loss_at(model, step).backward()
    model.eval()(batch(step)[0])
    model.train()


def evaluation_without_gradients_between(model, optimizer, step):
    loss = loss_at(model, step)
    with torch.no_grad():
        model.eval()(batch(step)[0])
    model.train()
    loss.backward()


def by_hand(model, optimizer, step):
    parameters = list(model.parameters())
    for p, g in zip(parameters, torch.autograd.grad(loss_at(model, step), parameters), strict=True):
        p.grad = g


def functional_of_its_own(model, optimizer, step):
    inputs, targets = batch(step)
    F.cross_entropy(functional_call(model, dict(model.named_parameters()), (inputs,)), targets).backward()


def functional_inside(model, optimizer, step):
    with optimizer.perturbed():
        functional(model, optimizer, step)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "loop",
    [
        *(blocks_checkpointed, whole_checkpointed, evaluation_after, evaluation_without_gradients_between),
        *(by_hand, functional_of_its_own, functional_inside),
    ],
)
def test_what_is_exact_is_exact_and_silent(loop):
    def train(step_by_step):
        model = mlp(norm=False)
        optimizer = s2sam(model, sgd, rho=0.5)
        for step in range(6):
            step_by_step(model, optimizer, step)
            optimizer.step()
            optimizer.zero_grad()
        return weights(model)

    for a, b in zip(train(loop), train(lambda m, o, s: loss_at(m, s).backward()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_sam_under_whole_model_checkpointing_is_told_of():
    model = mlp(norm=False)
    optimizer = fs.SAM(sgd(model.parameters()), rho=0.5).follow(model)

    def closure():
        optimizer.zero_grad()
        inputs, targets = batch()
        loss = F.cross_entropy(checkpoint(model, inputs.requires_grad_(), use_reentrant=True), targets)
        loss.backward()
        return loss

    with pytest.warns(UserWarning, match="SAM: the whole model is checkpointed"):
        optimizer.step(closure)


def test_the_watch_of_weights_that_were_restored_within_sam_ends_with_its_step():
    model = mlp(norm=False)
    optimizer = fs.SAM(sgd(model.parameters()), rho=0.5).follow(model)

    def closure():
        optimizer.zero_grad()
        loss = loss_at(model)
        loss.backward()
        if optimizer.is_perturbed:
            optimizer.eval()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_parameters_outside_the_followed_model_are_told_of():
    model = mlp()
    optimizer = fs.S2SAM(sgd(model.parameters()), rho=0.5)
    fs.sparsify(model[-1], optimizer, "static", sparsity=0.5, steps=10)
    with pytest.warns(UserWarning, match=r"3 of the 5 parameters .*follow\(\) with the model that holds them all"):
        train_steps(model, optimizer, 3)


def test_parameters_that_were_replaced_are_told_of():
    model = mlp(norm=False)
    optimizer = s2sam(model, sgd, rho=0.5)
    train_steps(model, optimizer, 2)
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    with pytest.warns(UserWarning, match="1 of the 4 parameters .*no longer the model's own"):
        train_steps(model, optimizer, 1, start=2)


HOLDS = {
    "a view": lambda p: p.detach().view(-1),
    "a list of views": lambda p: [1, p.detach()[0]],
    "an address": lambda p: p.data_ptr(),
    "an address in an object": lambda p: SimpleNamespace(pointer=p.data_ptr()),
    "a pointer": lambda p: ctypes.c_void_p(p.data_ptr()),
    "an array": lambda p: p.detach().numpy(),
    "a dict of arrays": lambda p: {"weight": p.detach().numpy()},
}


@pytest.mark.parametrize("how", HOLDS)
def test_a_module_that_holds_an_address_is_told_of(how):
    model = mlp(norm=False)
    model[0].packed = HOLDS[how](model[0].weight)
    optimizer = s2sam(model, sgd, rho=0.5)
    with pytest.warns(UserWarning, match=r"Linear '0' keeps the address .* in_place=True"):
        train_steps(model, optimizer, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = mlp(norm=False)
        train_steps(model, s2sam(model, sgd, rho=0.5, in_place=True), 3)


@pytest.mark.parametrize(
    "module",
    [
        *(lambda: nn.LSTM(3, 4), lambda: nn.MultiheadAttention(4, 2), lambda: nn.TransformerEncoderLayer(4, 2, 8)),
        *(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), lambda: nn.BatchNorm1d(3)),
        *(lambda: nn.Sequential(nn.Embedding(3, 4)), lambda: fs.models.resnet20()),
    ],
)
def test_no_module_of_torch_or_ours_is_taken_for_one(module):
    made = module()
    made.layers, made.numbers, made.array = 3, [1, 2], np.ones(3)
    assert address_holder(made, list(made.parameters())) is None


def test_the_hooks_of_an_inspected_step_are_gone_after_it():
    model = mlp()
    before = len(model[0]._forward_pre_hooks)
    optimizer = s2sam(model, sgd, rho=0.5)
    for step in range(5):
        inspected = is_inspected(step + 1)
        assert bool(model[0].weight._post_accumulate_grad_hooks) == inspected
        assert (len(model[0]._forward_pre_hooks) > before) == inspected
        train_steps(model, optimizer, 1, start=step)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_made_in_an_inspected_step_follows_nobody(how):
    model = mlp()
    optimizer = s2sam(model, sgd, rho=0.5)
    train_steps(model, optimizer, 1)
    other = how(model)
    loss_at(other).backward()
    assert not optimizer.is_perturbed
    assert gradients(other)


# -- letting go --------------------------------------------------------------------------------------------------------


def test_a_model_that_is_no_longer_followed_can_be_scripted_and_is_told_of():
    model = mlp()
    optimizer = s2sam(model, sgd, rho=0.5)
    train_steps(model, optimizer, 2)
    loss_at(model, 2)
    optimizer.unfollow()
    assert not optimizer.is_perturbed
    torch.jit.script(model)
    with pytest.warns(UserWarning, match="plain SGD"):
        train_steps(model, optimizer, 2)
    optimizer.follow(model)
    loss_at(model)
    assert optimizer.is_perturbed


def test_one_of_two_models_can_be_let_go():
    one, two = mlp(), mlp(1)
    optimizer = fs.S2SAM(sgd([*one.parameters(), *two.parameters()]), rho=0.5).follow(one).follow(two)
    train_steps(nn.Sequential(one, nn.Linear(3, 6), two), optimizer, 2)
    optimizer.unfollow(one)
    loss_at(one)
    assert not optimizer.is_perturbed
    loss_at(two)
    assert optimizer.is_perturbed


def test_an_export_while_perturbed_leaves_the_parameters_as_they_are():
    model = mlp(norm=False)
    optimizer = s2sam(model, sgd, rho=0.5)
    train_steps(model, optimizer, 2)
    true = weights(model)
    loss_at(model)
    with torch.no_grad():
        torch.export.export(model, (batch()[0],), strict=False)
    assert type(model[0].weight.data) is torch.Tensor
    optimizer.eval()
    assert same(weights(model), true)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_model_that_is_cast_while_perturbed_is_of_one_kind_after_it(in_place):
    model = mlp(norm=False)
    optimizer = s2sam(model, sgd, rho=0.5, in_place=in_place)
    train_steps(model, optimizer, 2)
    true = weights(model)
    loss_at(model).backward()
    model.half()
    optimizer.zero_grad()
    with torch.no_grad():
        model.eval()(batch()[0].half())
    optimizer.eval()
    assert all(p.dtype == torch.float16 for p in model.parameters())
    assert same(weights(model), [w.half() for w in true])


# -- bases ---------------------------------------------------------------------------------------------------------------


class Sleeping(torch.optim.SGD):
    """A base with modes of its own, as schedule-free ones have."""

    calls = ()

    def train(self):
        self.calls = (*self.calls, "train")

    def eval(self):
        self.calls = (*self.calls, "eval")


@pytest.mark.parametrize("kind", [fs.S2SAM, fs.SAM])
def test_modes_are_passed_on_to_a_base_that_has_them(kind):
    base = Sleeping(mlp().parameters(), lr=0.1)
    optimizer = kind(base)
    optimizer.train()
    optimizer.eval()
    assert base.calls == ("train", "eval")


def test_a_base_without_modes_stays_perturbed_when_a_trainer_asks_for_one():
    model = mlp()
    optimizer = s2sam(model, sgd, rho=0.5)
    train_steps(model, optimizer, 2)
    loss_at(model)
    optimizer.train()
    assert optimizer.is_perturbed


class Prepared(torch.optim.Optimizer):
    """An optimizer that wraps another and never calls its own constructor, as Accelerate's does."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups


@pytest.mark.parametrize("wrap", [fs.S2SAM, fs.SAM, lambda o: fs.sparsify(mlp(), o, sparsity=0.5, steps=10)])
def test_an_incomplete_optimizer_is_refused_with_the_cure(wrap):
    with pytest.raises(
        fs.InputError, match=r"\APrepared is no complete .*'optimizer', before it is wrapped or prepared\Z"
    ):
        wrap(Prepared(sgd(mlp().parameters())))


def test_complex_parameters_are_refused_before_anything_moves():
    real, complex_ = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=torch.complex64))
    with pytest.raises(fs.InputError, match=r"\Acomplex parameters.*rho=0.*\Z"):
        fs.S2SAM(torch.optim.SGD([real, complex_], lr=0.1))
    optimizer = fs.S2SAM(torch.optim.SGD([{"params": [real]}, {"params": [complex_], "rho": 0.0}], lr=0.1))
    with pytest.raises(fs.InputError, match="complex"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.complex64))]})
    assert len(optimizer.param_groups) == 2
    for _ in range(3):
        with optimizer.perturbed():
            ((real * 2).sum() + complex_.abs().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_tied_storage_is_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight.data = model[0].weight.data
    with pytest.raises(fs.InputError, match=r"'0.weight' and '1.weight' are two parameters on the same memory"):
        fs.S2SAM(sgd(model.parameters())).follow(model)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-15, 1.0, 1e18, 1e25])
@pytest.mark.parametrize("kind", ["s2sam", "adaptive", "kernel"])
def test_a_perturbation_has_its_length_whatever_the_gradients_are(kind, size):
    if kind == "kernel":
        pytest.importorskip("flatsparse.sam.kernel").library()
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    options = {"s2sam": {}, "adaptive": {"adaptive": True}, "kernel": {"kernel": True}}[kind]
    optimizer = fs.S2SAM(torch.optim.SGD(model.parameters(), lr=1e-30, momentum=0.9), rho=0.05, **options)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.full_like(p, size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nobody calls the model
            optimizer.step()
    true = weights(model)
    with optimizer.perturbed():
        moved = [(p.detach() - w).double() for p, w in zip(model.parameters(), true, strict=True)]
    scale = [(w.abs() + 0.01).double() if kind == "adaptive" else torch.ones(()) for w in true]
    length = sum(((m / s) ** 2).sum() for m, s in zip(moved, scale, strict=True)) ** 0.5
    assert float(length) == pytest.approx(0.05, rel=1e-3)

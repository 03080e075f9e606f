"""SAFE against plain ADMM: z and u kept whole, sorted lists in place of masks, SGD and its perturbations by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatsparse as fs
from flatsparse.schedules import Constant
from flatsparse.sparse.rules import PruneTo
from tests.helpers import copied, image_batch, same, sgd, take_step, tiny_net, train_on_images

STEPS, SPARSITY, LR, MOMENTUM, RHO = 20, 0.75, 0.1, 0.9, 0.1
END = 15  # 75 % of the steps
SHARPNESS = {
    "none": lambda base: base,
    "sam": lambda base: fs.SAM(base, rho=RHO),
    "s2sam": lambda base: fs.S2SAM(base, rho=RHO),
}


def net(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)
        return nn.Sequential(*layers).double()


def loss_of(model, step):
    inputs, targets = image_batch(step)
    return F.cross_entropy(model(inputs.double()), targets)


class PlainADMM:
    """The method in its paper's own quantities, with SGD, on weights that are all dense until the end."""

    def __init__(self, model, penalty, every):
        self.model, self.penalty, self.every = model, penalty, every
        self.parameters = list(model.parameters())
        self.weights = [p for p in self.parameters if p.ndim > 1]
        self.velocity = [torch.zeros_like(p) for p in self.parameters]
        self.direction = None
        self.z = self.largest(self.weights)
        self.u = [torch.zeros_like(p) for p in self.weights]
        self.masks = None

    def largest(self, tensors):
        """The tensors with only the largest magnitudes of all of them left."""
        flat = torch.cat([t.detach().flatten() for t in tensors]).tolist()
        places = sorted(range(len(flat)), key=lambda i: -abs(flat[i]))[: len(flat) - round(SPARSITY * len(flat))]
        kept = torch.zeros(len(flat), dtype=torch.bool)
        kept[places] = True
        return [
            t.detach() * part.view_as(t)
            for t, part in zip(tensors, kept.split([t.numel() for t in tensors]), strict=True)
        ]

    def gradient(self, step, direction=None):
        """The loss's gradient, at weights that are moved by ρ along a direction."""
        moved = [torch.zeros_like(p) for p in self.parameters] if direction is None else direction
        length = math.sqrt(sum(float(d.square().sum()) for d in moved)) or 1.0
        for p, d in zip(self.parameters, moved, strict=True):
            p.data += RHO * d / length
        gradients = torch.autograd.grad(loss_of(self.model, step), self.parameters)
        for p, d in zip(self.parameters, moved, strict=True):
            p.data -= RHO * d / length
        return [self.masked(i, g) for i, g in enumerate(gradients)]

    def masked(self, index, tensor):
        weight = next((n for n, w in enumerate(self.weights) if w is self.parameters[index]), None)
        return tensor if self.masks is None or weight is None else tensor * self.masks[weight]

    def step(self, step, sharpness):
        if sharpness == "sam":
            self.direction = self.gradient(step)
        gradients = self.gradient(step, None if sharpness == "none" else self.direction)
        self.direction = gradients
        strength = self.penalty * (1 - math.cos(math.pi * (step - 1) / END)) / 2 if step <= END else 0.0
        for i, (p, v) in enumerate(zip(self.parameters, self.velocity, strict=True)):
            total = gradients[i].clone()
            for w, z, u in zip(self.weights, self.z, self.u, strict=True):
                if w is p:
                    total += strength * (w.detach() - z + u)
            v.mul_(MOMENTUM).add_(total)
            p.data -= LR * v
        if step % self.every == 0 and step < END:
            self.z = self.largest([w + u for w, u in zip(self.weights, self.u, strict=True)])
            self.u = [u + w.detach() - z for w, z, u in zip(self.weights, self.z, self.u, strict=True)]
        if step == END:
            self.masks = [kept != 0 for kept in self.largest(self.weights)]
            for index, (p, v) in enumerate(zip(self.parameters, self.velocity, strict=True)):
                p.data, v.data = self.masked(index, p.data), self.masked(index, v)
            self.direction = [self.masked(i, g) for i, g in enumerate(self.direction)]


def one_step(model, optimizer, step):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        return loss

    if isinstance(optimizer, fs.SAM):
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


@pytest.mark.parametrize("sharpness", SHARPNESS)
@pytest.mark.parametrize("seed", range(2))
def test_every_step_is_that_of_plain_admm(sharpness, seed):
    model, twin = net(seed), net(seed)
    optimizer = SHARPNESS[sharpness](torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM))
    training = fs.sparsify(model, optimizer, "safe", sparsity=SPARSITY, steps=STEPS, every=4, penalty=0.5)
    plain = PlainADMM(twin, 0.5, every=4)
    for step in range(1, STEPS + 1):
        one_step(model, optimizer, step)
        plain.step(step, sharpness)
        state = model.state_dict()
        for (name, _), q in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert torch.allclose(state[name], q, rtol=1e-9, atol=1e-12), (step, name)
        splits = [w.split for w in training.masked_weights]
        if step < END:
            assert training.sparsity == 0.0
            for split, z, u in zip(splits, plain.z, plain.u, strict=True):
                assert torch.allclose(split.z, z, rtol=1e-9, atol=1e-12)
                assert torch.allclose(split.u, u, rtol=1e-9, atol=1e-12)
        else:
            assert splits == [None, None]
            assert training.sparsity == pytest.approx(SPARSITY, abs=1 / 174)
            assert all(torch.equal(m, n) for m, n in zip(training.masks.values(), plain.masks, strict=True))
    assert any(u.any() for u in plain.u)


def trained(steps=STEPS, *, sharpness="none", steps_of_run=STEPS, **options):
    model = tiny_net()
    optimizer = SHARPNESS[sharpness](sgd(model.parameters()))
    training = fs.sparsify(model, optimizer, "safe", sparsity=SPARSITY, steps=steps_of_run, every=4, **options)
    train_on_images(model, optimizer, steps)
    return model, optimizer, training


@pytest.mark.parametrize("sharpness", SHARPNESS)
def test_the_pull_is_not_in_the_gradients_that_are_left(sharpness):
    """What a user logs, and what S²-SAM perturbs along, is the gradient of the loss."""
    with_pull, without = (trained(1, sharpness=sharpness, penalty=Constant(p)) for p in (5.0, 0.0))
    for p, q in zip(with_pull[0].parameters(), without[0].parameters(), strict=True):
        assert same(p.grad, q.grad)
    weights = with_pull[0].state_dict(), without[0].state_dict()
    assert not same(*weights)


def test_without_a_penalty_it_prunes_the_plain_run_once():
    model, _, training = trained(penalty=0.0)

    class Once:
        def plan(self, sparsity, steps):
            plan = fs.methods.SAFE(every=4).plan(sparsity, steps)
            return type(plan)(0.0, plan.initial, plan.distribution, rules=plan.rules)

    twin = tiny_net()
    optimizer = sgd(twin.parameters())
    other = fs.sparsify(twin, optimizer, Once(), sparsity=SPARSITY, steps=STEPS)
    train_on_images(twin, optimizer, STEPS)
    assert same(model.state_dict(), twin.state_dict())
    assert same(training.masks, other.masks)


def test_a_pull_leaves_less_to_prune():
    def share_to_be_lost(penalty):
        """Of the squared weights, just before they are pruned at step 60."""
        _, _, training = trained(59, steps_of_run=80, penalty=penalty)
        [prune] = training.plan.rules
        kept = prune(training.state, 60)
        weights = {w.name: w.weight.detach() for w in training.masked_weights}
        lost = sum(float((weight * ~kept[name]).square().sum()) for name, weight in weights.items())
        return lost / sum(float(weight.square().sum()) for weight in weights.values())

    shares = [share_to_be_lost(penalty) for penalty in (0.0, 0.3, 3.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < shares[0] / 10


def test_what_is_pulled_is_saved_until_it_is_pruned():
    _, optimizer, training = trained(END - 1)
    assert set(training.state_dict()["splits"]) == set(training.masks)
    assert "splits" in optimizer.state_dict()["sparse_training"]
    _, _, training = trained(END)
    assert "splits" not in training.state_dict()


@pytest.mark.parametrize("until", [1.0, STEPS])
def test_it_may_prune_at_the_last_step(until):
    _, _, training = trained(STEPS - 1, until=until)
    assert training.sparsity == 0.0
    _, _, training = trained(STEPS, until=until)
    assert training.sparsity == pytest.approx(SPARSITY, abs=1 / 646)


def test_a_scale_left_in_the_gradients_is_in_the_pull_too():
    def run(scale):
        model = tiny_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
        fs.sparsify(model, optimizer, "safe", sparsity=SPARSITY, steps=STEPS, every=4, penalty=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        for step in range(1, STEPS + 1):
            inputs, targets = image_batch(step)
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(inputs), targets)).backward()
            scaler.step(optimizer)
            scaler.update()
        return model.state_dict()

    assert same(run(1.0), run(2.0**10))


def test_a_loss_that_is_maximized_is_pulled_the_same_way():
    def run(sign):
        model = tiny_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, maximize=sign < 0)
        fs.sparsify(model, optimizer, "safe", sparsity=SPARSITY, steps=STEPS, every=4, penalty=0.5)
        for step in range(1, STEPS + 1):
            inputs, targets = image_batch(step)
            optimizer.zero_grad()
            (sign * F.cross_entropy(model(inputs), targets)).backward()
            optimizer.step()
        return model.state_dict()

    for value, other in zip(run(1).values(), run(-1).values(), strict=True):
        assert torch.allclose(value, other)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_an_optimizer_that_evaluates_the_loss_itself_is_pulled_at_each_evaluation(set_to_none):
    model = net(0)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    fs.sparsify(model, optimizer, "safe", sparsity=SPARSITY, steps=STEPS, every=4, penalty=Constant(0.5))
    twin = net(0)
    plain, other = PlainADMM(twin, 0.5, every=99), torch.optim.LBFGS(twin.parameters(), lr=0.1, max_iter=4)

    def closure():
        optimizer.zero_grad(set_to_none=set_to_none)
        loss = loss_of(model, 1)
        loss.backward()
        return loss

    def pulled():
        other.zero_grad()
        loss = loss_of(twin, 1)
        loss.backward()
        for w, z, u in zip(plain.weights, plain.z, plain.u, strict=True):
            w.grad += 0.5 * (w.detach() - z + u)
        return loss

    optimizer.step(closure)
    other.step(pulled)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-9, atol=1e-12)


def test_a_step_that_fails_leaves_the_gradients_of_the_next_alone():
    model, optimizer, _ = trained(3, penalty=0.5)

    def fail(*_):
        raise RuntimeError("the base's step failed")

    handle = optimizer.register_step_pre_hook(fail)  # after the training's own
    with pytest.raises(RuntimeError, match="failed"):
        take_step(model, optimizer, 4)
    handle.remove()
    take_step(model, optimizer, 4)
    whole, _, _ = trained(4, penalty=0.5)
    assert same(list(model.parameters()), list(whole.parameters()))


def test_the_compiled_pass_perturbs_along_the_gradient_of_the_loss():
    models = []
    for kernel in (False, True):
        model = tiny_net()
        try:
            optimizer = fs.S2SAM(sgd(model.parameters()), rho=RHO, kernel=kernel)
            training = fs.sparsify(model, optimizer, "safe", sparsity=SPARSITY, steps=STEPS, every=4, penalty=0.5)
            train_on_images(model, optimizer, STEPS)
        except fs.InputError as missing:
            pytest.skip(str(missing))
        models.append((model, training))
    (one, training), (other, twin) = models
    assert same(copied(training.masks), copied(twin.masks))
    for p, q in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-6)


def test_the_published_settings_are_the_defaults():
    plan = fs.methods.SAFE(until=1.0).plan(0.95, 78_000)
    assert [plan.pull.strength(step) for step in (1, 39_001, 78_001)] == pytest.approx([0.0, 5e-4, 1e-3])
    assert [step for step in range(1, 100) if plan.pull.projection.when(step)] == [32, 64, 96]
    [prune] = plan.rules
    assert isinstance(prune, PruneTo)
    assert [step for step in range(77_000, 78_001) if prune.when(step)] == [78_000]


@pytest.mark.parametrize("penalty", [-1e-3, math.inf, math.nan])
def test_a_penalty_that_cannot_be_is_one_clear_line(penalty):
    with pytest.raises(fs.InputError, match=r"penalty .* is not usable"):
        fs.methods.SAFE(penalty=penalty).plan(0.9, 100)

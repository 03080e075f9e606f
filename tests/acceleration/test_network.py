"""Networks whose convolutions run sparse in one layout are the networks that they were."""

import copy
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import flatsparse as fs
from flatsparse.acceleration import kernels, network, network_stretch
from flatsparse.acceleration.network import accelerate_network
from flatsparse.sparse.masks import MaskedWeight
from tests.acceleration.nets import compiled, sets  # noqa: F401


@pytest.fixture(autouse=True)
def always(monkeypatch, compiled):  # noqa: F811
    monkeypatch.setattr(network_stretch, "DENSEST", 1e9)


class Block(nn.Module):
    """A residual block; in_place says how it is written."""

    def __init__(self, inputs, outputs, stride, in_place=False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs, affine=False)
        self.relu = nn.ReLU(in_place)
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        )
        self.in_place = in_place

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.in_place:
            y += self.shortcut(x)
        else:
            y = self.shortcut(x) + y
        return self.relu(y)


class Net(nn.Module):
    """Two residual stages, and a classifier."""

    def __init__(self, pool="mean", in_place=False):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6, momentum=None), nn.ReLU())
        self.body = nn.Sequential(Block(6, 6, 1, in_place), Block(6, 9, 2, in_place), Block(9, 9, 1, in_place))
        self.pool, self.last = nn.AdaptiveAvgPool2d(1), nn.Linear(9, 4)
        self.kind = pool

    def forward(self, x):
        x = self.body(self.stem(x))
        if self.kind == "mean":
            return self.last(x.mean((2, 3)))
        return self.last(torch.flatten(self.pool(x), 1) if self.kind == "pool" else x.amax((2, 3)))


def plain_net():
    """Convolutions with and without batch norm, ReLU and bias; max pooling; a value that is read inside and outside."""

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 4, 1)
            self.d, self.e = nn.Conv2d(4, 4, (3, 1), padding=(1, 0)), nn.Conv2d(4, 6, 3, 2, padding=2)
            self.norm = nn.BatchNorm2d(5, track_running_stats=False)
            self.last = nn.Linear(6, 4)

        def forward(self, x):
            x = F.relu(self.norm(self.b(self.a(x))))
            x = self.c(F.max_pool2d(x, 2))
            y = torch.relu(self.d(x))
            z = self.e(y + x)  # two values: no program adds them
            return self.last(z.mean((-1, -2), keepdim=True).flatten(1)) + y.sum((1, 2, 3))[:, None]

    return Plain()


NETS = {
    "residual": Net,
    "pool": lambda: Net("pool"),
    "max": lambda: Net("max", in_place=True),
    "plain": plain_net,
}


def sparse(model, density=0.3):
    """The model with random masks, and these."""
    masked = []
    for name, p in model.named_parameters():
        if p.ndim == 4:
            w = MaskedWeight(name, p, len(masked))
            w.set_mask(torch.rand(p.shape) < density)
            w.apply()
            masked.append(w)
    return masked


def pair(make, seed=0):
    """A model with random statistics, its double in float64, and its masks."""
    torch.manual_seed(seed)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.weight is not None:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    masked = sparse(model)
    return model, copy.deepcopy(model).double(), masked


def accelerated(model, masked, dense=False):
    result = accelerate_network(model, masked, lambda: dense)
    assert type(model) is not result._class
    return result


def compare(model, exact, masked, x, dense=False):
    """One forward and backward of both; outputs, gradients and statistics agree."""
    masks = {w.name: w.mask for w in masked}
    x, x64 = x.clone().requires_grad_(), x.double().requires_grad_()
    y, y64 = model(x), exact(x64)
    g = torch.randn(y.shape)
    y.backward(g)
    y64.backward(g.double())
    near(y, y64)
    near(x.grad, x64.grad)
    does = model.__dict__[network.SAVED_AS].does if network.SAVED_AS in model.__dict__ else {}
    for (name, p), p64 in zip(model.named_parameters(), exact.parameters(), strict=True):
        near(p.grad, p64.grad * masks[name] if does.get(name) == "sparse" and not dense else p64.grad)
    for b, b64 in zip(model.buffers(), exact.buffers(), strict=True):
        near(b, b64)


class _Margin(TorchFunctionMode):
    """The smallest input of a ReLU, without its sign."""

    smallest = 1.0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (F.relu, torch.relu, torch.relu_, F.relu_):
            self.smallest = min(self.smallest, float(args[0].detach().abs().min()))
        return function(*args, **(kwargs or {}))


def images_for(exact, *shape):
    """Images for which rounding makes no ReLU's input change its sign."""
    for _ in range(50):
        x = torch.randn(shape)
        with _Margin() as margin, torch.no_grad():
            copy.deepcopy(exact)(x.double())
        if margin.smallest > 5e-6:
            return x
    raise AssertionError("no such images")


def near(got, wanted):
    scale = wanted.detach().abs().max() if wanted.is_floating_point() else 1
    scale = 10 if scale < 1e-9 else scale  # what is zero but for rounding, as a bias's gradient before a batch norm
    error = float(((got.detach().double() - wanted.detach()) / scale).abs().max())
    assert error < 2e-5


@pytest.mark.parametrize("instructions", sets())
@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("images", [5, 20])
def test_training_mode(kind, images, instructions):
    kernels.use(instructions)
    model, exact, masked = pair(NETS[kind])
    result = accelerated(model, masked)
    for _ in range(2):
        model.zero_grad()
        exact.zero_grad()
        compare(model, exact, masked, images_for(exact, images, 3, 10, 12))
    assert set(result.does.values()) <= {"sparse", "dense: it follows no other convolution, nor do others follow it"}
    assert "sparse" in result.does.values()


@pytest.mark.parametrize("kind", NETS)
def test_evaluation_mode(kind):
    model, exact, masked = pair(NETS[kind])
    accelerated(model, masked)
    model.eval(), exact.eval()
    x = images_for(exact, 19, 3, 10, 12)
    with torch.no_grad():
        near(model(x), exact(x.double()))
    compare(model, exact, masked, x)


@pytest.mark.parametrize("part", ["stem", "body"])
def test_one_part_in_evaluation_mode(part):
    model, exact, masked = pair(Net)
    accelerated(model, masked)
    model.get_submodule(part).eval(), exact.get_submodule(part).eval()
    compare(model, exact, masked, images_for(exact, 7, 3, 10, 12))


def test_dense_gradients_on_demand():
    model, exact, masked = pair(Net)
    accelerated(model, masked, dense=True)
    compare(model, exact, masked, images_for(exact, 7, 3, 10, 12), dense=True)


def test_a_forward_in_training_mode_without_gradients_updates_statistics_once():
    model, exact, masked = pair(Net)
    accelerated(model, masked)
    x = images_for(exact, 7, 3, 10, 12)
    with torch.no_grad():
        near(model(x), exact(x.double()))
    for b, b64 in zip(model.buffers(), exact.buffers(), strict=True):
        near(b, b64)


def test_frozen_parameters_and_no_input_gradient():
    model, exact, masked = pair(Net)
    accelerated(model, masked)
    for m in (model, exact):
        m.body[0].conv1.weight.requires_grad_(False)
        m.body[1].bn1.bias.requires_grad_(False)
    x, g = images_for(exact, 7, 3, 10, 12), torch.randn(7, 4)
    model(x).backward(g)
    exact(x.double()).backward(g.double())
    masks = {w.name: w.mask for w in masked}
    for (name, p), p64 in zip(model.named_parameters(), exact.named_parameters(), strict=True):
        assert (p.grad is None) == (p64[1].grad is None)
        if p.grad is not None:
            near(p.grad, p64[1].grad * masks.get(name, torch.tensor(1)))


def test_two_forwards_before_a_backward():
    model, exact, masked = pair(Net)
    accelerated(model, masked)
    a, b = images_for(exact, 7, 3, 10, 12), images_for(exact, 20, 3, 8, 8)
    (model(a).square().sum() + model(b).square().sum()).backward()
    (exact(a.double()).square().sum() + exact(b.double()).square().sum()).backward()
    masks = {w.name: w.mask for w in masked}
    for (name, p), p64 in zip(model.named_parameters(), exact.parameters(), strict=True):
        near(p.grad, p64.grad * masks.get(name, torch.tensor(1)))


def test_masks_and_weights_are_read_at_every_call():
    model, exact, masked = pair(Net)
    accelerated(model, masked)
    x = images_for(exact, 7, 3, 10, 12)
    compare(model, exact, masked, x)
    with torch.no_grad():
        for w in masked:
            w.set_mask(torch.rand(w.mask.shape) < 0.5)
            w.weight.normal_()
            w.apply()
    exact.load_state_dict(model.state_dict())
    model.zero_grad(), exact.zero_grad()
    compare(model, exact, masked, x)
    for p in model.parameters():
        p.data = p.data + 0.1 * (p.data != 0)  # as S2-SAM does
    exact.load_state_dict(model.state_dict())
    model.zero_grad(), exact.zero_grad()
    compare(model, exact, masked, x)


def test_restore_copies_and_pickles_give_plain_models():
    model, exact, masked = pair(Net)
    result = accelerated(model, masked)
    x = images_for(exact, 7, 3, 10, 12)
    compare(model, exact, masked, x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is Net
        assert other.__dict__.keys() == exact.__dict__.keys()
        assert other.state_dict().keys() == exact.state_dict().keys()
        near(other.eval()(x), exact.eval()(x.double()))
        exact.train()
    assert isinstance(model, Net)
    result.restore()
    assert type(model) is Net
    assert network.SAVED_AS not in model.__dict__
    model.zero_grad(), exact.zero_grad()
    compare(model, exact, masked, x, dense=True)


def test_a_hook_a_replaced_module_and_a_global_hook_are_respected():
    model, exact, masked = pair(Net)
    result = accelerated(model, masked)
    x = images_for(exact, 7, 3, 10, 12)
    calls = []
    model(x), exact(x.double())
    assert result.does["body.0.conv1.weight"] == "sparse"
    handle = model.body[1].register_forward_hook(lambda *_: calls.append(1))
    model(x), exact(x.double())
    assert calls == [1]
    assert "hook" in result.does["body.0.conv1.weight"]
    handle.remove()
    handle = nn.modules.module.register_module_forward_pre_hook(lambda module, _: calls.append(module))
    model(x), exact(x.double())
    handle.remove()
    assert model.body[0].bn1 in calls
    model.body[0].conv1 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
    exact.body[0].conv1 = copy.deepcopy(model.body[0].conv1).double()
    near(model(x), exact(x.double()))
    assert result.does["body.2.conv1.weight"] == "sparse"


class Counting(Net):
    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x)


class Buffered(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.steps += 1
        return super().forward(x)


class Chance(Net):
    def forward(self, x):
        return super().forward(x) if torch.rand(()) < 2 else x


class TwoInputs(Net):
    def forward(self, x, scale=None):
        return super().forward(x if scale is None else x * scale)


@pytest.mark.parametrize("kind", [Counting, Buffered, Chance, TwoInputs])
def test_forwards_that_a_graph_does_not_tell_stay_dense(kind):
    model, exact, masked = pair(kind)
    result = accelerated(model, masked)
    x = images_for(exact, 7, 3, 10, 12)
    compare(model, exact, masked, x, dense=True)
    assert all("torch.fx cannot trace" in what for what in result.does.values())
    assert getattr(model, "calls", 1) == getattr(model, "steps", 1) == 1


def test_other_types_and_autocast_stay_dense():
    model, exact, masked = pair(Net)
    result = accelerated(model, masked)
    x = images_for(exact, 7, 3, 10, 12)
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
    assert "autocast" in result.does["body.0.conv1.weight"]
    near(model.double()(x.double()), exact(x.double()))
    assert "float32" in result.does["body.0.conv1.weight"]


def test_a_batch_too_dense_to_pay_stays_dense(monkeypatch):
    monkeypatch.setattr(network_stretch, "DENSEST", 0.2)
    model, exact, masked = pair(Net)
    result = accelerated(model, masked)
    x = images_for(exact, 16, 3, 10, 12)
    near(model(x), exact(x.double()))
    assert "too many to pay" in result.does["body.0.conv1.weight"]


@pytest.mark.parametrize("kind", NETS)
def test_a_chain_that_stays_dense_is_the_plain_model_to_the_bit_and_keeps_no_values(monkeypatch, kind):
    model, exact, masked = pair(NETS[kind])
    model, plain = model.float(), copy.deepcopy(model).float()
    accelerated(model, masked)
    monkeypatch.setattr(network_stretch, "DENSEST", 0.0)
    made, alive = [], []

    def relu(x, inplace=False, own=F.relu):
        alive.append(sum(value() is not None for value in made))
        result = own(x, inplace=inplace)
        made.append(weakref.ref(result))
        return result

    x = images_for(exact, 5, 3, 9, 8).float()
    got, wanted = [], []
    for net, results in ((model, got), (plain, wanted)):
        inputs = x.clone().requires_grad_()
        y = net(inputs)
        y.square().sum().backward()
        results += [y, inputs.grad, *(p.grad for p in net.parameters()), *net.buffers()]
    assert all(map(torch.equal, got, wanted))
    monkeypatch.setattr(network_stretch.F, "relu", relu)
    with torch.no_grad():
        model(x)
    assert len(made) >= 3
    assert max(alive) <= 2  # what is being read, and what is added later


def run(method, sharpness, accelerates):
    """The losses and the sum of all buffers of a run of eight steps, and what its convolutions did at every step."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    optimizer = optimizer if sharpness is None else sharpness(optimizer, rho=0.05)
    training = fs.sparsify(model, optimizer, method, sparsity=0.6, steps=8, every=2)
    x, y = torch.randn(20, 3, 8, 8), torch.randint(4, (20,))
    if accelerates:
        masked = list(training.masked_weights)
        momentum = training.plan.momentum is not None
        result = accelerate_network(model, masked, lambda: momentum or bool(training.due(training.steps_taken + 1)))

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    losses, did = [], []
    for _ in range(8):
        if sharpness is fs.SAM:
            losses.append(optimizer.step(closure).item())
        else:
            losses.append(closure().item())
            optimizer.step()
        did += [what.split()[0] for what in result.does.values()] if accelerates else []
    return [*losses, sum(b.double().sum() for b in model.buffers()).item()], did


@pytest.mark.parametrize("sharpness", [None, fs.S2SAM, fs.SAM])
@pytest.mark.parametrize("method", ["rigl", "set", "gmp", "snfs"])
def test_a_run_goes_as_the_masked_run(method, sharpness):
    """Through mask updates, perturbations and steps that are inspected, where it is dense."""
    masked, _ = run(method, sharpness, accelerates=False)
    ours, did = run(method, sharpness, accelerates=True)
    assert did.count("sparse") >= len(did) / 2
    assert ours == pytest.approx(masked, rel=2e-3)


def test_a_graph_that_is_retained_gives_the_same_gradients_twice_and_another_is_freed():
    model, _, masked = pair(Net)
    accelerated(model, masked)
    weights = [w.weight for w in masked]
    y = model(torch.randn(7, 3, 10, 12)).square().sum()
    first = torch.autograd.grad(y, weights, retain_graph=True)
    second = torch.autograd.grad(y, weights)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, weights)


def test_torchs_defaults_change_nothing():
    model, exact, masked = pair(Net)
    accelerated(model, masked)
    x = images_for(exact, 7, 3, 10, 12)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            y = model(x)
            y.backward(y.detach())
            with torch.no_grad():
                model.eval()(x)
    finally:
        torch.set_default_dtype(before)
    wanted = exact(x.double())
    wanted.backward(y.detach().double())
    near(y, wanted)
    mask = masked[1].mask
    near(model.body[0].conv1.weight.grad, exact.body[0].conv1.weight.grad * mask)

"""Accelerated networks refuse, or compute densely, what their traces and kernels do not know."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from flatsparse.acceleration import network_stretch
from flatsparse.acceleration.network import accelerate_network
from flatsparse.measure.hessian import Hessian
from tests.acceleration.nets import compiled  # noqa: F401
from tests.acceleration.test_network import sparse


@pytest.fixture(autouse=True)
def always(monkeypatch, compiled):  # noqa: F811
    monkeypatch.setattr(network_stretch, "DENSEST", 1e9)


class Net(nn.Module):
    """Three convolutions and a classifier."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.c3 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3)
        self.b1, self.b2, self.relu = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.last, self.alpha = nn.Linear(8, 4), 1.0

    def forward(self, x):
        return self.head(self.c3(F.relu(self.b2(self.c2(F.relu(self.b1(self.c1(x))))))))

    def head(self, x):
        return self.last(x.mean((2, 3)))


def pair(kind=Net):
    """An accelerated model, a plain copy of it, what the first one's network knows, and images."""
    torch.manual_seed(0)
    model = kind()
    masked = sparse(model)
    plain = copy.deepcopy(model)
    return model, plain, accelerate_network(model, masked, lambda: False), torch.randn(5, 3, 9, 9)


def agree(model, plain, x):
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("of", ["images", "weights"])
def test_second_derivatives_are_refused(of):
    model, _, network, x = pair()
    x.requires_grad_(of == "images")
    y = model(x).square().sum()
    assert network.does["c2.weight"] == "sparse"
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(y, [x] if of == "images" else list(model.parameters()), create_graph=True)


def test_a_hessian_is_refused_and_right_after_restore():
    model, plain, network, x = pair()
    one = torch.ones(sum(p.numel() for p in model.parameters()))
    with pytest.raises(RuntimeError, match="second derivatives"):
        Hessian(model, lambda: model(x).square().sum()) @ one
    network.restore()
    model.load_state_dict(plain.state_dict())
    got, wanted = (Hessian(m, lambda m=m: m(x).square().sum()) @ one for m in (model, plain))
    assert torch.equal(got, wanted)


class Scaled(Net):
    def forward(self, x):
        return super().forward(x if torch.is_grad_enabled() else -x) * self.alpha


class Switched(Net):
    def forward(self, x):
        return super().forward(x) if self.alpha == 1 else self.c2(self.c1(x)).mean((2, 3))


@pytest.mark.parametrize("kind", [Scaled, Switched])
def test_a_trace_is_made_again_when_an_attribute_changes(kind):
    model, plain, network, x = pair(kind)
    for alpha in (1.0, 0.5, 1.0):
        model.alpha = plain.alpha = alpha
        agree(model, plain, x)
        assert network.does["c2.weight"] == "sparse"
    assert network._traces == 2


def test_a_trace_is_made_again_without_gradients():
    model, plain, _, x = pair(Scaled)
    agree(model, plain, x)
    with torch.no_grad():
        agree(model, plain, x)


def test_a_changed_convolution_is_seen():
    model, plain, network, x = pair()
    agree(model, plain, x)
    for m in (model, plain):
        m.c2.dilation = m.c2.padding = (2, 2)
    agree(model, plain, x)
    assert network.does["c1.weight"] != "sparse"


def test_a_network_whose_attributes_change_all_the_time_is_not_traced_all_the_time():
    model, plain, network, x = pair(Scaled)
    for step in range(40):
        model.alpha = plain.alpha = step
        agree(model, plain, x)
    assert network._traces < 20
    assert "change too often" in network.does["c1.weight"]


class Statement(Net):
    def forward(self, x):
        x = self.b1(self.c1(x))
        self.relu(x)
        return self.head(self.c3(self.c2(x)))


class Functional(Net):
    def forward(self, x):
        x = self.c1(x)
        F.relu(x, True)
        return self.head(self.c3(F.relu(self.c2(x))))


class Method(Net):
    def forward(self, x):
        x = F.relu(self.c1(x))
        x.clamp_(max=0.2)
        return self.head(self.c3(F.relu(self.c2(x))))


class Alias(Net):
    def forward(self, x):
        x = self.c1(x)
        y = x.view(x.shape)
        torch.relu_(y)
        return self.head(self.c3(F.relu(self.c2(x))))


@pytest.mark.parametrize("kind", [Statement, Functional, Method, Alias])
def test_a_write_to_what_is_read_again_stays_dense(kind):
    model, plain, network, x = pair(kind)
    agree(model, plain, x)
    assert "writes to a value that is read again" in network.does["c2.weight"]


class Writes(Net):
    def forward(self, x):
        x = self.relu(self.b1(self.c1(x.mul_(2))))
        y = F.dropout(F.relu(self.b2(self.c2(x)), inplace=True), 0.0, True)
        y += x
        return self.head(self.c3(self.relu(y))) + x.mean((1, 2, 3), True).flatten(1)


def test_a_write_to_what_is_not_read_again_is_sparse():
    model, plain, network, x = pair(Writes)
    torch.testing.assert_close(model(x.clone()), plain(x.clone()), rtol=1e-4, atol=1e-5)
    assert "read again" not in network.does["c2.weight"], network.does


class Drawing(Net):
    def forward(self, x):
        return super().forward(x if np.random.rand() < 2 else -x)


class Asking(Net):
    def forward(self, x):
        return super().forward(x * 2 if torch.is_tensor(x) else x)


class Drawing2(Net):
    def forward(self, x):
        if isinstance(x, torch.Tensor):
            np.random.rand(), random.random(), torch.rand(())
        return super().forward(x)


class Logging(Net):
    def __init__(self):
        super().__init__()
        self.log = []

    def forward(self, x):
        if isinstance(x, torch.Tensor):
            self.log.append(len(self.log))
        return super().forward(x)


class Switching(Net):
    def forward(self, x):
        with torch.no_grad():
            x = self.c1(x)
        return self.head(self.c3(F.relu(self.c2(x))))


@pytest.mark.parametrize("kind", [Drawing, Drawing2, Asking, Logging, Switching])
def test_what_a_trace_does_not_hold_stays_dense(kind):
    model, plain, network, x = pair(kind)
    results = []
    for m in (model, plain):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        y = m(x)
        y.sum().backward()
        results.append([y, np.random.rand(), random.random(), torch.rand(()).item(), getattr(m, "log", 0)])
    assert torch.equal(results[0].pop(0), results[1].pop(0))
    assert results[0] == results[1]
    assert [p.grad is None for p in model.parameters()] == [p.grad is None for p in plain.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))
    assert "cannot trace" in network.does["c2.weight"]


class Dropping(Net):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.5, self.training))


def test_a_check_of_a_trace_leaves_nothing_behind():
    """The first call draws, and updates statistics, as the plain model's."""
    model, plain, network, x = pair(Dropping)
    for m in (model, plain):
        torch.manual_seed(1)
        m.y = m(x).detach(), torch.rand(())
    assert network.does["c2.weight"] == "sparse"
    torch.testing.assert_close(model.y, plain.y, rtol=1e-4, atol=1e-5)
    for a, b in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_call_that_fails_is_forgotten():
    model, plain, network, x = pair()
    with pytest.raises(RuntimeError, match="channels"):
        model(x[:, :2])
    agree(model, plain, x)
    assert network.does["c2.weight"] == "sparse"


def test_a_first_call_in_a_checkpoint():
    model, plain, network, x = pair()
    for m in (model, plain):
        checkpoint(m, x, use_reentrant=False).square().sum().backward()
    assert network.does["c2.weight"] == "sparse"
    torch.testing.assert_close(model.last.weight.grad, plain.last.weight.grad, rtol=1e-3, atol=1e-3)


def test_a_first_input_that_is_not_finite_does_not_count():
    model, _, network, x = pair()
    x[0, 0, 0, 0], x[1, 0, 0, 0] = float("nan"), float("inf")
    model.eval()(x)
    assert network.does["c2.weight"] == "sparse"


class Centred(Net):
    def forward(self, x):
        x = self.b1(self.c1(x))
        return self.head(self.c3(F.relu(self.b2(self.c2(self.b2(x))))))


def test_statistics_that_are_zero_but_for_rounding_do_not_count():
    model, plain, network, x = pair(Centred)
    agree(model, plain, x)
    assert "something else" not in network.does["c2.weight"]


def test_a_replica_with_the_same_attributes_uses_its_own_weights():
    model, plain, _, x = pair()
    agree(model, plain, x)
    replica = model._replicate_for_data_parallel()
    for name in ("c1", "c2", "c3", "b1", "b2", "relu", "last"):
        setattr(replica, name, copy.deepcopy(getattr(plain, name)))
    with torch.no_grad():
        replica.last.bias += 100
    torch.testing.assert_close(replica.eval()(x), plain.eval()(x) + 100, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_what_is_written_between_forward_and_backward_raises_as_torch_does(training):
    model, plain, network, x = pair()
    for name, _ in [*plain.named_parameters(), ("b1.running_mean", None), ("b2.running_var", None)]:
        if not name.startswith("last"):
            raised = []
            for m in (model.train(training), plain.train(training)):
                y = m(x).sum()
                with torch.no_grad():
                    m.state_dict()[name].add_(0.1)
                try:
                    y.backward()
                    raised.append(False)
                except RuntimeError as error:
                    raised.append("modified by an inplace operation" in str(error))
            assert raised[0] == raised[1], name
            assert network.does["c2.weight"] == "sparse"


def test_data_may_be_replaced_between_forward_and_backward_and_a_training_forward_come_in_between():
    model, plain, _, x = pair()
    for m in (model, plain):
        y = m.eval()(x).square().sum()
        m.train()(x)
        for p in m.parameters():
            p.data = p.data.clone()
        y.backward()
    torch.testing.assert_close(model.last.weight.grad, plain.last.weight.grad, rtol=1e-3, atol=1e-3)

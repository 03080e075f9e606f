"""Following compiled models: their forwards are perturbed, or the user is warned."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import flatsparse as fs
from tests.helpers import (
    batch,
    conv_net,
    loss_at,
    s2sam,
    same,
    sgd,
    train_steps,
    weights,
)


@pytest.fixture
def net():
    """A class of its own for each test: compiled graphs belong to code."""
    torch._dynamo.reset()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = conv_net()

        def forward(self, inputs):
            return self.layers(inputs)

    yield Net
    torch._dynamo.reset()


COMPILED = {
    "follow, then compile": lambda m, o: torch.compile(o.follow(m) and m, backend="eager"),
    "compile, then follow": lambda m, o: following(torch.compile(m, backend="eager"), o),
    "compile, then follow the inner": lambda m, o: (torch.compile(m, backend="eager"), o.follow(m))[0],
    "in place, then follow": lambda m, o: (m.compile(backend="eager"), o.follow(m), m)[-1],
    "follow, then in place": lambda m, o: (o.follow(m), m.compile(backend="eager"), m)[-1],
}


def following(model, optimizer):
    optimizer.follow(model)
    return model


@pytest.mark.filterwarnings("default")  # torch's own compiler warns
@pytest.mark.parametrize("how", COMPILED)
def test_a_compiled_model_is_perturbed_as_an_eager_one(net, how):
    eager, inner = net(), net()
    train_steps(eager, s2sam(eager, rho=0.5), 4)
    optimizer = fs.S2SAM(sgd(inner.parameters()), rho=0.5)
    compiled = COMPILED[how](inner, optimizer)
    with warnings.catch_warnings(record=True) as caught:
        train_steps(compiled, optimizer, 4)
    assert same(weights(eager), weights(inner))
    assert not [c for c in caught if "S2SAM" in str(c.message)]
    loss_at(compiled)
    compiled.eval()
    with torch.no_grad():
        inside = compiled(batch()[0])
        assert optimizer.is_perturbed
        optimizer.eval()
        assert same(compiled(batch()[0]), inside)


@pytest.mark.parametrize("how", ["wrapper", "in place"])
def test_a_model_that_ran_compiled_is_refused(net, how):
    model = net()
    compiled = torch.compile(model, backend="eager") if how == "wrapper" else model
    if how == "in place":
        model.compile(backend="eager")
    compiled(batch()[0])
    with pytest.raises(fs.InputError, match=r"\A.*compiled.*before.*\Z"):
        fs.S2SAM(sgd(model.parameters())).follow(compiled)
    assert not model._forward_pre_hooks


def perturbs_or_objects(model, called, optimizer):
    """Whether `follow` refuses, the weights are perturbed, or at least the second step warns."""
    try:
        optimizer.follow(model)
    except fs.InputError:
        return True
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_steps(called, optimizer, 2)
    loss_at(called)
    return optimizer.is_perturbed or any("S2SAM" in str(c.message) for c in caught)


def test_following_what_ran_inside_a_compiled_model_is_never_silently_the_base(net):
    model = net()
    compiled = torch.compile(model, backend="eager")
    compiled(batch()[0])
    assert perturbs_or_objects(model, compiled, fs.S2SAM(sgd(model.parameters())))


def test_a_class_that_was_followed_before_is_never_silently_the_base(net):
    s2sam(net())
    compiled = torch.compile(net(), backend="eager")
    compiled(batch()[0])
    assert perturbs_or_objects(compiled, compiled, fs.S2SAM(sgd(compiled.parameters())))


def test_after_a_reset_a_compiled_model_may_be_followed(net):
    model = net()
    compiled = torch.compile(model, backend="eager")
    compiled(batch()[0])
    torch.compiler.reset()
    optimizer = fs.S2SAM(sgd(model.parameters())).follow(compiled)
    train_steps(compiled, optimizer, 2)
    loss_at(compiled)
    assert optimizer.is_perturbed


@pytest.mark.parametrize("options", [{}, {"compact": True}, {"in_place": True}], ids=str)
@pytest.mark.parametrize("how", ["compile, then follow", "in place, then follow"])
def test_perturbations_and_moving_masks_neither_break_nor_recompile_the_graph(net, how, options):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = net()
    compiled = torch.compile(model, backend=backend, fullgraph=True) if how == "compile, then follow" else model
    if how == "in place, then follow":
        model.compile(backend=backend)
    optimizer = fs.S2SAM(sgd(model.parameters()), rho=0.5, **options)
    training = fs.sparsify(compiled, optimizer, "rigl", sparsity=0.5, steps=9, every=2)
    first = {name: mask.clone() for name, mask in training.masks.items()}
    before = [id(mask) for mask in training.masks.values()]
    train_steps(compiled, optimizer, 2)
    made = len(graphs)
    with torch._dynamo.config.patch(error_on_recompile=True):
        train_steps(compiled, optimizer, 6, start=2)
    assert len(graphs) == made == 1
    assert before == [id(mask) for mask in training.masks.values()]
    assert not same(first, dict(training.masks))


@pytest.mark.slow
def test_inductor_sees_the_perturbed_weights_too(net):
    eager, inner = net(), net()
    optimizer = s2sam(eager, rho=0.5)
    train_steps(eager, optimizer, 4)
    ours = fs.S2SAM(sgd(inner.parameters()), rho=0.5)
    train_steps(following(torch.compile(inner), ours), ours, 4)
    for a, b in zip(weights(eager), weights(inner), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*record_function")
@pytest.mark.parametrize("sharpness", ["none", "s2sam", "sam"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_a_compiled_step_is_the_step(net, sharpness, sparse):
    """PyTorch's own recipe, ``torch.compile(lambda: optimizer.step())``: each step is perturbed, counted and masked."""

    def trained(compiled):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = net()
        base = sgd(model.parameters())
        optimizer = {"none": lambda o: o, "s2sam": fs.S2SAM, "sam": fs.SAM}[sharpness](base)
        training = fs.sparsify(model, optimizer, "rigl", sparsity=0.5, steps=8, every=2, until=1.0) if sparse else None
        if sharpness != "none" and not sparse:
            optimizer.follow(model)
        now = [0]

        def closure():
            optimizer.zero_grad()
            loss = loss_at(model, now[0])
            loss.backward()
            return loss

        take = (lambda: optimizer.step(closure)) if sharpness == "sam" else (lambda: optimizer.step())
        step = torch.compile(take, backend="eager") if compiled else take
        for now[0] in range(8):
            if sharpness != "sam":
                closure()
            step()
        return weights(model), None if training is None else (training.steps_taken, dict(training.masks))

    (ours, masks), (plain, plain_masks) = trained(compiled=True), trained(compiled=False)
    assert same(masks, plain_masks)
    if sharpness == "none":  # the base's own step is compiled, which torch does to the last bit or not
        torch.testing.assert_close(ours, plain)
    else:
        assert same(ours, plain)

"""The compiled pass does what SGD's step and the making of neighbours do in turn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flatsparse as fs
from flatsparse import kernel
from flatsparse.errors import InputError

from .helpers import adamw, close, conv_net, loss_at, mlp, norm, s2sam, same, saved, sgd, shift, train_steps, weights


@pytest.fixture(autouse=True)
def _compiler():
    try:
        kernel.library()
    except InputError as problem:
        pytest.skip(str(problem))


def momentum(**options):
    return lambda parameters: sgd(parameters, **options)


def ends(base, *, method=None, how=None, net=mlp, steps=9, **options):
    model = net()
    if how is not None:
        model = model.to(memory_format=how)
    optimizer = s2sam(model, base, rho=0.5, **options)
    training = fs.sparsify(model, optimizer, method, sparsity=0.6, steps=steps, every=2) if method else None
    train_steps(model, optimizer, steps)
    masks = dict(training.masks) if training else {}
    return weights(model), [entry["neighbour"] for entry in optimizer.state.values()], masks


BASES = {
    "nesterov": momentum(),
    "heavy ball": momentum(nesterov=False),
    "dampened": momentum(nesterov=False, dampening=0.5, weight_decay=0.0),
}


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("method", [None, "rigl", "gmp"])
def test_the_pass_agrees_with_the_plain_form(base, method):
    plain, ours = ends(base, method=method), ends(base, method=method, kernel=True)
    for a, b in zip(plain[0] + plain[1], ours[0] + ours[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert same(plain[2], ours[2])
    for name, mask in ours[2].items():
        place = list(dict(mlp().named_parameters())).index(name)
        assert (ours[0][place][~mask] == 0).all()
        assert (ours[1][place][~mask] == 0).all()


@pytest.mark.parametrize("how", [torch.contiguous_format, torch.channels_last])
def test_the_pass_agrees_in_other_layouts(how):
    plain, ours = (ends(momentum(), how=how, net=conv_net, kernel=k) for k in (False, True))
    for a, b in zip(plain[0], ours[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_pass_really_runs(monkeypatch):
    calls = []
    own = kernel.step
    monkeypatch.setattr(kernel, "step", lambda *args: (calls.append(1), own(*args))[-1])
    ends(momentum(), kernel=True, steps=4)
    assert len(calls) == 3  # momentum is created at the first step, by the base itself


@pytest.mark.parametrize("size", [1, 511, 513, 32768, 32769, 70000])
def test_sums_do_not_depend_on_threads(size):
    x = torch.randn(size)
    sums, before = [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        sums.append(kernel.square([x, x[: size // 2]]))
    torch.set_num_threads(before)
    assert len(set(sums)) == 1
    assert sums[0] == pytest.approx(float(x.double().square().sum() + x[: size // 2].double().square().sum()), rel=1e-5)


def test_a_perturbation_has_norm_rho_and_w_comes_back():
    model = mlp()
    optimizer = s2sam(model, rho=0.5, kernel=True)
    train_steps(model, optimizer, 3)
    w = weights(model)
    loss_at(model, 3)
    assert norm(shift(model, w)) == close(0.5)
    optimizer.eval()
    assert same(weights(model), w)


def test_a_resumed_run_is_the_run():
    model, other = mlp(), mlp(1)
    optimizer, resumed = (s2sam(m, rho=0.5, kernel=True) for m in (model, other))
    train_steps(model, optimizer, 3)
    other.load_state_dict(saved(model.state_dict()))
    resumed.load_state_dict(saved(optimizer.state_dict()))
    for one, its in ((optimizer, model), (resumed, other)):
        train_steps(its, one, 3, start=3)
    assert same(weights(model), weights(other))


def test_rho_of_zero_is_the_base_bit_for_bit():
    model, plain = mlp(), mlp()
    train_steps(model, s2sam(model, rho=0.0, kernel=True), 5)
    train_steps(plain, sgd(plain.parameters()), 5)
    assert same(weights(model), weights(plain))


def test_parameters_without_a_gradient_and_other_types_are_served_too():
    for dtype in (torch.float32, torch.float64):
        results = []
        for with_kernel in (False, True):
            model = mlp(dtype=dtype)
            model[3].bias.requires_grad_(False)
            optimizer = s2sam(model, rho=0.5, kernel=with_kernel)
            train_steps(model, optimizer, 5)
            results.append(weights(model))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("base", [adamw, momentum(momentum=0.0, nesterov=False), momentum(maximize=True)])
def test_bases_it_cannot_stand_in_for_are_refused(base):
    with pytest.raises(InputError, match=r"\A.*kernel=True is for torch.optim.SGD.*\Z"):
        fs.S2SAM(base(nn.Linear(2, 2).parameters()), kernel=True)


@pytest.mark.parametrize("options", [{"direction": "random"}, {"adaptive": True}, {"compact": True}], ids=str)
def test_options_it_cannot_honour_are_refused(options):
    with pytest.raises(InputError, match="leave it out"):
        fs.S2SAM(sgd(nn.Linear(2, 2).parameters()), kernel=True, **options)


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_without_a_compiler_one_line_says_so(compiler, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"\A.*cannot be built here.*install a C compiler.*\Z"):
        kernel.library.__wrapped__()

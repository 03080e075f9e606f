"""The compiled pass does what a base's step and the making of perturbed weights do in turn."""

from __future__ import annotations

import hashlib
import os
import subprocess

import pytest
import torch
from torch import nn

import flatsparse as fs
from flatsparse.common import building, compiled
from flatsparse.common.errors import InputError
from flatsparse.sam import kernel
from tests.helpers import (
    backward,
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


@pytest.fixture(autouse=True)
def _compiler():
    try:
        kernel.library()
    except InputError as problem:
        pytest.skip(str(problem))


def momentum(**options):
    return lambda parameters: sgd(parameters, **options)


def adam(kind=torch.optim.AdamW, **options):
    # The ε is one that does not make steps of a gradient's rounding.
    return lambda parameters: kind(parameters, **{"lr": 0.01, "eps": 1e-3, "weight_decay": 1e-2, **options})


def ends(base, *, method=None, how=None, net=mlp, steps=9, **options):
    model = net()
    if how is not None:
        model = model.to(memory_format=how)
    optimizer = s2sam(model, base, rho=0.5, **options)
    training = fs.sparsify(model, optimizer, method, sparsity=0.6, steps=steps, every=2) if method else None
    train_steps(model, optimizer, steps)
    masks = dict(training.masks) if training else {}
    return weights(model), [entry["perturbed"] for entry in optimizer.state.values()], masks


BASES = {
    "nesterov": momentum(),
    "heavy ball": momentum(nesterov=False),
    "dampened": momentum(nesterov=False, dampening=0.5, weight_decay=0.0),
    "adamw": adam(),
    "adamw, fused": adam(fused=True),
    "adam": adam(torch.optim.Adam, betas=(0.8, 0.95)),
    "adam, decoupled": adam(torch.optim.Adam, decoupled_weight_decay=True, weight_decay=0.1),
}
AMONG = pytest.mark.parametrize("base", [momentum(), adam()], ids=["sgd", "adamw"])


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("method", [None, "rigl", "gmp"])
def test_the_pass_agrees_with_the_plain_form(base, method):
    plain, ours = ends(base, method=method), ends(base, method=method, kernel=True)
    for a, b in zip(
        plain[0] + plain[1], ours[0] + ours[1], strict=True
    ):  # Adam makes rounding of small gradients larger
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)
    assert same(plain[2], ours[2])
    for name, mask in ours[2].items():
        place = list(dict(mlp().named_parameters())).index(name)
        assert (ours[0][place][~mask] == 0).all()
        assert (ours[1][place][~mask] == 0).all()


@AMONG
@pytest.mark.parametrize("how", [torch.contiguous_format, torch.channels_last])
def test_the_pass_agrees_in_other_layouts(how, base):
    plain, ours = (ends(base, how=how, net=conv_net, kernel=k) for k in (False, True))
    for a, b in zip(plain[0], ours[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_the_pass_really_runs(base, monkeypatch):
    calls = []
    own = kernel.step
    monkeypatch.setattr(kernel, "step", lambda *args: (calls.append(1), own(*args))[-1])
    ends(base, kernel=True, steps=4)
    assert len(calls) == 3  # its state is created at the first step, by the base itself


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


@AMONG
def test_a_perturbation_has_norm_rho_and_w_comes_back(base):
    model = mlp()
    optimizer = s2sam(model, base, rho=0.5, kernel=True)
    train_steps(model, optimizer, 3)
    w = weights(model)
    loss_at(model, 3)
    assert norm(shift(model, w)) == close(0.5)
    optimizer.eval()
    assert same(weights(model), w)


@AMONG
def test_a_resumed_run_is_the_run(base):
    model, other = mlp(), mlp(1)
    optimizer, resumed = (s2sam(m, base, rho=0.5, kernel=True) for m in (model, other))
    train_steps(model, optimizer, 3)
    other.load_state_dict(saved(model.state_dict()))
    resumed.load_state_dict(saved(optimizer.state_dict()))
    for one, its in ((optimizer, model), (resumed, other)):
        train_steps(its, one, 3, start=3)
    assert same(weights(model), weights(other))


@AMONG
def test_what_hooks_write_after_the_step_is_perturbed_too(base):
    model = mlp()
    optimizer = s2sam(model, base, rho=0.5, kernel=True)

    def clamp(*_):
        model[0].weight.clamp_(-0.1, 0.1)

    optimizer.base.register_step_post_hook(clamp)
    for number in range(4):
        backward(model, number)
        optimizer.step()
        w = weights(model)
        assert w[0].abs().max() <= 0.1
        with optimizer.perturbed():
            e, g = (torch.cat([t.flatten() for t in own]) for own in (shift(model, w), gradients(model)))
        torch.testing.assert_close(e, 0.5 * g / g.norm(), rtol=1e-3, atol=1e-6)
        optimizer.zero_grad()


@AMONG
def test_rho_of_zero_is_the_base_bit_for_bit(base):
    model, plain = mlp(), mlp()
    train_steps(model, s2sam(model, base, rho=0.0, kernel=True), 5)
    train_steps(plain, base(plain.parameters()), 5)
    assert same(weights(model), weights(plain))


@AMONG
def test_parameters_without_a_gradient_and_other_types_are_served_too(base):
    for dtype in (torch.float32, torch.float64):
        results = []
        for with_kernel in (False, True):
            model = mlp(dtype=dtype)
            model[3].bias.requires_grad_(False)
            optimizer = s2sam(model, base, rho=0.5, kernel=with_kernel)
            train_steps(model, optimizer, 5)
            results.append(weights(model))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


UNSUITED = {
    "no momentum": momentum(momentum=0.0, nesterov=False),
    "sgd uphill": momentum(maximize=True),
    "adam uphill": adam(maximize=True),
    "amsgrad": adam(amsgrad=True),
    "another": lambda parameters: torch.optim.RMSprop(parameters),
    "a subclass": lambda parameters: type("Own", (torch.optim.AdamW,), {})(parameters),
}


@pytest.mark.parametrize("base", UNSUITED.values(), ids=UNSUITED)
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


# -- what is kept of it -----------------------------------------------------------------------------------------------

built = kernel.library.__wrapped__


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of our own, with the count of compilations."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls = []
    run = subprocess.run
    monkeypatch.setattr(compiled.subprocess, "run", lambda *a, **k: (calls.append(a), run(*a, **k))[-1])
    return tmp_path / "cache" / "flatsparse", lambda: sum("-shared" in command for (command, *_) in calls)


def kept(folder):
    (file,) = folder.iterdir()
    return file


def works(library):
    numbers = torch.ones(5)
    return library.flatsparse_square(1, kernel._pointers([numbers]), kernel._sizes([numbers]), 1) == 5


def test_it_is_built_once_and_nobody_else_may_write_to_what_is_kept(cache):
    folder, builds = cache
    assert works(built())
    assert works(built())
    assert builds() == 1
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not kept(folder).stat().st_mode & 0o022


@pytest.mark.parametrize("spoil", ["cut", "emptied", "other bytes", "another library"])
def test_what_is_not_what_was_built_is_built_anew(cache, spoil):
    folder, builds = cache
    built()
    file = kept(folder)
    whole = file.read_bytes()
    content = {
        "cut": whole[:2000],
        "emptied": b"",
        "other bytes": bytes(len(whole)),
        "another library": whole.replace(b"flatsparse_step", b"flatsparse_stop"),
    }
    file.unlink()  # as it is loaded
    file.write_bytes(content[spoil])
    file.chmod(0o700)
    assert works(built())
    assert builds() == 2
    assert kept(folder).read_bytes() == whole
    assert works(built())
    assert builds() == 2


def test_a_library_that_cannot_be_loaded_is_built_anew_once(cache):
    folder, builds = cache
    folder.mkdir(parents=True, mode=0o700)
    content = b"no library"
    file = folder / f"{building.prefix(kernel.LIBRARY.folder)}-{hashlib.sha256(content).hexdigest()[:16]}.so"
    file.write_bytes(content)
    file.chmod(0o700)
    assert works(built())
    assert builds() == 1
    assert not file.exists()


def test_a_folder_that_programs_may_not_run_from_is_said_and_no_compiler_blamed(cache, monkeypatch):
    def never(name):
        raise OSError(f"{name}: failed to map segment from shared object")

    monkeypatch.setattr(compiled.ctypes, "CDLL", never)
    with pytest.raises(InputError, match=r"\A.*cannot be loaded \(.*failed to map.*XDG_CACHE_HOME.*\Z") as caught:
        built()
    assert "install" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="the system has no users")
@pytest.mark.parametrize("which", [pytest.param("folder", marks=pytest.mark.slow), "file"])
@pytest.mark.parametrize("whose", ["all may write", "another's", "a link"])
def test_what_others_could_have_put_there_is_not_loaded(cache, which, whose, monkeypatch, tmp_path):
    folder, builds = cache
    built()
    place = folder if which == "folder" else kept(folder)
    if whose == "all may write":
        place.chmod(0o777)
    elif whose == "another's":
        own = os.lstat

        def lstat(path, **how):
            about = own(path, **how)
            return os.stat_result((*about[:4], about.st_uid + 1, *about[5:])) if str(path) == str(place) else about

        monkeypatch.setattr(os, "lstat", lstat)
        monkeypatch.setattr(compiled.Path, "lstat", lambda self: lstat(self))
    else:
        place.rename(tmp_path / "elsewhere")
        place.symlink_to(tmp_path / "elsewhere")
    loaded = []
    load = compiled.ctypes.CDLL
    monkeypatch.setattr(compiled.ctypes, "CDLL", lambda name: (loaded.append(name), load(name))[-1])
    assert works(built())
    assert builds() == 2
    assert which == "file" or not loaded[0].startswith(str(folder))

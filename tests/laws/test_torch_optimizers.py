"""Laws that hold for every optimizer of torch, in every setting that torch's own tests try, plain and under S2SAM and SAM.

The settings are ``torch.testing._internal.common_optimizers.optim_db``, and for each optimizer its foreach and fused
implementations; so a new optimizer of torch is held to the laws on the day it is listed there.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flatsparse as fs
from tests.helpers import batch, copied, is_plus_zero, masked, norm, same, saved, shift, state_of, values, weights

STEPS, STOP, RHO = 8, 3, 0.05
SHARPNESS: dict[str, Callable[..., Any]] = {"none": lambda base, rho: base, "s2sam": fs.S2SAM, "sam": fs.SAM}

# What cannot be exact is refused by name when it is made: by the wrapper, or ("none") by ``sparsify``.
REFUSED = {
    ("LBFGS", "s2sam"): "it evaluates a closure many times a step, S2SAM has one gradient for it",
    ("LBFGS", "sam"): "it evaluates a closure many times a step, SAM has one perturbed gradient for it",
    ("SparseAdam", "s2sam"): "it takes sparse gradients only, and those cannot be perturbed",
    ("SparseAdam", "sam"): "it takes sparse gradients only, and those cannot be perturbed",
    ("SparseAdam", "none"): "it takes sparse gradients only, and those of a masked weight are dense",
}
OLDER = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)
# torch's own copies of LBFGS lack the list of parameters, and before 2.13 those of Adafactor an entry of their groups.
NO_COPIES = {"LBFGS"} | ({"Adafactor"} if OLDER else set())
# torch's own LBFGS takes one group, and before 2.13 Adagrad makes no state for those that come later.
NO_GROUPS = {"LBFGS"} | ({"Adagrad"} if OLDER else set())
NON_ZERO = {  # state that is not zero where nothing has happened, and so not outside the masks either
    "Adagrad": ("sum",),  # starts from initial_accumulator_value
    "Adamax": ("exp_inf",),  # at least eps
    "Rprop": ("step_size",),  # starts from lr
}

# In a process of its own: where it is imported, torch's backends can no longer be set and scripted functions change.
READ = """
import pickle, sys
from torch.testing._internal.common_optimizers import optim_db
found = [(i.optim_cls.__name__, i.supported_impls, [(s.desc, s.kwargs) for s in i.optim_inputs_func(device="cpu")])
         for i in optim_db]
sys.stdout.buffer.write(pickle.dumps(found))
"""


class Setting(NamedTuple):
    """An optimizer of ``torch.optim`` and its options."""

    name: str
    description: str
    options: dict[str, Any]

    def base(self, parameters: Any) -> torch.optim.Optimizer:
        """A new one, which shares no tensor (a learning rate may be one) with others."""
        return getattr(torch.optim, self.name)(parameters, **copy.deepcopy(self.options))

    @property
    def by_closure(self) -> bool:
        return self.name == "LBFGS"

    @property
    def rho(self) -> str:
        """The key of our radius in a group; Adadelta's groups have a ``rho`` of their own."""
        return "sam_rho" if self.name == "Adadelta" else "rho"


IMPLEMENTATIONS = ("foreach", "fused")  # tried in `make test-all`


def settings() -> list[Setting]:
    """Torch's settings, and each optimizer's other implementations (differentiable ones cannot change leaf tensors)."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", READ], capture_output=True)
    if done.returncode != 0:
        reason = done.stderr.decode().strip().splitlines()[-1]
        pytest.skip(f"torch's matrix of optimizers cannot be read: {reason}", allow_module_level=True)
    found = []
    for name, implementations, tried in pickle.loads(done.stdout):
        found += [Setting(name, description, options) for description, options in tried]
        found += [Setting(name, way, {way: True}) for way in implementations if way in IMPLEMENTATIONS]
    return found


SETTINGS = settings()
CELLS = [(setting, sharpness) for setting in SETTINGS for sharpness in SHARPNESS]


def cells(*, without: set[str] = frozenset(), sharpness: tuple[str, ...] = tuple(SHARPNESS)) -> Any:
    """All settings under all kinds of sharpness, but for what is refused and optimizers that are left out."""
    chosen = [
        pytest.param(
            setting,
            kind,
            id=f"{setting.name}-{setting.description}-{kind}",
            marks=pytest.mark.slow if setting.description in IMPLEMENTATIONS else (),
        )
        for setting, kind in CELLS
        if kind in sharpness and setting.name not in without and (setting.name, kind) not in REFUSED
    ]
    return pytest.mark.parametrize(("setting", "sharpness"), chosen)


def net(setting: Setting, seed: int = 0) -> nn.Sequential:
    """Two linear layers; without biases for Muon, which takes matrices only."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        bias = setting.name != "Muon"
        return nn.Sequential(nn.Linear(6, 8, bias=bias), nn.Tanh(), nn.Linear(8, 3, bias=bias))


def wrapped(setting: Setting, sharpness: str, model: nn.Module, parameters: Any = None, rho: float = RHO) -> Any:
    optimizer = SHARPNESS[sharpness](setting.base(model.parameters() if parameters is None else parameters), rho=rho)
    return optimizer.follow(model) if sharpness != "none" else optimizer


def made(setting: Setting, sharpness: str, seed: int = 0, rho: float = RHO) -> tuple[nn.Module, Any, fs.SparseTraining]:
    """A model that RigL keeps sparse, its optimizer and its training."""
    model = net(setting, seed)
    optimizer = wrapped(setting, sharpness, model, rho=rho)
    return model, optimizer, fs.sparsify(model, optimizer, "rigl", sparsity=0.5, steps=STEPS, every=2)


def train(model: nn.Module, optimizer: Any, steps: int = STEPS, start: int = 0, look: Any = lambda: None) -> None:
    """Steps ``start + 1`` to ``steps``, by a closure where one is needed, with a look at each forward and after each step."""
    base = getattr(optimizer, "base", optimizer)
    for step in range(start, steps):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            inputs, targets = batch(step)
            outputs = model(inputs)
            look()
            loss = F.cross_entropy(outputs, targets)
            loss.backward()
            return loss

        if isinstance(optimizer, fs.SAM) or isinstance(base, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        look()


def states(*parts: Any) -> list[Any]:
    return [copy.deepcopy(part.state_dict()) for part in parts]


@cells(sharpness=("s2sam", "sam"))
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_without_a_radius_it_is_the_base_bit_for_bit(setting, sharpness, sparse):
    ran = []
    for kind in ("none", sharpness):
        model = net(setting)
        optimizer = wrapped(setting, kind, model, rho=0.0)
        training = fs.sparsify(model, optimizer, "rigl", sparsity=0.5, steps=STEPS, every=2) if sparse else None
        train(model, optimizer)
        ran.append((model.state_dict(), optimizer.state_dict(), training and training.masks))
    (plain, base, masks), (ours, wrapper, our_masks) = ran
    (group,), (our_group,) = base["param_groups"], wrapper["param_groups"]
    assert same(plain, ours)
    assert same(base["state"], wrapper["state"])
    assert same(group, {key: our_group[key] for key in group})
    assert same(masks, our_masks)


@cells(sharpness=("s2sam", "sam"))
def test_gradients_are_taken_at_the_asked_distance_uphill_for_the_base(setting, sharpness):
    model = net(setting)
    optimizer = wrapped(setting, sharpness, model)
    before, shifts, found = weights(model), [], []

    def closure(step: int = 0) -> Tensor:
        shifts.append(shift(model, before))
        optimizer.zero_grad()
        inputs, targets = batch(step)
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        found.append(values(p.grad for p in model.parameters()))
        return loss

    if sharpness == "sam":
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()
        before = weights(model)
        with optimizer.perturbed():
            closure(1)
    group = optimizer.param_groups[0]
    assert group[setting.rho] == RHO
    assert norm(shifts[1]) == pytest.approx(RHO, rel=1e-4)
    rise = sum(float((e * g).sum()) for e, g in zip(shifts[1], found[0], strict=True))
    assert rise * (-1 if group.get("maximize") else 1) > 0  # what the base makes small is larger there


@cells()
def test_a_resumed_run_is_the_run_that_never_stopped(setting, sharpness):
    parts = made(setting, sharpness)
    train(*parts[:2], STOP)
    files = saved(states(*parts))
    train(*parts[:2], start=STOP)
    resumed = made(setting, sharpness, seed=1)
    for part, file in zip(resumed, files, strict=True):
        part.load_state_dict(file)
    train(*resumed[:2], start=STOP)
    assert same(states(*parts), states(*resumed))


@cells()
def test_masks_are_true_at_every_forward_and_after_every_step_of_rigl(setting, sharpness):
    model, optimizer, training = made(setting, sharpness)
    first, live = copied(training.masks), training.sparsity

    def look() -> None:
        for name, (weight, mask) in masked(model, training).items():
            assert is_plus_zero(weight[~mask]), f"{name} is not zero outside its mask"
            for key, value in state_of(optimizer, weight).items():  # maximize makes -0 of 0, as torch does
                exempt = key in NON_ZERO.get(setting.name, ())
                assert exempt or not value[~mask].any(), f"{key} of {name} is not zero outside the mask"
        assert training.sparsity == live

    train(model, optimizer, look=look)
    assert not same(first, training.masks)
    assert all(p.isfinite().all() for p in model.parameters())


@cells()
def test_hooks_on_saving_and_loading_are_called(setting, sharpness):
    model = net(setting)
    optimizer = wrapped(setting, sharpness, model)
    train(model, optimizer, 2)
    called = []

    def saving(who, state):
        called.append(("saved", who is optimizer))
        return {**state, "ours": 1}

    def loading(who, state):
        called.append(("load", who is optimizer, "ours" in state))
        return {key: value for key, value in state.items() if key != "ours"}

    optimizer.register_state_dict_pre_hook(lambda who: called.append(("save", who is optimizer)))
    optimizer.register_state_dict_post_hook(saving)
    optimizer.register_load_state_dict_pre_hook(loading)
    optimizer.register_load_state_dict_post_hook(lambda who: called.append(("loaded", who is optimizer)))
    beneath = []
    if sharpness != "none":  # hooks of who knows the base only go on being called
        optimizer.base.register_state_dict_post_hook(lambda who, state: beneath.append(who))
        optimizer.base.register_load_state_dict_post_hook(beneath.append)
    state = optimizer.state_dict()
    assert called == [("save", True), ("saved", True)]
    assert state["ours"] == 1
    optimizer.load_state_dict(state)
    assert called[2:] == [("load", True, True), ("loaded", True)]
    assert beneath == ([] if sharpness == "none" else [optimizer.base] * 2)
    assert same(optimizer.state_dict(), state)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda pair: pickle.loads(pickle.dumps(pair))}


@cells(without=NO_COPIES)
def test_copies_go_on_as_the_original(setting, sharpness):
    model = net(setting)
    optimizer = wrapped(setting, sharpness, model)
    train(model, optimizer, STOP)
    twins = {how: copied_by((model, optimizer)) for how, copied_by in COPIES.items()}
    train(model, optimizer, STOP + 2, start=STOP)
    for how, (other, twin) in twins.items():
        if sharpness != "none":
            twin.follow(other)
        train(other, twin, STOP + 2, start=STOP)
        assert same(states(model, optimizer), states(other, twin)), how


@pytest.mark.parametrize("sharpness", SHARPNESS)
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_with_its_training_is_as_sparse_as_the_original_or_refused(sharpness, how):
    parts = made(Setting("SGD", "momentum", {"lr": 0.1, "momentum": 0.9}), sharpness)
    train(*parts[:2], STOP)
    try:
        twins = COPIES[how](parts)
    except fs.InputError:
        return
    if sharpness != "none":
        twins[1].follow(twins[0])
    for one in (parts, twins):
        train(*one[:2], start=STOP)
    assert same(states(*parts), states(*twins))


def a_group_added_later_is_a_group_of_the_base(setting, sharpness):
    model = net(setting)
    optimizer = wrapped(setting, sharpness, model, model[0].parameters())
    plain = setting.base(model[0].parameters())
    for one in (optimizer, plain):
        one.add_param_group({"params": list(model[2].parameters())})
    mine, torchs = (one.param_groups[1] for one in (optimizer, plain))
    assert same(torchs, {key: mine[key] for key in torchs})
    if sharpness != "none":
        assert mine[setting.rho] == RHO


def a_group_added_before_the_first_step_was_always_there(setting, sharpness):
    ran = []
    for added in (False, True):
        model = net(setting)
        groups = [{"params": list(layer.parameters())} for layer in (model[0], model[2])]
        optimizer = wrapped(setting, sharpness, model, groups[:1] if added else groups)
        if added:
            optimizer.add_param_group(groups[1])
        train(model, optimizer, STOP)
        ran.append([*states(model), optimizer.state_dict()["state"]])
    assert same(*ran)


def a_group_added_on_the_way_is_the_bases_without_a_radius(setting, sharpness):
    ran = []
    for kind in ("none", sharpness):
        model = net(setting)
        optimizer = wrapped(setting, kind, model, model[0].parameters(), rho=0.0)
        train(model, optimizer, 2)
        optimizer.add_param_group({"params": list(model[2].parameters())})
        train(model, optimizer, STOP + 2, start=2)
        ran.append([*states(model), optimizer.state_dict()["state"]])
    assert same(*ran)


def a_group_added_on_the_way_is_saved_and_loaded(setting, sharpness):
    ran = []
    for resumed in (False, True):
        model = net(setting)
        optimizer = wrapped(setting, sharpness, model, model[0].parameters())
        train(model, optimizer, 2)
        optimizer.add_param_group({"params": list(model[2].parameters())})
        train(model, optimizer, STOP, start=2)
        if resumed:
            files = saved(states(model, optimizer))
            model = net(setting, seed=1)
            groups = [{"params": list(layer.parameters())} for layer in (model[0], model[2])]
            optimizer = wrapped(setting, sharpness, model, groups)
            for part, file in zip((model, optimizer), files, strict=True):
                part.load_state_dict(file)
        train(model, optimizer, STOP + 2, start=STOP)
        ran.append(states(model, optimizer))
    assert same(*ran)


@cells(without=NO_GROUPS)
def test_a_group_may_be_added_at_any_time(setting, sharpness):
    a_group_added_later_is_a_group_of_the_base(setting, sharpness)
    a_group_added_before_the_first_step_was_always_there(setting, sharpness)
    if sharpness != "none":
        a_group_added_on_the_way_is_the_bases_without_a_radius(setting, sharpness)
        a_group_added_on_the_way_is_saved_and_loaded(setting, sharpness)


@pytest.mark.parametrize(
    ("setting", "sharpness"),
    [
        pytest.param(
            setting,
            kind,
            id=f"{setting.name}-{setting.description}-{kind}",
            marks=pytest.mark.slow if setting.description in IMPLEMENTATIONS else (),
        )
        for setting, kind in CELLS
        if (setting.name, kind) in REFUSED
    ],
)
def test_what_cannot_be_exact_is_refused_by_name(setting, sharpness):
    model = nn.Sequential(nn.Embedding(8, 4, sparse=True))
    before = weights(model)
    base = setting.base(model.parameters())

    def make() -> Any:
        if sharpness == "none":
            return fs.sparsify(model, base, "static", sparsity=0.5, steps=STEPS, include=["0.weight"])
        return SHARPNESS[sharpness](base, rho=RHO)

    with pytest.raises(fs.InputError, match=setting.name):
        make()
    assert same(weights(model), before)
    assert not base._optimizer_step_pre_hooks

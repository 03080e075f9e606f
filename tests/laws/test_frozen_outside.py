"""Laws of ``outside="frozen"``: outside the masks nothing moves, by a bit; inside, training is as it would be without."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flatsparse as fs
from tests.helpers import (
    batch,
    copied,
    image_batch,
    masked,
    mlp,
    same,
    saved,
    sgd,
    state_of,
    tiny_net,
    train_on_images,
    train_steps,
)
from tests.laws.test_methods import BASES, NEVER_MOVE, OPTIONS, SCORED_ON_DATA, SHARPNESS
from tests.laws.test_torch_optimizers import NON_ZERO, STEPS, STOP, cells, net, states, train, wrapped

OF_WEIGHTS = ("perturbed", "ax")  # state that holds weights
REFUSED = {"gmp", "acdc", "safe", "lth", "lrr", "mest", "mest-ems", "chex", "chase"}  # they prune, or rewind
ALLOWED = sorted(set(fs.METHODS) - REFUSED)
FROZEN = "frozen"


class Watch:
    """Looks at weights after steps and within windows: those that were outside the masks, and still are, have not moved."""

    def __init__(self, model: nn.Module, optimizer: Any, training: fs.SparseTraining, non_zero: tuple[str, ...] = ()):
        self.parts, self.non_zero, self.moved_masks, self.moved_weights = (
            (model, optimizer, training),
            non_zero,
            False,
            False,
        )
        self.note()

    def note(self) -> None:
        model, _, training = self.parts
        self.weights, self.masks = copied(model.state_dict()), copied(training.masks)

    def __call__(self, *_: Any) -> None:
        model, optimizer, training = self.parts
        state = model.state_dict()
        for name, (weight, mask) in masked(model, training).items():
            before, now = self.weights[name], state[name]
            assert same(before[~self.masks[name]], now[~self.masks[name]]), f"{name} moved outside its mask"
            self.moved_masks |= not same(mask, self.masks[name])
            self.moved_weights |= not same(before, now)
            if not getattr(optimizer, "is_perturbed", False):
                assert same(weight.detach(), now)
                self.check_state(state_of(optimizer, weight), weight, mask)
        self.note()

    def check_state(self, state: dict[str, Tensor], weight: Tensor, mask: Tensor) -> None:
        for key, value in state.items():
            if key in OF_WEIGHTS:
                assert torch.equal(value[~mask], weight[~mask]), f"{key} is not the weight outside the mask"
            elif key not in self.non_zero:
                assert not value[~mask].any(), f"{key} is not new outside the mask"


def made(setting: Any, sharpness: str, seed: int = 0, rho: float = 0.05, method: str = "rigl") -> tuple[Any, ...]:
    model = net(setting, seed)
    optimizer = wrapped(setting, sharpness, model, rho=rho)
    options = {"every": 2} if method == "rigl" else {}
    return model, optimizer, fs.sparsify(model, optimizer, method, sparsity=0.5, steps=STEPS, outside=FROZEN, **options)


# -- every optimizer of torch --------------------------------------------------------------------------------------------


@cells()
def test_nothing_outside_the_masks_moves_under_any_optimizer(setting, sharpness):
    watch = Watch(*made(setting, sharpness), NON_ZERO.get(setting.name, ()))
    train(*watch.parts[:2], look=watch)
    assert watch.moved_masks
    assert watch.moved_weights


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


@cells(sharpness=("s2sam", "sam"))
def test_without_a_radius_it_is_the_base_bit_for_bit(setting, sharpness):
    plain, ours = (made(setting, kind, rho=0.0) for kind in ("none", sharpness))
    for parts in (plain, ours):
        train(*parts[:2])
    assert same(plain[0].state_dict(), ours[0].state_dict())
    assert same(plain[1].state_dict()["state"], ours[1].state_dict()["state"])


@cells(sharpness=("none",), without={"LBFGS", "Muon", "Adafactor"})  # which are not element by element
def test_inside_it_is_the_optimizer_on_masked_gradients_written_back(setting, sharpness):
    model, optimizer, training = made(setting, "none", method="static")
    twin = copy.deepcopy(model)
    plain, masks, start = setting.base(twin.parameters()), training.masks, copied(twin.state_dict())
    train(model, optimizer)
    for step in range(STEPS):
        nn.functional.cross_entropy(twin(batch(step)[0]), batch(step)[1]).backward()
        named = dict(twin.named_parameters())
        for name, mask in masks.items():
            named[name].grad.mul_(mask)
        plain.step()
        plain.zero_grad()
        with torch.no_grad():
            for name, mask in masks.items():
                named[name].copy_(torch.where(mask, named[name], start[name]))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))


# -- every method --------------------------------------------------------------------------------------------------------


def on_images(method: str, base: str, sharpness: str, seed: int = 0) -> tuple[Any, ...]:
    model = tiny_net(seed)
    optimizer = SHARPNESS[sharpness](BASES[base](model.parameters()), rho=0.05)
    options = dict(OPTIONS.get(method, {}))
    if method in SCORED_ON_DATA:
        options |= {"batches": [image_batch(0)], "loss_fn": nn.functional.cross_entropy}
    if hasattr(fs.METHODS[method], "every"):
        options["every"] = 3
    sparsity = 0.0 if method == "dense" else 0.8
    training = fs.sparsify(model, optimizer, method, sparsity=sparsity, steps=14, outside=FROZEN, **options)
    return model, optimizer, training


@pytest.mark.filterwarnings("ignore:batches hold only")
@pytest.mark.parametrize("sharpness", SHARPNESS)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", ALLOWED)
def test_nothing_outside_moves_and_resuming_is_exact_for_every_method(method, base, sharpness):
    watch = Watch(*on_images(method, base, sharpness))
    train_on_images(*watch.parts[:2], 7, after=watch)
    files = saved(states(*watch.parts))
    train_on_images(*watch.parts[:2], 14, start=7, after=watch)
    assert watch.moved_weights
    assert watch.moved_masks == (method not in NEVER_MOVE)
    resumed = on_images(method, base, sharpness, seed=1)
    for part, file in zip(resumed, files, strict=True):
        part.load_state_dict(file)
    train_on_images(*resumed[:2], 14, start=7)
    assert same(states(*watch.parts), states(*resumed))


@pytest.mark.parametrize("method", sorted(REFUSED))
def test_methods_that_prune_are_refused_before_anything_changes(method):
    model = tiny_net()
    before = copied(model.state_dict())
    size = {"channels": 0.3} if method == "chex" else {"sparsity": 0.8}
    options = {"explore": "removable"} if method in ("chex", "chase") else {}
    options |= {"every": 3} if hasattr(fs.METHODS[method], "every") else {}
    with pytest.raises(fs.InputError, match=f"method '{method}' prunes weights") as problem:
        fs.sparsify(model, sgd(model.parameters()), method, steps=100, outside=FROZEN, **size, **options)
    assert "\n" not in str(problem.value)
    assert same(model.state_dict(), before)


def test_an_unknown_outside_is_refused():
    model = mlp()
    with pytest.raises(fs.InputError, match="unknown outside= 'freeze'"):
        fs.sparsify(model, sgd(model.parameters()), "static", sparsity=0.5, steps=10, outside="freeze")


# -- windows, and what a user may do in between ---------------------------------------------------------------------------

ODD = torch.tensor([-0.0, float("nan"), float("inf"), 1e-45])


def frozen(seed: int = 0, method: str = "static", base: Any = sgd, **options: Any) -> tuple[Any, ...]:
    model = mlp(seed)
    optimizer = fs.S2SAM(base(model.parameters()), rho=0.5, **options)
    moves = {} if method == "static" else {"every": 2}
    return model, optimizer, fs.sparsify(model, optimizer, method, sparsity=0.5, steps=20, outside=FROZEN, **moves)


@pytest.mark.parametrize(
    "options",
    [{}, {"compact": True}, {"adaptive": True}, {"in_place": True}, {"direction": "random"}, {"kernel": True}],
)
def test_the_perturbation_is_inside_the_masks_alone(options):
    model, optimizer, training = frozen(**options)
    for step in range(4):
        true = copied(model.state_dict())
        with optimizer.perturbed():
            for name, (weight, mask) in masked(model, training).items():
                assert torch.equal(weight[~mask], true[name][~mask])
                assert step == 0 or not torch.equal(weight[mask], true[name][mask])
            assert same(dict(model.state_dict()), true)
            train_steps(model, _Nothing(), 1, start=step)
        optimizer.step()
        optimizer.zero_grad()


class _Nothing:
    def step(self) -> None: ...

    def zero_grad(self) -> None: ...


def test_the_compiled_step_trains_as_the_plain_one():
    plain, compiled = frozen(), frozen(kernel=True)
    for parts in (plain, compiled):
        train_steps(*parts[:2], 6)
    for one, other in zip(plain[0].state_dict().values(), compiled[0].state_dict().values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_evaluation_within_a_window_sees_the_true_weights():
    model, optimizer, _ = frozen()
    train_steps(model, optimizer, 2)
    true = copied(dict(model.named_parameters()))
    model(batch()[0])
    assert optimizer.is_perturbed
    plain = mlp().eval()
    plain.load_state_dict(model.state_dict())
    assert same(copied(dict(plain.named_parameters())), true)
    with torch.no_grad():
        assert same(model.eval()(batch()[0]), plain(batch()[0]))
    assert optimizer.is_perturbed


def test_values_of_any_kind_stay_outside():
    model = nn.Linear(8, 4, bias=False)
    masks = {"weight": torch.ones(4, 8, dtype=torch.bool)}
    masks["weight"][:, :4] = False
    with torch.no_grad():
        model.weight[:, :4] = ODD
    before = model.weight.detach().clone()
    optimizer = sgd(model.parameters())
    training = fs.sparsify(model, optimizer, "static", masks=masks, steps=10, outside=FROZEN)
    for _ in range(3):
        model.weight.grad = torch.ones(4, 8)
        model.weight.grad[:, 0] = float("nan")
        optimizer.step()
    assert same(model.weight.detach()[:, :4], before[:, :4])
    assert not torch.equal(model.weight[:, 4:], before[:, 4:])
    assert training.sparsity == 0.5


class Interrupted(torch.optim.SGD):
    """SGD whose step fails once, after it has moved weights."""

    fails = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(0.5)
        if self.fails:
            self.fails = False
            raise RuntimeError("out of memory")
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(0.5)


@pytest.mark.parametrize("fails", [False, True])
def test_a_subclass_that_writes_around_its_parents_step_and_one_that_failed(fails):
    model = mlp()
    optimizer = Interrupted(model.parameters(), lr=0.1)
    training = fs.sparsify(model, optimizer, "static", sparsity=0.5, steps=20, outside=FROZEN)
    watch = Watch(model, optimizer, training)
    train_steps(model, optimizer, 2)
    watch()
    if fails:
        optimizer.fails = True
        with pytest.raises(RuntimeError):
            train_steps(model, optimizer, 1)
    train_steps(model, optimizer, 2)
    watch()
    with torch.no_grad():  # what a user writes between steps is what stays
        model[0].weight.fill_(0.25)
    watch.note()
    train_steps(model, optimizer, 2)
    watch()


def test_what_is_loaded_after_a_step_that_failed_is_what_stays():
    model = mlp()
    optimizer = Interrupted(model.parameters(), lr=0.1)
    training = fs.sparsify(model, optimizer, "static", sparsity=0.5, steps=20, outside=FROZEN)
    optimizer.fails = True
    with pytest.raises(RuntimeError):
        train_steps(model, optimizer, 1)
    model.load_state_dict(mlp(9).state_dict())
    watch = Watch(model, optimizer, training)
    train_steps(model, optimizer, 2)
    watch()


def test_a_step_that_a_scaler_skips_leaves_nothing_behind():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    training = fs.sparsify(model, optimizer, "static", sparsity=0.5, steps=20, outside=FROZEN)
    before = copied(model.state_dict())
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(1.0)  # as a GradScaler sets them
    train_steps(model, optimizer, 1)
    assert all(same(p.detach(), before[name]) for name, p in model.named_parameters())
    optimizer.grad_scale = optimizer.found_inf = None
    with torch.no_grad():
        model[0].weight.fill_(0.25)
    watch = Watch(model, optimizer, training)
    train_steps(model, optimizer, 2)
    watch()
    assert watch.moved_weights


class ScheduleFree(torch.optim.SGD):
    """The writes of schedule-free SGD (Defazio et al. 2024): its modes exchange y and x by way of z."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.detach().clone())
                z.sub_(p.grad + 0.1 * p, alpha=0.1)
                p.lerp_(z, 0.3)

    def train(self) -> None: ...

    @torch.no_grad()
    def eval(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if "z" in self.state[p]:
                    p.lerp_(self.state[p]["z"], 1 - 1 / 0.9)


@pytest.mark.parametrize("wrapper", [lambda base: base, fs.S2SAM])
def test_modes_of_schedule_free_optimizers_move_nothing_outside(wrapper):
    model = mlp()
    optimizer = wrapper(ScheduleFree(model.parameters(), lr=0.1))
    watch = Watch(
        model, optimizer, fs.sparsify(model, optimizer, "static", sparsity=0.5, steps=20, outside=FROZEN), ("z",)
    )
    for step in range(3):
        train_steps(model, optimizer, 1, start=step)
        optimizer.eval()
        watch()


# -- loading ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("base", BASES)
def test_parts_load_in_any_order_into_a_fresh_model_without_a_warning(order, base):
    parts = frozen(method="rigl", base=BASES[base])
    train_steps(*parts[:2], 5)
    files = saved(states(*parts))
    fresh = frozen(seed=3, method="rigl", base=BASES[base])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in order:
            fresh[number].load_state_dict(files[number])
        assert same(states(*fresh), states(*parts))
        for some in (parts, fresh):
            train_steps(*some[:2], 5, start=5)
    assert same(states(*fresh), states(*parts))


def test_sparsify_after_the_states_were_loaded_loses_nothing():
    parts = frozen()
    train_steps(*parts[:2], 5)
    files = saved(states(*parts))
    model = mlp(3)
    optimizer = fs.S2SAM(sgd(model.parameters()), rho=0.5)
    model.load_state_dict(files[0])
    optimizer.load_state_dict(files[1])
    training = fs.sparsify(model, optimizer, "static", masks=parts[2].masks, steps=20, outside=FROZEN)
    training.load_state_dict(files[2])
    for some in (parts, (model, optimizer)):
        train_steps(*some[:2], 3, start=5)
    assert same(states(*parts), states(model, optimizer, training))


def test_a_loaded_model_is_what_stays_outside():
    model, optimizer, training = frozen()
    train_steps(model, optimizer, 2)
    model.load_state_dict(mlp(9).state_dict())
    watch = Watch(model, optimizer, training)
    train_steps(model, optimizer, 2)
    watch()
    assert watch.moved_weights


@pytest.mark.parametrize("outside", ["zero", FROZEN])
def test_states_of_the_other_kind_are_refused(outside):
    trainings, models = [], [mlp(), mlp()]
    for kind, model in zip((outside, {"zero": FROZEN, FROZEN: "zero"}[outside]), models, strict=True):
        optimizer = sgd(model.parameters())
        trainings.append((fs.sparsify(model, optimizer, "static", sparsity=0.5, steps=9, outside=kind), optimizer))
    (training, optimizer), (other, own) = trainings
    before = copied(models[0].state_dict())
    for load in (
        lambda: training.load_state_dict(other.state_dict()),
        lambda: optimizer.load_state_dict(own.state_dict()),
    ):
        with pytest.raises(fs.InputError, match="sparsify with outside="):
            load()
    assert same(models[0].state_dict(), before)


def test_a_copy_of_the_model_is_a_plain_model_and_detach_ends_it():
    model, optimizer, training = frozen()
    train_steps(model, optimizer, 2)
    twin = copy.deepcopy(model)
    assert same(twin.state_dict(), model.state_dict())
    train_steps(twin, sgd(twin.parameters()), 1)
    training.detach()
    before = copied(model.state_dict())
    train_steps(model, optimizer, 1)
    for state in (twin.state_dict(), model.state_dict()):
        assert not torch.equal(
            state["0.weight"][~training.masks["0.weight"]], before["0.weight"][~training.masks["0.weight"]]
        )


def test_accelerate_says_that_it_is_dense_and_why():
    model, optimizer, training = frozen()
    twin = frozen()
    accelerated = fs.accelerate(model, training)
    for some in ((model, optimizer), twin[:2]):
        train_steps(*some, 4)
    assert same(model.state_dict(), twin[0].state_dict())
    assert set(accelerated.layers) == set(training.masks)
    assert all("outside='frozen'" in text for text in accelerated.layers.values())
    accelerated.restore()

"""Model, optimizer and training load in any order, before and after ``sparsify``, and nothing that was saved is lost."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import flatsparse as fs
from tests.helpers import assert_zero_outside, mlp, same, saved, train_steps

STEPS, STOP = 10, 6  # masks have moved at 2, 4 and 6, do so at 8 (but for static ones), and not at the next step
SLOW = pytest.mark.slow
METHODS = ("rigl", "static", *(pytest.param(name, marks=SLOW) for name in ("set", "gmp")))


def sgd(model: nn.Module, momentum: float = 0.9) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum, weight_decay=1e-2)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


OPTIMIZERS = {
    "sgd": sgd,
    "sgd-without-state": lambda model: sgd(model, momentum=0),
    "adam": adam,
    "s2sam-sgd": lambda model: fs.S2SAM(sgd(model), rho=0.5),
    "s2sam-adam": lambda model: fs.S2SAM(adam(model), rho=0.5),
}


class Run(NamedTuple):
    model: nn.Module
    optimizer: Any
    training: Any

    def states(self) -> dict[str, Any]:
        """What a checkpoint holds, as it comes back from a file."""
        return saved({name: part.state_dict() for name, part in self._asdict().items()})

    def train(self, steps: int, start: int = 0) -> Run:
        train_steps(self.model, self.optimizer, steps - start, start=start)
        return self


def sparse(model: nn.Module, optimizer: Any, method: str, seed: int = 0) -> fs.SparseTraining:
    options = {} if method == "static" else {"every": 2}
    return fs.sparsify(model, optimizer, method, sparsity=0.8, steps=STEPS, seed=seed, **options)


def started(optimizer: str, method: str) -> Run:
    model = mlp()
    made = OPTIMIZERS[optimizer](model)
    return Run(model, made, sparse(model, made, method)).train(STOP)


def resumed(optimizer: str, method: str, order: tuple[str, ...], file: dict[str, Any], seed: int = 0) -> Run:
    """A run from other weights that does and loads in an order what it names; masks that never move are others too."""
    model = mlp(1)
    made, training = OPTIMIZERS[optimizer](model), None
    for act in order:
        if act == "sparsify":
            # Of those that move the seed decides later random choices too, and is no part of what is saved.
            training = sparse(model, made, method, seed=1 if method == "static" else seed)
        else:
            part = {"model": model, "optimizer": made, "training": training}[act]
            part.load_state_dict(file[act])
    return Run(model, made, training)


def orders(*acts: str) -> list[tuple[str, ...]]:
    """All orders of acts in which the training is made before it loads."""
    every = itertools.permutations(acts)
    return [o for o in every if "training" not in o or o.index("sparsify") < o.index("training")]


def in_orders(*acts: str) -> Any:
    return pytest.mark.parametrize("order", orders(*acts), ids="-".join)


optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS)
methods = pytest.mark.parametrize("method", METHODS)


@methods
@optimizers
@in_orders("model", "sparsify", "optimizer", "training")
@pytest.mark.filterwarnings("error")
def test_all_parts_in_any_order_are_the_run_that_never_stopped(method, optimizer, order):
    run = started(optimizer, method)
    file = run.states()
    again = resumed(optimizer, method, order, file)
    assert same(again.states(), file)
    assert same(again.train(STEPS, STOP).states(), run.train(STEPS, STOP).states())


@methods
@optimizers
@in_orders("model", "sparsify", "optimizer")
def test_the_masks_travel_with_the_optimizer(method, optimizer, order):
    run = started(optimizer, method)
    file = run.states()
    again = resumed(optimizer, method, order, file)
    found = again.states()
    assert same(found["model"], file["model"])
    assert same(found["training"]["masks"], file["training"]["masks"])
    for part in ("state", "param_groups"):
        assert same(found["optimizer"][part], file["optimizer"][part])
    if order.index("sparsify") < order.index("optimizer"):  # then everything else travels as well
        assert same(found, file)
        until, told = STEPS, contextlib.nullcontext()
    else:  # before a rule would ask how many steps were taken
        until, told = STOP + 1, pytest.warns(UserWarning, match=r"how many steps .* training.state_dict\(\)")
    with told:
        again.train(until, STOP)
    run.train(until, STOP)
    assert same(again.states()["training"]["masks"], run.states()["training"]["masks"])
    if (
        until == STEPS or "adam" not in optimizer
    ):  # which weights grew lately is lost with the rest, and Adam asks for it
        assert same(again.states()["model"], run.states()["model"])


@methods
@optimizers
@in_orders("model", "sparsify", "training")
def test_weights_and_masks_are_back_without_the_optimizers_state(method, optimizer, order):
    run = started(optimizer, method)
    file = run.states()
    again = resumed(optimizer, method, order, file)
    assert same(again.states()["model"], file["model"])
    assert same(again.states()["training"], file["training"])
    again.train(STOP + 1, STOP)
    assert same(again.states()["training"]["masks"], file["training"]["masks"])
    assert_zero_outside(again.model, again.training, again.optimizer)


@pytest.mark.parametrize("method", ["rigl", "static", "set"])  # gmp starts dense, so that no weight is lost
@optimizers
@in_orders("model", "sparsify")
def test_weights_that_disagree_with_fresh_masks_are_told_of(method, optimizer, order):
    run = started(optimizer, method)
    with pytest.warns(UserWarning, match="training"):
        resumed(optimizer, method, order, run.states(), seed=1).train(1)


@optimizers
@methods
def test_a_dense_model_that_is_made_sparse_is_nothing_to_warn_of(method, optimizer):
    file = {"model": saved(mlp(2).state_dict())}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed(optimizer, method, ("model", "sparsify"), file).train(STEPS)


@optimizers
def test_what_is_loaded_twice_is_what_was_loaded_last(optimizer):
    run = started(optimizer, "rigl")
    early = run.states()
    late = run.train(STEPS, STOP).states()
    again = resumed(optimizer, "rigl", ("sparsify", "model", "optimizer", "training"), early)
    for name, part in again._asdict().items():
        part.load_state_dict(saved(late)[name])
    assert same(again.states(), late)


@methods
@optimizers
@pytest.mark.filterwarnings("error")
def test_a_model_that_is_loaded_in_parts_is_whole_when_its_masks_are_there(method, optimizer):
    """As the shards of a large checkpoint are, each by a call that leaves the other layers as they are."""
    run = started(optimizer, method)
    file = run.states()
    again = resumed(optimizer, method, ("sparsify",), file)
    for name, value in file["model"].items():
        again.model.load_state_dict({name: value}, strict=False)
    again.optimizer.load_state_dict(file["optimizer"])
    assert same(again.states(), file)
    assert same(again.train(STEPS, STOP).states(), run.train(STEPS, STOP).states())


def test_weights_that_are_lost_in_one_of_several_parts_are_told_of():
    run = started("sgd", "static")
    again = resumed("sgd", "static", ("sparsify",), {})
    for name, value in run.states()["model"].items():
        again.model.load_state_dict({name: value}, strict=False)
    with pytest.warns(UserWarning, match="lie outside the masks and were set to 0"):
        again.train(1)


# -- the weights of another step of the run, without their masks, as trainers load their best --------------------------------


def counts(training: fs.SparseTraining) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in training.masks.items()}


@pytest.mark.parametrize("options", [{}, {"pattern": (1, 3)}, {"pattern": "block:2x1"}], ids=str)
@pytest.mark.parametrize("method", ["rigl", "set"])
@optimizers
def test_masks_that_move_go_back_to_the_best_weights(method, optimizer, options):
    model = mlp()
    made = OPTIMIZERS[optimizer](model)
    options = {"every": 2, "until": STEPS, "drop_fraction": 0.5, "exclude": ["3"], **options}
    training = fs.sparsify(model, made, method, sparsity=2 / 3, steps=STEPS, **options)
    train_steps(model, made, 3)
    best, masks, before = saved(model.state_dict()), saved(training.masks), counts(training)
    train_steps(model, made, STEPS, start=3)
    assert any(best[name][~mask].count_nonzero() for name, mask in training.masks.items())  # or nothing is tested
    model.load_state_dict(best)
    assert same(model.state_dict(), best)
    assert counts(training) == before
    assert all(training.plan.pattern.holds(mask, name) for name, mask in training.masks.items())
    assert all((masks[name] & best[name].ne(0) & ~mask).sum() == 0 for name, mask in training.masks.items())
    assert_zero_outside(model, training, made)
    with pytest.warns(UserWarning, match=r"masks, which have moved there: .* training.state_dict\(\)"):
        train_steps(model, made, STEPS + 1, start=STEPS)
    assert counts(training) == before
    assert_zero_outside(model, training, made)


@pytest.mark.parametrize("method", ["static", "gmp"])
def test_masks_that_stay_and_weights_that_are_denser_are_cut_and_told_of(method):
    """Where masks are given, or were denser when the weights were the best, what is loaded is cut to the masks of now."""
    run = started("adam", method)
    masks = saved(run.training.masks)
    run.model.load_state_dict(mlp(3).state_dict())
    assert same(run.training.masks, masks)
    assert_zero_outside(run.model, run.training, run.optimizer)
    with pytest.warns(UserWarning, match="lie outside the masks and were set to 0"):
        run.train(STOP + 1, STOP)


@pytest.mark.parametrize("method", ["rigl", "set"])
@optimizers
@pytest.mark.filterwarnings("error")
def test_weights_that_are_swapped_in_for_a_look_and_out_again_leave_no_trace(method, optimizer):
    """As those of the best step, for an evaluation between two steps."""

    def run(swap: bool) -> Run:
        model = mlp()
        made = OPTIMIZERS[optimizer](model)
        options = {"every": 2, "until": STEPS, "drop_fraction": 0.5}
        again = Run(model, made, fs.sparsify(model, made, method, sparsity=2 / 3, steps=STEPS, **options))
        train_steps(model, made, 3)
        best = saved(model.state_dict())
        train_steps(model, made, 8, start=3)
        now, before = saved(model.state_dict()), again.states()
        if swap:
            model.load_state_dict(best)
            assert same(model.state_dict(), best)
            assert not same(again.training.masks, before["training"]["masks"])
            model.load_state_dict(now)
            assert same(again.states(), before)
        return again.train(STEPS, 8)

    assert same(run(True).states(), run(False).states())

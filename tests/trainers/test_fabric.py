"""Loops of Lightning Fabric, which wraps the model and the optimizer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flatsparse as fs
from tests.helpers import adamw, assert_zero_outside, batch, copied, mlp, same

fabric_module = pytest.importorskip("lightning.fabric")

STEPS, STOP = 14, 7
OPTIONS = {"rigl": {"every": 3, "until": STEPS, "drop_fraction": 0.5}, "static": {}}
pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.filterwarnings("ignore:.*LeafSpec")]

orders = pytest.mark.parametrize("order", ["before", "after"])
methods = pytest.mark.parametrize("method", list(OPTIONS))


class Loop:
    """A loop of Fabric whose model was made sparse before or after ``fabric.setup``.

    Attributes:
        net: the model as it was before ``setup``.
        inner: the optimizer as it was before.
        seen: of every forward, whether it was in training mode and whether at w + e.
    """

    def __init__(self, order: str, method: str = "rigl", precision: str = "32-true", kind: Any = fs.S2SAM) -> None:
        self.fabric = fabric_module.Fabric(accelerator="cpu", devices=1, precision=precision)
        self.net = mlp()
        self.inner = kind(adamw(self.net.parameters()), rho=0.05)
        if order == "before":
            self.sparsify(self.net, self.inner, method)
        self.model, self.optimizer = self.fabric.setup(self.net, self.inner)
        if order == "after":
            self.sparsify(self.model, self.optimizer, method)
        self.seen: list[tuple[bool, bool]] = []
        self.net[0].register_forward_pre_hook(
            lambda module, args: self.seen.append((module.training, self.inner.is_perturbed))
        )

    def sparsify(self, model: nn.Module, optimizer: Any, method: str) -> None:
        options = {"sparsity": 0.8, "steps": STEPS, "exclude": ["3.weight"], **OPTIONS[method]}
        self.training = fs.sparsify(model, optimizer, method, **options)

    def loss(self, step: int) -> Tensor:
        inputs, targets = batch(step)
        return nn.functional.cross_entropy(self.model(inputs), targets)

    def backward(self, step: int) -> None:
        self.model.train()
        self.fabric.backward(self.loss(step))

    def train(self, until: int, start: int = 0) -> Loop:
        for step in range(start, until):
            self.backward(step)
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=0.5)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self

    def everything(self) -> Any:
        return copy.deepcopy((self.net.state_dict(), self.inner.state_dict(), self.training.state_dict()))

    def true(self) -> dict[str, Tensor]:
        """The true weights and the buffers, whatever the model shows."""
        with self.inner.restored():
            return {name: t.detach().clone() for name, t in self.net.state_dict(keep_vars=True).items()}


@orders
@methods
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_resumed_loop_is_the_one_that_never_stopped(tmp_path, order, method, precision):
    whole = Loop(order, method, precision).train(STEPS)
    assert [at for _, at in whole.seen] == [False] + [True] * (STEPS - 1)
    assert list(whole.training.masks) == ["0.weight"]  # without Fabric's prefix
    first = Loop(order, method, precision).train(STOP)
    file = tmp_path / "run.ckpt"
    first.fabric.save(file, {"model": first.model, "optimizer": first.optimizer, "step": STOP})
    again = Loop(order, method, precision)
    assert again.fabric.load(file, {"model": again.model, "optimizer": again.optimizer}) == {"step": STOP}
    again.train(STEPS, start=STOP)
    assert all(at for _, at in again.seen)
    assert same(again.everything(), whole.everything())
    assert_zero_outside(again.net, again.training, again.inner)
    if method == "rigl":
        assert not same(copied(first.training.masks), copied(again.training.masks))


@methods
def test_it_does_not_matter_whether_the_model_was_set_up_first(method):
    before, after = (Loop(order, method).train(STEPS) for order in ("before", "after"))
    assert same(before.everything(), after.everything())


@orders
def test_the_loop_is_the_plain_one(order):
    """Nothing that Fabric wraps changes a bit of it."""
    model = mlp()
    optimizer = fs.S2SAM(adamw(model.parameters()), rho=0.05)
    options = {"sparsity": 0.8, "steps": STEPS, "exclude": ["3.weight"], **OPTIONS["rigl"]}
    fs.sparsify(model, optimizer, "rigl", **options)
    for step in range(STEPS):
        inputs, targets = batch(step)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    assert same(dict(Loop(order).train(STEPS).net.state_dict()), dict(model.state_dict()))


@orders
def test_between_forward_and_step_evaluations_and_files_are_of_the_true_weights(tmp_path, order):
    loop = Loop(order).train(STOP)
    loop.backward(STOP)
    assert loop.inner.is_perturbed
    true = loop.true()
    assert not same(copied(dict(loop.net.named_parameters())), {n: true[n] for n, _ in loop.net.named_parameters()})
    loop.fabric.save(tmp_path / "inside.ckpt", {"model": loop.model, "optimizer": loop.optimizer})
    file = torch.load(tmp_path / "inside.ckpt", weights_only=True)
    assert same(dict(file["model"]), true)
    assert same(dict(loop.model.state_dict()), true)
    assert same(file["optimizer"]["sparse_training"]["masks"], copied(loop.training.masks))
    plain = mlp()
    plain.load_state_dict(true)
    inputs = batch(99)[0]
    loop.model.eval()
    with torch.no_grad():
        assert same(loop.model(inputs), plain.eval()(inputs))
    assert loop.seen[-1] == (False, False)
    loop.optimizer.eval()
    assert not loop.inner.is_perturbed


@orders
def test_accumulation_is_perturbed_throughout(order):
    loop = Loop(order)
    for step in range(STOP):
        for part in range(3):
            with loop.fabric.no_backward_sync(loop.model, enabled=part < 2):
                loop.backward(3 * step + part)
            loop.model.eval()
            with torch.no_grad():
                loop.model(batch(99)[0])
        loop.optimizer.step()
        loop.optimizer.zero_grad()
    assert [at for training, at in loop.seen if training] == [False] * 3 + [True] * 3 * (STOP - 1)
    assert not any(at for training, at in loop.seen if not training)


@orders
def test_sam_takes_both_gradients_through_the_closure(order):
    loop = Loop(order, kind=fs.SAM)
    for step in range(STOP):

        def closure(step: int = step) -> Tensor:
            loop.optimizer.zero_grad()
            loss = loop.loss(step)
            loop.fabric.backward(loss)
            return loss

        loop.optimizer.step(closure)
    assert [at for _, at in loop.seen] == [False, True] * STOP
    assert_zero_outside(loop.net, loop.training, loop.inner)


@orders
def test_a_training_may_be_in_the_file_too(tmp_path: Path, order):
    loop = Loop(order).train(STOP)
    state = {"model": loop.model, "optimizer": loop.optimizer, "training": loop.training}
    loop.fabric.save(tmp_path / "run.ckpt", state)
    again = Loop(order)
    parts = {"model": again.model, "optimizer": again.optimizer, "training": again.training}
    again.fabric.load(tmp_path / "run.ckpt", parts)
    assert same(again.everything(), loop.everything())
    assert same(again.train(STEPS, start=STOP).everything(), loop.train(STEPS, start=STOP).everything())


@orders
def test_masks_scored_on_data_see_the_model_inside(order):
    """SNIP takes gradients of its own, which Fabric's wrapper would refuse without ``fabric.backward``."""
    loop = Loop(order)
    loop.training.detach()
    model, optimizer = (loop.net, loop.inner) if order == "before" else (loop.model, loop.optimizer)
    snip = fs.methods.SNIP(batches=[batch(0)], loss_fn=nn.functional.cross_entropy)
    training = fs.sparsify(model, optimizer, snip, sparsity=0.5, steps=STEPS, seed=3)
    plain = mlp()
    plain.load_state_dict(Loop(order).net.state_dict())
    other = fs.sparsify(plain, adamw(plain.parameters()), snip, sparsity=0.5, steps=STEPS, seed=3)
    assert same(copied(training.masks), copied(other.masks))

"""Loops of timm's form: a scaler that clips and accumulates, averages of the weights, checkpoints, a schedule by updates.

The parts are of the form of timm's; timm's own are tried too where it can be imported.
"""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import flatsparse as fs
from tests.helpers import adamw, assert_zero_outside, copied, image_loss, masked, same, saved, tiny_net

UPDATES, PARTS = 12, 2  # of a run, and batches of an update
HAS_TIMM = all(find_spec(name) is not None for name in ("timm", "torchvision"))


class Scaler:
    """Backward, and where an update is due: unscale, clip and step. Steps with gradients that are not finite are skipped."""

    def __init__(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)

    def __call__(self, loss, optimizer, clip_grad, parameters, need_update):
        self.scaler.scale(loss).backward()
        if need_update:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, clip_grad)
            self.scaler.step(optimizer)
            self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scaler.load_state_dict(state)


class Average(nn.Module):
    """A moving average of all of a model's state, made of a deep copy."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.module, self.decay = copy.deepcopy(model).eval(), decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int | None = None) -> None:
        for average, value in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            average.lerp_(value, 1 - self.decay) if average.is_floating_point() else average.copy_(value)


class AverageOfParameters(Average):
    """One that reads the parameters instead, and copies the buffers."""

    @torch.no_grad()
    def update(self, model: nn.Module, step: int | None = None) -> None:
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), 1 - self.decay)
        for average, value in zip(self.module.buffers(), model.buffers(), strict=True):
            average.copy_(value)


class Schedule:
    """A learning rate that falls with the updates, and restarts from the groups' first one when it is made anew."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.first = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]

    def step_update(self, num_updates: int) -> None:
        for group, first in zip(self.optimizer.param_groups, self.first, strict=True):
            group["lr"] = first * (1 - num_updates / (2 * UPDATES))


class Parts(NamedTuple):
    """What a loop is made of: the kinds of its scaler, average and schedule."""

    scaler: Any = Scaler
    average: Any = Average
    schedule: Any = Schedule


def timms() -> Parts:
    from timm.scheduler import CosineLRScheduler
    from timm.utils import ModelEmaV3, NativeScaler

    def schedule(optimizer: torch.optim.Optimizer) -> Any:
        return CosineLRScheduler(optimizer, t_initial=2 * UPDATES, warmup_t=3, t_in_epochs=False)

    return Parts(lambda: NativeScaler(device="cpu"), ModelEmaV3, schedule)


needs_timm = pytest.mark.skipif(not HAS_TIMM, reason="timm, or the torchvision that it imports, is not installed")
kinds = pytest.mark.parametrize("parts", [Parts, pytest.param(timms, marks=needs_timm)], ids=["of-its-form", "timm"])
methods = pytest.mark.parametrize("method", ["static", "rigl"])


class Loop:
    """A model, its optimizer and its sparse training, in a loop of such parts.

    Attributes:
        seen: of every forward, whether it was in training mode and at w + e.
        history: the weights after each update.
    """

    def __init__(self, parts: Parts, method: str = "rigl", zeroed: bool = True) -> None:
        self.model = tiny_net()
        self.optimizer = fs.S2SAM(adamw(self.model.parameters()), rho=0.05)
        options = {"every": 2, "until": UPDATES} if method == "rigl" else {}
        self.training = fs.sparsify(self.model, self.optimizer, method, sparsity=0.8, steps=UPDATES, **options)
        self.scaler, self.average = parts.scaler(), parts.average(self.model, decay=0.7)
        self.schedule = parts.schedule(self.optimizer)
        self.zeroed, self.updates = zeroed, 0
        self.seen: list[tuple[bool, bool]] = []
        self.history: list[dict[str, Tensor]] = []
        self.rates: list[float] = []
        self.model[3].register_forward_pre_hook(
            lambda module, args: self.seen.append((module.training, self.optimizer.is_perturbed))
        )

    def train(self, until: int, spoiled: int | None = None) -> Loop:
        """Take updates; the gradient of one may be spoiled, so that the scaler skips it."""
        for update in range(self.updates, until):
            for part in range(PARTS):
                with torch.autocast("cpu", torch.bfloat16):
                    loss = image_loss(self.model, PARTS * update + part) / PARTS
                loss = loss * float("inf") if update == spoiled else loss
                due = part == PARTS - 1
                self.scaler(loss, self.optimizer, clip_grad=0.5, parameters=self.model.parameters(), need_update=due)
            self.updates += 1
            self.optimizer.zero_grad()
            self.average.update(self.model, step=self.updates)
            if self.zeroed:
                self.training.zero_outside(self.average)
            self.schedule.step_update(num_updates=self.updates)
            self.rates.append(self.optimizer.base.param_groups[0]["lr"])
            self.history.append(copied(self.model.state_dict()))
        return self

    def save(self) -> dict[str, Any]:
        """Return what timm's ``CheckpointSaver`` writes, read from a file."""
        parts = {"state_dict": self.model, "optimizer": self.optimizer, "amp_scaler": self.scaler}
        parts["state_dict_ema"] = self.average.module
        return saved({"updates": self.updates} | {name: part.state_dict() for name, part in parts.items()})

    def resume(self, file: dict[str, Any]) -> Loop:
        self.model.load_state_dict(file["state_dict"])
        self.optimizer.load_state_dict(file["optimizer"])
        self.scaler.load_state_dict(file["amp_scaler"])
        self.average.module.load_state_dict(file["state_dict_ema"])
        self.updates = file["updates"]
        return self


def outside(model: nn.Module, training: fs.SparseTraining) -> int:
    """The number of a model's weights outside the masks that are not 0."""
    return sum(int(p.detach()[~mask].count_nonzero()) for p, mask in masked(model, training).values())


@kinds
@methods
@pytest.mark.filterwarnings("error")
def test_a_resumed_loop_is_the_one_that_never_stopped(parts, method):
    whole = Loop(parts(), method).train(UPDATES)
    first = Loop(parts(), method).train(5)
    again = Loop(parts(), method).resume(first.save())
    assert same(again.save(), first.save())
    again.train(UPDATES)
    assert same(again.save(), whole.save())
    assert again.rates == whole.rates[5:]
    assert len(set(whole.rates)) > UPDATES / 2  # the base's rate has followed the schedule
    assert_zero_outside(again.model, again.training, again.optimizer)
    assert [at for _, at in whole.seen] == [False] * PARTS + [True] * PARTS * (UPDATES - 1)
    assert all(at for _, at in again.seen)


@kinds
@pytest.mark.filterwarnings("error")
def test_an_average_is_of_the_true_weights_and_zero_where_masks_were_zeroed(parts):
    loop = Loop(parts(), "rigl")
    mean, initial = copied(loop.average.module.state_dict()), copied(loop.training.masks)
    for update in range(UPDATES):
        loop.train(update + 1)
        now, average = loop.model.state_dict(), loop.average.module.state_dict()
        for name, value in now.items():
            if name in loop.training.masks:
                mean[name] = (0.7 * mean[name] + 0.3 * value) * loop.training.masks[name]
                assert torch.allclose(average[name], mean[name], atol=1e-6)
        assert outside(loop.average.module, loop.training) == 0
    assert not same(initial, copied(loop.training.masks))


@kinds
def test_an_average_of_moving_masks_is_denser_than_the_model_without_the_line(parts):
    assert outside((loop := Loop(parts(), "rigl", zeroed=False).train(UPDATES)).average.module, loop.training) > 0
    assert outside((loop := Loop(parts(), "static", zeroed=False).train(UPDATES)).average.module, loop.training) == 0


@kinds
def test_an_average_after_a_step_that_the_scaler_skipped_is_of_the_true_weights(parts):
    loop = Loop(parts(), "static").train(4)
    before, average = copied(loop.model.state_dict()), copied(loop.average.module.state_dict())
    loop.train(5, spoiled=4)
    assert loop.optimizer.is_perturbed  # its forward's window is still open
    assert loop.training.steps_taken == 4
    for name in loop.training.masks:
        assert torch.equal(loop.history[-1][name], before[name])
        expected = torch.lerp(average[name], before[name], 0.3)
        assert torch.allclose(loop.average.module.state_dict()[name], expected, atol=1e-7)


def test_an_average_that_reads_parameters_needs_the_true_weights_back_after_a_skipped_step():
    """Direct reads see w + e until the next evaluation, so ``optimizer.eval()`` comes before such an average."""
    model = tiny_net()
    loop = Loop(Parts(average=AverageOfParameters), "static").train(4)
    before = copied(loop.model.state_dict())
    loop.train(5, spoiled=4)
    assert not torch.equal(loop.model[0].weight, before["0.weight"])
    loop.optimizer.eval()
    assert torch.equal(loop.model[0].weight, before["0.weight"])
    average = AverageOfParameters(model, decay=0.0)
    average.update(loop.model)
    assert torch.equal(average.module[0].weight, before["0.weight"])


def test_a_copy_of_the_model_evaluates_as_itself_and_follows_nobody():
    loop = Loop(Parts(), "rigl").train(3)
    shown = copied(loop.average.module.state_dict())
    image_loss(loop.model, 99).backward()  # the model's weights are perturbed now, the average's are not
    assert loop.optimizer.is_perturbed
    image_loss(loop.average.module, 99)
    assert same(copied(loop.average.module.state_dict()), shown)


@needs_timm
def test_timms_own_saver_and_resume(tmp_path: Path):
    from timm.models import resume_checkpoint
    from timm.utils import CheckpointSaver

    loop = Loop(timms(), "rigl").train(5)
    options = {"model_ema": loop.average, "amp_scaler": loop.scaler, "checkpoint_dir": str(tmp_path)}
    CheckpointSaver(loop.model, loop.optimizer, **options).save_checkpoint(0)
    again, whole = Loop(timms(), "rigl"), loop.train(UPDATES)
    resume_checkpoint(again.model, str(tmp_path / "last.pth.tar"), again.optimizer, again.scaler)
    again.updates = 5
    again.train(UPDATES)
    assert same(copied(again.model.state_dict()), copied(whole.model.state_dict()))
    assert same(copied(again.training.masks), copied(whole.training.masks))

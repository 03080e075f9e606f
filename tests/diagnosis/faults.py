"""Training loops with one mistake each, and the name that the doctor has for it."""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import flatsparse as fs
from tests.diagnosis.loops import STEPS, Watcher, backward, closure_of, evaluate, loss_of, parts, train
from tests.helpers import adamw, batch, mlp, sgd

FAULTS: dict[Callable[[Watcher], Any], tuple[str, ...]] = {}


def fault(*names: str) -> Callable[[Any], Any]:
    """Register a loop with the name of its mistake, and those that come of it."""

    def register(loop: Any) -> Any:
        FAULTS[loop] = names
        return loop

    return register


# -- masks and weights ------------------------------------------------------------------------------------------------


@fault("weights-revived")
def noise_is_added_to_the_weights_after_the_step(watch: Watcher) -> None:
    model, optimizer, training = parts(kind=None)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            for p in model.parameters():
                p.data.add_(1e-3 * torch.ones_like(p))


@fault("weights-revived")
def weights_are_initialized_again_after_sparsify(watch: Watcher) -> None:
    model, optimizer, training = parts()
    model.apply(lambda m: m.reset_parameters() if isinstance(m, nn.Linear) else None)
    with watch(model, optimizer, training):
        backward(model, 0)
        optimizer.step()


@fault("masks-written")
def a_mask_is_written_to(watch: Watcher) -> None:
    model, optimizer, training = parts("static")
    next(iter(training.masks.values()))[0] = True
    with watch(model, optimizer, training):
        train(model, optimizer)


@fault("masks-not-saved")
def a_checkpoint_has_no_masks(watch: Watcher) -> None:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            if step % 2:
                torch.save({"model": model.state_dict(), "epoch": step // 2, "loss": 0.1}, io.BytesIO())


@fault("average-outside-masks")
def an_average_of_weights_mixes_masks(watch: Watcher) -> None:
    model, optimizer, training = parts("set", kind=None)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
        evaluate(average)


@fault("average-outside-masks")
def an_average_by_hand_mixes_masks(watch: Watcher) -> None:
    model, optimizer, training = parts("set", kind=None)
    average = copy.deepcopy(model)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for a, p in zip(average.parameters(), model.parameters(), strict=True):
                    a.mul_(0.9).add_(p, alpha=0.1)


@fault("parameters-replaced")
def the_head_is_replaced_after_the_optimizer_was_made(watch: Watcher) -> None:
    model = mlp(norm=False)
    optimizer = fs.S2SAM(sgd(model.parameters()))
    model[2] = nn.Linear(16, 3)
    training = fs.sparsify(model, optimizer, "rigl", sparsity=0.6, steps=STEPS, every=3)
    with watch(model, optimizer, training):
        backward(model, 0)
        optimizer.step()


@fault("parameters-replaced", "masked-weights-replaced", "strangers", "replaced")
def a_layer_is_replaced_after_sparsify(watch: Watcher) -> None:
    model, optimizer, training = parts()
    model[2] = nn.Linear(16, 3)
    with watch(model, optimizer, training):
        train(model, optimizer)


@fault("optimizer-of-another-model", "no-gradient")
def a_copy_of_the_model_is_trained(watch: Watcher) -> None:
    model, optimizer, training = parts(kind=None)
    copied = copy.deepcopy(model)
    with watch(copied, optimizer, training):
        for step in range(STEPS):
            backward(copied, step)
            optimizer.step()
            optimizer.zero_grad()


@fault("masks-on-another-optimizer", "weights-revived")
def sparsify_has_another_optimizer(watch: Watcher) -> None:
    model, _, training = parts(kind=None)
    optimizer = adamw(model.parameters())
    with watch(model, optimizer, training):
        train(model, optimizer)


@fault("another-optimizer-stepped", "weights-revived", "gradient-carried-over")
def the_optimizer_made_before_is_stepped(watch: Watcher) -> None:
    model = mlp(norm=False)
    first = sgd(model.parameters())
    model, optimizer, training = parts(model=model)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            first.step()
            first.zero_grad()


@fault("perturbation-unmasked")
def s2sam_is_made_after_sparsify(watch: Watcher) -> None:
    model, base, training = parts(kind=None)
    optimizer = fs.S2SAM(base).follow(model)
    with watch(model, optimizer, training):
        train(model, optimizer)


@fault("masks-out-of-step", "warning-the-masks-came-with", "state-outside-masks")
def masks_of_an_earlier_moment_are_loaded(watch: Watcher) -> None:
    model, optimizer, training = parts("set", every=2, steps=40)
    early = copy.deepcopy(training.state_dict())
    with watch(model, optimizer, training):
        train(model, optimizer, 12)
        training.load_state_dict(early)
        train(model, optimizer, 2)


@fault("masks-not-saved")
def a_checkpoint_file_has_weights_alone(watch: Watcher) -> None:
    model, optimizer, training = parts()
    with watch(model, optimizer, training), tempfile.TemporaryDirectory() as folder:
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            torch.save(model.state_dict(), Path(folder) / "checkpoint.pt")


# -- steps and schedules ------------------------------------------------------------------------------------------------


@fault("base-stepped")
def the_base_is_stepped(watch: Watcher) -> None:
    model, optimizer, training = parts()
    base = optimizer.base
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            base.step()
            base.zero_grad()


@fault("two-optimizers", "weights-revived")
def two_optimizers_step_the_same_parameters(watch: Watcher) -> None:
    model, optimizer, training = parts()
    other = sgd(model.parameters(), lr=1e-3)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            other.step()
            optimizer.zero_grad()


@fault("scheduler-elsewhere", "warning-detected-call-of-lr")
def the_scheduler_is_of_another_optimizer(watch: Watcher) -> None:
    model = mlp(norm=False)
    first = sgd(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(first, 2)
    optimizer = fs.S2SAM(sgd(model.parameters()))
    training = fs.sparsify(model, optimizer, "rigl", sparsity=0.6, steps=STEPS, every=3)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()


@fault("scheduler-elsewhere", "warning-detected-call-of-lr")
def the_scheduler_is_of_a_copy(watch: Watcher) -> None:
    model, optimizer, training = parts()
    scheduler = torch.optim.lr_scheduler.StepLR(copy.deepcopy(optimizer.base), 2)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()


@fault("steps-exceeded")
def sparsify_is_told_the_number_of_epochs(watch: Watcher) -> None:
    model, optimizer, training = parts(steps=4, every=2)
    with watch(model, optimizer, training):
        for step in range(10):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()


@fault("rounds-never-begun")
def rounds_are_never_begun(watch: Watcher) -> None:
    model, optimizer, training = parts("lrr", steps=3)
    with watch(model, optimizer, training):
        for step in range(10):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()


# -- gradients ------------------------------------------------------------------------------------------------------------


@fault("gradient-carried-over")
def gradients_are_never_cleared(watch: Watcher) -> None:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()


@fault("no-gradient")
def gradients_are_cleared_before_the_step(watch: Watcher) -> None:
    model, optimizer, training = parts(kind=None)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.zero_grad()
            optimizer.step()


@fault("gradient-lost")
def accumulation_clears_each_part(watch: Watcher) -> None:
    model, optimizer, training = parts(steps=4, every=2)
    with watch(model, optimizer, training):
        for micro in range(STEPS):
            optimizer.zero_grad()
            (loss_of(model, micro) / 2).backward()
            if micro % 2:
                optimizer.step()


@fault("clipped-with-pruned")
def gradients_are_clipped_with_those_of_pruned_weights(watch: Watcher) -> None:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
            optimizer.zero_grad()


@fault("unscaled-twice")
def the_scaler_unscales_base_and_wrapper(watch: Watcher) -> None:
    model, optimizer, training = parts()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            scaler.scale(loss_of(model, step)).backward()
            scaler.unscale_(optimizer.base)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()


@fault("step-past-the-scaler")
def the_step_goes_past_the_scaler(watch: Watcher) -> None:
    model, optimizer, training = parts()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            scaler.scale(loss_of(model, step)).backward()
            optimizer.step()
            optimizer.zero_grad()


# -- windows of perturbed weights ------------------------------------------------------------------------------------------


@fault("unperturbed")
def no_forward_is_followed(watch: Watcher) -> None:
    model = mlp(norm=False)
    optimizer = fs.S2SAM(sgd(model.parameters()))
    with watch(model, optimizer):
        train(model, optimizer)


@fault("unperturbed")
def gradients_are_taken_by_torch_func(watch: Watcher) -> None:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        for step in range(STEPS):
            inputs, targets = batch(step)
            values = {name: p.detach() for name, p in model.named_parameters()}

            def loss(values: Any, inputs: Any = inputs, targets: Any = targets) -> Any:
                return nn.functional.cross_entropy(torch.func.functional_call(model, values, (inputs,)), targets)

            for name, g in torch.func.grad(loss)(values).items():
                model.get_parameter(name).grad = g
            optimizer.step()
            optimizer.zero_grad()


@fault("arrival")
def an_evaluation_with_gradients_comes_before_the_backward(watch: Watcher) -> None:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        for step in range(STEPS):
            loss = loss_of(model, step)
            model.eval()
            loss_of(model, 99)
            model.train()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


@fault("evaluated-in-window")
def a_part_is_evaluated_in_the_window(watch: Watcher) -> None:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            with torch.no_grad():
                model[0](batch(99)[0])
            optimizer.step()
            optimizer.zero_grad()


@fault("evaluated-in-window")
def an_evaluation_forgets_eval_and_no_grad(watch: Watcher) -> None:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            if step == 5:
                loss_of(model, 99).item()


@fault("copied-in-window")
def an_average_is_taken_in_the_window(watch: Watcher) -> None:
    model, optimizer, _ = parts(None)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    with watch(model, optimizer):
        for step in range(STEPS):
            backward(model, step)
            for name, p in model.named_parameters():
                average[name].lerp_(p.detach(), 0.1)
            optimizer.step()
            optimizer.zero_grad()


@fault("copied-in-window")
def the_model_is_copied_in_the_window(watch: Watcher) -> None:
    model, optimizer, training = parts("static")
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            copy.deepcopy(model)
            optimizer.step()
            optimizer.zero_grad()


@fault("saved-in-window")
def a_part_is_saved_in_the_window(watch: Watcher) -> None:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            torch.save(model[0].state_dict(), io.BytesIO())
            optimizer.step()
            optimizer.zero_grad()


@fault("written-in-window")
def weights_are_clamped_before_the_step(watch: Watcher) -> None:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            for p in model.parameters():
                p.data.clamp_(-0.5, 0.5)
            optimizer.step()
            optimizer.zero_grad()


@fault("trained-in-eval-mode", "unperturbed")
def the_model_stays_in_evaluation_mode(watch: Watcher) -> None:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            model.eval()


# -- statistics, storage, state -----------------------------------------------------------------------------------------


class OwnNorm(nn.Module):
    """A layer with running statistics that torch knows nothing of."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return x - self.mean


@fault("statistics-twice")
def sam_counts_a_batch_twice_in_a_layer_of_ones_own(watch: Watcher) -> None:
    model, optimizer, training = parts(
        "static", fs.SAM, model=nn.Sequential(nn.Linear(6, 16), OwnNorm(16), nn.Linear(16, 3))
    )
    with watch(model, optimizer, training):
        for step in range(STEPS):
            optimizer.step(closure_of(model, optimizer, step))


@fault("statistics-twice")
def a_batch_goes_through_batch_norm_twice(watch: Watcher) -> None:
    model, optimizer, training = parts(model=mlp())
    with watch(model, optimizer, training):
        for step in range(STEPS):
            inputs, targets = batch(step)
            logits = model(inputs)
            nn.functional.cross_entropy(logits, targets).backward()
            with torch.no_grad():
                model(inputs).argmax(1).eq(targets).float().mean()
            optimizer.step()
            optimizer.zero_grad()


@fault("address-held", "addresses")
def a_layer_keeps_the_address_of_its_weight(watch: Watcher) -> None:
    torch.manual_seed(0)
    held = nn.Linear(6, 16)
    model = nn.Sequential(held, nn.Linear(16, 3))
    model.kept = {"weight": held.weight.data}  # as a kernel that was set up once
    model, optimizer, training = parts("static", model=model)
    with watch(model, optimizer, training):
        train(model, optimizer)


@fault("shared-memory")
def two_parameters_get_the_same_memory(watch: Watcher) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3))
    model, optimizer, training = parts("static", kind=None, model=model)
    model[1].bias.data = model[0].bias.data
    with watch(model, optimizer, training):
        train(model, optimizer)


@fault("state-outside-masks", "weights-revived")
def the_state_of_a_dense_run_is_put_back(watch: Watcher) -> None:
    model, optimizer, training = parts("static", kind=None)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            for p in model.parameters():
                optimizer.state[p]["momentum_buffer"] = torch.ones_like(p)


@fault("state-of-rows")
def the_state_is_of_rows(watch: Watcher) -> None:
    model, optimizer, training = parts(kind=None, base=lambda p: torch.optim.Adafactor(p, lr=0.01))
    with watch(model, optimizer, training):
        train(model, optimizer)


class Signs(torch.optim.Optimizer):
    """An optimizer with a step size for each weight, which begins as 1."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    size = self.state[p].setdefault("size", torch.ones_like(p))
                    p.sub_(size * p.grad.sign(), alpha=group["lr"])


@fault("state-begins-otherwise")
def an_optimizer_of_ones_own_begins_with_ones(watch: Watcher) -> None:
    model, optimizer, training = parts(kind=None, base=Signs)
    with watch(model, optimizer, training):
        train(model, optimizer)


@fault("state-not-fresh")
def grown_weights_take_long_steps(watch: Watcher) -> None:
    model, optimizer, training = parts(kind=None, base=adamw, fresh_state=False)
    with watch(model, optimizer, training):
        train(model, optimizer)


@fault("warning-loaded-weights-that-are")
def weights_of_another_run_are_loaded_without_their_masks(watch: Watcher) -> None:
    model, optimizer, training = parts()
    other, _, _ = parts(model=mlp(1, norm=False), seed=1)
    with watch(model, optimizer, training):
        model.load_state_dict(other.state_dict())
        train(model, optimizer)

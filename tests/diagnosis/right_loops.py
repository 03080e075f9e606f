"""Training loops of every kind, in which nothing is wrong. Each returns the model that it trained."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

import flatsparse as fs
from tests.diagnosis.loops import STEPS, Watcher, backward, closure_of, evaluate, loss_of, parts, train
from tests.helpers import adamw, batch, image_batch, mlp, sgd, tiny_net

Loop = Callable[[Watcher], nn.Module]
RIGHT: list[Loop] = []


def right(loop: Loop) -> Loop:
    """Register a loop."""
    RIGHT.append(loop)
    return loop


# -- orders of a step ---------------------------------------------------------------------------------------------------


@right
def plain(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts(kind=None)
    with watch(model, optimizer, training):
        train(model, optimizer)
    return model


@right
def dense_s2sam(watch: Watcher) -> nn.Module:
    model, optimizer, _ = parts(None)
    with watch(model, optimizer):
        train(model, optimizer)
    return model


@right
def sparse_s2sam_with_evaluations(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts(model=mlp())
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            evaluate(model)
    return model


@right
def zeroing_first_as_trainers_do(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        for step in range(STEPS):
            optimizer.zero_grad(set_to_none=False)
            backward(model, step)
            optimizer.step()
    return model


@right
def the_models_own_zero_grad(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts(base=adamw)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            model.zero_grad()
    return model


@right
def lightning_with_a_closure(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        for step in range(STEPS):
            optimizer.step(closure=closure_of(model, optimizer, step))
    return model


@right
def a_closure_for_a_plain_optimizer(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts(kind=None)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            optimizer.step(closure_of(model, optimizer, step))
    return model


@right
def accumulation(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts(model=mlp(), steps=4, every=2)
    with watch(model, optimizer, training):
        for micro in range(STEPS):
            (loss_of(model, micro) / 2).backward()
            if micro % 2:
                optimizer.step()
                optimizer.zero_grad()
    return model


@right
def evaluation_while_gradients_accumulate(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts(model=mlp(), steps=4, every=2)
    with watch(model, optimizer, training):
        for micro in range(STEPS):
            (loss_of(model, micro) / 2).backward()
            evaluate(model)
            if micro % 2:
                optimizer.step()
                optimizer.zero_grad()
    return model


@right
def two_losses_of_one_step(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        for step in range(STEPS):
            (loss_of(model, step) + loss_of(model, step + 50)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


@right
def a_target_by_the_model_itself(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        for step in range(STEPS):
            target = model(batch(step + 50)[0]).detach()
            nn.functional.mse_loss(model(batch(step)[0]), target).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


@right
def a_regularizer_of_the_weights(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        for step in range(STEPS):
            loss = loss_of(model, step)
            (loss + 1e-3 * sum(p.pow(2).sum() + p.clone().abs().sum() for p in model.parameters())).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


@right
def a_module_that_calls_its_parts(watch: Watcher) -> nn.Module:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(norm=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    model, optimizer, training = parts(model=Module())
    with watch(model, optimizer, training):
        for step in range(STEPS):
            inputs, targets = batch(step)
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


# -- scalers, precision, clipping -----------------------------------------------------------------------------------------


@right
def a_gradient_scaler(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            scaler.scale(loss_of(model, step)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return model


@right
def a_gradient_scaler_that_skips(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            scaler.scale(loss_of(model, step) * (float("inf") if step == 3 else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            evaluate(model)
    return model


@right
def clipping_after_unscaling_and_masking(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            scaler.scale(loss_of(model, step)).backward()
            scaler.unscale_(optimizer)
            training.mask_gradients()
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return model


@right
def clipping_that_does_nothing(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            nn.utils.clip_grad_norm_(model.parameters(), 100.0)
            optimizer.step()
            optimizer.zero_grad()
    return model


@right
def autocast(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        for step in range(STEPS):
            inputs, targets = batch(step)
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


@right
def gradient_norms_are_logged(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()
            optimizer.step()
            optimizer.zero_grad()
    return model


# -- SAM and its kin --------------------------------------------------------------------------------------------------------


@right
def sam_with_batch_norm(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts(kind=fs.SAM, model=mlp())
    with watch(model, optimizer, training):
        for step in range(STEPS):
            optimizer.step(closure_of(model, optimizer, step))
            evaluate(model)
    return model


@right
def sam_without_a_closure(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts(kind=fs.SAM, model=mlp())
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            with optimizer.perturbed():
                optimizer.zero_grad()
                backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
    return model


@right
def s2sam_by_hand(watch: Watcher) -> nn.Module:
    model = mlp()
    optimizer = fs.S2SAM(sgd(model.parameters()))
    with watch(model, optimizer):
        for step in range(STEPS):
            with optimizer.perturbed():
                backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
    return model


@right
def unmasked_perturbation(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts(kind=lambda base, rho: fs.S2SAM(base, rho, mask_perturbation=False))
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            evaluate(model)
    return model


@right
def rho_of_zero(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts(kind=lambda base, rho: fs.S2SAM(base, 0.0))
    with watch(model, optimizer, training):
        train(model, optimizer)
    return model


@right
def in_place_and_compact(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts(kind=lambda base, rho: fs.S2SAM(base, rho, in_place=True, compact=True))
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            evaluate(model)
    return model


@right
def convolutions_under_set(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts("set", base=adamw, model=tiny_net())
    with watch(model, optimizer, training):
        for step in range(STEPS):
            inputs, targets = image_batch(step)
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    return model


# -- schedules and rounds ---------------------------------------------------------------------------------------------------


@right
def a_scheduler_of_the_wrapper(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return model


@right
def a_scheduler_of_the_base(watch: Watcher) -> nn.Module:
    model = mlp(norm=False)
    base = sgd(model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(base, 0.1, total_steps=STEPS)
    optimizer = fs.S2SAM(base)
    training = fs.sparsify(model, optimizer, "gmp", sparsity=0.6, steps=STEPS, every=2)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return model


@right
def a_scheduler_on_plateaus(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts(kind=None)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step(evaluate(model))
    return model


@right
def rounds(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts("lth", steps=4)
    with watch(model, optimizer, training):
        for number in fs.rounds(training):
            train(model, optimizer, 4, start=4 * number)
            evaluate(model)
    return model


@right
def a_dense_optimizer_before_the_sparse_one(watch: Watcher) -> nn.Module:
    model = mlp(norm=False)
    first = adamw(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(first, 2)
    for step in range(3):
        backward(model, step)
        first.step()
        first.zero_grad()
        scheduler.step()
    model, optimizer, training = parts(model=model)
    with watch(model, optimizer, training):
        train(model, optimizer)
    return model


@right
def two_optimizers_of_two_parts(watch: Watcher) -> nn.Module:
    model = mlp(norm=False)
    optimizer = sgd(model[2].parameters())
    other = adamw(model[0].parameters())
    training = fs.sparsify(model, optimizer, "static", sparsity=0.6, steps=STEPS)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            other.step()
            optimizer.zero_grad()
            other.zero_grad()
    return model


@right
def a_frozen_layer(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts()
    model[0].requires_grad_(False)
    with watch(model, optimizer, training):
        train(model, optimizer)
    return model


# -- averages, checkpoints, acceleration, compilers ---------------------------------------------------------------------------


@right
def an_average_kept_within_the_masks(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts("set")
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
            for p, a in zip(model.parameters(), average.parameters(), strict=True):
                if p in training.zeroing():
                    training.zeroing()[p](a)
    return model


@right
def an_average_under_fixed_masks(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts("static")
    average = copy.deepcopy(model)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for a, p in zip(average.parameters(), model.parameters(), strict=True):
                    a.mul_(0.9).add_(p, alpha=0.1)
    return model


@right
def the_best_model_is_kept(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts("set")
    best: Any = None
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            if step == 3:
                best = copy.deepcopy(model), copy.deepcopy(model.state_dict())
                torch.save(model.state_dict(), io.BytesIO())
                torch.save({"model": model.state_dict(), "accuracy": 0.5}, io.BytesIO())
    del best
    return model


@right
def whole_checkpoints(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(saved, io.BytesIO())  # in the window, too
            optimizer.step()
            optimizer.zero_grad()
            file = io.BytesIO()
            torch.save({"epoch": step, "model": model.state_dict(), "sparse": training.state_dict()}, file)
    return model


@right
def resumed(watch: Watcher) -> nn.Module:
    first = parts()
    train(first[0], first[1], 4)
    states = [copy.deepcopy(part.state_dict()) for part in first]
    model, optimizer, training = parts(seed=1)
    with watch(model, optimizer, training):
        for part, state in zip((model, optimizer, training), states, strict=True):
            part.load_state_dict(state)
        train(model, optimizer, 4, start=4)
    return model


@right
def pruned_elsewhere(watch: Watcher) -> nn.Module:
    model = mlp(norm=False)
    for layer in (model[0], model[2]):
        prune.l1_unstructured(layer, "weight", 0.7)
        prune.remove(layer, "weight")
    optimizer = fs.S2SAM(sgd(model.parameters()))
    training = fs.sparsify(model, optimizer, "static", masks=fs.masks_from(model), steps=STEPS)
    with watch(model, optimizer, training):
        train(model, optimizer)
    return model


@right
def accelerated(watch: Watcher) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = fs.S2SAM(sgd(model.parameters()))
    training = fs.sparsify(model, optimizer, "rigl", sparsity=0.95, steps=STEPS, every=3)
    done = fs.accelerate(model, training)
    with watch(model, optimizer, training):
        for step in range(STEPS):
            source = torch.Generator().manual_seed(step)
            inputs, targets = torch.randn(32, 64, generator=source), torch.randint(10, (32,), generator=source)
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    done.restore()
    return model


@right
def checkpointed_activations(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        for step in range(STEPS):
            inputs, targets = batch(step)
            logits = torch.utils.checkpoint.checkpoint(model, inputs, use_reentrant=False)
            nn.functional.cross_entropy(logits, targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


@right
def compiled(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts()
    fast = torch.compile(model, backend="eager")
    with watch(model, optimizer, training):
        for step in range(STEPS):
            inputs, targets = batch(step)
            nn.functional.cross_entropy(fast(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


@right
def compiled_as_one_graph(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts(kind=None)
    with watch(model, optimizer, training):
        fast = torch.compile(model, backend="eager", fullgraph=True)
        for step in range(STEPS):
            inputs, targets = batch(step)
            nn.functional.cross_entropy(fast(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


class Scaled(torch.autograd.Function):
    """A function that reads its weight in its backward, without gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.clone().T

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight = ctx.saved_tensors
        return grad @ weight.clone(), grad.T @ x


@right
def a_function_with_its_own_backward(watch: Watcher) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 16, bias=False)
            self.last = nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(Scaled.apply(x, self.first.weight).relu())

    torch.manual_seed(0)
    model, optimizer, training = parts(model=Net())
    with watch(model, optimizer, training):
        train(model, optimizer)
    return model


@right
def exported_at_the_end(watch: Watcher) -> nn.Module:
    model, optimizer, training = parts()
    with watch(model, optimizer, training):
        train(model, optimizer)
        training.detach()
        model.eval()
        torch.save(model.state_dict(), io.BytesIO())
    return model


@right
def outside_the_masks_frozen(watch: Watcher) -> nn.Module:
    model = mlp()
    optimizer = fs.S2SAM(sgd(model.parameters()), rho=0.1)
    training = fs.sparsify(model, optimizer, "rigl", sparsity=0.5, steps=STEPS, every=3, outside="frozen")
    with watch(model, optimizer, training):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            evaluate(model)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": STEPS}, io.BytesIO())
    return model

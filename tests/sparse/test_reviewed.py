"""What a reader of the code found, each by the script that showed it."""

import gc
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

import flatsparse as fs
from flatsparse.common.errors import InputError
from flatsparse.models.causal_transformer import causal_transformer
from flatsparse.sam import kernel
from flatsparse.schedules import Linear
from tests.helpers import adamw, backward, batch, loss_at, mlp, s2sam, same, saved, sgd, train_steps, weights


def plain_sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


# -- torch.distributed.checkpoint, which takes a step of no length ----------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(["model", "optimizer", "training"])), ids="-".join)
@pytest.mark.parametrize("base", [plain_sgd, sgd, adamw])
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "s2sam"])
@pytest.mark.filterwarnings("error:the masks came")
def test_distributed_checkpoints_load_in_any_order(order, base, wrapped):
    def make(seed):
        model = mlp(seed)
        optimizer = s2sam(model, base, rho=0.5) if wrapped else base(model.parameters())
        return model, optimizer, fs.sparsify(model, optimizer, "set", sparsity=0.5, steps=20, every=4, seed=seed)

    model, optimizer, training = make(0)
    train_steps(model, optimizer, 6)
    state = saved(
        {
            "model": get_model_state_dict(model),
            "optimizer": get_optimizer_state_dict(model, optimizer),
            "training": training.state_dict(),
        }
    )
    other, resumed, its = make(1)
    for w in its.masked_weights:
        w.seed = 0  # only what the state holds shall differ
    load = {
        "model": lambda: set_model_state_dict(other, state["model"]),
        "optimizer": lambda: set_optimizer_state_dict(other, resumed, state["optimizer"]),
        "training": lambda: its.load_state_dict(state["training"]),
    }
    for part in order:
        load[part]()
    assert its.steps_taken == 6
    train_steps(model, optimizer, 6, start=6)
    train_steps(other, resumed, 6, start=6)
    assert same(weights(model), weights(other))
    assert same(dict(training.masks), dict(its.masks))


# -- schedules of ρ ---------------------------------------------------------------------------------------------------


def test_a_schedule_goes_on_after_the_base_s_own_state_is_loaded():
    model = mlp()
    optimizer = s2sam(model, rho=Linear(1.0, 0.0, until=10))
    optimizer.load_state_dict(saved(sgd(mlp().parameters()).state_dict()))
    train_steps(model, optimizer, 8)
    assert optimizer.param_groups[0]["rho"] == pytest.approx(Linear(1.0, 0.0, until=10)(9))


@pytest.mark.parametrize("to_base", [False, True])
def test_a_group_that_comes_later_follows_the_schedule(to_base):
    model = mlp()
    optimizer = fs.S2SAM(sgd(model[0].parameters()), rho=Linear(1.0, 0.0, until=10)).follow(model)
    train_steps(model, optimizer, 3)
    (optimizer.base if to_base else optimizer).add_param_group({"params": model[3].parameters()})
    train_steps(model, optimizer, 2, start=3)
    assert [group["rho"] for group in optimizer.param_groups] == [pytest.approx(Linear(1.0, 0.0, until=10)(6))] * 2


# -- scores on data ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("method", ["snip", "grasp"])
@pytest.mark.parametrize("how", ["wrapper", "in place"])
def test_compiled_models_can_be_scored(method, how):
    torch._dynamo.reset()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = mlp()

        def forward(self, inputs):
            return self.layers(inputs)

    model = Net()
    compiled = torch.compile(model, backend="aot_eager") if how == "wrapper" else model
    if how == "in place":
        model.compile(backend="aot_eager")
    options = {"per_class": None} if method == "grasp" else {}
    optimizer = fs.S2SAM(sgd(model.parameters()), rho=0.5)
    training = fs.sparsify(
        compiled, optimizer, method, sparsity=0.5, steps=9, batches=[batch()], loss_fn=F.cross_entropy, **options
    )
    train_steps(compiled, optimizer, 3)
    loss_at(compiled)
    assert optimizer.is_perturbed
    assert training.sparsity == pytest.approx(0.5, abs=0.01)
    torch._dynamo.reset()


def test_attention_can_be_scored_by_gradient_flow():
    model = causal_transformer(vocabulary=11, width=8, depth=1, heads=2, length=6)
    tokens = torch.randint(11, (4, 6))
    loss = lambda outputs, targets: F.cross_entropy(outputs.flatten(0, 1), targets.flatten())  # noqa: E731
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"batches": [(tokens, tokens)], "loss_fn": loss, "per_class": None}
    assert fs.sparsify(model, optimizer, "grasp", sparsity=0.5, steps=9, **options).sparsity > 0.45


@pytest.mark.parametrize("method", ["snip", "grasp"])
def test_scores_are_those_of_the_true_weights(method):
    options = {"batches": [batch(9)], "loss_fn": F.cross_entropy, **({"per_class": None} if method == "grasp" else {})}
    found = []
    for rho in (5.0, 0.0):
        model = mlp()
        optimizer = s2sam(model, rho=rho)
        if rho:
            train_steps(model, optimizer, 3)
            trained = saved(model.state_dict())
            loss_at(model)  # a window is open
        else:
            model.load_state_dict(trained)
        training = fs.sparsify(model, optimizer, method, sparsity=0.5, steps=9, **options)
        found.append({name: mask.clone() for name, mask in training.masks.items()})
    assert same(*found)


# -- directions and the compiled pass ---------------------------------------------------------------------------------


def test_a_custom_direction_stays_within_the_masks():
    model = mlp()
    optimizer = s2sam(model, rho=0.5, direction=lambda o, g: {p: torch.ones_like(p) for p in g})
    training = fs.sparsify(model, optimizer, "static", sparsity=0.5, steps=9)
    train_steps(model, optimizer, 2)
    loss_at(model)
    assert optimizer.is_perturbed
    assert all((dict(model.named_parameters())[name][~mask] == 0).all() for name, mask in training.masks.items())


def test_momentum_waits_for_parameters_that_have_none_yet():
    model = mlp()
    optimizer = s2sam(model, rho=0.5, direction="momentum")
    model[3].requires_grad_(False)
    train_steps(model, optimizer, 2)
    model[3].requires_grad_(True)
    backward(model, 2)
    optimizer.base.state[model[3].weight].pop("momentum_buffer", None)
    optimizer.step()


def test_the_compiled_pass_asks_at_every_step_whether_it_suits():
    try:
        kernel.library()
    except InputError as problem:
        pytest.skip(str(problem))
    ends = []
    for with_kernel in (False, True):
        model = mlp()
        optimizer = s2sam(model, rho=0.5, kernel=with_kernel)
        train_steps(model, optimizer, 3)
        optimizer.param_groups[0]["maximize"] = True
        train_steps(model, optimizer, 2, start=3)
        ends.append(weights(model))
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_optimizers_that_are_gone_leave_no_hooks():
    model = mlp()
    for _ in range(5):
        s2sam(model)
    gc.collect()
    assert not model._forward_pre_hooks

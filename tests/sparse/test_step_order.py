"""What happens within a step, in loops that do more than step: updates, clipping, scalers, closures."""

import dataclasses
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatsparse as fs
from flatsparse.sparse.plan import Plan
from flatsparse.sparse.rules import Rule
from tests.helpers import (
    assert_zero_outside,
    bases,
    copied,
    image_loss,
    is_plus_zero,
    masked,
    rewired_plainly,
    rigl,
    same,
    seen,
    sgd,
    state_of,
    take_step,
    tiny_net,
    train_on_images,
)

# -- RigL's update ----------------------------------------------------------------------------------------------------


@bases
@pytest.mark.parametrize("weight_step", [False, True])
def test_an_update_of_rigl_takes_the_place_of_the_weight_step_unless_asked(base, weight_step):
    model = tiny_net()
    optimizer = base(model.parameters())
    training = rigl(model, optimizer, weight_step=weight_step)
    train_on_images(model, optimizer, 2)
    weights, masks = copied(dict(model.named_parameters())), copied(training.masks)
    states = {name: copied(state_of(optimizer, p)) for name, p in model.named_parameters()}
    take_step(model, optimizer, 3)
    assert not same(masks, training.masks)
    assert training.steps_taken == 3
    still = []
    for name, p in model.named_parameters():
        stay = masks[name] & training.masks[name] if name in masks else torch.ones_like(p, dtype=torch.bool)
        now = [p, *state_of(optimizer, p).values()]
        still += [
            torch.equal(a[stay], b[stay]) for a, b in zip(now, [weights[name], *states[name].values()], strict=True)
        ]
    assert len(still) > len(weights)
    assert not any(still) if weight_step else all(still)


def test_an_update_of_rigl_is_the_papers_from_the_gradient_at_these_weights():
    model = tiny_net()
    optimizer = sgd(model.parameters())
    training = rigl(model, optimizer)  # the drop fraction falls to 0 at step 15
    train_on_images(model, optimizer, 2)
    optimizer.zero_grad()
    image_loss(model, 3).backward()
    fraction = 0.3 / 2 * (1 + math.cos(math.pi * 3 / 15))
    wanted = {n: rewired_plainly(w, w.grad, mask, fraction) for n, (w, mask) in masked(model, training).items()}
    optimizer.step()
    assert same(wanted, training.masks)


def test_gradients_are_back_after_an_update_and_zero_outside_the_new_masks():
    model = tiny_net()
    optimizer = sgd(model.parameters())
    training = rigl(model, optimizer)
    train_on_images(model, optimizer, 2)
    old = copied(training.masks)
    optimizer.zero_grad()
    image_loss(model, 3).backward()
    before = {name: (p.grad, p.grad.clone()) for name, p in model.named_parameters()}
    optimizer.step()
    for name, p in model.named_parameters():
        grad, values = before[name]
        assert p.grad is grad
        live = old[name] & training.masks[name] if name in old else torch.ones_like(p, dtype=torch.bool)
        assert torch.equal(p.grad, values * live)
        assert p.grad.any()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_gradients_of_dead_weights_that_are_not_finite_count_as_zero(value):
    ran = []
    for written in (0.0, value):
        model = tiny_net()
        optimizer = sgd(model.parameters())
        training = rigl(model, optimizer)
        for step in range(1, 8):
            optimizer.zero_grad()
            image_loss(model, step).backward()
            for weight, mask in masked(model, training).values():
                weight.grad[~mask & (torch.arange(mask.numel()).view(mask.shape) % 2 == 0)] = written
            optimizer.step()
        assert all(p.isfinite().all() for p in model.parameters())
        ran.append(seen(model, optimizer, training))
    assert same(*ran)


# -- masked gradients and clipping ------------------------------------------------------------------------------------


def live_norm(model, training):
    masks = training.masks
    parts = [p.grad[masks[name]] if name in masks else p.grad.flatten() for name, p in model.named_parameters()]
    return torch.cat(parts).norm()


def test_after_mask_gradients_a_norm_is_that_of_the_live_weights():
    model = tiny_net()
    training = rigl(model, sgd(model.parameters()))
    image_loss(model, 1).backward()
    dense = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    wanted = live_norm(model, training)
    training.mask_gradients()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    assert norm == pytest.approx(wanted.item(), rel=1e-5)
    assert norm < 0.999 * dense


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("calls", [1, 2])
def test_due_rules_see_the_dense_gradient_after_mask_gradients(set_to_none, calls):
    ran = []
    for count in (0, calls):
        model = tiny_net()
        optimizer = sgd(model.parameters())
        training = rigl(model, optimizer)
        for step in range(1, 11):
            optimizer.zero_grad(set_to_none=set_to_none)
            image_loss(model, step).backward()
            for _ in range(count):
                training.mask_gradients()
            optimizer.step()
        ran.append(seen(model, optimizer, training))
    assert same(*ran)


@pytest.mark.parametrize("again", [False, True])
def test_a_rule_scores_by_the_gradient_before_it_was_clipped_to_nothing(again):
    ran = []
    for clip in (False, True):
        model = tiny_net()
        optimizer = sgd(model.parameters())
        training = rigl(model, optimizer)
        train_on_images(model, optimizer, 2)
        optimizer.zero_grad()
        image_loss(model, 3).backward()
        training.mask_gradients()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-30)
        if again:
            training.mask_gradients()
        optimizer.step()
        ran.append(copied(training.masks))
    assert same(*ran)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("masked_again", [True, False])
def test_a_gradient_kept_for_a_step_that_never_came_is_not_used_later(set_to_none, masked_again):
    ran = []
    for given_up in (False, True):
        model = tiny_net()
        optimizer = sgd(model.parameters())
        training = rigl(model, optimizer)
        train_on_images(model, optimizer, 2)
        model.eval()  # so that the extra pass leaves no trace in batch norm
        if given_up:
            optimizer.zero_grad(set_to_none=set_to_none)
            image_loss(model, 77).backward()
            training.mask_gradients()
        optimizer.zero_grad(set_to_none=set_to_none)
        image_loss(model, 3).backward()
        if masked_again:
            training.mask_gradients()
        optimizer.step()
        ran.append(copied(training.masks))
    assert same(*ran)


# -- gradient scalers -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Recorder(Rule):
    """A rule and a method at once: it reads the dense gradients at every step and changes nothing."""

    seen: list
    weight_step: bool = True
    dense_gradient: bool = True

    def when(self, step):
        return True

    def __call__(self, state, step):
        self.seen.append({w.name: w.grad.clone() for w in state.masks})
        return {}

    def plan(self, sparsity, steps):
        return dataclasses.replace(fs.methods.Static().plan(sparsity, steps), rules=(self,))


def plain(base):
    return base


SCALED = pytest.mark.parametrize("wrap", [plain, fs.S2SAM])
FUSED = pytest.mark.parametrize("fused", [False, True])


def scaled_step(model, optimizer, scaler, step, spoil=False, before=lambda: None):
    optimizer.zero_grad()
    scaler.scale(image_loss(model, step)).backward()
    if spoil:
        model[7].bias.grad[0] = math.inf
    before()
    scaler.step(optimizer)
    scaler.update()


@bases
@FUSED
@SCALED
def test_a_scaled_run_is_the_run_without_a_scaler(base, fused, wrap):
    ran = []
    for scale in (1.0, 1024.0):  # a power of two, so that scaling is exact
        model = tiny_net()
        optimizer = wrap(base(model.parameters(), fused=fused))
        training = rigl(model, optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for step in range(1, 11):
            scaled_step(model, optimizer, scaler, step)
        assert training.steps_taken == 10
        assert_zero_outside(model, training, optimizer)
        ran.append(seen(model, optimizer, training))
    assert same(*ran)


@bases
@FUSED
@pytest.mark.parametrize("unscale_first", [False, True])
def test_rules_read_unscaled_gradients(base, fused, unscale_first):
    read = []
    for scale in (1.0, 1024.0):
        model = tiny_net()
        optimizer = base(model.parameters(), fused=fused)
        fs.sparsify(model, optimizer, rule := Recorder([]), sparsity=0.8, steps=9)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        before = (lambda opt=optimizer, s=scaler: s.unscale_(opt)) if unscale_first else (lambda: None)
        for step in (1, 2, 3):
            scaled_step(model, optimizer, scaler, step, before=before)
        read.append(rule.seen)
    assert len(read[0]) == 2
    assert all(grad.any() for grad in read[0][0].values())
    assert same(*read)


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def but_statistics(parts):
    """Without what batch norm counts: that moves in the forward, not in the step."""
    return [{k: v for k, v in part.items() if k.partition(".")[2] not in STATISTICS} for part in parts]


@bases
@FUSED
@SCALED
@pytest.mark.parametrize("mask_first", [False, True])
def test_a_step_that_a_scaler_skips_changes_nothing(base, fused, wrap, mask_first):
    model = tiny_net()
    optimizer = wrap(base(model.parameters(), fused=fused))
    training = rigl(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in (1, 2):
        scaled_step(model, optimizer, scaler, step)
    before = seen(model, optimizer, training)
    old = copied(training.masks)
    scaled_step(model, optimizer, scaler, 3, spoil=True, before=training.mask_gradients if mask_first else lambda: None)
    assert same(but_statistics(before), but_statistics(seen(model, optimizer, training)))
    scaled_step(model, optimizer, scaler, 3)  # the update that was due is made up for
    assert training.steps_taken == 3
    assert not same(old, training.masks)


# -- closures and other optimizers ------------------------------------------------------------------------------------


def counted(training):
    """How often each due rule is asked for new masks."""
    calls = []
    [rule] = training.plan.rules

    class Counting(Rule):
        when, weight_step, dense_gradient = rule.when, rule.weight_step, rule.dense_gradient

        def __call__(self, state, step):
            calls.append(step)
            return rule(state, step)

    training._step._plan = dataclasses.replace(training.plan, rules=(Counting(),))
    return calls


@bases
@pytest.mark.parametrize("keyword", [False, True])
def test_a_closure_given_to_a_plain_optimizer_is_the_loop_without_one(base, keyword):
    ran = []
    for closures in (False, True):
        model = tiny_net()
        optimizer = base(model.parameters())
        training = rigl(model, optimizer)
        calls = counted(training)
        for step in range(1, 11):

            def closure(model=model, optimizer=optimizer, step=step):
                optimizer.zero_grad()
                loss = image_loss(model, step)
                loss.backward()
                return loss

            if not closures:
                closure()
                optimizer.step()
            elif keyword:
                assert optimizer.step(closure=closure) > 0
            else:
                assert optimizer.step(closure) > 0
        assert calls == [3, 6, 9]
        ran.append(seen(model, optimizer, training))
    assert same(*ran)


def lbfgs_run(set_to_none):
    model = tiny_net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.05, max_iter=4)
    training = rigl(model, optimizer, weight_step=True)
    calls, evaluations = counted(training), []

    def closure(step):
        optimizer.zero_grad(set_to_none=set_to_none)
        loss = image_loss(model, step)
        loss.backward()
        evaluations.append(step)
        return loss

    for step in range(1, 11):
        before = model[3].weight.detach().clone()
        optimizer.step(lambda step=step: closure(step))
        assert not torch.equal(before, model[3].weight)
        for weight, mask in masked(model, training).values():
            assert is_plus_zero(weight[~mask])
    assert len(evaluations) > 20
    assert training.steps_taken == 10
    return calls, copied(training.masks)


def test_lbfgs_is_masked_and_updates_once_a_step():
    calls, _ = lbfgs_run(set_to_none=True)
    assert calls == [3, 6, 9]


def test_how_gradients_are_cleared_does_not_matter_to_a_rule_under_lbfgs():
    assert same(lbfgs_run(set_to_none=True), lbfgs_run(set_to_none=False))


OTHERS = {
    "Adam": ({}, ()),
    "NAdam": ({}, ()),
    "RAdam": ({}, ()),
    "RMSprop": ({"momentum": 0.9, "centered": True}, ()),
    "Adadelta": ({"lr": 1.0}, ()),
    # State that is not zero by nature: an infinity norm holds epsilon, step sizes and sums start above zero.
    "Adamax": ({}, ("exp_inf",)),
    "Rprop": ({"weight_decay": None}, ("step_size",)),
    "Adagrad": ({"initial_accumulator_value": 0.1}, ("sum",)),
    "ASGD": ({}, ()),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("method", ["rigl", "set"])
def test_other_elementwise_optimizers_write_nothing_outside_the_masks(name, method):
    options, exempt = OTHERS[name]
    options = {"lr": 0.01, "weight_decay": 0.01, **options}
    model = tiny_net()
    kind = getattr(torch.optim, name)
    optimizer = kind(model.parameters(), **{k: v for k, v in options.items() if v is not None})
    training = fs.sparsify(model, optimizer, method, sparsity=0.8, steps=20, every=3)
    first = copied(training.masks)
    train_on_images(model, optimizer, 10, after=lambda step: assert_zero_outside(model, training, optimizer, exempt))
    assert not same(first, training.masks)


class RowMixer(torch.optim.Optimizer):
    """Not element-wise: every entry moves by the mean of its row's gradient."""

    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, {"lr": lr})

    def step(self, closure=None):
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                if p.grad is not None:
                    p.sub_(self.param_groups[0]["lr"] * p.grad.mean(-1, keepdim=True))


class PeculiarSGD(torch.optim.SGD):
    """A subclass may do anything after its parent's step."""

    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.add_(0.01)


@pytest.mark.parametrize("kind", [RowMixer, getattr(torch.optim, "Muon", RowMixer)])
@pytest.mark.parametrize("method", ["static", "rigl", "gmp"])
def test_an_optimizer_that_mixes_entries_has_its_weights_masked_after_the_step(kind, method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Tanh(), nn.Linear(16, 4, bias=False))
    optimizer = kind(model.parameters(), lr=0.05)
    options = {} if method == "static" else {"every": 3}
    training = fs.sparsify(model, optimizer, method, sparsity=0.8, steps=12, **options)
    for _ in range(12):
        before = model[0].weight.detach().clone()
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(6, 8)), torch.arange(6) % 4).backward()
        optimizer.step()
        for weight, mask in masked(model, training).values():
            assert is_plus_zero(weight[~mask])
    assert method == "rigl" or not torch.equal(before, model[0].weight)
    assert training.sparsity == 1 - (192 - round(0.8 * 192)) / 192


def test_an_update_in_place_of_the_weight_step_holds_no_gradients_beyond_it():
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = RowMixer(model.parameters())
    fs.sparsify(model, optimizer, "rigl", sparsity=0.5, steps=12, every=2)
    for _ in range(2):  # the second is an update, which hides the gradients from the optimizer
        F.cross_entropy(model(torch.randn(6, 8)), torch.arange(6) % 4).backward()
        gradients = [weakref.ref(p.grad) for p in model.parameters()]
        optimizer.step()
        assert all(gradient() is not None for gradient in gradients)
        optimizer.zero_grad()
    assert all(gradient() is None for gradient in gradients)


def test_a_subclass_of_an_elementwise_optimizer_is_not_trusted():
    model = tiny_net()
    optimizer = PeculiarSGD(model.parameters(), lr=0.1)
    training = rigl(model, optimizer)
    take_step(model, optimizer, 1)
    assert_zero_outside(model, training, optimizer)


def test_a_plan_is_data_and_a_users_own_method_is_enough():
    @dataclasses.dataclass(frozen=True)
    class Diagonal:
        def plan(self, sparsity, steps):
            scores = lambda masks, model: {w.name: torch.eye(*w.weight.shape) for w in masks}  # noqa: E731
            return Plan(sparsity, scores, fs.methods.Static().distribution)

    model = nn.Linear(5, 5)
    training = fs.sparsify(model, sgd(model.parameters()), Diagonal(), sparsity=0.8, steps=9)
    assert torch.equal(training.masks["weight"], torch.eye(5, dtype=torch.bool))


# -- parameters that are replaced ---------------------------------------------------------------------------------------------


@bases
def test_weights_that_are_replaced_in_model_and_optimizer_are_told_of(base):
    model = tiny_net()
    optimizer = base(model.parameters())
    rigl(model, optimizer)
    train_on_images(model, optimizer, 2)
    new = {p: nn.Parameter(p.detach().clone()) for p in model.parameters()}
    for module in model.modules():
        module._parameters.update({name: new[p] for name, p in module._parameters.items() if p is not None})
    optimizer.param_groups[0]["params"] = list(new.values())
    with pytest.raises(fs.InputError, match=r"'0.weight' was replaced .* call sparsify after that"):
        take_step(model, optimizer, 3)


@bases
def test_a_layer_that_leaves_the_optimizer_keeps_its_zeros(base):
    model = tiny_net()
    optimizer = base(model.parameters())
    training = rigl(model, optimizer)
    train_on_images(model, optimizer, 2)
    first = next(model.parameters()).requires_grad_(False)
    optimizer.param_groups[0]["params"] = [p for p in model.parameters() if p is not first]
    train_on_images(model, optimizer, 4, start=2)
    assert_zero_outside(model, training, optimizer)

"""What `sparsify` offers and refuses, and weights and state that come from elsewhere."""

import gc
import math
import warnings

import pytest
import torch
from torch import nn

import flatsparse as fs
from tests.helpers import (
    adamw,
    assert_zero_outside,
    bases,
    copied,
    image_batch,
    is_plus_zero,
    masked,
    rigl,
    same,
    seen,
    sgd,
    state_of,
    take_step,
    tiny_net,
    train_on_images,
)

# -- what it offers ---------------------------------------------------------------------------------------------------


def test_the_model_is_sparse_at_once_and_to_the_weight():
    model = tiny_net()
    dense = copied(model.state_dict())
    optimizer = sgd(model.parameters())
    training = rigl(model, optimizer)
    assert sum(int(m.sum()) for m in training.masks.values()) == 646 - round(0.8 * 646)
    assert training.sparsity == 1 - 129 / 646
    assert_zero_outside(model, training, optimizer)
    for name, (weight, mask) in masked(model, training).items():
        assert torch.equal(weight[mask], dense[name][mask])


def test_masks_come_by_name_in_the_order_of_parameters_and_keep_their_identity():
    model = tiny_net()
    optimizer = sgd(model.parameters())
    training = rigl(model, optimizer)
    before = training.masks
    assert list(before) == ["0.weight", "3.weight", "7.weight"]
    assert all(mask.dtype == torch.bool for mask in before.values())
    train_on_images(model, optimizer, 7)
    assert all(training.masks[name] is mask for name, mask in before.items())


def test_the_report_agrees_with_the_masks():
    model = tiny_net()
    training = rigl(model, sgd(model.parameters()))
    report = training.report()
    assert [(r.name, r.shape, r.active, r.total) for r in report] == [
        (name, tuple(m.shape), int(m.sum()), m.numel()) for name, m in training.masks.items()
    ]
    assert [r.sparsity for r in report] == [1 - r.active / r.total for r in report]
    assert report.sparsity == training.sparsity == report.overall_sparsity
    assert all(name in str(report) for name in training.masks)
    assert "129 of 646 active" in str(report)


def test_the_seed_chooses_the_masks_and_the_global_one_does_not():
    def masks(seed):
        model = tiny_net()
        return copied(rigl(model, sgd(model.parameters()), seed=seed).masks)

    first = masks(1)
    torch.rand(5)
    assert same(first, masks(1))
    assert not same(first, masks(2))


def test_making_a_model_sparse_draws_nothing_from_the_global_generator():
    model = tiny_net()
    optimizer = sgd(model.parameters())
    before = torch.get_rng_state()
    fs.sparsify(model, optimizer, "set", sparsity=0.8, steps=20, every=2)
    train_on_images(model, optimizer, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_method_may_be_a_name_in_any_case_or_an_object():
    ran = []
    for method, options in [("rigl", {"every": 3}), ("RigL", {"every": 3}), (fs.methods.RigL(every=3), {})]:
        model = tiny_net()
        optimizer = sgd(model.parameters())
        training = fs.sparsify(model, optimizer, method, sparsity=0.8, steps=20, **options)
        train_on_images(model, optimizer, 7)
        ran.append(seen(model, optimizer, training))
    assert same(ran[0], ran[1])
    assert same(ran[0], ran[2])


def test_a_distribution_may_be_named():
    model = tiny_net()
    training = rigl(model, sgd(model.parameters()), distribution="uniform")
    assert [r.active for r in training.report()] == [11, 86, 32]


def test_a_wrapper_with_a_base_is_looked_through():
    class Wrapper:
        def __init__(self, base):
            self.base = base

    ran = []
    for wrap in (lambda base: base, Wrapper):
        model = tiny_net()
        base = sgd(model.parameters())
        training = rigl(model, wrap(base))
        train_on_images(model, base, 7)
        ran.append(seen(model, base, training))
    assert same(*ran)


@pytest.mark.parametrize("kind", [fs.S2SAM, fs.SAM])
def test_a_sharpness_aware_optimizer_follows_the_model_by_itself(kind):
    model = tiny_net()
    optimizer = kind(sgd(model.parameters()), rho=0.1)
    rigl(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_on_images(model, optimizer, 4)


@pytest.mark.parametrize("kind", [fs.SAM, fs.S2SAM, lambda base, rho: fs.S2SAM(base, rho, direction="random")])
def test_a_look_at_the_neighbour_stays_within_the_masks(kind):
    model = tiny_net()
    optimizer = kind(sgd(model.parameters()), rho=0.1)
    training = rigl(model, optimizer)
    true, moved = {}, []

    def look(*_):
        for name, (weight, mask) in masked(model, training).items():
            assert is_plus_zero(weight[~mask])
            moved.append(not torch.equal(weight, true[name]))

    model[0].register_forward_pre_hook(look)
    for step in range(1, 8):
        true.update(copied(dict(model.named_parameters())))
        take_step(model, optimizer, step)
    assert sum(moved) >= 6 * 3


def test_weights_left_out_stay_dense():
    model = tiny_net()
    optimizer = sgd(model.parameters())
    training = rigl(model, optimizer, exclude=["0"])
    train_on_images(model, optimizer, 4)
    assert list(training.masks) == ["3.weight", "7.weight"]
    assert (model[0].weight != 0).all()


def test_after_detach_nothing_keeps_the_masks():
    model = tiny_net()
    optimizer = sgd(model.parameters())
    training = rigl(model, optimizer)
    training.detach()
    before = copied(training.masks)
    train_on_images(model, optimizer, 4)
    assert same(before, training.masks)
    assert training.steps_taken == 0
    assert (model[7].weight != 0).all()


def test_masks_of_another_model_are_refused():
    model, other = tiny_net(), nn.Sequential(nn.Linear(4, 3))
    state = fs.sparsify(other, sgd(other.parameters()), "rigl", sparsity=0.5, steps=9, every=3).state_dict()
    with pytest.raises(fs.InputError, match=r"layer '0.weight' is \(3, 4\) there and \(6, 1, 3, 3\) here"):
        rigl(model, sgd(model.parameters())).load_state_dict(state)


# -- what it refuses --------------------------------------------------------------------------------------------------

REFUSED = {
    "no method": ({"method": None}, "method is None"),
    "a method's class": ({"method": fs.methods.RigL}, "RigL(every=50)"),
    "negative sparsity": ({"sparsity": -0.1}, "sparsity -0.1"),
    "all zero": ({"sparsity": 1.0}, "sparsity 1.0"),
    "nan": ({"sparsity": math.nan}, "sparsity nan"),
    "sparsity as text": ({"sparsity": "0.9"}, "sparsity 0.9"),
    "no steps": ({"steps": 0}, "steps 0"),
    "half a step": ({"steps": 10.5}, "steps 10.5"),
    "unknown method": ({"method": "rigle"}, "unknown method 'rigle' (nearest: rigl"),
    "unknown option": ({"evry": 3}, "no option 'evry' (it has: every,"),
    "unknown distribution": ({"distribution": "erq"}, "unknown distribution 'erq' (nearest: er"),
    "include without a match": ({"include": ["conv1"]}, "include pattern 'conv1'"),
    "exclude without a match": ({"exclude": ["conv1"]}, "exclude pattern 'conv1'"),
    "all excluded": ({"exclude": ["*"]}, "no weight to make sparse"),
    "dense and sparse": ({"method": "dense", "sparsity": 0.5}, "'dense' keeps every weight"),
    "fewer weights than layers": ({"sparsity": 0.999}, "leaves 1 active weights for 3 layers"),
    "fewer weights than layers at the end": ({"method": "gmp", "sparsity": 0.999}, "leaves 1 active weights"),
    "no period": ({"every": 0}, "every 0"),
    "half a period": ({"every": 2.5}, "every 2.5"),
    "until before the start": ({"until": 0}, "until 0"),
    "until after the end": ({"until": 1.5}, "until 1.5"),
    "until the first step, which never prunes": ({"method": "gmp", "until": 1}, "until"),
    "one step, which never prunes": ({"method": "gmp", "steps": 1}, "too short"),
    "negative drop": ({"drop_fraction": -0.1}, "drop_fraction -0.1"),
    "more than all dropped": ({"drop_fraction": 1.5}, "drop_fraction 1.5"),
    "drop nan": ({"method": "set", "drop_fraction": math.nan}, "drop_fraction nan"),
    "options beside an object": ({"method": fs.methods.RigL(every=2), "every": 3}, "every"),
}


@pytest.mark.parametrize(("choice", "says"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:every=")
def test_a_choice_that_cannot_be_honoured_is_one_line_and_leaves_the_model(choice, says):
    model = tiny_net()
    optimizer = sgd(model.parameters())
    before = copied(model.state_dict())
    choice = {"method": "rigl", "sparsity": 0.8, "steps": 20, **choice}
    with pytest.raises(fs.InputError) as caught:
        fs.sparsify(model, optimizer, **choice)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert same(before, model.state_dict())
    take_step(model, optimizer, 1)
    assert all(p.all() for p in model.parameters() if p.ndim >= 2)  # nothing was left hanging on the optimizer


def test_an_optimizer_of_another_model_is_refused():
    model = tiny_net()
    before = copied(model.state_dict())
    with pytest.raises(fs.InputError, match="the optimizer holds none") as caught:
        rigl(model, sgd(tiny_net().parameters()))
    assert "\n" not in str(caught.value)
    assert same(before, model.state_dict())


def test_a_period_too_long_for_the_run_is_shortened_with_one_warning_to_the_caller():
    model = tiny_net()
    optimizer = sgd(model.parameters())
    with pytest.warns(UserWarning, match="every=500 leaves no update") as caught:
        training = fs.sparsify(model, optimizer, "rigl", sparsity=0.8, steps=40, every=500)
    assert [w.filename for w in caught] == [__file__]
    assert 9 <= sum(bool(training.due(step)) for step in range(41)) <= 11


# -- weights and state from elsewhere ---------------------------------------------------------------------------------


@bases
def test_dense_weights_loaded_later_are_sparse_at_once(base):
    model = tiny_net()
    optimizer = base(model.parameters())
    training = rigl(model, optimizer)
    train_on_images(model, optimizer, 4)
    model.load_state_dict(tiny_net(seed=1).state_dict())
    assert_zero_outside(model, training, optimizer)
    take_step(model, optimizer, 5)
    assert_zero_outside(model, training, optimizer)


def test_masks_loaded_after_their_weights_find_them_whole():
    model = tiny_net()
    training = rigl(model, sgd(model.parameters()))
    weights, masks = copied(model.state_dict()), training.state_dict()
    other = tiny_net(seed=1)
    again = fs.sparsify(other, sgd(other.parameters()), "rigl", sparsity=0.8, steps=20, every=3, seed=9)
    fresh = copied(again.masks)
    other.load_state_dict(weights)
    assert not same(fresh, again.masks)  # they have moved to the weights
    assert same(weights, other.state_dict())
    again.load_state_dict(masks)
    assert same(masks["masks"], again.masks)
    assert same(weights, other.state_dict())


def test_weights_that_are_loaded_as_other_parameters_are_told_of():
    model = tiny_net()
    rigl(model, sgd(model.parameters()))
    with pytest.warns(UserWarning, match=r"assign=True.* '0.weight', which has no mask") as told:
        model.load_state_dict(tiny_net(seed=1).state_dict(), assign=True)
    assert [one.filename for one in told] == [__file__]


def test_an_evaluation_of_dense_weights_that_were_zeroed_warns_once():
    model = tiny_net()
    optimizer = adamw(model.parameters())
    rigl(model, optimizer)
    train_on_images(model, optimizer, 2)
    model.load_state_dict(tiny_net(seed=1).state_dict())
    model.eval()
    with pytest.warns(UserWarning, match="were set to 0"):
        model(image_batch(0)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(image_batch(0)[0])
        take_step(model.train(), optimizer, 3)


def average(model):
    return torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))


def test_an_average_is_zero_outside_moving_masks_by_one_line_and_is_told_of_where_it_is_not():
    model = tiny_net()
    optimizer = adamw(model.parameters())
    training = rigl(model, optimizer)
    plain, zeroed = average(model), average(model)
    for step in range(1, 13):
        take_step(model, optimizer, step)
        for one in (plain, zeroed):
            one.update_parameters(model)
        training.zero_outside(zeroed)
    masks = training.masks

    def outside(net):
        return sum(int(p[~masks[name]].count_nonzero()) for name, p in net.named_parameters() if name in masks)

    assert outside(plain.module)
    assert outside(zeroed.module) == 0
    assert not same(copied(model.state_dict()), copied(zeroed.module.state_dict()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.state_dict()
    for p, a in zip(model.parameters(), plain.module.parameters(), strict=True):
        p.data.copy_(a)
    with pytest.warns(UserWarning, match=r"lie outside the masks.*zero_outside"):
        model.state_dict()
    training.zero_outside(model)
    assert outside(model) == 0


def test_what_is_no_copy_of_the_model_is_not_zeroed():
    model = tiny_net()
    training = rigl(model, sgd(model.parameters()))
    with pytest.raises(fs.InputError, match=r"'0.weight' has a mask .* this Linear has none"):
        training.zero_outside(torch.nn.Linear(3, 2))
    frozen = fs.sparsify(
        other := tiny_net(), sgd(other.parameters()), "static", sparsity=0.5, steps=9, outside="frozen"
    )
    with pytest.raises(fs.InputError, match="frozen"):
        frozen.zero_outside(other)


@pytest.mark.parametrize("detached", [True, False])
def test_a_training_that_is_gone_leaves_no_hook_on_the_model(detached):
    model = tiny_net()

    def hooks():
        followers = model.__dict__.get("_flatsparse_followers", [])
        every = (vars(module).items() for module in model.modules())
        return sum(len(found) for own in every for name, found in own if name.endswith("_hooks")) + len(followers)

    def train():
        optimizer = fs.S2SAM(sgd(model.parameters()))
        training = fs.sparsify(model, optimizer, "static", sparsity=0.8, steps=20)
        take_step(model, optimizer, 1)
        model.load_state_dict(tiny_net(seed=1).state_dict())
        if detached:
            training.detach()
        assert hooks() > 1

    for _ in range(3):
        train()
        gc.collect()
        assert hooks() <= 1  # the last optimizer's follower, which holds nobody and goes with the next


def test_a_second_training_on_one_optimizer_is_refused_until_the_first_lets_go():
    model = tiny_net()
    optimizer = sgd(model.parameters())
    first = rigl(model, optimizer)
    with pytest.raises(fs.InputError, match="detach"):
        rigl(model, optimizer)
    first.detach()
    rigl(model, optimizer)


@bases
def test_dense_state_loaded_later_is_sparse_again_after_a_step(base):
    other = tiny_net()
    dense = base(other.parameters())
    train_on_images(other, dense, 3)
    model = tiny_net()
    optimizer = base(model.parameters())
    training = rigl(model, optimizer)
    train_on_images(model, optimizer, 4)
    optimizer.load_state_dict(dense.state_dict())
    take_step(model, optimizer, 5)
    assert state_of(optimizer, model[3].weight)
    assert_zero_outside(model, training, optimizer)


def test_model_and_optimizer_the_wrong_way_round_are_told_so():
    model = tiny_net()
    with pytest.raises(fs.InputError, match="model first"):
        fs.sparsify(sgd(model.parameters()), model, "rigl", sparsity=0.5, steps=9)


def test_a_state_of_another_method_or_of_something_else_is_refused():
    model = tiny_net()
    training = rigl(model, sgd(model.parameters()))
    with pytest.raises(fs.InputError, match="'set', not 'rigl'"):
        training.load_state_dict({**training.state_dict(), "method": "set"})
    with pytest.raises(fs.InputError, match="masks"):
        training.load_state_dict({})


def test_a_pruned_model_that_is_made_sparse_without_its_masks_is_warned_of():
    model = tiny_net()
    with torch.no_grad():
        model[0].weight[::2] = 0
    masks = fs.masks_from(model)
    optimizer = adamw(model.parameters())
    training = fs.sparsify(model, optimizer, "static", sparsity=0.5, steps=9)
    woken = int((training.masks["0.weight"] & ~masks["0.weight"]).sum())
    with pytest.warns(UserWarning, match=rf"^{woken} weights that were zero .* masks=flatsparse.masks_from"):
        take_step(model, optimizer, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take_step(model, optimizer, 2)


def test_a_pruned_model_with_its_masks_is_not_warned_of_nor_is_a_resumed_one():
    model = tiny_net()
    optimizer = adamw(model.parameters())
    rigl(model, optimizer)
    train_on_images(model, optimizer, 2)
    states = copied(model.state_dict()), optimizer.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for masks in (None, fs.masks_from(model)):
            other = tiny_net()
            other.load_state_dict(states[0])
            optimizer = adamw(other.parameters())
            if masks is None:  # they come with the optimizer's state
                rigl(other, optimizer)
                optimizer.load_state_dict(states[1])
            else:
                fs.sparsify(other, optimizer, "static", masks=masks, steps=9)
            take_step(other, optimizer, 3)


def test_masks_that_are_no_mapping_are_refused_with_the_cure():
    model = tiny_net()
    with pytest.raises(fs.InputError, match=r"masks= got str, .*masks_from\('folder'\)"):
        fs.sparsify(model, adamw(model.parameters()), "static", masks="folder", steps=9)

"""CHEX and Chase on small nets: which channels, how many, what they take up again, and what is refused."""

import dataclasses
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatsparse as fs
from flatsparse.common.seeds import generator
from flatsparse.graph.shrink import shrink
from flatsparse.schedules import At, Constant
from flatsparse.sparse.channel_choice import removable
from flatsparse.sparse.channel_rules import ChannelPruning
from flatsparse.sparse.channel_scores import active_fraction, draw, leverage, residuals
from flatsparse.sparse.channel_state import ChannelState
from flatsparse.sparse.distributions import global_ranking, uniform
from flatsparse.sparse.masks import Masks
from flatsparse.sparse.rules import PruneTo
from flatsparse.sparse.scores import magnitude
from tests.helpers import assert_zero_outside, copied, sgd, take_step, tiny_net, train_on_images


class Residual(nn.Module):
    """A stem, a block of three convolutions around which the stem's channels go, and a head: 8x8 images."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.one, self.first = nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.two, self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.three, self.third = nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        y = F.relu(self.first(self.one(x)))
        y = self.third(self.three(F.relu(self.second(self.two(y)))))
        return self.head(F.relu(x + y).mean((2, 3)))


class Widening(nn.Module):
    """A stem, and a block of two convolutions past which a third one leads: 8x8 images."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.one, self.first = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.two, self.second = nn.Conv2d(8, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.past, self.third = nn.Conv2d(6, 10, 1), nn.BatchNorm2d(10)
        self.head = nn.Linear(10, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        y = self.second(self.two(F.relu(self.first(self.one(x)))))
        y += self.third(self.past(x))
        return self.head(F.relu(y).mean((2, 3)))


def residual(seed=0, net=Residual):
    """One whose batch norms have scales to rank by."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = net()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, -1, 1)
        return model


def channels_of(model, eligible=removable):
    return ChannelState.of(model, Masks.of(model, model.parameters()), eligible=eligible, restores=False)


def chex(model, optimizer, **options):
    return fs.sparsify(model, optimizer, "chex", **{"channels": 0.5, "steps": 20, "every": 3, **options})


def chase(model, optimizer, **options):
    return fs.sparsify(model, optimizer, "chase", **{"sparsity": 0.8, "steps": 20, "every": 3, **options})


def live(training):
    return {g.name: g.active.clone() for g in training._state.channels}


@pytest.mark.parametrize("channels", [0.3, 0.5, 0.7])
@pytest.mark.parametrize(
    ("net", "options", "total"),
    [
        (Residual, {}, 16),
        (Residual, {"sums": True}, 22),
        (Widening, {}, 18),  # with the shortcut's ten, without the stem's six
        (Widening, {"explore": "removable"}, 14),
    ],
)
def test_chex_has_its_channels_to_the_channel_at_every_step(channels, net, options, total):
    model = residual(net=net)
    optimizer = fs.S2SAM(sgd(model.parameters()), rho=0.1)
    training = chex(model, optimizer, channels=channels, **options)
    last = 12  # steps 3, 6, 9 and 12 update

    def wanted(step):
        share = 0.4 * channels * (1 + math.cos(math.pi * (step // 3 * 3) / last)) / 2 if step < last else 0.0
        return round((channels - (0.4 * channels if step < 3 else share)) * total) / total

    for step in range(1, 21):
        take_step(model, optimizer, step)
        assert training.channels == wanted(step)
        assert all(alive.any() for alive in live(training).values())
        assert_zero_outside(model, training, optimizer)


def test_masks_of_chex_are_rows_and_columns_of_its_channels():
    model = tiny_net()
    training = chex(model, sgd(model.parameters()), explore="removable")
    one, two = live(training).values()
    plain = {
        "0.weight": [[bool(one[i])] * 9 for i in range(6)],
        "3.weight": [[bool(two[i] and one[j]) for j in range(6) for _ in range(9)] for i in range(8)],
        "7.weight": [[bool(two[j // 4]) for j in range(32)]] * 5,  # 2x2 places a channel
    }
    assert {name: mask.flatten(1).tolist() for name, mask in training.masks.items()} == plain


def test_an_update_of_chex_is_its_plain_form():
    model = residual()
    optimizer = sgd(model.parameters())
    training = chex(model, optimizer, every=2, channels=0.6, steps=30, seed=5)
    model_copy = {}
    rule = training.plan.rules[0]

    def note_weights(*_):  # after the weight step, before the update: our hook comes first
        model_copy.update(copied(model.state_dict()))

    training._step._base._optimizer_step_post_hooks.clear()
    optimizer.register_step_post_hook(note_weights)
    optimizer.register_step_post_hook(training._step._after)
    latest = copied(training._state.channels.latest)
    for step in range(1, 9):
        before, masks = live(training), copied(training.masks)
        take_step(model, optimizer, step)
        if not training.due(step):
            continue
        for name in ("one.weight", "two.weight"):
            latest[name] = torch.where(masks[name], model_copy[name], latest[name])
        scales = {
            name: torch.where(before[name], model_copy[norm].abs(), -1.0)
            for name, norm in (("one.weight", "first.weight"), ("two.weight", "second.weight"))
        }
        pooled = sorted((float(s[i]), name, i) for name, s in scales.items() for i in range(8))
        share = 0.4 * 0.6 * (1 + math.cos(math.pi * step / rule.when.last)) / 2
        kept_count = {n: sum(name == n for _, name, _ in pooled[-(16 - round(0.6 * 16)) :]) for n in scales}
        count = {n: sum(name == n for _, name, _ in pooled[-(16 - round((0.6 - share) * 16)) :]) for n in scales}
        for index, name in ((1, "one.weight"), (2, "two.weight")):
            alive = before[name].nonzero().flatten()
            columns = model_copy[name].flatten(1).T
            best = alive[leverage(columns[:, alive], kept_count[name]).argsort(descending=True)[: kept_count[name]]]
            kept = torch.zeros(8, dtype=torch.bool)
            kept[best] = True
            lacking = residuals(latest[name].flatten(1).T, kept)
            source = generator(5, step, index)
            wanted = kept | draw(lacking, count[name] - kept_count[name], ~kept, source)
            assert torch.equal(live(training)[name], wanted), (step, name)


def test_what_returns_has_the_values_that_it_last_had():
    model = residual()
    optimizer = sgd(model.parameters())
    training = chex(model, optimizer, channels=0.6, regrow=0.6, every=2, steps=60)
    vectors = ["first.weight", "first.bias", "first.running_mean", "first.running_var"]
    last = {"one.weight": {}, **{name: {} for name in vectors}}
    returned = 0
    alive = live(training)["one.weight"]
    state = model.state_dict()
    for step in range(1, 43):
        take_step(model, optimizer, step)
        now = live(training)["one.weight"]
        for i in range(8):
            if now[i] and not alive[i] and i in last["first.bias"]:
                returned += 1
                assert torch.equal(state["one.weight"][i], last["one.weight"][i])
                assert all(torch.equal(state[name][i], last[name][i]) for name in vectors)
            elif alive[i] and not now[i]:  # what it had at the moment it went, which is no longer in the model
                for name in last:
                    last[name][i] = training._state.channels.latest[name][i].clone()
                assert last["one.weight"][i].any()
                assert not state["one.weight"][i].any()
        alive = now
    assert returned >= 3


SHARP = {
    "none": lambda model: sgd(model.parameters()),
    "s2sam": lambda model: fs.S2SAM(sgd(model.parameters()), rho=0.3),
    "random": lambda model: fs.S2SAM(sgd(model.parameters()), rho=0.3, direction="random"),
    "compact": lambda model: fs.S2SAM(sgd(model.parameters()), rho=0.3, direction="random", compact=True),
    "sam": lambda model: fs.SAM(sgd(model.parameters()), rho=0.3),
    "not element by element": lambda model: SpreadsOut(model.parameters(), lr=0.1),
}


class SpreadsOut(torch.optim.SGD):
    """A base that moves every entry, also those without a gradient."""

    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p += 0.01


@pytest.mark.parametrize("sharpness", SHARP)
def test_a_removed_channel_of_a_shortcut_adds_nothing(sharpness):
    model = residual(net=Widening)
    optimizer = SHARP[sharpness](model)
    training = chex(model, optimizer, channels=0.6)
    added = []
    model.third.register_forward_hook(lambda module, inputs, output: added.append(output.detach()))
    for step in range(1, 21):
        alive = live(training)["past.weight"]
        take_step(model, optimizer, step)
        assert added
        assert not any(output[:, ~alive].any() for output in added)  # also of the perturbed net
        assert any(output[:, i].any() for output in added for i in alive.nonzero())
        added.clear()
        gone = ~live(training)["past.weight"]
        tensors = [model.past.weight, model.past.bias, model.third.weight, model.third.bias]
        state = [optimizer.state[p].get("momentum_buffer") for p in tensors]
        gradients = [p.grad for p in tensors]
        if sharpness != "not element by element":
            assert not any(t[gone].any() for t in (*state, *gradients) if t is not None)
        assert not any(p[gone].any() for p in tensors)
    assert gone.sum() == 10 - live(training)["past.weight"].sum() > 0


def test_a_shortcut_that_returns_takes_up_its_batch_norm_again():
    model = residual(net=Widening)
    optimizer = sgd(model.parameters())
    training = chex(model, optimizer, channels=0.6, regrow=0.6, every=2, steps=60)
    names = ["past.weight", "past.bias", "third.weight", "third.bias", "third.running_var"]
    state, last, returned = model.state_dict(), {}, 0
    alive = live(training)["past.weight"]
    for step in range(1, 43):
        take_step(model, optimizer, step)
        now = live(training)["past.weight"]
        for i in range(10):
            if now[i] and not alive[i] and i in last:
                returned += 1
                assert all(torch.equal(state[name][i], last[i][name]) for name in names)
                assert state["third.weight"][i] != 0
            elif alive[i] and not now[i]:
                last[i] = {name: training._state.channels.latest[name][i].clone() for name in names}
        alive = now
    assert returned >= 3


@pytest.mark.parametrize("parts", [(0, 2, 1), (2, 0, 1), (1, 0), (0, 1)])
def test_a_shortcut_resumes_to_the_bit(parts):
    """In any order, also when a trainer saves the model and the optimizer only."""

    def made(seed):
        model = residual(seed, net=Widening)
        optimizer = fs.S2SAM(sgd(model.parameters()), rho=0.1)
        return model, optimizer, chex(model, optimizer, seed=3)

    model, optimizer, training = made(0)
    train_on_images(model, optimizer, 7)
    saved = copied(model.state_dict()), optimizer.state_dict(), training.state_dict()
    saved = torch.load(pickled(saved), weights_only=True)
    again, other, resumed = made(1)
    for part in parts:
        (again, other, resumed)[part].load_state_dict(saved[part])
    for step in range(8, 21):
        take_step(model, optimizer, step)
        take_step(again, other, step)
    wanted = model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in again.state_dict().items())


def pickled(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def test_a_net_with_silent_shortcuts_can_still_be_shrunk():
    model = residual(net=Widening)
    optimizer = sgd(model.parameters())
    training = chex(model, optimizer)
    train_on_images(model, optimizer, 20)
    small, x = shrink(model, training.masks).eval(), torch.randn(4, 1, 8, 8)
    assert torch.allclose(small(x), model.eval()(x), atol=1e-5)
    gone = int((~live(training)["past.weight"]).sum())
    assert gone > 0
    assert small.past.weight.shape[0] == 10
    assert small.one.weight.shape[0] <= int(live(training)["one.weight"].sum())


@pytest.mark.parametrize(
    ("method", "net", "frozen", "still"),
    [
        (chex, Widening, "past.weight", "past.weight"),
        (chex, Residual, "three.weight", "two.weight"),  # which it reads
        (chase, Residual, "three.weight", "two.weight"),
        (chase, Residual, "one.weight", "one.weight"),
    ],
)
def test_channels_of_a_layer_that_is_no_longer_trained_stay_as_they_are(method, net, frozen, still):
    model = residual(net=net)
    training = method(model, optimizer := sgd(model.parameters()), every=2)
    train_on_images(model, optimizer, 3)
    weight = model.get_parameter(frozen)
    weight.requires_grad_(False)
    weight.grad = None
    alive, masks, value = live(training), copied(training.masks), weight.clone()
    moved = set()
    for step in range(4, 21):
        take_step(model, optimizer, step)
        moved |= {name for name, now in live(training).items() if not torch.equal(now, alive[name])}
    assert torch.equal(training.masks[frozen], masks[frozen])
    assert torch.equal(weight, value)
    assert moved == set(alive) - {still}


@pytest.mark.parametrize("method", [chex, chase])
def test_where_no_group_is_trained_any_longer_no_channel_moves(method):
    model = residual()
    training = method(model, optimizer := sgd(model.parameters()), every=2)
    train_on_images(model, optimizer, 3)
    before = live(training)
    model.two.weight.requires_grad_(False)  # one group writes it, the other reads it
    model.two.weight.grad = None
    train_on_images(model, optimizer, 20)
    assert all(torch.equal(alive, before[name]) for name, alive in live(training).items())


def test_a_weight_that_was_frozen_since_it_was_noted_keeps_its_value():
    model = residual(net=Widening)
    training = chex(model, optimizer := sgd(model.parameters()), every=2)
    train_on_images(model, optimizer, 3)  # noted at 2, moved at 3
    model.head.weight.requires_grad_(False)
    model.head.weight.grad = None
    before, alive = model.head.weight.clone(), live(training)
    for step in (4, 5):
        take_step(model, optimizer, step)
    assert not torch.equal(live(training)["past.weight"], alive["past.weight"])
    assert torch.equal(model.head.weight, before)


@pytest.mark.parametrize("net", [Residual, Widening])
@pytest.mark.parametrize("method", [chex, chase])
def test_a_run_of_a_new_net_warns_of_nothing(method, net, recwarn):
    model = residual(net=net)
    optimizer = sgd(model.parameters())
    method(model, optimizer)
    take_step(model, optimizer, 1)
    assert not recwarn.list


class WithMore:
    """CHEX, and a rule of another kind at other steps."""

    def plan(self, sparsity, steps):
        plan = fs.methods.CHEX(every=3).plan(sparsity, steps)
        more = PruneTo(At(frozenset({4})), Constant(0.7), magnitude, global_ranking)
        return dataclasses.replace(plan, rules=(*plan.rules, more))


def test_a_rule_beside_it_brings_no_old_values_back():
    model = residual()
    optimizer = sgd(model.parameters())
    training = fs.sparsify(model, optimizer, WithMore(), sparsity=0.0, steps=20)
    train_on_images(model, optimizer, 4)
    mask = training.masks["two.weight"]
    assert not (model.two.weight == training._state.channels.latest["two.weight"])[mask].any()


def test_saved_channels_of_other_groups_are_refused():
    saved = {**chex(model := residual(), sgd(model.parameters())).state_dict(), "steps_taken": 9}
    training = chex(model := residual(), sgd(model.parameters()), sums=True)
    with pytest.raises(fs.InputError, match="saved channels are of other groups"):
        training.load_state_dict(saved)
    with pytest.raises(fs.InputError, match="it lacks channels"):
        training.load_state_dict({name: part for name, part in saved.items() if name != "channels"})
    assert training.steps_taken == 0


def test_a_net_without_batch_norm_is_ranked_by_its_filters():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 5)
        )
    norms = [model[i].weight.detach().abs().sum(1) for i in (1, 3)]
    for found, norm in zip(channels_of(model).scales(), norms, strict=True):
        assert torch.allclose(found, norm / norm.mean())
    optimizer = sgd(model.parameters())
    training = chex(model, optimizer)
    train_on_images(model, optimizer, 20)
    assert training.channels == 0.5


@pytest.mark.parametrize("sharpness", ["none", "s2sam"])
def test_chase_removes_for_good_and_grows_denser_on_the_way(sharpness):
    model = residual()
    optimizer = sgd(model.parameters()) if sharpness == "none" else fs.S2SAM(sgd(model.parameters()), rho=0.1)
    training = chase(model, optimizer, channels=0.4, bound=0.1)
    total, last, alive = training.masked_weights.total, 15, live(training)
    for step in range(1, 21):
        take_step(model, optimizer, step)
        now = live(training)
        assert all((alive[name] >= now[name]).all() for name in now)
        alive = now
        assert_zero_outside(model, training, optimizer)
        for g in training._state.channels:
            assert not any(mask[~g.active].any() for _, mask in g.filters())
        at, thinned = step // 3 * 3, (step + 1) // 3 * 3 - 1  # channels go a step before, about half a period
        if at <= last:
            removed = 0.4 - 0.4 * (1 - max(0, min(thinned, 14)) / 14) ** 3
            assert training.channels == round(removed * 16) / 16
        if at <= last and step == at:
            beyond = 0.1 * (1 + math.cos(math.pi * at / last)) / 2
            assert sum(int(m.sum()) for m in training.masks.values()) == total - round((0.8 - beyond) * total)
    assert training.channels == round(0.4 * 16) / 16
    assert training.sparsity == 1 - (total - round(0.8 * total)) / total


def test_chase_removes_the_filters_that_are_emptiest():
    model = residual()
    optimizer = sgd(model.parameters())
    training = chase(model, optimizer, channels=0.4, least=0.0, score=active_fraction, every=10, until=0.5)
    parts = {name: mask.flatten(1).float().mean(1) for name, mask in training.masks.items()}
    pooled = sorted((float(parts[name][i]), name, i) for name in ("one.weight", "two.weight") for i in range(8))
    train_on_images(model, optimizer, 10)
    gone = {(name, i) for name, alive in live(training).items() for i in range(8) if not alive[i]}
    assert len(gone) == 6
    bar = pooled[5][0]
    assert {(name, i) for share, name, i in pooled if share < bar} <= gone
    assert all(float(parts[name][i]) <= bar for name, i in gone)


def acting(rule, steps):
    return [step for step in range(2, steps + 1) if rule.when(step)]


def test_chase_keeps_the_time_of_the_published_script():
    remove, prune, grow, drop, regrow = fs.methods.Chase().plan(0.9, 160 * 500).rules  # 160 epochs, batches of 100
    assert acting(remove, 80_000) == list(range(500, 65_000, 1000))
    assert acting(prune, 80_000) == acting(grow, 80_000) == list(range(1000, 65_001, 1000))
    assert acting(drop, 80_000) == acting(regrow, 80_000) == list(range(66_000, 80_000, 1000))
    assert remove.removed(64_500) == 0.3
    vgg = fs.methods.Chase(channel_every=8000).plan(0.9, 80_000).rules[0]
    assert acting(vgg, 80_000) == list(range(7500, 65_000, 8000))
    together = fs.methods.Chase(channel_offset=0.0).plan(0.9, 80_000).rules
    assert acting(together[0], 80_000) == acting(together[1], 80_000)


@pytest.mark.parametrize("every", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("offset", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [4, 11, 20])
def test_chase_removes_all_it_shall_before_the_last_update_of_the_first_phase(every, offset, steps):
    every = min(every, steps // 2)
    remove, prune, *_ = fs.methods.Chase(every=every, channel_offset=offset).plan(0.9, steps).rules
    assert acting(remove, steps)
    assert acting(remove, steps)[-1] <= acting(prune, steps)[-1]
    assert remove.removed(acting(remove, steps)[-1]) == 0.3


@pytest.mark.parametrize("scope", ["net", "layer"])
def test_the_last_phase_of_chase_moves_weights_within_its_scope(scope):
    model = residual()
    optimizer = sgd(model.parameters())
    training = chase(model, optimizer, steps=40, every=2, until=0.3, last_phase=scope)
    train_on_images(model, optimizer, 12)
    total, counts = training.masked_weights.total, {name: int(mask.sum()) for name, mask in training.masks.items()}
    for step in range(13, 41):
        before = copied(training.masks)
        take_step(model, optimizer, step)
        assert training.sparsity == 1 - (total - round(0.8 * total)) / total
        moved = any(not torch.equal(mask, before[name]) for name, mask in training.masks.items())
        assert moved or step % 2 or step > 30  # at the end it is less than a weight a layer
        assert not moved or (step % 2 == 0 and step < 40)
    same = {name: int(mask.sum()) for name, mask in training.masks.items()} == counts
    assert same == (scope == "layer")


def test_in_the_first_phase_of_chase_layers_may_go_by_the_distribution():
    model = residual()
    optimizer = sgd(model.parameters())
    training = chase(model, optimizer, every=2, first_phase="layer", distribution=uniform, channels=0.0, bound=0.1)
    train_on_images(model, optimizer, 4)
    shares = {name: float(mask.float().mean()) for name, mask in training.masks.items()}
    overall = 1 - training.sparsity
    assert overall > 0.2
    assert all(abs(share - overall) <= 1 / training.masks[name].numel() + 1e-6 for name, share in shares.items())


def test_chase_keeps_its_floors():
    model = residual()
    with torch.no_grad():
        model.two.weight *= 100  # all filters of the other are smaller; the batch norm after it does not mind
    optimizer = sgd(model.parameters())
    training = chase(model, optimizer, channels=0.5, least=0.75)
    train_on_images(model, optimizer, 20)
    assert {name: int(alive.sum()) for name, alive in live(training).items()} == {"one.weight": 3, "two.weight": 5}


def test_a_floor_is_not_one_less_by_rounding():
    widths = channels_of(nn.Sequential(nn.Conv2d(1, 20, 1), nn.ReLU(), nn.Conv2d(20, 2, 1)))
    assert ChannelPruning(0.8, least=(1 - 0.8) * 0.5).floors(widths) == [2]


def test_where_the_channels_that_stay_hold_less_all_of_it_is_live():
    model = residual()
    optimizer = sgd(model.parameters())
    training = chase(model, optimizer, sparsity=0.1, channels=0.8)
    train_on_images(model, optimizer, 20)
    room = training._state.channels.growable({w.name: w.weight.shape for w in training.masked_weights})
    assert training.sparsity > 0.1
    assert all(torch.equal(mask, room[name]) for name, mask in training.masks.items())


@pytest.mark.parametrize("method", [chex, chase])
def test_removed_channels_can_be_taken_out(method):
    model = residual()
    optimizer = sgd(model.parameters())
    training = method(model, optimizer)
    train_on_images(model, optimizer, 20)
    small, x = shrink(model, training.masks).eval(), torch.randn(4, 1, 8, 8)
    for name, alive in live(training).items():
        assert small.get_parameter(name).shape[0] <= int(alive.sum())
    assert training.channels > 0
    assert torch.allclose(small(x), model.eval()(x), atol=1e-5)


@pytest.mark.parametrize("net", [Residual, Widening])
def test_what_chex_costs_is_told_beforehand(net):
    model, sample = residual(net=net), torch.zeros(1, 1, 8, 8)
    told = fs.estimate(model, sample, "chex", channels=0.5, regrow=0.0, steps=20, every=3)
    optimizer = sgd(model.parameters())
    training = chex(model, optimizer, regrow=0.0)  # nothing returns, so that groups keep what they start with
    train_on_images(model, optimizer, 20)
    assert {layer.name: layer.active for layer in told.layers} == {
        name: int(mask.sum()) for name, mask in training.masks.items()
    }
    assert told.step == 3 * told.inference


def refused(match, method="chex", model=None, **options):
    model = residual() if model is None else model
    before = copied(model.state_dict())
    with pytest.raises(fs.InputError, match=match):
        fs.sparsify(model, sgd(model.parameters()), method, **{"steps": 20, "every": 3, **options})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_most_that_can_be_removed_is_told_so_that_it_can():
    layers = [nn.Conv2d(1, 800, 1), nn.ReLU(), nn.Conv2d(800, 800, 1), nn.ReLU(), nn.Conv2d(800, 900, 1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(900, 2, 1))
    with pytest.raises(fs.InputError, match="give at most") as caught:
        chase(model, sgd(model.parameters()), channels=0.9999)
    most = float(str(caught.value).split()[-1])
    assert 0.998 <= most <= 1 - 3 / 2500
    chase(model, sgd(model.parameters()), channels=most)


@pytest.mark.parametrize("method", [chex, chase])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_net_that_diverges_keeps_its_channels_to_the_channel(method, value):
    model = residual()
    optimizer = sgd(model.parameters())
    training = method(model, optimizer, steps=40)
    train_on_images(model, optimizer, 4)
    with torch.no_grad():
        model.one.weight[live(training)["one.weight"]] = value
    gone = {name: ~alive for name, alive in live(training).items()}
    train_on_images(model, optimizer, 36)
    assert training.channels == (0.5 if method is chex else 5 / 16)
    if method is chase:
        assert all(not live(training)[name][dead].any() for name, dead in gone.items())


def test_what_cannot_be_done_is_refused_in_a_line():
    refused("method 'chex' got sparsity=0.9, but takes none: give channels=", sparsity=0.9)
    refused("method 'chase' got neither sparsity= nor masks=", "chase")
    every = {name: torch.ones_like(p, dtype=torch.bool) for name, p in residual().named_parameters() if p.ndim > 1}
    refused("method 'chex' chooses its own channels", masks=every)
    refused("channels 1.0 is not in", channels=1.0)
    refused("channels -0.1 is not in", channels=-0.1)
    refused("regrow 0.7 is more than channels 0.5", regrow=0.7)
    refused("channels 0.95 leaves 1 of 16 channels, where 2 groups keep 2", "chase", sparsity=0.8, channels=0.95)
    refused("no channels to prune", model=nn.Sequential(nn.Flatten(), nn.Linear(64, 5)))
    refused("no channels to prune", include=["stem"])
    refused("unknown choice of channels explore= 'stem'", explore="stem")
    refused("unknown last_phase= 'nets' .nearest: net", "chase", sparsity=0.8, last_phase="nets")
    refused("channel_every 90 leaves no removal of channels in the 15 steps", "chase", sparsity=0.8, channel_every=90)
    refused("channel_offset 2 is not usable", "chase", sparsity=0.8, channel_offset=2)


@pytest.mark.parametrize("method", [chex, chase])
def test_channels_of_a_transposed_convolution_are_its_outputs(method):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        up = nn.ConvTranspose2d(6, 9, 2, stride=2)
        model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), up, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model.append(nn.Linear(9, 5))
    optimizer = sgd(model.parameters())
    training = method(model, optimizer, channels=0.4, explore="removable")
    train_on_images(model, optimizer, 20)
    alive = live(training)["2.weight"]
    assert len(alive) == 9
    assert not training.masks["2.weight"][:, ~alive].any()
    assert not training.masks["2.weight"][~live(training)["0.weight"]].any()
    small, inputs = shrink(model, training.masks), torch.randn(3, 1, 8, 8)
    assert small[2].in_channels + small[2].out_channels <= 9
    torch.testing.assert_close(small.eval()(inputs), model.eval()(inputs))

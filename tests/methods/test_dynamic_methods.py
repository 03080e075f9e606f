"""Dynamic methods against plain forms: every update of a run by sorting lists, beside SGD by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatsparse as fs
from flatsparse.common.seeds import generator
from flatsparse.schedules import At, Constant
from flatsparse.sparse import scores
from flatsparse.sparse.distributions import global_ranking
from flatsparse.sparse.masks import MaskedWeight, Masks
from flatsparse.sparse.redistribution import BelowThreshold, Redistribute, SmallestOfEach, survivors
from flatsparse.sparse.state import TrainingState
from flatsparse.sparse.topk import apportion, keep_top
from tests.helpers import copied, image_batch, same, take_step, tiny_net

STEPS, SPARSITY, LR, MOMENTUM = 16, 0.75, 0.1, 0.9


def random_net(seed):
    """Two convolutions and a linear layer of random widths, in double precision, so that no two scores meet by rounding."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first, second = torch.randint(2, 5, (2,)).tolist()
        return nn.Sequential(
            nn.Conv2d(1, 4 * first, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(4 * first, 4 * second, 3, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * second, 5),
        ).double()


def backward(model, step):
    inputs, targets = image_batch(step)
    model.zero_grad()
    F.cross_entropy(model(inputs.double()), targets).backward()


# -- a run by hand ----------------------------------------------------------------------------------------------------


class Plain:
    """A sparse run by hand: SGD with momentum under masks that ``update`` moves, kept as sets of live places."""

    def __init__(self, model, masks):
        self.parameters = dict(model.named_parameters())
        self.velocity = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.layers = [
            SimpleNamespace(name=name, index=i, size=mask.numel(), live=places(mask), average=torch.zeros(mask.numel()))
            for i, (name, mask) in enumerate(masks.items())
        ]
        self.budget = sum(layer.size for layer in self.layers) - round(
            SPARSITY * sum(layer.size for layer in self.layers)
        )
        self.threshold = 0.05
        self.zero_outside()

    def masks(self):
        return {
            layer.name: torch.tensor([i in layer.live for i in range(layer.size)]).view(
                self.parameters[layer.name].shape
            )
            for layer in self.layers
        }

    def step(self, step, update, weight_step=True):
        """One step: dense gradients are seen, the live weights are trained, then ``update`` moves masks, if it is due."""
        for layer in self.layers:
            layer.grad = self.parameters[layer.name].grad.flatten().tolist()
            layer.average = 0.9 * layer.average + 0.1 * self.parameters[layer.name].grad.flatten()
            layer.momentum = layer.average.abs().tolist()
        self.zero_outside()
        if weight_step or update is None:
            for name, p in self.parameters.items():
                self.velocity[name] = MOMENTUM * self.velocity[name] + p.grad
                p.data -= LR * self.velocity[name]
        for layer in self.layers:
            layer.weight = self.parameters[layer.name].flatten().tolist()
            layer.magnitude = [abs(w) for w in layer.weight]
            layer.noise = torch.rand(layer.size, generator=generator(0, step, layer.index)).tolist()
        if update is not None:
            update(self, step)
        self.zero_outside()

    def zero_outside(self):
        for name, mask in self.masks().items():
            p = self.parameters[name]
            p.data[~mask] = 0
            self.velocity[name][~mask] = 0
            if p.grad is not None:
                p.grad[~mask] = 0


def places(mask):
    return set(mask.flatten().nonzero().flatten().tolist())


def best(scores, among, count):
    return set(sorted(among, key=lambda i: (-scores[i], i))[:count])


def dead(layer, kept):
    return set(range(layer.size)) - kept


def half_cosine(first, last, passed):
    return last + (first - last) * (1 + math.cos(math.pi * passed)) / 2


def rewired(fraction, grow):
    """Drop the smallest of each layer, grow as many among the rest."""

    def update(net, step):
        for layer in net.layers:
            moved = int(fraction(step) * len(layer.live))
            kept = best(layer.magnitude, layer.live, len(layer.live) - moved)
            layer.live = kept | best([abs(x) for x in getattr(layer, grow)], dead(layer, kept), moved)

    return update


def original_set(net, step):
    """Of either sign the smallest: both are walked up to the same share of their own number."""
    for layer in net.layers:
        share = {}
        for sign in (1, -1):
            side = sorted(
                (i for i in range(layer.size) if sign * layer.weight[i] > 0), key=lambda i: layer.magnitude[i]
            )
            share |= {i: (rank + 1) / len(side) for rank, i in enumerate(side)}
        moved = int(0.3 * len(layer.live))
        kept = best([share.get(i, 0) for i in range(layer.size)], layer.live, len(layer.live) - moved)
        layer.live = kept | best(layer.noise, dead(layer, kept), moved)


def dsr(net, step):
    kept = [{i for i in layer.live if layer.magnitude[i] >= net.threshold} for layer in net.layers]
    kept = [k or best(layer.magnitude, layer.live, 1) for k, layer in zip(kept, net.layers, strict=True)]
    live = sum(len(layer.live) for layer in net.layers)
    dropped = live - sum(map(len, kept))
    net.threshold *= 0.5 if dropped > 1.1 * 0.2 * live else 2 if dropped < 0.9 * 0.2 * live else 1
    room = [layer.size - len(k) for layer, k in zip(net.layers, kept, strict=True)]
    for layer, k, grown in zip(net.layers, kept, apportion(dropped, list(map(len, kept)), room), strict=True):
        fresh_first = [noise - (i in layer.live) for i, noise in enumerate(layer.noise)]
        layer.live = k | best(fresh_first, dead(layer, k), grown)


def snfs(net, step):
    fraction = half_cosine(0.5, 0, step / (STEPS - 1))
    kept = [
        best(layer.magnitude, layer.live, len(layer.live) - int(fraction * len(layer.live))) for layer in net.layers
    ]
    dropped = sum(len(layer.live) - len(k) for layer, k in zip(net.layers, kept, strict=True))
    shares = [sum(layer.momentum[i] for i in layer.live) / len(layer.live) for layer in net.layers]
    room = [layer.size - len(k) for layer, k in zip(net.layers, kept, strict=True)]
    for layer, k, grown in zip(net.layers, kept, apportion(dropped, shares, room), strict=True):
        layer.live = k | best(layer.momentum, dead(layer, k), grown)


def evenly(net, sparsity):
    """The live weights of each layer at the same sparsity in all."""
    sizes = [layer.size for layer in net.layers]
    return apportion(sum(sizes) - round(sparsity * sum(sizes)), sizes, sizes)


def mest(down, up, score="magnitude"):
    """Prune each layer to one sparsity, grow it at random to another; what was just pruned may return, from 0."""

    def update(net, step):
        for layer, low in zip(net.layers, evenly(net, down(step)), strict=True):
            scores = layer.magnitude
            if score == "gradient too":
                scores = [w + 0.5 * abs(g) for w, g in zip(layer.magnitude, layer.grad, strict=True)]
            layer.live = best(scores, layer.live, low)
        net.zero_outside()
        for layer, high in zip(net.layers, evenly(net, up(step)), strict=True):
            layer.live |= best(layer.noise, dead(layer, layer.live), high - len(layer.live))

    return update


def phased(*values):
    return lambda step: values[(step >= 10) + (step >= 13)]  # 0.625 and 0.8125 of 16 steps


def acdc(net, step):
    if step in (2, 3, 5, 6, 8, 10, 11, 14):
        everything = [(layer, i) for layer in net.layers for i in sorted(layer.live)]
        everything.sort(key=lambda entry: -entry[0].magnitude[entry[1]])
        for layer in net.layers:
            layer.live = {i for other, i in everything[: net.budget] if other is layer}
        net.zero_outside()
    if step in (2, 4, 6, 7, 9, 10, 12):
        for layer in net.layers:
            layer.live = set(range(layer.size))


def pattern_rigl(net, step):
    """RigL, but what a group of four inputs loses it grows itself."""
    for layer in net.layers[1:]:
        moved = int(half_cosine(0.3, 0, step / 12) * len(layer.live))
        kept = best(layer.magnitude, layer.live, len(layer.live) - moved)
        for group in groups_of_four(net.parameters[layer.name]):
            kept |= best([abs(g) for g in layer.grad], set(group) - kept, 1 - len(kept & set(group)))
        layer.live = kept


def groups_of_four(weight):
    """The flat places of each group of neighbours along the inputs."""
    flat = torch.arange(weight.numel()).view(weight.shape).movedim(1, -1)
    return flat.reshape(-1, 4).tolist()


constant = lambda value: lambda step: value  # noqa: E731
CASES = {
    "set": ({"every": 3}, rewired(constant(0.3), "noise"), {3, 6, 9, 12}, True),
    "set-original": ({"every": 3}, original_set, {3, 6, 9, 12, 15}, True),
    "set-itop": ({"every": 5}, rewired(lambda s: half_cosine(0.5, 0.005, s / 16), "noise"), {5, 10, 15}, True),
    "rigl": ({"every": 3}, rewired(lambda s: half_cosine(0.3, 0, s / 12), "grad"), {3, 6, 9, 12}, False),
    "rigl-itop": ({"every": 5}, rewired(lambda s: half_cosine(0.5, 0.005, s / 16), "grad"), {5, 10, 15}, True),
    "dsr": ({"every": 2, "threshold": 0.05, "drop_fraction": 0.2}, dsr, {2, 6, 14}, True),
    "snfs": ({"every": 3}, snfs, {3, 6, 9, 12, 15}, True),
    "mest": ({"every": 3}, mest(phased(0.77, 0.76, 0.75), constant(0.75)), {3, 6, 9, 12, 13}, True),
    "mest-ems": ({"every": 3}, mest(constant(0.75), phased(0.7, 0.725, 0.75)), {3, 6, 9, 12, 13}, True),
    "acdc": ({}, acdc, {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14}, True),
}
VARIANTS = {
    "mest by its score": (
        "mest",
        {"every": 3, "bounds": (0.1, 0.05), "gradient_weight": 0.5},
        mest(phased(0.85, 0.8, 0.75), constant(0.75), "gradient too"),
        {3, 6, 9, 12, 13},
        True,
    ),
    "rigl of a pattern": (
        "rigl",
        {"every": 3, "pattern": (1, 4), "exclude": ["0"]},
        pattern_rigl,
        {3, 6, 9, 12},
        False,
    ),
}
RUNS = {**{name: (name, *case) for name, case in CASES.items()}, **VARIANTS}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("run", RUNS)
def test_every_mask_of_a_run_is_that_of_the_plain_form(run, seed):
    method, options, update, due, weight_step = RUNS[run]
    model, twin = random_net(seed), random_net(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    training = fs.sparsify(model, optimizer, method, sparsity=SPARSITY, steps=STEPS, **options)
    if run == "rigl of a pattern":
        whole = {"0.weight": torch.ones_like(twin[0].weight, dtype=torch.bool)}
        plain = Plain(twin, {**whole, **copied(training.masks)})
    else:
        plain = Plain(twin, copied(training.masks))
    moved = 0
    for step in range(1, STEPS + 1):
        backward(model, step)
        optimizer.step()
        backward(twin, step)
        plain.step(step, update if step in due else None, weight_step)
        assert bool(training.due(step)) == (step in due)
        theirs = plain.masks()
        assert all(torch.equal(mask, theirs[name]) for name, mask in training.masks.items()), (run, step)
        moved += step in due
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-9, atol=1e-12), name
    assert moved == len(due)


# -- golden values ----------------------------------------------------------------------------------------------------

# Sparsity pruned to and grown to in the three phases of the S²-SAM paper's runs, by target.
MEST_TABLE = {
    0.1: [(0.12, 0.1), (0.11, 0.1), (0.1, 0.1)],
    0.5: [(0.52, 0.5), (0.51, 0.5), (0.5, 0.5)],
    0.9: [(0.92, 0.9), (0.91, 0.9), (0.9, 0.9)],
    0.95: [(0.97, 0.95), (0.96, 0.95), (0.95, 0.95)],
    0.98: [(0.982, 0.98), (0.981, 0.98), (0.98, 0.98)],
}
MEST_SOFT_TABLE = {
    0.1: [(0.1, 0.05), (0.1, 0.075), (0.1, 0.1)],
    0.9: [(0.9, 0.85), (0.9, 0.875), (0.9, 0.9)],
    0.95: [(0.95, 0.9), (0.95, 0.925), (0.95, 0.95)],
    0.98: [(0.98, 0.93), (0.98, 0.96), (0.98, 0.98)],
}


@pytest.mark.parametrize(("kind", "table"), [(fs.methods.MEST, MEST_TABLE), (fs.methods.MESTSoft, MEST_SOFT_TABLE)])
def test_mest_mutates_within_the_papers_bounds_and_phases(kind, table):
    for sparsity, wanted in table.items():
        plan = kind().plan(sparsity, 1600)  # ten steps an epoch of 160
        prune, grow = plan.rules
        for steps, bounds in zip([(1, 999), (1000, 1299), (1300, 1600)], wanted, strict=True):
            for step in steps:
                assert (prune.sparsity(step), grow.sparsity(step)) == pytest.approx(bounds)
        assert plan.sparsity == pytest.approx(wanted[0][1])
        assert acts(prune, 1600) == acts(grow, 1600) == list(range(50, 1301, 50))  # every five epochs


def acts(rule, steps):
    return [step for step in range(1, steps + 1) if rule.when(step)]


def test_the_longer_published_drop_fractions():
    [itop], [rigl_itop] = (kind().plan(0.9, 100_000).rules for kind in (fs.methods.SETITOP, fs.methods.RigLITOP))
    assert [itop.fraction(step) for step in (0, 50_000, 100_000)] == pytest.approx([0.5, 0.2525, 0.005])
    assert (acts(itop, 9000), acts(rigl_itop, 9000)) == ([1500, 3000, 4500, 6000, 7500, 9000], [4000, 8000])
    assert itop.weight_step
    assert rigl_itop.weight_step
    [snfs_rule] = fs.methods.SNFS().plan(0.9, 16_001).rules
    assert acts(snfs_rule, 16_001) == list(range(100, 16_001, 100))
    assert [snfs_rule.drop.fraction(step) for step in (0, 8000, 16_000)] == pytest.approx([0.5, 0.25, 0.0])


def test_dsr_updates_ever_more_rarely_at_the_papers_epochs():
    [rule] = fs.methods.DSR().plan(0.9, 200 * 400).rules
    found = acts(rule, 200 * 400)
    gaps = [(found[0], found[1] - found[0])]
    gaps += [(b, c - b) for a, b, c in zip(found, found[1:], found[2:], strict=False) if c - b != b - a]
    assert gaps == [(100, 100), (10_000, 200), (32_000, 400), (56_000, 800)]
    assert found[-1] == 76_000  # epoch 190


def test_acdc_alternates_as_in_its_paper():
    prune, restore = fs.methods.ACDC().plan(0.9, 1000).rules
    assert acts(prune, 1000) == [100, 200, 300, 400, 500, 600, 700, 850]
    assert acts(restore, 1000) == [150, 250, 350, 450, 550, 650, 750]


# -- each method's own promises ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threshold", "then"), [(0.001, 0.002), (0.0105, 0.0105), (0.0055, 0.011), (0.0145, 0.00725), (1.0, 0.5)]
)
def test_the_threshold_of_dsr_doubles_or_halves_by_a_tenth_off_target(threshold, then):
    model = nn.Linear(20, 1, bias=False)
    masks = Masks.of(model, model.parameters())
    model.weight.data = torch.arange(1.0, 21.0).view(1, 20) / 1000
    rule = BelowThreshold(threshold, target=0.5)
    state = TrainingState(masks)
    kept = rule(state, 2)
    assert int(kept["weight"].sum()) == max(1, 20 - math.ceil(1000 * threshold - 1)) if threshold < 1 else 1
    assert state.memory["threshold"] == pytest.approx(then)


def test_dropping_by_sign_takes_the_same_share_of_either():
    model = nn.Linear(50, 20, bias=False)
    masks = Masks.of(model, model.parameters())
    w = masks[0]
    with torch.no_grad():
        w.weight.copy_(torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) + 0.7)
    kept = keep_top(scores.magnitude_by_sign(w), 700)
    for side in (w.weight > 0, w.weight < 0):
        assert abs(int((side & ~kept).sum()) - 0.3 * int(side.sum())) <= 1
        assert w.weight.abs()[side & kept].min() > w.weight.abs()[side & ~kept].max()


@pytest.mark.parametrize("method", ["dsr", "snfs"])
def test_redistribution_moves_weights_between_layers_and_keeps_the_total(method):
    model = tiny_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    options = {"threshold": 0.1} if method == "dsr" else {}
    training = fs.sparsify(model, optimizer, method, sparsity=0.8, steps=20, every=3, **options)
    counts = {layer.name: layer.active for layer in training.report()}
    for step in range(1, 21):
        take_step(model, optimizer, step)
    after = {layer.name: layer.active for layer in training.report()}
    assert after != counts
    assert sum(after.values()) == sum(counts.values())
    assert min(after.values()) > 0


@pytest.mark.parametrize(
    "rule",
    [
        Redistribute(At(frozenset({2})), BelowThreshold(1e-6, 0.1), survivors, scores.random_elsewhere),
        Redistribute(At(frozenset({2})), BelowThreshold(1e6, 0.1), survivors, scores.random_elsewhere),
        Redistribute(At(frozenset({2})), SmallestOfEach(Constant(0.5)), survivors, scores.random),
        Redistribute(At(frozenset({2})), SmallestOfEach(Constant(1.0)), survivors, scores.random),
    ],
)
@pytest.mark.parametrize("odd", ["no entry", "all dead", "all live"])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_redistribution_goes_on_beside_a_layer_that_has_nothing_to_drop_or_to_grow(rule, odd):
    model = nn.ModuleList([nn.Linear(20, 10), nn.Linear(0 if odd == "no entry" else 5, 4), nn.Linear(10, 3)])
    weights = [MaskedWeight(f"{i}.weight", layer.weight, i) for i, layer in enumerate(model)]
    masks = Masks(weights, overall=0)
    for w in (weights[0], weights[2]):
        w.set_mask(torch.arange(w.weight.numel()).view(w.weight.shape) % 4 == 0)
    weights[1].set_mask(torch.full_like(weights[1].mask, odd == "all live"))
    total = masks.active
    masks.seed_generators(2)
    new = rule(TrainingState(masks), 2)
    assert sum(int(mask.sum()) for mask in new.values()) == total
    assert all(new[w.name].any() for w in weights if w.active)


@pytest.mark.parametrize("frozen", ["0.weight", "3.weight"])
@pytest.mark.parametrize("name", ["dsr", "snfs", "gmp", "acdc", "safe", "chase", "mest"])
def test_a_budget_is_of_the_weights_that_a_rule_is_given(name, frozen):
    """Those that are no longer trained take no part: their masks stay, and the others keep to the sparsity."""
    model = tiny_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = fs.METHODS[name]
    options = {"every": 2} if hasattr(method, "every") else {}
    options |= {"distribution": global_ranking} if name == "gmp" else {}
    training = fs.sparsify(model, optimizer, name, sparsity=0.7, steps=40, **options)
    for step in range(1, 4):
        take_step(model, optimizer, step)
    before, weight = copied(training.masks), model.get_parameter(frozen)
    weight.requires_grad_(False)
    weight.grad = None
    seen = [w for w in training.masked_weights if w.name != frozen]
    total, active = sum(w.weight.numel() for w in seen), sum(w.active for w in seen)
    for step in range(4, 41):
        take_step(model, optimizer, step)
        if name in ("dsr", "snfs"):
            assert sum(w.active for w in seen) == active
    assert torch.equal(training.masks[frozen], before[frozen])
    if name in ("gmp", "acdc", "safe", "chase", "mest"):
        assert sum(w.active for w in seen) == total - round(0.7 * total)


def test_momentum_is_kept_only_for_the_method_that_grows_by_it():
    for method in ("snfs", "rigl"):
        model = tiny_net()
        training = fs.sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), method, sparsity=0.8, steps=200)
        assert len(training.state_dict()["momentum"]) == (3 if method == "snfs" else 0)


def test_growth_by_momentum_without_any_is_one_clear_line():
    model = nn.Linear(4, 4)
    with pytest.raises(fs.InputError, match=r"Plan\(momentum=0.9\)"):
        scores.momentum(Masks.of(model, model.parameters())[0])


@pytest.mark.parametrize("method", ["rigl-itop", "static", "gmp"])
def test_exploration_is_the_fraction_of_weights_ever_live_also_after_a_resume(method):
    def begin():
        model = tiny_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {} if method == "static" else {"every": 2}
        return model, optimizer, fs.sparsify(model, optimizer, method, sparsity=0.8, steps=12, **options)

    model, optimizer, training = begin()
    ever = copied(training.masks)
    for step in range(1, 13):
        if step == 8:
            states = [part.state_dict() for part in (model, optimizer, training)]
            model, optimizer, training = begin()
            for part, state in zip((model, optimizer, training), states, strict=True):
                part.load_state_dict(state)
        take_step(model, optimizer, step)
        ever = {name: mask | training.masks[name] for name, mask in ever.items()}
    assert training.exploration == sum(int(m.sum()) for m in ever.values()) / 646
    assert (training.exploration > 0.25) == (method != "static")


# -- N:M --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
@pytest.mark.parametrize("live", [1, 2, 3])
def test_every_group_of_a_pattern_keeps_its_count_at_every_step(method, live):
    model = random_net(1).float()
    optimizer = fs.S2SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    options = {} if method == "static" else {"every": 3}
    training = fs.sparsify(
        model, optimizer, method, sparsity=1 - live / 4, steps=15, exclude=["0"], pattern=(live, 4), **options
    )
    before, moved = copied(training.masks), 0
    for step in range(1, 16):
        take_step(model, optimizer, step)
        for mask in training.masks.values():
            assert (mask.flatten()[torch.tensor(groups_of_four(mask))].sum(1) == live).all()
        moved += not same(before, training.masks)
        before = copied(training.masks)
    assert (moved > 0) == (method != "static")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pattern": (2, 4)}, "pattern 2:4 is 0.5 sparse, not 0.75: give sparsity=0.5"),
        ({"pattern": (1, 4)}, "layer '0.weight' has 1 inputs, which pattern 1:4 does not divide"),
        ({"pattern": (5, 4)}, "the pattern's second number 4"),
        ({"pattern": 4}, "pattern 4 is not usable"),
        ({"method": "mest", "bounds": (0.3, 0.1)}, "leaves too little to prune 0.3"),
        ({"method": "mest", "bounds": (0.1,)}, "1 bounds do not fit 2 phases"),
        ({"method": "mest", "phases": (0.8, 0.6)}, "phases (0.8, 0.6)"),
        ({"method": "mest-ems", "bounds": (-0.1, 0.0)}, "each of bounds -0.1"),
        ({"method": "acdc", "prune": (0.5,)}, "do not end sparse"),
        ({"method": "dsr", "threshold": 0.0}, "threshold 0.0"),
        ({"method": "snfs", "decay": 1.5}, "decay 1.5"),
        ({"method": "set-itop", "last_fraction": 2}, "last_fraction 2"),
    ],
)
@pytest.mark.filterwarnings("ignore:every=")
def test_what_a_dynamic_method_cannot_do_is_one_line(options, says):
    model = tiny_net()
    before = copied(model.state_dict())
    choice = {"method": "rigl", "sparsity": 0.75, "steps": 20, **options}
    with pytest.raises(fs.InputError) as caught:
        fs.sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), **choice)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert same(before, model.state_dict())


@pytest.mark.parametrize(
    "method", [name for name in fs.METHODS if name not in ("lth", "lrr", "chex", "chase", "snip", "grasp", "wanda")]
)
def test_a_layer_that_is_frozen_later_is_left_as_it_is(method):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsity = {"dense": 0.0}.get(method, 0.8)
    training = fs.sparsify(model, optimizer, method, sparsity=sparsity, steps=60)
    model[0].weight.requires_grad_(False)
    before, mask = model[0].weight.detach().clone(), training.masks["0.weight"].clone()
    for _ in range(60):
        torch.nn.functional.mse_loss(model(torch.randn(8, 20)), torch.randn(8, 5)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(model[0].weight, before)
    assert torch.equal(training.masks["0.weight"], mask)

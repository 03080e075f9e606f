"""What an optimizer keeps for a weight that grows is what a new optimizer would, and so are its steps."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import return_and_correct_aliasing

import flatsparse as fs
from tests.helpers import same

STEPS, UPDATE = 60, 40  # the masks move once, at an age of the optimizer that its corrections have long outlived

KINDS = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adam with decay": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "fast averages": lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.5, 0.7)),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, initial_accumulator_value=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
}


def gradient(step, shape, name=0):
    """Not of the weights, so that a weight's way follows from its own gradients alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 * name + step)) * (1 + step % 3)


def trained(base, *, steps=STEPS, shape=(12, 10), sharpness=None, **options):
    """A layer with a single update of its masks, and the way of its weights from there on."""
    torch.manual_seed(0)
    model = nn.Linear(shape[1], shape[0], bias=False)
    optimizer = base(model.parameters())
    optimizer = sharpness(optimizer) if sharpness else optimizer
    training = fs.sparsify(
        model, optimizer, "set", sparsity=0.5, steps=2 * UPDATE - 1, every=UPDATE, until=1.0, **options
    )
    before = training.masks["weight"].clone()
    way = []
    for step in range(1, steps + 1):
        model.weight.grad = gradient(step, model.weight.shape)
        optimizer.step()
        if step >= UPDATE:
            way.append(model.weight.detach().clone())
    grown = training.masks["weight"] & ~before
    assert grown.any()
    return grown, way, training, optimizer


@pytest.mark.parametrize("kind", KINDS)
def test_a_grown_weight_goes_the_way_it_would_go_under_a_new_optimizer(kind):
    grown, way, _, _ = trained(KINDS[kind])
    alone = nn.Parameter(torch.zeros(int(grown.sum())))
    new = KINDS[kind]([alone])
    for step, after in enumerate(way[1:], start=UPDATE + 1):
        alone.grad = gradient(step, grown.shape)[grown]
        new.step()
        torch.testing.assert_close(
            after[grown], alone.detach(), rtol=2e-3, atol=1e-4 if kind == "fast averages" else 2e-6
        )


@pytest.mark.parametrize("kind", [torch.optim.NAdam, torch.optim.RAdam])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.6)])
def test_where_a_new_optimizer_cannot_be_met_steps_are_not_longer_than_its_longest(kind, betas):
    grown, way, _, _ = trained(lambda p: kind(p, lr=1e-2, betas=betas))
    alone = nn.Parameter(torch.zeros(int(grown.sum())))
    new, goes = kind([alone], lr=1e-2, betas=betas), [torch.zeros(len(alone))]
    for step in range(UPDATE + 1, STEPS + 1):
        alone.grad = gradient(step, grown.shape)[grown]
        new.step()
        goes.append(alone.detach().clone())
    longest, ours = (
        max((b - a).abs().max() for a, b in itertools.pairwise(places)) for places in (goes, [w[grown] for w in way])
    )
    assert ours <= 1.01 * longest


def test_published_behaviour_is_an_option():
    grown, way, _, _ = trained(KINDS["adam"], fresh_state=False)
    first = (way[1] - way[0])[grown].abs()
    torch.testing.assert_close(
        first, torch.full_like(first, 1e-2 * 0.1 / (0.001**0.5) * (1 - 0.999 ** (UPDATE + 1)) ** 0.5), rtol=0.05, atol=0
    )


def test_weights_that_stay_are_not_touched():
    fresh, published = trained(KINDS["adam"]), trained(KINDS["adam"], fresh_state=False)
    old = fresh[2].masks["weight"] & ~fresh[0]
    assert old.any()
    for a, b in zip(fresh[1], published[1], strict=True):
        assert same(a[old], b[old])


def test_the_youth_of_weights_resumes():
    _, way, _, _ = trained(KINDS["adam"])
    _, _, training, optimizer = trained(KINDS["adam"], steps=UPDATE + 3)
    model = nn.Linear(10, 12, bias=False)
    new = KINDS["adam"](model.parameters())
    again = fs.sparsify(model, new, "set", sparsity=0.5, steps=2 * UPDATE - 1, every=UPDATE, until=1.0)
    model.load_state_dict({"weight": way[3]})
    new.load_state_dict(optimizer.state_dict())
    again.load_state_dict(training.state_dict())
    for step in range(UPDATE + 4, STEPS + 1):
        model.weight.grad = gradient(step, model.weight.shape)
        new.step()
        assert same(model.weight.detach(), way[step - UPDATE])


@pytest.mark.parametrize("kind", ["adam", "adamax"])
def test_after_the_state_is_cleared_all_weights_are_of_one_age(kind):
    _, _, training, optimizer = trained(KINDS[kind], steps=UPDATE + 3)
    (p,) = optimizer.param_groups[0]["params"]
    alone = nn.Parameter(p.detach().clone())
    new = KINDS[kind]([alone])
    optimizer.state.clear()
    for step in range(3):
        p.grad = gradient(step, p.shape)
        alone.grad = p.grad * training.masks["weight"]
        optimizer.step()
        new.step()
    assert same(p.detach(), alone.detach())


def test_a_weight_that_is_old_enough_is_let_go():
    _, _, training, _ = trained(lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.5, 0.6)))
    assert not len(training.state_dict()["grown"]["weight"]["places"])


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_under_s2sam_the_perturbed_weights_are_around_the_corrected_ones(kind):
    _, way, _, optimizer = trained(KINDS[kind], sharpness=lambda o: fs.S2SAM(o, rho=0.1))
    with optimizer.perturbed():
        distance = (optimizer.param_groups[0]["params"][0] - way[-1]).norm().item()
    assert distance == pytest.approx(0.1, rel=1e-4)


class EightBit(torch.optim.SGD):
    """Keeps its momentum as codes, as bitsandbytes does: a table says what each stands for, and 0 is not the code 0."""

    meanings = torch.linspace(-1, 1, 255)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                entry = self.state[p]
                if not entry:
                    entry["state1"] = torch.full(p.shape, 127, dtype=torch.uint8)
                    entry.update({"qmap1": self.meanings, "absmax1": torch.ones(1)} if group["told"] else {})
                value = 0.9 * self.meanings[entry["state1"].long()] + p.grad
                scale = value.abs().max()
                entry["state1"] = ((value / scale).unsqueeze(-1) - self.meanings).abs().argmin(-1).to(torch.uint8)
                p.sub_(0.1 * value)


def eight_bit(told):
    def make(parameters):
        made = EightBit(parameters, lr=0.1)
        made.param_groups[0]["told"] = told
        return made

    return make


def test_eight_bit_state_outside_the_masks_is_the_code_of_zero():
    _, _, training, optimizer = trained(eight_bit(told=True), steps=UPDATE)
    p = optimizer.param_groups[0]["params"][0]
    assert (EightBit.meanings[optimizer.state[p]["state1"].long()][~training.masks["weight"]].abs() < 1e-6).all()


def test_codes_without_their_meanings_are_refused_by_name():
    with pytest.raises(fs.InputError, match=r"\AEightBit keeps 'state1' of torch.uint8.*"):
        trained(eight_bit(told=False))


class Wrapped(torch.Tensor):
    """A tensor subclass that holds its numbers somewhere else, as torchao's state does."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        inner = [a.inner if isinstance(a, Wrapped) else a for a in args]
        return return_and_correct_aliasing(func, args, kwargs or {}, func(*inner, **(kwargs or {})))


def test_state_in_a_foreign_kind_of_tensor_is_refused_by_name():
    class Foreign(torch.optim.SGD):
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                self.state[p]["moment"] = Wrapped(torch.ones(p.shape))

    with pytest.raises(fs.InputError, match=r"\AForeign keeps 'moment' as a Wrapped.*plain"):
        trained(lambda p: Foreign(p, lr=0.1))

"""Iterative magnitude pruning against its plain form: masks, rewound weights, cleared state, counts of rounds."""

import pytest
import torch

import flatsparse as fs
from flatsparse.common.optimizers import innermost
from flatsparse.methods import LRR, LTH
from flatsparse.sparse.rounds import Remaining
from tests.helpers import assert_zero_outside, bases, copied, same, sgd, take_step, tiny_net

STEPS = 5


def test_twenty_percent_of_the_remaining_a_round_gives_the_papers_sparsities():
    after = {10: 89.3, 11: 91.4, 13: 94.5, 14: 95.6, 17: 97.7, 18: 98.2}
    assert {n: round(100 * Remaining(0.2, 0.999)(n), 1) for n in after} == after


def test_the_number_of_prunings_is_the_smallest_that_reaches_the_target():
    for n in range(1, 30):
        assert Remaining(0.2, 1 - 0.8**n).prunings == n
    assert Remaining(0.2, 0.9).prunings == 11
    assert Remaining(0.3, 0.882).prunings == 6
    assert Remaining(0.2, 0.0).prunings == 0


def pruned_plainly(model, masks, live):
    """The smallest live weights of the whole net go, the last of equals first."""
    weights = {name: p for name, p in model.named_parameters() if name in masks}
    ranked = sorted(
        (-abs(w), place, at)
        for place, name in enumerate(weights)
        for at, (w, m) in enumerate(zip(weights[name].flatten().tolist(), masks[name].flatten().tolist(), strict=True))
        if m
    )
    new = {name: torch.zeros(m.numel(), dtype=torch.bool) for name, m in masks.items()}
    for _, place, at in ranked[:live]:
        new[list(weights)[place]][at] = True
    return {name: new[name].view(m.shape) for name, m in masks.items()}


@bases
@pytest.mark.parametrize("sharp", [False, True])
@pytest.mark.parametrize(("method", "rewind"), [("lth", 0), ("lth", 3), ("lrr", None)])
def test_rounds_are_the_plain_algorithm(base, sharp, method, rewind):
    model = tiny_net()
    optimizer = fs.S2SAM(base(model.parameters()), rho=0.1) if sharp else base(model.parameters())
    options = {} if rewind is None else {"rewind": rewind}
    training = fs.sparsify(model, optimizer, method, sparsity=0.7, steps=STEPS, drop_fraction=0.3, **options)
    early, total, step = copied(model.state_dict()), 646, 0
    trained, masks = tiny_net(), {}
    for number in fs.rounds(training):
        if number > 0:
            live = total - round(min(0.7, 1 - 0.7**number) * total)
            wanted = pruned_plainly(trained, masks, live)
            assert same(wanted, training.masks)
            came_from = early if method == "lth" else trained.state_dict()
            for name, value in model.state_dict().items():
                kept = came_from[name] * wanted[name] if name in wanted else came_from[name]
                assert torch.equal(value, kept), name
            assert not innermost(optimizer).state
        for inside in range(1, STEPS + 1):
            take_step(model, optimizer, step := step + 1)
            assert_zero_outside(model, training, optimizer)
            if (number, inside) == (0, rewind):
                early = copied(model.state_dict())
        masks = copied(training.masks)
        model(torch.ones(2, 1, 8, 8))  # leaves a window open under S²-SAM; it moves batch-norm statistics too
        trained.load_state_dict(model.state_dict())
    assert number + 1 == training.rounds == 5
    assert sum(int(m.sum()) for m in training.masks.values()) == total - round(0.7 * total)


def test_a_method_without_rounds_has_one():
    model = tiny_net()
    training = fs.sparsify(model, sgd(model.parameters()), "set", sparsity=0.5, steps=20)
    assert list(fs.rounds(training)) == [0]
    with pytest.raises(fs.InputError, match="has 1 rounds, and this was the last"):
        training.next_round()


def test_what_cannot_be_done_is_said():
    for method, said in ((LTH(drop_fraction=0.0), "not in"), (LRR(drop_fraction=1.0), "not in"), (LTH(rewind=9), "9")):
        with pytest.raises(fs.InputError, match=said):
            method.plan(0.5, 8)
    model = tiny_net()
    training = fs.sparsify(model, sgd(model.parameters()), "imp", sparsity=0.5, steps=8, rewind=3)
    with pytest.raises(fs.InputError, match="never reached rewind=3"):
        training.next_round()

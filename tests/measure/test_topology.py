import pytest
import torch
from torch import nn

import flatsparse as fs
from flatsparse.measure.topology import churn, health
from tests.helpers import copied, rigl, sgd, take_step, tiny_net


def test_filters_without_a_live_weight_are_dead():
    conv, fc = torch.ones(4, 2, 3, 3, dtype=torch.bool), torch.zeros(20, 5, dtype=torch.bool)
    conv[1] = False
    fc[7, 0] = True
    model = nn.ModuleDict({"conv": nn.Conv2d(2, 4, 3), "fc": nn.Linear(5, 20)})
    found = health({"conv.weight": conv, "fc.weight": fc}, model)
    assert (found.dead, found.filters) == (1 + 19, 24)
    assert found.collapsed == {"fc.weight": 0.95}


def test_a_dead_filter_gives_the_same_for_every_input():
    model = tiny_net()
    training = fs.sparsify(model, sgd(model.parameters()), "static", sparsity=0.9, steps=10)
    dead = ~training.masks["3.weight"].flatten(1).any(1)
    assert health({"3.weight": training.masks["3.weight"]}, model).dead == dead.sum()
    inputs = torch.randn(2, 6, 8, 8)
    outputs = model[3](inputs)
    constant = torch.stack([outputs[:, i].std() < 1e-6 for i in range(8)])
    assert torch.equal(constant, dead)


@pytest.mark.parametrize(("moved", "expected"), [(0, 0.0), (1, 0.1), (10, 1.0)])
def test_churn_is_the_share_of_live_weights_that_were_replaced(moved, expected):
    before = torch.arange(100) < 10
    after = (torch.arange(100) < 10 - moved) | (torch.arange(100) >= 100 - moved)
    assert churn({"w": before}, {"w": after}) == pytest.approx(expected)


def test_churn_of_an_update_is_at_most_its_drop_fraction():
    model = tiny_net()
    optimizer = sgd(model.parameters())
    training = rigl(model, optimizer, drop_fraction=0.5, until=1.0)
    found = []
    for step in range(1, 10):
        before = copied(training.masks)
        take_step(model, optimizer, step)
        found.append(churn(before, training.masks))
    assert [step for step, value in enumerate(found, 1) if value > 0] == [3, 6, 9]
    assert max(found) <= 0.5

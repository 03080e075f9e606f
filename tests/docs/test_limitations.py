"""The warnings that docs/limitations.md quotes are those that such loops get, and what it calls quiet is."""

import copy
import re
import warnings

import pytest
import torch
from torch import nn

import flatsparse as fs

from .blocks import PAGES

INPUTS = torch.randn(4, 8)


def unfollowed(model, optimizer):
    optimizer.unfollow()
    model(INPUTS).sum().backward()


def in_evaluation_mode(model, optimizer):
    model.eval()(INPUTS).sum().backward()


def partly_before(model, optimizer):
    model[0].weight.sum().backward()
    model(INPUTS).sum().backward()


def evaluated_between(model, optimizer):
    loss = model(INPUTS).sum()
    model.eval()(INPUTS)
    model.train()
    loss.backward()


def switched_between(model, optimizer):
    loss = model(INPUTS).sum()
    optimizer.eval()
    loss.backward()


def with_strangers(model, optimizer):
    optimizer.unfollow()
    optimizer.follow(model[2])
    model(INPUTS).sum().backward()


ROWS = {
    "steps without a perturbed forward": (unfollowed, in_evaluation_mode),
    "takes a part": (partly_before,),
    "evaluates with gradients on": (evaluated_between, switched_between),
    "holds parameters": (with_strangers,),
}


def parts():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    return model, fs.S2SAM(torch.optim.SGD(model.parameters(), lr=0.1)).follow(model)


def quoted():
    """What a loop does, and what the warning has, by the page."""
    section = (
        PAGES["docs/limitations.md"].read_text(encoding="utf-8").split("## What breaks the window")[1].split("\n## ")[0]
    )
    return dict(re.findall(r"^\| (.*?) \| (.*?) \|$", section, re.MULTILINE)[2:])


@pytest.mark.parametrize(("does", "loop"), [(does, loop) for does, loops in ROWS.items() for loop in loops])
def test_a_loop_gets_the_warning_that_the_page_quotes(does, loop):
    (text,) = (text for row, text in quoted().items() if row.startswith(does))
    model, optimizer = parts()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            loop(model, optimizer)
            optimizer.step()
            optimizer.zero_grad()
    assert any(text.strip("… ") in str(warning.message) for warning in caught)


def test_every_row_is_tried():
    assert len(quoted()) == len(ROWS)


def test_what_shows_which_weights_inside_a_window():
    model, optimizer = parts()
    model(INPUTS).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    true = model[0].weight.detach().clone()
    model(INPUTS).sum().backward()
    shown = model[0].weight, copy.deepcopy(model)[0].weight, model[0].state_dict()["weight"]
    assert not any(torch.equal(weight, true) for weight in shown)
    assert torch.equal(model.state_dict()["0.weight"], true)
    optimizer.step()
    assert not optimizer.is_perturbed

"""Checks of what users give: every kind of number is taken, and all else is refused in one line."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import flatsparse as fs
from flatsparse.common.errors import InputError, check_count, check_finite, check_fraction, check_sparsity
from tests.helpers import sgd

HALVES = [0.5, np.float16(0.5), np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2)]
SEVENS = [7, *(kind(7) for kind in (np.int8, np.int32, np.int64, np.uint8)), np.array(7), torch.tensor(7)]
NEITHER = [None, "1", True, False, float("nan"), np.float32("nan"), np.bool_(True), 1j, [0.5], torch.ones(2)]


@pytest.mark.parametrize("half", HALVES, ids=lambda half: type(half).__name__)
def test_numbers_of_every_kind_are_taken(half):
    for taken in (check_sparsity(half), check_finite("rho", half), check_fraction("share", half)):
        assert type(taken) is float
        assert taken == 0.5


@pytest.mark.parametrize("seven", SEVENS, ids=lambda seven: type(seven).__name__)
def test_whole_numbers_of_every_kind_are_taken(seven):
    assert type(check_count("steps", seven)) is int
    assert check_count("steps", seven) == check_finite("rho", seven) == 7


@pytest.mark.parametrize("value", NEITHER, ids=repr)
@pytest.mark.parametrize(
    "check",
    [
        check_sparsity,
        lambda v: check_finite("rho", v),
        lambda v: check_fraction("share", v),
        lambda v: check_count("n", v),
    ],
)
def test_what_is_no_number_is_refused_in_one_line(check, value):
    with pytest.raises(InputError) as caught:
        check(value)
    assert "\n" not in str(caught.value)


def test_a_number_too_large_for_a_float_is_not_finite():
    with pytest.raises(InputError, match="finite"):
        check_finite("rho", 10**400)


@pytest.mark.parametrize("value", [7.0, np.float32(7), torch.tensor(7.0)], ids=lambda value: type(value).__name__)
def test_a_float_is_no_count(value):
    with pytest.raises(InputError, match="whole number"):
        check_count("steps", value)


@pytest.mark.parametrize("kind", [np.int64, np.int16, torch.tensor])
def test_sparsify_takes_numbers_of_every_kind(kind):
    def masks(steps, sparsity, every, until):
        torch.manual_seed(0)
        model = nn.Linear(20, 10)
        training = fs.sparsify(
            model, sgd(model.parameters()), "rigl", sparsity=sparsity, steps=steps, every=every, until=until
        )
        return training.masks["weight"], [step for step in range(1, 41) if training.due(step)]

    ours, theirs = masks(40, 0.75, 10, 30), masks(kind(40), np.float32(0.75), kind(10), kind(30))
    assert torch.equal(ours[0], theirs[0])
    assert ours[1] == theirs[1] == [10, 20, 30]
    assert masks(40, 0.75, 10, np.float32(0.75))[1] == [10, 20, 30]

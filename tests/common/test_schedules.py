"""When rules act, and how strongly."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatsparse.schedules import AnyOf, At, Constant, Cosine, Cubic, DueSteps, Every, Linear

RAMPS = [Linear, Cosine, Cubic]


@pytest.mark.parametrize("kind", RAMPS)
def test_a_ramp_runs_from_first_to_last_and_holds_outside(kind):
    ramp = kind(0.2, 0.9, until=20, start=10)
    assert [ramp(0), ramp(10), ramp(20), ramp(99)] == pytest.approx([0.2, 0.2, 0.9, 0.9], abs=1e-12)


@pytest.mark.parametrize("kind", RAMPS)
def test_a_ramp_ends_exactly_on_its_last_value(kind):
    assert kind(0.0, 0.9, until=7)(7) == 0.9


@pytest.mark.parametrize(("kind", "middle"), [(Linear, 0.5), (Cosine, 0.5), (Cubic, 0.875)])
def test_the_middle_of_a_ramp(kind, middle):
    assert kind(0.0, 1.0, until=10)(5) == pytest.approx(middle)


@given(st.sampled_from(RAMPS), st.floats(0, 1), st.floats(0, 1), st.integers(0, 9), st.integers(1, 60))
def test_a_ramp_is_monotone(kind, first, last, start, length):
    ramp = kind(first, last, until=start + length, start=start)
    values = [ramp(step) for step in range(start + length + 2)]
    ordered = values if first <= last else values[::-1]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(ordered))


@given(st.integers(0, 100))
def test_ramps_follow_their_papers(step):
    assert Cosine(0.3, 0.0, until=100)(step) == pytest.approx(0.3 / 2 * (1 + math.cos(math.pi * step / 100)))
    assert Cubic(0.1, 0.9, until=100)(step) == pytest.approx(0.9 + (0.1 - 0.9) * (1 - step / 100) ** 3)
    assert Linear(0.3, 0.1, until=100)(step) == pytest.approx(0.3 - 0.2 * step / 100)


def test_a_ramp_without_length_is_at_its_end_afterwards():
    assert [Linear(1.0, 0.0, until=5, start=5)(step) for step in (5, 6)] == [1.0, 0.0]


def test_constant_is_constant():
    assert {Constant(0.3)(step) for step in range(5)} == {0.3}


@given(st.integers(1, 12), st.integers(0, 60), st.integers(0, 10))
def test_every_acts_once_a_period_after_start_up_to_until(period, until, start):
    every = Every(period, until, start)
    acts = [step for step in range(until + 2 * period + start) if every(step)]
    assert acts == list(range(start + period, until + 1, period))
    assert every.last == (acts[-1] if acts else start)


EVERYS = st.builds(Every, st.integers(1, 12), st.integers(0, 60), st.integers(-9, 20))
ATS = st.builds(At, st.frozensets(st.integers(1, 70), max_size=5))
TIMETABLES = st.recursive(
    EVERYS | ATS | st.integers(1, 9).map(lambda period: lambda step: step % period == 0),
    lambda inner: st.lists(inner, max_size=3).map(lambda some: AnyOf(tuple(some))),
    max_leaves=5,
)


@given(st.lists(TIMETABLES, max_size=4), st.integers(1, 30), st.integers(0, 60), st.integers(0, 70), st.integers(0, 70))
def test_due_steps_are_those_of_a_walk_through_the_run(timetables, first, length, after, until):
    last = first + length
    walked = [step for step in range(first, last + 1) if any(timetable(step) for timetable in timetables)]
    due = DueSteps(timetables, first, last)
    assert list(due.thinned()) == walked
    assert due.count(after, until) == sum(after < step <= until for step in walked)


@given(st.lists(TIMETABLES, max_size=4), st.integers(1, 9))
def test_thinned_due_steps_are_due_and_keep_the_last_ones(timetables, stride):
    due = DueSteps(timetables, 1, 60)
    whole, thinned = list(due.thinned()), list(due.thinned(stride))
    assert set(thinned) <= set(whole)
    assert thinned == sorted(set(thinned))
    assert thinned[-1:] == whole[-1:]


def test_a_run_of_any_length_is_counted_at_once():
    steps = 10**15
    due = DueSteps(
        [Every(6, until=steps), Every(10, until=steps), AnyOf((Every(15, until=steps), At(frozenset({7}))))], 2, steps
    )
    alone = steps // 6 + steps // 10 + steps // 15
    assert due.count(0, steps) == alone - 2 * (steps // 30) + 1
    assert len(list(due.thinned(10**12))) < 10**4

"""Step-size schedules: their end points, their shape, and the warm-up before them."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from teleport_bench.errors import UserError
from teleport_bench.registry import SCHEDULES

ROUNDING = 8 * 2.0**-53
"""Of a cosine factor: 2 pi / 2 from the angle, and the cosine, two products and three sums."""
OPTIONS = {"step": {"milestones": [20, 30]}}


def schedule(name, rounds, **options):
    choice = SCHEDULES.resolve({"name": name, **OPTIONS.get(name, {}), **options})
    return SCHEDULES.build(choice, rounds)


@pytest.mark.parametrize("name", SCHEDULES.names())
@settings(deadline=None, max_examples=30)
@given(rounds=st.integers(1, 60), warmup=st.integers(0, 70))
def test_every_factor_is_between_zero_and_one(name, rounds, warmup):
    factor = schedule(name, rounds, warmup=warmup)
    assert all(0 <= factor(t) <= 1 for t in range(rounds + 1))


@pytest.mark.parametrize("name", SCHEDULES.names())
@settings(deadline=None, max_examples=30)
@given(rounds=st.integers(1, 60), warmup=st.integers(0, 19))
def test_the_warm_up_climbs_in_equal_steps_to_one(name, rounds, warmup):
    factor = schedule(name, rounds, warmup=warmup)
    assert [factor(t) for t in range(warmup)] == [(t + 1) / (warmup + 1) for t in range(warmup)]
    assert factor(warmup) == 1


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_there_is_no_warm_up_unless_asked_for(name):
    assert schedule(name, 50)(0) == 1


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_a_factor_depends_on_its_round_alone(name):
    factor = schedule(name, 40, warmup=5)
    forward = [factor(t) for t in range(40)]
    assert [factor(t) for t in reversed(range(40))] == forward[::-1]


@settings(deadline=None)
@given(st.integers(1, 1000), st.integers(0, 2000))
def test_a_constant_schedule_is_one_in_every_round(rounds, t):
    assert schedule("constant", rounds)(t) == 1


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(0, 50), st.floats(0, 1))
def test_a_cosine_falls_from_one_after_the_warm_up_to_its_final_value(span, warmup, final):
    rounds = warmup + span
    factor = schedule("cosine", rounds, warmup=warmup, final=final)
    values = [factor(t) for t in range(warmup, rounds + 1)]
    assert abs(values[0] - 1) <= ROUNDING
    assert values[-1] == final
    assert all(b <= a + 2 * ROUNDING for a, b in itertools.pairwise(values))
    for early, late in zip(values, reversed(values), strict=True):
        assert abs((early + late) / 2 - (1 + final) / 2) <= ROUNDING


def test_a_cosine_is_halfway_down_halfway_through():
    factor = schedule("cosine", 110, warmup=10)
    assert factor(60) == pytest.approx(0.5, abs=ROUNDING)
    assert factor(10 + 25) == pytest.approx((1 + math.sqrt(0.5)) / 2, abs=ROUNDING)
    assert factor(110) == 0


def test_a_cosine_with_a_final_factor_of_one_is_constant():
    factor = schedule("cosine", 50, final=1.0)
    assert {factor(t) for t in range(51)} == {1.0}


def test_a_step_schedule_drops_at_each_milestone_round():
    factor = schedule("step", 50, milestones=[10, 30], factor=0.25)
    assert [factor(t) for t in (0, 9, 10, 29, 30, 49)] == [1, 1, 0.25, 0.25, 0.0625, 0.0625]


def test_a_step_schedule_drops_to_a_tenth_unless_told():
    assert schedule("step", 50)(20) == 0.1


@settings(deadline=None)
@given(st.permutations([5, 12, 12, 40]), st.integers(0, 60))
def test_the_order_of_milestones_does_not_matter(milestones, t):
    factor = schedule("step", 60, milestones=milestones, factor=0.5)
    assert factor(t) == 0.5 ** ((t >= 5) + 2 * (t >= 12) + (t >= 40))


def test_a_step_schedule_keeps_its_milestones_after_the_warm_up():
    factor = schedule("step", 50, milestones=[10], factor=0.5, warmup=4)
    assert [factor(t) for t in (0, 3, 4, 9, 10)] == [0.2, 0.8, 1, 1, 0.5]


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("constant", {"warmup": -1}, "warmup"),
        ("constant", {"final": 0.1}, "unknown key 'final'"),
        ("cosine", {"final": 1.5}, "final"),
        ("cosine", {"final": -0.1}, "final"),
        ("cosine", {"final": math.nan}, "final"),
        ("cosine", {"warmpu": 3}, "unknown key 'warmpu'; did you mean 'warmup'"),
        ("step", {"milestones": [0]}, "milestones"),
        ("step", {"milestones": 10}, "milestones"),
        ("step", {"factor": 2.0}, "factor"),
    ],
)
def test_an_option_that_is_not_valid_is_refused_and_named(name, options, named):
    with pytest.raises(ValidationError, match=named):
        schedule(name, 50, **options)


def test_a_step_schedule_needs_its_milestones():
    with pytest.raises(ValidationError, match="milestones"):
        SCHEDULES.resolve("step")


def test_an_unknown_schedule_is_refused_and_the_nearest_named():
    with pytest.raises(UserError, match="unknown schedule 'cosin'; did you mean 'cosine'"):
        SCHEDULES.resolve("cosin")

"""Costs at a target, and performance profiles over many cases."""

from __future__ import annotations

import math
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teleport_bench import Network, Suite, run_fleet, simulate
from teleport_bench.errors import UserError
from teleport_bench.record import Record
from teleport_bench.report.build import build
from teleport_bench.report.frame import frame
from teleport_bench.report.profile import Profile, profile, table
from teleport_bench.shown import FigureSpec, ProfileSpec

RACE = """
title = "A race"
[run]
rounds = 60
eval_every = 20
lr = 0.2
topology = "ring"
problem = { name = "quadratic", dim = 5, sigma2 = 0.1 }
stop = { metric = "gradient_norm2", value = 0.05, window = 3 }
[grid]
nodes = [4, 6]
seed = [0, 1]
[[method]]
algorithm = "dsgd"
[[method]]
algorithm = "teleportation"
active = 2
[[method]]
algorithm = "teleportation"
active = 1
label = "one"
lr = 1e-6
[[profile]]
name = "gradients"
metric = "gradients_to_target"
[[table]]
name = "costs"
values = ["rounds_to_target", "gradients_to_target", "bytes_to_target", "time_to_target"]
[network]
tau = 3
"""


@pytest.fixture(scope="module")
def raced() -> tuple[Suite, dict[str, Record]]:
    suite = Suite.from_source("race", tomllib.loads(RACE))
    records = run_fleet([run.spec for run in suite.planned()], "cpu", compile="off")
    return suite, {r.id: r for r in records}


def test_costs_at_the_target_are_those_of_its_round(raced: Any) -> None:
    suite, records = raced
    shown = frame(suite, records).view(
        FigureSpec(name="x", y="time_to_target", x="nodes"), names=["time_to_target"]
    )
    for i, run in shown.runs.iterrows():
        spec, record = shown.specs[int(i)], records[shown.specs[int(i)].id]
        if run["label"] == "one":
            assert record.reached_at is None
            assert run["censored"]
            assert run["rounds_to_target"] == 60
            assert run["gradients_to_target"] == 60
            continue
        reached = record.reached_at
        assert reached is not None
        assert run["rounds_to_target"] == reached
        assert run["gradients_to_target"] == pytest.approx(reached * spec.n_active)
        if spec.algorithm["name"] == "dsgd":  # the same messages in every round
            assert run["bytes_to_target"] == pytest.approx(reached * 2 * 5 * 4)
            time = simulate(spec, Network(**suite.spec.network), [reached]).time[0]
            assert run["time_to_target"] == pytest.approx(time)


def test_ranks_and_ratios_of_a_profile() -> None:
    inf, nan = math.inf, math.nan
    costs = {"a": [1.0, 4.0, inf, 2.0], "b": [2.0, 2.0, inf, 2.0], "c": [8.0, inf, inf, nan]}
    found = Profile(ProfileSpec(name="p", metric="rounds_to_target"), costs)
    assert found.ratios["a"] == [1, 2, inf, 1]
    assert found.ratios["c"][:3] == [8, inf, inf]
    assert math.isnan(found.ratios["c"][3])
    assert found.ranks["a"] == [1, 2, 2, 1.5]
    assert found.ranks["b"] == [2, 1, 2, 1.5]
    assert found.ranks["c"][:3] == [3, 3, 2]
    rows = {row[0]: row[1:] for row in table(found).rows}
    assert list(rows) == ["a", "b", "c"]  # equal mean ranks stay in order
    assert rows["a"] == [1.62, "3 of 4", 2, 3, "1.5"]
    assert rows["c"] == [2.67, "1 of 3", 0, 0, "none"]


@given(
    st.lists(
        st.lists(st.sampled_from([1.0, 2.0, 3.0, math.inf]), min_size=3, max_size=3), min_size=1
    )
)
def test_ranks_of_a_case_add_up(cases: list[list[float]]) -> None:
    costs = {label: [case[i] for case in cases] for i, label in enumerate("abc")}
    ranks = Profile(ProfileSpec(name="p", metric="rounds_to_target"), costs).ranks
    assert [sum(of) for of in zip(*ranks.values(), strict=True)] == [6.0] * len(cases)


def test_a_profile_compares_methods_problem_by_problem_and_seed_by_seed(raced: Any) -> None:
    suite, records = raced
    found = profile(frame(suite, records), suite.spec.profile[0])
    assert {label: len(costs) for label, costs in found.costs.items()} == {
        "D-SGD": 4,
        "TELEPORTATION, k=2": 4,
        "one": 4,
    }
    assert found.costs["one"] == [math.inf] * 4
    assert all(c < math.inf for c in found.costs["D-SGD"])
    tables, files = build(suite, records)
    assert {"figures/gradients.svg", "tables/gradients.csv"} <= set(files)
    assert build(suite, records)[1] == files
    costs = next(t for t in tables if t.name == "costs")
    assert "4 of 4 not reached" not in costs.markdown()
    assert "not reached" in costs.markdown()


def test_runs_that_are_missing_are_no_case(raced: Any) -> None:
    suite, records = raced
    some = {k: r for k, r in records.items() if r.spec["algorithm"]["name"] == "dsgd"}
    found = profile(frame(suite, some), suite.spec.profile[0])
    assert all(math.isnan(c) for c in found.costs["one"])
    assert {row[0]: row[-1] for row in table(found).rows}["one"] == "missing"
    build(suite, some)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "gradients_to_targt"}, "did you mean 'gradients_to_target'"),
        ({"methods": ["SGD*"]}, "no method has a label like 'SGD"),
        ({"by": ["node"]}, "did you mean 'nodes'"),
    ],
)
def test_a_profile_that_cannot_be_made(change: dict[str, Any], message: str) -> None:
    source = tomllib.loads(RACE)
    source["profile"][0] |= change
    with pytest.raises(UserError, match=message):
        Suite.from_source("race", source)


def test_a_profile_is_of_a_cost_and_needs_a_target(
    texts: dict[str, str],
) -> None:
    source = tomllib.loads(texts["digits"])
    source["profile"] = [{"name": "p", "metric": "test_accuracy"}]
    with pytest.raises(UserError, match="more is better"):
        Suite.from_source("digits", source)
    source["profile"] = [{"name": "p", "metric": "bytes_to_target"}]
    with pytest.raises(UserError, match="has no target, so no bytes_to_target"):
        Suite.from_source("digits", source)

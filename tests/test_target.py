"""Targets: when a run has reached one, in the round loop and in the record."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from teleport_bench import RunSpec, native, run_fleet
from teleport_bench.curves import Target
from teleport_bench.spec import LOOKS

STOP = {"metric": "gradient_norm2", "value": 0.05, "window": 5}
NOISY = {"name": "quadratic", "dim": 7, "zeta2": 1.0, "sigma2": 1.0}


def spec(**settings: Any) -> RunSpec:
    defaults = {"algorithm": "dsgd", "nodes": 6, "problem": NOISY, "lr": 0.2, "rounds": 200}
    return RunSpec.model_validate(defaults | {"eval_every": 50, "stop": STOP} | settings)


@pytest.fixture(params=["off", "on"])
def compiled(request: pytest.FixtureRequest) -> str:
    if request.param == "on" and not native.available():
        pytest.skip("no C++ compiler on this machine")
    return str(request.param)


@given(st.lists(st.floats(0, 2), min_size=1, max_size=40), st.integers(1, 6))
def test_a_target_is_reached_where_the_first_window_below_it_begins(values, window):
    target = Target("gradient_norm2", 1.0, window, n_runs=1)
    known = [bool(target.look(3 * t, np.array([v]))[0]) for t, v in enumerate(values)]
    means = [np.mean(values[t : t + window]) for t in range(len(values) - window + 1)]
    first = next((t for t, mean in enumerate(means) if mean <= 1.0), None)
    assert target.reached_at[0] == (-1 if first is None else 3 * first)
    assert known == [first is not None and t == first + window - 1 for t in range(len(values))]


def test_accuracies_are_reached_from_below():
    target = Target("test_accuracy", 0.9, 1, n_runs=2)
    assert target.look(10, np.array([0.95, 0.85])).tolist() == [True, False]


def test_nothing_is_reached_through_a_nan():
    target = Target("gradient_norm2", 1.0, 2, n_runs=1)
    for t, value in enumerate([0.5, np.nan, 0.5]):
        assert not target.look(t, np.array([value])).any()


@pytest.mark.parametrize("rounds", [1, LOOKS, 1000, 4000])
def test_looks_are_close_to_each_other(rounds):
    looks = np.array(spec(rounds=rounds).looks())
    assert looks[0] == 0
    assert looks[-1] <= rounds
    assert (np.diff(looks) == np.maximum(1, looks[:-1] // LOOKS)).all()
    assert looks[-1] + max(1, looks[-1] // LOOKS) > rounds or looks[-1] == rounds
    assert spec(rounds=100, stop=STOP | {"every": 30}).looks() == [0, 30, 60, 90]
    assert spec(stop=None).looks() == []


def test_a_run_ends_with_its_target_and_is_what_it_is_without_one(compiled):
    (stopped,), (whole,) = (
        run_fleet([s], "cpu", compile=compiled) for s in (spec(), spec(stop=None, eval_every=1))
    )
    norms = np.array(whole.curves["gradient_norm2"])
    means = np.convolve(norms, np.ones(5) / 5, "valid")
    first = int(np.argmax(means <= 0.05))
    assert means[first] <= 0.05
    assert 0 < first < 100
    assert stopped.reached_at == first
    assert whole.reached_at is None
    last = first + 4
    assert stopped.curves["rounds"] == [*range(0, last, 50), last]
    for name, curve in stopped.curves.items():
        assert curve == [whole.curves[name][int(t)] for t in stopped.curves["rounds"]]


def test_a_fleet_goes_on_for_those_that_have_not_reached_it(compiled):
    specs = [spec(lr=lr, seed=s) for lr in (0.001, 0.1, 0.2, 50.0) for s in (0, 1)]
    together = run_fleet(specs, "cpu", compile=compiled)
    alone = [run_fleet([s], "cpu", compile=compiled)[0] for s in specs]
    assert [r.reached_at for r in together] == [r.reached_at for r in alone]
    assert [len(r.curves["rounds"]) for r in together] == [len(r.curves["rounds"]) for r in alone]
    states = [(r.status, r.reached_at is not None) for r in together]
    censored, reached, diverged = ("finished", False), ("finished", True), ("diverged", False)
    assert states == [censored] * 2 + [reached] * 4 + [diverged] * 2
    assert together[0].curves["rounds"][-1] == 200


def test_both_engines_find_the_same_round():
    if not native.available():
        pytest.skip("no C++ compiler on this machine")
    specs = [spec(seed=s, algorithm="teleportation", active=2, rounds=400) for s in range(4)]
    found = [[r.reached_at for r in run_fleet(specs, "cpu", compile=c)] for c in ("on", "off")]
    assert found[0] == found[1]
    assert None not in found[0]


def test_the_rounds_after_the_last_target_are_not_run(compiled):
    reported = []
    run_fleet([spec(rounds=10**6, eval_every=10**6)], "cpu", reported.append, compile=compiled)
    assert sum(tick.updates for tick in reported) == 6 * 10**6  # the rest is counted as done


def test_a_target_of_a_metric_that_the_problem_has_not_is_refused():
    with pytest.raises(ValidationError, match="did you mean 'gradient_norm2'"):
        spec(stop=STOP | {"metric": "gradient_norm"})


def test_a_fleet_is_given_by_any_iterable_and_equal_runs_are_one() -> None:
    specs = [spec(seed=seed, rounds=8) for seed in (0, 1, 0)]
    records = run_fleet((s for s in specs), "cpu", compile="off")
    assert [r.id for r in records] == [s.id for s in specs]
    assert records[0] is records[2]
    assert run_fleet(iter(()), "cpu") == []

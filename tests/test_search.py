"""The choice of k: the search within 2T rounds, and every k alone beside it."""

from __future__ import annotations

import json
import tomllib
from typing import Annotated

import pytest

from teleport_bench import Suite
from teleport_bench.errors import UserError
from teleport_bench.registry import ROUNDS, SCHEDULES
from teleport_bench.report import search
from teleport_bench.suite import candidates
from teleport_bench.tune import choose, chosen, step_sizes

SEARCH = """\
title = "A search"

[run]
rounds = 70
topology = "ring"
problem = { name = "quadratic", dim = 5 }

[grid]
nodes = [5, 9]
seed = [0, 1]

[[method]]
algorithm = "dsgd"

[[method]]
algorithm = "teleportation"
active = "search"

[[method]]
algorithm = "teleportation"
active = 2

[tune]
lr = [0.05, 0.1]
seeds = [100, 101]
metric = "objective_gap"

[[table]]
name = "gap"
values = ["objective_gap"]
pivot = "nodes"

[small.run]
rounds = 8

[small.grid]
nodes = [5]
"""


def make(**changes) -> Suite:
    return Suite.from_source("searching", tomllib.loads(SEARCH) | changes)


@pytest.mark.parametrize("n", range(1, 140))
def test_the_candidates_are_the_powers_of_two_and_all_but_the_largest_fit_into_n_nodes(n):
    found = candidates(n, "search")
    assert [c["active"] for c in found] == [2**j for j in range(n.bit_length()) if 2**j <= n]
    assert [c["active"] for c in candidates(n, "best")] == [c["active"] for c in found]
    shares = [(c["share"]["first"], c["active"], c["share"]["among"]) for c in found[:-1]]
    assert "share" not in found[-1]
    taken = [node for first, k, _ in shares for node in range(first, first + k)]
    assert taken == list(range(len(taken)))  # disjoint, without a gap
    assert all(among == len(taken) < n for *_, among in shares)


def test_25_nodes_share_1_2_4_and_8_and_then_take_16():
    found = candidates(25, "search")
    assert [c["share"]["among"] for c in found[:-1]] == [15] * 4
    assert found[-1] == {"active": 16}


@pytest.fixture
def records(make_record):
    """Records of all tuning runs from a function (k, lr, seed) -> score or status."""

    def records(suite, score):
        made = {}
        for run in suite.tuning:
            value = score(run.spec.n_active, run.spec.lr, run.spec.seed)
            finals = {} if isinstance(value, str) else {"objective_gap": value}
            status = value if isinstance(value, str) else "finished"
            made[run.spec.id] = make_record(run.spec, status, **finals)
        return made

    return records


def searched(suite):
    return next(cell for cell, label, s in suite.cells() if "searched" in label and s.nodes == 9)


def test_the_best_pair_of_k_and_step_size_is_chosen(records):
    suite = make()
    scores = {(4, 0.1): 1.0, (8, 0.05): 0.5}
    found = choose(suite, records(suite, lambda k, lr, _: scores.get((k, lr), 2.0)))
    choice = found[searched(suite)]
    assert (choice.active, choice.lr) == (8, 0.05)
    assert choice.scores == {0.05: 0.5, 0.1: 1.0}  # the best of any k
    assert choice.by_active[4] == {0.05: 2.0, 0.1: 1.0}
    fixed = [c for cell, c in found.items() if "searched" not in cell]
    assert {(c.active, c.lr) for c in fixed} == {(None, 0.05)}
    reported = suite.reported(step_sizes(found))
    mine = {(r.spec.n_active, r.spec.lr) for r in reported if r.cell == searched(suite)}
    assert mine == {(8, 0.05)}
    assert all(r.spec.share is None for r in reported)


def test_ties_go_to_the_smaller_k_and_then_to_the_smaller_step_size(records):
    suite = make()
    choice = choose(suite, records(suite, lambda k, *_: 1.0 if k in (2, 4) else 3.0))
    assert (choice[searched(suite)].active, choice[searched(suite)].lr) == (2, 0.05)


def test_a_k_that_diverges_is_out_at_that_step_size_alone(records):
    suite = make()
    bad = {(8, 0.1, 101): "diverged"}
    made = records(suite, lambda k, lr, s: bad.get((k, lr, s), 1 / k + (lr == 0.05)))
    choice = choose(suite, made)[searched(suite)]
    assert (choice.active, choice.lr) == (4, 0.1)
    assert choice.by_active[8] == {0.05: 1.125, 0.1: None}
    assert choice.lost == {}


def test_runs_that_reach_their_target_sooner_are_better_and_none_is_dropped(make_record):
    stop = {"metric": "objective_gap", "value": 0.1}
    run = tomllib.loads(SEARCH)["run"] | {"stop": stop}
    tune = tomllib.loads(SEARCH)["tune"] | {"metric": "rounds_to_target"}
    method = [{"algorithm": "dsgd"}]
    suite = make(run=run, tune=tune, method=method, grid={"nodes": [5]})
    reached = {(0.05, 100): 60, (0.05, 101): 60, (0.1, 100): 5, (0.1, 101): None}

    def made(reached):
        return {
            r.spec.id: make_record(r.spec, objective_gap=r.spec.lr).model_copy(
                update={"reached_at": reached[r.spec.lr, r.spec.seed]}
            )
            for r in suite.tuning
        }

    (choice,) = choose(suite, made(reached)).values()
    assert choice.scores == {0.05: 60.0, 0.1: 72.5}  # one of two censored: (5 + 2 x 70) / 2
    assert choice.lr == 0.05
    (none,) = choose(suite, made(dict.fromkeys(reached))).values()
    assert none.scores == {0.05: 140.0, 0.1: 140.0}
    assert none.lr == 0.05  # whose metric is closer to the target


def test_a_search_may_stand_beside_its_exhaustive_twin_and_a_k_of_1():
    methods = [METHOD, METHOD | {"active": "best"}, METHOD | {"active": 1}]
    assert {run.label for run in make(method=methods).planned()} == {
        "TELEPORTATION, k searched",
        "TELEPORTATION, best k",
        "TELEPORTATION, k=1",
    }


def test_a_search_needs_tuning():
    source = tomllib.loads(SEARCH)
    del source["tune"]
    source["run"]["lr"] = 0.1
    with pytest.raises(UserError, match=r'active = "search" needs \[tune\]'):
        Suite.from_source("searching", source)


def test_a_given_k_needs_no_search():
    assert {r.spec.n_active for r in make(set={"active": 2}, method=[METHOD]).planned()} == {2}
    assert make(set={"active": 2}, method=[METHOD]).exhaustive is None


METHOD = {"algorithm": "teleportation", "active": "search"}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, bench):
    """The folder of a suite that was tuned with every k alone beside the search."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "searching.toml").write_text(SEARCH)
    done = bench(
        *("tune", folder / "searching.toml", "--out", folder / "out"),
        *("--device", "cpu", "--exhaustive"),
    )
    assert done.code == 0, done.err
    return folder, done


def test_tune_runs_what_chooses_and_nothing_else(tuned):
    folder, done = tuned
    assert "Step sizes" in done.out
    assert "The search for k within 2T rounds" in done.out
    assert "missing" not in done.out
    seeds = {json.loads(p.read_text())["spec"]["seed"] for p in folder.glob("out/*/runs/*.json")}
    assert seeds == {100, 101}


def test_the_search_takes_2t_rounds_and_every_k_alone_takes_m_plus_1_times_t(tuned):
    folder, _ = tuned
    found = json.loads((folder / "out/searching/search.json").read_text())
    by_n = {f["nodes"]: f for f in found}
    assert [by_n[n]["rounds"] for n in (5, 9)] == [140, 140]
    assert [by_n[n]["alone_rounds"] for n in (5, 9)] == [3 * 70, 4 * 70]
    assert [by_n[n]["most_active"] for n in (5, 9)] == [4, 8]
    for f in found:
        assert set(f["alone"]) == set(f["scores"])
        largest = max(f["scores"], key=int)
        assert f["alone"][largest] == f["scores"][largest]  # it is alone in both
        assert f["alone"]["1"] != f["scores"]["1"]


def test_what_tune_has_run_is_not_run_again(tuned, bench):
    folder, _ = tuned
    where = (folder / "searching.toml", "--out", folder / "out", "--device", "cpu")
    before = {p: p.stat().st_mtime_ns for p in folder.glob("out/*/runs/*.json")}
    done = bench("run", *where)
    assert done.code == 0, done.err
    assert {p: p.stat().st_mtime_ns for p in before} == before
    new = set(folder.glob("out/*/runs/*.json")) - set(before)
    assert {json.loads(p.read_text())["spec"]["seed"] for p in new} == {0, 1}
    page = (folder / "out/searching/index.html").read_text()
    assert "The search for k within 2T rounds" in page
    assert bench("report", folder / "searching.toml", "--out", folder / "out", "--check").code == 0


def test_tune_without_anything_to_choose_is_refused(bench, write, texts, tmp_path):
    done = bench("tune", write(texts["tiny"]), "--out", tmp_path)
    assert done.code == 2
    assert "has no [tune]" in done.err


def test_two_candidates_at_one_node_would_be_seen():
    suite = make()
    specs = [r.spec for r in suite.tuning if r.search and r.spec.nodes == 9 and r.spec.seed == 100]
    one = next(s for s in specs if s.n_active == 4)
    clash = one.model_copy(update={"active": 2})
    with pytest.raises(RuntimeError, match="two candidates"):
        search._count([one, clash])


def test_small_scale_is_the_same_plan_with_other_settings(tmp_path, write, bench):
    path = write(SEARCH, "searching")
    suite = Suite.load(str(path), scale="small")
    assert suite.name == "searching-small"
    assert {r.spec.rounds for r in suite.all_runs()} == {8}
    assert (
        suite.scale_note == "Small scale: rounds = 8 instead of 70; nodes = [5] instead of [5, 9]."
    )
    assert Suite.load(str(path)).scale_note is None
    assert Suite.load(str(path), ["rounds=9"], "small").planned()[0].spec.rounds == 9
    done = bench("run", path, "--scale", "small", "--out", tmp_path / "out", "--device", "cpu")
    assert done.code == 0, done.err
    assert chosen(suite, {}) == {}
    assert (tmp_path / "out/searching-small/index.html").exists()
    assert bench("report", path, "--scale", "small", "--out", tmp_path / "out", "--check").code == 0


def test_a_suite_of_one_scale_says_so(write, texts):
    with pytest.raises(UserError, match=r"no \[small\] table.*leave --scale out"):
        Suite.load(str(write(texts["tiny"])), scale="small")


def equal_epochs(**changes):
    source = tomllib.loads(SEARCH)
    del source["tune"]
    source["run"] |= {"lr": 0.1, "eval_every": 10, "schedule": {"name": "cosine", "warmup": 7}}
    methods = [{"algorithm": "dsgd"}, {"algorithm": "teleportation", "active": 2}]
    new = {"grid": {"nodes": [6]}, "method": methods, "equal": "epochs"} | changes
    return Suite.from_source("equal", source | new)


def test_at_equal_epochs_fewer_active_nodes_take_more_rounds():
    dsgd, teleportation = (run.spec for run in equal_epochs().planned())
    assert (dsgd.rounds, dsgd.eval_every, dsgd.schedule["warmup"]) == (70, 10, 7)
    spec = teleportation
    assert (spec.rounds, spec.eval_every, spec.schedule["warmup"]) == (210, 30, 21)
    assert spec.rounds * spec.n_active == dsgd.rounds * dsgd.nodes
    assert len(spec.evaluations()) == len(dsgd.evaluations())


def test_at_equal_epochs_local_steps_take_fewer_rounds():
    local = {"algorithm": {"name": "local_sgd", "local_steps": 2}}
    one = {"algorithm": {"name": "teleportation", "local_steps": 5}, "active": 6}
    run = {"rounds": 70, "eval_every": 10, "lr": 0.1, "problem": "quadratic"}
    specs = [r.spec for r in equal_epochs(method=[local, one], run=run).planned()]
    assert {(s.rounds, s.eval_every) for s in specs} == {(35, 5), (14, 2)}


def test_epochs_that_do_not_come_out_even_are_refused():
    with pytest.raises(UserError, match="and 70 x 5 / 4 is no whole number"):
        equal_epochs(grid={"nodes": [5]}, method=[{"algorithm": "teleportation", "active": 4}])
    with pytest.raises(UserError, match="a search for k compares equal rounds"):
        make(equal="epochs")


def test_a_search_alone_has_no_regret() -> None:
    found = search.Found("TELEPORTATION", 8, {}, 0.1, {1: 0.5}, 1, 10, 1, 10)
    assert found.regret is None


def stretched(**run):
    """The settings of D-SGD and of TELEPORTATION with 4 of 20 nodes at equal epochs."""
    source = tomllib.loads(SEARCH)
    del source["tune"]
    source["run"] |= {"lr": 0.1, "rounds": 100, "eval_every": 20} | run
    methods = [{"algorithm": "dsgd"}, {"algorithm": "teleportation", "active": 4}]
    new = {"grid": {"nodes": [20]}, "method": methods, "equal": "epochs"}
    return [run.spec for run in Suite.from_source("equal", source | new).planned()]


SCHEDULES_OF_ROUNDS = {
    "step": {"name": "step", "milestones": [50, 75], "warmup": 10},
    "cosine": {"name": "cosine", "warmup": 10},
    "constant": {"name": "constant", "warmup": 10},
}


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_at_equal_epochs_every_schedule_is_as_far_after_as_many_gradients(name):
    """The warm-up is stretched too: its factors agree at its end, and from there on."""
    dsgd, other = (s.build_schedule() for s in stretched(schedule=SCHEDULES_OF_ROUNDS[name]))
    factors = [dsgd(t) for t in range(10, 101)]
    assert [other(5 * t) for t in range(10, 101)] == pytest.approx(factors, rel=0, abs=1e-15)
    assert other(49) < 1 == other(50)


def test_at_equal_epochs_all_that_counts_rounds_is_stretched():
    stop = {"metric": "objective_gap", "value": 1e-9, "every": 4, "window": 3}
    dsgd, other = stretched(stop=stop)
    assert (dsgd.stop.every, other.stop.every) == (4, 20)
    assert dsgd.stop.window == other.stop.window  # looks, not rounds
    dsgd, other = stretched(away={"share": 0.1, "spell": 3})
    assert (dsgd.away.spell, other.away.spell) == (3.0, 15.0)
    dsgd, other = stretched(rounds=130, eval_every=None)
    assert [5 * t for t in dsgd.evaluations()] == other.evaluations()


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"schedule": {"name": "step", "milestones": [50, 75]}}, "schedule.milestones = 75 x"),
        ({"stop": {"metric": "objective_gap", "value": 1.0, "every": 5}}, "stop.every = 5 x"),
        ({"stop": {"metric": "objective_gap", "value": 1.0}}, "needs the rounds between looks"),
        ({"rounds": 110, "eval_every": None}, "eval_every = 5 x"),
    ],
)
def test_what_cannot_be_stretched_is_refused_by_its_name(run, words):
    source = tomllib.loads(SEARCH)
    del source["tune"]
    source["run"] |= {"lr": 0.1, "rounds": 100, "eval_every": 10} | run
    methods = [{"algorithm": "teleportation", "active": 4}]
    new = {"grid": {"nodes": [6]}, "method": methods, "equal": "epochs"}
    with pytest.raises(UserError, match=words):
        Suite.from_source("equal", source | new)


def test_a_component_of_ones_own_says_which_of_its_options_count_rounds():
    def warm(rounds: int, *, until: Annotated[int, ROUNDS] = 5, scale: int = 5):  # noqa: ARG001
        return lambda t: 0.5 if t < until else 1.0

    before = SCHEDULES.entries()
    SCHEDULES.register("warm")(warm)
    try:
        _, other = stretched(schedule={"name": "warm", "until": 6, "scale": 7})
        assert other.schedule == {"name": "warm", "until": 30, "scale": 7}
    finally:
        SCHEDULES.restore(before)


def test_at_equal_epochs_tuning_runs_are_as_long_as_those_that_are_reported():
    """Their only evaluation, at the end, is stretched once: 3 rounds of 4 nodes for 2 of 6."""
    source = tomllib.loads(SEARCH)
    source["run"] |= {"rounds": 2, "eval_every": 2}
    methods = [{"algorithm": "teleportation", "active": 4}]
    suite = Suite.from_source(
        "equal", source | {"grid": {"nodes": [6]}, "method": methods, "equal": "epochs"}
    )
    assert {(r.spec.rounds, r.spec.eval_every) for r in suite.all_runs()} == {(3, 3)}

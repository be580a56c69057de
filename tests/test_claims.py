"""Claims: what the records say of a sentence, and when they say nothing."""

import csv
import io
import json
import tomllib

import pytest

from teleport_bench import Suite, UserError
from teleport_bench.report.build import build, write
from teleport_bench.report.claims import judge, summary
from teleport_bench.report.frame import frame

SUITE = """
title = "Claims"

[run]
rounds = 100
eval_every = 50
lr = 0.1
topology = "ring"
problem = { name = "quadratic", dim = 5 }

[grid]
nodes = [4, 8]
seed = [0, 1, 2, 3, 4]

[[method]]
algorithm = "dsgd"

[[method]]
algorithm = "teleportation"
grid = { active = [1, 2] }

[[claim]]
name = "lower"
text = "TELEPORTATION has a lower gap than D-SGD."
source = "paper"
metric = "objective_gap"
better = "TELEPORTATION*"
than = "D-SGD"
assumed = "the objective"
"""
TARGET = 'stop = { metric = "gradient_norm2", value = 0.01 }\n'


@pytest.fixture
def claim(make_record):
    """A suite of one claim and hand-made records of its runs: (suite, records).

    score: (planned run) -> the final gap, a status, or None for no record.
    """

    def claim(score, edit=None, **keys):
        source = tomllib.loads(SUITE)
        source["claim"][0] |= keys
        if edit:
            edit(source)
        suite = Suite.from_source("claims", source)
        records = {}
        for run in suite.planned():
            value = score(run)
            if isinstance(value, str):
                finals = {} if value == "failed" else {"objective_gap": 1.0}
                records[run.spec.id] = make_record(run.spec, value, **finals)
            elif value is not None:
                records[run.spec.id] = make_record(run.spec, objective_gap=value)
        return suite, records

    return claim


def verdict(suite, records):
    return judge(frame(suite, records), suite.spec.claim[0])


def gap(teleportation, dsgd=1.0):
    """A score: that gap for each method, times what a seed does to both and a bit of its own."""

    def score(run):
        mine = dsgd if run.label == "D-SGD" else teleportation
        own = 0.01 * ((run.spec.seed * 7 + len(run.label)) % 5)
        return mine * (1 + own) * 10.0**run.spec.seed

    return score


def one(score, label, value, **settings):
    """A score, but for the runs of a label with those settings."""

    def changed(run):
        here = all(getattr(run.spec, key) == v for key, v in settings.items())
        return value if run.label == label and here else score(run)

    return changed


# Verdicts


def test_a_claim_that_holds_in_every_case_is_supported(claim):
    found = verdict(*claim(gap(0.5)))
    assert found.verdict == "supported"
    assert found.reason == ""
    assert [(c.settings, c.better, c.than) for c in found.cases] == [
        ({"nodes": n}, f"TELEPORTATION, k={k}", "D-SGD") for n in (4, 8) for k in (1, 2)
    ]
    for case in found.cases:
        assert case.comparison.n == case.comparison.wins == 5
        assert case.comparison.effect == pytest.approx(2, rel=0.1)


def test_seeds_are_paired_so_that_what_a_seed_does_to_both_methods_does_not_hide_the_effect(claim):
    """The gaps of the seeds span four decades, the effect is a tenth."""
    assert verdict(*claim(gap(0.9))).verdict == "supported"


def test_one_contradicted_case_is_enough_and_is_named(claim):
    def score(run):
        worse = run.label == "TELEPORTATION, k=1" and run.spec.nodes == 8
        return gap(2.0 if worse else 0.5)(run)

    found = verdict(*claim(score))
    assert found.verdict == "not supported"
    assert found.count("holds") == 3
    case = "n = 8, TELEPORTATION, k=1 against D-SGD"
    assert found.reason == f"contradicted in 1 of 4 cases: {case}"
    assert found.worst.name == case


def test_a_case_without_a_clear_difference_leaves_the_claim_unsupported(claim):
    def score(run):
        if run.label == "TELEPORTATION, k=2":
            return gap(0.5 if run.spec.seed % 2 else 2.0)(run)
        return gap(0.5)(run)

    found = verdict(*claim(score))
    assert found.verdict == "not supported"
    assert found.reason.startswith("undecided in 2 of 4 cases: n = 4, TELEPORTATION, k=2")


@pytest.mark.parametrize(
    ("status", "words"), [(None, "1 of 10 runs missing"), ("failed", "1 of 10 runs failed")]
)
def test_a_claim_with_a_run_missing_is_not_tested(claim, status, words):
    score = one(gap(0.5), "TELEPORTATION, k=1", status, nodes=4, seed=3)
    found = verdict(*claim(score))
    assert found.verdict == "not tested"
    assert found.reason == (
        f"not tested in 1 of 4 cases: n = 4, TELEPORTATION, k=1 against D-SGD ({words})"
    )


def test_a_contradiction_stands_whatever_is_missing(claim):
    score = one(gap(2.0), "TELEPORTATION, k=1", None)
    found = verdict(*claim(score))
    assert found.verdict == "not supported"
    assert (found.count("contradicted"), found.count("not tested")) == (2, 2)


def test_a_claim_of_one_seed_is_not_tested(claim):
    found = verdict(*claim(gap(0.5), lambda source: source["grid"].update(seed=[0])))
    assert found.verdict == "not tested"
    assert "(common seeds: 1)" in found.reason


def test_only_common_seeds_are_compared(claim):
    def edit(source):
        source["method"][0]["grid"] = {"seed": [3, 4, 5]}

    found = verdict(*claim(gap(0.5), edit))
    assert {case.comparison.n for case in found.cases} == {2}


def test_a_diverged_run_is_the_worst_there_is(claim):
    found = verdict(*claim(one(gap(0.5), "D-SGD", "diverged", nodes=4)))
    four = [case for case in found.cases if case.settings["nodes"] == 4]
    assert [case.comparison.wins for case in four] == [5, 5]
    assert {case.comparison.effect for case in four} == {None}
    # five of five is not enough for the sign test
    assert {case.state for case in four} == {"undecided"}


def test_a_margin_is_part_of_what_is_claimed(claim):
    assert verdict(*claim(gap(0.5), margin=1.5)).verdict == "supported"
    found = verdict(*claim(gap(0.5), margin=3.0))
    assert (found.verdict, found.count("contradicted")) == ("not supported", 4)
    assert verdict(*claim(gap(1.1), margin=0.8)).verdict == "supported"  # hardly worse


# Cases


def both_graphs(source):
    source["method"] = [
        {"algorithm": "dsgd", "topology": name, "label": "D-SGD, {topology[name]}"}
        for name in ("ring", "star")
    ] + [
        {
            "algorithm": "teleportation",
            "active": 2,
            "topology": name,
            "label": "TELEPORTATION, {topology[name]}",
        }
        for name in ("ring", "star")
    ]


def names(found):
    return {(case.better.split(", ")[1], case.than.split(", ")[1]) for case in found.cases}


def test_every_pair_of_methods_is_a_case_unless_they_must_match(claim):
    keys = {"better": "TELEPORTATION*", "than": "D-SGD*"}
    score = lambda run: gap(0.5)(run) if "TEL" in run.label else gap(1.0)(run)  # noqa: E731
    every = names(verdict(*claim(score, both_graphs, **keys)))
    assert every == {(a, b) for a in ("ring", "star") for b in ("ring", "star")}
    matched = verdict(*claim(score, both_graphs, **keys, match=["topology.name"]))
    assert names(matched) == {("ring", "ring"), ("star", "star")}
    assert matched.cases[0].settings == {"nodes": 4, "topology.name": "ring"}


def test_a_setting_that_varies_within_a_method_makes_cases(claim):
    def edit(source):
        source["grid"]["problem.sigma2"] = [0.0, 1.0]

    found = verdict(*claim(gap(0.5), edit))
    assert [(c.settings["nodes"], c.settings["problem.sigma2"]) for c in found.cases][::2] == [
        (4, 0.0),
        (4, 1.0),
        (8, 0.0),
        (8, 1.0),
    ]
    found = verdict(*claim(gap(0.5), edit, where={"problem.sigma2": 1.0, "nodes": 8}))
    assert [case.settings for case in found.cases] == [{}, {}]


WRONG = {
    "a pattern without a method": ({"than": "D-SDG"}, "no method has a label like 'D-SDG'"),
    "a method on both sides": ({"than": "*"}, "'TELEPORTATION, k=1' is on both sides"),
    "a setting that is none": (
        {"by": ["nods"]},
        "no setting of these runs; did you mean 'nodes'",
    ),
    "an average": ({"by": []}, "claim 'lower' would average over nodes"),
    "a metric of another problem": ({"metric": "test_accuracy"}, "does not report"),
    "rounds to no target": ({"metric": "rounds_to_target"}, "has no target"),
    "a margin that is no factor": ({"margin": 0.0}, "is a factor, so more than 0"),
    "a condition that nothing meets": ({"where": {"nodes": 5}}, "no run has {'nodes': 5}"),
    "methods that never agree": ({"match": ["active"]}, "nothing to compare"),
    "a source": ({"source": "rumour"}, "source"),
}


@pytest.mark.parametrize(("keys", "words"), WRONG.values(), ids=WRONG)
def test_a_claim_that_cannot_be_decided_is_refused_at_load(claim, keys, words):
    with pytest.raises(UserError) as error:
        claim(gap(0.5), **keys)
    assert words in str(error.value)


# Rounds to a target


@pytest.fixture
def targets(claim):
    """(suite, records) of runs that reached their target, or not: reached(run) -> round or None."""

    def targets(reached):
        def edit(source):
            source["run"] |= tomllib.loads(TARGET)

        suite, records = claim(gap(1.0), edit, metric="rounds_to_target")
        at = {run.spec.id: reached(run) for run in suite.planned()}
        return suite, {k: r.model_copy(update={"reached_at": at[k]}) for k, r in records.items()}

    return targets


def test_a_target_that_only_the_other_method_misses_gives_a_bound(targets):
    reached = lambda run: None if run.label == "D-SGD" else 20 + run.spec.seed  # noqa: E731
    suite, records = targets(reached)
    found = verdict(suite, records)
    assert found.verdict == "supported"
    text = build(suite, records)[1]["tables/claim-lower.md"].decode()
    assert "at least ×4.55 [≥ " in text
    assert "5 / 0 / 0" in text


def test_a_target_that_both_methods_miss_decides_nothing(targets):
    suite, records = targets(lambda _: None)
    found = verdict(suite, records)
    assert found.verdict == "not supported"
    assert found.count("undecided") == 4
    text = build(suite, records)[1]["tables/claim-lower.md"].decode()
    assert "0 / 0 / 0 (5 open)" in text


def test_a_target_that_the_favoured_method_misses_contradicts(targets):
    reached = lambda run: 20 + run.spec.seed if run.label == "D-SGD" else None  # noqa: E731
    assert verdict(*targets(reached)).count("contradicted") == 4


# What is written


def test_claims_are_written_in_every_form(claim):
    suite, records = claim(gap(0.5))
    tables, files = build(suite, records)
    assert tables[-1].name == "claims"
    assert {name for name in files if "claim" in name} == {
        "claims.json",
        *(f"tables/{n}.{f}" for n in ("claims", "claim-lower") for f in ("md", "csv", "tex")),
    }
    (row,) = csv.DictReader(io.StringIO(files["tables/claims.csv"].decode()))
    assert row["sentence"] == "TELEPORTATION has a lower gap than D-SGD."
    assert (row["source"], row["verdict"], row["holds"]) == ("paper", "supported", "4 of 4")
    assert "5 of 5 seeds better" in row["worst"]
    rows = list(csv.DictReader(io.StringIO(files["tables/claim-lower.csv"].decode())))
    assert [(r["better"], r["nodes"], r["seeds"], r["state"]) for r in rows] == [
        (f"TELEPORTATION, k={k}", str(n), "5", "holds") for n in (4, 8) for k in (1, 2)
    ]
    page = files["index.html"].decode()
    assert '<p class="tag paper"><b>paper</b> <strong>supported</strong>' in page
    assert '<p class="tag assumed"><b>assumed</b> the objective</p>' in page
    assert '<a href="claims.json">' in page


def test_claims_as_json_have_every_number(claim):
    suite, records = claim(gap(0.5))
    content = json.loads(build(suite, records)[1]["claims.json"])
    (written,) = content["claims"]
    found = verdict(suite, records)
    assert (content["suite"], written["verdict"]) == ("claims", "supported")
    for case, other in zip(found.cases, written["cases"], strict=True):
        assert other["settings"] == case.settings
        for key in ("n", "wins", "losses", "effect", "low", "high", "p"):
            assert other[key] == getattr(case.comparison, key)


def test_a_suite_without_claims_writes_none(claim):
    suite, records = claim(gap(0.5), lambda source: source.update(claim=[]))
    assert not [name for name in build(suite, records)[1] if "claim" in name]


def test_the_claims_of_several_suites_are_counted(claim, tmp_path):
    for name, score in (("a", gap(0.5)), ("b", gap(2.0)), ("c", lambda _: None)):
        write(tmp_path / name, build(*claim(score))[1])
    (tmp_path / "none").mkdir()
    table = summary([tmp_path / name for name in ("a", "b", "c", "none")])
    assert [list(row[1:]) for row in table.rows] == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]
    assert list(table.columns[1:]) == ["supported", "not supported", "not tested"]
    assert len(table.notes) == 2
    assert "and 1 more" in table.notes[0]
    (tmp_path / "a" / "claims.json").write_text("{")
    with pytest.raises(UserError, match="report the suite again"):
        summary([tmp_path / "a"])


def searched(source):
    del source["run"]["lr"]
    source["grid"]["nodes"] = [4]
    source["tune"] = {"lr": [0.1], "seeds": [100], "metric": "objective_gap"}
    source["method"][1] = {"algorithm": "teleportation", "active": "search"}
    source["table"] = [{"name": "t", "values": ["objective_gap"], "pivot": "active"}]
    source["figure"] = [{"name": "f", "y": "objective_gap", "columns": "active"}]
    source["claim"][0]["better"] = "TELEPORTATION, k searched"


def test_a_claim_of_a_k_that_is_searched_for_waits_for_the_search(claim, make_record):
    suite, _ = claim(gap(0.5), searched)
    tables, files = build(suite, {})
    assert "D-SGD" in files["tables/t.md"].decode()
    assert verdict(suite, {}).verdict == "not tested"
    records = {
        run.spec.id: make_record(run.spec, objective_gap=0.1 * run.spec.n_active)
        for run in suite.tuning
    }
    cells = {
        run.cell: {"lr": 0.1} | ({"active": 1} if run.search else {}) for run in suite.planned()
    }
    for run in suite.reported(cells):
        records[run.spec.id] = make_record(run.spec, objective_gap=gap(0.5)(run))
    found = verdict(suite, records)
    assert found.verdict == "supported"
    assert [case.settings for case in found.cases] == [{}]
    tables, files = build(suite, records)
    assert tables[-1].rows[0][3] == "supported"
    assert "figures/search.svg" in files

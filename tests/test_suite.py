"""Suite files: what they expand into, how tables merge, what --set does."""

import itertools
import tomllib

import pytest

from teleport_bench import RunSpec, Suite, UserError
from teleport_bench.shown import TableSpec, settings_of, value_of
from teleport_bench.suite import built_in, default_label, from_json, suite_name, to_json


@pytest.fixture
def source(texts):
    return tomllib.loads(texts["tiny"])


def expand(source, **parts):
    """The runs of the suite with other parts, without the tables, which may not fit."""
    return Suite.from_source("tiny", source | {"table": []} | parts).planned()


def settings(runs, *keys):
    return [tuple(getattr(run.spec, key) for key in keys) for run in runs]


def test_a_grid_is_the_product_of_its_lists_in_their_order(source):
    runs = expand(
        source,
        grid={"nodes": [4, 6, 8], "seed": [3, 1], "momentum": [0.0, 0.5]},
        method=[{"algorithm": "dsgd"}],
    )
    expected = list(itertools.product([4, 6, 8], [3, 1], [0.0, 0.5]))
    assert settings(runs, "nodes", "seed", "momentum") == expected


def test_every_method_runs_on_the_whole_grid_and_on_its_own(source):
    runs = expand(source)
    assert len(runs) == 2 * 2 * (1 + 2)
    tokens = {(r.spec.algorithm["name"], r.spec.nodes, r.spec.n_active) for r in runs}
    assert tokens == {
        ("dsgd", 4, 4),
        ("dsgd", 6, 6),
        *(("teleportation", n, k) for n in (4, 6) for k in (1, 2)),
    }


def test_a_method_overrides_the_settings_of_all_runs(source):
    runs = expand(
        source,
        method=[
            {"algorithm": "dsgd"},
            {"algorithm": "dsgd", "label": "slow", "lr": 0.01, "rounds": 4},
        ],
    )
    by_label = {run.label: (run.spec.lr, run.spec.rounds) for run in runs}
    assert by_label == {"D-SGD": (0.1, 8), "slow": (0.01, 4)}


def test_a_method_s_grid_replaces_the_suite_s_list_of_that_key(source):
    runs = expand(source, method=[{"algorithm": "dsgd", "grid": {"nodes": [9]}}])
    assert settings(runs, "nodes", "seed") == [(9, 0), (9, 1)]


def test_a_method_s_own_setting_wins_over_the_suite_s_grid(source):
    runs = expand(
        source,
        grid={"nodes": [4], "topology": ["ring", "torus"]},
        method=[{"algorithm": "dsgd", "topology": "complete"}],
    )
    assert [run.spec.topology["name"] for run in runs] == ["complete"]


def test_a_dotted_key_of_a_grid_reaches_into_components(texts):
    source = tomllib.loads(texts["digits"])
    source["grid"] = {"problem.partition.alpha": [0.1, 10.0], "problem.batch_size": [4]}
    source["method"] = [{"algorithm": "dsgd", "nodes": 4}]
    problems = [run.spec.problem for run in expand(source)]
    assert [p["partition"] for p in problems] == [
        {"name": "dirichlet", "alpha": 0.1},
        {"name": "dirichlet", "alpha": 10.0},
    ]
    assert {p["batch_size"] for p in problems} == {4}
    assert {p["model"]["name"] for p in problems} == {"logistic"}


def test_settings_that_go_together_are_tables_of_a_grid(source):
    together = [
        {"nodes": 4, "problem": {"dim": 3}},
        {"nodes": 9, "problem": {"name": "quadratic", "family": "curvature"}},
    ]
    runs = expand(source, grid={"*": together, "seed": [0, 1]}, method=[{"algorithm": "dsgd"}])
    found = [(r.spec.nodes, r.spec.problem["dim"], r.spec.problem["family"]) for r in runs]
    assert found == [(4, 3, "spectrum")] * 2 + [(9, 50, "curvature")] * 2
    assert together[0] == {"nodes": 4, "problem": {"dim": 3}}


def test_a_dotted_key_gives_an_option_to_a_component_that_is_only_named(source):
    runs = expand(
        source,
        run=source["run"] | {"topology": "random_regular"},
        grid={"topology.degree": [1, 3], "nodes": [4]},
        method=[{"algorithm": "teleportation", "active": 2}],
    )
    assert [run.spec.topology["degree"] for run in runs] == [1, 3]


def test_a_table_without_a_name_merges_key_by_key(source):
    (run, *_) = expand(source, method=[{"algorithm": "dsgd", "problem": {"sigma2": 0.5}}])
    assert run.spec.problem["name"] == "quadratic"
    assert run.spec.problem["dim"] == 5
    assert run.spec.problem["sigma2"] == 0.5


def test_a_table_with_a_name_replaces_the_whole(source):
    problem = {"name": "quadratic", "sigma2": 0.5}
    (run, *_) = expand(source, method=[{"algorithm": "dsgd", "problem": problem}])
    assert run.spec.problem["sigma2"] == 0.5
    assert run.spec.problem["dim"] == 50  # the default, not the 5 of [run]


def test_merging_reaches_into_inner_tables(texts):
    source = tomllib.loads(texts["digits"])
    change = {"partition": {"alpha": 7.0}}
    (run, *_) = expand(source, method=[{"algorithm": "dsgd", "problem": change}])
    assert run.spec.problem["partition"] == {"name": "dirichlet", "alpha": 7.0}
    replaced = {"partition": {"name": "iid"}}
    (run, *_) = expand(source, method=[{"algorithm": "dsgd", "problem": replaced}])
    assert run.spec.problem["partition"] == {"name": "iid"}


def test_expanding_leaves_the_source_as_it_was(source, texts):
    expand(source, grid=source["grid"] | {"problem.dim": [3, 4]})
    assert source == tomllib.loads(texts["tiny"])


def test_labels_name_the_algorithm_and_k_where_it_is_chosen(source):
    labels = list(dict.fromkeys(run.label for run in expand(source)))
    assert labels == ["D-SGD", "TELEPORTATION, k=1", "TELEPORTATION, k=2"]
    assert default_label(expand(source)[0].spec) == "D-SGD"


def test_a_label_template_is_filled_with_settings(source):
    method = {
        "algorithm": "dsgd",
        "label": "{{n}} = {nodes} on a {topology[name]}, {problem[dim]:03d}",
    }
    labels = {run.label for run in expand(source, method=[method])}
    assert labels == {"{n} = 4 on a ring, 005", "{n} = 6 on a ring, 005"}


def test_runs_of_a_cell_differ_only_in_step_size_seed_and_evaluations(source):
    runs = expand(source)
    cells = {}
    for run in runs:
        cells.setdefault(run.cell, []).append(run)
    assert len(cells) == 6
    for mine in cells.values():
        assert sorted(run.spec.seed for run in mine) == [0, 1]
        kept = {"lr", "seed", "eval_every"}
        assert len({run.spec.model_dump_json(exclude=kept) for run in mine}) == 1


def test_a_suite_that_tunes_tries_every_value_on_every_tuning_seed_of_every_cell(texts):
    suite = Suite.from_source("tuned", tomllib.loads(texts["tuned"]))
    trials = {(run.cell, run.spec.lr, run.spec.seed) for run in suite.tuning}
    cells = {cell for cell, _, _ in suite.cells()}
    assert trials == set(itertools.product(cells, [0.05, 0.1, 1e6], [100, 101]))
    assert len(suite.tuning) == len(trials) == 36
    assert len(suite.planned()) == 12


def test_a_suite_that_tunes_reports_each_cell_at_its_chosen_step_size(texts):
    suite = Suite.from_source("tuned", tomllib.loads(texts["tuned"]))
    first, second, *_ = [cell for cell, _, _ in suite.cells()]
    reported = suite.reported({first: {"lr": 0.05}, second: {"lr": 0.1}})
    assert {(run.cell, run.spec.lr) for run in reported} == {(first, 0.05), (second, 0.1)}
    assert sorted(run.spec.seed for run in reported) == [0, 0, 1, 1]
    assert suite.reported({}) == []


def test_a_suite_without_tuning_reports_what_it_plans(source):
    suite = Suite.from_source("tiny", source)
    assert suite.tuning == []
    assert suite.reported() == suite.planned() == suite.all_runs()


def test_a_suite_comes_back_from_json_with_the_same_runs(texts):
    for text in texts.values():
        suite = Suite.from_source("some", tomllib.loads(text))
        back = from_json(to_json(suite))
        assert back.name == "some"
        assert [run.spec.id for run in back.all_runs()] == [r.spec.id for r in suite.all_runs()]
        assert [run.label for run in back.all_runs()] == [run.label for run in suite.all_runs()]
        assert to_json(back) == to_json(suite)


@pytest.mark.parametrize("name", built_in())
def test_every_built_in_suite_loads_by_its_name(name):
    suite = Suite.load(name)
    assert suite.name == name
    assert suite.spec.title
    assert suite.planned() or suite.spec.theory


def test_demo_is_built_in():
    assert "demo" in built_in()


@pytest.mark.parametrize(
    ("given", "name"), [("demo", "demo"), ("some/where/mine.toml", "mine"), ("mine.toml", "mine")]
)
def test_results_are_filed_under_the_built_in_name_or_the_file_s_stem(given, name):
    assert suite_name(given) == name


def test_a_grid_that_is_too_large_is_refused(source, monkeypatch):
    monkeypatch.setattr("teleport_bench.suite.MAX_RUNS", 10)
    with pytest.raises(UserError, match="more than 10 runs: make the grid smaller"):
        expand(source)


# --set


@pytest.fixture
def load(write, texts):
    """Load the tiny suite with overrides: its planned runs' specs."""

    def load(*overrides, text=texts["tiny"]):
        return [run.spec for run in Suite.load(str(write(text)), overrides).planned()]

    return load


def test_without_overrides_a_file_loads_as_its_content(load, source):
    assert [spec.id for spec in load()] == [run.spec.id for run in expand(source)]


VALUES = {
    "integer": ("rounds=16", "rounds", 16),
    "float": ("lr=0.25", "lr", 0.25),
    "float with an exponent": ("lr=1e-3", "lr", 1e-3),
    "boolean": ("nesterov=false", "nesterov", False),
    "bare word": ("topology=star", "topology", {"name": "star"}),
    "quoted word": ('topology="star"', "topology", {"name": "star"}),
    "inline table": (
        'topology={ name = "random_regular", degree = 1, seed = 4 }',
        "topology",
        {"name": "random_regular", "degree": 1, "seed": 4},
    ),
    "spaces around": (" rounds = 16 ", "rounds", 16),
}


@pytest.mark.parametrize(("override", "key", "value"), VALUES.values(), ids=VALUES)
def test_set_takes_values_of_every_toml_type(load, override, key, value):
    specs = load(override, text=TELEPORTATION_ONLY)
    assert specs
    assert all(getattr(spec, key) == value for spec in specs)


TELEPORTATION_ONLY = """
title = "t"
run = { rounds = 8, lr = 0.1, nodes = 4, problem = { name = "quadratic", dim = 5 } }
[[method]]
algorithm = "teleportation"
active = 2
"""


def test_set_takes_a_list(load):
    assert sorted({spec.nodes for spec in load("grid.nodes=[3, 5, 7]")}) == [3, 5, 7]


def test_a_bare_key_holds_for_all_runs_and_replaces_the_grid(load):
    specs = load("nodes=3")
    assert {spec.nodes for spec in specs} == {3}
    assert len(specs) == 6


def test_a_bare_key_replaces_what_methods_and_their_grids_say(load, texts):
    text = texts["tiny"].replace('"dsgd"', '"dsgd"\nmomentum = 0.5\ngrid.weight_decay = [0.1]')
    specs = load("momentum=0.75", "weight_decay=0.25", text=text)
    assert {(spec.momentum, spec.weight_decay) for spec in specs} == {(0.75, 0.25)}


def test_an_option_of_a_component_is_set_for_all_runs(load, texts):
    assert {spec.problem["dim"] for spec in load("problem.dim=7")} == {7}
    grid = texts["tiny"].replace("[grid]", '[grid]\n"problem.dim" = [2, 3]')
    assert {spec.problem["dim"] for spec in load("problem.dim=7", text=grid)} == {7}


@pytest.mark.parametrize(
    "place",
    [
        'topology = "random_regular"',
        'topology = { name = "random_regular" }',
        'topology = { name = "random_regular", degree = 3 }',
        'grid.topology = [{ name = "random_regular", degree = 3 }]',
    ],
)
def test_a_set_option_reaches_a_method_that_names_the_component_itself(load, place):
    text = TELEPORTATION_ONLY + place
    assert [spec.topology["degree"] for spec in load("topology.degree=1", text=text)] == [1]


def test_a_dotted_path_of_the_suite_is_set_as_it_stands(load):
    specs = load("run.rounds=6", "grid.seed=[9]", "title=Another")
    assert {(spec.rounds, spec.seed) for spec in specs} == {(6, 9)}


def test_setting_the_step_size_takes_the_place_of_tuning(write, texts):
    suite = Suite.load(str(write(texts["tuned"])), ["lr=0.3"])
    assert suite.spec.tune is None
    assert suite.tuning == []
    assert {run.spec.lr for run in suite.reported()} == {0.3}


def test_setting_the_seed_leaves_the_seeds_that_are_tuned_on(write, texts):
    suite = Suite.load(str(write(texts["tuned"])), ["seed=5"])
    assert {run.spec.seed for run in suite.tuning} == {100, 101}
    assert {run.spec.seed for run in suite.planned()} == {5}


def test_a_step_size_in_set_beside_tuning_is_refused(texts):
    source = tomllib.loads(texts["tuned"]) | {"set": {"lr": 0.1}}
    with pytest.raises(UserError, match="leave lr out"):
        Suite.from_source("tuned", source)


def test_overrides_apply_in_order(load):
    assert {spec.rounds for spec in load("rounds=5", "rounds=6")} == {6}


def test_an_override_is_part_of_what_is_stored_beside_the_records(write, texts):
    suite = Suite.load(str(write(texts["tiny"])), ["problem.dim=7"])
    assert {run.spec.problem["dim"] for run in from_json(to_json(suite)).planned()} == {7}


def test_a_spec_in_a_suite_is_the_spec_in_python(load):
    spec = RunSpec(
        algorithm="teleportation",
        nodes=4,
        active=2,
        problem={"name": "quadratic", "dim": 5},
        lr=0.1,
        rounds=8,
    )
    assert [planned.id for planned in load(text=TELEPORTATION_ONLY)] == [spec.id]


# What a report shows

FIGURE = '[[figure]]\nname = "f"\ny = "objective_gap"\ncolumns = "nodes"\n'

SHOWN = {
    "a pivot that is no setting": (
        'pivot = "nodes"',
        'pivot = "problem.zeta"',
        ["table.0.pivot", "'problem.zeta'", "did you mean 'problem.zeta2'?"],
    ),
    "a row of panels that is no setting": (
        None,
        FIGURE + 'rows = "problem.dimm"',
        ["figure.0.rows", "did you mean 'problem.dim'?"],
    ),
    "a pattern that no label is like": (
        None,
        FIGURE + 'methods = ["D-SGD", "TELEPORT, *"]',
        ["no method has a label like 'TELEPORT, *'", "TELEPORTATION, k=1"],
    ),
    "a condition on what is no setting": (
        None,
        FIGURE + 'where = { "problem.zet2" = 1.0 }',
        ["unknown setting 'problem.zet2'", "did you mean 'problem.zeta2'?"],
    ),
    "a condition that no run meets": (
        None,
        FIGURE + "where = { nodes = 5 }",
        ["no run has {'nodes': 5}", "nodes is 4, 6"],
    ),
    "rounds to no target": (
        'values = ["objective_gap"]',
        'values = ["rounds_to_target"]',
        ["D-SGD has no target", "[run.stop]"],
    ),
    "a figure of rounds to no target": (
        None,
        FIGURE.replace("objective_gap", "rounds_to_target") + 'x = "active"',
        ["D-SGD has no target"],
    ),
    "a table of a name that the report takes": (
        'name = "gap"',
        'name = "claims"',
        ["a table 'claims' of its own"],
    ),
    "a condition of another type": (None, FIGURE + "where = { nodes = {} }", ["where"]),
}


@pytest.mark.parametrize(("old", "new", "words"), SHOWN.values(), ids=SHOWN)
def test_what_the_runs_cannot_fill_is_refused_with_its_line(write, texts, old, new, words):
    text = texts["tiny"].replace(old, new, 1) if old else f"{texts['tiny']}\n{new}"
    with pytest.raises(UserError) as error:
        Suite.load(str(write(text)))
    message = str(error.value)
    at = len(text[: text.index(new)].splitlines()) + 1
    first, last = at, at + len(new.splitlines()) - 1
    assert int(message.split("line ")[1].split(":")[0]) in range(first, last + 1)
    for word in words:
        assert word in message


def test_a_setting_that_only_some_of_the_runs_have_is_an_axis_of_these_alone(source):
    source["method"][0] |= {"topology": {"name": "random_regular", "degree": 3}}
    table = {"name": "t", "values": ["objective_gap"], "pivot": "topology.degree"}
    with pytest.raises(UserError, match=r"'topology\.degree' is a setting of some runs only"):
        expand(source, table=[table])
    assert expand(source, table=[table | {"methods": ["D-SGD"], "where": {"nodes": 4}}])


def test_conditions_take_a_value_or_a_list_of_them(source):
    def shown(**where):
        suite = Suite.from_source("tiny", source | {"table": []})
        table = TableSpec(name="t", values=["objective_gap"], where=where)
        return [r for r in suite.planned() if table.shows(r.label, settings_of(r.spec))]

    assert {run.spec.nodes for run in shown(nodes=4)} == {4}
    assert {run.spec.nodes for run in shown(nodes=[4, 6])} == {4, 6}
    assert {(r.spec.nodes, r.spec.n_active) for r in shown(nodes=4, active=[1, 4])} == {
        (4, 1),
        (4, 4),
    }
    assert len(shown(topology="ring")) == 12
    assert shown(topology="star") == []


def test_a_chosen_setting_is_no_condition(texts):
    source = tomllib.loads(texts["tuned"])
    figure = {"name": "f", "y": "objective_gap", "x": "nodes"}
    with pytest.raises(UserError, match=r"\[tune\] chooses lr"):
        Suite.from_source("tuned", source | {"figure": [figure | {"where": {"lr": 0.1}}]})
    assert Suite.from_source("tuned", source | {"figure": [figure | {"where": {"nodes": 4}}]})


def test_rounds_to_a_target_are_no_curve(source):
    source["run"]["stop"] = {"metric": "objective_gap", "value": 0.1}
    figure = {"name": "f", "y": "rounds_to_target", "columns": "nodes"}
    with pytest.raises(UserError, match="there is no curve of it: take a setting as x"):
        Suite.from_source("tiny", source | {"figure": [figure]})
    assert Suite.from_source("tiny", source | {"figure": [figure | {"x": "active"}]})


def test_settings_are_known_by_dotted_keys_components_by_name_and_options(source):
    run = source["run"] | {"topology": {"name": "random_regular", "degree": 3}}
    settings = settings_of(expand(source, run=run)[0].spec)
    assert settings["problem.dim"] == 5
    assert settings["topology.name"] == "random_regular"
    assert value_of(settings, "topology") == "random_regular (degree 3)"
    assert value_of(settings, "algorithm") == "dsgd"
    assert value_of(settings, "stop.value") is None


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("network = { tua = 5 }", ["unknown key 'tua'", "did you mean 'tau'?"]),
        ("network = { tau = 0.5 }", ["tau: input should be greater than or equal to 1"]),
        ('network = { preferred = "ringg" }', ["did you mean 'ring'?"]),
        (
            'network = { preferred = { name = "random_regular", degree = 1 } }',
            ["network.preferred: ", "on 4 nodes"],
        ),
    ],
)
@pytest.mark.parametrize("of_figure", [True, False])
def test_a_network_that_cannot_be_is_refused_where_something_asks_for_it(
    write, texts, network, words, of_figure
):
    silent = f"{network}\n{texts['tiny']}"
    assert Suite.load(str(write(silent))).planned()
    figure = FIGURE + 'x = "time"\n'
    text = f"{texts['tiny']}\n{figure}{network}" if of_figure else f"{silent}\n{figure}"
    with pytest.raises(UserError) as error:
        Suite.load(str(write(text)))
    at = next(i for i, line in enumerate(text.splitlines(), 1) if line == network)
    assert f", line {at}: " in str(error.value)
    for word in words:
        assert word in str(error.value)

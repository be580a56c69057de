"""A run's settings: complete, checked, and named by a hash of all of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teleport_bench import RunSpec, UserError
from teleport_bench.registry import TOPOLOGIES, Registry
from teleport_bench.spec import id_of

DSGD = {"algorithm": "dsgd", "nodes": 4, "problem": "quadratic", "lr": 0.1, "rounds": 100}
TELEPORTATION = DSGD | {"algorithm": "teleportation", "active": 2}
CLASSIFICATION = DSGD | {
    "problem": {
        "name": "classification",
        "model": {"name": "mlp", "hidden": [8]},
        "data": "digits",
        "partition": {"name": "dirichlet", "alpha": 0.5},
    }
}


def spec(base=DSGD, **settings):
    return RunSpec(**(base | settings))


def test_defaults_are_filled_in_for_the_run_and_for_its_components():
    filled = spec()
    assert filled.active == 4
    assert filled.seed == 0
    assert filled.topology == {"name": "ring"}
    assert filled.algorithm == {"name": "dsgd"}
    assert filled.schedule == {"name": "constant", "warmup": 0}
    assert filled.problem["dim"] == 50
    assert filled.problem["family"] == "spectrum"


@pytest.mark.parametrize(
    ("rounds", "eval_every", "expected"),
    [
        (100, None, list(range(0, 101, 5))),
        (7, None, list(range(8))),
        (10, 4, [0, 4, 8, 10]),
        (10, 5, [0, 5, 10]),
        (10, 10, [0, 10]),
        (10, 99, [0, 10]),
        (1, 1, [0, 1]),
    ],
)
def test_round_0_and_the_last_round_are_always_evaluated(rounds, eval_every, expected):
    assert spec(rounds=rounds, eval_every=eval_every).evaluations() == expected


EQUAL = {
    "nothing changed": (DSGD, {}),
    "a name as a table": (DSGD, {"topology": {"name": "ring"}}),
    "active of an algorithm without choice": (DSGD, {"active": 4}),
    "eval_every by default": (DSGD, {"eval_every": 5}),
    "seed by default": (DSGD, {"seed": 0}),
    "loss by default": (DSGD, {"loss": 0}),
    "nobody away": (DSGD, {"away": {"share": 0, "spell": 3}}),
    "an option by default": (DSGD, {"problem": {"name": "quadratic", "dim": 50}}),
    "all options by default, permuted": (
        DSGD,
        {
            "problem": {
                "L": 1.0,
                "mu": 0.1,
                "sigma2": 1.0,
                "zeta2": 1.0,
                "dim": 50,
                "family": "spectrum",
                "name": "quadratic",
            }
        },
    ),
    "an integer where a float is meant": (DSGD | {"lr": 1.0}, {"lr": 1}),
    "an option of the algorithm by default": (
        TELEPORTATION,
        {"algorithm": {"name": "teleportation", "holders": "uniform"}},
    ),
    "a list as a tuple": (
        CLASSIFICATION,
        {"problem": CLASSIFICATION["problem"] | {"model": {"hidden": (8,), "name": "mlp"}}},
    ),
    "a default inside a component of a component": (
        CLASSIFICATION,
        {"problem": CLASSIFICATION["problem"] | {"batch_size": 32, "batches": "replacement"}},
    ),
}


@pytest.mark.parametrize(("base", "same"), EQUAL.values(), ids=EQUAL)
def test_the_same_settings_have_the_same_id_however_they_are_written(base, same):
    assert spec(base, **same).id == spec(base).id


@given(st.permutations(list(TELEPORTATION.items())))
def test_the_order_of_the_keys_does_not_matter(items):
    assert RunSpec(**dict(items)).id == spec(TELEPORTATION).id


CHANGED = {
    "algorithm": {"algorithm": {"name": "teleportation", "holders": "fixed"}},
    "nodes": {"nodes": 5},
    "active": {"active": 3},
    "topology": {"topology": "star"},
    "an option of the topology": {"topology": {"name": "random_regular", "seed": 1}},
    "another option of it": {"topology": {"name": "random_regular", "degree": 2}},
    "problem family": {"problem": {"name": "quadratic", "family": "curvature"}},
    "problem dim": {"problem": {"name": "quadratic", "dim": 51}},
    "problem zeta2": {"problem": {"name": "quadratic", "zeta2": 2.0}},
    "problem sigma2": {"problem": {"name": "quadratic", "sigma2": 2.0}},
    "problem mu": {"problem": {"name": "quadratic", "mu": 0.2}},
    "problem L": {"problem": {"name": "quadratic", "L": 2.0}},
    "lr": {"lr": 0.1000001},
    "schedule": {"schedule": "cosine"},
    "an option of the schedule": {"schedule": {"name": "constant", "warmup": 1}},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "weight_decay": {"weight_decay": 0.1},
    "rounds": {"rounds": 101},
    "eval_every": {"eval_every": 6},
    "stop": {"stop": {"metric": "gradient_norm2", "value": 0.1}},
    "value of stop": {"stop": {"metric": "gradient_norm2", "value": 0.2}},
    "window of stop": {"stop": {"metric": "gradient_norm2", "value": 0.1, "window": 2}},
    "share": {"share": {"first": 0, "among": 2}},
    "first of share": {"share": {"first": 1, "among": 3}},
    "seed": {"seed": 1},
    "storage": {"storage": "nodes"},
    "loss": {"loss": 0.1},
    "value of loss": {"loss": 0.2},
    "away": {"away": {"share": 0.1, "spell": 5}},
    "share of away": {"away": {"share": 0.2, "spell": 5}},
    "spell of away": {"away": {"share": 0.1, "spell": 6}},
}


def test_runs_whose_graphs_came_again_have_another_name():
    """Records of losses, Epidemic and random graphs that repeated 64 rounds are not taken for runs
    of today; others, and an old choice that is written down, keep their names."""
    assert spec().id == "bf4597c74d4a"
    assert spec(TELEPORTATION).id == "4bab86df66f0"
    old = {"loss": "a4cba69969ee", "epidemic": "4c87880c8866", "random_regular": "23e80e57dad3"}
    assert spec(loss=0.3).id != old["loss"]
    assert spec(algorithm="epidemic").id != old["epidemic"]
    assert spec(algorithm={"name": "epidemic", "period": 64}).id == old["epidemic"]
    graph = {"name": "random_regular"}
    assert spec(topology=graph).id != old["random_regular"]
    assert spec(topology=graph | {"seed": 0}).id == old["random_regular"]
    lossy = spec(loss=0.3).model_dump(mode="json")
    assert RunSpec.model_validate(lossy).id == spec(loss=0.3).id
    assert id_of({key: lossy[key] for key in lossy if key != "losses"}) == old["loss"]


def test_any_setting_that_changes_changes_the_id():
    ids = {name: spec(TELEPORTATION, **change).id for name, change in CHANGED.items()}
    ids["nothing"] = spec(TELEPORTATION).id
    assert len(set(ids.values())) == len(ids)


def test_a_varied_run_is_the_run_that_the_settings_make():
    base = spec(TELEPORTATION)
    assert base.id  # a cached one is not kept
    varied = base.varied(lr=0.3, seed=7)
    assert varied == spec(TELEPORTATION, lr=0.3, seed=7)
    assert varied.id == spec(TELEPORTATION, lr=0.3, seed=7).id != base.id


def test_every_setting_is_among_those_that_change_the_id():
    settings = RunSpec.model_fields.keys() - {"losses"}  # follows from loss
    assert {key for change in CHANGED.values() for key in change} == settings


def test_an_id_is_12_hex_digits():
    assert len(spec().id) == 12
    int(spec().id, 16)


@pytest.mark.parametrize("base", [DSGD, TELEPORTATION, CLASSIFICATION])
def test_a_spec_comes_back_from_json_with_the_same_id(base):
    first = spec(base)
    assert RunSpec.model_validate_json(first.model_dump_json()).id == first.id


def test_a_spec_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        spec().lr = 0.2


BAD = [
    ({"lrr": 0.1}, ["unknown key 'lrr'", "did you mean 'lr'?"]),
    ({"algorithm": "dgsd"}, ["unknown algorithm 'dgsd'", "did you mean 'dsgd'?"]),
    ({"algorithm": {"holders": "fixed"}}, ["algorithm name, or a table with a name"]),
    ({"algorithm": {"name": "dsgd", "holders": "fixed"}}, ["unknown key 'holders'"]),
    ({"topology": "rinq"}, ["unknown topology 'rinq'", "did you mean 'ring'?"]),
    ({"topology": 3}, ["expected a topology name", "got 3"]),
    ({"problem": {"name": "quadratic", "dim": 0}}, ["problem.dim", "greater than 0"]),
    ({"problem": {"name": "quadratic", "mu": 2.0}}, ["mu=2.0 > L=1.0"]),
    ({"problem": {"name": "quadratic", "zeta2": float("nan")}}, ["zeta2", "finite"]),
    ({"nodes": 0}, ["nodes", "greater than 0"]),
    ({"nodes": -3}, ["nodes", "greater than 0"]),
    ({"nodes": 2.5}, ["nodes", "integer"]),
    ({"nodes": True}, ["nodes", "integer"]),
    ({"active": 3}, ["dsgd has all nodes active", "3 of 4"]),
    ({"active": 5}, ["active = 5 is more than nodes = 4"]),
    ({"lr": float("nan")}, ["lr", "finite"]),
    ({"lr": float("inf")}, ["lr", "finite"]),
    ({"lr": -0.1}, ["lr", "greater than or equal to 0"]),
    ({"momentum": 1.0}, ["momentum", "less than 1"]),
    ({"momentum": -0.1}, ["momentum", "greater than or equal to 0"]),
    ({"momentum": float("nan")}, ["momentum"]),
    ({"nesterov": True}, ["nesterov = true needs momentum > 0"]),
    ({"weight_decay": -1.0}, ["weight_decay"]),
    ({"weight_decay": float("inf")}, ["weight_decay", "finite"]),
    ({"rounds": 0}, ["rounds", "greater than 0"]),
    ({"eval_every": 0}, ["eval_every", "greater than 0"]),
    ({"seed": -1}, ["seed", "greater than or equal to 0"]),
    ({"storage": "disk"}, ["storage", "slots", "nodes"]),
    ({"schedule": {"name": "cosine", "final": 2.0}}, ["schedule.final", "less than or equal to 1"]),
    ({"schedule": "step"}, ["schedule.milestones"]),
    (
        {"topology": {"name": "random_regular", "degree": 3}, "nodes": 5},
        ["no graph on 5 nodes has degree 3"],
    ),
]


@pytest.mark.parametrize(("settings", "words"), BAD, ids=[str(settings) for settings, _ in BAD])
def test_a_setting_that_makes_no_sense_is_a_value_error_that_says_why(settings, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are checked below
        spec(**settings)
    for word in words:
        assert word in str(caught.value)


def test_teleportation_must_be_told_how_many_nodes_are_active():
    with pytest.raises(ValueError, match="teleportation needs active"):
        spec(TELEPORTATION, active=None)


@pytest.mark.parametrize("key", ["algorithm", "nodes", "problem", "lr", "rounds"])
def test_what_has_no_default_is_missed_by_name(key):
    with pytest.raises(ValueError, match=f"(?s){key}.*required"):
        RunSpec(**{k: v for k, v in DSGD.items() if k != key})


def test_more_nodes_than_samples_cannot_be_posed():
    with pytest.raises(UserError, match="1079 training samples cannot be dealt out to 1080 nodes"):
        spec(CLASSIFICATION, nodes=1080).check()
    spec(CLASSIFICATION, nodes=1079).check()


def test_an_unknown_name_far_from_all_known_ones_gets_no_guess():
    with pytest.raises(UserError) as caught:
        TOPOLOGIES["xyzzy"]
    assert "did you mean" not in str(caught.value)
    assert "Known: " in str(caught.value)


def test_a_name_is_registered_once():
    registry = Registry("thing", "teleport_bench.report")
    registry.register("one")(lambda: None)
    with pytest.raises(ValueError, match="thing 'one' is registered twice"):
        registry.register("one")(lambda: None)


def test_options_of_a_component_are_its_keyword_only_parameters():
    registry = Registry("thing", "teleport_bench.report")

    @registry.register("one")
    def one(x: int, *, size: int, share: float = 0.5) -> tuple[int, int, float]:
        """Summary in one line.

        And more.
        """
        return x, size, share

    assert registry["one"].summary == "Summary in one line."
    assert registry.resolve({"name": "one", "size": 3}) == {"name": "one", "size": 3, "share": 0.5}
    assert registry.build({"name": "one", "size": 3, "share": 0.25}, 7) == (7, 3, 0.25)
    for options in ({}, {"size": "many"}, {"size": 3, "x": 1}, {"size": 3, "share": float("nan")}):
        with pytest.raises(ValueError, match=r"size|share|unknown key 'x'"):
            registry.resolve({"name": "one", **options})


NUMBERS = {
    "nodes": [np.int64(4), np.int8(4), np.uint64(4), np.array(4), torch.tensor(4)],
    "lr": [np.float32(0.5), np.float64(0.5), np.longdouble(0.5), torch.tensor(0.5), np.array(0.5)],
    "rounds": [np.int16(8)],
    "seed": [torch.tensor(0)],
    "nesterov": [np.bool_(False), torch.tensor(False)],
    "problem": [{"name": "quadratic", "dim": np.int64(5)}],
    "stop": [{"metric": "objective_gap", "value": np.float32(0.25), "window": np.int64(3)}],
}


@pytest.mark.parametrize("key", NUMBERS)
def test_scalars_of_numpy_and_torch_are_the_numbers_that_they_hold(key):
    plain = {"nodes": 4, "lr": 0.5, "rounds": 8, "problem": {"name": "quadratic", "dim": 5}}
    plain["stop"] = {"metric": "objective_gap", "value": 0.25, "window": 3}
    expected = RunSpec(algorithm="dsgd", **plain)
    for value in NUMBERS[key]:
        found = RunSpec(algorithm="dsgd", **plain | {key: value})
        assert found == expected
        assert found.id == expected.id
        assert type(getattr(found, key)) is type(getattr(expected, key))
        if key in ("lr", "seed"):
            assert spec().varied(**{key: value}).id == spec().varied(**{key: value.item()}).id


def test_a_copy_of_a_spec_has_the_id_of_its_own_settings():
    first = spec()
    assert first.id != first.model_copy(update={"seed": 7}).id
    assert first.model_copy(update={"seed": 7}).id == spec(seed=7).id

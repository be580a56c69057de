"""What is too much, or to no effect, is refused in words before anything is run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from teleport_bench import RunSpec, Suite, UserError, load_plugin, registry, topology
from teleport_bench.data.partition import check_split, deal
from teleport_bench.network import Network
from teleport_bench.suite import MAX_RUNS, MOST_ITEMS, suite_name
from teleport_bench.untrusted import MOST_BYTES, check_name

Texts = dict[str, str]

SHORT = """title = "short"
run = { nodes = 4, rounds = 2, lr = 0.1, problem = { name = "quadratic", dim = 3 } }
"""
METHOD = 'method = [{ algorithm = "dsgd" }]\n'
NO_LR = SHORT.replace("lr = 0.1, ", "")
ITEM = '[[{}]]\nname = "{}"\n'
TABLE = ITEM.format("table", "gap") + 'values = ["consensus"]\n'
FIGURE = ITEM.format("figure", "f") + 'y = "consensus"\n'


def numbers(n: int) -> list[int]:
    return list(range(1, n + 1))


SUITES: dict[str, tuple[str, str]] = {
    # a suite: what is said of it
    "a product of lists": (
        SHORT + METHOD + "[grid]\n" + "".join(f"'k{i}' = [1, 2]\n" for i in range(60)),
        f"line 4: more than {MAX_RUNS} runs: make the grid smaller",
    ),
    "a list": (
        SHORT + METHOD + f"[grid]\nseed = {numbers(320)}\nrounds = {numbers(320)}\n",
        f"line 4: more than {MAX_RUNS} runs",
    ),
    "methods and lists together": (
        SHORT
        + "".join(
            f'[[method]]\nlabel = "{i}"\nalgorithm = "dsgd"\ngrid = {{ seed = {numbers(300)} }}\n'
            for i in range(40)
        )
        + f"[grid]\nrounds = {numbers(9)}\n",
        "more than 100000 runs",
    ),
    "a product of tuning": (
        NO_LR
        + METHOD
        + f"[tune]\nmetric = 'consensus'\nlr = {numbers(400)}\nseeds = {numbers(400)}\n",
        f"more than {MAX_RUNS} runs",
    ),
    "a value of a list twice": (
        SHORT + METHOD + "[grid]\nseed = " + str([0, *range(200)]),
        "line 5: grid.seed: expected each value once",
    ),
    "a table of a list twice": (
        SHORT + METHOD + '[grid]\n"*" = [{ nodes = 3, seed = 1 }, { seed = 1, nodes = 3 }]\n',
        "two methods or grid points are the same run",
    ),
    "methods": (
        SHORT + '[[method]]\nalgorithm = "dsgd"\n' * (MOST_ITEMS + 1),
        f"method: list should have at most {MOST_ITEMS} items",
    ),
    "tables": (
        SHORT + METHOD + TABLE * (MOST_ITEMS + 1),
        f"table: list should have at most {MOST_ITEMS} items",
    ),
    "mistakes": (
        SHORT + METHOD + "".join(f"k{i} = 1\n" for i in range(5000)),
        "line 4: k0: unknown key",
    ),
    "mistakes in many tables": (
        SHORT + METHOD + (ITEM.format("table", "x") + "values = []\n") * 400,
        "and 380 mistakes more",
    ),
    "sizes of a theory": (
        SHORT + METHOD + f"[theory]\nnodes = {numbers(101)}\n",
        "theory.nodes: list should have at most 100 items",
    ),
    # to no effect
    "a network of an item that shows no cost": (
        SHORT + METHOD + TABLE + "network = { tau = 2.0 }\n",
        "line 7: network: nothing here is computed by a network",
    ),
    "a condition of which one value is of no run": (
        SHORT + METHOD + "[grid]\nnodes = [4, 6]\n" + TABLE + "where = { nodes = [4, 5] }\n",
        "line 9: no run has nodes = 5: nodes is 4, 6",
    ),
    # names
    "a profile named as a table": (
        SHORT + METHOD + TABLE + ITEM.format("profile", "GAP") + 'metric = "consensus"\n',
        "line 8: a table has the name 'GAP' already",
    ),
    "a profile named as a figure": (
        SHORT + METHOD + FIGURE + ITEM.format("profile", "f") + 'metric = "consensus"\n',
        "line 8: a figure has the name 'f' already",
    ),
    "a profile named as a table of the report": (
        SHORT + METHOD + ITEM.format("profile", "rates") + 'metric = "consensus"\n',
        "line 5: the report has a profile 'rates' of its own",
    ),
    "a table that is a device": (
        SHORT + METHOD + TABLE.replace("gap", "CON"),
        "line 5: table.0.name: 'CON' is no name of a file everywhere",
    ),
    "a table in another folder": (
        SHORT + METHOD + TABLE.replace("gap", "../gap"),
        "line 5: table.0.name: ",
    ),
}


@pytest.mark.parametrize(("text", "words"), SUITES.values(), ids=SUITES)
def test_a_suite_of_too_much_or_to_no_effect_is_refused(
    write: Callable[..., Path], text: str, words: str
) -> None:
    path = write(text)
    with pytest.raises(UserError) as error:
        Suite.load(str(path))
    assert str(error.value).startswith(f"{path}")
    assert words in str(error.value)
    assert len(str(error.value)) < 10_000


def test_what_is_to_no_effect_at_small_scale_alone_is_no_mistake(
    write: Callable[..., Path],
) -> None:
    text = SHORT + METHOD + "[grid]\nnodes = [4, 6]\n" + TABLE + "where = { nodes = [4, 6] }\n"
    small = write(text + "[small.grid]\nnodes = [4]\n")
    assert len(Suite.load(str(small), scale="small").planned()) == 1


# Files


def pipe(path: Path) -> None:
    os.mkfifo(path)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**30)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (pipe, "it is no regular file"),
    "a gigabyte": (huge, f"more than {MOST_BYTES:,} bytes"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "it is no regular file"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "a folder": (lambda path: path.mkdir(), "Is a directory"),
    "UTF-16": (lambda path: path.write_bytes(SHORT.encode("utf-16")), "save it as UTF-8"),
    "Latin-1": (lambda path: path.write_bytes("a = 'é'".encode("latin-1")), "save it as UTF-8"),
}


@pytest.mark.parametrize(("make", "words"), FILES.values(), ids=FILES)
def test_what_is_no_suite_file_is_refused_unread(
    tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    path = tmp_path / "x.toml"
    make(path)
    with pytest.raises(UserError) as error:
        Suite.load(str(path))
    assert str(error.value).startswith(f"cannot read suite {path}: ")
    assert words in str(error.value)


def test_a_name_longer_than_any_file_s_is_an_unknown_suite() -> None:
    with pytest.raises(UserError, match="unknown suite 'aaa"):
        Suite.load("a" * 5000)


@pytest.mark.parametrize("name", ["..toml", "...toml", ". .toml", " x.toml", "x..toml", "x .toml"])
def test_a_suite_whose_results_would_have_no_folder_of_their_own_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"rename the file|take another name"):
        suite_name(f"folder/{name}")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "con", "NUL", "Com1", "aux.toml", "a ", "a.", "a\0b", "a\nb", "x" * 201]
)
def test_what_some_system_has_no_file_for_is_no_name(name: str) -> None:
    with pytest.raises(UserError, match="take another name"):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "a.b", ".hidden", "été 2", "console", "x" * 200])
def test_other_names_are(name: str) -> None:
    assert check_name(name) == name


# Plugins


def test_a_plugin_that_is_a_pipe_or_too_long_is_refused_unread(tmp_path: Path) -> None:
    pipe(tmp_path / "pipe.py")
    huge(tmp_path / "huge.py")
    with pytest.raises(UserError, match="no regular file"):
        load_plugin(tmp_path / "pipe.py")
    with pytest.raises(UserError, match=r"more than 16,777,216 bytes"):
        load_plugin(tmp_path / "huge.py")


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 65, None, 3])
def test_a_component_needs_a_name_that_can_be_written(name: Any) -> None:
    with pytest.raises(UserError, match="under a name of 1 to 64 characters"):
        registry.TOPOLOGIES.register(name)(raw)


@pytest.fixture
def restored() -> Iterator[None]:
    before = [(kind, kind.entries()) for kind in registry.KINDS if kind.names()]
    yield
    for kind, entries in before:
        kind.restore(entries)


@pytest.mark.usefixtures("restored")
def test_no_option_is_called_as_the_component_is() -> None:
    def mine(n_nodes: int, *, name: str = "x") -> None: ...

    with pytest.raises(UserError, match="option 'name' of mine"):
        registry.TOPOLOGIES.register("mine")(mine)


def raw(n_nodes: int, *, values: Any = frozenset({1})) -> None: ...


def text(n_nodes: int, *, values: bytes = b"\xff") -> None: ...


def hidden(n_nodes: int, *, _values: int = 1) -> None: ...


def more(n_nodes: int, k: int) -> None: ...


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    ("component", "words"),
    [
        (raw, "topology 'mine': its options are to be texts, numbers"),
        (text, "topology 'mine': its options are to be texts, numbers"),
        (hidden, "option '_values' of hidden is private"),
        (more, r"topology 'mine': TypeError: more\(\) missing 1 required positional argument"),
    ],
)
def test_a_component_that_cannot_be_chosen_is_refused(component: Any, words: str) -> None:
    def chosen() -> None:
        registry.TOPOLOGIES.register("mine")(component)
        topology("mine", 4)

    with pytest.raises(UserError, match=words):
        chosen()


GIVEN = {
    # by the kind: a setting of a run, and what it is beside
    "topology": (registry.TOPOLOGIES, {}),
    "algorithm": (registry.ALGORITHMS, {}),
    "schedule": (registry.SCHEDULES, {}),
    "problem": (registry.PROBLEMS, {}),
}


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize("gives", [None, 3, "text", 1.5])
def test_a_component_that_gives_something_else_is_named(kind: str, gives: Any) -> None:
    reg, _ = GIVEN[kind]
    reg.register("mine")(lambda *_: gives)
    settings: dict[str, Any] = {
        "algorithm": "dsgd",
        "nodes": 4,
        "lr": 0.1,
        "rounds": 2,
        "problem": "quadratic",
    }
    with pytest.raises((ValidationError, UserError), match=f"{kind} 'mine'.* gives"):
        RunSpec(**settings | {kind: "mine"}).build_schedule()


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    ("gives", "words"),
    [
        (None, "gives None"),
        ([[0, 1]] * 3, "gives list"),
        (np.zeros((2, 2), int), r"int64 of shape \(2, 2\), expected \(3, 2\)"),
        (np.zeros((3, 2)), "float64 of shape"),
        (np.full((3, 2), 6), "sample 6, expected 0..5"),
        (np.full((3, 2), -1), "sample -1, expected 0..5"),
    ],
)
def test_shards_of_a_user_s_own_are_sample_ids(gives: Any, words: str) -> None:
    registry.PARTITIONS.register("mine")(lambda *_: gives)
    with pytest.raises(UserError, match=f"partition 'mine'.*{words}"):
        deal({"name": "mine"}, np.arange(6) % 2, 3, 0)


# Numbers

EXTREMES: list[Any] = [
    *(0, -1, 1, 1e-17, 5e-324, 0.5, 1e9, 10**9, 1e300, 2**31, 2**63, 10**30),
    *(float("nan"), float("inf"), True, "1"),
]

OPTIONS = [
    (kind, entry.name, option)
    for kind, (reg, _) in GIVEN.items()
    for entry in reg
    if entry.name != "classification"
    for option in entry.options.model_fields
]


def tried(**settings: Any) -> RunSpec | None:
    """The run with these settings, its graphs drawn; None where it is refused in words."""
    given = {"algorithm": "dsgd", "nodes": 8, "lr": 0.1, "rounds": 4, "problem": "quadratic"}
    try:
        spec = RunSpec(**given | settings)
        assert spec.build_topology().n_nodes == spec.n_active
        assert spec.period is None or spec.period >= 1
        assert 0 <= spec.build_schedule()(3) <= 1
    except (ValidationError, UserError):
        return None
    return spec


@pytest.mark.parametrize(("kind", "name", "option"), OPTIONS, ids=lambda part: str(part))
def test_an_option_takes_any_number_or_refuses_it_in_words(
    kind: str, name: str, option: str
) -> None:
    partial = kind == "algorithm" and registry.ALGORITHMS[name].component.partial
    for value in EXTREMES:
        more = {"milestones": [1]} if name == "step" else {}
        given = [value] if option == "milestones" else value
        tried(**{kind: {"name": name, **more, option: given}}, **{"active": 3} if partial else {})


@pytest.mark.parametrize(
    "key", ["lr", "momentum", "weight_decay", "rounds", "eval_every", "seed", "loss", "nodes"]
)
def test_a_setting_takes_any_number_or_refuses_it_in_words(key: str) -> None:
    for value in EXTREMES:
        tried(**{key: value})


def test_conditions_targets_and_networks_take_any_number_or_refuse_it_in_words() -> None:
    for value in EXTREMES:
        for away in ({"share": value, "spell": 3}, {"share": 0.2, "spell": value}):
            tried(away=away)
        for key in ("value", "window", "every"):
            tried(stop={"metric": "consensus", "value": 1.0} | {key: value})
        for key in ("first", "among"):
            share = {"first": 0, "among": 5} | {key: value}
            tried(algorithm="teleportation", active=2, share=share)
        stragglers = ({"share": value, "factor": 2.0}, {"share": 0.1, "factor": value})
        for network in (
            {"tau": value},
            {"compute": value},
            *({"stragglers": s} for s in stragglers),
        ):
            try:
                Network.model_validate(network)
            except (ValidationError, UserError):
                continue


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"nodes": 10**6, "topology": {"name": "erdos_renyi", "degree": 0.001}},
            "take degree 17 or more",
        ),
        ({"topology": {"name": "erdos_renyi", "p": 1e-17}}, "take degree 6 or more"),
        ({"away": {"share": 0.2, "spell": 1e9}}, "less than or equal to 10000"),
        ({"away": {"share": 0.2, "spell": 9999}, "nodes": 50_000}, "take shorter spells"),
        ({"algorithm": {"name": "local_sgd", "local_steps": 10**9}}, "less than or equal to 10000"),
        ({"algorithm": {"name": "epidemic", "period": 10**9}}, "less than or equal to 65536"),
        ({"topology": {"name": "equi_dyn", "period": 10**6}}, "expected at most 65,536 rounds"),
    ],
)
def test_what_one_number_may_ask_for_is_bounded(settings: dict[str, Any], words: str) -> None:
    given = {"algorithm": "dsgd", "nodes": 8, "lr": 0.1, "rounds": 4, "problem": "quadratic"}
    with pytest.raises(ValidationError, match=words):
        RunSpec(**given | settings)


def test_samples_of_all_nodes_are_bounded() -> None:
    assert check_split({"name": "overlapping", "samples": 10**6}, 100, 1000) == 10**6
    with pytest.raises(UserError, match=r"1,000,000,000 samples for each of 8 nodes, expected"):
        check_split({"name": "overlapping", "samples": 10**9}, 100, 8)

"""Suite files made from sound ones by chance: each is a suite, or a mistake that is explained."""

from __future__ import annotations

import copy
import json
import math
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from teleport_bench import Suite, UserError

MORE = """
[[claim]]
name = "c"
text = "TELEPORTATION is better."
source = "paper"
metric = "objective_gap"
better = "D-SGD"
than = "TELEPORTATION, k=*"
by = ["nodes", "problem.zeta2"]
margin = 2.0

[[table]]
name = "costs"
values = ["time", "bytes_busiest", "round_time"]
where = { nodes = [4, 6] }
network = { tau = 2.0, mode = "barrier_free", form = "fused", preferred = "torus" }
assumed = "A network."

[network]
compute = 0.5

[theory]
nodes = [8]
rounds = [10]
topologies = ["ring"]
sigma2 = 0.5

[duration]
"two cores" = "a second"

[small]
title = "small"
[small.run]
rounds = 4
stop = { metric = "objective_gap", value = 0.01, window = 2, every = 2 }
[small.grid]
nodes = [4]
"""

SEARCH = """
title = "search"
equal = "rounds"
run = { rounds = 4, nodes = 5, problem = { name = "quadratic", dim = 3 }, schedule = "cosine" }
[tune]
lr = [0.1, 0.2]
seeds = [100]
metric = "objective_gap"
[[method]]
algorithm = { name = "teleportation", holders = "uniform" }
active = "search"
label = "{algorithm[name]} on {topology[name]} of {nodes:03d}"
topology = { name = "random_regular", degree = 3 }
[[method]]
algorithm = "teleportation"
grid = { active = [1, 2], seed = [0, 1] }
share = { first = 0, among = 3 }
storage = "nodes"
momentum = 0.5
nesterov = true
loss = 0.1
away = { share = 0.25, spell = 2.0 }
[[figure]]
name = "f"
y = "objective_gap"
x = "gradients"
columns = "active"
methods = ["TELEPORTATION*"]
ylim = [1e-3, 1e3]
[[profile]]
name = "p"
metric = "consensus"
methods = ["TELEPORTATION, k=?"]
"""

STRANGE: list[Any] = [
    *(-1, 0, 1, 2, 3, 5, 7, 2**31, 10**12, 10**30, -(10**30), 0.5, 1e-320, 1e150, 1e308, -1e308),
    *(math.nan, math.inf, True, False, "", "x", "nodes", "seed", "topology", "consensus", "time"),
    *("search", "ring", "random_regular", "digits", "*", "[", "../x", "{nodes}", "{nodes:>999}"),
    *("{problem.__class__}", "\u202e\U0001f600", "\x1b[2J", "\ufffe", "a\nb", "<b>&", "$\\x$", "%"),
    *([], {}, [[]], [{}], [0], [1, 1], ["a", 1], {"name": "ring"}, {"name": 3}, {"a": {"b": 1}}),
    json.loads("[" * 200 + "]" * 200),
]

KEYS = st.sampled_from(
    ["name", "", "a.b", "nodes", "seed", "lr", "active", "share", "stop", "topology.degree", "é"]
) | st.text(max_size=6)

Place = tuple[Any, Any]
"""A table or list, and a key or position in it."""


def places(value: Any) -> Iterator[Place]:
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, below in inner:
        yield value, key
        if isinstance(below, dict | list):
            yield from places(below)


def mutate(source: dict[str, Any], how: str, which: int, other: int, value: Any, key: str) -> None:
    """One change at a place that `which` chooses; `other` chooses a second one."""
    all_places = list(places(source))
    if not all_places:
        return
    table, at = all_places[which % len(all_places)]
    if how == "delete":
        del table[at]
    elif how == "set":
        table[at] = copy.deepcopy(value)
    elif how == "twice" and isinstance(table, list):
        table.append(copy.deepcopy(table[at]))
    elif how == "rename" and isinstance(table, dict):
        table[key] = table.pop(at)
    elif how == "add":
        inner = table[at] if isinstance(table[at], dict) else source
        inner[key] = copy.deepcopy(value)
    elif how == "wrap":
        table[at] = [table[at]] if other % 2 else {key: table[at]}
    else:  # copied from elsewhere
        second, there = all_places[other % len(all_places)]
        table[at] = copy.deepcopy(second[there])


MUTATION = st.tuples(
    st.sampled_from(["delete", "set", "set", "set", "twice", "rename", "add", "wrap", "copy"]),
    *[st.integers(0, 999)] * 2,
    st.sampled_from(STRANGE) | st.integers() | st.floats() | st.text(max_size=8),
    KEYS,
)
MUTATIONS = st.lists(MUTATION, min_size=1, max_size=4)


def toml(value: Any) -> str:
    """A value in TOML; a table on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(k))} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        return "".join(f"\\u{ord(c):04x}" if "\x80" <= c < "\xa0" else c for c in text)
    return str(value).lower() if isinstance(value, bool) else repr(value)


def written(source: dict[str, Any], path: Path) -> None:
    lines = [f"{toml(str(key))} = {toml(value)}\n" for key, value in source.items()]
    path.write_bytes("".join(lines).encode("utf-8", "surrogatepass"))


@pytest.fixture(scope="session")
def sources(texts: dict[str, str]) -> list[dict[str, Any]]:
    whole = texts["figures"] + MORE
    return [tomllib.loads(text) for text in (whole, SEARCH, texts["tuned"], texts["digits"])]


def load(path: Path, scale: Any) -> Suite | None:
    """The suite, or None where it is refused in words."""
    try:
        suite = Suite.load(str(path), scale=scale)
    except UserError as error:
        message = str(error)
        assert message.startswith(str(path))
        assert "Traceback" not in message
        assert len(message) < 20_000
        return None
    return suite


def check_load(
    sources: list[dict[str, Any]], which: int, scale: str, mutations: list[Any], path: Path
) -> Suite | None:
    source = copy.deepcopy(sources[which])
    for mutation in mutations:
        mutate(source, *mutation)
    written(source, path)
    return load(path, scale)


def loads(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        given_ = given(st.integers(0, 3), st.sampled_from(["full", "full", "small"]), MUTATIONS)
        return settings(
            max_examples=examples,
            deadline=None,
            suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        )(given_(test))

    return decorate


def test_the_suites_that_are_changed_are_sound(
    sources: list[dict[str, Any]], tmp_path: Path
) -> None:
    for source in sources:
        written(source, tmp_path / "sound.toml")
        assert load(tmp_path / "sound.toml", "full")
    written(sources[0], tmp_path / "sound.toml")
    assert load(tmp_path / "sound.toml", "small")


@loads(300)
def test_a_changed_suite_loads_or_is_refused_in_words(
    sources: list[dict[str, Any]], tmp_path: Path, which: int, scale: str, mutations: list[Any]
) -> None:
    check_load(sources, which, scale, mutations, tmp_path / "x.toml")


@pytest.mark.slow
@loads(10_000)
def test_many_changed_suites_load_or_are_refused_in_words(
    sources: list[dict[str, Any]], tmp_path: Path, which: int, scale: str, mutations: list[Any]
) -> None:
    check_load(sources, which, scale, mutations, tmp_path / "x.toml")


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(0, 10**4),
    st.integers(0, 60),
    st.text(max_size=5) | st.binary(max_size=5).map(lambda b: b.decode("latin-1")),
)
def test_a_file_with_a_piece_cut_out_loads_or_is_refused_in_words(
    texts: dict[str, str], tmp_path: Path, start: int, length: int, piece: str
) -> None:
    text = texts["figures"] + MORE
    at = start % len(text)
    content = (text[:at] + piece + text[at + length :]).encode("utf-8", "surrogatepass")
    (tmp_path / "x.toml").write_bytes(content)
    load(tmp_path / "x.toml", "full")


def tiny(suite: Suite) -> bool:
    """Whether it runs in a moment."""
    runs = suite.all_runs()
    return len(runs) <= 60 and all(
        r.spec.nodes <= 16
        and r.spec.rounds <= 32
        and r.spec.problem.get("dim", 1) <= 16
        and r.spec.problem.get("batch_size", 1) <= 64
        and all(width <= 64 for width in r.spec.problem.get("model", {}).get("hidden", ()))
        for r in runs
    )


def check_run(
    bench: Callable[..., Any],
    sources: list[dict[str, Any]],
    which: int,
    scale: str,
    mutations: list[Any],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "x.toml", Path(folder) / "out"
        suite = check_load(sources, which, scale, mutations, path)
        if suite is None or not tiny(suite):
            return
        options = ("--scale", scale, "--out", out)
        done = bench("run", path, *options, "--device", "cpu", "--compile", "off")
        assert done.code in (0, 1, 2), done.err
        if done.code < 2:
            assert bench("report", path, *options, "--check").code == 0


@loads(12)
def test_a_changed_suite_runs_or_ends_in_words(
    bench: Callable[..., Any],
    sources: list[dict[str, Any]],
    which: int,
    scale: str,
    mutations: list[Any],
) -> None:
    check_run(bench, sources, which, scale, mutations)


@pytest.mark.slow
@loads(500)
def test_many_changed_suites_run_or_end_in_words(
    bench: Callable[..., Any],
    sources: list[dict[str, Any]],
    which: int,
    scale: str,
    mutations: list[Any],
) -> None:
    check_run(bench, sources, which, scale, mutations)

"""The command line: bad input is explained, runs stop and go on, every run ends as a record."""

import contextlib
import errno
import io
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from teleport_bench import RunSpec, registry
from teleport_bench.algorithms.teleportation import Teleportation
from teleport_bench.cli import main
from teleport_bench.fleet import FleetRound
from teleport_bench.record import Record, Store
from teleport_bench.suite import Suite, built_in
from teleport_kernels.compiler import Library

FIGURE = '\n[[figure]]\nname = "f"\ny = "objective_gap"\n'
TUNE = '\n[tune]\nlr = [0.1, 0.2]\nseeds = [100]\nmetric = "objective_gap"\n'
METHOD_2 = '[[method]]\nalgorithm = "teleportation"'
ADD = object()
"""In place of the text to replace: the text is added at the end."""

BAD = {
    # id: (suite, old text or texts, new ones, text whose line is named, essential words)
    # {path} is the suite's file
    "key of the suite": (
        "tiny",
        "[run]",
        'abuot = "x"\n[run]',
        "abuot",
        ["unknown key 'abuot'", "did you mean 'about'?"],
    ),
    "table of the suite": (
        "tiny",
        ADD,
        "\n[runs]\nx = 1\n",
        "[runs]",
        ["unknown key 'runs'", "did you mean 'run'?"],
    ),
    "array of tables of the suite": (
        "tiny",
        ADD,
        '\n[[tabel]]\nname = "x"\n',
        "[[tabel]]",
        ["unknown key 'tabel'", "did you mean 'table'?"],
    ),
    "key of [run]": (
        "tiny",
        "rounds = 8",
        "rounds = 8\nmomentun = 0.9",
        "momentun",
        ["unknown key 'momentun'", "did you mean 'momentum'?"],
    ),
    "option of a component in a table": (
        "tiny",
        "dim = 5",
        "dims = 5",
        "dims",
        ["unknown key 'dims'", "did you mean 'dim'?"],
    ),
    "option of a component in an inline table": (
        "tiny",
        'topology = "ring"',
        'topology = { name = "random_regular", degre = 3 }',
        "degre",
        ["unknown key 'degre'", "did you mean 'degree'?"],
    ),
    "key of [[method]]": (
        "tiny",
        METHOD_2,
        METHOD_2 + "\nactve = 3",
        "actve",
        ["unknown key 'actve'", "did you mean 'active'?"],
    ),
    "key of [grid]": (
        "tiny",
        "nodes = [4, 6]",
        "nods = [4, 6]",
        "nods",
        ["unknown key 'nods'", "did you mean 'nodes'?"],
    ),
    "dotted key of [grid]": (
        "tiny",
        "[grid]",
        '[grid]\n"problem.dimm" = [4]',
        "problem.dimm",
        ["unknown key 'dimm'", "did you mean 'dim'?"],
    ),
    "key of [tune]": (
        "tuned",
        "metric",
        "metrik",
        "metrik",
        ["unknown key 'metrik'", "did you mean 'metric'?"],
    ),
    "key of [[table]]": (
        "tiny",
        "pivot",
        "pivots",
        "pivots",
        ["unknown key 'pivots'", "did you mean 'pivot'?"],
    ),
    "key of [[figure]]": (
        "tiny",
        ADD,
        FIGURE + 'colums = "nodes"',
        "colums",
        ["unknown key 'colums'", "did you mean 'columns'?"],
    ),
    "algorithm": (
        "tiny",
        '"dsgd"',
        '"dsdg"',
        "dsdg",
        ["unknown algorithm 'dsdg'", "did you mean 'dsgd'?", "teleportation"],
    ),
    "topology": (
        "tiny",
        'topology = "ring"',
        'topology = "rign"',
        "rign",
        ["unknown topology 'rign'", "did you mean 'ring'?"],
    ),
    "topology of a grid": (
        "tiny",
        "[grid]",
        '[grid]\ntopology = ["ring", "taurus"]',
        "taurus",
        ["unknown topology 'taurus'", "did you mean 'torus'?"],
    ),
    "problem": (
        "tiny",
        '"quadratic"',
        '"quadratik"',
        "[run.problem]",
        ["unknown problem 'quadratik'", "did you mean 'quadratic'?"],
    ),
    "model": (
        "digits",
        "logistic",
        "logistik",
        "logistik",
        ["unknown model 'logistik'", "did you mean 'logistic'?"],
    ),
    "data set": (
        "digits",
        '"digits"',
        '"digit"',
        'data = "digit"',
        ["unknown data set 'digit'", "did you mean 'digits'?", "mnist5k"],
    ),
    "partition": (
        "digits",
        "dirichlet",
        "dirichlett",
        "dirichlett",
        ["unknown partition 'dirichlett'", "did you mean 'dirichlet'?"],
    ),
    "schedule": (
        "tiny",
        "rounds = 8",
        'rounds = 8\nschedule = "cosin"',
        "cosin",
        ["unknown schedule 'cosin'", "did you mean 'cosine'?"],
    ),
    "metric of a table": (
        "tiny",
        'values = ["objective_gap"]',
        'values = ["objectiv_gap"]',
        "objectiv_gap",
        ["'objectiv_gap'", "did you mean 'objective_gap'?"],
    ),
    "metric of a figure": (
        "tiny",
        ADD,
        FIGURE.replace("objective_gap", "objectiv_gap"),
        "objectiv_gap",
        ["'objectiv_gap'", "did you mean 'objective_gap'?"],
    ),
    "metric of tuning": (
        "tuned",
        'metric = "objective_gap"',
        'metric = "objectiv_gap"',
        "objectiv_gap",
        ["'objectiv_gap'", "did you mean 'objective_gap'?"],
    ),
    "metric of a table that the problem does not report": (
        "tiny",
        'values = ["objective_gap"]',
        'values = ["test_accuracy"]',
        "test_accuracy",
        ["test_accuracy", "objective_gap"],
    ),
    "metric of a figure that the problem does not report": (
        "tiny",
        ADD,
        FIGURE.replace("objective_gap", "test_accuracy") + 'x = "nodes"',
        "test_accuracy",
        ["test_accuracy", "objective_gap"],
    ),
    "metric of tuning that the problem does not report": (
        "tuned",
        'metric = "objective_gap"',
        'metric = "test_accuracy"',
        "test_accuracy",
        ["test_accuracy", "objective_gap"],
    ),
    "pivot": ("tiny", '"nodes"', '"node"', '"node"', ["pivot", "'node'", "'nodes'"]),
    "columns of a figure": (
        "tiny",
        ADD,
        FIGURE + 'columns = "node"',
        '"node"',
        ["columns", "'node'", "'nodes'"],
    ),
    "x of a figure": (
        "tiny",
        ADD,
        FIGURE + 'x = "round"',
        '"round"',
        ["figure.0.x: ", "'round'", "did you mean 'rounds'?", "nodes"],
    ),
    "name of a table that is a path": (
        "tiny",
        'name = "gap"',
        'name = "../gap"',
        "../gap",
        ["name", "'../gap'"],
    ),
    "two tables of one name": (
        "tiny",
        'name = "details"',
        'name = "gap"',
        None,
        ["{path}", "table", "'gap'"],
    ),
    "two figures of one name": (
        "tiny",
        ADD,
        (FIGURE + 'x = "nodes"\n') * 2,
        None,
        ["{path}", "figure", "'f'"],
    ),
    "active > nodes": (
        "tiny",
        "active = [1, 2]",
        "active = [1, 5]",
        "active = [1, 5]",
        ["active = 5 is more than nodes = 4"],
    ),
    "active = 0": (
        "tiny",
        "active = [1, 2]",
        "active = [0]",
        "active = [0]",
        ["active", "greater than 0", "got 0"],
    ),
    "active < 0": (
        "tiny",
        "active = [1, 2]",
        "active = [-1]",
        "active = [-1]",
        ["active", "greater than 0", "got -1"],
    ),
    "teleportation without active": (
        "tiny",
        "grid = { active = [1, 2] }",
        "",
        METHOD_2,
        ["teleportation needs active"],
    ),
    "dsgd with active != nodes": (
        "tiny",
        '"dsgd"',
        '"dsgd"\nactive = 3',
        "active = 3",
        ["dsgd has all nodes active", "3 of 4", "leave it out"],
    ),
    "nodes = 0": (
        "tiny",
        "nodes = [4, 6]",
        "nodes = [0]",
        "nodes = [0]",
        ["nodes", "greater than 0", "got 0"],
    ),
    "nodes a fraction": (
        "tiny",
        "nodes = [4, 6]",
        "nodes = [4.5]",
        "nodes = [4.5]",
        ["nodes", "integer", "4.5"],
    ),
    "nodes no list": (
        "tiny",
        "nodes = [4, 6]",
        "nodes = 4",
        "nodes = 4",
        ["grid.nodes", "list", "got 4"],
    ),
    "nodes an empty list": (
        "tiny",
        "nodes = [4, 6]",
        "nodes = []",
        "nodes = []",
        ["grid.nodes", "at least 1"],
    ),
    "alpha = 0": (
        "digits",
        "alpha = 1.0",
        "alpha = 0.0",
        "alpha = 0.0",
        ["problem.partition.alpha", "greater than 0", "got 0.0"],
    ),
    "alpha < 0": (
        "digits",
        "alpha = 1.0",
        "alpha = -1.0",
        "alpha = -1.0",
        ["problem.partition.alpha", "greater than 0", "got -1.0"],
    ),
    "alpha = nan": (
        "digits",
        "alpha = 1.0",
        "alpha = nan",
        "alpha = nan",
        ["problem.partition.alpha", "finite"],
    ),
    "alpha missing": (
        "digits",
        ", alpha = 1.0",
        "",
        "dirichlet",
        ["problem.partition.alpha", "is missing"],
    ),
    "lr = nan": ("tiny", "lr = 0.1", "lr = nan", "lr = nan", ["lr", "finite", "got nan"]),
    "lr = inf": ("tiny", "lr = 0.1", "lr = inf", "lr = inf", ["lr", "finite", "got inf"]),
    "lr < 0": ("tiny", "lr = 0.1", "lr = -0.1", "lr = -0.1", ["lr", "equal to 0", "got -0.1"]),
    "lr < 0 in a grid": (
        "tiny",
        "[grid]",
        "[grid]\nlr = [0.5, -0.5]",
        "lr = [0.5, -0.5]",
        ["lr", "equal to 0", "got -0.5"],
    ),
    "lr < 0 in a method": (
        "tiny",
        '"dsgd"',
        '"dsgd"\nlr = -0.5',
        "lr = -0.5",
        ["lr", "equal to 0", "got -0.5"],
    ),
    "lr < 0 in [tune]": (
        "tuned",
        "lr = [0.05, 0.1, 1e6]",
        "lr = [0.05, -0.5]",
        "lr = [0.05, -0.5]",
        ["tune.lr", "greater than 0", "got -0.5"],
    ),
    "lr missing": ("tiny", "lr = 0.1\n", "", None, ["{path}", "lr: is missing"]),
    "rounds = 0": (
        "tiny",
        "rounds = 8",
        "rounds = 0",
        "rounds = 0",
        ["rounds", "greater than 0", "got 0"],
    ),
    "seed < 0": ("tiny", "seed = [0, 1]", "seed = [-1]", "seed = [-1]", ["seed", "got -1"]),
    "momentum = 1": (
        "tiny",
        "rounds = 8",
        "rounds = 8\nmomentum = 1.0",
        "momentum",
        ["momentum", "less than 1", "got 1.0"],
    ),
    "nesterov without momentum": (
        "tiny",
        "rounds = 8",
        "rounds = 8\nnesterov = true",
        "nesterov",
        ["nesterov = true needs momentum > 0"],
    ),
    "mu > L": ("tiny", "dim = 5", "dim = 5\nmu = 2.0", None, ["{path}", "mu=2.0 > L=1.0"]),
    "a graph that does not exist": (
        "tiny",
        ('topology = "ring"', "nodes = [4, 6]"),
        ('topology = { name = "random_regular", degree = 3 }', "nodes = [5]"),
        "random_regular",
        ["no graph on 5 nodes has degree 3", "take degree 2 or 4"],
    ),
    "title missing": (
        "tiny",
        'title = "A tiny suite"\n',
        "",
        None,
        ["{path}", "title: is missing"],
    ),
    "title no text": ("tiny", '"A tiny suite"', "3", "title = 3", ["title", "string", "got 3"]),
    "label no text": ("tiny", '"dsgd"', '"dsgd"\nlabel = 3', "label", ["label", "string", "got 3"]),
    "label with an unknown key": (
        "tiny",
        '"dsgd"',
        '"dsgd"\nlabel = "k = {activ}"',
        "label",
        ["'k = {activ}'", "{active}"],
    ),
    "label with a brace left open": (
        "tiny",
        '"dsgd"',
        '"dsgd"\nlabel = "k = {active"',
        "label",
        ["'k = {active'", "{active}"],
    ),
    "label with a key of a number": (
        "tiny",
        '"dsgd"',
        '"dsgd"\nlabel = "{nodes[x]}"',
        "label",
        ["'{nodes[x]}'", "{active}"],
    ),
    "label with a format that does not fit": (
        "tiny",
        '"dsgd"',
        '"dsgd"\nlabel = "{algorithm:d}"',
        "label",
        ["'{algorithm:d}'", "{active}"],
    ),
    "lr of [run] and [tune]": (
        "tiny",
        ADD,
        TUNE,
        "lr = 0.1\n",
        ["[tune] chooses lr", "leave lr out"],
    ),
    "lr of [grid] and [tune]": (
        "tuned",
        "[grid]",
        "[grid]\nlr = [0.3]",
        "lr = [0.3]",
        ["[tune] chooses lr", "leave lr out"],
    ),
    "lr of a method and [tune]": (
        "tuned",
        '"dsgd"',
        '"dsgd"\nlr = 0.3',
        "lr = 0.3",
        ["[tune] chooses lr", "leave lr out"],
    ),
    "lr of a method's grid and [tune]": (
        "tuned",
        "grid = { active = [1, 2] }",
        "grid = { active = [1, 2], lr = [0.3] }",
        "lr = [0.3]",
        ["[tune] chooses lr", "leave lr out"],
    ),
    "[tune] without values": (
        "tuned",
        "lr = [0.05, 0.1, 1e6]",
        "lr = []",
        "lr = []",
        ["tune.lr", "at least 1"],
    ),
    "a seed tuned on and reported": (
        "tuned",
        "seeds = [100, 101]",
        "seeds = [100, 1]",
        "seeds = [100, 1]",
        ["seed 1 is both tuned on and reported", "take other seeds"],
    ),
    "a value twice in a grid": (
        "tiny",
        "seed = [0, 1]",
        "seed = [0, 0]",
        None,
        ["{path}", "are the same run", "D-SGD, nodes 4, seed 0"],
    ),
    "a method twice": (
        "tiny",
        ADD,
        '\n[[method]]\nalgorithm = "dsgd"\nlabel = "again"\n',
        None,
        ["{path}", "are the same run", "nodes 4, seed 0"],
    ),
    "two methods under one label": (
        "tiny",
        ADD,
        '\n[[method]]\nalgorithm = "dsgd"\nmomentum = 0.5\nlabel = "D-SGD"\n',
        None,
        ["{path}", "label", "'D-SGD'"],
    ),
    "no method": ("no method", ADD, "", None, ["{path}", "method: is missing"]),
    "method no array": (
        "no method",
        ADD,
        '[method]\nalgorithm = "dsgd"\n',
        "[method]",
        ["method", "list"],
    ),
    "problem without a name": (
        "tiny",
        'name = "quadratic"\n',
        "",
        "[run.problem]",
        ["problem name, or a table with a name"],
    ),
    "dotted key into a number": (
        "tiny",
        "[grid]",
        '[grid]\n"rounds.x" = [3]',
        "rounds.x",
        ["rounds", "8", "not a table"],
    ),
    "more nodes than samples": (
        "digits",
        "nodes = [4, 6]",
        "nodes = [4, 2000]",
        None,
        ["1079 training samples", "2000 nodes", "take at most 1079 nodes"],
    ),
    "one node with heterogeneity": (
        "tiny",
        ("nodes = [4, 6]", "active = [1, 2]"),
        ("nodes = [1]", "active = [1]"),
        None,
        ["one node alone has no heterogeneity", "zeta2 = 0"],
    ),
}


def line_of(text, fragment):
    """The number of the line on which the fragment, which occurs once, starts."""
    assert text.count(fragment) == 1, fragment
    return text[: text.index(fragment)].count("\n") + 1


def changed(texts, suite, old, new):
    if suite == "no method":
        text, suite = texts["tiny"].partition("[[method]]")[0], "tiny"
    else:
        text = texts[suite]
    if old is ADD:
        return text + new
    if isinstance(old, str):
        old, new = [old], [new]
    for was, becomes in zip(old, new, strict=True):
        assert was in text, was
        text = text.replace(was, becomes, 1)
    return text


@pytest.fixture
def nothing_else(tmp_path, monkeypatch):
    """The test runs in tmp_path and must leave no file there but those it writes itself."""
    monkeypatch.chdir(tmp_path)

    @contextlib.contextmanager
    def nothing_else():
        before = sorted(tmp_path.rglob("*"))
        yield
        assert sorted(tmp_path.rglob("*")) == before

    return nothing_else


@pytest.mark.parametrize(("suite", "old", "new", "_", "words"), BAD.values(), ids=BAD)
def test_a_bad_suite_is_refused_with_a_remedy_and_leaves_nothing_behind(
    texts, write, run, nothing_else, suite, old, new, _, words
):
    path = write(changed(texts, suite, old, new))
    with nothing_else():
        done = run(path)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("teleport-bench: ")
    for word in words:
        assert word.replace("{path}", str(path)) in done.err


PLACED = {name: case[:4] for name, case in BAD.items() if case[3]}


@pytest.mark.parametrize(("suite", "old", "new", "at"), PLACED.values(), ids=PLACED)
def test_a_bad_suite_is_refused_with_the_file_and_the_line(texts, write, run, suite, old, new, at):
    text = changed(texts, suite, old, new)
    path = write(text)
    first = run(path).err.splitlines()[0]
    assert first.startswith(f"teleport-bench: {path}, line {line_of(text, at)}: ")


@pytest.mark.parametrize(
    ("table", "old", "new", "words"),
    [
        ('pivot = "nodes"', "[grid]", '[grid]\ntopology = ["ring", "star"]', ["'gap'", "topology"]),
        ('pivot = "nodes"', "[grid]", "[grid]\nlr = [0.1, 0.2]", ["'gap'", "lr"]),
        ('pivot = "seed"', "", "", ["'gap'", "nodes"]),
        ('pivot = "lr"', "", "", ["'gap'", "nodes"]),
        ('pivot = "active"', "", "", ["'gap'", "nodes"]),
    ],
)
def test_a_table_that_would_average_over_more_than_seeds_is_refused(
    texts, write, run, table, old, new, words
):
    text = texts["tiny"].replace('pivot = "nodes"', table).replace(old, new, 1)
    done = run(write(text))
    assert done.code == 2
    for word in words:
        assert word in done.err


@pytest.mark.parametrize(
    ("figure", "old", "new", "words"),
    [
        (FIGURE, "", "", ["'f'", "nodes"]),
        (FIGURE + 'x = "seed"', "", "", ["'f'", "nodes"]),
        (FIGURE + 'x = "lr"', "", "", ["'f'", "nodes"]),
        (FIGURE + 'columns = "nodes"', "[grid]", "[grid]\nlr = [0.1, 0.2]", ["'f'", "lr"]),
        (
            FIGURE + 'x = "nodes"',
            "[grid]",
            '[grid]\ntopology = ["ring", "star"]',
            ["'f'", "topology"],
        ),
    ],
)
def test_a_figure_that_would_average_over_more_than_seeds_is_refused(
    texts, write, run, figure, old, new, words
):
    without_tables = texts["tiny"].partition("[[table]]")[0]
    done = run(write(without_tables.replace(old, new, 1) + figure))
    assert done.code == 2
    for word in words:
        assert word in done.err


def test_all_mistakes_of_a_suite_are_named_at_once(texts, write, run):
    text = texts["tiny"].replace("rounds = 8", "rounds = 0").replace("lr = 0.1", "lr = -1")
    path = write(text)
    lines = run(path).err.splitlines()
    assert sorted(lines) == sorted(set(lines))
    assert any("rounds" in line and str(path) in line for line in lines)
    assert any("lr" in line and str(path) in line for line in lines)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('title = "t"\n[run]\nrounds = = 8\n', "at line 3,"),
        ('title = "t"\ntitle = "u"\n', "at line 2,"),
        ("[run\n", "at line 1,"),
        ('title = \'t\'\nabout = """never ends\n', "at end of document"),
    ],
)
def test_a_file_that_is_not_toml_is_refused_with_the_line(write, run, nothing_else, text, place):
    path = write(text)
    with nothing_else():
        done = run(path)
    assert done.code == 2
    assert f"{path} is not TOML: " in done.err
    assert place in done.err


def test_a_suite_file_that_is_not_there_is_refused(tmp_path, run, nothing_else):
    with nothing_else():
        done = run(tmp_path / "absent.toml")
    assert done.code == 2
    assert f"cannot read suite {tmp_path / 'absent.toml'}: No such file" in done.err


@pytest.mark.parametrize("name", ["folder", "folder.toml"])
def test_a_folder_in_place_of_a_suite_file_is_refused(tmp_path, run, nothing_else, name):
    (tmp_path / name).mkdir()
    with nothing_else():
        done = run(tmp_path / name)
    assert done.code == 2
    assert f"cannot read suite {tmp_path / name}: Is a directory" in done.err


@pytest.mark.parametrize("content", [b"\x7fELF\x02\x01\x01\x00", bytes(range(256)), b"\xff\xfe"])
def test_a_binary_file_in_place_of_a_suite_is_refused(tmp_path, run, nothing_else, content):
    path = tmp_path / "binary.toml"
    path.write_bytes(content)
    with nothing_else():
        done = run(path)
    assert done.code == 2
    assert str(path) in done.err
    assert "cannot read" in done.err or "is not TOML" in done.err


def test_an_unknown_built_in_suite_is_refused_with_the_nearest_name(run, nothing_else):
    with nothing_else():
        done = run("demmo")
    assert done.code == 2
    assert "unknown suite 'demmo'; did you mean 'demo'?" in done.err
    assert ".toml" in done.err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rounds", ["--set takes KEY=VALUE", "'rounds'"]),
        ("=3", ["--set takes KEY=VALUE", "'=3'"]),
        ("", ["--set takes KEY=VALUE"]),
        ("runds=3", ["--set", "unknown key 'runds'", "did you mean 'rounds'?"]),
        ("grd.nodes=[3]", ["--set", "unknown key 'grd'", "did you mean 'grid'?"]),
        ("problem.dims=3", ["unknown key 'dims'", "did you mean 'dim'?"]),
        ("rounds.x=3", ["rounds", "not a table"]),
        ("method=3", ["method", "list", "got 3"]),
        ("topology=rign", ["unknown topology 'rign'", "did you mean 'ring'?"]),
        ("rounds=many", ["rounds", "integer", "got 'many'"]),
        ("lr=nan", ["lr", "finite", "got nan"]),
        ("active=5", ["active", "5", "4"]),
    ],
)
def test_a_bad_override_is_refused(texts, write, run, nothing_else, override, words):
    path = write(texts["tiny"])
    with nothing_else():
        done = run(path, "--set", override)
    assert done.code == 2
    for word in words:
        assert word in done.err


def test_a_bad_value_of_an_override_is_blamed_on_the_override(texts, write, run):
    done = run(write(texts["tiny"]), "--set", "lr=-1")
    assert done.code == 2
    assert "--set" in done.err
    assert ", line " not in done.err


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "", "cuda:-1", "cuda:²", "tpu"])
def test_an_unknown_device_is_refused(texts, write, run, nothing_else, device):
    path = write(texts["tiny"])
    with nothing_else():
        done = run(path, "--device", device)
    assert done.code == 2
    assert f"unknown device '{device}'" in done.err
    assert "cpu, cuda" in done.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused_with_a_remedy(texts, write, run, nothing_else):
    path = write(texts["tiny"])
    with nothing_else():
        done = run(path, "--device", "cuda")
    assert done.code == 2
    assert "device 'cuda' is not there" in done.err
    assert "use --device cpu" in done.err


def test_a_gpu_beyond_the_last_is_refused(texts, write, run, nothing_else):
    path = write(texts["tiny"])
    with nothing_else():
        done = run(path, "--device", "cuda:99")
    assert done.code == 2
    assert "device 'cuda:99' is not there" in done.err


@pytest.mark.parametrize(
    "place",
    [
        ".",
        "tiny",
        "tiny/runs",
        "tiny/tables",
        "tiny/figures",
        "tiny/suite.json/folder",
        "tiny/index.html/folder",
    ],
)
def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path, texts, write, run, place):
    path, out = write(texts["figures"]), tmp_path / "out"
    in_the_way = out / place
    in_the_way.parent.mkdir(parents=True, exist_ok=True)
    in_the_way.write_text("in the way")
    done = run(path)
    assert done.code == 2
    assert "cannot write" in done.err
    assert str(out) in done.err
    assert "--out" in done.err
    assert in_the_way.read_text() == "in the way"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["COMMAND"]),
        (["rnu"], ["rnu", "run"]),
        (["run"], ["SUITE"]),
        (["run", "demo", "--rnuds"], ["--rnuds"]),
        (["env", "--device", "gpu"], ["unknown device 'gpu'"]),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(bench, nothing_else, arguments, words):
    with nothing_else():
        done = bench(*arguments)
    assert done.code == 2
    for word in words:
        assert word in done.err


def test_bad_input_shows_no_traceback_in_a_process_of_its_own(tmp_path, texts, write):
    path = write(texts["tiny"].replace('"dsgd"', '"dsdg"'))
    done = subprocess.run(
        [sys.executable, "-m", "teleport_bench", "run", path, "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "did you mean 'dsgd'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


# Running, stopping, going on


def records(out, name="tiny"):
    """The records under DIR/SUITE by run id."""
    files = sorted((out / name / "runs").glob("*.json"))
    found = [Record.model_validate_json(path.read_bytes()) for path in files]
    return {record.id: record for record in found}


def results(out):
    """What the settings decide: the records without `made`."""
    return {key: record.result() for key, record in records(out).items()}


def stamps(out):
    """Bytes and time of change of every record, by name."""
    paths = (out / "tiny" / "runs").iterdir()
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def tiny(write, texts):
    """The tiny suite's file."""
    return write(texts["tiny"])


def test_a_run_leaves_one_record_for_each_run_of_the_suite(tiny, run, out):
    done = run(tiny)
    assert done.code == 0
    assert "12 runs, 12 of them now" in done.err
    planned = {planned.spec.id: planned.spec for planned in Suite.load(str(tiny)).planned()}
    found = records(out)
    assert set(found) == set(planned)
    assert len(list((out / "tiny" / "runs").iterdir())) == 12
    for key, record in found.items():
        assert record.status == "finished"
        assert record.spec == planned[key].model_dump(mode="json")
        assert record.curves["rounds"] == [0, 4, 8]
        assert RunSpec.model_validate(record.spec).id == key


def test_a_run_prints_its_tables_and_names_its_page(tiny, run, out):
    done = run(tiny)
    assert "A tiny suite" in done.out
    assert "TELEPORTATION, k=2" in done.out
    assert "Mean ± sample standard deviation over 2 seeds." in done.out
    assert f"The page: {out / 'tiny' / 'index.html'}" in done.out
    assert (out / "tiny" / "index.html").is_file()


def test_gradients_and_bytes_are_counted_in_a_record(tiny, run, out):
    run(tiny)
    for record in records(out).values():
        n, k = record.spec["nodes"], record.spec["active"]
        assert record.final("gradients") == 8 * k
        assert record.final("epochs") == 8 * k / n
        assert record.final("bytes_per_node") == record.final("bytes_total") / n
        if k == n:  # D-SGD on a ring: each node sends its 5 floats to both neighbours
            assert record.final("bytes_total") == 8 * n * 2 * 5 * 4


def test_a_second_run_does_nothing_and_leaves_the_records_untouched(tiny, run, out):
    first = run(tiny)
    before = stamps(out)
    second = run(tiny)
    assert second.code == 0
    assert "12 runs, 0 of them now" in second.err
    assert stamps(out) == before
    assert second.out == first.out


def test_rerun_runs_everything_again_to_the_same_results(tiny, run, out):
    run(tiny)
    before, result = stamps(out), results(out)
    done = run(tiny, "--rerun")
    assert "12 runs, 12 of them now" in done.err
    after = stamps(out)
    assert all(after[name][1] != before[name][1] for name in before)
    assert results(out) == result


def test_only_a_record_that_was_deleted_is_made_again(tiny, run, out):
    run(tiny)
    before, result = stamps(out), results(out)
    lost = sorted(before)[5]
    (out / "tiny" / "runs" / lost).unlink()
    assert "12 runs, 1 of them now" in run(tiny).err
    after = stamps(out)
    assert {n: s for n, s in after.items() if n != lost} == {
        n: s for n, s in before.items() if n != lost
    }
    again = results(out)
    assert set(again) == set(result)
    for key, record in again.items():
        assert_close(record["curves"], result[key]["curves"])


def assert_close(curves, expected):
    """Equal up to the rounding that depends on the company a run has in its fleet."""
    assert set(curves) == set(expected)
    for name, values in curves.items():
        assert values == pytest.approx(expected[name], rel=1e-4, abs=1e-9), name


DAMAGE = {
    "empty": lambda _: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "cut before its end": lambda content: content.rstrip()[:-1],
    "not JSON": lambda content: b"garbage" + content,
    "binary": lambda _: bytes(range(256)),
    "other JSON": lambda _: b'{"status": "finished"}',
    "an unknown status": lambda content: content.replace(b'"finished"', b'"fine"'),
    "a key too many": lambda content: content.replace(b"{", b'{"more":1,', 1),
    "not a number": lambda content: re.sub(
        rb'"consensus":\[[^]]*\]', b'"consensus":[NaN]', content
    ),
    "another run's": None,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_record_that_cannot_be_read_is_made_again(tiny, run, out, damage):
    run(tiny, "--set", "nodes=4", "--set", "active=4")
    before = stamps(out)
    lost, other, *_ = sorted(before)
    path = out / "tiny" / "runs" / lost
    content = damage(before[lost][0]) if damage else before[other][0]
    assert content != before[lost][0]
    path.write_bytes(content)
    done = run(tiny, "--set", "nodes=4", "--set", "active=4")
    assert done.code == 0
    assert "4 runs, 1 of them now" in done.err
    again = Record.model_validate_json(path.read_bytes())
    first = Record.model_validate_json(before[lost][0])
    assert again.spec == first.spec
    assert_close(again.curves, first.curves)


def test_the_same_command_in_two_folders_gives_the_same_results(tiny, run, tmp_path):
    run(tiny, out=tmp_path / "one")
    run(tiny, out=tmp_path / "two")
    assert results(tmp_path / "one") == results(tmp_path / "two")
    for name in ("tables/gap.md", "tables/gap.csv", "tables/gap.tex", "tables/details.csv"):
        one, two = (tmp_path / folder / "tiny" / name for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_set_makes_other_runs_and_keeps_the_old_records(tiny, run, out):
    run(tiny)
    before = stamps(out)
    done = run(tiny, "--set", "rounds=4")
    assert "12 runs, 12 of them now" in done.err
    after = stamps(out)
    assert len(after) == 24
    assert {name: after[name] for name in before} == before
    assert "0 of them now" in run(tiny).err


def boom(*_, **__):
    raise RuntimeError("boom")


@pytest.mark.parametrize(
    ("target", "attribute", "failing"),
    [(Teleportation, "step", 8), (FleetRound, "gradient", 12)],
)
def test_a_run_that_raises_ends_as_failed_and_is_tried_again(
    tiny, run, out, monkeypatch, target, attribute, failing
):
    with monkeypatch.context() as patch:
        patch.setattr(target, attribute, boom)
        done = run(tiny)
    assert done.code == 1
    assert f"{failing} runs failed" in done.err
    assert "Traceback" not in done.err
    failed = [record for record in records(out).values() if record.status == "failed"]
    assert len(failed) == failing
    for record in failed:
        assert record.curves == {}
        assert record.error.startswith("RuntimeError: boom")
        with pytest.raises(KeyError, match="is failed"):
            record.final("objective_gap")
    page = (out / "tiny" / "index.html").read_text()
    assert page.count("failed: RuntimeError: boom") == failing
    row = next(line for line in done.out.splitlines() if line.startswith("TELEPORTATION, k=1"))
    assert row.split("  ")[-1].strip() == "failed"

    again = run(tiny)
    assert again.code == 0
    assert f"12 runs, {failing} of them now" in again.err
    assert {record.status for record in records(out).values()} == {"finished"}


def test_a_report_of_failed_runs_says_so_with_its_exit_code(tiny, run, bench, out, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Teleportation, "step", boom)
        run(tiny)
    done = bench("report", tiny, "--out", out)
    assert done.code == 1
    assert "8 runs failed" in done.err


WILD = '\n[[method]]\nalgorithm = "dsgd"\nlabel = "wild"\nlr = %s\n'


@pytest.mark.parametrize("lr", ["30.0", "1e6", "1e39", "1e300"])  # 30: large, yet finite
def test_a_run_that_diverges_has_no_final_value_and_leaves_its_companions_alone(
    texts, write, run, tmp_path, lr
):
    run(write(texts["tiny"]), out=tmp_path / "without")
    done = run(write(texts["tiny"] + WILD % lr), out=tmp_path / "with")
    assert done.code == 0
    without, found = records(tmp_path / "without"), records(tmp_path / "with")
    diverged = {key: found[key] for key in found if key not in without}
    assert len(diverged) == 4
    for record in diverged.values():
        assert record.status == "diverged"
        assert 0 < record.diverged_at <= 8
        assert all(t < record.diverged_at for t in record.curves["rounds"])
        with pytest.raises(KeyError, match="is diverged"):
            record.final("objective_gap")
    for key, record in without.items():
        assert found[key].status == "finished"
        assert_close(found[key].curves, record.curves)

    folder = tmp_path / "with" / "tiny"
    (row,) = [
        line
        for line in (folder / "tables" / "gap.md").read_text().splitlines()
        if line.startswith("| wild")
    ]
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["wild", "diverged", "diverged"]
    (line,) = [
        line
        for line in (folder / "tables" / "gap.csv").read_text().splitlines()
        if line.startswith("wild")
    ]
    assert line == "wild,,,0,,,0"
    page = (folder / "index.html").read_text()
    assert re.search(r"<td[^>]*>wild *</td><td[^>]*> *diverged</td><td[^>]*> *diverged</td>", page)
    assert page.count("diverged, seen after round") == 4


def test_a_diverged_run_has_a_result_and_is_not_tried_again(texts, write, run, out):
    path = write(texts["tiny"] + WILD % "1e6")
    run(path)
    before = stamps(out)
    assert "16 runs, 0 of them now" in run(path).err
    assert stamps(out) == before


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_an_interrupted_run_keeps_what_is_finished_and_goes_on_there(tiny, run, out, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Teleportation, "step", interrupt)
        done = run(tiny)
    assert done.code == 130
    assert "Traceback" not in done.err
    assert str(out / "tiny" / "runs") in done.err
    before = stamps(out)
    assert {json.loads(content)["spec"]["algorithm"]["name"] for content, _ in before.values()} == {
        "dsgd"
    }
    assert len(before) == 4
    again = run(tiny)
    assert again.code == 0
    assert "12 runs, 8 of them now" in again.err
    after = stamps(out)
    assert {name: after[name] for name in before} == before
    assert len(after) == 12


@pytest.mark.parametrize("command", ["run", "report"])
def test_an_interrupted_report_ends_like_an_interrupted_run(
    tiny, run, bench, out, monkeypatch, command
):
    run(tiny)
    monkeypatch.setattr("teleport_bench.report.build.build", interrupt)
    try:
        code = bench(command, tiny, "--out", out).code
    except KeyboardInterrupt:
        pytest.fail("Ctrl-C shows a traceback")
    assert code == 130


def test_a_store_finds_each_record_under_a_readable_name(tiny, run, out):
    run(tiny)
    store = Store(out / "tiny")
    for planned in Suite.load(str(tiny)).planned():
        s = planned.spec
        name = f"{s.algorithm['name']}-ring-n{s.nodes}-k{s.n_active}-lr0.1-s{s.seed}-{s.id}.json"
        assert store.path(s) == out / "tiny" / "runs" / name
        assert store.load(s).id == s.id


@pytest.mark.parametrize(
    ("options", "begins"),
    [
        (["run", "SUITE"], True),
        (["tune", "SUITE"], True),
        (["run", "SUITE", "--compile", "off"], False),
        (["run", "SUITE", "--device", "cuda:99"], False),
        (["report", "SUITE"], False),
        (["theory", "--nodes", "4"], False),
        (["list"], False),
        (["env"], False),
        (["--help"], False),
        (["run", "--help"], False),
    ],
)
def test_only_what_makes_rounds_in_c_begins_to_compile(
    write, texts, bench, tmp_path, monkeypatch, options, begins
):
    begun = []
    monkeypatch.setattr(Library, "begin", lambda library: begun.append(library))
    suite = write(texts["tuned"], "tuned")
    out = ["--out", tmp_path] if options[0] in ("run", "tune", "report", "theory") else []
    bench(*(suite if option == "SUITE" else option for option in options), *out)
    assert bool(begun) == begins


# list, env, import


def test_list_names_every_suite_and_every_registered_component(bench):
    done = bench("list")
    assert done.code == 0
    words = set(done.out.split())
    kinds = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
    assert len(kinds) == 7
    for kind in kinds:
        assert kind.kind in done.out
        for entry in kind:
            assert entry.name in words
            assert entry.summary
            assert entry.summary in done.out
            assert {f"{option}:" for option in entry.options.model_fields} <= words
    assert set(built_in()) <= words


def strings(value):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from (*strings(key), *strings(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


def assert_anonymous(value):
    """No host name, no user name, no absolute path."""
    for text in strings(value):
        assert "secret-host" not in text
        assert "secret-user" not in text
        assert not re.search(r"(^|[\s'\"=(])(/|[A-Za-z]:\\)\w", text), text


@pytest.fixture
def named_host(monkeypatch):
    """A machine and a user with names that are easily found."""
    host = "secret-host"
    monkeypatch.setattr(platform, "node", lambda: host)
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    monkeypatch.setattr(socket, "getfqdn", lambda *_: host)
    real = os.uname()
    monkeypatch.setattr(
        os, "uname", lambda: os.uname_result((real[0], host, real[2], real[3], real[4]))
    )
    monkeypatch.setenv("HOSTNAME", host)
    for name in ("USER", "LOGNAME", "HOME"):
        monkeypatch.setenv(name, "/home/secret-user" if name == "HOME" else "secret-user")


@pytest.mark.usefixtures("named_host")
def test_env_prints_json_without_host_name_or_paths(bench):
    done = bench("env", "--device", "cpu")
    assert done.code == 0
    facts = json.loads(done.out)
    assert facts["environment"]["device"] == "cpu"
    assert facts["environment"]["packages"]["torch"] == torch.__version__
    assert facts["code"]["version"]
    assert_anonymous(facts)
    assert platform.platform() not in done.out  # the kernel's build is nobody's business


@pytest.mark.usefixtures("named_host")
def test_a_record_has_neither_host_name_nor_paths(tiny, run, out):
    run(tiny)
    for path in (out / "tiny" / "runs").iterdir():
        assert_anonymous(json.loads(path.read_text()))


def test_the_two_halves_of_env_are_what_a_record_carries(tiny, run, bench, out):
    run(tiny)
    facts = json.loads(bench("env", "--device", "cpu").out)
    for record in records(out).values():
        assert record.made.environment == facts["environment"]
        assert record.made.code == facts["code"]


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, teleport_bench, teleport_bench.cli\n"
        "heavy = {'torch', 'numpy', 'datasets', 'pandas', 'seaborn', 'matplotlib', 'triton',\n"
        "         'sklearn', 'mlxtend', 'networkx'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "print(sorted(n for n in teleport_bench.__all__ if n not in dir(teleport_bench)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]


def test_a_name_that_the_package_has_not_is_an_attribute_error():
    import teleport_bench

    with pytest.raises(AttributeError, match="no attribute 'RunSpecs'"):
        _ = teleport_bench.RunSpecs


def test_report_of_a_suite_that_was_not_run_says_what_to_do(tiny, bench, out):
    done = bench("report", tiny, "--out", out)
    assert done.code == 2
    assert f"{out / 'tiny'} holds no results" in done.err
    assert "run the suite first" in done.err
    assert not out.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"3", b"\xff\xfe", b'{"name": "tiny", "suite": 2}', b'{"name": "tiny"}'],
)
def test_report_of_a_damaged_folder_says_what_to_do(tiny, bench, out, content):
    (out / "tiny").mkdir(parents=True)
    path: Path = out / "tiny" / "suite.json"
    path.write_bytes(content)
    done = bench("report", tiny, "--out", out)
    assert done.code == 2
    assert str(path) in done.err
    assert "run the suite again" in done.err


CLAIM = """
[[claim]]
name = "lower"
text = "It is lower."
source = "derived"
metric = "objective_gap"
better = "TELEPORTATION, k=2"
than = "D-SGD"
"""


def test_a_folder_of_suites_runs_as_far_as_it_can_and_counts_its_claims(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    texts: dict[str, str],
    write: Callable[..., Path],
    bench: Callable[..., Any],
) -> None:
    suites = {f"two/{name}": write(texts["tiny"] + CLAIM, name) for name in ("a", "b")}
    monkeypatch.setattr("teleport_bench.suite.built_in", lambda: suites)
    done = bench("run", "two", "--out", tmp_path / "out", "--device", "cpu")
    assert done.code == 0
    total = [line.split() for line in done.out.splitlines() if line.startswith("all ")]
    assert [sum(map(int, counts)) for _, *counts in total] == [2]
    assert "\nall " in bench("report", "two", "--out", tmp_path / "out").out
    write(texts["tiny"].replace("lr =", "rl ="), "a")
    done = bench("run", "two", "--out", tmp_path / "out", "--device", "cpu")
    assert done.code == 2
    assert "a.toml, line 5: rl: unknown key" in done.err
    assert "\nall " in done.out


def test_a_reader_that_leaves_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "teleport_bench", "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_an_error_of_the_machine_is_no_full_disk(
    monkeypatch: pytest.MonkeyPatch, bench: Callable[..., Any]
) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "no disk")

    monkeypatch.setattr("teleport_bench.suite.built_in", fail)
    with pytest.raises(OSError, match="no disk"):
        bench("list")


# What is printed, and where it goes

ENCODINGS = ("ascii", "latin-1", "cp1252", "utf-16", "ascii:strict")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_encoding_of_the_output_is_good_enough(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    name, _, errors = encoding.partition(":")
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, name, errors or "strict")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    report = ["report", str(finished / "suite.toml"), "--out", str(finished / "out")]
    assert main([*report, "--check"]) == 0
    shutil.copytree(finished, tmp_path / "copy")
    assert main(["report", "suite.toml", "--out", str(tmp_path / "copy" / "out")]) == 0
    assert main(["theory", "--nodes", "4", "--out", str(tmp_path)]) == 0
    assert main(["list"]) == 0
    assert main(["run", "ǖ.toml"]) == 2
    assert sys.stdout is stream
    assert stream.errors == "strict"  # as it was
    stream.flush()
    text = raw.getvalue().decode(name)
    assert ("x\\u0304" in text) == (name != "utf-16")
    assert "unknown suite" in text or "cannot read suite" in text


LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TQDM_DISABLE": ""}


def in_shell(command: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    program = f"{sys.executable} -m teleport_bench"
    return subprocess.run(
        ["bash", "-c", command.replace("teleport-bench", program)],
        cwd=folder,
        env=os.environ | more,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def test_files_are_utf_8_in_any_locale_and_none_gets_what_a_closed_stream_was_told(
    finished: Path, tmp_path: Path
) -> None:
    shutil.copy(finished / "suite.toml", tmp_path)
    options = "suite.toml --out out --device cpu --compile off"
    done = in_shell(f"teleport-bench run {options} >&- 2>&-", tmp_path, **LOCALE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    place = Path("out", "suite")
    assert (tmp_path / place / "suite.json").read_bytes() == (
        finished / place / "suite.json"
    ).read_bytes()
    assert "±" in (tmp_path / place / "tables" / "gap.md").read_text("utf-8")
    for record in (tmp_path / "out" / "suite" / "runs").iterdir():
        json.loads(record.read_bytes())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_at_the_end_of_a_pipe_costs_no_run(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "suite.toml", tmp_path)
    run = "teleport-bench run suite.toml --out out --device cpu --compile off"
    done = in_shell(f"{run} > /dev/full", tmp_path)
    assert done.returncode == 1
    assert "the output cannot be written: No space left on device; results are kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert len(records(tmp_path / "out", "suite")) == 12
    done = in_shell(f"{run} --rerun 2> /dev/full", tmp_path)
    assert done.returncode == 0
    assert "The page" in done.stdout
    statuses = {record.status for record in records(tmp_path / "out", "suite").values()}
    assert statuses == {"finished"}


def test_a_reader_that_leaves_costs_no_run(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "suite.toml", tmp_path)
    run = "teleport-bench run suite.toml --out out --device cpu --compile off"
    done = in_shell(f"set -o pipefail; {run} 2>&1 | true", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "suite" / "index.html").is_file()
    statuses = {record.status for record in records(tmp_path / "out", "suite").values()}
    assert statuses == {"finished"}


# A suite that changed since its report


def test_report_takes_the_tables_that_the_file_has_today(tiny, run, bench, out, texts):
    assert run(tiny).code == 0
    before = stamps(out)
    tiny.write_text(texts["tiny"].replace('name = "gap"', 'name = "final"\ncaption = "Today"'))
    done = bench("report", tiny, "--out", out, "--check")
    assert done.code == 1
    assert "tables/final.md: is not there" in done.out
    assert "tables/gap.md: is no part of this report" in done.out
    assert "suite.json: differs" in done.out
    done = bench("report", tiny, "--out", out)
    assert done.code == 0, done.err
    assert "Today" in done.out
    assert "removed from" in done.err
    assert "tables/gap.csv, tables/gap.md, tables/gap.tex" in done.err
    assert {p.stem for p in (out / "tiny" / "tables").iterdir()} == {"final", "details"}
    assert stamps(out) == before
    assert bench("report", tiny, "--out", out, "--check").code == 0
    tiny.unlink()  # then the last report is what there is
    assert bench("report", tiny, "--out", out, "--check").code == 0


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("lr = 0.1", "lr = 0.2", "run.lr was 0.1 and is 0.2"),
        ("seed = [0, 1]", "seed = [0, 2]", "grid.seed was [0, 1] and is [0, 2]"),
        ('algorithm = "dsgd"', 'algorithm = "d2"', "method.0.algorithm was 'dsgd' and is 'd2'"),
        ("rounds = 8", "rounds = 8\nloss = 0.5", "run.loss was not there and is 0.5"),
    ],
)
def test_report_of_a_file_with_other_runs_names_what_differs(
    tiny, run, bench, out, texts, old, new, words
):
    assert run(tiny).code == 0
    tiny.write_text(texts["tiny"].replace(old, new))
    for check in ((), ("--check",)):
        done = bench("report", tiny, "--out", out, *check)
        assert done.code == 2
        assert f"{tiny} has changed since it was run: {words}" in done.err
    done = run(tiny)
    assert done.code == 0
    assert "of other settings" in done.err
    assert words in done.err
    assert bench("report", tiny, "--out", out, "--check").code == 0


def test_report_applies_what_set_changed(tiny, run, bench, out):
    assert run(tiny, "--set", "rounds=4").code == 0
    assert bench("report", tiny, "--out", out, "--check").code == 0


def test_another_suite_of_the_same_file_name_is_refused(tiny, run, out, texts, tmp_path):
    assert run(tiny).code == 0
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    other = tmp_path / "other" / "tiny.toml"
    other.parent.mkdir()
    other.write_text(texts["tiny"].replace("A tiny suite", "Another").replace("0.1", "0.3"))
    done = run(other)
    assert done.code == 2
    assert "holds another suite, 'A tiny suite' and not 'Another'" in done.err
    assert "--out" in done.err
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    tiny.write_text(texts["tiny"].replace("A tiny suite", "A better title"))
    assert run(tiny).code == 0  # its runs say that it is the same


def test_set_does_not_replace_the_report_of_a_built_in_suite(
    monkeypatch: pytest.MonkeyPatch,
    texts: dict[str, str],
    write: Callable[..., Path],
    bench: Callable[..., Any],
    tmp_path: Path,
) -> None:
    suites = {"demo": write(texts["tiny"])}
    monkeypatch.setattr("teleport_bench.suite.built_in", lambda: suites)
    run = ("run", "demo", "--device", "cpu", "--out")
    assert bench(*run, tmp_path / "a").code == 0
    done = bench(*run, tmp_path / "a", "--set", "rounds=4")
    assert done.code == 2
    assert (
        "holds results of demo with other settings (set.rounds was not there and is 4)" in done.err
    )
    assert "--out" in done.err
    assert bench(*run, tmp_path / "b", "--set", "rounds=4").code == 0
    assert bench(*run, tmp_path / "b", "--set", "rounds=4").code == 0


@pytest.mark.parametrize(
    "arguments",
    [("run", "demo", "--data", "x" * 300), ("report", "demo", "--out", "x" * 300)],
)
def test_a_folder_of_too_long_a_name_is_none(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "x" * 300 in capsys.readouterr().err

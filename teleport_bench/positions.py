"""Where every key of a TOML text stands: one pass, in time linear in the text whatever is in it."""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass, field

Loc = tuple[str | int, ...]
"""The path of a setting: keys, and positions in lists and arrays of tables."""

DEEPEST = 20
"""Tables and lists inside each other; a suite needs six."""

MOST_DIGITS = 100
"""Characters of a number; Python itself gives up, without a word on where, at 4,300."""

TOO_DEEP = f"tables or lists inside each other more than {DEEPEST} deep: leave the inner ones out"

BARE = re.compile(r"[A-Za-z0-9_-]+")
SPACE = re.compile(r"[ \t]*")
GAP = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
SCALAR = re.compile(r"[^,\]}\n#]*")
LINE = re.compile(r"[^\n]*")
STOPS = {
    '"""': re.compile(r'\\.|"""', re.DOTALL),
    "'''": re.compile(r"'''"),
    '"': re.compile(r'\\.|"|\n', re.DOTALL),
    "'": re.compile(r"'|\n"),
}
"""By the quotes that begin a string: what ends it, or stands for a character in it."""


@dataclass
class Positions:
    """Line numbers, from 1, of what a text gives. Of a text that is no TOML, of some of it."""

    given: dict[Loc, int] = field(default_factory=dict)
    """Keys, headers and elements of lists as they stand there."""
    implied: dict[Loc, int] = field(default_factory=dict)
    """Tables that no header opens: `a` and `a.b` of the line `a.b.c = 1`."""
    fault: tuple[int, str] | None = None
    """Line and message of what is too deep or too long to be read any further."""

    @classmethod
    @functools.lru_cache(maxsize=2)
    def of(cls, text: str) -> Positions:
        """Not to be changed: a text that is asked for again gives the same object."""
        positions = cls()
        try:
            _Pass(text, positions).run()
        except _FaultError as fault:
            positions.fault = fault.args
        return positions


class _FaultError(Exception):
    """Line and message."""


class _Pass:
    """One pass over a text. Every method goes forward from `at`; none looks back."""

    def __init__(self, text: str, found: Positions) -> None:
        self.text, self.found = text, found
        self.at = 0
        self._line, self._counted = 1, 0
        self._tables: dict[Loc, int] = {}
        """Of every array of tables, the position of its last table."""

    def run(self) -> None:
        header: Loc = ()
        while True:
            self._skip(GAP)
            if self.at >= len(self.text):
                return
            if self.text[self.at] == "[":
                header = self._header()
            elif (key := self._key()) and self._next() == "=":
                self.at += 1
                self._note(header, key)
                self._value((*header, *key))
            else:  # no TOML
                self._skip(LINE)

    def _header(self) -> Loc:
        """The table that `[a.b]` or `[[a.b]]` opens."""
        array = self.text.startswith("[[", self.at)
        self.at += 1 + array
        loc: Loc = ()
        key, number = self._key(), self._number()
        for depth, part in enumerate(key, start=1):
            loc = (*loc, part)
            last = depth == len(key)
            (self.found.given if last else self.found.implied).setdefault(loc, number)
            if array and last:
                self._tables[loc] = self._tables.get(loc, -1) + 1
            if loc in self._tables:
                loc = (*loc, self._tables[loc])
        if array and key:
            self.found.given[loc] = number
        self._skip(SPACE)
        while self.text.startswith("]", self.at):
            self.at += 1
        return loc

    def _value(self, loc: Loc) -> None:
        """Pass a value, noting keys and elements inside it. loc: whose value it is."""
        inside: list[tuple[str, Loc]] = []  # what closes each list or table, and whose it is
        sizes: list[int] = []
        while True:
            self._skip(GAP if inside else SPACE)
            if (opening := self.text[self.at : self.at + 1]) in ("[", "{"):
                inside.append(("]" if opening == "[" else "}", loc))
                sizes.append(0)
                self.at += 1
                if len(inside) > DEEPEST:
                    raise _FaultError(self._number(), TOO_DEEP)
            else:
                self._scalar()
            while True:  # to the next value
                if not inside:
                    return
                closing, outer = inside[-1]
                self._skip(GAP)
                following = self.text[self.at : self.at + 1]
                if not following:
                    return
                if following in (closing, ","):
                    self.at += 1
                    if following == closing:
                        inside.pop()
                        sizes.pop()
                elif closing == "]":
                    loc = (*outer, sizes[-1])
                    sizes[-1] += 1
                    self.found.given.setdefault(loc, self._number())
                    break
                elif (key := self._key()) and self._next() == "=":
                    self.at += 1
                    self._note(outer, key)
                    loc = (*outer, *key)
                    break
                else:  # no TOML
                    self.at += 1

    def _note(self, table: Loc, key: list[str]) -> None:
        number = self._number()
        for depth in range(1, len(key)):
            self.found.implied.setdefault((*table, *key[:depth]), number)
        self.found.given.setdefault((*table, *key), number)

    def _key(self) -> list[str]:
        """The parts of a dotted key; none where there is no key."""
        parts: list[str] = []
        while True:
            self._skip(SPACE)
            start = self.at
            if bare := BARE.match(self.text, start):
                self.at = bare.end()
                parts.append(bare[0])
            elif (quote := self.text[start : start + 1]) and quote in "\"'":
                self._string(quote)
                parts.append(_unquoted(self.text[start : self.at]))
            else:
                return parts
            if len(parts) > DEEPEST:
                raise _FaultError(self._number(), TOO_DEEP)
            if self._next() != ".":
                return parts
            self.at += 1

    def _scalar(self) -> None:
        """Pass a text, a number, a truth value or a date."""
        for quotes in STOPS:
            if self.text.startswith(quotes, self.at):
                self._string(quotes)
                return
        start = self.at
        self._skip(SCALAR)
        length = len(self.text[start : self.at].rstrip())
        if length > MOST_DIGITS:
            message = f"a value of {length:,} characters, expected a number of at most "
            raise _FaultError(self._number(), message + f"{MOST_DIGITS}, or a text in quotes")
        self.at = max(self.at, min(start + 1, len(self.text)))

    def _string(self, quotes: str) -> None:
        self.at += len(quotes)
        while stop := STOPS[quotes].search(self.text, self.at):
            self.at = stop.end()
            if not stop[0].startswith("\\"):
                break
        else:
            self.at = len(self.text)
        if len(quotes) == 3:  # up to two quotes more are the string's last characters
            for _ in range(2):
                self.at += self.text.startswith(quotes[0], self.at)

    def _next(self) -> str:
        self._skip(SPACE)
        return self.text[self.at : self.at + 1]

    def _skip(self, pattern: re.Pattern[str]) -> None:
        """Patterns here match anywhere, if only nothing, and so never try a second way."""
        found = pattern.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def _number(self) -> int:
        """The line of `at`."""
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line


def _unquoted(quoted: str) -> str:
    if quoted.startswith('"') and "\\" in quoted:
        try:
            return next(iter(tomllib.loads(f"{quoted} = 0")))
        except ValueError:  # no TOML
            pass
    return quoted[1:-1]

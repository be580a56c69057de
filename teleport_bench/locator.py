"""Where a setting stands in a suite file, for error messages."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

Loc = tuple[str | int, ...]
"""The path of a setting: keys, and positions in arrays of tables."""


@dataclass
class Locator:
    """Finds the place of a setting, for error messages: its line in a TOML file, or its --set."""

    name: str
    text: str
    overridden: dict[Loc, str] = field(default_factory=dict)
    """Settings that did not come from the file, and where they came from."""

    def explain(self, error: ValidationError, places: Callable[[Loc], list[Loc]]) -> str:
        """All mistakes, one a line, each with its place."""
        lines = []
        for problem in error.errors(include_url=False):
            loc: Loc = tuple(problem["loc"])
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "missing":
                message = "is missing"
            elif problem["type"] not in ("invalid", "value_error"):
                message = f"{message[0].lower()}{message[1:]}, got {brief(problem['input'])}"
            dotted = ".".join(map(str, loc)) or "suite"
            lines.append(self.best(places(loc), f"{dotted}: {message}"))
        return "\n".join(dict.fromkeys(lines))

    def best(self, candidates: Sequence[Loc], message: str) -> str:
        """The message at the candidate of which most of the path is given in the file."""
        known = self.places()

        def missing(place: Loc) -> float:
            if any("." in str(key) for key in place) and place not in known:
                return math.inf  # a dotted key is there as it stands, or not at all
            return min(len(place) - d for d in range(len(place) + 1) if not d or place[:d] in known)

        return self.at(min(candidates, key=missing), message)

    def at(self, place: Loc, message: str) -> str:
        """The message behind the file and the line of that setting, or of its nearest parent."""
        known = self.places()
        for depth in range(len(place), 0, -1):
            if place[:depth] in known:
                return f"{self.name}, {known[place[:depth]]}: {message}"
        return f"{self.name}: {message}"

    def places(self) -> dict[Loc, str]:
        """Where every setting is given: its line, or what overrides it."""
        lines: dict[Loc, str] = {}
        for key, number in self._keys():
            lines.setdefault(key, f"line {number}")
        return lines | self.overridden

    def _keys(self) -> Iterator[tuple[Loc, int]]:
        header: Loc = ()
        counts: dict[str, int] = {}
        for number, line in enumerate(self.text.splitlines(), start=1):
            if match := re.match(r"\s*\[\[\s*([^\]]+?)\s*\]\]", line):
                name = match[1]
                header = (name, counts.get(name, 0))
                counts[name] = header[1] + 1
                yield (name,), number
                yield header, number
            elif match := re.match(r"\s*\[\s*([^\]]+?)\s*\]", line):
                parts = _split(match[1])
                inside = counts.get(parts[0])
                header = (parts[0], inside - 1, *parts[1:]) if inside else tuple(parts)
                yield header, number
            elif match := re.match(r"\s*([\w.\"'-]+)\s*=(.*)", line):
                key = (*header, *_split(match[1]))
                yield key, number
                # keys of an inline table stand on the same line
                for inner in re.finditer(r"[{,]\s*([\w.\"-]+)\s*=", match[2]):
                    yield (*key, *_split(inner[1])), number


def brief(value: object) -> str:
    """A value as it is shown in a message: the start of it, where it is long."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}.."


MOST_SHOWN = 120


def _split(dotted: str) -> list[str]:
    if dotted.startswith(('"', "'")):
        return [dotted.strip("\"'")]
    return [part.strip().strip("\"'") for part in dotted.split(".")]

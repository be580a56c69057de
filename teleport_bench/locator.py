"""Where a setting stands in a suite file, for error messages."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from teleport_bench.positions import Loc, Positions


@dataclass
class Locator:
    """Finds the place of a setting, for error messages: its line in a TOML file, or its --set."""

    name: str
    text: str
    overridden: dict[Loc, str] = field(default_factory=dict)
    """Settings that did not come from the file, and where they came from."""

    def explain(self, error: ValidationError, places: Callable[[Loc], list[Loc]]) -> str:
        """All mistakes, or the first of very many, one a line, each with its place."""
        lines = []
        problems = error.errors(include_url=False)
        for problem in problems[:MOST_MISTAKES]:
            loc: Loc = tuple(problem["loc"])
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "missing":
                message = "is missing"
            elif problem["type"] not in ("invalid", "value_error"):
                message = f"{message[0].lower()}{message[1:]}, got {brief(problem['input'])}"
            dotted = ".".join(map(str, loc)) or "suite"
            lines.append(self.best(places(loc), f"{dotted}: {message}"))
        if len(problems) > MOST_MISTAKES:
            lines.append(f"and {len(problems) - MOST_MISTAKES:,} mistakes more")
        return "\n".join(dict.fromkeys(lines))

    def best(self, candidates: Sequence[Loc], message: str) -> str:
        """The message at the candidate of which most of the path is given in the file."""

        def missing(place: Loc) -> float:
            if any("." in str(key) for key in place) and not self._given(place):
                return math.inf  # a dotted key is there as it stands, or not at all
            known = (d for d in range(len(place), 0, -1) if self._given(place[:d]))
            return len(place) - next(known, 0)

        return self.at(min(candidates, key=missing), message)

    def at(self, place: Loc, message: str) -> str:
        """The message behind the file and the line of that setting, or of its nearest parent."""
        for depth in range(len(place), 0, -1):
            if there := self.place(place[:depth]):
                return f"{self.name}, {there}: {message}"
        return f"{self.name}: {message}"

    def place(self, place: Loc) -> str | None:
        """Where a setting is given: what overrides it, or its line; None where it is not."""
        if place in self.overridden:
            return self.overridden[place]
        number = self._positions.given.get(place) or self._positions.implied.get(place)
        return f"line {number}" if number else None

    def _given(self, place: Loc) -> bool:
        return self.place(place) is not None

    @functools.cached_property
    def _positions(self) -> Positions:
        return Positions.of(self.text)


def brief(value: object) -> str:
    """A value as it is shown in a message: the start of it, where it is long."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}.."


MOST_SHOWN = 120

MOST_MISTAKES = 20
"""Of one file that are told at a time."""

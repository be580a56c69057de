"""What a suite may hold, whoever wrote it: checked before any of it is used."""

from __future__ import annotations

import math
import re
import string
import tomllib
from collections.abc import Mapping
from typing import Any

from teleport_bench.errors import UserError
from teleport_bench.locator import Loc, Locator, brief

DEEPEST = 20
"""Tables and lists inside each other; a suite needs six."""

MOST_LABEL = 200
"""Characters of a label, before and after it is filled in."""

UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""No terminal, SVG or file is to get these."""

FIELD = re.compile(r"\w+(\[\w+\])*")
FORM = re.compile(r"[<>^]?[+ -]?0?\d{0,2},?(\.\d{1,2})?[bdeEfFgGoxX%s]?")


def parsed(text: str, name: str) -> dict[str, Any]:
    """The content of a TOML text; UserError naming where it comes from."""
    try:
        return tomllib.loads(text)
    except ValueError as error:  # of TOML, or of numbers with thousands of digits
        raise UserError(f"{name} is not TOML: {error}") from None
    except RecursionError:
        raise UserError(f"{name}: {TOO_DEEP}") from None


TOO_DEEP = f"tables or lists inside each other more than {DEEPEST} deep: leave the inner ones out"


def check_plain(source: Mapping[str, Any], where: Locator) -> None:
    """Refuses, at its place, dates; infinite numbers; texts with control characters; and what is
    nested too deep."""
    todo: list[tuple[Loc, Any]] = [((), source)]
    while todo:  # no recursion: the depth is what is checked
        place, value = todo.pop()
        if len(place) > DEEPEST:
            raise UserError(where.at(place[:DEEPEST], TOO_DEEP))
        if isinstance(value, Mapping):
            for key in value:
                _check_text(str(key), place, where)
            todo += [((*place, key), inner) for key, inner in value.items()]
        elif isinstance(value, list | tuple):
            todo += [((*place, i), inner) for i, inner in enumerate(value)]
        elif isinstance(value, str):
            _check_text(value, place, where)
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(
                where.at(place, f"{_dotted(place)}: expected a finite number, got {value}")
            )
        elif value is not None and not isinstance(value, bool | int | float):
            message = f"a suite has no dates or times, got {value}: write it as a text, in quotes"
            raise UserError(where.at(place, f"{_dotted(place)}: {message}"))


def _check_text(text: str, place: Loc, where: Locator) -> None:
    if UNPRINTABLE.search(text):
        message = f"{_dotted(place)}: control characters in {brief(text)}: leave them out"
        raise UserError(where.at(place, message))


def _dotted(place: Loc) -> str:
    return ".".join(map(str, place)) or "suite"


def filled(template: str, settings: Mapping[str, Any]) -> str:
    """A label with `{key}` and `{key[option]}` replaced by settings, with a width or a precision of
    at most 99, and nothing else of what `str.format` can do.

    Raises what `str.format` raises for a setting that is not there or has another type.
    """
    if len(template) > MOST_LABEL:
        raise ValueError(f"more than {MOST_LABEL} characters")
    for _, field, form, conversion in string.Formatter().parse(template):
        if field is not None and not (FIELD.fullmatch(field) and FORM.fullmatch(form or "")):
            raise ValueError(f"{{{field}:{form}}}" if form else f"{{{field}}}")
        if conversion:
            raise ValueError(f"{{{field}!{conversion}}}")
    label = template.format(**settings)
    if len(label) > MOST_LABEL or not label.strip() or len(label.splitlines()) > 1:
        raise ValueError(f"expected one line of at most {MOST_LABEL} characters")
    return label

"""What a suite may hold, whoever wrote it: checked before any of it is used."""

from __future__ import annotations

import math
import re
import stat
import string
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from teleport_bench.errors import UserError
from teleport_bench.locator import Locator, brief
from teleport_bench.positions import DEEPEST, MOST_DIGITS, TOO_DEEP, Loc, Positions

MOST_BYTES = 2**17
"""Of a suite file; the longest of the package has 4,000."""

MOST_LABEL = 200
"""Characters of a label, before and after it is filled in."""

RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Devices of Windows, whatever ending their name has."""

MOST_NAME = 200
"""Bytes of a file's name, to which endings are added."""

UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""No terminal, SVG or file is to get these."""

FIELD = re.compile(r"\w+(\[\w+\])*")
FORM = re.compile(r"[<>^]?[+ -]?0?\d{0,2},?(\.\d{1,2})?[bdeEfFgGoxX%s]?")


def read(path: Path) -> str:
    """The text of a suite file; UserError where it is none, or none of UTF-8, or too long."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe might never end
            what = "Is a directory" if path.is_dir() else "it is no regular file"
            raise UserError(f"cannot read suite {path}: {what}; give the path of a .toml file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # not there, or no name of a file
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read suite {path}: {reason}") from error
    if len(content) > MOST_BYTES:
        raise UserError(
            f"cannot read suite {path}: it has more than {MOST_BYTES:,} bytes, the most that a "
            "suite may have: cut it into several"
        )
    try:
        text = content.decode("utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise UserError(
            f"cannot read suite {path}: {error.reason} at byte {error.start}: save it as UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parsed(text: str, name: str) -> dict[str, Any]:
    """The content of a TOML text; UserError naming where it comes from."""
    if fault := Positions.of(text).fault:  # before tomllib spends minutes on it
        raise UserError(f"{name}, line {fault[0]}: {fault[1]}")
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise UserError(f"{name} is not TOML: {error}") from None
    except RecursionError:
        raise UserError(f"{name}: {TOO_DEEP}") from None


def check_plain(source: Mapping[str, Any], where: Locator) -> None:
    """Refuses, at its place, dates; infinite numbers and very long ones; texts with control
    characters; and what is nested too deep."""
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
        elif isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
            message = f"expected a number of at most {MOST_DIGITS} digits"
            raise UserError(where.at(place, f"{_dotted(place)}: {message}"))
        elif value is not None and not isinstance(value, bool | int | float):
            message = f"a suite has no dates or times, got {value}: write it as a text, in quotes"
            raise UserError(where.at(place, f"{_dotted(place)}: {message}"))


def check_name(name: str) -> str:
    """The name of a file or folder to be written; UserError where some system has no such file."""
    if not name.strip(". "):
        why = "it is empty, or of dots and spaces alone"
    elif name != name.strip(" ").rstrip("."):
        why = "it begins or ends with a space, or ends with a dot"
    elif RESERVED.fullmatch(name):
        why = "Windows has a device of that name"
    elif not name.isprintable() or len(name.encode("utf-8", "replace")) > MOST_NAME:
        why = f"it has control characters, or more than {MOST_NAME} bytes"
    else:
        return name
    raise UserError(f"{brief(name)} is no name of a file everywhere ({why}): take another name")


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

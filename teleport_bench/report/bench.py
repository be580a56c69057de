"""What the reports of benchmarks share: pytest-benchmark's files, and the machine they are of."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from teleport_bench.errors import UserError
from teleport_bench.report.tables import Table, plain
from teleport_bench.untrusted import UNPRINTABLE

SPREAD = 0.5
"""Samples of which the slowest takes this much longer than the fastest, each over what was timed
beside it, are marked: the machine was not quiet."""


MOST_BYTES = 2**28
"""Of a file: those of a full run take less than a MiB."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Sample(BaseModel):
    """What a report takes of a benchmark (its extra_info), which may hold more.

    A ratio of times has a field of its own and one with its range, as `times_copy_range`.
    """

    model_config = ConfigDict(strict=True, extra="allow")

    @model_validator(mode="after")
    def _within_ranges(self) -> Self:
        facts = self.model_dump()
        for name, ends in facts.items():
            value = facts.get(name.removesuffix("_range"))
            if not name.endswith("_range") or value is None or ends is None:
                continue
            numbers = isinstance(ends, list) and len(ends) == 2 and all(map(is_number, ends))
            if not numbers or not is_number(value) or not 0 < ends[0] <= value <= ends[1]:
                raise ValueError(
                    f"{name} is to be two positive numbers around {value!r}, got {ends!r:.80}"
                )
        return self


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def load(
    paths: Sequence[Path],
    source: str,
    kind: Callable[[Mapping[str, Any]], type[Sample]],
    key: Sequence[str],
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """One row a benchmark, and what pytest-benchmark says of the machine.

    source: the benchmarks' file in suites/bench; kind: what a benchmark's facts are to be, by
    these; key: those that name a case, which is there once. Raises UserError for anything else.
    """
    rows: list[dict[str, Any]] = []
    machines: dict[str, dict[str, Any]] = {}
    cases: dict[tuple[str, ...], Path] = {}
    for path in paths:
        machine, entries = _read(path, source)
        machines.setdefault(machine_line(machine), machine)
        for facts in entries:
            _check(facts, kind, path)
            case = tuple(str(facts.get(name)) for name in key)
            if case in cases:
                names = ", ".join(part for part in case if part not in ("None", "-"))
                files = f"twice in {path}" if cases[case] == path else f"{cases[case]} and {path}"
                raise UserError(
                    f"{names} is there more than once: {files}; give each case once, so leave out "
                    "a file, or draw them into folders of their own with --out"
                )
            cases[case] = path
            rows.append(facts)
    if len(machines) > 1:
        folders = {machine_name(machine) for machine in machines.values()}
        found = folders if len(folders) > 1 else set(machines)
        raise UserError(f"one table is of one machine, got files of {', '.join(sorted(found))}")
    if not rows:
        raise UserError(f"{paths[0]} holds benchmarks of other files than {source}, or none at all")
    return pd.DataFrame(rows), next(iter(machines.values()))


def _read(path: Path, source: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(machine_info, the extra_info of each benchmark) of a file."""
    try:
        return _parsed(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(
            f"{path} is not what `pytest suites/bench/{source} --benchmark-json={path}` "
            f"writes ({type(e).__name__}: {str(e)[:200]})"
        ) from None


def _parsed(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    if not path.is_file():
        raise FileNotFoundError("no such file")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES >> 20} MiB")
    content = json.loads(path.read_text("utf-8-sig"), parse_constant=_no_constant)
    machine = content["machine_info"]
    entries = [entry["extra_info"] for entry in content["benchmarks"]]
    if not all(isinstance(entry, dict) for entry in entries):
        raise TypeError("extra_info is to be a table")
    if UNPRINTABLE.search(machine_name(machine) + machine_line(machine)):
        raise ValueError("control characters in what it says of the machine")
    return machine, entries


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number that was measured")


def _check(
    facts: Mapping[str, Any], kind: Callable[[Mapping[str, Any]], type[Sample]], path: Path
) -> None:
    try:
        kind(facts).model_validate(facts)
    except UserError as error:
        raise UserError(f"{path} holds {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        of = "-".join(str(facts[name]) for name in ("op", "model", "who") if name in facts)
        what = ": ".join([f"{path}, {of:.80}", *map(str, first["loc"]), first["msg"]])
        got = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r:.80}"
        raise UserError(
            f"{what}{got}; give files as the benchmarks of this version wrote them"
        ) from None


def machine_name(machine: Mapping[str, Any]) -> str:
    """A name for a folder: the device that was measured."""
    cpu = machine.get("cpu", {}).get("brand_raw", machine.get("machine", "machine"))
    name = machine.get("gpu") or f"{cpu} {machine.get('threads', '')} threads"
    return re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-")[:100] or "machine"


def of_inputs(paths: Sequence[Path], files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The samples beside their report, each file under a name of its own."""
    kept: dict[str, bytes] = {}
    taken = {name.lower() for name in files}
    for path in paths:
        names = (f"{path.stem}{f'-{i}' if i > 1 else ''}.json" for i in itertools.count(1))
        name = next(name for name in names if name.lower() not in taken)
        taken.add(name.lower())
        kept[name] = path.read_bytes()
    return kept


def machine_line(machine: Mapping[str, Any]) -> str:
    cpu = machine.get("cpu", {}).get("brand_raw", "unknown processor")
    device = machine.get("gpu") or f"{cpu}, {machine.get('threads')} threads"
    return f"{device}; torch {machine.get('torch')}"


def marked(value: float, spread: Sequence[float], form: str) -> str:
    """The value, with a ~ where its samples differ too much."""
    return ("~" if spread[1] > (1 + SPREAD) * spread[0] else "") + form.format(value)


def files_of(frame: pd.DataFrame, tables: Sequence[Table]) -> dict[str, bytes]:
    """All cases as CSV, and the tables, by path."""
    files = {"benchmark.csv": frame.map(plain).to_csv(index=False).encode()}
    for table in tables:
        files[f"tables/{table.name}.md"] = table.markdown().encode()
        files[f"tables/{table.name}.tex"] = table.latex().encode()
    return files

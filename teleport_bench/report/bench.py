"""What the reports of benchmarks share: pytest-benchmark's files, and the machine they are of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from teleport_bench.errors import UserError
from teleport_bench.report.tables import Table

SPREAD = 0.5
"""Samples of which the slowest takes this much longer than the fastest, each over what was timed
beside it, are marked: the machine was not quiet."""


def load(
    paths: Sequence[Path], source: str, needed: set[str]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """One row a benchmark, and what pytest-benchmark says of the machine.

    source: the benchmarks' file in suites/bench; needed: columns that only its results have.
    """
    rows: list[dict[str, Any]] = []
    machines: list[dict[str, Any]] = []
    for path in paths:
        try:
            content = json.loads(path.read_text())
            rows += [entry["extra_info"] for entry in content["benchmarks"]]
            machines.append(content["machine_info"])
            names = {machine_name(machine) for machine in machines}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
            raise UserError(
                f"{path} is not what `pytest suites/bench/{source} --benchmark-json={path}` "
                f"writes ({type(e).__name__}: {e})"
            ) from None
    if len(names) > 1:
        raise UserError(f"one table is of one machine, got files of {', '.join(sorted(names))}")
    frame = pd.DataFrame(rows)
    if not needed <= set(frame.columns) or frame[sorted(needed)].isna().any(axis=None):
        raise UserError(f"{path} holds benchmarks of other files than {source}")
    return frame, machines[0]


def machine_name(machine: Mapping[str, Any]) -> str:
    """A name for a folder: the device that was measured."""
    cpu = machine.get("cpu", {}).get("brand_raw", machine.get("machine", "machine"))
    name = machine.get("gpu") or f"{cpu} {machine.get('threads', '')} threads"
    return re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-")


def machine_line(machine: Mapping[str, Any]) -> str:
    cpu = machine.get("cpu", {}).get("brand_raw", "unknown processor")
    device = machine.get("gpu") or f"{cpu}, {machine.get('threads')} threads"
    return f"{device}; torch {machine.get('torch')}"


def marked(value: float, spread: Sequence[float], form: str) -> str:
    """The value, with a ~ where its samples differ too much."""
    return ("~" if spread[1] > (1 + SPREAD) * spread[0] else "") + form.format(value)


def files_of(frame: pd.DataFrame, tables: Sequence[Table]) -> dict[str, bytes]:
    """All cases as CSV, and the tables, by path."""
    files = {"benchmark.csv": frame.to_csv(index=False).encode()}
    for table in tables:
        files[f"tables/{table.name}.md"] = table.markdown().encode()
        files[f"tables/{table.name}.tex"] = table.latex().encode()
    return files

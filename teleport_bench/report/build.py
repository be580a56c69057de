"""From records to files: build in memory, then write or compare."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teleport_bench.errors import UserError
from teleport_bench.locator import brief
from teleport_bench.record import Record, Records, Store
from teleport_bench.record.store import SUITE_FILE, refuse_link, write_atomically, writing
from teleport_bench.report import claims
from teleport_bench.report.frame import Frame, frame, unlike
from teleport_bench.report.tables import Table, build_table, cost_table, tuning_table
from teleport_bench.suite import Scale, Suite, find, from_json, to_json
from teleport_bench.tune import decided

if TYPE_CHECKING:
    from teleport_bench.report.figures import Drawing


def open_report(folder: Path) -> tuple[Suite, Records]:
    """The suite that was run into a folder, and the records that are there."""
    path = folder / SUITE_FILE
    refuse_link(path)
    if not os.path.isfile(path):  # noqa: PTH113 - pathlib raises for a name too long
        raise UserError(f"{folder} holds no results: run the suite first, or name its --out folder")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): run the suite again") from None
    suite = from_json(text, str(path))
    return suite, load_records(suite, Store(folder))


def load_records(suite: Suite, store: Store) -> Records:
    """The records of the suite's runs that are on disk, by run id."""
    refuse_link(store.runs)
    records = Records(store.faults)
    alone = suite.exhaustive
    for run in [*suite.tuning, *(alone.tuning if alone else ())]:
        if record := store.load(run.spec):
            records[record.id] = record
    for run in decided(suite, records):
        if record := store.load(run.spec):
            records[record.id] = record
    return records


def build(suite: Suite, records: Mapping[str, Record]) -> tuple[list[Table], dict[str, bytes]]:
    """The tables, that of the claims last, and the content of every file of the report by path.

    Where the suite was run at another scale than its own, every table and figure says so.
    """
    from teleport_bench.report import figures, page, profile, search, theory  # load matplotlib

    data: Frame = frame(suite, records)
    tuned = [table for table in (tuning_table(data), cost_table(data)) if table]
    tables = [build_table(data, spec) for spec in suite.spec.table] + tuned
    drawings = [
        figures.Drawing(spec.name, spec.caption or spec.name, figures.draw(data, spec), spec)
        for spec in suite.spec.figure
    ]
    for item in suite.spec.profile:
        found_costs = profile.profile(data, item)
        tables.append(profile.table(found_costs))
        drawings.append(profile.drawing(data, found_costs))
    files: dict[str, bytes] = {}
    if suite.spec.theory:
        measured = theory.measured(data)
        of_theory, best_k = theory.report(suite.spec.theory, measured, suite.scale_note)
        tables += of_theory
        drawings.append(best_k)
    if found := search.find(suite, records):
        tables.append(search.table(suite, found))
        drawings.append(search.drawing(suite, found))
        files["search.json"] = search.to_json(found).encode()
    verdicts = [claims.judge(data, each) for claim in suite.spec.claim for each in claim.each]
    details = [claims.case_table(verdict) for verdict in verdicts]
    tables += [table for v in verdicts if (table := claims.network_table(v))]
    if verdicts:
        tables.append(claims.claims_table(verdicts))
        tables[-1].notes.extend(unlike(data))
        files[claims.CLAIMS_FILE] = claims.to_json(data, verdicts).encode()
    if suite.scale_note:
        for table in [*tables, *details]:
            table.notes.append(suite.scale_note)
    files |= of_tables([*tables, *details])
    files |= of_drawings(drawings)
    pairs = list(zip(verdicts, details, strict=True))
    files[PAGE] = page.render(data, tables, drawings, pairs).encode()
    return tables, files


def of_tables(tables: Sequence[Table]) -> dict[str, bytes]:
    """The files of tables by path."""
    files: dict[str, bytes] = {}
    for table in tables:
        files[f"tables/{table.name}.md"] = table.markdown().encode()
        files[f"tables/{table.name}.csv"] = table.csv().encode()
        files[f"tables/{table.name}.tex"] = table.latex().encode()
    return files


def of_drawings(drawings: Sequence[Drawing]) -> dict[str, bytes]:
    """The files of figures by path."""
    return {
        f"figures/{drawing.name}.{form}": content
        for drawing in drawings
        for form, content in drawing.forms.items()
    }


PAGE = "index.html"
_LINKED = re.compile(
    r'href="((?:tables/[\w-]+\.(?:md|csv|tex))|(?:figures/[\w-]+\.(?:svg|png|csv)))"'
)
_ALONE = ("search.json", claims.CLAIMS_FILE)


def earlier(folder: Path) -> set[str]:
    """The files that an earlier report wrote into the folder: those that its page links."""
    path = folder / PAGE
    try:
        text = "" if path.is_symlink() else path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    return {*_LINKED.findall(text), *_ALONE}


def write(folder: Path, files: Mapping[str, bytes], old: Iterable[str] = ()) -> list[str]:
    """Write every file, each whole or not at all, and remove old ones that are not among them.

    Returns the names of those that were removed. UserError where writing is not possible.
    """
    removed = []
    with writing(folder):
        for name, content in files.items():
            if name != PAGE:  # until it is written, it names what is to be removed
                _write(folder, name, content)
        for name in sorted(set(old) - files.keys()):
            path = folder / name
            refuse_link(path.parent)
            if path.is_file() and not path.is_symlink():
                path.unlink()
                removed.append(name)
        if PAGE in files:
            _write(folder, PAGE, files[PAGE])
    return removed


def _write(folder: Path, name: str, content: bytes) -> None:
    path = folder / name
    if path.parent != folder:
        refuse_link(path.parent)
    write_atomically(path, content)


def check(folder: Path, files: Mapping[str, bytes]) -> list[str]:
    """The files on disk that are not what the records give, byte for byte, and those that look like
    a report's and are no part of it."""
    wrong = []
    for name, content in files.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name}: is not there")
        elif path.read_bytes() != content:
            wrong.append(f"{name}: differs")
    kinds = {"tables": (".md", ".csv", ".tex"), "figures": (".svg", ".png", ".csv")}
    there = {
        f"{kind}/{path.name}"
        for kind, suffixes in kinds.items()
        for path in (folder / kind).glob("*")
        if path.suffix in suffixes and not path.name.startswith(".")
    }
    there |= {name for name in _ALONE if (folder / name).is_file()}
    return [
        *wrong,
        *(f"{name}: is no part of this report: remove it" for name in sorted(there - files.keys())),
    ]


NOT_OF_RUNS = (
    *("title", "about", "duration", "small", "scale_note"),
    *("table", "figure", "claim", "profile", "network", "theory"),
)
"""The keys of a suite that say how its runs are shown, or nothing that a report takes."""


def as_in_file(stored: Suite, name: str, scale: Scale) -> Suite:
    """The suite that was run, with the tables, figures, claims and texts that its file has today.

    UserError where the file's runs are others. The suite itself where there is no file any more.
    """
    try:
        path = find(name)
    except UserError:
        return stored
    if not path.is_file():
        return stored
    today = Suite.load(name, stored.overrides, scale)
    unseen = ("duration", "small")  # what a run may take is no part of what it gave
    was, now = ({k: v for k, v in s.source.items() if k not in unseen} for s in (stored, today))
    if was == now:
        return stored
    if run_ids(stored) != run_ids(today):
        raise UserError(
            f"{path} has changed since it was run: {differences(stored.source, today.source)}; "
            "`run` makes the runs that are not there, and their report"
        )
    return from_json(to_json(today))  # in the order that it has from then on


def run_ids(suite: Suite) -> set[str]:
    return {run.spec.id for run in suite.all_runs()}


def differences(was: Any, now: Any, most: int = 3) -> str:
    """`run.lr was 0.1 and is 0.2`: where the runs of two suites differ, by their parsed files."""
    old, new = (_leaves({k: v for k, v in s.items() if k not in NOT_OF_RUNS}) for s in (was, now))
    found = []
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) != new.get(key):
            texts = [brief(side[key]) if key in side else "not there" for side in (old, new)]
            found.append(f"{key} was {texts[0]} and is {texts[1]}")
    more = [f"and {len(found) - most} more"] if len(found) > most else []
    return "; ".join([*found[:most], *more])


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested tables, and of lists of tables, by dotted key."""
    inner: Iterable[tuple[Any, Any]]
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        inner = enumerate(value)
    else:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, one in inner:
        found |= _leaves(one, f"{prefix}.{key}" if prefix else str(key))
    return found

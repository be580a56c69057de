"""From records to files: build in memory, then write or compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from teleport_bench.errors import UserError
from teleport_bench.record import Record, Store
from teleport_bench.record.store import SUITE_FILE, refuse_link, write_atomically, writing
from teleport_bench.report import claims
from teleport_bench.report.frame import Frame, frame, unlike
from teleport_bench.report.tables import Table, build_table, cost_table, tuning_table
from teleport_bench.suite import Suite, from_json
from teleport_bench.tune import decided

if TYPE_CHECKING:
    from teleport_bench.report.figures import Drawing


def open_report(folder: Path) -> tuple[Suite, dict[str, Record]]:
    """The suite that was run into a folder, and the records that are there."""
    path = folder / SUITE_FILE
    refuse_link(path)
    if not path.is_file():
        raise UserError(f"{folder} holds no results: run the suite first, or name its --out folder")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): run the suite again") from None
    suite = from_json(text, str(path))
    return suite, load_records(suite, Store(folder))


def load_records(suite: Suite, store: Store) -> dict[str, Record]:
    """The records of the suite's runs that are on disk, by run id."""
    records: dict[str, Record] = {}
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
    files["index.html"] = page.render(data, tables, drawings, pairs).encode()
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


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write every file, each whole or not at all; UserError where that is not possible."""
    with writing(folder):
        for name, content in files.items():
            path = folder / name
            if path.parent != folder:
                refuse_link(path.parent)
            write_atomically(path, content)


def check(folder: Path, files: Mapping[str, bytes]) -> list[str]:
    """The files on disk that are not what the records give, byte for byte."""
    wrong = []
    for name, content in files.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name}: is not there")
        elif path.read_bytes() != content:
            wrong.append(f"{name}: differs")
    return wrong

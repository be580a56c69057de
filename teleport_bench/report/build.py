"""From records to files: build in memory, then write or compare."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from teleport_bench.errors import UserError
from teleport_bench.record import Record, Store
from teleport_bench.record.store import SUITE_FILE, write_atomically
from teleport_bench.report import claims
from teleport_bench.report.frame import Frame, frame
from teleport_bench.report.tables import Table, build_table, tuning_table
from teleport_bench.suite import Suite, from_json
from teleport_bench.tune import chosen


def open_report(folder: Path) -> tuple[Suite, dict[str, Record]]:
    """The suite that was run into a folder, and the records that are there."""
    path = folder / SUITE_FILE
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no results: run the suite first, or name its --out folder"
        ) from None
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
    for run in suite.reported(chosen(suite, records)):
        if record := store.load(run.spec):
            records[record.id] = record
    return records


def build(suite: Suite, records: Mapping[str, Record]) -> tuple[list[Table], dict[str, bytes]]:
    """The tables, that of the claims last, and the content of every file of the report by path."""
    from teleport_bench.report import figures, page, search  # load seaborn and matplotlib

    data: Frame = frame(suite, records)
    tuned = tuning_table(data)
    tables = [build_table(data, spec) for spec in suite.spec.table] + ([tuned] if tuned else [])
    files: dict[str, bytes] = {}
    found = search.find(suite, records)
    if found:
        tables.append(search.table(suite, found))
        files["search.json"] = search.to_json(found).encode()
    verdicts = [claims.judge(data, claim) for claim in suite.spec.claim]
    details = [claims.case_table(data, verdict) for verdict in verdicts]
    if verdicts:
        tables.append(claims.claims_table(data, verdicts))
    for table in [*tables, *details]:
        files[f"tables/{table.name}.md"] = table.markdown().encode()
        files[f"tables/{table.name}.csv"] = table.csv().encode()
        files[f"tables/{table.name}.tex"] = table.latex().encode()
    if found:
        files |= {f"figures/search.{k}": v for k, v in search.draw(suite, found).items()}
    drawn: dict[str, bytes] = {}
    for spec in suite.spec.figure:
        forms = figures.draw(data, spec)
        drawn[spec.name] = forms["svg"]
        for form, content in forms.items():
            files[f"figures/{spec.name}.{form}"] = content
    pairs = list(zip(verdicts, details, strict=True))
    if verdicts:
        files[claims.CLAIMS_FILE] = claims.to_json(data, verdicts).encode()
    files["index.html"] = page.render(data, tables, drawn, pairs).encode()
    return tables, files


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write every file, each whole or not at all."""
    for name, content in files.items():
        write_atomically(folder / name, content)


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

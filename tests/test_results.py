"""The committed results are what their records give, by today's code."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from teleport_bench.report.build import build, check, open_report
from teleport_bench.suite import Suite

RESULTS = Path(__file__).parents[1] / "results"
SUITES = sorted(p.parent.relative_to(RESULTS).as_posix() for p in RESULTS.rglob("suite.json"))


def test_there_are_results() -> None:
    assert "demo" in SUITES


@pytest.mark.parametrize("name", SUITES)
def test_every_run_of_the_suite_as_it_is_today_has_a_committed_record(name: str) -> None:
    suite, records = open_report(RESULTS / name)
    assert [run.spec.id for run in Suite.load(name).all_runs()] == [
        run.spec.id for run in suite.all_runs()
    ]
    assert len(records) == len(suite.all_runs())
    assert {record.status for record in records.values()} == {"finished"}
    assert not any(record.made.code["dirty"] for record in records.values())


@pytest.mark.parametrize("name", SUITES)
def test_tables_figures_and_page_are_what_the_records_give(name: str) -> None:
    suite, records = open_report(RESULTS / name)
    made_with = {
        (package, record.made.environment["packages"][package])
        for record in records.values()
        for package in ("matplotlib", "seaborn", "pandas")
    }
    if made_with != {(package, version(package)) for package, _ in made_with}:
        pytest.skip("plotting libraries of other versions than the records' draw other bytes")
    _, files = build(suite, records)
    assert check(RESULTS / name, files) == []


@pytest.mark.parametrize("name", SUITES)
def test_the_results_of_a_suite_stay_small(name: str) -> None:
    size = sum(p.stat().st_size for p in (RESULTS / name).rglob("*") if p.is_file())
    assert size < 5_000_000

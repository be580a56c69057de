"""The committed results are what their records give, by today's code."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from teleport_bench.report.build import build, check, open_report
from teleport_bench.suite import Suite
from teleport_bench.tune import decided

RESULTS = Path(__file__).parents[1] / "results"
SUITES = sorted(p.parent.relative_to(RESULTS).as_posix() for p in RESULTS.rglob("suite.json"))
LARGE = ("paper/fig2", "evidence/fig2_spectrum")  # more than 10,000 records
CHECKED = [pytest.param(s, marks=[pytest.mark.slow] if s in LARGE else []) for s in SUITES]


def test_there_are_results() -> None:
    assert {"demo", "paper/fig2-small", "paper/table1"} <= set(SUITES)


@pytest.mark.parametrize("name", CHECKED)
def test_every_run_of_the_suite_as_it_is_today_has_a_committed_record(name: str) -> None:
    suite, records = open_report(RESULTS / name)
    today = Suite.load(name.removesuffix("-small"), scale="small" if suite.scale_note else "full")
    assert today.name == suite.name == name
    # suite.json sorts the keys of grids
    assert {run.spec.id for run in today.all_runs()} == {run.spec.id for run in suite.all_runs()}
    tuned = {run.spec.id for run in suite.tuning}
    reported = {run.spec.id for run in decided(suite, records)}
    assert set(records) == tuned | reported
    assert len({(run.cell, run.spec.seed) for run in suite.planned()}) == len(suite.planned())
    states = {key: record.status for key, record in records.items()}
    assert {states[key] for key in reported} <= {"finished", "diverged"}
    assert {states[key] for key in tuned} <= {"finished", "diverged"}
    assert not any(record.made.code["dirty"] for record in records.values())


@pytest.mark.parametrize("name", CHECKED)
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
    assert size < 10_000_000

"""The benchmarks of whole rounds, and their report."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from teleport_bench import native
from teleport_bench.report import rounds

ROOT = Path(__file__).parents[1]
MACHINES = sorted((ROOT / "results" / "rounds").glob("*/benchmark.json"))
pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, bench: Callable[..., Any]) -> Path:
    """A folder with the report of a small run, in which all results were compared."""
    folder = tmp_path_factory.mktemp("rounds")
    done = bench("rounds", "--scale", "small", "--device", "cpu", "--out", folder)
    assert done.code == 0, done.err
    for caption in (
        "Node-updates a second",
        "what a round of few rows costs",
        "one by one",
        "over one of",
    ):
        assert caption in done.out
    (place,) = (folder / "rounds").iterdir()
    return place


def test_a_run_leaves_tables_a_figure_and_all_samples(measured: Path) -> None:
    names = {p.relative_to(measured).as_posix() for p in measured.rglob("*") if p.is_file()}
    tables = {
        f"tables/{name}.{form}"
        for name in ("updates", "few-tokens", "fleets", "algorithms")
        for form in ("md", "tex")
    }
    figures = {"figures/updates.svg", "figures/updates.png"}
    assert names == tables | figures | {"benchmark.csv", "benchmark.json"}
    content = json.loads((measured / "benchmark.json").read_text())
    facts = [entry["extra_info"] for entry in content["benchmarks"]]
    assert {f["who"] for f in facts if f["kind"] == "rounds"} == set(rounds.WHO)
    for f in facts:
        assert f["updates_per_second"] > 0
        assert f["operations"] > 0
        assert f["times_floor"] > 0
        assert ("times_ours" in f) == (f["who"] not in ("compiled", "fleet"))


def test_the_same_samples_are_drawn_again_byte_for_byte(
    measured: Path, tmp_path: Path, bench: Callable[..., Any]
) -> None:
    done = bench("rounds", "--json", measured / "benchmark.json", "--out", tmp_path)
    assert done.code == 0, done.err
    again = tmp_path / "rounds" / measured.name
    for path in (p for p in measured.rglob("*") if p.is_file()):
        assert (again / path.relative_to(measured)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("key", "value"), [("who", "loop"), ("kind", "fleet"), ("kind", "algorithm"), ("model", "mlp")]
)
def test_what_is_there_of_a_run_that_was_cut_short_is_drawn(
    measured: Path, tmp_path: Path, bench: Callable[..., Any], key: str, value: str
) -> None:
    content = json.loads((measured / "benchmark.json").read_text())
    kept = [entry for entry in content["benchmarks"] if entry["extra_info"][key] == value]
    assert kept
    (tmp_path / "part.json").write_text(json.dumps(content | {"benchmarks": kept}))
    done = bench("rounds", "--json", tmp_path / "part.json", "--out", tmp_path)
    assert done.code == 0, done.err


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.parent.name)
def test_committed_tables_and_figures_are_what_the_samples_give(path: Path) -> None:
    frame, machine = rounds.load([path])
    assert rounds.machine_name(machine) == path.parent.name
    _, files = rounds.build(frame, machine)
    pinned = "matplotlib==" + version("matplotlib") in (ROOT / "constraints.txt").read_text()
    for name, content in files.items():
        if pinned or not name.startswith("figures/"):
            assert (path.parent / name).read_bytes() == content, name


def test_there_are_committed_samples() -> None:
    assert MACHINES


def test_samples_of_the_kernels_are_refused(tmp_path: Path, bench: Callable[..., Any]) -> None:
    (path,) = (ROOT / "results" / "kernels").glob("*/benchmark.json")
    done = bench("rounds", "--json", path, "--out", tmp_path)
    assert done.code == 2
    assert "benchmarks of other files than test_rounds.py" in done.err


def case(**facts: Any) -> dict[str, Any]:
    shared = {"model": "mlp", "method": "dsgd", "nodes": 16, "kind": "rounds"}
    rates = {"matmul_gflop_per_s": 100.0, "copy_gb_per_s": 50.0, "floor_updates_per_second": 9e5}
    return {
        "extra_info": shared | rates | {"times_floor": 3.0, "times_floor_range": [2, 4]} | facts
    }


def test_tables_say_what_the_samples_say(tmp_path: Path, bench: Callable[..., Any]) -> None:
    loop = {"times_ours": 123.45, "times_ours_range": [120.0, 130.0]}
    vmap = {"times_ours": 7.0, "times_ours_range": [4.0, 9.0]}  # more than half apart
    few = {"method": "teleportation", "times_dsgd": 1.25, "times_dsgd_range": [1.2, 1.3]}
    fleet = {"kind": "fleet", "model": "lenet", "who": "fleet", "updates_per_second": 2e3}
    alone = fleet | {"who": "one by one", "times_ours": 1.5, "times_ours_range": [1.4, 1.6]}
    tracking = {"kind": "algorithm", "method": "Gradient tracking", "tensors": 2, "local_steps": 1}
    tracking |= {"times_dsgd": 1.5, "times_dsgd_range": [1.4, 1.6]}
    content = {
        "machine_info": {"cpu": {"brand_raw": "A Processor"}, "threads": 2, "torch": "2.13.0"},
        "benchmarks": [
            case(who="compiled", updates_per_second=3e5),
            case(who="loop", updates_per_second=2430.0, **loop),
            case(who="vmap", updates_per_second=43000.0, **vmap),
            case(who="compiled", updates_per_second=2.4e5, **few),
            case(**fleet),
            case(**alone),
            case(who="compiled", updates_per_second=2e5, **tracking),
        ],
    }
    (tmp_path / "x.json").write_text(json.dumps(content))
    done = bench("rounds", "--json", tmp_path / "x.json", "--out", tmp_path)
    assert done.code == 0, done.err
    place = tmp_path / "rounds" / "a-processor-2-threads" / "tables"

    def cells(name: str) -> list[list[str]]:
        lines = (place / f"{name}.md").read_text().splitlines()
        return [[c.strip() for c in li.split("|")[1:-1]] for li in lines if li.startswith("|")][2:]

    mlp = ["MLP 64-64-10", "16"]
    assert cells("updates") == [
        [
            "MLP 64-64-10",
            "16",
            "D-SGD",
            "300,000",
            "",
            "43,000",
            "2,430",
            "123.5",
            "~7.0",
            "",
            "~3.0",
        ],
        [*mlp, "TELEPORTATION, k = 8", "240,000", *[""] * 6, "~3.0"],
    ]
    assert cells("few-tokens") == [[*mlp, "1.25"]]
    assert [row[1:] for row in cells("fleets")] == [
        ["fleet", "2,000", ""],
        ["one by one", "2,000", "1.5"],
    ]
    assert cells("algorithms") == [["MLP 64-64-10", "Gradient tracking", "2", "1", "1.50", "0.75"]]


LOOP = {"who": "loop", "updates_per_second": 2430.0, "times_ours": 2.0, "times_ours_range": [1, 3]}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"model": "vgg"}, "model: Input should be 'logistic', 'mlp' or 'lenet', got 'vgg'"),
        ({"method": "d2"}, "method: Input should be 'dsgd' or 'teleportation'"),
        ({"who": "jax"}, "who: Input should be 'compiled'"),
        ({"kind": "loops"}, "unknown kind 'loops'"),
        ({"kind": ["rounds"]}, "unknown kind"),
        ({"kind": "fleet"}, "model: Input should be 'quadratic' or 'lenet'"),
        ({"kind": "algorithm"}, "tensors: Field required"),
        ({"times_ours": None}, "loop has no times_ours"),
        ({"times_ours_range": None}, "loop has no times_ours, or no range"),
        ({"times_ours": 0.5}, "times_ours_range is to be two positive numbers around 0.5"),
        ({"updates_per_second": "2430"}, "updates_per_second: Input should be a valid number"),
        ({"nodes": 0}, "nodes: Input should be greater than 0"),
    ],
)
def test_facts_that_no_table_can_take_are_refused(
    facts: dict[str, Any], message: str, tmp_path: Path, bench: Callable[..., Any]
) -> None:
    machine = {"cpu": {"brand_raw": "A Processor"}, "threads": 2}
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"machine_info": machine, "benchmarks": [case(**LOOP)]}))
    assert bench("rounds", "--json", path, "--out", tmp_path).code == 0
    path.write_text(json.dumps({"machine_info": machine, "benchmarks": [case(**LOOP | facts)]}))
    done = bench("rounds", "--json", path, "--out", tmp_path / "out")
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "out").exists()

"""The benchmarks of the mixing kernels, their report, and the steps of `make gpu`."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from teleport_bench import cli
from teleport_bench.report import kernels
from teleport_kernels.roofline import bytes_moved

ROOT = Path(__file__).parents[1]
MACHINES = sorted((ROOT / "results" / "kernels").glob("*/benchmark.json"))


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def graph() -> Callable[[str, int], Any]:
    made: Callable[[str, int], Any] = module(ROOT / "suites" / "bench" / "graphs.py").graph
    return made


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, bench: Callable[..., Any]) -> Path:
    """A folder with the report of a small run."""
    folder = tmp_path_factory.mktemp("kernels")
    done = bench("kernels", "--scale", "small", "--device", "cpu", "--out", folder)
    assert done.code == 0, done.err
    assert "Time over that of a plain copy" in done.out
    (place,) = (folder / "kernels").iterdir()
    return place


def test_a_run_leaves_tables_a_figure_and_all_samples(measured: Path) -> None:
    names = {p.relative_to(measured).as_posix() for p in measured.rglob("*") if p.is_file()}
    tables = {
        f"tables/{name}.{form}" for name in ("rivals", "times-a-copy") for form in ("md", "tex")
    }
    figures = {"figures/roofline.svg", "figures/roofline.png"}
    assert names == tables | figures | {"benchmark.csv", "benchmark.json"}
    content = json.loads((measured / "benchmark.json").read_text())
    assert "node" not in content["machine_info"]
    assert {entry["extra_info"]["op"] for entry in content["benchmarks"]} == set(kernels.OPS)
    for entry in content["benchmarks"]:
        facts = entry["extra_info"]
        assert facts["share"] == pytest.approx(facts["gb_per_s"] / facts["copy_gb_per_s"], rel=0.5)
        assert entry["stats"]["data"]


def test_the_same_samples_are_drawn_again_byte_for_byte(
    measured: Path, tmp_path: Path, bench: Callable[..., Any]
) -> None:
    done = bench("kernels", "--json", measured / "benchmark.json", "--out", tmp_path)
    assert done.code == 0, done.err
    again = tmp_path / "kernels" / measured.name
    for path in (p for p in measured.rglob("*") if p.is_file()):
        assert (again / path.relative_to(measured)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("key", "value"), [("dtype", "bfloat16"), ("who", "sparse CSR")])
def test_what_is_there_of_a_run_that_was_cut_short_is_drawn(
    measured: Path, tmp_path: Path, bench: Callable[..., Any], key: str, value: str
) -> None:
    content = json.loads((measured / "benchmark.json").read_text())
    kept = [entry for entry in content["benchmarks"] if entry["extra_info"][key] == value]
    assert kept
    (tmp_path / "part.json").write_text(json.dumps(content | {"benchmarks": kept}))
    done = bench("kernels", "--json", tmp_path / "part.json", "--out", tmp_path)
    assert done.code == 0, done.err
    assert ("Time over that of a plain copy" in done.out) == (key == "dtype")


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.parent.name)
def test_committed_tables_and_figures_are_what_the_samples_give(path: Path) -> None:
    frame, machine = kernels.load([path])
    assert kernels.machine_name(machine) == path.parent.name
    _, files = kernels.build(frame, machine)
    pinned = "matplotlib==" + version("matplotlib") in (ROOT / "constraints.txt").read_text()
    for name, content in files.items():
        if pinned or not name.startswith("figures/"):
            assert (path.parent / name).read_bytes() == content, name


def test_there_are_committed_samples() -> None:
    assert MACHINES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not what"),
        ("[]", "is not what"),
        ('{"benchmarks": [], "machine_info": {}}', "benchmarks of other files"),
        ('{"benchmarks": [{"extra_info": {}}], "machine_info": {}}', "benchmarks of other files"),
    ],
)
def test_a_file_of_something_else_is_refused(
    text: str, message: str, tmp_path: Path, bench: Callable[..., Any]
) -> None:
    (tmp_path / "x.json").write_text(text)
    done = bench("kernels", "--json", tmp_path / "x.json", "--out", tmp_path)
    assert done.code == 2
    assert message in done.err
    assert bench("kernels", "--json", tmp_path / "no.json").code == 2


def test_samples_of_two_machines_are_not_one_table(
    tmp_path: Path, bench: Callable[..., Any]
) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in files:
        path.write_text(json.dumps({"benchmarks": [], "machine_info": {"gpu": path.stem}}))
    done = bench("kernels", "--json", *files)
    assert done.code == 2
    assert "one table is of one machine, got files of a, b" in done.err


FACTS = {
    **{"op": "gossip_mix", "who": "teleport_kernels", "rows": 8, "params": 10, "graph": "ring"},
    **{"dtype": "float32", "bytes": 640, "operations": 480, "share": 0.7, "copy_gb_per_s": 30.0},
    **{"times_copy": 1.4, "times_copy_range": [1.3, 1.5]},
}
MACHINE = {"cpu": {"brand_raw": "A Processor"}, "threads": 2, "torch": "2.13.0"}


def content(*cases: dict[str, Any], **machine: Any) -> str:
    entries = [{"extra_info": FACTS | case} for case in cases]
    return json.dumps({"benchmarks": entries, "machine_info": MACHINE | machine})


BAD = {
    "text": ("no json", "is not what"),
    "number": ("3", "is not what"),
    "list of entries": ('{"benchmarks": [3], "machine_info": {}}', "is not what"),
    "no list": ('{"benchmarks": 3, "machine_info": {}}', "is not what"),
    "no machine": ('{"benchmarks": []}', "KeyError: 'machine_info'"),
    "no extra_info": ('{"benchmarks": [{}], "machine_info": {}}', "KeyError: 'extra_info'"),
    "extra_info no table": (
        '{"benchmarks": [{"extra_info": 3}], "machine_info": {}}',
        "extra_info is to be a table",
    ),
    "machine no table": ('{"benchmarks": [], "machine_info": 3}', "is not what"),
    "processor no table": (content({}, cpu="x"), "is not what"),
    "control characters": (content({}, gpu="\x1b[31m"), "control characters"),
    "deep": ("[" * 100_000, "is not what"),
    "not a number": (content({"share": float("nan")}), "NaN is no number"),
    "infinite": (content({"times_copy": float("inf")}), "Infinity is no number"),
    "1e999": (content({}).replace("0.7", "1e999"), "share: Input should be a finite number"),
    "zero": (content({"share": 0.0}), "share: Input should be greater than 0, got 0.0"),
    "negative": (content({"copy_gb_per_s": -1.0}), "copy_gb_per_s: Input should be greater than 0"),
    "number as text": (
        content({"times_copy": "1.4"}),
        "times_copy: Input should be a valid number",
    ),
    "truth as number": (content({"rows": True}), "rows: Input should be a valid integer"),
    "missing": (content({}).replace("operations", "works"), "operations: Field required"),
    "unknown op": (content({"op": "mix"}), "op: Input should be 'gossip_mix'"),
    "unknown graph": (content({"graph": "path"}), "graph: Input should be 'ring'"),
    "range of one": (content({"times_copy_range": [1.4]}), "two positive numbers around 1.4"),
    "other direction": (content({"times_copy": 0.7}), "two positive numbers around 0.7"),
    "range reversed": (content({"times_copy_range": [1.5, 1.3]}), "two positive numbers"),
    "twice": (content({}, {}), "float32 is there more than once: twice in"),
    "other tool": ('{"version": 1, "results": []}', "is not what"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_a_malformed_file_is_refused_with_a_sentence(
    text: str, message: str, tmp_path: Path, bench: Callable[..., Any]
) -> None:
    (tmp_path / "x.json").write_text(text)
    done = bench("kernels", "--json", tmp_path / "x.json", "--out", tmp_path / "out")
    assert done.code == 2
    assert message in done.err
    assert str(tmp_path / "x.json") in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["folder", "bytes", "missing"])
def test_what_is_no_file_of_text_is_refused(
    damage: str, tmp_path: Path, bench: Callable[..., Any]
) -> None:
    path = tmp_path / "x.json"
    if damage == "folder":
        path.mkdir()
    elif damage == "bytes":
        path.write_bytes(content({}).encode("utf-16"))
    done = bench("kernels", "--json", path)
    assert done.code == 2
    assert f"{path} is not what" in done.err


def test_files_of_one_machine_are_joined_and_all_samples_kept(
    tmp_path: Path, bench: Callable[..., Any]
) -> None:
    paths = [tmp_path / name / "benchmark.json" for name in ("a", "b")]
    for path, dtype in zip(paths, ("float32", "bfloat16"), strict=True):
        path.parent.mkdir()
        path.write_text(content({"dtype": dtype, "who": "=1+1"}, {"dtype": dtype}))
    done = bench("kernels", "--json", *paths, "--out", tmp_path)
    assert done.code == 0, done.err
    place = tmp_path / "kernels" / "a-processor-2-threads"
    kept = [place / name for name in ("benchmark.json", "benchmark-2.json")]
    assert [path.read_bytes() for path in kept] == [path.read_bytes() for path in paths]
    csv = (place / "benchmark.csv").read_text()
    assert csv.count("teleport_kernels") == csv.count("'=1+1") == 2
    assert bench("kernels", "--json", *kept, "--out", tmp_path / "again").code == 0
    done = bench("kernels", "--json", kept[0], "--out", tmp_path)
    assert done.code == 0
    assert f"{kept[1]} is no part of these tables" in done.err


def test_a_file_given_twice_is_refused(tmp_path: Path, bench: Callable[..., Any]) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in paths:
        path.write_text(content({}))
    for given in (paths, [paths[0], paths[0]]):
        done = bench("kernels", "--json", *given, "--out", tmp_path / "out")
        assert done.code == 2
        assert "gossip_mix, teleport_kernels, 8, 10, ring, float32 is there more than" in done.err
    paths[1].write_text(content({"graph": "base"}, torch="2.12.0"))
    done = bench("kernels", "--json", *paths, "--out", tmp_path / "out")
    assert done.code == 2
    assert "2 threads; torch 2.12.0, A Processor, 2 threads; torch 2.13.0" in done.err


@pytest.mark.parametrize("name", ["ring", "exponential", "regular", "base", "complete", "fleet"])
@pytest.mark.parametrize("n", [8, 64])
def test_the_graphs_of_the_benchmarks_are_doubly_stochastic(
    name: str, n: int, graph: Callable[[str, int], Any]
) -> None:
    W = graph(name, n).dense()
    torch.testing.assert_close(W.sum(0), torch.ones(n, dtype=torch.float64))
    torch.testing.assert_close(W.sum(1), torch.ones(n, dtype=torch.float64))
    degrees = set(graph(name, n).degrees.tolist())
    assert len(degrees) > 2 if name == "base" else len(degrees) == 1


def test_bytes_that_must_move() -> None:
    assert bytes_moved("gossip_mix", 8, 10, 4) == bytes_moved("teleport_mix", 8, 10, 4) == 640
    assert bytes_moved("sgd_mix", 8, 10, 2) == 480
    assert bytes_moved("sgd_mix", 8, 10, 2, momentum=True) == 800
    assert bytes_moved("consensus", 8, 10, 2, groups=2) == 160 + 80
    with pytest.raises(ValueError, match='unknown op "mix", expected one of gossip_mix'):
        bytes_moved("mix", 8, 10, 4)


@pytest.fixture
def gpu() -> ModuleType:
    return module(ROOT / "suites" / "gpu.py")


def test_all_steps_end_within_nine_minutes_and_name_files_that_are_there(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TELEPORT_BENCH_DATA", raising=False)
    steps = gpu.steps(tmp_path)
    assert sum(step.seconds for step in steps) <= 9 * 60
    for step in steps:
        files = [argument for argument in step.arguments if argument.endswith(".py")]
        assert files
        assert all((ROOT / file).is_file() for file in files)


def test_the_paper_s_suites_follow_where_their_data_are_at_hand(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cifar10").mkdir()
    monkeypatch.setenv("TELEPORT_BENCH_DATA", str(tmp_path))
    *_, last = gpu.steps(tmp_path)
    assert last.name == "cifar10"
    assert last.arguments[1:4] == ["teleport_bench", "run", "paper/cifar10"]
    assert sum(step.name == "fashion_mnist" for step in gpu.steps(tmp_path)) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(
    gpu: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main([str(tmp_path / "out")]) == 2
    assert "no CUDA device" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    assert gpu.main([]) == 2


def test_a_step_that_fails_or_takes_too_long_stops_nothing_else(
    gpu: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    programs = {
        "fails": "print('no'); 1/0",
        "hangs": "import time; time.sleep(60)",
        "works": "print(7)",
    }
    steps = [gpu.Step(name, 2, ["-c", program]) for name, program in programs.items()]
    monkeypatch.setattr(gpu, "has_device", lambda: True)
    monkeypatch.setattr(gpu, "steps", lambda _: steps)
    assert gpu.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "fails: 1 after" in out
    assert "hangs: stopped after 2 s" in out
    assert "works: 0 after" in out
    assert "not passed: fails, hangs" in out
    assert (tmp_path / "works.log").read_text() == "7\n"


def test_benchmarks_that_fail_say_so(
    monkeypatch: pytest.MonkeyPatch, bench: Callable[..., Any], tmp_path: Path
) -> None:
    failed = subprocess.CompletedProcess([], 3)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    done = bench("kernels", "--out", tmp_path)
    assert (done.code, list(tmp_path.iterdir())) == (1, [])
    assert "the benchmarks ended with exit code 3" in done.err


def test_benchmarks_need_the_checkout_and_their_package(
    monkeypatch: pytest.MonkeyPatch, bench: Callable[..., Any], tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pytest-benchmark is missing" in bench("kernels", "--out", tmp_path).err
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "teleport_bench" / "cli.py"))
    assert "run it from there, or give --json" in bench("kernels", "--out", tmp_path).err

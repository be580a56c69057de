"""Which engine advances the rounds, and what is said of the time that they take."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import teleport_bench as tb
from teleport_bench import RunSpec, UserError, fleet, native, trace
from teleport_bench.data.dataset import Dataset, Split
from teleport_bench.executor import COMPILING, pick_engine, run_fleet
from teleport_bench.fleet import Fleet, group
from teleport_bench.registry import DATA
from teleport_kernels.compiler import Library

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(
    not native.available(), reason="no C++ compiler on this machine"
)
DIGITS = {"name": "classification", "model": "logistic", "data": "digits", "batch_size": 4}
AUGMENTED = DIGITS | {"augment": "crop_flip"}


def spec(**settings: Any) -> RunSpec:
    defaults = {"algorithm": "dsgd", "nodes": 4, "problem": "quadratic", "lr": 0.1, "rounds": 70}
    return RunSpec.model_validate(defaults | settings)


@needs_compiler
@pytest.mark.parametrize(
    ("there", "rounds", "compiles"),
    [(True, 1, True), (False, 1, False), (False, round(1000 * COMPILING), True)],
)
def test_auto_compiles_where_that_costs_less_than_it_saves(
    there: bool, rounds: int, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "compiled", lambda: there)
    assert pick_engine("auto", [spec(rounds=rounds)], CPU) == compiles
    assert not pick_engine("off", [spec(rounds=rounds)], CPU)
    assert pick_engine("on", [spec(rounds=rounds)], CPU)


def test_on_without_a_compiler_is_an_error_and_auto_runs_in_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "available", lambda: False)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler.*install g\+\+"):
        pick_engine("on", [spec()], CPU)
    assert Fleet([spec()], compiled=True).engine == "torch"


@needs_compiler
@pytest.mark.parametrize("compiled", [True, False])
def test_torch_s_threads_leave_the_cores_to_the_pool_while_it_works(compiled: bool) -> None:
    program, seen = Fleet([spec()], compiled=compiled), []
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        program.advance(lambda _: seen.append(torch.get_num_threads()))
        assert set(seen) == {1 if compiled else 3}
        assert torch.get_num_threads() == 3

        def stop(_: fleet.Tick) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Fleet([spec()], compiled=compiled).advance(stop)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_an_unknown_mode_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'auto'"):
        tb.run(spec(), compile="atuo")


def test_the_compiler_s_failure_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Library) -> Any:
        raise FileNotFoundError("no g++")

    monkeypatch.setattr(Library, "load", fails)
    native.library.library.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=r"no g\+\+.*rounds run in torch"):
            assert not native.available()
        assert not native.available()
    finally:
        native.library.library.cache_clear()


@needs_compiler
@pytest.mark.parametrize(
    "problem", ["quadratic", DIGITS, AUGMENTED], ids=["quadratic", "digits", "augmented"]
)
def test_compiled_metrics_are_torch_s_to_rounding(problem: Any) -> None:
    both = [
        tb.run(spec(problem=problem, rounds=100, eval_every=20), "cpu", compile=mode)
        for mode in ("on", "off")
    ]
    assert [record.made.engine for record in both] == ["compiled", "torch"]
    compiled, in_torch = (record.curves for record in both)
    for name, values in in_torch.items():
        # each of 100 rounds rounds a few dozen times, by 2^-24 each, and smooth convex problems
        # with small steps do not amplify it; accuracies count whole samples
        tolerance = 100 * 50 * 2**-24 if "accuracy" not in name else 2 / 270
        assert compiled[name] == pytest.approx(values, rel=tolerance, abs=1e-7), name


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set of 32x32 images in colour, of noise that is brighter in one class."""

    def made() -> Dataset:
        rng = np.random.default_rng(0)

        def split(n: int) -> Split:
            labels = np.arange(n) % 2
            top = 128 + 127 * labels[:, None, None, None]
            return Split(rng.integers(top, size=(n, 3, 32, 32), dtype=np.uint8), labels)

        return Dataset("colours", split(24), split(4), split(4), n_classes=2)

    DATA.names()  # the built-in ones are there before the copy is made
    monkeypatch.setattr(DATA, "_entries", DATA._entries.copy())
    DATA.register("colours")(made)
    return "colours"


@needs_compiler
@pytest.mark.parametrize("model", [{"name": "vgg11", "width": 8}, {"name": "resnet20"}], ids=str)
def test_deep_networks_take_the_same_steps_in_both_engines(model: Any, colours: str) -> None:
    problem = {
        "name": "classification",
        "model": model,
        "data": colours,
        "batch_size": 4,
        "augment": "crop_flip",
    }
    both = [
        tb.run(spec(problem=problem, nodes=2, lr=0.01, rounds=6), "cpu", compile=mode)
        for mode in ("on", "off")
    ]
    assert [record.made.engine for record in both] == ["compiled", "torch"]
    compiled, in_torch = (record.curves["train_loss"] for record in both)
    # rounding switches a ReLU here and there; other steps would show
    assert compiled == pytest.approx(in_torch, rel=1e-3)
    assert abs(compiled[-1] - compiled[0]) > 0.05 * compiled[0]


@needs_compiler
@pytest.mark.parametrize("problem", [DIGITS, AUGMENTED], ids=["digits", "augmented"])
def test_fleets_of_any_size_give_the_same_bits(
    problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [
        spec(problem=problem, lr=lr, seed=seed, nodes=n)
        for lr in (0.1, 0.5)
        for seed in (0, 1)
        for n in (3, 5)
    ]
    one = run_fleet(specs, "cpu", compile="on")
    monkeypatch.setattr(fleet, "FLEET_BYTES", 1)
    assert len(group(specs)) == len(specs)
    many = run_fleet(specs, "cpu", compile="on")
    assert [r.result() for r in one] == [r.result() for r in many]


def test_the_log_says_how_runs_are_cut_into_fleets(
    run: Callable[..., Any], write: Callable[..., Path], texts: dict[str, str]
) -> None:
    done = run(write(texts["tiny"]))
    assert "12 runs in 2 fleets of 4 to 8, at most 4 MiB of parameters each" in done.err


def test_a_fleet_on_cuda_may_take_a_sixteenth_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (16 * 1000, 10**9))
    assert fleet.fleet_bytes(torch.device("cuda", 0)) == 1000
    assert fleet.fleet_bytes(CPU) == fleet.FLEET_BYTES
    specs = [spec(seed=seed) for seed in range(4)]
    each = 4 * 50 * 4  # nodes, dimensions, bytes of a float
    assert [len(part) for part in group(specs, 2 * each)] == [2, 2]


def test_phases_cover_the_time_of_a_run() -> None:
    record = tb.run(spec(rounds=500), "cpu")
    assert set(record.made.phases) == {"data", "gradient", "mix", "metric"}
    assert all(seconds > 0 for seconds in record.made.phases.values())
    assert sum(record.made.phases.values()) <= record.made.seconds


@pytest.mark.parametrize("mode", ["off", pytest.param("on", marks=needs_compiler)])
def test_a_profile_is_a_trace_of_all_phases(
    mode: str,
    run: Callable[..., Any],
    write: Callable[..., Path],
    texts: dict[str, str],
    tmp_path: Path,
) -> None:
    file = tmp_path / "trace.json"
    done = run(write(texts["tiny"]), "--compile", mode, "--set", "rounds=200", "--profile", file)
    assert done.code == 0
    assert f"trace: {file}" in done.err
    events = json.loads(file.read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    rounds = 2 * 200  # of two fleets
    for name in ("gradient", "mix"):
        assert sum(event["name"] == name for event in spans) == rounds
    assert {"data", "metric", "dsgd", "teleportation"} <= {event["name"] for event in spans}
    for event in spans:
        assert event["dur"] >= 0
        assert event["ts"] >= 0
    # phases follow each other, and lie within their fleet
    inner = sorted((e["ts"], e["ts"] + e["dur"]) for e in spans if e["tid"] == 1)
    assert all(a[1] <= b[0] + 1e-3 for a, b in itertools.pairwise(inner))


def test_a_trace_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "MOST_EVENTS", 3)
    with trace.taking() as taken:
        assert trace.current() is taken
        for _ in range(5):
            taken.add("x", 0.0, 1.0)
    assert taken.dropped == 2
    assert trace.current() is None


def test_a_profile_that_cannot_be_written_is_said_before_anything_runs(
    run: Callable[..., Any], write: Callable[..., Path], texts: dict[str, str], tmp_path: Path
) -> None:
    done = run(write(texts["tiny"]), "--profile", tmp_path / "no" / "where.json")
    assert done.code == 2
    assert "cannot write the trace" in done.err
    assert not list((tmp_path / "out").rglob("runs/*.json"))


TIMED = """
[[table]]
name = "time"
values = ["round_time"]

[[figure]]
name = "time"
y = "round_time"
x = "nodes"
"""


def test_the_time_of_a_round_is_a_metric_of_tables_and_of_figures_against_settings(
    run: Callable[..., Any], write: Callable[..., Path], texts: dict[str, str], tmp_path: Path
) -> None:
    done = run(write("alone = true\n" + texts["tiny"] + TIMED))
    assert done.code == 0, done.err
    assert "microseconds a round" in done.out
    records = [json.loads(p.read_text()) for p in (tmp_path / "out").rglob("runs/*.json")]
    assert {record["made"]["fleet"]["runs"] for record in records} == {1}
    assert (tmp_path / "out" / "tiny" / "figures" / "time.svg").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TIMED.replace('x = "nodes"', 'x = "rounds"'), "there is no curve of it: take a setting"),
        (
            '\n[tune]\nlr = [0.1]\nseeds = [9]\nmetric = "round_time"\n',
            "no step size is chosen by it",
        ),
    ],
)
def test_where_the_time_of_a_round_says_nothing_it_is_refused(
    text: str,
    message: str,
    run: Callable[..., Any],
    write: Callable[..., Path],
    texts: dict[str, str],
) -> None:
    suite = texts["tiny"].replace("lr = 0.1\n", "") if "tune" in text else texts["tiny"]
    done = run(write(suite + text))
    assert done.code == 2
    assert message in done.err

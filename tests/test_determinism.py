"""What gives the same bits: another process, another number of threads, another engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from teleport_bench import RunSpec, native, run_fleet
from teleport_bench.record import Record

MODELS: dict[str, dict[str, Any]] = {
    "quadratic": {"name": "quadratic", "dim": 50},
    "logistic": {"model": "logistic"},
    "mlp": {"model": {"name": "mlp", "hidden": [32]}},
    "lenet": {"model": "lenet", "data": "mnist5k"},
}
MODES = ["off", "on"] if native.available() else ["off"]
PROGRAM = """
import json, sys
from test_determinism import measured
json.dump(measured(), open(sys.argv[1], "w"))
"""


def measured() -> dict[str, list[dict[str, list[float]]]]:
    """The curves of small fleets, by engine and model."""
    found = {}
    for mode in MODES:
        for name, problem in MODELS.items():
            digits = {"name": "classification", "data": "digits", "partition": "iid"}
            rounds = 6 if name == "lenet" else 70
            shared = {"nodes": 6, "topology": "ring", "lr": 0.05, "momentum": 0.9, "rounds": rounds}
            shared |= {"eval_every": rounds // 2, "seed": 3}
            shared["problem"] = problem if "name" in problem else digits | problem
            specs = [
                RunSpec.model_validate(shared | {"algorithm": "dsgd"}),
                RunSpec.model_validate(shared | {"algorithm": "teleportation", "active": 4}),
            ]
            records = run_fleet(specs, "cpu", compile=mode)
            found[f"{mode} {name}"] = [record.curves for record in records]
    return found


@pytest.fixture(scope="module")
def by_threads(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What processes with so many threads measure; 0: this one, with one."""
    folder = tmp_path_factory.mktemp("measured")
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, folder / str(threads)],
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": paths},
        )
        for threads in (1, 2)
    ]
    found: dict[int, Any] = {0: measured()}
    assert [process.wait() for process in processes] == [0, 0]
    return found | {threads: json.loads((folder / str(threads)).read_text()) for threads in (1, 2)}


def apart(ones: list[dict[str, list[float]]], others: list[dict[str, list[float]]]) -> float:
    """The largest relative difference of two measurements, over all metrics and evaluations."""
    pairs = [
        pair
        for one, other in zip(ones, others, strict=True)
        for name in one
        for pair in zip(one[name], other[name], strict=True)
    ]
    return max((abs(a - b) / max(abs(a), abs(b)) for a, b in pairs if a != b), default=0.0)


def test_another_process_gives_the_same_bits(by_threads: dict[int, Any]) -> None:
    assert by_threads[1] == by_threads[0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", MODES)
def test_another_number_of_threads_gives_the_same_bits_but_for_torch_s_convolutions(
    by_threads: dict[int, Any], mode: str, name: str
) -> None:
    one, two = (by_threads[threads][f"{mode} {name}"] for threads in (1, 2))
    if (mode, name) == ("off", "lenet"):
        assert apart(one, two) < 1e-4
    else:
        assert one == two


@pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")
@pytest.mark.parametrize("name", MODELS)
def test_the_engines_agree_to_rounding(by_threads: dict[int, Any], name: str) -> None:
    assert apart(by_threads[1][f"off {name}"], by_threads[1][f"on {name}"]) < 1e-4


@pytest.fixture
def _indifferent_again() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.usefixtures("_indifferent_again")
@pytest.mark.parametrize("mode", MODES)
def test_deterministic_changes_nothing_on_the_cpu_and_is_in_the_record(
    texts: dict[str, str],
    write: Callable[..., Path],
    run: Callable[..., Any],
    tmp_path: Path,
    mode: str,
) -> None:
    path = write(texts["digits"])
    found = []
    for folder, options in (("without", []), ("with", ["--deterministic"])):
        done = run(path, "--compile", mode, *options, out=tmp_path / folder)
        assert done.code == 0
        assert torch.are_deterministic_algorithms_enabled() == bool(options)
        paths = sorted((tmp_path / folder / "tiny" / "runs").iterdir())
        found.append([Record.model_validate_json(path.read_bytes()) for path in paths])
    without, within = found
    assert [record.result() for record in without] == [record.result() for record in within]
    assert all("deterministic" not in record.made.environment for record in without)
    assert all(record.made.environment["deterministic"] for record in within)

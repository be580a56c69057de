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
            rounds = 4 if name == "lenet" else 70
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


def apart(ones: list[dict[str, list[float]]], others: list[dict[str, list[float]]]) -> float:
    """The largest relative difference of two measurements, over all metrics and evaluations."""
    pairs = [
        pair
        for one, other in zip(ones, others, strict=True)
        for name in one
        for pair in zip(one[name], other[name], strict=True)
    ]
    return max((abs(a - b) / max(abs(a), abs(b)) for a, b in pairs if a != b), default=0.0)


def test_processes_threads_and_engines_give_the_same_bits_or_nearly(tmp_path: Path) -> None:
    """One test, since what it compares takes the most."""
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    own = {"PYTHONPATH": paths, "OMP_WAIT_POLICY": "passive"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, tmp_path / str(threads)],
            env=os.environ | own | {"OMP_NUM_THREADS": str(threads)},
        )
        for threads in (1, 2)
    ]
    here = measured()
    assert [process.wait() for process in processes] == [0, 0]
    one, two = (json.loads((tmp_path / threads).read_text()) for threads in "12")

    assert one == here
    assert {key for key in one if one[key] != two[key]} <= {"off lenet"}  # torch's convolutions
    assert apart(one["off lenet"], two["off lenet"]) < 1e-5
    if len(MODES) == 2:
        for name in MODELS:
            assert apart(one[f"off {name}"], one[f"on {name}"]) < 1e-5, name


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

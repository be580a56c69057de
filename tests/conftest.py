"""Small suites, the command line in process, and records made by hand."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from teleport_bench.cli import main
from teleport_bench.record import Record
from teleport_bench.record.schema import Made
from teleport_bench.spec import RunSpec

TINY = """\
title = "A tiny suite"

[run]
rounds = 8
lr = 0.1
eval_every = 4
topology = "ring"

[run.problem]
name = "quadratic"
dim = 5

[grid]
nodes = [4, 6]
seed = [0, 1]

[[method]]
algorithm = "dsgd"

[[method]]
algorithm = "teleportation"
grid = { active = [1, 2] }

[[table]]
name = "gap"
values = ["objective_gap"]
pivot = "nodes"

[[table]]
name = "details"
values = ["objective_gap", "consensus"]
"""
"""12 runs: 3 methods x 2 n x 2 seeds, in two fleets."""

FIGURES = """
[[figure]]
name = "curves"
y = "objective_gap"
columns = "nodes"

[[figure]]
name = "finals"
y = "objective_gap"
x = "nodes"
"""

TUNED = (
    TINY.replace("lr = 0.1\n", "")
    + """
[tune]
lr = [0.05, 0.1, 1e6]
seeds = [100, 101]
metric = "objective_gap"
"""
)
"""6 cells x 3 step sizes x 2 seeds of tuning, and 12 reported runs."""

DIGITS = TINY.replace(
    'name = "quadratic"\ndim = 5',
    'name = "classification"\nmodel = "logistic"\ndata = "digits"\n'
    'partition = { name = "dirichlet", alpha = 1.0 }',
).replace("objective_gap", "train_loss")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """The tests run in two processes: threads of both would wait for each other's time slices."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def _run_quietly(*arguments: object) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as leave:  # argparse's way to refuse
            code = int(leave.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    """Suite files by name."""
    return {"tiny": TINY, "figures": TINY + FIGURES, "tuned": TUNED, "digits": DIGITS}


@pytest.fixture(scope="session")
def bench() -> Callable[..., Outcome]:
    """The command line in process: `bench("list")` -> code, out, err."""
    return _run_quietly


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a suite file."""

    def write(text: str, name: str = "tiny") -> Path:
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Outcome]:
    """`teleport-bench run` of a suite file on the CPU, into tmp_path/out unless told otherwise."""

    def run(path: Path, *options: object, out: Path | None = None) -> Outcome:
        return _run_quietly(
            "run", path, "--out", out or tmp_path / "out", "--device", "cpu", *options
        )

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with suite.toml ("figures") and its finished run in out/suite: not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "suite.toml").write_text(TINY + FIGURES)
    done = _run_quietly("run", folder / "suite.toml", "--out", folder / "out", "--device", "cpu")
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Record]:
    """A record by hand: `make_record(spec, objective_gap=0.5)`, or with a status that is bad."""

    def make_record(spec: RunSpec, status: str = "finished", **finals: float) -> Record:
        state: dict[str, Any] = {"status": status}
        if status == "failed":
            state["error"] = "RuntimeError: boom (somewhere.py:1)"
        else:
            axes = dict.fromkeys(("epochs", "gradients", "bytes_total", "bytes_per_node"), 0.0)
            curves = {"rounds": float(spec.rounds)} | axes | finals
            state["curves"] = {
                name: [1.0, value] if name in finals else [0.0, value]
                for name, value in curves.items()
            }
        if status == "diverged":
            state["curves"] = {name: values[:1] for name, values in state["curves"].items()}
            state["diverged_at"] = spec.rounds
        made = Made(
            date="2026-01-01T00:00:00+00:00",
            seconds=1.0,
            fleet={"runs": 1, "rows": spec.n_active},
            phases={},
            environment={"id": "0" * 12, "device": "cpu", "processor": "a processor"},
            code={"version": "0", "commit": None, "dirty": None},
        )
        return Record(id=spec.id, spec=spec.model_dump(mode="json"), made=made, **state)

    return make_record


@pytest.fixture(scope="session")
def sanitized(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run pytest in a process whose C++ is compiled with AddressSanitizer and UBSan:
    `sanitized("tests/kernels/test_cpu.py", "-k", "mix")`. The process ends with a report and a code
    that is not 0 at the first read or write outside of what was allocated, torch's memory included.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    command = [compiler, "-print-file-name=libasan.so"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    runtime = Path(found.stdout.strip())
    command[1] = "-print-file-name=libstdc++.so.6"
    standard = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not runtime.is_absolute():
        pytest.skip("g++ has no libasan.so on this machine: install it (Debian: libgcc-12-dev)")
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -g1"
    folder = tmp_path_factory.mktemp("sanitized")
    wrapper = folder / "sanitizing-g++"
    wrapper.write_text(f'#!/bin/sh\nexec {compiler} "$@" {flags}\n')
    wrapper.chmod(0o755)

    def run(*arguments: str | Path, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
        environment = {
            "CXX": str(wrapper),
            "XDG_CACHE_HOME": str(folder),
            # with the C++ library, whose exceptions it intercepts: Python itself has none
            "LD_PRELOAD": f"{runtime} {standard}",
            # Python keeps what it allocates; NumPy asks for more than there is to see it fail
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        }
        # --capture=sys: the report, which is written past Python, is not captured
        quiet = ("-q", "-x", "--capture=sys", "-p", "no:cacheprovider", "-p", "no:faulthandler")
        return subprocess.run(
            [sys.executable, "-m", "pytest", *quiet, *map(str, arguments)],
            cwd=Path(__file__).parents[1],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run

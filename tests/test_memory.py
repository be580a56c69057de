"""Fleets that do not fit into memory run by halves; a run that does not fit says what it needs."""

from __future__ import annotations

import itertools
import multiprocessing
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from teleport_bench import RunSpec, executor, memory
from teleport_bench.algorithms.dsgd import DSGD
from teleport_bench.executor import run_group
from teleport_bench.fleet import Fleet, Tick
from teleport_bench.record import Record

CPU = torch.device("cpu")


def specs_of(runs: int, **changes: object) -> list[RunSpec]:
    shared = {"algorithm": "dsgd", "nodes": 4, "lr": 0.1, "rounds": 100, "topology": "ring"}
    quadratic = {"name": "quadratic", "dim": 5, "family": "curvature"}
    return [
        RunSpec.model_validate(shared | {"problem": quadratic, "seed": s} | changes)
        for s in range(runs)
    ]


def out_of_memory() -> list[Exception]:
    return [
        MemoryError("no memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDNN_STATUS_ALLOC_FAILED"),
        allocation(),
    ]


def allocation() -> Exception:
    """What torch raises on this machine."""
    try:
        torch.empty(2**60)
    except Exception as error:
        return error
    raise AssertionError("an exbibyte fits")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Exception], list[int]]:
    """A device on which so many runs fit; the sizes of the fleets that were tried."""
    tried: list[int] = []

    def small(most: int, error: Exception) -> list[int]:
        class Small(Fleet):
            def _start(self) -> object:  # type: ignore[override]
                tried.append(len(self.specs))
                if len(self.specs) > most:
                    raise error
                return super()._start()

        monkeypatch.setattr(executor, "Fleet", Small)
        return tried

    return small


def results(records: list[Record]) -> list[dict[str, object]]:
    return [record.result() for record in records]


@pytest.mark.parametrize("error", out_of_memory(), ids=lambda e: f"{type(e).__name__} {e}"[:40])
def test_a_fleet_that_does_not_fit_runs_by_halves(
    small: Callable[..., list[int]], error: Exception
) -> None:
    specs = specs_of(7)
    expected = run_group(specs, CPU, lambda _: None, False)
    tried = small(2, error)
    updates: list[int] = []
    found = run_group(specs, CPU, lambda tick: updates.append(tick.updates), False)
    assert tried == [7, 3, 1, 2, 4, 2, 2]
    assert results(found) == results(expected)
    assert [record.made.fleet["runs"] for record in found] == [1, 2, 2, 2, 2, 2, 2]
    assert sum(updates) == sum(spec.n_active * spec.rounds for spec in specs)


def test_progress_that_was_lost_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    specs, updates = specs_of(2), [0]
    rounds = Fleet._rounds

    def full(self: Fleet, state: object, place: object, start: int, *args: int) -> object:
        if start and len(self.specs) == 2:
            raise MemoryError
        return rounds(self, state, place, start, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Fleet, "_rounds", full)

    def on_tick(tick: Tick) -> None:
        updates.append(updates[-1] + tick.updates)

    run_group(specs, CPU, on_tick, False)
    assert max(updates) == updates[-1] == 2 * 4 * 100
    assert any(after < before for before, after in itertools.pairwise(updates))


def test_an_error_that_is_no_shortage_fails_the_fleet_at_once(
    small: Callable[..., list[int]],
) -> None:
    tried = small(2, RuntimeError("CUDA error: an illegal memory access was encountered"))
    found = run_group(specs_of(4), CPU, lambda _: None, False)
    assert tried == [4]
    assert {record.status for record in found} == {"failed"}


@pytest.mark.parametrize("error", out_of_memory(), ids=lambda e: f"{type(e).__name__} {e}"[:40])
def test_a_run_that_does_not_fit_says_what_it_needs_and_has(
    small: Callable[..., list[int]], error: Exception
) -> None:
    small(0, error)
    found = run_group(specs_of(2), CPU, lambda _: None, False)
    for record in found:
        assert record.status == "failed"
        assert record.error is not None
        assert re.search(
            r"needs about [\d.e-]+ MiB and has [\d.e+]+ MiB on cpu; take fewer", record.error
        )


def test_a_fleet_that_cannot_fit_is_split_before_it_is_tried(
    small: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = specs_of(4)
    tried = small(4, MemoryError())
    monkeypatch.setattr(memory, "free", lambda _: memory.needed(specs[:2]))
    assert {r.status for r in run_group(specs, CPU, lambda _: None, False)} == {"finished"}
    assert tried == [2, 2]


def test_a_single_run_is_tried_where_half_of_the_estimate_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need = memory.needed(specs_of(1))
    monkeypatch.setattr(memory, "free", lambda _: need // 2)
    memory.check(specs_of(1), CPU, compiled=False)
    with pytest.raises(memory.NoRoomError):
        memory.check(specs_of(2), CPU, compiled=False)
    monkeypatch.setattr(memory, "free", lambda _: need // 2 - 1)
    with pytest.raises(memory.NoRoomError):
        memory.check(specs_of(1), CPU, compiled=False)


@pytest.mark.parametrize(
    ("changes", "tensors"),
    [
        ({}, 4),
        ({"momentum": 0.9}, 5),
        ({"algorithm": {"name": "local_sgd", "local_steps": 3}}, 5),
        ({"algorithm": "d2"}, 7),
        ({"algorithm": "gradient_tracking"}, 10),
    ],
)
def test_the_rows_of_a_round_are_those_that_the_engine_takes(
    changes: dict[str, object], tensors: int
) -> None:
    specs = specs_of(2, **changes)
    fleet = Fleet(specs, compiled=True)
    fleet.advance()
    assert memory._vectors(specs[0]) == tensors
    if fleet.compiled:
        assert fleet.final is not None
        assert fleet.tapes
        # the state that a block begins with is held only while rounds are recorded
        held = max(len(state) for _, *state in fleet.tapes)
        assert tensors - held <= len(fleet.buffers._all) <= tensors


def test_an_algorithm_that_needs_real_rows_is_counted_as_far_as_it_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def step(_: object, state: dict[str, torch.Tensor], r: Any) -> dict[str, torch.Tensor]:
        return {"x": r.mix(state["x"], r.gradient(state["x"])).view(4, 5)}

    monkeypatch.setattr(DSGD, "step", step)
    assert memory._vectors(specs_of(1)[0]) == 3


def test_runs_that_share_their_random_choices_need_them_once() -> None:
    noise = 3 * 64 * 4 * 5 * 4
    one, other = specs_of(1, lr=0.1), specs_of(1, lr=0.2)
    apart = specs_of(1, lr=0.2, seed=1)
    assert memory.needed(one + apart) - memory.needed(one + other) > noise


def test_a_gpu_holds_one_copy_of_the_choices_and_the_images() -> None:
    digits = {"name": "classification", "model": "logistic", "data": "digits"}
    specs = specs_of(1, problem=digits | {"batch_size": 1000})
    cuda = torch.device("cuda")
    assert memory.needed(specs, CPU) - memory.needed(specs, cuda) > 1.9 * 64 * 4 * 1000 * 4
    few = specs_of(1, problem=digits | {"batch_size": 1})
    assert memory.needed(few, cuda) > 1797 * 64


CURVATURE = {"name": "quadratic", "family": "curvature", "dim": 40_000}
WIDE = {
    "name": "classification",
    "model": {"name": "mlp", "hidden": [512, 512]},
    "data": "digits",
}
FLEETS: dict[str, dict[str, Any]] = {
    "random choices": {"runs": 2, "nodes": 8, "rounds": 70, "problem": CURVATURE},
    "an algorithm that keeps much": {
        "runs": 1,
        "algorithm": "gradient_tracking",
        "nodes": 16,
        "problem": CURVATURE,
    },
    "models at nodes": {
        "runs": 1,
        "algorithm": "teleportation",
        "active": 2,
        "storage": "nodes",
        "nodes": 500,
        "problem": CURVATURE,
    },
    "Hessians": {
        "runs": 1,
        "nodes": 100,
        "problem": CURVATURE | {"family": "spectrum", "dim": 200},
    },
    "parameters": {"runs": 4, "nodes": 16, "problem": WIDE},
    "activations": {"runs": 1, "nodes": 32, "problem": WIDE | {"batch_size": 1000}},
}


def grow(fleet: dict[str, Any], compiled: bool, log: Path) -> None:
    """Run a tiny fleet, for what is loaded once, and then the fleet."""
    torch.set_num_threads(1)
    runs, problem = fleet.pop("runs"), fleet["problem"]
    tiny = {"problem": problem | {"dim": 3} if "dim" in problem else problem, "nodes": 2}
    fleet = {"rounds": 2} | fleet
    Fleet(specs_of(1, **fleet | tiny), compiled=compiled).advance()
    specs = specs_of(runs, **fleet)
    need, before = memory.needed(specs, compiled=compiled), peak()
    Fleet(specs, compiled=compiled).advance()
    log.write_text(f"{need} {peak() - before}")


def peak() -> int:
    """Bytes; `getrusage` would count what the process was forked from."""
    (found,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "torch"])
@pytest.mark.parametrize("name", FLEETS)
def test_what_a_fleet_takes_is_within_twice_and_half_of_what_it_needs(
    tmp_path: Path, name: str, compiled: bool
) -> None:
    log = tmp_path / "bytes"
    arguments = (dict(FLEETS[name]), compiled, log)
    process = multiprocessing.get_context("spawn").Process(target=grow, args=arguments)
    process.start()
    process.join()
    need, grown = map(int, log.read_text().split())
    assert need > 80 * 2**20  # beyond noise
    assert need / 2 < grown < 2 * need, (need / 2**20, grown / 2**20)


def test_what_is_free_is_what_the_tightest_limit_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 900 kB\nMemAvailable:  700 kB\n",
        "/sys/fs/cgroup/memory.stat": "anon 100000\nfile 999\n",
        "/sys/fs/cgroup/memory.max": "600000\n",
    }
    monkeypatch.setattr(
        Path, "read_text", lambda path: files[str(path)] if str(path) in files else fail()
    )
    assert memory.free(CPU) == 500_000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert memory.free(CPU) == 700 * 1024
    del files["/proc/meminfo"]
    assert memory.free(CPU) > 2**50  # nothing is known: nothing is refused


def fail() -> str:
    raise FileNotFoundError


def limited(log: Path) -> None:
    """Run fleets in a process that may take 600 MB more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 600 * 10**6
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    size = {"name": "quadratic", "family": "curvature", "dim": 10**5}
    small = specs_of(8, problem=size, rounds=2, nodes=2)  # 100 MiB each
    large = specs_of(1, problem=size, rounds=2, nodes=20)
    made = [run_group(part, CPU, lambda _: None, False) for part in (small, large)]
    log.write_text("\n".join(r.model_dump_json() for records in made for r in records))


def test_under_a_real_limit_fleets_are_split_and_a_large_run_says_so(tmp_path: Path) -> None:
    log = tmp_path / "records"
    process = multiprocessing.get_context("spawn").Process(target=limited, args=(log,))
    process.start()
    process.join()
    assert process.exitcode == 0
    found = [Record.model_validate_json(line) for line in log.read_text().splitlines()]
    assert [record.status for record in found] == ["finished"] * 8 + ["failed"]
    assert all(record.made.fleet["runs"] < 8 for record in found)
    assert re.search(r"needs about [\d.]+ MiB and has [\d.]+ MiB", found[-1].error or "")

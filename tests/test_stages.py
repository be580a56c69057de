"""Rows that do not wait for each other: every stage once, in order, on what it needs."""

from __future__ import annotations

import ctypes
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from teleport_bench import RunSpec, libraries, native
from teleport_bench import fleet as fleets
from teleport_bench.activation import BLOCK, drawn_ahead
from teleport_bench.algorithms import State
from teleport_bench.fleet import Fleet
from teleport_bench.native.calls import POINTER, WORD, Call, structure
from teleport_kernels import compiler

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")

STAGES = compiler.Library(
    Path(__file__).with_name("stages.cpp"),
    includes=(libraries.NATIVE / "stages.hpp", *compiler.LENT),
)
ROUNDS = 60
Matrices = list[NDArray[np.bool_]]


def to_the_next(n: int, step: int) -> NDArray[np.bool_]:
    """Row i receives from row i + step alone."""
    return np.roll(np.eye(n, dtype=bool), step, axis=1)


def sparse(n: int, seed: int) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random((n, n)) < 2 / n


GRAPHS = {
    "nobody": lambda n: [np.zeros((n, n), dtype=bool)],
    "everybody": lambda n: [np.ones((n, n), dtype=bool)],
    "ring": lambda n: [to_the_next(n, 1) | to_the_next(n, -1) | to_the_next(n, 0)],
    "one way": lambda n: [to_the_next(n, 1)],
    "this way and that": lambda n: [to_the_next(n, 1), to_the_next(n, -1)],
    "one after the other": lambda n: [to_the_next(n, step) for step in (1, 2, 4)],
    "from the first": lambda n: [np.eye(n, dtype=bool)[[0] * n]],
    "twice a round": lambda n: [np.eye(n, dtype=bool), to_the_next(n, 2)],
    "now and then": lambda n: [sparse(n, 0), np.zeros((n, n), dtype=bool), sparse(n, 1)],
}


def make(
    matrices: Matrices, threads: int, order: NDArray[np.int64], first: int = 0
) -> tuple[int, NDArray[np.int64], list[float]]:
    """Wrong turns and reads, each row's stages, and seconds by phase."""
    rows = len(order)
    tables = [
        (np.concatenate([[0], m.sum(1).cumsum()]), m.nonzero()[1].astype(np.int64))
        for m in matrices
    ]
    pointer = ctypes.c_void_p * len(tables)
    made, seconds = np.zeros(rows, dtype=np.int64), (ctypes.c_double * 4)()
    library = STAGES.load()
    library.make_stages.restype = ctypes.c_int64
    wrong = library.make_stages(
        *(ctypes.c_int64(n) for n in (threads, rows)),
        ctypes.c_void_p(order.ctypes.data),
        *(ctypes.c_int64(n) for n in (ROUNDS, first, len(tables))),
        *(pointer(*(table[i].ctypes.data for table in tables)) for i in (0, 1)),
        ctypes.c_void_p(made.ctypes.data),
        seconds,
    )
    return wrong, made, list(seconds)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(("threads", "rows"), [(2, 2), (2, 9), (3, 40), (4, 17), (5, 5)])
def test_every_stage_is_made_once_when_what_it_reads_is_there_and_before_it_goes(
    graph: str, threads: int, rows: int
) -> None:
    order = np.random.default_rng(rows).permutation(rows)
    for first in (0, 7):  # rounds before those
        wrong, made, _ = make(GRAPHS[graph](rows), threads, order, first)
        assert wrong == 0
        assert (made == 3 * ROUNDS).all()


def test_the_time_is_shared_out_among_the_phases_that_there_are() -> None:
    began = time.perf_counter()
    _, _, seconds = make(GRAPHS["ring"](16), 2, np.arange(16))
    assert min(seconds[1:3]) > 0
    assert seconds[0] == seconds[3] == 0
    assert sum(seconds) <= time.perf_counter() - began


SETTINGS: dict[str, dict[str, Any]] = {
    "momentum": {"algorithm": "dsgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "a matrix a round": {"algorithm": "dsgd", "topology": "base"},
    "exponential": {"algorithm": "dsgd", "topology": "exponential"},
    "few of many": {"algorithm": "teleportation", "nodes": 50, "active": 8},
    "two tensors": {"algorithm": "gradient_tracking"},
    "sums of rows": {"algorithm": "d2"},
    "local steps": {"algorithm": {"name": "local_sgd", "local_steps": 3}},
    "a draw a round": {"algorithm": "epidemic"},
    "losses": {"algorithm": "dsgd", "loss": 0.3},
    "matchings": {"algorithm": "gradient_tracking", "topology": "equi_dyn"},
}
DIGITS = {"name": "classification", "model": "logistic", "data": "digits", "batch_size": 5}


@contextmanager
def threads_of_torch(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def staged_as_called(n: int, spec: RunSpec) -> None:
    """On n threads stages make the rounds of the run, to the bits of calls one by one."""
    with threads_of_torch(n):
        fleet = Fleet([spec], compiled=True)
        replayed = fleet.advance()
        stepped = Fleet([spec], compiled=True, replay=False)
        assert [o.curves for o in replayed] == [o.curves for o in stepped.advance()]
    assert fleet.final is not None
    assert stepped.final is not None
    assert torch.equal(fleet.final, stepped.final)
    assert fleet.tapes
    assert any(tape.staged for tape in fleet.tapes.values())


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("problem", ["quadratic", DIGITS], ids=["quadratic", "digits"])
@pytest.mark.parametrize("name", SETTINGS)
def test_stages_give_the_bits_of_calls_one_by_one(name: str, problem: Any, threads: int) -> None:
    rounds = 3 * BLOCK + 9
    shared = {"nodes": 14, "problem": problem, "lr": 0.05, "rounds": rounds, "eval_every": 25}
    staged_as_called(threads, RunSpec.model_validate(shared | SETTINGS[name]))


@pytest.mark.parametrize("dim", [1, 63, 64, 65, 511, 1300])
def test_rows_of_any_length(dim: int) -> None:
    problem = {"name": "quadratic", "family": "curvature", "dim": dim, "sigma2": 0}
    settings = {"nodes": 5, "problem": problem, "lr": 0.1, "momentum": 0.9, "rounds": 2 * BLOCK}
    staged_as_called(
        2, RunSpec.model_validate({"algorithm": "dsgd", "topology": "ring"} | settings)
    )


def test_equal_rows_many_neighbours_and_rows_beyond_the_caches_are_mixed_in_tiles() -> None:
    shared = {"algorithm": "dsgd", "lr": 0.1, "rounds": 2 * BLOCK, "eval_every": 2 * BLOCK}
    long = {"name": "quadratic", "family": "curvature", "dim": 70_000, "sigma2": 0}
    dense = {"name": "erdos_renyi", "degree": 60}
    for other in (
        {"topology": "complete", "nodes": 8, "problem": "quadratic"},
        {"topology": dense, "nodes": 300, "problem": "quadratic"},
        {"topology": "ring", "nodes": 40, "problem": long},
    ):
        with threads_of_torch(2):
            fleet = Fleet([RunSpec.model_validate(shared | other)], compiled=True)
            fleet.advance()
        assert fleet.tapes
        assert not any(tape.staged for tape in fleet.tapes.values())


def test_an_algorithm_is_asked_for_a_few_rounds_and_the_others_are_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    step = Fleet.step

    def counted(self: Fleet, state: State, r: Any) -> State:
        asked.append(1)  # here and not in the algorithm, whose own counting is seen, and heeded
        return step(self, state, r)

    monkeypatch.setattr(Fleet, "step", counted)
    shared = {"nodes": 6, "problem": "quadratic", "lr": 0.1, "rounds": 4 * BLOCK + 1}
    for algorithm, topology, most in (
        ("dsgd", "ring", 6),
        ("gradient_tracking", "ring", 10),
        ("dsgd", "one_peer_exponential", 9),  # three graphs
    ):
        asked.clear()
        settings = {"algorithm": algorithm, "topology": topology, "eval_every": 4 * BLOCK + 1}
        Fleet([RunSpec.model_validate(shared | settings)], compiled=True).advance()
        assert 1 <= len(asked) <= most


def test_a_call_moves_where_it_points_into_the_table_and_nowhere_else() -> None:
    choices, other = torch.zeros(8, 3, dtype=torch.int64), torch.zeros(8, 3, dtype=torch.int64)
    inner = structure("Inner", first=POINTER, count=WORD)
    outer = structure("Outer", rows=inner, size=WORD, second=POINTER, none=POINTER, third=POINTER)
    size = choices.data_ptr() + 8  # looks like a pointer
    arguments = outer(
        inner(choices[2].data_ptr(), 7), size, other[2].data_ptr(), None, choices[2, 1].data_ptr()
    )
    table = [(choices.data_ptr(), choices.data_ptr() + choices.nbytes, 24)]
    call = Call(None, arguments, "mix", ())
    for rows in (3, -2):
        moved = call.moved(call.steps(table), rows).arguments
        assert moved.rows.first == choices[2 + rows].data_ptr()
        assert moved.third == choices[2 + rows, 1].data_ptr()
        assert (moved.rows.count, moved.size, moved.second) == (7, size, other[2].data_ptr())
        assert moved.none is None
    assert arguments.rows.first == choices[2].data_ptr()
    hidden = structure("Hidden", table=ctypes.POINTER(ctypes.c_float))
    with pytest.raises(TypeError, match="numbers and c_void_p"):
        Call(None, hidden(), "mix", ()).steps(table)


@pytest.mark.parametrize("batches", ["replacement", "shuffle"])
def test_who_draws_when_and_how_much_at_a_time_is_nothing_to_the_choices(
    batches: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = DIGITS | {"batches": batches}
    shared = {"nodes": 14, "active": 6, "problem": problem, "lr": 0.05, "eval_every": 25}
    settings = {"algorithm": "teleportation", "schedule": {"name": "cosine"}}
    found = []
    for rounds_left in (0, 9):
        spec = RunSpec.model_validate(shared | settings | {"rounds": 5 * BLOCK + rounds_left})
        for cores, threads, at_once in itertools.product((1, 64), (1, 3), (1, 2, 4)):
            monkeypatch.setattr(native, "cores", lambda n=cores: n)
            monkeypatch.setattr(fleets, "drawn_ahead", lambda *_, n=(threads, at_once): n)
            found.append(Fleet([spec], compiled=True).advance()[0].curves)
        assert all(curves == found[0] for curves in found)
        found.clear()


def test_threads_that_draw_and_their_blocks_have_bounds() -> None:
    assert drawn_ahead(2**14, 2) == (2, 4)
    assert drawn_ahead(2**17, 16) == (4, 2)
    assert drawn_ahead(2**20, 16) == (4, 1)
    assert drawn_ahead(2**27, 16) == (2, 1)
    assert drawn_ahead(2**30, 16) == (1, 1)

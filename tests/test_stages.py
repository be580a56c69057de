"""Rows that do not wait for each other: every stage once, in order, on what it needs."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from teleport_bench import RunSpec, libraries, native
from teleport_bench.activation import BLOCK
from teleport_bench.fleet import Fleet
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
    "now and then": lambda n: [sparse(n, 0), np.zeros((n, n), dtype=bool), sparse(n, 1)],
}


def make(
    matrices: Matrices, threads: int, order: NDArray[np.int64]
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
        *(ctypes.c_int64(n) for n in (ROUNDS, len(tables))),
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
    wrong, made, _ = make(GRAPHS[graph](rows), threads, order)
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
    "complete": {"algorithm": "teleportation", "active": 8, "topology": "complete"},
    "two tensors": {"algorithm": "gradient_tracking"},
    "sums of rows": {"algorithm": "d2"},
    "local steps": {"algorithm": {"name": "local_sgd", "local_steps": 3}},
    "a draw a round": {"algorithm": "epidemic"},
}
DIGITS = {"name": "classification", "model": "logistic", "data": "digits", "batch_size": 5}


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("problem", ["quadratic", DIGITS], ids=["quadratic", "digits"])
@pytest.mark.parametrize("name", SETTINGS)
def test_stages_give_the_bits_of_calls_one_by_one(name: str, problem: Any, threads: int) -> None:
    rounds = 3 * BLOCK + 9
    shared = {"nodes": 14, "problem": problem, "lr": 0.05, "rounds": rounds, "eval_every": 25}
    spec = RunSpec.model_validate(shared | SETTINGS[name])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fleet = Fleet([spec], compiled=True)
        replayed = fleet.advance()
        stepped = Fleet([spec], compiled=True, replay=False).advance()
    finally:
        torch.set_num_threads(before)
    assert fleet.tapes
    assert any(tape.staged for tape in fleet.tapes.values())
    assert [o.curves for o in replayed] == [o.curves for o in stepped]

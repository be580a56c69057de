"""Rounds as CUDA graphs: the rounds themselves, bit for bit; on the CPU without being captured."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from teleport_bench import RunSpec
from teleport_bench.activation import BLOCK
from teleport_bench.fleet import Fleet
from teleport_bench.graphs import Graphs

DIGITS = {"name": "classification", "model": "mlp", "data": "digits", "batch_size": 4}


def runs(graph: str, optimiser: dict[str, Any], problem: Any) -> list[RunSpec]:
    return [
        RunSpec(
            algorithm="teleportation",
            nodes=9,
            active=5,
            topology=graph,
            problem=problem,
            lr=lr,
            rounds=3 * BLOCK + 9,
            eval_every=25,
            schedule={"name": "cosine", "warmup": 5},
            **optimiser,
        )
        for lr in (0.1, 0.05)
    ]


cases = pytest.mark.parametrize(
    ("graph", "optimiser", "problem"),
    [
        ("ring", {}, "quadratic"),
        ("one_peer_exponential", {"momentum": 0.9}, "quadratic"),
        ("ring", {"momentum": 0.9, "nesterov": True}, DIGITS),
        ("ring", {}, DIGITS | {"augment": "crop_flip"}),
    ],
)


@cases
def test_the_rounds_of_a_graph_are_the_rounds(graph: str, optimiser: Any, problem: Any) -> None:
    """What CUDA captures, run as it is: the same memory each time, and the place in the block of
    random choices read from a tensor."""
    specs = runs(graph, optimiser, problem)
    plain, graphed = Fleet(specs), Fleet(specs)
    graphed.graphs = Graphs(graphed)
    assert [o.curves for o in graphed.advance()] == [o.curves for o in plain.advance()]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@cases
def test_captured_rounds_are_the_rounds(graph: str, optimiser: Any, problem: Any) -> None:
    specs = runs(graph, optimiser, problem)
    plain, graphed = Fleet(specs, "cuda"), Fleet(specs, "cuda", compiled=True)
    assert graphed.engine == "graph"
    for captured, stepped in zip(graphed.advance(), plain.advance(), strict=True):
        for name, values in stepped.curves.items():
            assert captured.curves[name] == pytest.approx(values, rel=1e-3, abs=1e-6), name

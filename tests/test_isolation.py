"""NaN and infinity in one run of a fleet never reach another, not by a bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import teleport_kernels as tk
from teleport_bench import RunSpec, native
from teleport_bench.curves import Outcome
from teleport_bench.fleet import Fleet
from teleport_kernels import Mixing

QUADRATIC = {"name": "quadratic", "dim": 7}
DIGITS = {
    "name": "classification",
    "model": {"name": "mlp", "hidden": [8]},
    "data": "digits",
    "partition": {"name": "dirichlet", "alpha": 0.3},
    "batch_size": 4,
}
SICK = 1


def specs(problem: dict[str, Any], **settings: Any) -> list[RunSpec]:
    """Three runs of one fleet that share nodes, samples and noise; the middle one is poisoned."""
    return [
        RunSpec.model_validate(
            {
                "algorithm": "teleportation",
                "nodes": 6,
                "active": 4,
                "topology": topology,
                "problem": problem,
                "lr": lr,
                "rounds": 70,
                "eval_every": 35,
            }
            | settings
        )
        for topology, lr in (("ring", 0.1), ("complete", 0.1), ("ring", 0.05))
    ]


def advanced(
    runs: list[RunSpec], compiled: bool, poison: float | None
) -> tuple[list[Outcome], torch.Tensor]:
    fleet = Fleet(runs, compiled=compiled)
    assert fleet.compiled == compiled
    if poison is not None:
        begin = fleet._start

        def sick() -> Any:
            state, nodes = begin()
            state["x"][fleet.run == SICK] = poison
            if nodes is not None:
                nodes[runs[0].nodes : 2 * runs[0].nodes] = poison
            return state, nodes

        fleet._start = sick  # type: ignore[method-assign]
    outcomes = fleet.advance()
    assert fleet.final is not None
    return outcomes, fleet.final[fleet.run != SICK].clone()


@pytest.mark.parametrize("poison", [math.nan, -math.inf])
@pytest.mark.parametrize(
    "settings", [{}, {"momentum": 0.9, "nesterov": True}, {"storage": "nodes"}]
)
@pytest.mark.parametrize("problem", [QUADRATIC, DIGITS], ids=["quadratic", "digits"])
@pytest.mark.parametrize("compiled", [False, True], ids=["torch", "compiled"])
def test_a_run_that_is_not_finite_leaves_the_others_as_they_are(
    compiled: bool, problem: dict[str, Any], settings: dict[str, Any], poison: float
) -> None:
    if compiled and not native.available():
        pytest.skip("no C++ compiler on this machine")
    runs = specs(problem, **settings)
    sound, x = advanced(runs, compiled, None)
    found, x_found = advanced(runs, compiled, poison)
    assert found[SICK].diverged_at == 0
    assert torch.equal(x, x_found)
    for i in (0, 2):
        assert found[i].diverged_at is None
        assert found[i].curves == sound[i].curves


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_blocks_and_groups_keep_what_is_not_finite_to_themselves(
    backend: str, poison: float
) -> None:
    x = torch.randn(9, 70)
    sick = x.clone()
    sick[3:6] = poison
    ring = Mixing.from_dense(torch.full((3, 3), 1 / 3))
    mixing = tk.block_diag([ring] * 3)
    groups = torch.arange(3).repeat_interleave(3)
    keep = [0, 1, 2, 6, 7, 8]
    for f in (
        lambda x: tk.gossip_mix(x, mixing, backend=backend)[keep],
        lambda x: tk.sgd_mix(x, x, mixing, lr=0.1, weight_decay=0.1, backend=backend)[keep],
        lambda x: tk.consensus(x, groups, backend=backend)[0][[0, 2]],
        lambda x: tk.consensus(x, groups, backend=backend)[1][[0, 2]],
    ):
        assert torch.equal(f(x), f(sick))

"""What mixing matrices must be, checked once where a topology is built."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from teleport_bench.errors import ComponentError
from teleport_bench.topologies.drawn import AnyTopology, RandomTopology
from teleport_kernels import Mixing

TOLERANCE = 1e-6
"""Of the sum of a row or a column: weights that were computed in float32 are about 1e-7 off."""

_CHECKED: weakref.WeakKeyDictionary[AnyTopology, bool] = weakref.WeakKeyDictionary()
"""Of those that were checked, whether their columns were."""


def checked(topology: Any, what: str, n: int, *, columns: bool = True) -> AnyTopology:
    """The topology, if its matrices are nonnegative, on n nodes, and their rows sum to 1; with
    `columns`, their columns too.

    Raises ComponentError that names round, row or column, and sum. what: its name in messages.
    O(entries) time the first time, nothing from then on. Of matrices that are drawn afresh, those
    of the first round are looked at.
    """
    what = f"{what} on {n} nodes"
    if not isinstance(topology, AnyTopology):
        raise ComponentError(
            f"{what} gives {_kind(topology)}, expected a Topology: return Topology([W]) with "
            "W = Mixing.from_dense(..) or metropolis_hastings(..)"
        )
    if topology in _CHECKED and _CHECKED[topology] >= columns and topology.n_nodes == n:
        return topology
    mixings = [topology.mixing(0)] if isinstance(topology, RandomTopology) else topology.mixings
    if not isinstance(mixings, list | tuple):
        raise ComponentError(f"{what} has {_kind(mixings)}, expected a list of Mixings: [W]")
    if not mixings:
        raise ComponentError(f"{what} has no mixing matrix: give Topology one for each round")
    for t, W in enumerate(mixings):
        _check_mixing(W, what if len(mixings) == 1 else f"{what}, round {t}", n, columns)
    _CHECKED[topology] = columns
    return topology


def _check_mixing(W: Any, what: str, n: int, columns: bool) -> None:
    if not isinstance(W, Mixing):
        raise ComponentError(
            f"{what}: W is {_kind(W)}, expected a Mixing: make one with Mixing.from_dense(W)"
        )
    if W.n_rows != n:
        raise ComponentError(
            f"{what}: W is {W.n_rows} x {W.n_rows}, expected {n} x {n}: one row a node"
        )
    if W.device.type != "cpu":
        raise ComponentError(f"{what}: W lies on {W.device}, expected the CPU: give W.to('cpu')")
    wrong = ~(W.weights >= 0)  # NaN too
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        i, j, w = int(W.rows[at]), int(W.indices[at]), float(W.weights[at])
        raise ComponentError(f"{what}: W[{i}, {j}] = {w:.9g}, expected a weight of 0 or more")
    for name, index in (("row", W.rows), ("column", W.indices))[: 1 + columns]:
        sums = torch.zeros(n, dtype=torch.float64).index_add_(0, index, W.weights.double())
        wrong = ~((sums - 1).abs() <= TOLERANCE)
        if bool(wrong.any()):
            i = int(wrong.nonzero()[0])
            raise ComponentError(
                f"{what}: {name} {i} of W sums to {float(sums[i]):.9g}, expected 1"
            )


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"

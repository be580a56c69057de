"""Rounds as CUDA graphs: a round is captured once and costs one launch from then on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from teleport_bench.algorithms import State
from teleport_bench.errors import UserError
from teleport_bench.native import remembered

if TYPE_CHECKING:
    from teleport_bench.fleet import Fleet, FleetRound

WARM = 2
"""Rounds that run as they are before the next one is captured."""


class Graphs:
    """The rounds of a fleet, one graph for each place in the topologies' periods.

    A graph reads and writes the same memory each time: the state lies in tensors of its own, and a
    counter on the device says which of the block's random choices a round takes. Without a CUDA
    device nothing is captured and the same rounds run one by one.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._state: State = {}
        self._at = torch.zeros(1, dtype=torch.int64, device=fleet.device)
        self._graphs: dict[tuple[Any, ...], torch.cuda.CUDAGraph] = {}
        self._seen: dict[tuple[Any, ...], int] = {}
        self._pool: Any = None
        self._steady = True
        """Whether rounds have depended on tensors alone: a graph would not see the rest change."""

    def run(self, state: State, start: int, first: int, last: int) -> State:
        """Rounds first .. last - 1 of the block that begins with round start."""
        fleet = self._fleet
        for name, tensor in state.items():
            if name not in self._state:
                self._state[name] = tensor.clone()
            elif self._state[name] is not tensor:
                self._state[name].copy_(tensor)
        self._at.fill_(first - start)
        known, began, otherwise, launched = dict(fleet.phases), time.perf_counter(), 0.0, False
        for t in range(first, last):
            key = t % fleet.period, *self._state
            if key not in self._graphs:
                start_of_round = time.perf_counter()
                self._seen[key] = self._seen.get(key, 0) + 1
                if fleet.device.type != "cuda" or self._seen[key] <= WARM or not self._steady:
                    warming = self._seen[key] <= WARM
                    before = remembered(fleet.algorithm) if warming else b""
                    asked = self._round(t, as_it_is=True).asked
                    after = remembered(fleet.algorithm) if warming else b""
                    self._steady &= not asked and before is not None and before == after
                else:
                    self._graphs[key] = self._capture(t)
                otherwise += time.perf_counter() - start_of_round
            if key in self._graphs:
                self._graphs[key].replay()
                launched = True
        if launched:
            torch.cuda.synchronize()
            self._share(time.perf_counter() - began - otherwise, known)
        return dict(self._state)

    def _round(self, t: int, *, as_it_is: bool = False) -> FleetRound:
        from teleport_bench.fleet import FleetRound, Place

        fleet = self._fleet
        round_ = FleetRound(fleet, t, self._at, Place(None))
        # outside of a graph a step may keep what it is given, which is written to below
        state = {name: x.clone() if as_it_is else x for name, x in self._state.items()}
        after = fleet.step(state, round_)
        for name, tensor in self._state.items():
            if name not in after or (found := after[name]).shape != tensor.shape:
                got = "nothing" if name not in after else f"shape {tuple(found.shape)}"
                raise UserError(
                    f'state["{name}"] has shape {tuple(tensor.shape)}, and step returned {got}: '
                    "with --compile a state keeps its tensors on CUDA; or use --compile off"
                )
        kept = {tensor.data_ptr() for tensor in self._state.values()}
        for name, tensor in after.items():
            if tensor.data_ptr() in kept and tensor is not self._state.get(name):
                after[name] = tensor.clone()  # one that the state has under another name
        for name, tensor in after.items():
            if name not in self._state:
                self._state[name] = tensor.clone()
            elif tensor is not self._state[name]:
                self._state[name].copy_(tensor)
        self._at.add_(1)
        return round_

    def _capture(self, t: int) -> torch.cuda.CUDAGraph:
        fleet = self._fleet
        fleet.mixing(t, self._at)  # made, and on the device, before
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        phases = dict(fleet.phases)
        with torch.cuda.graph(graph, pool=self._pool):
            self._round(t)
        self._pool = graph.pool()
        fleet.phases |= phases  # nothing has run yet
        return graph

    def _share(self, seconds: float, known: dict[str, float]) -> None:
        """Time of launched rounds, split as the rounds before the first capture were."""
        total = known["gradient"] + known["mix"]
        for name in ("gradient", "mix"):
            self._fleet.phases[name] += seconds * (known[name] / total if total else 0.5)

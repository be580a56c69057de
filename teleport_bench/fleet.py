"""The round loop: many runs, stacked as blocks of rows, advanced in lockstep."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import teleport_kernels as tk
from teleport_bench.activation import BLOCK, draw_holders
from teleport_bench.algorithms import State
from teleport_bench.metrics import AXES
from teleport_bench.network import messages
from teleport_bench.problems import Member
from teleport_bench.problems.base import worlds_of
from teleport_bench.spec import RunSpec, canonical

DIVERGED = 1e4
"""A run has diverged when its objective is not finite, or more than this times what it was at the
start (or than this, where it started below 1)."""

FLEET_BYTES = 4 * 2**20
"""Parameters advanced together, so that a fleet's tensors stay in cache: measured on two cores with
32 MiB of cache, 4 MiB is three times as fast as 64 MiB. A single run may be larger."""


@dataclass
class Outcome:
    """What a run leaves: its curves up to the last sound evaluation, and where it diverged."""

    curves: dict[str, list[float]]
    diverged_at: int | None
    phases: dict[str, float]
    """Seconds by phase, the run's share of the fleet's by rows."""


@dataclass(frozen=True)
class Tick:
    """Progress: row rounds since the last tick, the round reached, a metric's mean over runs."""

    updates: int
    round: int
    metric: str | None = None
    value: float | None = None


def group(specs: Sequence[RunSpec]) -> list[list[RunSpec]]:
    """Runs that can advance in lockstep, together; at most FLEET_BYTES of parameters in each group.

    They share algorithm, problem, optimiser constants and the rounds that are evaluated; nodes,
    active nodes, topology, step size, schedule and seed may differ.
    """
    groups: dict[str, list[list[RunSpec]]] = {}
    for spec in specs:
        shared = spec.model_dump(
            mode="json", exclude={"nodes", "active", "topology", "lr", "schedule", "seed"}
        )
        parts = groups.setdefault(canonical(shared), [[]])
        rows = sum(s.n_active for s in parts[-1]) + spec.n_active
        if parts[-1] and rows * spec.build_problem().n_params * 4 > FLEET_BYTES:
            parts.append([])
        parts[-1].append(spec)
    return [part for parts in groups.values() for part in parts]


class Fleet:
    """Runs of one group as one tensor program. Row a of a run is its token a."""

    def __init__(self, specs: Sequence[RunSpec], device: torch.device | str = "cpu") -> None:
        self.specs = list(specs)
        self.spec = specs[0]  # for whatever the group shares
        self.device = torch.device(device)
        self.algorithm = self.spec.build_algorithm()
        self.topologies = [spec.build_topology() for spec in specs]

        # Runs that share seed, nodes and active nodes share their random choices: one member.
        of_run = [Member(s.seed, s.nodes, s.n_active) for s in specs]
        self.members = list(dict.fromkeys(of_run))
        worlds = worlds_of(self.members)
        self.problem = self.spec.build_problem().fleet(self.members, self.device)

        rows = [spec.n_active for spec in specs]
        self.run = torch.repeat_interleave(torch.tensor(rows)).to(self.device)
        self.world = torch.tensor([worlds.index((m.seed, m.nodes)) for m in of_run]).to(self.device)
        member_start = np.cumsum([0, *(m.active for m in self.members)])
        self.member_of_run = [self.members.index(m) for m in of_run]
        starts = [member_start[m] for m in self.member_of_run]
        self.member_row = torch.from_numpy(
            np.concatenate([s + np.arange(r) for s, r in zip(starts, rows, strict=True)])
        ).to(self.device)
        self.shares = len(self.members) < len(specs)
        node_start = np.cumsum([0, *(n for _, n in worlds)])
        self.node_offset = [int(node_start[worlds.index((m.seed, m.nodes))]) for m in self.members]
        # storage = "nodes": every run has its own n rows
        storage_start = np.cumsum([0, *(s.nodes for s in specs)])
        self.storage_offset = torch.from_numpy(np.repeat(storage_start[:-1], rows)).to(self.device)
        node_of_run = torch.tensor([self.node_offset[m] for m in self.member_of_run])
        self.node_shift = node_of_run.to(self.device)[self.run]

        self.factors = [spec.build_schedule() for spec in specs]
        self.base_lr = torch.tensor([s.lr for s in specs], dtype=torch.float64)
        self.mixings: dict[tuple[int, ...], tk.Mixing] = {}
        self.phases = dict.fromkeys(("data", "gradient", "mix", "metric"), 0.0)

    @property
    def n_rows(self) -> int:
        return self.run.numel()

    def advance(self, on_tick: Callable[[Tick], None] = lambda _: None) -> list[Outcome]:
        """All rounds of all runs. Calls on_tick after each block and each evaluation."""
        recorder = _Recorder(self)
        state, nodes = self._start()
        recorder.evaluate(0, state["x"], on_tick)
        due = set(self.spec.evaluations())
        before: list[NDArray[np.int64]] = []
        previous: Tensor | None = None
        for block in range(math.ceil(self.spec.rounds / BLOCK)):
            start = block * BLOCK
            with self._phase("data"):
                holders = [self._holders(m, block) for m in self.members]
                recorder.count(start, holders, before or [h[0] for h in holders])
                before = [h[-1] for h in holders]
                node, data = self._draw(block, holders)
                lr = self._step_sizes(start)
            done = 0
            for t in range(start, min(start + BLOCK, self.spec.rounds)):
                i = t - start
                here = node[i][self.member_row]
                round_ = FleetRound(self, t, lr[i], here, data[i], previous, nodes)
                state = self.algorithm.step(state, round_)
                previous = here
                done += 1
                if t + 1 in due:
                    on_tick(Tick(done * self.n_rows, t + 1))
                    done = 0
                    recorder.evaluate(t + 1, round_.stored(state["x"]), on_tick)
                    if recorder.all_diverged:
                        on_tick(Tick((self.spec.rounds - t - 1) * self.n_rows, self.spec.rounds))
                        return recorder.outcomes()
            on_tick(Tick(done * self.n_rows, start + i + 1))
        return recorder.outcomes()

    def _start(self) -> tuple[State, Tensor | None]:
        x0 = torch.stack([self.problem.initial(spec.seed) for spec in self.specs])
        state = self.algorithm.start(x0[self.run], momentum=self.spec.momentum > 0)
        if self.spec.storage == "slots":
            return state, None
        counts = torch.tensor([spec.nodes for spec in self.specs], device=self.device)
        return state, x0.repeat_interleave(counts, 0)

    def _holders(self, m: Member, block: int) -> NDArray[np.int64]:
        return draw_holders(self.algorithm.activation, m.seed, m.nodes, m.active, block)

    def _draw(self, block: int, holders: list[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
        """Holders (counted through all worlds) and random choices: (BLOCK, member rows, ...)."""
        node = np.concatenate(
            [h + offset for h, offset in zip(holders, self.node_offset, strict=True)], axis=1
        )
        data: NDArray[Any] = np.concatenate(
            [self.problem.draw(i, block, h) for i, h in enumerate(holders)], axis=1
        )
        return torch.from_numpy(node).to(self.device), torch.from_numpy(data).to(self.device)

    def _step_sizes(self, start: int) -> Tensor:
        """(BLOCK, rows): every row's step size in each round of the block."""
        factors = [[f(t) for f in self.factors] for t in range(start, start + BLOCK)]
        lr = torch.tensor(factors, dtype=torch.float64) * self.base_lr
        return lr.float().to(self.device)[:, self.run]

    def mixing(self, t: int) -> tk.Mixing:
        """The block-diagonal matrix of all runs in round t."""
        phase = tuple(t % topology.period for topology in self.topologies)
        if phase not in self.mixings:
            blocks = [topology.mixing(t) for topology in self.topologies]
            self.mixings[phase] = tk.block_diag(blocks).to(self.device)
        return self.mixings[phase]

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.phases[name] += time.perf_counter() - began


@dataclass(frozen=True, eq=False)
class FleetRound:
    """The round that an algorithm sees: see `algorithms.base.Round`."""

    fleet: Fleet
    t: int
    lr: Tensor
    node: Tensor
    """(rows,): who holds each token, counted through all worlds."""
    data: Tensor
    previous: Tensor | None
    nodes: Tensor | None
    """(all nodes, P) where storage = "nodes"."""

    def fetch(self, x: Tensor) -> Tensor:
        if self.nodes is None:
            return x
        with self.fleet._phase("mix"):
            return self.nodes[self._address(self.node if self.previous is None else self.previous)]

    def gradient(self, x: Tensor) -> Tensor:
        fleet = self.fleet
        with fleet._phase("gradient"):
            data = self.data[fleet.member_row] if fleet.shares else self.data
            return fleet.problem.gradient(x, self.node, data)

    def sgd_mix(self, x: Tensor, grad: Tensor, momentum: Tensor | None) -> Tensor:
        fleet, spec = self.fleet, self.fleet.spec
        with fleet._phase("mix"):
            return tk.sgd_mix(
                x,
                grad,
                fleet.mixing(self.t),
                lr=self.lr,
                momentum=momentum,
                beta=spec.momentum,
                nesterov=spec.nesterov,
                weight_decay=spec.weight_decay,
                target=None if self.nodes is None else self._address(self.node),
                out=self.nodes,
            )

    def stored(self, x: Tensor) -> Tensor:
        """(rows, P): the tokens, wherever they are stored."""
        return x if self.nodes is None else self.nodes[self._address(self.node)]

    def _address(self, node: Tensor) -> Tensor:
        """Rows of the nodes tensor: every run has its own n."""
        return node - self.fleet.node_shift + self.fleet.storage_offset


class _Recorder:
    """Curves of all runs of a fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        runs = len(fleet.specs)
        self.curves: list[dict[str, list[float]]] = [{} for _ in range(runs)]
        self.diverged_at: list[int | None] = [None] * runs
        self.limit: list[float] = [math.inf] * runs
        self.sent = [[0] for _ in range(runs)]  # messages up to the end of each round

    def count(
        self, start: int, holders: list[NDArray[np.int64]], before: list[NDArray[np.int64]]
    ) -> None:
        """Add the messages of a block of rounds."""
        fleet = self.fleet
        for sent, m, topology in zip(self.sent, fleet.member_of_run, fleet.topologies, strict=True):
            counts = messages(topology, holders[m], before[m], start)
            sent.extend((sent[-1] + counts.cumsum()).tolist())

    def evaluate(self, t: int, x: Tensor, on_tick: Callable[[Tick], None]) -> None:
        """Take all metrics after t rounds; a diverged run keeps the curve it had before."""
        fleet = self.fleet
        problem = fleet.spec.build_problem()
        with fleet._phase("metric"):
            mean, distance = tk.consensus(x, fleet.run)
            rows = torch.bincount(fleet.run, minlength=len(fleet.specs))
            values = fleet.problem.evaluate(x, mean, fleet.run, fleet.world)
            values["consensus"] = distance / rows
            table = {name: value.double().tolist() for name, value in values.items()}
        objective, headline = problem.metrics[:2]
        alive = []
        for r, (spec, curve) in enumerate(zip(fleet.specs, self.curves, strict=True)):
            if self.diverged_at[r] is not None:
                continue
            point = {name: column[r] for name, column in table.items()}
            if t == 0:
                self.limit[r] = DIVERGED * max(1.0, point[objective])
            if not all(map(math.isfinite, point.values())) or point[objective] > self.limit[r]:
                self.diverged_at[r] = t
                continue
            alive.append(point[headline])
            gradients = t * spec.n_active
            size = self.sent[r][t] * problem.n_params * x.element_size()
            axes = (t, problem.epochs(spec.nodes, gradients), gradients, size, size / spec.nodes)
            for name, value in (*zip(AXES, axes, strict=True), *point.items()):
                curve.setdefault(name, []).append(value)
        if alive:
            on_tick(Tick(0, t, headline, sum(alive) / len(alive)))

    @property
    def all_diverged(self) -> bool:
        return all(t is not None for t in self.diverged_at)

    def outcomes(self) -> list[Outcome]:
        fleet = self.fleet
        return [
            Outcome(
                curve,
                diverged,
                {k: v * spec.n_active / fleet.n_rows for k, v in fleet.phases.items()},
            )
            for spec, curve, diverged in zip(
                fleet.specs, self.curves, self.diverged_at, strict=True
            )
        ]

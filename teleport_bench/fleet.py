"""The round loop: many runs, stacked as blocks of rows, advanced in lockstep."""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import operator
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import teleport_kernels as tk
from teleport_bench import native, trace
from teleport_bench.activation import BLOCK, block_bytes, draw_holders, drawn_ahead
from teleport_bench.algorithms import Rate, State
from teleport_bench.ambient import plain
from teleport_bench.checkpoint import Checkpoint, outline
from teleport_bench.conditions import absence, tries
from teleport_bench.curves import Curves, Outcome, Target
from teleport_bench.errors import UserError
from teleport_bench.graphs import Graphs
from teleport_bench.kept import array, expect, fields, seconds, whole
from teleport_bench.kept import tensor as dense
from teleport_bench.metrics import AXES
from teleport_bench.native.calls import PHASES
from teleport_bench.network import sent
from teleport_bench.problems.base import FleetProblem, check_metrics, worlds_of
from teleport_bench.schedules import constant_factor
from teleport_bench.spec import RunSpec, canonical
from teleport_bench.topologies.drawn import Diagonal, entries
from teleport_kernels import checks, cpu

FLEET_BYTES = 4 * 2**20
"""Parameters advanced together, so that a fleet's tensors stay in cache: measured on two cores with
32 MiB of cache, 4 MiB is three times as fast as 64 MiB. A single run may be larger."""

MOST_PHASES = 64
"""Rounds after which the graphs of a fleet come round: each of them has a matrix for all runs."""

COUNTED = 2**18
"""Holders after which the messages between them are counted at the latest."""

TAPES = 64
"""Tapes that a fleet keeps, one for each place in the topologies' periods where a block begins."""


@dataclass(frozen=True)
class Tick:
    """Progress: row rounds since the last tick, the round reached, a metric's mean over runs."""

    updates: int
    round: int
    metric: str | None = None
    value: float | None = None


def fleet_bytes(device: torch.device) -> int:
    """Parameters of a fleet at most: FLEET_BYTES, and on CUDA a sixteenth of what is free there,
    since gradient, momentum, the mixed rows and activations take several times as much."""
    return FLEET_BYTES if device.type == "cpu" else int(torch.cuda.mem_get_info(device)[0]) // 16


def group(specs: Sequence[RunSpec], most: int | None = None) -> list[list[RunSpec]]:
    """Runs that can advance in lockstep, together; at most so many bytes of parameters in a group
    (FLEET_BYTES), unless a single run has more.

    They share algorithm, problem, optimiser constants and the rounds that are evaluated; nodes,
    active nodes, their draw, topology, loss, step size, schedule and seed may differ. The graphs of
    a group come round together after at most MOST_PHASES rounds.
    """
    most = FLEET_BYTES if most is None else most
    groups: dict[str, list[_Part]] = {}
    for spec in specs:
        own = {"nodes", "active", "share", "topology", "loss", "losses", "lr", "schedule", "seed"}
        key = canonical(spec.model_dump(mode="json", exclude=own))
        period = spec.period or 1
        # a row counts as much as its part of the matrices of a period, or of a block, at least
        matrices = spec.period or BLOCK
        size = spec.n_active * max(spec.build_problem().n_params, matrices) * 4
        parts = groups.setdefault(key, [])
        part = next((p for p in parts if p.takes(size, period, most)), None)
        if part is None:
            parts.append(part := _Part())
        part.add(spec, size, period)
    return [part.specs for parts in groups.values() for part in parts]


class _Part:
    """A group while it is filled."""

    def __init__(self) -> None:
        self.specs: list[RunSpec] = []
        self.size, self.period = 0, 1

    def takes(self, size: int, period: int, most: int) -> bool:
        together = math.lcm(self.period, period)
        return self.size + size <= most and together <= max(MOST_PHASES, self.period, period)

    def add(self, spec: RunSpec, size: int, period: int) -> None:
        self.specs.append(spec)
        self.size += size
        self.period = math.lcm(self.period, period)


def split(parts: Sequence[Sequence[RunSpec]], most: int) -> str:
    """How runs are cut into fleets of at most so many bytes of parameters, in words."""
    runs = [len(part) for part in parts]
    return (
        f"{sum(runs)} runs in {len(parts)} fleets of {min(runs)} to {max(runs)}, at most "
        f"{most / 2**20:.4g} MiB of parameters each"
    )


class Fleet:
    """Runs of one group as one tensor program. Row a of a run is its token a.

    compiled: on the CPU, gradients, scores and mixing in C++, and rounds replayed from a tape; on
    CUDA, rounds as graphs. Otherwise, or where the library does not have the problem, in torch.
    replay: False makes every call of a round from Python, for those who want to see them.
    """

    @plain()
    def __init__(
        self,
        specs: Sequence[RunSpec],
        device: torch.device | str = "cpu",
        *,
        compiled: bool = False,
        replay: bool = True,
    ) -> None:
        self.specs = list(specs)
        self.spec = specs[0]  # for whatever the group shares
        self.device = torch.device(device)
        self.algorithm = self.spec.build_algorithm()
        self.topologies = [spec.build_topology() for spec in specs]
        self.links = [spec.build_links() for spec in specs]
        periods = [topology.period for topology in self.topologies]
        self.diagonal = Diagonal(self.topologies) if None in periods else None
        """Where some run's matrices are drawn afresh: then those of all are laid out by block."""

        # Runs that share seed, nodes and active nodes share their random choices: one member.
        of_run = [spec.member for spec in specs]
        self.members = list(dict.fromkeys(of_run))
        worlds = {world: i for i, world in enumerate(worlds_of(self.members))}
        self.problem = self.spec.build_problem().fleet(self.members, self.device)
        if not isinstance(self.problem, FleetProblem):
            kind = type(self.problem).__name__
            raise UserError(f"fleet of a problem must give a FleetProblem, got {kind}")

        rows = [spec.n_active for spec in specs]
        self.run = torch.repeat_interleave(torch.tensor(rows)).to(self.device)
        self.device = self.run.device  # with its number
        self.world = torch.tensor([worlds[m.seed, m.nodes] for m in of_run]).to(self.device)
        member_start = np.cumsum([0, *(m.active for m in self.members)])
        places = {m: i for i, m in enumerate(self.members)}
        self.member_of_run = [places[m] for m in of_run]
        starts = [member_start[m] for m in self.member_of_run]
        self.member_row = torch.from_numpy(
            np.concatenate([s + np.arange(r) for s, r in zip(starts, rows, strict=True)])
        ).to(self.device)
        self.shares = len(self.members) < len(specs)
        node_start = np.cumsum([0, *(n for _, n in worlds)])
        self.node_offset = [int(node_start[worlds[m.seed, m.nodes]]) for m in self.members]
        # storage = "nodes": every run has its own n rows
        storage_start = np.cumsum([0, *(s.nodes for s in specs)])
        self.storage_offset = torch.from_numpy(np.repeat(storage_start[:-1], rows)).to(self.device)
        node_of_run = torch.tensor([self.node_offset[m] for m in self.member_of_run])
        self.node_shift = node_of_run.to(self.device)[self.run]

        there = [columns for spec in specs if (columns := spec.there()) is not None]
        self.there = np.concatenate(there, axis=1) if there else None
        """(period, rows): whether each row's node is there, where rows stay at their nodes."""
        self.factors = _Factors(specs)
        self.mixings: dict[int, tk.Mixing] = {}
        self.alone = tk.Mixing.identity(len(self.run)).to(self.device)
        self.period = 1 if self.diagonal else math.lcm(*filter(None, periods))
        """Of what a round is made of besides the block's choices."""
        self.phases = dict.fromkeys(PHASES, 0.0)
        self.choices = Choices(self)

        self.threads = torch.get_num_threads()
        self.rows = native.Rows(self.member_row.cpu())
        self.buffers = native.Buffers(len(self.member_row), self.spec.build_problem().n_params)
        self.compiled = (
            compiled
            and self.device.type == "cpu"
            and native.available()
            and _computes(self.problem)
            and self.problem.compile(self.rows)
        )
        # tokens that are stored at nodes move by indexing, which no tape knows
        slots = self.spec.storage == "slots"
        self.tapes: dict[tuple[Any, ...], native.Tape] | None = (
            {} if self.compiled and replay and slots else None
        )
        self._tape: native.Tape | None = None
        self._recorded: dict[tuple[Any, ...], native.Recorded] = {}
        self.final: Tensor | None = None
        """(rows, P): the tokens as `advance` left them."""
        graphs = compiled and replay and slots and self.device.type == "cuda"
        self.graphs = Graphs(self) if graphs else None

    @property
    def n_rows(self) -> int:
        return self.run.numel()

    @property
    def engine(self) -> str:
        """What advances the rounds: "compiled", "graph" or "torch"."""
        return "compiled" if self.compiled else "graph" if self.graphs else "torch"

    @plain()
    def advance(
        self,
        on_tick: Callable[[Tick], None] = lambda _: None,
        checkpoint: Checkpoint | None = None,
    ) -> list[Outcome]:
        """All rounds of all runs, or those that a checkpoint leaves. Calls on_tick after each block
        and each evaluation."""
        with native.pool_alone() if self.compiled else nullcontext():
            return self._advance(on_tick, checkpoint)

    def _advance(
        self, on_tick: Callable[[Tick], None], checkpoint: Checkpoint | None
    ) -> list[Outcome]:
        due, looks = set(self.spec.evaluations()), set(self.spec.looks())
        begin, before = 0, list[NDArray[np.int64]]()
        if checkpoint and (restored := self._restored(checkpoint)):
            begin, state, place, recorder = restored
            before = [h[-1] for h in self.choices.holders(begin // BLOCK - 1)]
            on_tick(Tick(begin * self.n_rows, begin))
        else:
            recorder = _Recorder(self)
            state, nodes = self._start()
            place = Place(nodes)
            recorder.look(0, state["x"])
            recorder.evaluate(0, state["x"], on_tick)
        with self.choices.drawing(begin // BLOCK):
            for start in range(begin, self.spec.rounds, BLOCK):
                if checkpoint and start > begin and checkpoint.due:
                    checkpoint.save(
                        {
                            "round": start,
                            "state": state,
                            "place": [place.nodes, place.address],
                            "recorder": recorder.keep(),
                            "phases": self.phases,
                        }
                    )
                end = min(start + BLOCK, self.spec.rounds)
                with self.phase("data"):
                    holders = self.choices.take(start // BLOCK)
                    recorder.count(start, holders, before or [h[0] for h in holders])
                    before = [h[-1] for h in holders]
                    self.choices.draw_ahead()
                stops = sorted({start, end} | ((due | looks) & set(range(start + 1, end))))
                for first, last in itertools.pairwise(stops):
                    state = self._rounds(state, place, start, first, last)
                    on_tick(Tick((last - first) * self.n_rows, last))
                    if last not in due and last not in looks:
                        continue
                    self.final = place.stored(state["x"], self)
                    if last in looks:
                        recorder.look(last, self.final)
                    if last in due or recorder.ending.any():
                        recorder.evaluate(last, self.final, on_tick, all_runs=last in due)
                    if recorder.all_over:
                        left = (self.spec.rounds - last) * self.n_rows
                        on_tick(Tick(left, self.spec.rounds))
                        return recorder.outcomes()
        return recorder.outcomes()

    def _restored(self, checkpoint: Checkpoint) -> tuple[int, State, Place, _Recorder] | None:
        """The round, and all that the rounds from there on need, as a checkpoint has it; None where
        it has nothing that these runs can have kept, which it is then told."""
        if (kept := checkpoint.load()) is None:
            return None
        try:
            return self._checked(kept)
        except Exception as error:  # anything may have written it, and runs can start over
            self.phases = dict.fromkeys(PHASES, 0.0)
            checkpoint.refuse(error)
            return None

    def _checked(self, kept: Any) -> tuple[int, State, Place, _Recorder]:
        parts = ("round", "state", "place", "recorder", "phases")
        kept, n_params = fields(kept, parts, "its state"), self.spec.build_problem().n_params
        begin = whole(kept["round"], BLOCK, self.spec.rounds - 1, "its round")
        expect(begin % BLOCK == 0, "its round is not the first of a block")
        spent = fields(kept["phases"], PHASES, "its phases")
        recorder = _Recorder(self)
        recorder.restore(kept["recorder"], begin)

        stored = sum(s.nodes for s in self.specs) if self.spec.storage == "nodes" else None
        shapes = outline(self.spec, self.n_rows, stored, begin)
        found = fields(kept["state"], shapes, "its state")
        state = {name: dense(found[name], *shapes[name], name) for name in shapes}
        expect(type(kept["place"]) is list and len(kept["place"]) == 2, "its place is no pair")
        nodes, address = kept["place"]
        if stored is None:
            expect(nodes is None and address is None, "its runs store nothing at nodes")
        else:
            nodes = dense(nodes, torch.float32, (stored, n_params), "the nodes' models")
            address = dense(address, torch.int64, (self.n_rows,), "where models are stored")
            expect(
                torch.equal(address, self._addresses_after(begin)),
                "its models are stored elsewhere",
            )
        live = torch.from_numpy(~recorder.over)
        of_node = live.repeat_interleave(torch.tensor([s.nodes for s in self.specs]))
        for name, x in [*state.items(), *([("nodes", nodes)] if stored else [])]:
            rows = of_node if x.shape[:1] == (stored,) else live[self.run.cpu()]
            if x.is_floating_point() and x.shape[:1] == rows.shape:
                expect(bool(x[rows].isfinite().all()), f"{name} is not finite")
        state = {name: x.to(self.device) for name, x in state.items()}
        place = Place(*(x if x is None else x.to(self.device) for x in (nodes, address)))
        recorder.compare(begin, place.stored(state["x"], self))
        self.phases = {name: seconds(spent[name], name) for name in PHASES}
        return begin, state, place, recorder

    def _addresses_after(self, t: int) -> Tensor:
        """(rows,): where each token was stored in round t - 1, the last of a block."""
        holders = self.choices.holders(t // BLOCK - 1)
        node = [h[-1] + offset for h, offset in zip(holders, self.node_offset, strict=True)]
        rows = torch.from_numpy(np.concatenate(node))[self.member_row.cpu()]
        return rows - self.node_shift.cpu() + self.storage_offset.cpu()

    def _start(self) -> tuple[State, Tensor | None]:
        starts = {seed: self._initial(seed) for seed in {s.seed for s in self.specs}}
        x0 = torch.stack([starts[spec.seed] for spec in self.specs])
        state = self.algorithm.start(x0[self.run], momentum=self.spec.momentum > 0)
        state = self.sound(state, Place(None), "start")
        if self.spec.storage == "slots":
            return state, None
        counts = torch.tensor([spec.nodes for spec in self.specs], device=self.device)
        return state, x0.repeat_interleave(counts, 0)

    def _initial(self, seed: int) -> Tensor:
        width = self.buffers.shape[1:]
        x = self.problem.initial(seed)
        x = native.checked(f"initial({seed}) of the problem", x, width, device=self.device)
        if not bool(x.isfinite().all()):
            raise UserError(
                f"initial({seed}) of the problem must be finite, got {x[~x.isfinite()][0].item()}"
            )
        return x

    def step(self, state: State, round_: FleetRound) -> State:
        """One round of the algorithm."""
        round_.place.x = state["x"]
        return self.sound(self.algorithm.step(state, round_), round_.place, "step")

    def sound(self, state: object, place: Place, source: str) -> State:
        """The state that the algorithm (or a checkpoint) gives, if rounds can go on from it."""
        if not isinstance(state, dict) or "x" not in state:
            got = f"one with {sorted(map(str, state))}" if isinstance(state, dict) else state
            raise UserError(
                f'a state is a dict of tensors with an "x", got {got!r:.200} from {source}: return '
                'state | {"x": ..}'
            )
        sound = {}
        for name, tensor in state.items():
            named = f'state["{name}"] from {source}'
            if name == "x" and source == "step" and place.nodes is not None:
                if tensor is not place.nodes:
                    raise UserError(
                        f'with storage = "nodes" {named} must be what r.sgd_mix gave, got another '
                        'tensor: use storage = "slots", and say at_nodes = False in the algorithm'
                    )
                sound[name] = tensor
            elif name != "x" or place.nodes is not None:
                sound[name] = native.dense(named, tensor, self.device)
            else:
                shape, device = self.buffers.shape, self.device
                sound[name] = native.checked(named, tensor, shape, device=device, rows=True)
        return sound

    def _rounds(self, state: State, place: Place, start: int, first: int, last: int) -> State:
        """Rounds first .. last - 1 of the block that begins with round start."""
        if self.graphs:
            return self.graphs.run(state, start, first, last)
        if self.tapes is None:
            for t in range(first, last):
                state = self.step(state, FleetRound(self, t, t - start, place))
            return state
        if first == start:
            state = self._choose_tape(state, start)
        tape = self._tape
        if tape is not None and tape.rounds >= last - start:
            return tape.replay(state, first - start, last - start, self.phases)
        for t in range(first, last):
            if tape is None or tape.rounds != t - start or self.tapes is None:
                state = self.step(state, FleetRound(self, t, t - start, place))
                continue
            # a round is known by its graphs, and by what there is of a state and where
            where = t % self.period, *((name, x.data_ptr()) for name, x in state.items())
            if known := self._recorded.get(where):
                state = tape.again(known, self.make)
                continue
            with native.Watch(self.algorithm) as watch:
                round_ = FleetRound(self, t, t - start, place, tape, watch)
                state = self.step(state, round_)
            if watch.seen or not all(map(self.buffers.has, state.values())):
                self.tapes = None  # more happens in a round than a tape would replay
            else:
                self._recorded[where] = tape.end_round(state)
        return state

    def make(self, call: native.Call) -> None:
        """Make a call in its phase."""
        with self.phase(call.phase):
            call()

    def _choose_tape(self, state: State, start: int) -> State:
        """The tape of the block that begins with round start, to be replayed or to be recorded."""
        assert self.tapes is not None
        # an algorithm's first round may differ: it is seen by what its state has not yet, or has
        # under two names
        places = [x.data_ptr() for x in state.values()]
        key = (
            start % self.period,
            *((name, places.index(x)) for name, x in zip(state, places, strict=True)),
        )
        self._tape = self.tapes.get(key)
        if self._tape is None and len(self.tapes) < TAPES:
            state = self._into_buffers(state)
            if self.tapes is not None:
                table, moves = self.choices.table(), self.diagonal is not None
                self._tape = self.tapes[key] = native.Tape(
                    state, self.buffers, self.rows, table, moves=moves
                )
        return state

    def _into_buffers(self, state: State) -> State:
        """The same state in buffers that a tape may name; as it was where they do not fit."""
        places = {name: (x.data_ptr(), *x.stride()) for name, x in state.items()}
        distinct = {places[name]: tensor for name, tensor in state.items()}
        storages = {x.untyped_storage().data_ptr() for x in distinct.values()}
        rows = all(x.shape == self.buffers.shape for x in distinct.values())
        if not rows or any(x.dtype != torch.float32 for x in distinct.values()):
            self.tapes = None
        elif len(storages) < len(distinct):
            self.tapes = None  # what is written to one may be another's
        if self.tapes is None:
            return state
        moved = {}
        for place, tensor in distinct.items():
            moved[place] = tensor
            if not self.buffers.has(tensor):
                moved[place] = self.buffers.take()
                moved[place].copy_(tensor)
        return {name: moved[place] for name, place in places.items()}

    def mixing(self, t: int, i: int | Tensor = 0) -> tk.Mixing:
        """The block-diagonal matrix of all runs in round t, whose place in its block is i."""
        if self.diagonal:
            return self.choices.mixing(i)
        phase = t % self.period
        if phase not in self.mixings:
            blocks = [topology.mixing(t) for topology in self.topologies]
            for spec, block in zip(self.specs, blocks, strict=True):
                if block.n_rows != spec.n_active:
                    raise UserError(
                        f"topology '{spec.topology['name']}' gives a ({block.n_rows}, "
                        f"{block.n_rows}) matrix for {spec.n_active} nodes in round {t}: it must "
                        "have a row for each of the nodes that it is asked for"
                    )
            self.mixings[phase] = tk.block_diag(blocks).to(self.device)
        return self.mixings[phase]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time spent in here counts to that phase."""
        began = time.perf_counter()
        yield
        if self.device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        self.phases[name] += seconds
        if tracing := trace.current():
            tracing.add(name, began, seconds)


def _computes(problem: FleetProblem) -> bool:
    """Whether `call` is for the problem's own gradient and draws: a subclass may have others."""
    classes = type(problem).__mro__
    call, *others = (
        next(i for i, kind in enumerate(classes) if name in vars(kind))
        for name in ("call", "gradient", "draw")
    )
    return call <= min(others)


class _Factors:
    """Step sizes of all runs, by rounds; schedules that several runs share are asked once."""

    def __init__(self, specs: Sequence[RunSpec]) -> None:
        self._base = np.array([spec.lr for spec in specs])
        names = [canonical(spec.schedule) for spec in specs]
        distinct = {name: spec.build_schedule() for name, spec in zip(names, specs, strict=True)}
        self._schedules = list(distinct.values())
        self._which = np.array([list(distinct).index(name) for name in names])
        steady = all(f is constant_factor for f in self._schedules)
        self._steady = self._sizes(0) if steady else None

    def block(self, start: int) -> NDArray[np.float32]:
        """(BLOCK, runs); the same array for each block where nothing changes."""
        return self._sizes(start) if self._steady is None else self._steady

    def _sizes(self, start: int) -> NDArray[np.float32]:
        rounds = range(start, start + BLOCK)
        factors = np.array([[f(t) for f in self._schedules] for t in rounds], dtype=np.float64)
        if not ((factors >= 0) & (factors < np.inf)).all():
            bad = factors[~((factors >= 0) & (factors < np.inf))][0]
            raise UserError(f"a schedule's factors are finite and not negative, got {bad}")
        with np.errstate(over="ignore"):  # to infinity: the run diverges
            sizes: NDArray[np.float32] = (factors[:, self._which] * self._base).astype(np.float32)
        return sizes


@dataclass(frozen=True)
class _Drawn:
    """What `Choices` has of a block, on the host; holders: (BLOCK, k) by member."""

    holders: list[NDArray[np.int64]]
    node: NDArray[np.int64]
    data: NDArray[Any]
    sizes: NDArray[np.float32]
    """(BLOCK, runs): step sizes."""
    matrices: tuple[NDArray[Any], ...]
    """What `Diagonal.block` gives, if there is one."""


class Choices:
    """What the rounds of a block choose at random, and their step sizes, on the fleet's device.

    The tensors stay where they are from block to block, so that a tape or a graph may name them.
    Blocks are drawn by a thread or a few: beside the rounds of earlier ones, or between them where
    that is faster.
    """

    node: Tensor
    """(BLOCK, member rows): holders, counted through all worlds."""
    data: Tensor
    """(BLOCK local steps, member rows, ...): what `problem.draw` gives."""
    lr: Tensor
    """(BLOCK, rows)"""
    indptr: Tensor
    indices: Tensor
    weights: Tensor
    """What `Diagonal.block` gives, if there is one."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._sizes = np.empty((0, 0), dtype=np.float32)
        """(BLOCK, runs): those that are laid out."""
        # arrays for what is drawn: new memory costs as much as what is drawn into it
        self._spare: list[NDArray[Any]] = []
        self._drawn_as = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]()
        """dtype and inner shape of what the problem draws: those of the first block."""
        self._blocks = math.ceil(fleet.spec.rounds / BLOCK)
        away = fleet.spec.away
        self._absence = [absence(away, m.seed, m.nodes) if away else None for m in fleet.members]
        starts = torch.bincount(fleet.run.cpu(), minlength=len(fleet.specs)).cumsum(0)
        self._runs = torch.cat([starts.new_zeros(1), starts]).to(fleet.device)
        self._each = torch.arange(len(fleet.run) + 1, device=fleet.device)

    @contextmanager
    def drawing(self, first: int = 0) -> Iterator[None]:
        """Blocks can be taken in here, from the first, in order."""
        fleet = self._fleet
        numbers = fleet.spec.build_problem().drawn() * fleet.algorithm.local_steps
        size = block_bytes(numbers, sum(m.active for m in fleet.members))
        threads, self._at_once = drawn_ahead(size, fleet.threads)
        self._ahead = 1 if fleet.problem.in_order else threads
        # Where all cores have rows, those who draw for long put some aside, and others wait for it.
        # One thread alone is better beside rounds even so: between them, cores would be idle.
        full = fleet.compiled and fleet.rows.threads >= native.cores()
        self._beside = not full or self._ahead == 1 or self._at_once > 1
        self._queue: deque[Future[list[_Drawn]]] = deque()
        self._drawn: deque[_Drawn] = deque()
        with ThreadPoolExecutor(self._ahead) as self._pool:
            self._first = self._next = first
            if fleet.problem.in_order:
                for earlier in range(first):
                    self._draw(earlier)
            try:
                yield
            finally:
                for drawn in self._queue:
                    drawn.cancel()

    def take(self, block: int) -> list[NDArray[np.int64]]:
        """Lay out the choices of a block; its holders, (BLOCK, k) by member."""
        if not self._drawn:
            if not self._queue:
                self._submit()
            for _ in range(1 if self._beside else len(self._queue)):
                self._drawn.extend(self._queue.popleft().result())
        drawn = self._drawn.popleft()
        self._put("node", drawn.node)
        self._put("data", drawn.data)
        self._spare.append(drawn.data)
        for name, values in zip(("indptr", "indices", "weights"), drawn.matrices, strict=False):
            self._put(name, values)
        self._entries = drawn.matrices[0][:, -1].tolist() if drawn.matrices else []
        sizes, there = drawn.sizes, self._fleet.there
        again = sizes is self._sizes or np.array_equal(sizes, self._sizes)
        if not again or (there is not None and len(there) > BLOCK):
            self._sizes = sizes
            lr = torch.from_numpy(sizes).to(self._fleet.device)[:, self._fleet.run]
            if there is not None:
                start = block * BLOCK % len(there)
                lr *= torch.from_numpy(there[start : start + BLOCK]).to(lr.device)
            self._put("lr", lr)
        return drawn.holders

    def table(self) -> native.Table:
        """Where a round's choices lie, and how far from those of the next round."""
        steps = self._fleet.algorithm.local_steps
        each = [(self.node, 1), (self.data, steps), (self.lr, 1)]
        if self._fleet.diagonal:
            each += [(self.indptr, 1), (self.indices, 1), (self.weights, 1)]
        return [
            (x.data_ptr(), x.data_ptr() + x.nbytes, rows * x.stride(0) * x.element_size())
            for x, rows in each
        ]

    def mixing(self, i: int | Tensor) -> tk.Mixing:
        """The matrix of all runs in the round at place i of the block, where it is drawn."""
        parts = self.indptr, self.indices, self.weights
        if isinstance(i, Tensor):  # how many entries there are is not known here
            indptr, indices, weights = (part.index_select(0, i).squeeze(0) for part in parts)
        else:
            indptr, indices, weights = (part[i] for part in parts)
            indices, weights = indices[: self._entries[i]], weights[: self._entries[i]]
        # rows are taken as float32, and of no two of them is it known that they are alike
        return tk.Mixing.from_tensors([indptr, indices, weights, weights, self._each, self._runs])

    def draw_ahead(self) -> None:
        """Begin to draw what follows, if that is done beside rounds; best where Python has nothing
        else to do, since it makes one step at a time."""
        if self._beside:
            self._submit()

    def _submit(self) -> None:
        while self._next < self._blocks and len(self._queue) < self._ahead:
            # the first one is waited for
            n = 1 if self._next == self._first else self._at_once
            blocks = range(self._next, min(self._next + n, self._blocks))
            self._queue.append(self._pool.submit(lambda b: list(map(self._draw, b)), blocks))
            self._next = blocks.stop

    def holders(self, block: int) -> list[NDArray[np.int64]]:
        """(BLOCK, k) by member: who is active in the rounds of a block."""
        activation = self._fleet.algorithm.activation
        return [
            draw_holders(activation, m.seed, m.nodes, m.active, block, m.share, away)
            for m, away in zip(self._fleet.members, self._absence, strict=True)
        ]

    def _draw(self, block: int) -> _Drawn:
        fleet, holders = self._fleet, self.holders(block)
        node = [h + offset for h, offset in zip(holders, fleet.node_offset, strict=True)]
        steps = fleet.algorithm.local_steps
        data: list[NDArray[Any]] = [
            self._sound(fleet.problem.draw(i, block, h.repeat(steps, axis=0)), h.shape[1])
            for i, h in enumerate(holders)
        ]
        try:
            spare = self._spare.pop()
        except IndexError:  # others draw as well
            spare = None
        together = np.concatenate(data, axis=1, out=spare)
        sizes = fleet.factors.block(block * BLOCK)
        matrices = fleet.diagonal.block(block) if fleet.diagonal else ()
        return _Drawn(holders, np.concatenate(node, axis=1), together, sizes, matrices)

    def _sound(self, drawn: object, active: int) -> NDArray[Any]:
        """What the problem draws for a member, if a round can take its part of it."""
        rounds = BLOCK * self._fleet.algorithm.local_steps
        if not isinstance(drawn, np.ndarray):
            kind = type(drawn).__name__
            raise UserError(f"draw of the problem must give a NumPy array, got {kind}")
        kind, rest = drawn.dtype, drawn.shape[2:]
        wanted, inner = self._drawn_as.setdefault("data", (kind, rest))
        numbers = kind.kind in "biuf" and kind.isnative
        if drawn.shape[:2] != (rounds, active) or (kind, rest) != (wanted, inner) or not numbers:
            like = (rounds, active, *inner)
            raise UserError(
                f"draw of the problem must give numbers of shape {like} and of one dtype, "
                f"{wanted}, in every block, got {kind} of shape {drawn.shape}"
            )
        return np.ascontiguousarray(drawn)

    def _put(self, name: str, values: NDArray[Any] | Tensor) -> None:
        tensor = torch.as_tensor(values)
        if hasattr(self, name):
            getattr(self, name).copy_(tensor)
        else:
            setattr(self, name, tensor.to(self._fleet.device, copy=True))


class Place:
    """Where tokens lie between rounds: in their rows, or at the nodes that held them last."""

    def __init__(self, nodes: Tensor | None, address: Tensor | None = None) -> None:
        self.nodes = nodes
        """(all nodes, P) where storage = "nodes"."""
        self.address = address
        """(rows,): where each token was stored last."""
        self.x: Tensor | None = None
        """The state's, which a round begins with."""

    def stored(self, x: Tensor, fleet: Fleet) -> Tensor:
        """(rows, P): the tokens, wherever they are stored."""
        return x if self.nodes is None else self.nodes[self.address]


class FleetRound:
    """The round that an algorithm sees: see `algorithms.base.Round`.

    t: the round, for its matrix. i: its place in the block of choices; a tensor in a CUDA graph,
    which reads it when it runs.
    """

    def __init__(
        self,
        fleet: Fleet,
        t: int,
        i: int | Tensor,
        place: Place,
        tape: native.Tape | None = None,
        watch: native.Watch | None = None,
    ) -> None:
        self.fleet, self._t, self.i, self.place = fleet, t, i, place
        self._step = 0
        self._tape, self._watch = tape, watch
        self.asked = False
        """Whether it has said which round it is."""

    @property
    def t(self) -> int:
        self.asked = True
        if self._watch:
            self._watch.seen = True
        return self._t

    @property
    def lr(self) -> Rate:
        return Rate()

    @property
    def beta(self) -> float:
        return self.fleet.spec.momentum

    def fetch(self, x: Tensor) -> Tensor:
        place = self.place
        if place.nodes is None:
            return self._rows("the x of r.fetch", x)
        if x is not place.x:
            raise UserError(
                'with storage = "nodes" a round fetches state["x"], got another tensor: use '
                'storage = "slots", and say at_nodes = False in the algorithm'
            )
        with self.fleet.phase("mix"):
            return place.nodes[self._address if place.address is None else place.address]

    def gradient(self, x: Tensor, step: int = 0) -> Tensor:
        fleet, steps = self.fleet, self.fleet.algorithm.local_steps
        x = self._rows("the x of r.gradient", x)
        try:
            self._step = operator.index(step)
        except TypeError:
            raise UserError(f"a local step is a whole number, got {step!r:.200}") from None
        if not 0 <= step < steps:
            raise UserError(f"a round has local steps 0..{steps - 1} of batches, got {step}")
        if not fleet.compiled:
            with fleet.phase("gradient"):
                grad = fleet.problem.gradient(x, self.node, self.data)
                return self._rows("what the problem's gradient gives", grad)
        with self._own():
            # a call keeps buffers and not what is lent, which is free when the algorithm drops it
            kept, grad = fleet.buffers.kept, fleet.buffers.take()
            node, data = fleet.choices.node[self.i], fleet.choices.data[self.i * steps + self._step]
            self._make(fleet.problem.call(kept(x), kept(grad), node, data))
            return grad

    def sgd_step(self, x: Tensor, grad: Tensor, momentum: Tensor | None) -> Tensor:
        return self._sgd("sgd_step", x, grad, self.fleet.alone, momentum=momentum)

    def sgd_mix(self, x: Tensor, grad: Tensor, momentum: Tensor | None) -> Tensor:
        nodes, stored = self.place.nodes, dict[str, Any]()
        if nodes is not None:
            self.place.address = to = self._address
            stored = {"target": to, "out": nodes}
        return self._sgd("sgd_mix", x, grad, self._mixing, momentum=momentum, **stored)

    def mix(self, x: Tensor, direction: Tensor | None = None) -> Tensor:
        if direction is not None:
            return self._sgd("mix", x, direction, self._mixing, decays=False)
        x = self._rows("the x of r.mix", x)
        if not self.fleet.compiled:
            with self.fleet.phase("mix"):
                return tk.gossip_mix(x, self._mixing)
        return self._mix(x, self._mixing)

    def decayed(self, grad: Tensor, x: Tensor) -> Tensor:
        decay = self.fleet.spec.weight_decay
        grad = self._rows("the grad of r.decayed", grad)
        x = self._rows("the x of r.decayed", x)
        return self.combine((1, grad), (decay, x)) if decay else grad

    def combine(self, *terms: tuple[float | Rate, Tensor]) -> Tensor:
        fleet, sound = self.fleet, list[tuple[float | Rate, Tensor]]()
        for term in terms:
            if not isinstance(term, tuple | list) or len(term) != 2:
                raise UserError(f"r.combine takes pairs (coefficient, tensor), got {term!r:.200}")
            sound.append((_coefficient(term[0]), self._rows("a tensor of r.combine", term[1])))
        if not sound:
            raise UserError("r.combine needs at least one pair (coefficient, tensor), got none")
        if not fleet.compiled:
            with fleet.phase("mix"):
                first, *others = ((self._by_row(c), x) for c, x in sound)
                out = first[0] * first[1]
                for c, x in others:
                    out = out + c * x
                return out
        with self._own():
            kept, out = fleet.buffers.kept, fleet.buffers.take()
            rates = [(c if isinstance(c, Rate) else Rate(c, 0), x) for c, x in sound]
            given = [(c.factor, c.power, kept(x)) for c, x in rates]
            self._make(native.combine(given, fleet.choices.lr[self.i], kept(out), fleet.threads))
            return out

    def _rows(self, name: str, value: object) -> Tensor:
        """The value, if it is rows of parameters that every engine takes for the same numbers."""
        fleet = self.fleet
        shape, device = fleet.buffers.shape, fleet.device
        return native.checked(name, value, shape, device=device, rows=True)

    def _sgd(
        self,
        name: str,
        x: Tensor,
        grad: Tensor,
        mixing: tk.Mixing,
        *,
        momentum: Tensor | None = None,
        decays: bool = True,
        **stored: Any,
    ) -> Tensor:
        """`tk.sgd_mix` with this round's step sizes and the run's settings; of its momentum only
        where that is what is given."""
        fleet, spec = self.fleet, self.fleet.spec
        x, grad = self._rows(f"the x of r.{name}", x), self._rows(f"the gradient of r.{name}", grad)
        settings: dict[str, Any] = {"weight_decay": spec.weight_decay if decays else 0.0}
        if momentum is not None:
            momentum = self._rows(f"the momentum of r.{name}", momentum)
            settings |= {"momentum": momentum, "beta": spec.momentum, "nesterov": spec.nesterov}
        if not fleet.compiled or stored:
            with fleet.phase("mix"):
                lr = self._now(fleet.choices.lr)
                return tk.sgd_mix(x, grad, mixing, lr=lr, **settings, **stored)
        with self._own():
            kept = fleet.buffers.kept
            settings |= {"lr": fleet.choices.lr[self.i], "grad": kept(grad)}
            if momentum is not None:
                checks.check_apart("momentum", momentum, x=x, grad=grad)
                settings["momentum"] = kept(momentum)
        return self._mix(x, mixing, **settings)

    def _mix(self, x: Tensor, mixing: tk.Mixing, **step: Any) -> Tensor:
        """The call of the compiled mixing, made and recorded."""
        with self._own():
            fleet, out = self.fleet, self.fleet.buffers.take()
            kept = fleet.buffers.kept
            arguments = cpu.prepare(kept(x), mixing, kept(out), pool=fleet.threads, **step)
            self._make(native.Call(cpu.function(), arguments, "mix", ()))
            return out

    @property
    def _mixing(self) -> tk.Mixing:
        with self._own():
            return self.fleet.mixing(self._t, self.i)

    def _by_row(self, c: float | Rate) -> float | Tensor:
        """A number, or (rows, 1)."""
        if not isinstance(c, Rate) or not c.power:
            return c.factor if isinstance(c, Rate) else c
        lr = self._now(self.fleet.choices.lr).unsqueeze(1)
        factor = torch.full_like(lr, c.factor)
        return factor * lr if c.power > 0 else torch.where(lr == 0, 0.0, factor / lr)

    @functools.cached_property
    def node(self) -> Tensor:
        """(rows,): who holds each token, counted through all worlds."""
        return self._now(self.fleet.choices.node)[self.fleet.member_row]

    @property
    def data(self) -> Tensor:
        """(rows, ...): each row's random choices for the local step that it takes."""
        data = self._now(self.fleet.choices.data, self.fleet.algorithm.local_steps, self._step)
        return data[self.fleet.member_row] if self.fleet.shares else data

    @functools.cached_property
    def _address(self) -> Tensor:
        """Rows of the nodes tensor: every run has its own n."""
        return self.node - self.fleet.node_shift + self.fleet.storage_offset

    def _now(self, block: Tensor, steps: int = 1, step: int = 0) -> Tensor:
        """This round's part of what a block has for each of so many steps a round."""
        at = self.i * steps + step
        if isinstance(at, Tensor):
            return block.index_select(0, at).squeeze(0)
        return block[at]

    def _make(self, call: native.Call) -> None:
        self.fleet.make(call)
        if self._tape is not None:
            self._tape.record(call)

    def _own(self) -> AbstractContextManager[None]:
        """What torch does in here is not the algorithm's."""
        return nullcontext() if self._watch is None else self._watch.pause()


def _coefficient(c: Any) -> float | Rate:
    """A coefficient of `Round.combine`, in float32."""
    factor, power = (c.factor, c.power) if isinstance(c, Rate) else (c, 0)
    number = isinstance(factor, Real) or (
        isinstance(factor, Tensor) and not factor.ndim and not factor.is_complex()
    )
    if not number or power not in (-1, 0, 1):
        raise UserError(
            "a coefficient is a number, or r.lr or 1 / r.lr times one, got "
            f"{c!r:.200}: multiply the tensor by what differs from row to row"
        )
    try:
        rounded = ctypes.c_float(float(factor)).value
    except (OverflowError, ValueError, RuntimeError) as error:
        raise UserError(f"a coefficient is a number, got {c!r:.200} ({error})") from None
    return Rate(rounded, power) if isinstance(c, Rate) else rounded


class _Recorder:
    """Metrics and costs of all runs of a fleet along its rounds."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        specs = fleet.specs
        self.problem = fleet.spec.build_problem()
        self.metrics = check_metrics(self.problem)
        objective, self.headline = self.metrics[:2]
        self.curves = Curves(len(specs), objective)
        stop = fleet.spec.stop
        self.target = Target(stop.metric, stop.value, stop.window, len(specs)) if stop else None
        self.over = np.zeros(len(specs), dtype=bool)
        """(runs,): those that have reached their target, or diverged; they have no more points."""
        self.ending = self.over.copy()
        """(runs,): those that have reached it at this look, whose last point is to come."""
        self._found: tuple[int, dict[str, NDArray[np.float64]]] | None = None
        self._asked: tuple[int, dict[str, NDArray[np.float64]]] | None = None
        self.rows = torch.bincount(fleet.run, minlength=len(specs))
        self.active = np.array([spec.n_active for spec in specs])
        self.starts = torch.from_numpy(np.cumsum([0, *self.active]))
        self.nodes = np.array([spec.nodes for spec in specs])
        # runs with the same choices and links send the same messages
        losses = [spec.loss for spec in specs]
        keys = list(zip(fleet.member_of_run, fleet.links, losses, strict=True))
        self.senders = list(dict.fromkeys(keys))
        place = {key: i for i, key in enumerate(self.senders)}
        self.sender = np.array([place[key] for key in keys])
        self.sent = np.zeros((1, len(self.senders)), dtype=np.int64)
        """(1 + rounds, senders): vectors sent before round `start`, and up to the end of the rounds
        that were added up last."""
        self.start = 0
        self._blocks: list[list[NDArray[np.int64]]] = []
        """Holders in the rounds from `_first` on, which are yet to be added up."""
        self._first, self._before = 0, list[NDArray[np.int64]]()

    def count(
        self, start: int, holders: list[NDArray[np.int64]], before: list[NDArray[np.int64]]
    ) -> None:
        """Take note of a block of rounds; before: who held the tokens in the round before it."""
        if not self._blocks:
            self._first, self._before = start, before
        self._blocks.append(holders)
        if len(self._blocks) * sum(h.size for h in holders) > COUNTED:
            self._add_up()

    def _add_up(self) -> None:
        """Count what was sent in the rounds since the last time: together, as that is faster."""
        if not self._blocks:
            return
        method, start = self.fleet.algorithm, self._first
        holders = [np.concatenate(blocks) for blocks in zip(*self._blocks, strict=True)]
        self._blocks.clear()
        carried = method.carried(momentum=self.fleet.spec.momentum > 0)
        more = {"vectors": method.vectors, "carried": carried}
        counts = []
        for m, links, loss in self.senders:
            # rounds are counted by whole blocks
            blocks = range(start // BLOCK, start // BLOCK + len(holders[m]) // BLOCK)
            moved = loss and method.activation == "uniform"
            often = (
                np.concatenate([tries(loss, self.fleet.members[m], b) for b in blocks])
                if moved
                else 1
            )
            before = self._before[m]
            counts.append(
                sent(method.communication, links, holders[m], before, start, tries=often, **more)
            )
        sums = np.cumsum(counts, axis=1).T
        self.sent = self.sent[-1] + np.concatenate([np.zeros_like(sums[:1]), sums])
        self.start = start

    def look(self, t: int, x: Tensor) -> None:
        """See whether runs have reached their target after t rounds."""
        if self.target is None:
            return
        with self.fleet.phase("metric"):
            self.ending = self.target.look(t, self._of_target(t, x)) & ~self.over

    def evaluate(
        self, t: int, x: Tensor, on_tick: Callable[[Tick], None], all_runs: bool = True
    ) -> None:
        """Take all metrics after t rounds, of the runs that end here or of all that go on."""
        fleet, problem = self.fleet, self.problem
        with fleet.phase("metric"):
            values = self._metrics(t, x)
        self._add_up()
        gradients = self._gradients(t)
        size = self.sent[t - self.start][self.sender] * problem.n_params * x.element_size()
        axes = (
            *(np.full_like(gradients, t), self._epochs(gradients), gradients),
            *(size, size / self.nodes),
        )
        points = {name: np.asarray(v, dtype=float) for name, v in zip(AXES, axes, strict=True)}
        self.curves.add(t, points | values, ~self.over if all_runs else self.ending)
        self.over |= self.ending | self.curves.diverged
        self.ending = np.zeros_like(self.over)
        if not self.over.all():
            on_tick(Tick(0, t, self.headline, float(values[self.headline][~self.over].mean())))

    def _gradients(self, t: int) -> NDArray[np.int64]:
        """(runs,): gradients that were computed in t rounds."""
        return self._computing(t) * self.fleet.algorithm.local_steps

    def _epochs(self, gradients: NDArray[np.int64]) -> list[float]:
        """By run."""
        pairs = zip(self.nodes, gradients, strict=True)
        return [self.problem.epochs(n, g) for n, g in pairs]

    def _computing(self, t: int) -> NDArray[np.int64]:
        """(runs,): how often a row was at a node that was there, in t rounds."""
        there = self.fleet.there
        if there is None:
            return t * self.active
        periods, rest = divmod(t, len(there))
        rows = periods * there.sum(0) + there[:rest].sum(0)
        counts: NDArray[np.int64] = np.add.reduceat(rows, self.starts[:-1].numpy())
        return counts

    def _metrics(self, t: int, x: Tensor) -> dict[str, NDArray[np.float64]]:
        """(runs,) values by metric after t rounds, computed once for a look and an evaluation."""
        if self._found and self._found[0] == t:
            return self._found[1]
        fleet = self.fleet
        mean, distance = self._consensus(x)
        found = self._sound(fleet.problem.evaluate(x, mean, fleet.run, fleet.world))
        values = {name: value.double().cpu().numpy() for name, value in found.items()}
        values |= self._requested(t, x)
        values["consensus"] = (distance / self.rows).double().cpu().numpy()
        self._found = t, values
        return values

    def _sound(self, found: object) -> dict[str, Tensor]:
        """What the problem's `evaluate` gives, if it is a number a run of each of its metrics."""
        if not isinstance(found, dict) or set(found) != set(self.metrics):
            got = sorted(map(str, found)) if isinstance(found, dict) else repr(found)[:200]
            raise UserError(
                f"evaluate of the problem must give the metrics {', '.join(self.metrics)}, got "
                f"{got}: name the same ones in `metrics` and in what evaluate returns"
            )
        sound, runs = {}, (len(self.rows),)
        for name in self.metrics:
            named = f"{name}, which evaluate of the problem gives,"
            value = native.dense(named, found[name], self.fleet.device)
            if value.shape != runs or value.is_complex():
                raise UserError(
                    f"{named} must be real numbers of shape {runs}, one a run, got {value.dtype} "
                    f"of shape {tuple(value.shape)}"
                )
            sound[name] = value
        return sound

    def _of_target(self, t: int, x: Tensor) -> NDArray[np.float64]:
        """(runs,): the target's metric after t rounds, and no other where it can be had alone."""
        assert self.target is not None
        name = self.target.metric
        if name in self.problem.on_request:
            return self._requested(t, x)[name]
        if not self._found or self._found[0] != t:
            value = self.fleet.problem.at_mean(name, self._consensus(x)[0])
            if value is not None:
                return value.double().cpu().numpy()
        return self._metrics(t, x)[name]

    def _requested(self, t: int, x: Tensor) -> dict[str, NDArray[np.float64]]:
        """The target's metric after t rounds, if it is one that is evaluated on request alone."""
        fleet = self.fleet
        if not self.target or self.target.metric not in fleet.spec.build_problem().on_request:
            return {}
        if not self._asked or self._asked[0] != t:
            evaluate = getattr(fleet.problem, self.target.metric)
            value = evaluate(self._consensus(x)[0], fleet.spec.weight_decay)
            self._asked = t, {self.target.metric: value.double().cpu().numpy()}
        return self._asked[1]

    def _consensus(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(runs, P) and (runs,): the mean rows, and the sums of squared distances to them."""
        if self.fleet.compiled:  # between rounds on the pool's threads
            return cpu.consensus(x, self.starts, pool=self.fleet.threads)
        return tk.consensus(x, self.fleet.run)

    def keep(self) -> dict[str, Any]:
        """What `restore` needs, between blocks."""
        self._add_up()
        return {
            "sent": self.sent[-1:],
            "curves": self.curves.keep(),
            "target": self.target and self.target.keep(),
        }

    def restore(self, kept: Any, t: int) -> None:
        """Take what was kept after t rounds; UnfitError where these runs would not have kept it."""
        kept, problem = fields(kept, ("sent", "curves", "target"), "its recorder"), self.problem
        known = np.full(len(self.over), np.iinfo(np.int64).max)
        if self.target:
            looks = [look for look in self.fleet.spec.looks() if look <= t]
            known = self.target.restore(kept["target"], looks)
        else:
            expect(kept["target"] is None, "its runs have no target")
        due = [e for e in self.fleet.spec.evaluations() if e <= t]
        names = [*AXES, *self.fleet.spec.known_metrics()]
        rounds = self.curves.restore(kept["curves"], names, due, known)
        self.over = (known <= t) | self.curves.diverged
        expect(not self.over.all(), "all its runs are over")
        expect(self.target is None or self.target.sound(~self.over), "a look is not finite")

        self.sent = array(kept["sent"], torch.int64, (1, len(self.senders)), "what was sent")
        expect(((self.sent >= 0) & (self.sent <= t * self._most_sent())).all(), "too much was sent")
        size, whose = self.curves.column("bytes_total")
        unit = problem.n_params * 4
        most = np.maximum.accumulate(np.where(whose, size, 0.0))
        sent = self.sent[0][self.sender] * unit
        right = (size == most) & (size <= sent)
        expect(right[whose].all(), "its bytes are not what was sent")
        expect((size[whose] % unit == 0).all(), "its bytes are not those of whole vectors")
        expected = {"bytes_per_node": size / self.nodes}
        gradients = np.array([self._gradients(int(r)) for r in rounds])
        expected["gradients"] = gradients
        expected["epochs"] = np.array([self._epochs(row) for row in gradients])
        for name, values in expected.items():
            found, _ = self.curves.column(name)
            expect((found == values)[whose].all(), f"its {name} are not those of its rounds")

    def compare(self, t: int, x: Tensor) -> None:
        """UnfitError where parameters after t rounds are not those that were evaluated then."""
        live = ~self.over
        values, cpu = self._metrics(t, x), self.fleet.device.type == "cpu"
        expect(set(values) == {*self.fleet.spec.known_metrics()}, "its metrics are others")
        if cpu and t in self.fleet.spec.evaluations():  # elsewhere sums may differ in their order
            for name, value in values.items():
                same = self.curves.last(name)[live] == value[live]
                expect(same.all(), f"its {name} is not that of its parameters")
        if cpu and self.target and t in self.fleet.spec.looks():
            same = self.target.latest[live] == values[self.target.metric][live]
            expect(same.all(), f"its {self.target.metric} is not that of its parameters")

    def _most_sent(self) -> int:
        """Vectors that are sent in a round, at most."""
        method = self.fleet.algorithm
        carried = method.carried(momentum=self.fleet.spec.momentum > 0)
        links = max(map(entries, self.fleet.topologies))
        # a teleport is tried until it arrives, as often as 53 random bits can say
        losses = [spec.loss for spec in self.fleet.specs if spec.loss]
        most = max((1 + int(53 * math.log(2) / -math.log(q)) for q in losses), default=1)
        return links * method.vectors + int(self.active.max()) * (carried + 2) * most

    @property
    def all_over(self) -> bool:
        return bool(self.over.all())

    def outcomes(self) -> list[Outcome]:
        share = self.active / self.active.sum()
        phases = self.fleet.phases.items()
        spent = [{k: v * s for k, v in phases} for s in share.tolist()]
        return self.curves.outcomes(spent, self.target)

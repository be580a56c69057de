"""Node-updates a second: the project's rounds beside what a user would write, and fleets of runs
beside the same runs one by one.

    pytest suites/bench/test_rounds.py --benchmark-json=rounds.json
    teleport-bench rounds --json rounds.json

One node-update is one minibatch gradient of one active node, with its share of drawing, local step
and mixing; evaluations are left out. Every case is checked before it is timed. Before each timed
run the machine's rates are measured, and before a rival's the project's own run: ratios compare
neighbours in time, which matters on a machine that others use as well.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pytest
import torch
from rivals import Loop, Rival, Vmap, now
from torch import Tensor

from teleport_bench import RunSpec
from teleport_bench.fleet import Fleet, group
from teleport_bench.registry import ALGORITHMS
from teleport_kernels.roofline import bytes_moved, seconds

pytestmark = pytest.mark.filterwarnings("ignore")  # whatever torch says of a user's code

MODELS: dict[str, dict[str, Any]] = {
    "logistic": {"model": "logistic", "data": "digits", "batch_size": 16},
    "mlp": {"model": {"name": "mlp", "hidden": [64]}, "data": "digits", "batch_size": 16},
    "lenet": {"model": "lenet", "data": "mnist5k", "batch_size": 32},
}
ACTIVE = 8
RIVALS: dict[str, type[Rival]] = {"loop": Loop, "vmap": Vmap}
BUDGET = 0.4
"""Seconds that one timed run takes at most, where a round is not longer."""
MOST = 2**14
"""Rounds of one timed run at most."""
CHECKED = 2
"""Rounds after which all must agree."""


class Program(Protocol):
    """Something that makes rounds."""

    rows: int
    """Node-updates of a round."""
    engine: str

    def advance(self, rounds: int) -> tuple[float, Tensor]:
        """That many rounds from the start: their seconds, and (rows, P) tokens after them."""


def cases() -> Iterator[tuple[str, int, str, str]]:
    """model, n, method, who; the size that says most first, should time run out."""
    for n in (64, 16, 25, 256):
        for model in MODELS if n != 25 else ("lenet",):
            for method in ("dsgd", "teleportation"):
                for who in ("compiled", "torch", "vmap", "loop"):
                    yield model, n, method, who


@pytest.mark.parametrize(("model", "n", "method", "who"), list(cases()))
def test_rounds(
    benchmark: Any, model: str, n: int, method: str, who: str, device: torch.device, scale: str
) -> None:
    small = scale == "small"
    if small and n > 16:
        pytest.skip("too large for the small scale")
    spec = task(model, n, method, CHECKED)
    ours: Program = Ours(spec, device)
    me, beside = ours, {}
    if who == "compiled":
        if ours.engine == "torch":
            pytest.skip("no C++ compiler, so nothing to measure")
        if method == "teleportation":
            beside = {"dsgd": Ours(task(model, n, "dsgd", CHECKED), device)}
    else:
        me = Ours(spec, device, compiled=False) if who == "torch" else RIVALS[who](spec, device)
        beside = {"ours": ours}
    start, wanted = exact(model, n, method, device)
    agree(me.advance(CHECKED)[1], wanted, start)

    problem, rows = spec.build_problem(), spec.n_active
    # whatever else a round does, it reads all parameters and writes them
    moved = bytes_moved("gossip_mix", rows, problem.n_params, 4)
    work = Work(rows * problem.operations(), moved)
    timed = Timed(me, beside, work, device, 0.0 if small else BUDGET)
    timed.measure(benchmark, pairs=1 if small else 9)
    benchmark.extra_info |= {
        "kind": "rounds",
        "model": model,
        "method": method,
        "nodes": n,
        "active": rows,
        "runs": 1,
        "batch": problem.batch_size,
        "params": problem.n_params,
        "who": who,
        "engine": me.engine,
        **timed.facts(),
    }


class Series(NamedTuple):
    """Runs that a study needs: step sizes x seeds."""

    settings: dict[str, Any]
    lr: Sequence[float]
    seeds: int
    rounds: int
    every: int
    """Of the runs one by one every so many are timed."""


FLEETS = {
    "quadratic": Series(
        {"nodes": 25, "problem": {"name": "quadratic", "dim": 50}},
        np.geomspace(1e-3, 1, 13).tolist(),
        seeds=5,
        rounds=1000,
        every=7,
    ),
    "lenet": Series(
        {"nodes": 8, "problem": {"name": "classification", **MODELS["lenet"]}},
        [0.05],
        seeds=4,
        rounds=64,
        every=1,
    ),
}


@pytest.mark.parametrize("who", ["fleet", "one by one", "one by one in torch"])
@pytest.mark.parametrize("name", FLEETS)
def test_fleet(benchmark: Any, name: str, who: str, device: torch.device, scale: str) -> None:
    series = FLEETS[name]
    rounds = CHECKED if scale == "small" else series.rounds
    specs = [
        RunSpec(algorithm="dsgd", lr=lr, seed=seed, rounds=CHECKED, **series.settings)
        for lr in series.lr
        for seed in range(series.seeds)
    ]
    fleet = Runs(group(specs), device)
    if fleet.engine == "torch":
        pytest.skip("no C++ compiler, so nothing to measure")
    some = [[spec] for spec in specs[:: series.every]]
    me = fleet if who == "fleet" else Runs(some, device, compiled=who != "one by one in torch")
    nodes = specs[0].nodes
    wanted = fleet.advance(CHECKED)[1].double().unflatten(0, (len(specs), nodes))
    if me is not fleet:
        start = torch.stack([me.problem.initial(spec.seed) for (spec,) in some])
        start = start.repeat_interleave(nodes, 0).double()
        agree(me.advance(CHECKED)[1], wanted[:: series.every].flatten(0, 1), start)

    problem = specs[0].build_problem()
    # what the nodes know, if it is a matrix, must be read as well
    known = getattr(me.problem, "hessian", torch.empty(0)).nbytes
    moved = bytes_moved("gossip_mix", me.rows, problem.n_params, 4) + known
    work = Work(me.rows * problem.operations(), moved)
    timed = Timed(me, {} if me is fleet else {"ours": fleet}, work, device, rounds=rounds)
    timed.measure(benchmark, pairs=1 if scale == "small" else 5)
    benchmark.extra_info |= {
        "kind": "fleet",
        "model": name,
        "method": "dsgd",
        "nodes": nodes,
        "active": nodes,
        "runs": len(specs),
        "batch": getattr(problem, "batch_size", None),
        "params": problem.n_params,
        "who": who,
        "engine": me.engine,
        **timed.facts(),
    }


FIELD: dict[str, dict[str, Any]] = {
    "mlp": {"name": "classification", **MODELS["mlp"]},
    # a gradient is three operations a parameter: mixing is most of a round
    "curvature": {"name": "quadratic", "family": "curvature", "dim": 5000, "sigma2": 0},
}


@pytest.mark.parametrize("model", FIELD)
@pytest.mark.parametrize("name", [name for name in ALGORITHMS.names() if name != "dsgd"])
def test_algorithms(
    benchmark: Any, name: str, model: str, device: torch.device, scale: str
) -> None:
    """Every algorithm's round beside one of D-SGD with the same momentum."""
    kind = ALGORITHMS[name].component
    shared = {
        "nodes": 16,
        "problem": FIELD[model],
        "lr": 0.01,
        "momentum": 0.9 if kind.momentum else 0.0,
        "rounds": CHECKED,
    }
    own = {"active": ACTIVE} if kind.partial else {}
    spec = RunSpec.model_validate(shared | {"algorithm": name} | own)
    dsgd = Ours(RunSpec.model_validate(shared | {"algorithm": "dsgd", "topology": "ring"}), device)
    me = Ours(spec, device)
    if me.engine == "torch":
        pytest.skip("no C++ compiler, so nothing to measure")
    torch.testing.assert_close(  # which the tests compare with equations
        me.advance(CHECKED)[1], Ours(spec, device, compiled=False).advance(CHECKED)[1]
    )

    problem, method = spec.build_problem(), spec.build_algorithm()
    moved = bytes_moved("gossip_mix", me.rows, problem.n_params, 4)
    work = Work(me.rows * problem.operations() * method.local_steps, moved)
    timed = Timed(me, {"dsgd": dsgd}, work, device, 0.0 if scale == "small" else BUDGET / 2)
    timed.measure(benchmark, pairs=1 if scale == "small" else 9)
    benchmark.extra_info |= {
        "kind": "algorithm",
        "model": model,
        "method": method.label,
        "nodes": 16,
        "active": me.rows,
        "runs": 1,
        "batch": getattr(problem, "batch_size", None),
        "params": problem.n_params,
        "who": "compiled",
        "engine": me.engine,
        "tensors": method.vectors,
        "local_steps": method.local_steps,
        **timed.facts(),
    }


# ---- programs that are timed ----------------------------------------------------------------


def task(model: str, n: int, method: str, rounds: int) -> RunSpec:
    return RunSpec(
        algorithm=method,
        nodes=n,
        active=ACTIVE if method == "teleportation" else None,
        topology="ring",
        problem={"name": "classification", **MODELS[model]},
        lr=0.05,
        rounds=rounds,
    )


class Ours:
    """Rounds of teleport_bench. A fleet is kept for each number of rounds and its first run records
    the tape, or the graph, that the others replay, as a long run does from its 65th round on."""

    def __init__(self, spec: RunSpec, device: torch.device, compiled: bool = True) -> None:
        self.device, self.rows = device, spec.n_active
        self._fleet = functools.cache(
            lambda rounds: quiet(Fleet([lasting(spec, rounds)], device, compiled=compiled))
        )
        self.engine = self._fleet(1).engine

    def advance(self, rounds: int) -> tuple[float, Tensor]:
        ticks: list[float] = []
        fleet = self._fleet(rounds)
        fleet.advance(lambda _: ticks.append(now(self.device)))
        # the first tick follows the evaluation of the start, the last one that of the end
        return ticks[-2] - ticks[0], fleet.final.clone()


class Runs:
    """Fleets of teleport_bench from their making to their end, one after the other."""

    def __init__(self, parts: Sequence[Sequence[RunSpec]], device: torch.device, compiled=True):
        self.parts, self.device, self.compiled = parts, device, compiled
        self.rows = sum(spec.n_active for part in parts for spec in part)
        fleet = Fleet([spec for part in parts for spec in part], device, compiled=compiled)
        self.engine, self.problem = fleet.engine, fleet.problem

    def advance(self, rounds: int) -> tuple[float, Tensor]:
        tokens, evaluated = [], 0.0
        began = now(self.device)
        for part in self.parts:
            specs = [lasting(spec, rounds) for spec in part]
            fleet = quiet(Fleet(specs, self.device, compiled=self.compiled))
            fleet.advance()
            tokens.append(fleet.final.clone())
            evaluated += fleet.phases["metric"]
        return now(self.device) - began - evaluated, torch.cat(tokens)


def lasting(spec: RunSpec, rounds: int) -> RunSpec:
    """The run with that many rounds, evaluated at its start and its end alone."""
    return spec.model_copy(update={"rounds": rounds, "eval_every": rounds})


def quiet(fleet: Fleet) -> Fleet:
    """The fleet, evaluating nothing: pytest-benchmark's own samples are then of rounds too."""
    nothing = torch.zeros(len(fleet.specs), device=fleet.device)
    metrics = fleet.spec.build_problem().metrics
    fleet.problem.evaluate = lambda *_: dict.fromkeys(metrics, nothing)
    return fleet


# ---- agreement ------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def exact(model: str, n: int, method: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """(P,) the start and (rows, P) the tokens in float64, by the loop, which hides nothing."""
    loop = Loop(task(model, n, method, CHECKED), device, torch.float64)
    return loop.start, loop.advance(CHECKED)[1]


def agree(found: Tensor, wanted: Tensor, start: Tensor) -> None:
    """Both are the same but for float32.

    A step and a mix of three round seven times, each by 2^-24 of the value at most; gradients lose
    more, but step sizes make a hundredth of the parameters of them. So much for most rows. Where a
    unit of a network lies within rounding of a ReLU's kink, it falls to one side or the other: then
    a row's gradient moves by one of 16 samples x 32 units, which add up like independent ones, by
    2^-4.5 of its norm, and of that of eight rows by 2^-6. In two rounds a ring brings that to five
    rows: of eight a quarter is left even then. A wrong sample moves whatever row it is in by 2^-4.
    """
    rounding = CHECKED * 7 * 2**-24 * wanted.norm(dim=1)
    assert found.shape == wanted.shape
    error = found.double() - wanted
    assert (error.norm(dim=1) <= rounding).double().mean() >= 0.25
    assert error.norm() <= 2**-5 * (wanted - start).norm()


# ---- timing ---------------------------------------------------------------------------------


class Work(NamedTuple):
    """What one round must do at least."""

    operations: int
    bytes: int


class Rates(NamedTuple):
    """What the machine does in a second: operations of a matrix product, bytes of a copy."""

    operations: float
    bytes: float

    def floor(self, work: Work) -> float:
        """Seconds of a round that does nothing else, first the one and then the other."""
        return work.operations / self.operations + work.bytes / self.bytes


def rates(work: Work, device: torch.device) -> Rates:
    """The better of two float32 products, on the CPU one of them in its caches, and a copy of as
    many bytes as the round's, which lie where the round's lie: of a MiB at least, so that a call
    is short beside it. The best of some tries each, since a floor is what can be reached."""
    products = []
    for size, repeat in ((256, 9), (1024, 1)) if device.type == "cpu" else ((1024, 9), (4096, 3)):
        multiply = functools.partial(torch.mm, *matrices(size, device))
        products.append(2 * size**3 / best(multiply, device, repeat))
    to, source = buffers(max(work.bytes // 2, 2**19), device)
    copied = best(lambda: to.copy_(source), device, max(1, 2**23 // source.nbytes))
    return Rates(max(products), 2 * source.nbytes / copied)


def best(call: Callable[[], object], device: torch.device, repeat: int) -> float:
    return min(seconds(call, device, repeat) for _ in range(4))


@functools.cache
def matrices(size: int, device: torch.device) -> list[Tensor]:
    return [torch.randn(size, size, device=device) for _ in range(2)]


@functools.lru_cache(maxsize=1)
def buffers(size: int, device: torch.device) -> list[Tensor]:
    return [torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2)]


class Timed:
    """Runs of a program, each with what was timed just before it.

    beside: what it is compared with, by name. rounds: of a run; else as many as the budget, in
    seconds, has room for.
    """

    def __init__(
        self,
        me: Program,
        beside: dict[str, Program],
        work: Work,
        device: torch.device,
        budget: float = 0.0,
        rounds: int | None = None,
    ) -> None:
        self.me, self.beside, self.work, self.device = me, beside, work, device
        self.rounds = {p: rounds or within(budget, p) for p in (me, *beside.values())}
        self.taken: list[float] = []
        """Seconds a node-update."""
        self.others: list[float] = []
        self.rates: list[Rates] = []

    def measure(self, benchmark: Any, pairs: int) -> None:
        """At most so many pairs: three, or what some seconds have room for."""
        rates(self.work, self.device)  # the first of a process takes longer
        if pairs > 1:
            once = seconds(lambda: (self._before(), self._run()), self.device)
            pairs = min(pairs, max(3, int(3 / once)))
            for samples in (self.taken, self.others, self.rates):
                samples.clear()
        benchmark.pedantic(self._run, setup=self._before, rounds=pairs)

    def _before(self) -> None:
        self.rates.append(rates(self.work, self.device))
        self.others += [self._time(other) for other in self.beside.values()]

    def _run(self) -> None:
        self.taken.append(self._time(self.me))

    def _time(self, program: Program) -> float:
        rounds = self.rounds[program]
        return program.advance(rounds)[0] / rounds / program.rows

    def facts(self) -> dict[str, Any]:
        floors = [r.floor(self.work) / self.me.rows for r in self.rates]
        facts = {
            "rounds": self.rounds[self.me],
            "rows": self.me.rows,
            "updates_per_second": 1 / statistics.median(self.taken),
            "operations": self.work.operations,
            "bytes": self.work.bytes,
            "matmul_gflop_per_s": statistics.median(r.operations for r in self.rates) / 1e9,
            "copy_gb_per_s": statistics.median(r.bytes for r in self.rates) / 1e9,
            "floor_updates_per_second": 1 / statistics.median(floors),
            **ratios("times_floor", self.taken, floors),
        }
        for name in self.beside:
            facts |= ratios(f"times_{name}", self.taken, self.others)
        return facts


def ratios(name: str, times: list[float], others: list[float]) -> dict[str, Any]:
    """Median and range of the ratios, each of neighbours in time."""
    found = [t / o for t, o in zip(times, others, strict=True)]
    return {name: statistics.median(found), f"{name}_range": [min(found), max(found)]}


def within(budget: float, program: Program) -> int:
    """A power of four of rounds that takes a quarter of the budget or more; from 64 on these are
    whole blocks of random choices."""
    rounds = 1
    # of two runs, since the first one records
    while rounds < MOST and min(program.advance(rounds)[0] for _ in range(2)) < budget / 4:
        rounds *= 4
    return rounds

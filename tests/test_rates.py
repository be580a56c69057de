"""The published rates of every registered algorithm, as slopes that are measured on quadratics.

Where all Hessians are I the mean over the rows moves as SGD does, on whatever graph: errors are
known in closed form, statistics is all there is to tolerate, and tolerances are five standard
deviations. An algorithm that is added is held to the same; one that promises other errors says so
in `Promise`. Sources: Koloskova et al. 2020; de Vos et al. 2023 for weights that are drawn;
`teleport_bench.theory`, derived, for TELEPORTATION.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray

from teleport_bench import RunSpec
from teleport_bench.fleet import Fleet
from teleport_bench.registry import ALGORITHMS, SCHEDULES, TOPOLOGIES
from teleport_bench.schedules import Factor
from teleport_bench.topologies import Topology
from teleport_kernels import Mixing

NAMES = ALGORITHMS.names()
COMPONENTS = {entry.name: entry.component for entry in ALGORITHMS}
STEPS = [name for name in NAMES if "local_steps" in ALGORITHMS[name].options.model_fields]
METHODS = [(name, steps) for name in NAMES for steps in ((1, 4) if name in STEPS else (1,))]
MOMENTA = [(name, (0.0, 0.5) if COMPONENTS[name].momentum else (0.0,)) for name in NAMES]

ALIKE = {"name": "quadratic", "mu": 1.0, "L": 1.0, "dim": 64, "zeta2": 1.0, "sigma2": 1.0}
"""f_i = 1/2 |x|^2 + v_i^T x"""
Array = NDArray[np.float64]
GAP = "objective_gap"


def spec(name: str, steps: int = 1, *, nodes: int, active: int, **given: Any) -> RunSpec:
    """With H = steps local steps. active: of those methods that choose."""
    local = {"local_steps": steps} if name in STEPS else {}
    chosen = {"active": active} if COMPONENTS[name].partial else {}
    settings = {"algorithm": {"name": name} | local, "nodes": nodes} | chosen | given
    return RunSpec.model_validate(settings)


def mean_over_seeds(runs: list[RunSpec], seeds: int, metric: str) -> tuple[Array, Array]:
    """The rounds of the evaluations, and the metric (runs, evaluations)."""
    fleet = [run.varied(seed=seed) for run in runs for seed in range(seeds)]
    curves = [outcome.curves for outcome in Fleet(fleet, compiled=True).advance()]
    values = np.array([curve[metric] for curve in curves])
    return np.array(curves[0]["rounds"]), values.reshape(len(runs), seeds, -1).mean(1)


def slopes(y: Array, *x: ArrayLike) -> list[float]:
    """Of log y along the log of each x, by least squares."""
    columns = [np.broadcast_to(np.log(v), y.shape).ravel() for v in x]
    A = np.stack([np.ones(y.size), *columns], 1)
    fit: list[float] = np.linalg.lstsq(A, np.log(y).ravel(), rcond=None)[0].tolist()
    return fit[1:]


class Promise:
    """What the rates say of a run."""

    def __init__(self, run: RunSpec) -> None:
        method, problem, graphs = run.build_algorithm(), run.build_problem(), run.build_topology()
        self.k, self.steps, self.sigma2 = run.n_active, method.local_steps, problem.sigma2
        self.drawn = method.activation == "uniform"
        left_out = (run.nodes - run.n_active) / max(1, run.nodes - 1)
        self.zeta2 = left_out * problem.zeta2 if self.drawn else 0.0
        """(1 - (k-1)/(n-1)) zeta2, the noise of nodes left out, where they are drawn."""
        rounds = range(graphs.period or 64)
        kept = [np.allclose(graphs.matrix(t).sum(0), 1) for t in rounds]
        self.most = 1.0 if all(kept) else 2.0
        """Weights that are doubly stochastic on average alone add to the noise, at most this much
        in all: by as much again of sigma2 and zeta2, over what nodes differ in."""

    def error(self, T: int) -> float:
        """E |xbar - x*|^2 after T rounds of `harmonic` steps: (sigma2 / H + zeta2) / (k T) (1 +
        O(log T / T)), exact for H = 1."""
        error = 0.0
        for t in range(T):
            q = t / (t + 1)
            rho = q ** (1 / self.steps)
            noise = (1 - rho) / (1 + rho) * (1 - q**2) * self.sigma2
            error = q**2 * error + (noise + (1 - q) ** 2 * self.zeta2) / self.k
        return error


@pytest.fixture
def _harmonic(monkeypatch: pytest.MonkeyPatch) -> None:
    SCHEDULES.names()  # the built-in ones are there before the copy is made
    monkeypatch.setattr(SCHEDULES, "_entries", SCHEDULES._entries.copy())

    @SCHEDULES.register("harmonic")
    def harmonic(rounds: int, *, steps: int) -> Factor:  # noqa: ARG001
        """About 1 / (H (t + 1)): H steps of it shorten the way to the minimum to t / (t + 1)."""
        return lambda t: 1 - (t / (t + 1)) ** (1 / steps)


@pytest.mark.usefixtures("_harmonic")
@pytest.mark.parametrize(("name", "steps"), METHODS)
def test_the_error_falls_as_one_over_rounds_and_active_nodes(name: str, steps: int) -> None:
    """Slopes of -1 in T and in k, and the factor (sigma2 / H + what is left out of zeta2).

    A gap is a mean of 16 x 64 squared normals, in the part that drawn holders add of 16 x 32: its
    deviation is 5 % of it at most. The mean of slopes in T has 0.02, and one in k 0.05; for H > 1
    the smaller steps of the first rounds turn that in T by 0.1.
    """
    partial = COMPONENTS[name].partial
    sizes = [(33, k) for k in (4, 8, 16)] if partial else [(n, n) for n in (5, 9, 17, 33)]
    shared = {"problem": ALIKE, "lr": 1.0, "schedule": {"name": "harmonic", "steps": steps}}
    shared |= {"rounds": 64, "eval_every": 16}
    runs = [spec(name, steps, nodes=n, active=k, **shared) for n, k in sizes]
    rounds, gap = mean_over_seeds(runs, 16, GAP)
    T = np.array([16, 32, 64])
    gap = gap[:, np.isin(rounds, T)]
    promises = [Promise(run) for run in runs]
    ratio = 2 * gap / [[p.error(t) for t in T.tolist()] for p in promises]
    assert (ratio > 0.75).all()
    assert (ratio < 1.25 * np.array([[p.most] for p in promises])).all()
    in_k, in_T = slopes(gap, [[p.k] for p in promises], T)
    assert in_k == pytest.approx(-1, abs=0.25)
    assert in_T == pytest.approx(-1, abs=0.2)


@pytest.mark.usefixtures("_harmonic")
def test_drawn_weights_that_come_again_are_a_bias() -> None:
    """Of Epidemic's error the part with zeta2 stays at what it is after `period` rounds, where that
    is given: at T = 64 it is eight times that of fresh weights for a period of 8.

    On 33 nodes 2 n T times a gap is about 1.13 + 0.33 of fresh weights (the variance of the columns
    of W, over the contraction of its consensus) and 1.13 + 8 x 0.33 of these. Of 8 seeds the first
    deviates by 0.09 and the second, a mean of 8 x 32 squares, by 0.33.
    """
    shared = {"problem": ALIKE, "rounds": 64, "eval_every": 64, "nodes": 33, "active": 33}
    run = spec("epidemic", lr=1.0, schedule={"name": "harmonic", "steps": 1}, **shared)
    fresh, again = (
        mean_over_seeds([run.varied(algorithm=run.algorithm | {"period": period})], 8, GAP)[1]
        for period in (None, 8)
    )
    assert 2 * 33 * 64 * fresh[0, -1] < 1.9
    assert 2 * 33 * 64 * again[0, -1] > 2.1


@pytest.mark.parametrize(("name", "betas"), MOMENTA, ids=NAMES)
def test_the_noise_floor_goes_with_the_step_size_over_one_minus_beta(
    name: str, betas: tuple[float, ...]
) -> None:
    """E f(xbar) - f* stays at e sigma2 / (4 k) (1 + O(e)) with e = eta / (1 - beta) constant: a
    slope of 1 in eta and in 1 / (1 - beta), whatever k and n are.

    A floor is the mean of 8 x 64 squared normals over 224 rounds, of which 224 e count, as those
    closer than 1 / e are alike: 3 % for the smallest e. Slopes have 0.03 of it, and O(e) turns them
    by 0.05.
    """
    e, beta = np.array([0.02, 0.04, 0.08]), np.array(betas)[:, None]
    shared = {"problem": ALIKE | {"zeta2": 0.0, "sigma2": 1000.0}, "rounds": 448, "eval_every": 8}
    floors = []
    for b in betas:  # a fleet shares its momentum
        shared |= {"momentum": b, "nodes": 9, "active": 4}
        runs = [spec(name, lr=lr, **shared) for lr in (e * (1 - b)).tolist()]
        rounds, gap = mean_over_seeds(runs, 8, GAP)
        floors.append(gap[:, rounds > 224].mean(1))
    floor, promise = np.array(floors), Promise(runs[0])
    ratio = floor / (e * 1000 / (4 * promise.k))
    assert ratio.min() > 0.8
    assert ratio.max() < 1.2 * promise.most
    axes = [e * (1 - beta), 1 / (1 - beta)] if len(betas) > 1 else [e]
    assert slopes(floor, *axes) == pytest.approx([1] * len(axes), abs=0.2)


@pytest.mark.parametrize(("name", "betas"), MOMENTA, ids=NAMES)
def test_without_noise_it_is_as_fast_as_gradient_descent(
    name: str, betas: tuple[float, ...]
) -> None:
    """log f(xbar) - f* falls as under x <- x - e grad f(x) with e = eta / (1 - beta), over a factor
    of about 10^-5, at the rate 2 log(1 - e mu) in the end.

    On Hessians that differ, to the minimum that all nodes have, or where `exact` any. The other
    terms of the rates are O(e) of this one for e = 0.02 << p: 3 % are allowed, not statistics.
    """
    e, zeta2 = 0.02, 2.0 * COMPONENTS[name].exact
    problem = {"name": "quadratic", "dim": 6, "sigma2": 0.0, "mu": 0.3, "zeta2": zeta2}
    shared = {"nodes": 5, "active": 3, "problem": problem, "rounds": 500, "eval_every": 500}
    for beta in betas:
        run = spec(name, lr=e * (1 - beta), momentum=beta, **shared)
        fleet = Fleet([run.varied(seed=seed) for seed in range(8)], compiled=True)
        for one, outcome in zip(fleet.specs, fleet.advance(), strict=True):
            first, last = outcome.curves[GAP]
            world = one.build_problem().world(one.seed, one.nodes)
            h, U = np.linalg.eigh(world.hessian.mean(0))
            x0 = fleet.problem.initial(one.seed).double().numpy() - world.optimum
            expected = 0.5 * (h * (1 - e * h) ** (2 * one.rounds) * (U.T @ x0) ** 2).sum()
            assert np.log(last / first) == pytest.approx(np.log(expected / first), rel=0.03)


@pytest.fixture
def _lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    TOPOLOGIES.names()
    monkeypatch.setattr(TOPOLOGIES, "_entries", TOPOLOGIES._entries.copy())

    @TOPOLOGIES.register("lazy")
    def lazy(n_nodes: int, *, gap: float) -> Topology:
        """W = (1 - gap) I + gap J: all its eigenvalues are 1 - gap, but for that of the mean."""
        J = torch.full((n_nodes, n_nodes), 1 / n_nodes, dtype=torch.float64)
        return Topology([Mixing.from_dense((1 - gap) * torch.eye(n_nodes) + gap * J)])


@pytest.mark.usefixtures("_lazy")
@pytest.mark.parametrize(("name", "steps"), [m for m in METHODS if COMPONENTS[m[0]].graph is None])
def test_heterogeneity_parts_nodes_with_1_over_p2_and_redrawn_ones_with_1_over_p(
    name: str, steps: int
) -> None:
    """What the rates of D-SGD and TELEPORTATION differ in, p = 1 - lambda^2; `exact` methods agree.

    With q = (1 - eta)^H the distance to the mean follows d <- lambda (q d - (1 - q) v). Of a v that
    stays it has the limit, of one that is redrawn in every round the variance as a bound: over 32
    seeds of 8 numbers and 256 rounds, of which 256 p count, it deviates by 3 %. Roundings are below
    1 %. For these p, which are not small enough, slopes are steeper by up to 0.2.
    """
    gaps, lr = np.array([0.1, 0.05, 0.025]), 5e-4 / steps
    shared = {"problem": ALIKE | {"sigma2": 0.0, "dim": 6}, "lr": lr, "nodes": 9, "active": 9}
    shared |= {"rounds": 512, "eval_every": 8}
    runs = [spec(name, steps, topology={"name": "lazy", "gap": g}, **shared) for g in gaps.tolist()]
    rounds, consensus = mean_over_seeds(runs, 32, "consensus")
    distance = consensus[:, rounds > 256].mean(1)
    each, q = 1 - gaps, (1 - lr) ** steps
    p = 1 - each**2
    fixed = ((1 - q) * each / (1 - each * q)) ** 2
    if COMPONENTS[name].exact:
        assert (distance < 1e-3 * fixed).all()
    elif Promise(runs[0]).drawn:
        drawn = ((1 - q) * each) ** 2 / (1 - (each * q) ** 2)
        assert (distance < 1.15 * drawn).all()
        assert slopes(distance, p) == pytest.approx([-1], abs=0.3)
    else:
        assert (distance < 1.01 * fixed).all()
        assert slopes(distance, p) == pytest.approx([-2], abs=0.3)

"""What every registered algorithm must keep to, and each equation against a dense loop in NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from teleport_bench import RunSpec, native, topology
from teleport_bench.activation import BLOCK
from teleport_bench.algorithms import Algorithm, Rate, Round, State
from teleport_bench.fleet import Fleet, FleetRound, Place, group
from teleport_bench.graphs import Graphs
from teleport_bench.network import Network, simulate
from teleport_bench.problems.base import Member
from teleport_bench.problems.classification import Replacement, Shuffle
from teleport_bench.problems.quadratic import FleetQuadratic, Quadratic, World
from teleport_bench.registry import ALGORITHMS

NAMES = ALGORITHMS.names()
COMPONENTS = {entry.name: entry.component for entry in ALGORITHMS}
MOMENTUM = [name for name in NAMES if COMPONENTS[name].momentum]
EXACT = [name for name in NAMES if COMPONENTS[name].exact]
AT_NODES = [name for name in NAMES if COMPONENTS[name].at_nodes]
PARTIAL = [name for name in NAMES if COMPONENTS[name].partial]
STEPS = [name for name in NAMES if "local_steps" in ALGORITHMS[name].options.model_fields]

NOISY = {"name": "quadratic", "dim": 6, "zeta2": 2.0, "sigma2": 0.5, "mu": 0.3}
QUIET = NOISY | {"sigma2": 0.0}
DIGITS = {
    "name": "classification",
    "model": "logistic",
    "data": "digits",
    "partition": {"name": "dirichlet", "alpha": 0.3},
    "batch_size": 4,
}
ROUNDS = 2 * BLOCK + 9  # the first block may be unlike those after it


def spec(name: str, *, local_steps: int | None = None, **given: Any) -> RunSpec:
    """A run of 5 nodes on a ring, of which those algorithms that choose have 3 active."""
    algorithm: dict[str, Any] = {"name": name}
    if local_steps:
        algorithm["local_steps"] = local_steps
    active = {"active": 3} if name in PARTIAL else {}
    defaults = {"nodes": 5, "problem": NOISY, "lr": 0.1, "rounds": ROUNDS, "eval_every": 20}
    return RunSpec.model_validate({"algorithm": algorithm} | active | defaults | given)


def one_step(name: str, **given: Any) -> RunSpec:
    """The same, with one gradient a row and round."""
    return spec(name, local_steps=1 if name in STEPS else None, **given)


@pytest.fixture(params=["torch", "compiled"])
def compiled(request: pytest.FixtureRequest) -> bool:
    if request.param == "compiled" and not native.available():
        pytest.skip("no C++ compiler on this machine")
    return bool(request.param == "compiled")


needs_compiler = pytest.mark.skipif(
    not native.available(), reason="no C++ compiler on this machine"
)
Curve = dict[str, list[float]]


def curves(*runs: RunSpec, compiled: bool = False) -> list[Curve]:
    return [outcome.curves for outcome in Fleet(runs, compiled=compiled).advance()]


Array = NDArray[np.float64]


def keeps_the_mean(run: RunSpec) -> bool:
    graphs = run.build_topology()
    return all(np.allclose(graphs.matrix(t).sum(0), 1) for t in range(graphs.period or 64))


class Seen(NamedTuple):
    """What happened in a run: rows after each round from the start on, and its gradients."""

    x: list[Array]
    at: list[Array]
    node: list[NDArray[np.int64]]
    noise: list[Array]
    gradient: list[Array]


def watch(run: RunSpec, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> Seen:
    fleet = Fleet([run], compiled=compiled, replay=False)
    seen = Seen([], [], [], [], [])
    step, gradient = fleet.algorithm.step, FleetRound.gradient

    def array(x: torch.Tensor) -> Array:
        return x.double().numpy().copy()

    def watched_step(state: Any, r: Any) -> Any:
        if not seen.x:
            seen.x.append(array(state["x"]))
        after = step(state, r)
        seen.x.append(array(after["x"]))
        return after

    def watched_gradient(self: FleetRound, x: torch.Tensor, step: int = 0) -> torch.Tensor:
        g = gradient(self, x, step)
        for what, tensor in zip(seen[1:], (x, self.node, self.data, g), strict=True):
            what.append(array(tensor))
        return g

    monkeypatch.setattr(fleet.algorithm, "step", watched_step)
    with monkeypatch.context() as patch:
        patch.setattr(FleetRound, "gradient", watched_gradient)
        fleet.advance()
    return seen


class Case:
    """A run in float64: `g(t, h, X)` are the rows' gradients in local step h of round t, with
    weight decay."""

    def __init__(self, run: RunSpec, seen: Seen) -> None:
        self.run, self.x0 = run, seen.x[0]
        self.beta, self.decay = run.momentum, run.weight_decay
        self.steps = run.build_algorithm().local_steps
        world = run.build_problem().world(run.seed, run.nodes)
        factor = run.build_schedule()
        self.eta = [float(np.float32(run.lr * factor(t))) for t in range(run.rounds)]

        def g(t: int, h: int, X: Array) -> Array:
            at = t * self.steps + h
            nodes = seen.node[at].astype(int)
            H, away = world.hessian[nodes], X - world.optimum
            exact = np.einsum("aij,aj->ai", H, away) + world.v[nodes]
            return exact + seen.noise[at] + self.decay * X

        self.g = g

    def matrix(self, t: int) -> Array:
        return topology(self.run.topology, self.run.n_active).matrix(t).numpy()


Loop = Callable[[Case], list[Array]]
LOOPS: dict[str, Loop] = {}


def loop_of(*names: str) -> Callable[[Loop], Loop]:
    def register(loop: Loop) -> Loop:
        LOOPS.update(dict.fromkeys(names, loop))
        return loop

    return register


@loop_of("dsgd", "teleportation", "local_sgd")
def gossiped_sgd(c: Case) -> list[Array]:
    X, m, out = c.x0, np.zeros_like(c.x0), []
    for t, eta in enumerate(c.eta):
        for h in range(c.steps):
            m = c.beta * m + c.g(t, h, X)
            X = X - eta * m
        X = c.matrix(t) @ X
        out.append(X)
    return out


@loop_of("epidemic")
def epidemic(c: Case) -> list[Array]:
    X, m, out, drawn = c.x0, np.zeros_like(c.x0), [], c.run.build_topology()
    for t, eta in enumerate(c.eta):
        m = c.beta * m + c.g(t, 0, X)
        received = (drawn.matrix(t) != 0).double().numpy()
        X = received @ (X - eta * m) / received.sum(1, keepdims=True)
        out.append(X)
    return out


@loop_of("allreduce")
def allreduce(c: Case) -> list[Array]:
    x, m, out = c.x0[0], np.zeros_like(c.x0[0]), []
    for t, eta in enumerate(c.eta):
        m = c.beta * m + c.g(t, 0, np.tile(x, (c.run.nodes, 1))).mean(0)
        x = x - eta * m
        out.append(np.tile(x, (c.run.nodes, 1)))
    return out


@loop_of("fedavg")
def fedavg(c: Case) -> list[Array]:
    server, out = c.x0[0], []
    for t, eta in enumerate(c.eta):
        clients = np.tile(server, (c.run.n_active, 1))
        for h in range(c.steps):
            clients = clients - eta * c.g(t, h, clients)
        server = clients.mean(0)
        out.append(np.tile(server, (c.run.n_active, 1)))
    return out


@loop_of("gradient_tracking")
def gradient_tracking(c: Case) -> list[Array]:
    x, out = c.x0, []
    decay, c.decay = c.decay, 0
    y = g = c.g(0, 0, x)
    for t, eta in enumerate(c.eta):
        x = c.matrix(t) @ (x - eta * (y + decay * x))
        out.append(x)
        if t + 1 < len(c.eta):
            new = c.g(t + 1, 0, x)
            y, g = c.matrix(t) @ y + new - g, new
    return out


@loop_of("d2", "exact_diffusion")
def d2(c: Case) -> list[Array]:
    lazy = c.run.algorithm["name"] == "exact_diffusion"
    W = (c.matrix(0) + np.eye(c.run.nodes)) / 2 if lazy else c.matrix(0)
    old, g_old, out = c.x0, c.g(0, 0, c.x0), []
    x = W @ (old - c.eta[0] * g_old)
    out.append(x)
    for t in range(1, len(c.eta)):
        g = c.g(t, 0, x)
        following = W @ (2 * x - old - c.eta[t] * g + c.eta[t - 1] * g_old)
        old, g_old, x = x, g, following
        out.append(x)
    return out


@loop_of("decentlam")
def decentlam(c: Case) -> list[Array]:
    x, m, out = c.x0, np.zeros_like(c.x0), []
    for t, eta in enumerate(c.eta):
        m = c.beta * m + (x - c.matrix(t) @ (x - eta * c.g(t, 0, x))) / eta
        x = x - eta * m
        out.append(x)
    return out


@loop_of("qg_dsgdm")
def qg_dsgdm(c: Case) -> list[Array]:
    x, m, out = c.x0, np.zeros_like(c.x0), []
    for t, eta in enumerate(c.eta):
        h = c.matrix(t) @ (x - eta * (c.beta * m + c.g(t, 0, x)))
        m = c.beta * m + (1 - c.beta) * (x - h) / eta
        x = h
        out.append(x)
    return out


VARIANTS = [
    pytest.param(name, settings, id=f"{name}-{'-'.join(settings) or 'plain'}")
    for name in NAMES
    if name in LOOPS
    for settings in (
        {},
        {"weight_decay": 0.2},
        *([{"momentum": 0.7}] if name in MOMENTUM else []),
        *([{"local_steps": 3}] if name in STEPS else []),
        *([{"local_steps": 2, "momentum": 0.7}] if name in STEPS and name in MOMENTUM else []),
    )
]


@pytest.mark.parametrize("graph", ["ring", "exponential"])
@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_an_algorithm_is_its_equation(
    name: str, settings: Any, graph: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On differing nodes, with noise, under a falling step size, node by node in float64."""
    falling = {"name": "cosine", "warmup": 3, "final": 0.2}
    run = spec(name, topology=graph, rounds=12, schedule=falling, **settings)
    seen = watch(run, compiled, monkeypatch)
    expected = LOOPS[name](Case(run, seen))
    assert len(seen.x) == 1 + len(expected)
    for x, wanted in zip(seen.x[1:], expected, strict=True):
        np.testing.assert_allclose(x, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_run_gives_the_same_bits(name: str, compiled: bool) -> None:
    assert curves(spec(name), compiled=compiled) == curves(spec(name), compiled=compiled)


@pytest.mark.parametrize("problem", [NOISY, DIGITS], ids=["quadratic", "digits"])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_what_it_is_alone_in_any_fleet(name: str, problem: Any, compiled: bool) -> None:
    runs = [
        spec(name, problem=problem, lr=lr, seed=seed, nodes=nodes)
        for lr, seed, nodes in [(0.1, 0, 5), (0.02, 0, 5), (0.1, 1, 5), (0.05, 2, 8)]
    ]
    assert len(group(runs)) == 1
    together = curves(*runs, compiled=compiled)
    for run, curve in zip(runs, together, strict=True):
        (alone,) = curves(run, compiled=compiled)
        if compiled:
            assert alone == curve
            continue
        for axis, values in alone.items():
            loose = {"rel": 1e-3, "abs": 0.01 if "accuracy" in axis else 1e-5}
            assert curve[axis] == pytest.approx(values, **loose), axis


@needs_compiler
@pytest.mark.parametrize("name", NAMES)
def test_the_engines_agree_and_rounds_are_replayed_and_captured(name: str) -> None:
    """No algorithm of the package asks torch for anything between calls of the round."""
    run = spec(name, schedule="cosine", momentum=0.6 if name in MOMENTUM else 0.0)
    fleet = Fleet([run], compiled=True)
    (replayed,) = [o.curves for o in fleet.advance()]
    assert fleet.tapes
    assert [o.curves for o in Fleet([run], compiled=True, replay=False).advance()] == [replayed]
    (in_torch,) = curves(run)
    graphed = Fleet([run])
    graphed.graphs = Graphs(graphed)
    assert [o.curves for o in graphed.advance()] == [in_torch]
    for axis, values in in_torch.items():
        assert replayed[axis] == pytest.approx(values, rel=1e-3, abs=1e-6), axis


@pytest.mark.parametrize("name", NAMES)
def test_on_the_complete_graph_it_is_the_centralized_method(
    name: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """x <- x - eta mean(g), from differing gradients; all rows stay equal, where W is J."""
    run = one_step(name, topology="complete", rounds=12, lr=0.2)
    graphs = run.build_topology()
    J = np.full((run.n_active, run.n_active), 1 / run.n_active)
    if not all(np.allclose(graphs.matrix(t), J) for t in range(graphs.period or 64)):
        pytest.skip("it does not mix with J on the complete graph")
    seen = watch(run, compiled, monkeypatch)
    x = seen.x[0][0]
    for rows, g in zip(seen.x[1:], seen.gradient, strict=True):
        x = x - run.lr * g.mean(0)
        np.testing.assert_allclose(rows, np.tile(x, (run.n_active, 1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_moves_by_the_mean_gradient_where_w_is_doubly_stochastic(
    name: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = one_step(name, topology="exponential", rounds=20)
    if not keeps_the_mean(run):
        pytest.skip("its W is not doubly stochastic")
    seen = watch(run, compiled, monkeypatch)
    for before, after, g in zip(seen.x, seen.x[1:], seen.gradient, strict=False):
        mean = before.mean(0) - run.lr * g.mean(0)
        np.testing.assert_allclose(after.mean(0), mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_step_nothing_changes(name: str, compiled: bool) -> None:
    (still,) = curves(spec(name, lr=0.0, momentum=0.5 * (name in MOMENTUM)), compiled=compiled)
    gap = np.array(still["objective_gap"])
    # W's rows sum to 1 up to rounding, and D^2 goes on with the velocity of the last round
    np.testing.assert_allclose(gap, gap[0], rtol=ROUNDS**2 * 4 * 2**-24)
    assert max(still["consensus"]) < 1e-8


@pytest.mark.parametrize("name", NAMES)
def test_the_minimum_of_all_nodes_is_a_fixed_point(
    name: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without noise and heterogeneity every node is at its own minimum there."""
    original = Quadratic.world
    optimum = np.linspace(-1, 1, NOISY["dim"])  # type: ignore[call-overload]

    def moved(self: Quadratic, seed: int, n_nodes: int) -> World:
        return World(original(self, seed, n_nodes).hessian, np.zeros((n_nodes, 6)), optimum)

    monkeypatch.setattr(Quadratic, "world", moved)
    monkeypatch.setattr(FleetQuadratic, "initial", lambda *_: torch.from_numpy(optimum).float())
    run = spec(name, problem=QUIET, lr=0.3, momentum=0.5 if name in MOMENTUM else 0.0)
    # D^2 adds up the roundings of all rounds in what it corrects gradients by: eta mu times as much
    tolerance = ROUNDS * 4 * 2**-24 / (0.3 * 0.3)
    for x in watch(run, compiled, monkeypatch).x:
        np.testing.assert_allclose(x, np.tile(optimum, (run.n_active, 1)), atol=tolerance)


@pytest.mark.parametrize("name", EXACT)
def test_exact_methods_converge_to_the_minimum_on_differing_nodes(
    name: str, compiled: bool
) -> None:
    """Of a ring of 5 nodes, whose smallest eigenvalue is -0.21: above the -1/3 that D^2 needs."""
    run = spec(name, problem=QUIET, lr=0.3, rounds=600, eval_every=600)
    (curve,) = curves(run, compiled=compiled)
    assert curve["objective_gap"][-1] < 1e-9 * curve["objective_gap"][0]
    assert curve["consensus"][-1] < 1e-10


@pytest.mark.parametrize("name", [name for name in NAMES if name not in EXACT])
def test_the_others_stay_away_from_it_by_a_bias(name: str) -> None:
    """Of the order of eta: the squared distances fall as eta^2 for nodes that are always active,
    in expectation over what is drawn."""
    runs = [
        spec(name, problem=QUIET, lr=lr, rounds=round(60 / lr), eval_every=round(1 / lr), seed=seed)
        for lr in (0.1, 0.05)
        for seed in range(6)
    ]
    large, small = (
        np.mean([c["objective_gap"][len(c["rounds"]) // 2 :] for c in curves(*part)])
        for part in (runs[:6], runs[6:])
    )
    assert large > 1e-5
    # where nodes or weights are drawn it is noise as well, whose gap falls as eta
    drawn = name in PARTIAL or not keeps_the_mean(runs[0])
    assert (1.4 if drawn else 2.5) < large / small < 6


def test_d2_on_a_graph_with_an_eigenvalue_below_a_third_diverges_and_exact_diffusion_does_not() -> (
    None
):
    """W = J - 0.6 (I - J) on two nodes has the eigenvalue -0.6: here as a topology of the complete
    graph, for which both methods take whatever `graphs` gives."""
    from teleport_bench.topologies.schedule import Topology
    from teleport_kernels import Mixing

    bad = Topology([Mixing.from_dense(torch.tensor([[0.2, 0.8], [0.8, 0.2]]))])
    finals = {}
    for name in ("d2", "exact_diffusion"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("teleport_bench.algorithms.base.topology", lambda *_: bad)
            run = spec(name, nodes=2, problem=QUIET, lr=0.1, rounds=300, eval_every=10)
            (outcome,) = Fleet([run]).advance()
            finals[name] = outcome.diverged_at, outcome.curves["consensus"][-1]
    assert finals["d2"][1] > 1
    assert finals["exact_diffusion"][0] is None
    assert finals["exact_diffusion"][1] < 1e-6


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", AT_NODES)
def test_both_storages_agree_bit_for_bit(name: str, momentum: float) -> None:
    if momentum and name not in MOMENTUM:
        pytest.skip("it has no momentum")
    runs = [spec(name, storage=s, momentum=momentum) for s in ("slots", "nodes")]
    assert curves(runs[0]) == curves(runs[1])


@pytest.mark.parametrize("name", NAMES)
def test_what_has_no_meaning_for_an_algorithm_is_refused(name: str) -> None:
    component = COMPONENTS[name]
    for allowed, asked, message in [
        (component.momentum, {"momentum": 0.9}, "has no momentum"),
        (component.nesterov, {"momentum": 0.9, "nesterov": True}, "has no (momentum|nesterov)"),
        (component.at_nodes, {"storage": "nodes"}, '.*has storage = "slots" alone'),
    ]:
        if allowed:
            spec(name, **asked)
        else:
            with pytest.raises(ValueError, match=f"{name} {message}"):
                spec(name, **asked)


@pytest.mark.parametrize("name", STEPS)
def test_local_steps_count_as_gradients_and_one_is_the_method_without(name: str) -> None:
    (one,), (three,) = curves(one_step(name)), curves(spec(name, local_steps=3))
    for axis in ("gradients", "epochs"):
        assert three[axis] == pytest.approx([3 * value for value in one[axis]])
    assert three["bytes_total"] == one["bytes_total"]
    plain = {"fedavg": "teleportation", "local_sgd": "dsgd"}.get(name, name)
    complete = {"topology": "complete"} if name == "fedavg" else {}
    assert one["objective_gap"] == curves(one_step(plain, **complete))[0]["objective_gap"]


@pytest.mark.parametrize(
    ("name", "settings", "plain"),
    [
        ("decentlam", {}, "dsgd"),
        ("qg_dsgdm", {}, "dsgd"),
        ("fedavg", {"active": 5}, "allreduce"),
        ("teleportation", {"active": 5, "topology": "complete"}, "allreduce"),
    ],
)
def test_special_cases_are_the_plain_method(name: str, settings: Any, plain: str) -> None:
    """Without momentum; with all nodes active and averaged, in whatever order they are drawn."""
    (special,), (expected,) = curves(one_step(name, **settings)), curves(spec(plain))
    assert special["objective_gap"] == pytest.approx(expected["objective_gap"], rel=1e-3)


HOLDERS = np.stack([np.random.default_rng(t).permutation(9)[:4] for t in range(BLOCK)])


def test_every_local_step_has_a_stream_of_its_own_and_the_first_one_s_is_that_of_one_step() -> None:
    shards = np.arange(9 * 20).reshape(9, 20)
    fleet = Quadratic(dim=3).fleet([Member(0, 9, 4)], torch.device("cpu"))
    for draw in (
        lambda holders: fleet.draw(0, 5, holders),
        lambda holders: Replacement(shards, 0, 7).block(5, holders),
    ):
        one, two, three = (draw(HOLDERS.repeat(steps, axis=0)) for steps in (1, 2, 3))
        assert (three[::3] == one).all()
        assert (three[1::3] == two[1::2]).all()
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert (three[a::3] != three[b::3]).mean() > 0.9
    in_order = Shuffle(shards, 0, 7).block(0, HOLDERS.repeat(3, axis=0))
    assert (np.unique(in_order // 20) == np.unique(HOLDERS)).all()
    used = in_order[HOLDERS.repeat(3, axis=0) == 2].ravel()
    for epoch in used[: len(used) // 20 * 20].reshape(-1, 20):
        assert (np.sort(epoch) == shards[2]).all()


def test_a_round_has_no_more_batches_than_local_steps() -> None:
    fleet = Fleet([spec("local_sgd", local_steps=2)])
    with pytest.raises(ValueError, match=r"local steps 0\.\.1 of batches, got 2"):
        FleetRound(fleet, 0, 0, Place(None)).gradient(torch.zeros(5, 6), 2)


numbers = st.floats(-3, 3)
coefficient = st.one_of(numbers, st.builds(Rate, numbers, st.sampled_from([-1, 1])))


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    st.lists(coefficient, min_size=1, max_size=5),
    st.sampled_from([1, 7, 1023, 1024, 1025, 40_000]),
    st.integers(0, 2**32 - 1),
)
def test_combinations_have_the_same_bits_in_cpp_and_in_torch(
    coefficients: list[float | Rate], width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = [torch.from_numpy(rng.normal(size=(3, width)).astype(np.float32)) for _ in coefficients]
    lr = torch.tensor([0.3, 0.0, 1e-3])
    expected = None
    for c, term in zip(coefficients, x, strict=True):
        rate = c if isinstance(c, Rate) else Rate(c, 0)
        power = {0: torch.ones(3), 1: lr, -1: torch.tensor([1 / 0.3, 0.0, 1e3])}[rate.power]
        rough = rate.factor * power.double()[:, None] * term.double()
        expected = rough if expected is None else expected + rough
    size = sum(t.abs() for t in x).double() * 4e3 * 2**-20
    found = []
    run = spec("dsgd", nodes=3, problem={"name": "quadratic", "family": "curvature", "dim": width})
    for engine in (True, False):
        fleet = Fleet([run])
        fleet.compiled, fleet.choices.lr = engine, lr[None]
        terms = zip(coefficients, x, strict=True)
        found.append(FleetRound(fleet, 0, 0, Place(None)).combine(*terms))
    assert torch.equal(*found)
    assert ((found[0] - expected).abs() <= size).all()


def test_rates_are_factors_of_eta_and_of_one_over_eta() -> None:
    assert -Rate() == Rate(-1.0, 1)
    assert 0.5 * (2 / Rate(4.0)) == Rate(0.25, -1)
    assert 3 / Rate(2.0, -1) == Rate(1.5, 1)


def bytes_a_round(run: RunSpec) -> list[float]:
    (curve,) = curves(run)
    return np.diff(curve["bytes_total"]).tolist()


VECTOR = 4 * NOISY["dim"]  # type: ignore[operator]


def test_what_is_sent_is_counted_by_hand() -> None:
    every = {"rounds": 3, "eval_every": 1, "nodes": 8}
    assert bytes_a_round(spec("dsgd", **every)) == [16 * VECTOR] * 3
    assert bytes_a_round(spec("exact_diffusion", **every)) == [16 * VECTOR] * 3
    assert bytes_a_round(spec("gradient_tracking", **every)) == [2 * 16 * VECTOR] * 3
    assert bytes_a_round(spec("allreduce", **every)) == [2 * 7 * VECTOR] * 3
    assert bytes_a_round(spec("fedavg", **every)) == [3 * VECTOR, 6 * VECTOR, 6 * VECTOR]
    for momentum in (0, 0.9):
        token = spec("teleportation", active=1, momentum=momentum, **every)
        holder = token.holders(0)[:3, 0].tolist()
        moved = [0, *(a != b for a, b in itertools.pairwise(holder))]
        assert bytes_a_round(token) == [m * VECTOR * (1 + (momentum > 0)) for m in moved]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["synchronous", "barrier_free"])
def test_simulated_bytes_are_those_of_the_curves(name: str, mode: str) -> None:
    run = spec(name, rounds=70, eval_every=7)
    costs = simulate(run, Network(tau=3, mode=mode))
    if name != "teleportation":  # whose last gossip may be at other nodes than the next fetch
        assert costs.total_bytes.tolist() == curves(run)[0]["bytes_total"]
    machines = run.nodes + (name == "fedavg")
    assert (costs.busiest_bytes * machines >= costs.total_bytes).all()
    assert (np.diff(costs.time) > 0).all()


def test_a_ring_all_reduce_takes_its_slowest_link_in_every_step() -> None:
    run = spec("allreduce", nodes=8, rounds=10, eval_every=5)
    fast = simulate(run, Network(tau=5, compute=0.25))
    assert fast.time.tolist() == [r * (0.25 + 14 / 8) for r in (0, 5, 10)]
    assert fast.busiest_bytes.tolist() == [r * 14 * VECTOR // 8 for r in (0, 5, 10)]
    slow = simulate(run, Network(preferred="star", tau=5, compute=0.25))
    assert slow.time.tolist() == [r * (0.25 + 5 * 14 / 8) for r in (0, 5, 10)]
    alone = simulate(spec("allreduce", nodes=1, problem=NOISY | {"zeta2": 0}), Network(), [3])
    assert (alone.time.tolist(), alone.total_bytes.tolist()) == ([3.0], [0])


def test_larger_messages_and_more_local_steps_take_longer() -> None:
    network = Network(tau=5, compute=0.5)
    time = {
        name: simulate(run, network, [1]).time[0]
        for name, run in {
            "dsgd": spec("dsgd"),
            "local": spec("local_sgd", local_steps=6),
            "tracking": spec("gradient_tracking"),
        }.items()
    }
    assert time == {"dsgd": 1.5, "local": 4.0, "tracking": 2.5}


def test_a_server_is_a_slow_link_away_and_the_busiest_machine() -> None:
    run = spec("fedavg", nodes=9, active=3, rounds=10)
    costs = simulate(run, Network(tau=5, compute=0.25), [0, 1, 10])
    assert costs.time.tolist() == [0, 1 + 5, 10 * (1 + 5) + 9 * 5]
    assert costs.total_bytes.tolist() == [0, 3 * VECTOR, (10 + 9) * 3 * VECTOR]
    assert costs.busiest_bytes.tolist() == [0, VECTOR, 9 * 3 * VECTOR]
    alone = simulate(run.varied(active=1), Network(), [10])
    most = np.bincount(run.varied(active=1).holders(0)[:10, 0]).max()
    assert alone.busiest_bytes == [max(9, most) * VECTOR]


@pytest.mark.parametrize("name", [n for n in NAMES if COMPONENTS[n].graph])
def test_an_algorithm_with_a_graph_of_its_own_has_that_one(name: str) -> None:
    ring, star = spec(name, topology="ring"), spec(name, topology="star")
    assert ring.topology["name"] == COMPONENTS[name].graph
    assert ring.id == star.id


@pytest.mark.parametrize(("nodes", "degree"), [(1, 2), (2, 2), (7, 1), (40, 2), (6, 9)])
def test_every_node_sends_to_as_many_random_others_in_every_round(nodes: int, degree: int) -> None:
    epidemic = ALGORITHMS.build(ALGORITHMS.resolve({"name": "epidemic", "out_degree": degree}))
    first, second = (
        torch.stack([graphs.matrix(t) for t in range(64)])
        for graphs in (epidemic.graphs({}, nodes, seed) for seed in (0, 1))
    )
    sends = (first != 0).double()
    assert (sends.diagonal(dim1=1, dim2=2) == 1).all()
    assert (sends.sum(1) == 1 + min(degree, nodes - 1)).all()
    torch.testing.assert_close(first.sum(2), torch.ones(64, nodes, dtype=torch.float64))
    torch.testing.assert_close(first, sends / sends.sum(2, keepdim=True))
    if degree < nodes - 1:
        assert not torch.equal(first[0], first[1])
        assert not torch.equal(first, second)
        # each of the others equally likely: a share of draws, within six standard deviations
        share = min(degree, nodes - 1) / (nodes - 1)
        off = sends.mean(0)[~torch.eye(nodes, dtype=torch.bool)]
        assert ((off - share).abs() < 6 * (share * (1 - share) / 64) ** 0.5).all()


def test_a_captured_round_may_keep_what_it_was_given_under_another_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ALGORITHMS, "_entries", ALGORITHMS._entries.copy())

    @ALGORITHMS.register("keeps_old")
    class KeepsOld(Algorithm):
        """x <- W (1.4 x - 0.4 x_old - eta g)."""

        label = "keeps the old iterate"

        def start(self, x: torch.Tensor, *, momentum: bool) -> State:
            return {"old": x, "x": x}

        def step(self, state: State, r: Round) -> State:
            x, old = state["x"], state["old"]
            return {"x": r.mix(r.combine((1.4, x), (-0.4, old)), r.gradient(x)), "old": x}

    run = spec("keeps_old")
    graphed = Fleet([run])
    graphed.graphs = Graphs(graphed)
    (plain,) = curves(run)
    assert [o.curves for o in graphed.advance()] == [plain]
    if native.available():
        replayed = Fleet([run], compiled=True)
        (curve,) = [o.curves for o in replayed.advance()]
        assert replayed.tapes
        assert curve["objective_gap"] == pytest.approx(plain["objective_gap"], rel=1e-3, abs=1e-6)


def test_one_local_step_leaves_the_name_of_a_run_of_teleportation_as_it_was() -> None:
    plain = spec("teleportation")
    assert plain.algorithm == {"name": "teleportation", "holders": "uniform"}
    assert plain.id == one_step("teleportation").id != spec("teleportation", local_steps=2).id
    again = RunSpec.model_validate(spec("teleportation", local_steps=2).model_dump(mode="json"))
    assert again.build_algorithm().local_steps == 2

"""The round loop: what TELEPORTATION and D-SGD are, alone and in fleets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from teleport_bench import RunSpec, fleet, native, topology
from teleport_bench.activation import BLOCK, draw_holders
from teleport_bench.curves import Outcome
from teleport_bench.fleet import Fleet, FleetRound, group
from teleport_bench.problems.base import Member
from teleport_bench.problems.quadratic import Quadratic, World
from teleport_bench.registry import TOPOLOGIES
from teleport_bench.topologies.schedule import Topology, static
from teleport_kernels import Mixing

QUADRATIC = {"name": "quadratic", "dim": 7, "zeta2": 2.0, "sigma2": 0.5}
DIGITS = {
    "name": "classification",
    "model": {"name": "mlp", "hidden": [8]},
    "data": "digits",
    "partition": {"name": "dirichlet", "alpha": 0.3},
    "batch_size": 4,
}
ROUNDS = BLOCK + 9  # more than one block of random choices


def spec(**settings: Any) -> RunSpec:
    defaults = {"algorithm": "dsgd", "nodes": 6, "problem": QUADRATIC, "lr": 0.1, "rounds": ROUNDS}
    return RunSpec.model_validate(defaults | {"eval_every": 10} | settings)


@pytest.fixture(params=["torch", "compiled"], autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test here holds for both: in torch, and in C++ with rounds replayed from a tape."""
    name: str = request.param
    if name == "compiled":
        if not native.available():
            pytest.skip("no C++ compiler on this machine")
        monkeypatch.setitem(MODE, "compiled", True)
    return name


MODE: dict[str, Any] = {"compiled": False, "replay": True}


def fleet_of(specs: Sequence[RunSpec]) -> Fleet:
    return Fleet(specs, **MODE)


def advance(*specs: RunSpec) -> list[Outcome]:
    return fleet_of(specs).advance()


def curves(one: RunSpec) -> dict[str, list[float]]:
    return advance(one)[0].curves


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """(x, node, data, gradient) of every gradient that a fleet takes, in order."""
    seen: list[tuple[Any, ...]] = []
    original = FleetRound.gradient

    def spy(self: FleetRound, x: torch.Tensor, step: int = 0) -> torch.Tensor:
        g = original(self, x, step)
        seen.append((x.clone(), self.node.clone(), self.data.clone(), g.clone()))
        return g

    monkeypatch.setattr(FleetRound, "gradient", spy)
    monkeypatch.setitem(MODE, "replay", False)  # a tape replays what nobody sees
    return seen


OPTIMISERS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
]


@pytest.mark.parametrize("problem", [QUADRATIC, DIGITS], ids=["quadratic", "digits"])
@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=["sgd", "heavy-ball", "nesterov"])
@pytest.mark.parametrize("graph", ["ring", "one_peer_exponential"])
def test_teleportation_with_all_nodes_at_home_is_dsgd_bit_for_bit(
    problem: Any, optimiser: Any, graph: str
) -> None:
    shared = {"problem": problem, "topology": graph, "lr": 0.03, **optimiser}
    home = {"name": "teleportation", "holders": "fixed"}
    assert curves(spec(algorithm=home, active=6, **shared)) == curves(spec(**shared))


def test_redrawn_holders_make_teleportation_with_all_nodes_another_method() -> None:
    everyone = curves(spec(algorithm="teleportation", active=6))
    assert everyone["objective_gap"] != curves(spec())["objective_gap"]


@pytest.mark.parametrize("problem", [QUADRATIC, DIGITS], ids=["quadratic", "digits"])
def test_one_token_is_sgd_on_the_visited_nodes_data(problem: Any, gradients: list[Any]) -> None:
    one = spec(algorithm="teleportation", active=1, problem=problem, lr=0.05)
    curves(one)
    x = gradients[0][0]
    holders = np.concatenate([draw_holders("uniform", 0, 6, 1, b) for b in range(2)])[:ROUNDS, 0]
    for t, (at, node, data, g) in enumerate(gradients):
        assert node.tolist() == [holders[t]]
        torch.testing.assert_close(at, x, rtol=0, atol=0)
        if problem is DIGITS:
            shard = one.build_problem().shards(0, 6)[holders[t]]
            assert set(data.flatten().tolist()) <= set(shard.tolist())
        x = x - 0.05 * g


def test_complete_graph_keeps_all_rows_equal(gradients: list[Any]) -> None:
    curves(spec(topology="complete"))
    for x, *_ in gradients:
        assert torch.equal(x, x[:1].expand_as(x))


def test_without_a_step_nothing_changes() -> None:
    for algorithm in ({"algorithm": "dsgd"}, {"algorithm": "teleportation", "active": 3}):
        still = curves(spec(lr=0.0, **algorithm))
        gap = np.array(still["objective_gap"])
        # W's rows sum to 1 up to rounding: each round moves x by at most 3 roundings of fp32
        np.testing.assert_allclose(gap, gap[0], rtol=ROUNDS * 6 * 2**-24 * 2)
        assert max(still["consensus"]) < 1e-10


def test_weight_decay_and_momentum_follow_torch_sgd(gradients: list[Any]) -> None:
    settings = {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}
    curves(spec(nodes=1, problem=QUADRATIC | {"zeta2": 0.0}, lr=0.05, **settings))
    x = gradients[0][0].clone().requires_grad_()
    optimiser = torch.optim.SGD([x], lr=0.05, **settings)
    for at, _, _, g in gradients:
        torch.testing.assert_close(at, x.detach(), rtol=1e-5, atol=1e-6)
        x.grad = g
        optimiser.step()


@pytest.mark.parametrize("graph", ["ring", "exponential", "one_peer_exponential"])
@pytest.mark.parametrize("active", [2, 5])
def test_teleportation_is_its_pseudocode_on_nodes(
    graph: str, active: int, gradients: list[Any]
) -> None:
    """Node by node, in float64: the simple form, and the fused form (holders fetch and mix)."""
    curves(spec(algorithm="teleportation", active=active, nodes=9, topology=graph, lr=0.2))
    problem = Quadratic(**{k: v for k, v in QUADRATIC.items() if k != "name"})
    world, tokens = problem.world(0, 9), topology(graph, active)
    x0 = gradients[0][0][0].double().numpy()
    simple = dict.fromkeys(range(9), x0)
    before: list[int] = []
    sent: list[np.ndarray] = []  # y of each token in the last round, at the node that holds it
    for t, (x, node, noise, _) in enumerate(gradients):
        now = node.tolist()
        W, W_before = tokens.matrix(t).numpy(), tokens.matrix(t - 1).numpy()
        fetched = [simple[before[a]] for a in range(active)] if before else [x0] * active
        fused = [W_before[a] @ np.stack(sent) for a in range(active)] if sent else fetched
        np.testing.assert_allclose(fused, fetched, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(x.numpy(), fetched, rtol=2e-4, atol=2e-5)
        sent = []
        for a, i in enumerate(now):
            gradient = world.hessian[i] @ (fetched[a] - world.optimum) + world.v[i]
            sent.append(fetched[a] - 0.2 * (gradient + noise[a].double().numpy()))
        simple |= {i: W[a] @ np.stack(sent) for a, i in enumerate(now)}
        before = now


def test_dsgd_is_adapt_then_combine_on_a_directed_graph(gradients: list[Any]) -> None:
    curves(spec(nodes=5, topology="exponential", lr=0.2))
    W = topology("exponential", 5).matrix().numpy()
    for (x, *_, g), (following, *_) in itertools.pairwise(gradients):
        expected = W @ (x.double().numpy() - 0.2 * g.double().numpy())
        np.testing.assert_allclose(following.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("problem", [QUADRATIC, DIGITS], ids=["quadratic", "digits"])
@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=["sgd", "heavy-ball", "nesterov"])
@pytest.mark.parametrize(
    "method",
    [{"algorithm": "dsgd"}, {"algorithm": "teleportation", "active": 4}],
    ids=["dsgd", "teleportation"],
)
def test_both_storages_agree_bit_for_bit(problem: Any, optimiser: Any, method: Any) -> None:
    shared = {"problem": problem, "lr": 0.03, **optimiser, **method}
    assert curves(spec(storage="nodes", **shared)) == curves(spec(storage="slots", **shared))


def test_storages_agree_within_a_fleet_of_different_n() -> None:
    runs = [{"nodes": n, "active": k, "seed": s} for n, k, s in [(9, 2, 0), (5, 4, 1), (9, 2, 2)]]
    both = [
        advance(*(spec(algorithm="teleportation", storage=storage, **run) for run in runs))
        for storage in ("slots", "nodes")
    ]
    assert [o.curves for o in both[0]] == [o.curves for o in both[1]]


COMPANIONS = [
    {"nodes": 6, "active": 3, "lr": 0.1, "seed": 0},
    {"nodes": 6, "active": 3, "lr": 0.02, "seed": 0},
    {"nodes": 11, "active": 3, "lr": 0.1, "seed": 0, "topology": "star"},
    {"nodes": 6, "active": 6, "lr": 0.05, "seed": 5, "topology": "one_peer_exponential"},
    {"nodes": 6, "active": 1, "lr": 0.1, "seed": 1, "schedule": {"name": "cosine", "warmup": 3}},
]


@pytest.mark.parametrize(
    "problem",
    [QUADRATIC, DIGITS, DIGITS | {"batches": "shuffle"}],
    ids=["quadratic", "replacement", "shuffle"],
)
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1]])
def test_a_run_draws_the_same_alone_and_in_any_fleet(
    problem: Any, order: list[int], gradients: list[Any]
) -> None:
    specs = [spec(algorithm="teleportation", problem=problem, **COMPANIONS[i]) for i in order]
    together = fleet_of(specs)
    outcomes = together.advance()
    in_fleet = gradients.copy()
    for i, one in enumerate(specs):
        gradients.clear()
        alone = fleet_of([one])
        curve = alone.advance()[0].curves
        mine = together.run == i
        shift = together.node_shift[mine][0]
        for (x, node, data, _), (x_alone, node_alone, data_alone, _) in zip(
            in_fleet, gradients, strict=True
        ):
            assert torch.equal(node[mine] - shift, node_alone)
            assert torch.equal(data[mine], data_alone)
            torch.testing.assert_close(x[mine], x_alone, rtol=1e-3, atol=1e-4)
        for axis in ("rounds", "epochs", "gradients", "bytes_total", "bytes_per_node"):
            assert outcomes[i].curves[axis] == curve[axis]


def test_methods_of_one_seed_share_the_start_and_the_shards() -> None:
    runs = [
        spec(problem=DIGITS, seed=3),
        spec(problem=DIGITS, seed=3, algorithm="teleportation", active=2),
        spec(problem=DIGITS, seed=4),
    ]
    starts = [Fleet([run]).problem.initial(run.seed) for run in runs]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    shards = [run.build_problem().shards(run.seed, run.nodes) for run in runs]
    np.testing.assert_array_equal(shards[0], shards[1])
    assert not np.array_equal(shards[0], shards[2])


def test_step_sizes_of_one_seed_see_the_same_noise(gradients: list[Any]) -> None:
    small, large = spec(lr=0.01), spec(lr=0.1)
    both = fleet_of([small, large])
    both.advance()
    assert both.members == [Member(0, 6, 6)]
    for _, node, data, _ in gradients:
        assert torch.equal(data[:6], data[6:])
        assert torch.equal(node[:6], node[6:])


def test_relabelling_the_nodes_permutes_the_rows(
    monkeypatch: pytest.MonkeyPatch, gradients: list[Any]
) -> None:
    order = np.random.default_rng(0).permutation(8)
    TOPOLOGIES.names()  # the built-in ones are there before the copy is made
    monkeypatch.setattr(TOPOLOGIES, "_entries", TOPOLOGIES._entries.copy())

    @TOPOLOGIES.register("relabelled_star")
    def relabelled_star(n_nodes: int) -> Topology:
        W = topology("star", n_nodes).matrix()
        return static(Mixing.from_dense(W[order][:, order]))

    quiet = QUADRATIC | {"sigma2": 0.0}
    plain = curves(spec(topology="star", problem=quiet, nodes=8))
    rows = [x for x, *_ in gradients]
    gradients.clear()
    original = Quadratic.world

    def relabelled(self: Quadratic, seed: int, n_nodes: int) -> World:
        world = original(self, seed, n_nodes)
        return World(world.hessian[order], world.v[order], world.optimum)

    monkeypatch.setattr(Quadratic, "world", relabelled)
    permuted = curves(spec(topology="relabelled_star", problem=quiet, nodes=8))
    for x, (y, *_) in zip(rows, gradients, strict=True):
        torch.testing.assert_close(x[order], y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(plain["objective_gap"], permuted["objective_gap"], rtol=1e-3)


def test_a_diverging_run_leaves_its_companions_alone() -> None:
    calm, wild = spec(lr=0.1), spec(lr=1e6)
    together, lost = advance(calm, wild)
    assert lost.diverged_at is not None
    assert lost.curves["rounds"][-1] < lost.diverged_at
    assert all(np.isfinite(values).all() for values in lost.curves.values())
    assert together.diverged_at is None
    np.testing.assert_allclose(
        together.curves["objective_gap"], curves(calm)["objective_gap"], rtol=1e-3
    )


@pytest.mark.parametrize("model", ["logistic", {"name": "mlp", "hidden": [8]}])
def test_a_huge_step_size_is_seen_to_diverge_on_images_too(model: Any) -> None:
    (outcome,) = advance(spec(problem=DIGITS | {"model": model}, lr=1e6))
    assert outcome.diverged_at is not None


def test_costs_are_counted_by_hand() -> None:
    ring = curves(spec(nodes=8))
    assert ring["rounds"][-1] == ROUNDS
    assert ring["gradients"][-1] == 8 * ROUNDS
    assert ring["bytes_total"][-1] == ROUNDS * 16 * 7 * 4  # 16 messages of 7 floats a round
    assert ring["bytes_per_node"][-1] == ring["bytes_total"][-1] / 8
    token = curves(spec(algorithm="teleportation", nodes=8, active=1))
    holders = np.concatenate([draw_holders("uniform", 0, 8, 1, b) for b in range(2)])[:ROUNDS, 0]
    assert token["bytes_total"][-1] == (np.diff(holders) != 0).sum() * 7 * 4


def test_groups_share_what_they_must_and_stay_within_their_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = [spec(lr=lr, seed=s) for lr in (0.1, 0.2) for s in range(3)]
    assert group([*runs, spec(momentum=0.5)]) == [runs, [spec(momentum=0.5)]]
    monkeypatch.setattr(fleet, "FLEET_BYTES", 2 * 6 * 7 * 4)
    assert [len(part) for part in group(runs)] == [2, 2, 2]
    monkeypatch.setattr(fleet, "FLEET_BYTES", 1)
    assert [len(part) for part in group(runs)] == [1] * 6


def test_the_graphs_of_a_group_come_round_together_soon() -> None:
    base = {"name": "base", "degree": 1}
    sizes = [5, 8, 16, 20, 24, 32, 64, 128]  # periods 4, 3, 4, 7, 6, 5, 6, 7
    runs = [
        spec(nodes=n, topology=g, seed=s) for s in (0, 1) for n in sizes for g in (base, "ring")
    ]
    parts = group(runs)
    assert sorted(r.id for part in parts for r in part) == sorted(r.id for r in runs)
    for part in parts:
        together = Fleet(part)
        assert together.period == math.lcm(*(r.build_topology().period for r in part))
        assert together.period <= fleet.MOST_PHASES
        for t in range(2 * together.period):
            together.mixing(t)
        assert len(together.mixings) <= together.period
    assert len(parts) < 4
    long = {"name": "equi_dyn", "period": 100}
    assert len(group([spec(topology=long), spec(topology=long, seed=1)])) == 1


def test_dsgd_on_a_ring_needs_more_rounds_as_n_grows_and_teleportation_does_not() -> None:
    """The paper's claim on its synthetic problem, in small: the error after equal rounds."""
    synthetic = {"problem": {"name": "quadratic", "family": "curvature", "dim": 50}, "rounds": 300}

    def error(**settings: Any) -> float:
        tuned = [
            spec(lr=lr, seed=s, **synthetic, **settings)
            for lr in (0.1, 0.05, 0.025, 0.01)
            for s in range(3)
        ]
        outcomes = [o for part in group(tuned) for o in advance(*part)]
        finals = [
            o.curves["gradient_norm2"] if o.diverged_at is None else [np.inf] for o in outcomes
        ]
        return min(float(np.mean([f[-1] for f in finals[i : i + 3]])) for i in range(0, 12, 3))

    dsgd = [error(nodes=n) for n in (8, 32)]
    teleportation = [error(algorithm="teleportation", active=4, nodes=n) for n in (8, 32)]
    assert dsgd[1] > 2 * dsgd[0]
    assert teleportation[1] < dsgd[1] / 2


def test_runs_that_share_a_draw_are_what_they_are_alone():
    """And each sees uniformly drawn nodes: the parts of a draw of 7 out of 12."""
    runs = [
        spec(algorithm="teleportation", nodes=12, active=k, share={"first": k - 1, "among": 7})
        for k in (1, 2, 4)
    ]
    assert len(group(runs)) == 1
    together = advance(*runs)
    for one, outcome in zip(runs, together, strict=True):
        assert advance(one)[0].curves == outcome.curves
    own = advance(spec(algorithm="teleportation", nodes=12, active=4))[0]
    assert own.curves["consensus"] != together[2].curves["consensus"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": {"first": 5, "among": 7}, "active": 3}, "first .* active <= among"),
        ({"share": {"first": 0, "among": 13}, "active": 3}, "among <= nodes"),
        ({"share": {"first": 0, "among": 3}, "algorithm": "dsgd"}, "draws no nodes"),
    ],
)
def test_a_share_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        spec(**{"algorithm": "teleportation", "nodes": 12} | settings)

"""Messages that are lost: what they leave of the matrices, and of a run."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from teleport_bench import RunSpec, native, topology
from teleport_bench.activation import BLOCK
from teleport_bench.conditions import conditioned
from teleport_bench.fleet import Fleet, group
from teleport_bench.graphs import Graphs
from teleport_bench.network import Network, simulate
from teleport_bench.registry import ALGORITHMS

NAMES = ALGORITHMS.names()
COMPONENTS = {entry.name: entry.component for entry in ALGORITHMS}
GOSSIPING = [name for name in NAMES if COMPONENTS[name].gossips]
SHARP = 6
"""Standard deviations: a correct draw is as far off for two in a billion seeds."""

PROBLEM = {"name": "quadratic", "dim": 6, "zeta2": 2.0, "sigma2": 0.5, "mu": 0.3}
ROUNDS = 2 * BLOCK + 9


def spec(name: str = "dsgd", **given: Any) -> RunSpec:
    """A run of 6 nodes on a ring, of which those algorithms that choose have 3 active."""
    active = {"active": 3} if COMPONENTS[name].partial else {}
    defaults = {"nodes": 6, "problem": PROBLEM, "lr": 0.05, "rounds": ROUNDS, "eval_every": 20}
    return RunSpec.model_validate({"algorithm": name} | active | defaults | given)


ENGINES = [False] + [True] * native.available()
compiled = pytest.mark.parametrize("compiled", ENGINES)


def curves(*runs: RunSpec, compiled: bool = ENGINES[-1]) -> list[dict[str, list[float]]]:
    return [outcome.curves for outcome in Fleet(runs, compiled=compiled).advance()]


def matrices(graphs: Any) -> Tensor:
    """(period, n, n)"""
    return torch.stack([graphs.matrix(t) for t in range(graphs.period)])


@settings(deadline=None, max_examples=40)
@given(st.data(), st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_a_row_keeps_the_weight_of_what_is_lost(data: Any, q: float, seed: int) -> None:
    name = data.draw(st.sampled_from(["ring", "star", "complete", "one_peer_exponential", "base"]))
    n = data.draw(st.sampled_from([1, 2, 3, 7, 12]))
    graphs = topology(name, n)
    lossy = conditioned(graphs, q, seed)
    assert lossy.period >= BLOCK
    assert lossy.period % graphs.period == 0
    for t in range(lossy.period):
        W, left = graphs.matrix(t), lossy.matrix(t)
        torch.testing.assert_close(left.sum(1), torch.ones(n, dtype=torch.float64))
        off = ~torch.eye(n, dtype=torch.bool)
        lost = off & (W != 0) & (left == 0)
        kept = torch.where(lost, 0, W)
        assert torch.equal(left[off], kept[off])  # what comes has the weight that it had
        home = (W.diagonal() + (W - kept).sum(1)).double()
        torch.testing.assert_close(left.diagonal(), home)
        sent = lossy.mixing(t).rows != lossy.mixing(t).indices
        assert int(sent.sum()) == int((off & (W != 0)).sum())  # what is lost has been sent


@pytest.mark.parametrize("name", ["ring", "complete", "one_peer_exponential"])
def test_every_message_is_lost_as_often_as_every_other(name: str) -> None:
    """E[W'] = (1 - q) W + q diag(W 1), entry by entry, and over all entries of a round."""
    n, q, seeds = 8, 0.3, 40
    graphs = topology(name, n)
    drawn = torch.stack([matrices(conditioned(graphs, q, seed)) for seed in range(seeds)])
    W = matrices(graphs).repeat(drawn.shape[1] // graphs.period, 1, 1)
    off = (W != 0) & ~torch.eye(n, dtype=torch.bool)
    lost = (off & (drawn == 0)).double()
    for every in (0, (0, 1), (0, 2, 3), (0, 1, 2, 3)):  # messages, links, rounds, all
        draws = off.expand_as(lost).double().sum(every)
        some = draws > 0
        deviation = (lost.sum(every) - q * draws)[some] / (q * (1 - q) * draws[some]).sqrt()
        assert deviation.abs().max() < SHARP
    expected = (1 - q) * W + q * torch.diag_embed(W.sum(2))
    deviation = (drawn.mean(0) - expected).abs() / (q * (1 - q) / seeds) ** 0.5
    assert deviation.max() < SHARP


def test_losses_are_independent_from_message_to_message_and_from_round_to_round() -> None:
    q, W = 0.5, matrices(topology("complete", 20))
    drawn = matrices(conditioned(topology("complete", 20), q, 0))
    lost = (drawn == 0)[:, ~torch.eye(20, dtype=torch.bool)].double() - q
    assert W.shape[1:] == drawn.shape[1:]
    pairs = {"rounds": lost[1:] * lost[:-1], "messages": lost[:, 1:] * lost[:, :-1]}
    swapped = (drawn == 0).double().transpose(1, 2)[:, ~torch.eye(20, dtype=torch.bool)] - q
    pairs["directions"] = (lost * swapped)[:, ::2]
    for what, products in pairs.items():
        assert products.sum().abs() < SHARP * 0.25 * products.numel() ** 0.5, what


def test_more_loss_takes_the_same_messages_and_more() -> None:
    few, many = (matrices(conditioned(topology("ring", 9), q, 3)) for q in (0.1, 0.4))
    assert ((many == 0) | (few != 0)).all()
    assert (many == 0).sum() > (few == 0).sum()


def test_without_loss_nothing_is_drawn() -> None:
    ring = topology("ring", 6)
    assert conditioned(ring, 0.0, 5) is ring
    assert spec(loss=0.0).build_topology() is ring
    assert spec(loss=0.0).period == 1
    assert spec(loss=0.1).period == spec(loss=0.1).build_topology().period == BLOCK


def test_the_losses_are_those_of_the_seed_and_the_nodes() -> None:
    first = spec(loss=0.3).build_topology()
    assert spec(loss=0.3, lr=0.01).build_topology() is first
    for other in ({"seed": 1}, {"nodes": 7}):
        drawn = matrices(spec(loss=0.3, **other).build_topology())[:, :6, :6]
        assert not torch.equal(drawn == 0, matrices(first) == 0)


def test_agreement_takes_longer_the_more_is_lost() -> None:
    """Of 12 values on a ring, by the norm of what W^(63) .. W^(0) leaves of the disagreement."""
    left = []
    for q in (0.0, 0.3, 0.6, 0.9):
        graphs = conditioned(topology("ring", 12), q, 0)
        product = torch.linalg.multi_dot([graphs.matrix(t) for t in range(BLOCK)])
        left.append(float((product - product.mean(0)).norm()))
    assert all(b > 2 * a for a, b in itertools.pairwise(left))


@compiled
@pytest.mark.parametrize("name", GOSSIPING)
def test_runs_that_lose_differently_advance_together_as_alone(name: str, compiled: bool) -> None:
    runs = [
        spec(name, loss=loss, lr=lr, seed=seed)
        for loss, lr, seed in [(0.0, 0.05, 0), (0.3, 0.05, 0), (0.3, 0.02, 0), (0.3, 0.05, 1)]
    ]
    assert len(group(runs)) == 1
    together = curves(*runs, compiled=compiled)
    for run, curve in zip(runs, together, strict=True):
        (alone,) = curves(run, compiled=compiled)
        for axis, values in alone.items():
            assert curve[axis] == (values if compiled else pytest.approx(values, rel=1e-3)), axis
    assert len({tuple(c["objective_gap"]) for c in together}) == 4


EXACT = [name for name in GOSSIPING if COMPONENTS[name].exact]


@pytest.mark.parametrize("name", EXACT)
def test_exact_methods_agree_on_another_point_than_the_minimum(name: str) -> None:
    """Columns that do not sum to 1 weigh the nodes' data by chance."""
    quiet = {"nodes": 7, "problem": PROBLEM | {"sigma2": 0.0}, "lr": 0.1, "rounds": 1000}
    sound, lossy = curves(spec(name, **quiet), spec(name, loss=0.1, **quiet))
    assert sound["objective_gap"][-1] < 1e-8
    assert lossy["objective_gap"][-1] > 1e-3
    assert lossy["consensus"][-1] < 1e-12


@pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")
@pytest.mark.parametrize("name", ["dsgd", "teleportation"])
def test_engines_lose_the_same_messages(name: str) -> None:
    run = spec(name, loss=0.3, rounds=4 * BLOCK)
    fleet = Fleet([run], compiled=True)
    (replayed,) = [outcome.curves for outcome in fleet.advance()]
    assert fleet.tapes
    (plain,) = curves(run, compiled=False)
    graphed = Fleet([run])
    graphed.graphs = Graphs(graphed)
    assert [outcome.curves for outcome in graphed.advance()] == [plain]
    for axis, values in plain.items():
        assert replayed[axis] == pytest.approx(values, rel=1e-3, abs=1e-6), axis


@pytest.mark.parametrize("name", ["dsgd", "teleportation", "epidemic", "gradient_tracking"])
def test_what_is_lost_has_been_sent_and_waited_for(name: str) -> None:
    sound, lossy = spec(name), spec(name, loss=0.4)
    (before,), (after,) = curves(sound), curves(lossy)
    for axis in ("bytes_total", "bytes_per_node", "gradients"):
        assert before[axis] == after[axis]
    for mode in ("synchronous", "barrier_free"):
        network = Network(tau=3, preferred="star", mode=mode)
        ours, theirs = simulate(sound, network), simulate(lossy, network)
        assert ours.time == pytest.approx(theirs.time)
        assert (ours.total_bytes == theirs.total_bytes).all()


def test_teleports_are_not_lost() -> None:
    """A single token has no other messages."""
    alone = spec("teleportation", active=1)
    assert curves(spec("teleportation", active=1, loss=0.9)) == curves(alone)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in GOSSIPING])
def test_what_does_not_gossip_has_no_messages_to_lose(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has no gossip .* leave loss out"):
        spec(name, loss=0.1)


@pytest.mark.parametrize("q", [-0.1, 1, 1.5, float("nan")])
def test_some_messages_arrive(q: float) -> None:
    with pytest.raises(ValueError, match="loss"):
        spec(loss=q)

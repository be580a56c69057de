"""Messages that are lost and nodes that are away: what they leave of matrices and of runs."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from teleport_bench import RunSpec, native, topology
from teleport_bench.activation import BLOCK
from teleport_bench.conditions import Away, absence, conditioned
from teleport_bench.fleet import Fleet, FleetRound, group
from teleport_bench.graphs import Graphs
from teleport_bench.network import Network, simulate
from teleport_bench.registry import ALGORITHMS
from teleport_bench.shown import settings_of
from teleport_bench.suite import Suite
from teleport_bench.topologies import Topology

NAMES = ALGORITHMS.names()
COMPONENTS = {entry.name: entry.component for entry in ALGORITHMS}
GOSSIPING = [name for name in NAMES if COMPONENTS[name].communication == "gossip"]
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


def lossy(graphs: Topology, q: float, seed: int) -> Topology:
    return conditioned(graphs, q, None, seed, graphs.n_nodes)


def matrices(graphs: Topology) -> Tensor:
    """(period, n, n)"""
    return torch.stack([graphs.matrix(t) for t in range(graphs.period)])


@settings(deadline=None, max_examples=12)
@given(st.data(), st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_a_row_keeps_the_weight_of_what_is_lost(data: Any, q: float, seed: int) -> None:
    name = data.draw(st.sampled_from(["ring", "star", "complete", "one_peer_exponential", "base"]))
    n = data.draw(st.sampled_from([1, 2, 3, 7, 12]))
    graphs = topology(name, n)
    drawn = lossy(graphs, q, seed)
    assert drawn.period >= BLOCK
    assert drawn.period % graphs.period == 0
    for t in range(drawn.period):
        W, left = graphs.matrix(t), drawn.matrix(t)
        torch.testing.assert_close(left.sum(1), torch.ones(n, dtype=torch.float64))
        off = ~torch.eye(n, dtype=torch.bool)
        lost = off & (W != 0) & (left == 0)
        kept = torch.where(lost, 0, W)
        assert torch.equal(left[off], kept[off])  # what comes has the weight that it had
        home = (W.diagonal() + (W - kept).sum(1)).double()
        torch.testing.assert_close(left.diagonal(), home)
        sent = drawn.mixing(t).rows != drawn.mixing(t).indices
        assert int(sent.sum()) == int((off & (W != 0)).sum())  # what is lost has been sent


@pytest.mark.parametrize("name", ["ring", "complete", "one_peer_exponential"])
def test_every_message_is_lost_as_often_as_every_other(name: str) -> None:
    """E[W'] = (1 - q) W + q diag(W 1), entry by entry, and over all entries of a round."""
    n, q, seeds = 8, 0.3, 15
    graphs = topology(name, n)
    drawn = torch.stack([matrices(lossy(graphs, q, seed)) for seed in range(seeds)])
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
    drawn = matrices(lossy(topology("complete", 20), q, 0))
    lost = (drawn == 0)[:, ~torch.eye(20, dtype=torch.bool)].double() - q
    assert W.shape[1:] == drawn.shape[1:]
    pairs = {"rounds": lost[1:] * lost[:-1], "messages": lost[:, 1:] * lost[:, :-1]}
    swapped = (drawn == 0).double().transpose(1, 2)[:, ~torch.eye(20, dtype=torch.bool)] - q
    pairs["directions"] = (lost * swapped)[:, ::2]
    for what, products in pairs.items():
        assert products.sum().abs() < SHARP * 0.25 * products.numel() ** 0.5, what


def test_more_loss_takes_the_same_messages_and_more() -> None:
    few, many = (matrices(lossy(topology("ring", 9), q, 3)) for q in (0.1, 0.4))
    assert ((many == 0) | (few != 0)).all()
    assert (many == 0).sum() > (few == 0).sum()


def test_without_loss_nothing_is_drawn() -> None:
    ring = topology("ring", 6)
    assert lossy(ring, 0.0, 5) is ring
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
        graphs = lossy(topology("ring", 12), q, 0)
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


AWAY = {"share": 0.3, "spell": 4}
LEAVING = ["dsgd", "local_sgd", "epidemic"]
"""All nodes are active, and those that are away are left out."""
DRAWN = ["teleportation", "fedavg"]

aways = st.tuples(st.floats(0.05, 0.9), st.floats(1, 20)).filter(lambda a: a[0] < a[1] / (1 + a[1]))


@settings(deadline=None, max_examples=12)
@given(aways, st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_a_node_is_back_a_round_sooner_every_round(drawn: Any, n: int, seed: int) -> None:
    """Over the end of the period as well."""
    away = Away(share=drawn[0], spell=drawn[1])
    left = absence(away, seed, n)
    assert left.shape == (away.period, n)
    assert away.period % BLOCK == 0
    assert away.period >= 8 * away.spell
    following = np.roll(left, -1, axis=0)
    assert ((left > 0) <= ((left == following + 1) | (left == away.period))).all()


@pytest.mark.parametrize(("share", "spell"), [(0.2, 1), (0.3, 4), (0.5, 1), (0.1, 10), (0.6, 20)])
def test_shares_and_spells_are_those_of_a_markov_chain(share: float, spell: float) -> None:
    """Shares of rounds, of leaving and of coming back: each transition of a chain is drawn on its
    own, so that the counts are martingales with these variances."""
    away, n = Away(share=share, spell=spell), 4000
    gone = absence(away, 0, n) > 0
    following = np.roll(gone, -1, axis=0)
    leave, back = share / (1 - share) / spell, 1 / spell
    for state, chance, other in ((gone, back, ~following), (~gone, leave, following)):
        draws, moves = state.sum(), (state & other).sum()
        allowed = SHARP * (draws * chance * (1 - chance)) ** 0.5
        assert abs(moves - chance * draws) <= allowed + 1e-9 * draws
    # of each round, nodes are independent; the chain is as good as stationary
    allowed = SHARP * (share * (1 - share) / n) ** 0.5 + np.exp(-8)
    assert (abs(gone.mean(1) - share) < allowed).all()


def test_spells_are_geometric() -> None:
    gone = absence(Away(share=0.3, spell=4), 1, 3000) > 0
    begins = np.argwhere(gone & ~np.roll(gone, 1, axis=0))
    left = absence(Away(share=0.3, spell=4), 1, 3000)[begins[:, 0], begins[:, 1]]
    counts = np.bincount(np.minimum(left, 20))[1:]
    chances = 0.75 ** np.arange(19) / 4
    expected = len(left) * np.append(chances, 0.75**19)
    assert ((counts - expected) ** 2 / expected).sum() < stats.chi2.isf(1e-6, 19)


def test_who_is_away_depends_on_seed_and_nodes_alone() -> None:
    shared = {"nodes": 8, "away": AWAY}
    ring = spec("dsgd", topology="ring", lr=0.1, **shared)
    star = spec("local_sgd", topology="star", lr=0.2, loss=0.3, **shared)
    for t in range(BLOCK):
        alone = [(r.build_topology().mixing(t).degrees == 1) for r in (ring, star)]
        gone = torch.from_numpy(absence(Away(**AWAY), 0, 8)[t] > 0)
        assert all(degrees[gone].all() for degrees in alone)
    other = absence(Away(**AWAY), 1, 8)
    assert not np.array_equal(other, absence(Away(**AWAY), 0, 8))


@settings(deadline=None, max_examples=12)
@given(
    st.sampled_from(["ring", "star", "complete", "base", "one_peer_exponential"]),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.4]),
)
def test_who_is_away_keeps_its_own_and_gives_none(name: str, n: int, seed: int, q: float) -> None:
    away, graphs = Away(**AWAY), topology(name, n)
    left, drawn = absence(away, seed, n), conditioned(graphs, q, away, seed, n)
    assert drawn.period % graphs.period == drawn.period % away.period == 0
    for t in range(drawn.period):
        W, before = drawn.matrix(t), graphs.matrix(t)
        gone = torch.from_numpy(left[t % away.period] > 0)
        one = torch.ones(n, dtype=torch.float64)
        torch.testing.assert_close(W.sum(1), one)
        assert torch.equal(W[gone].float(), torch.eye(n)[gone])
        assert torch.equal(W[:, gone].float(), torch.eye(n)[:, gone])
        sent = drawn.mixing(t).rows != drawn.mixing(t).indices
        there = (~gone).double()
        pairs = torch.outer(there, there) * (before != 0) * (1 - torch.eye(n))
        assert int(sent.sum()) == int(pairs.sum())
        if not q:
            off = pairs.bool()
            assert torch.equal(W[off], before[off])
            if torch.equal(before, before.T):
                torch.testing.assert_close(W.sum(0), one)  # and so the mean of those present


def test_messages_of_those_present_are_lost_as_if_nobody_were_away() -> None:
    ring, away = topology("ring", 9), Away(**AWAY)
    lost, both = lossy(ring, 0.4, 2), conditioned(ring, 0.4, away, 2, 9)
    for t in range(BLOCK):
        there = absence(away, 2, 9)[t] == 0
        off = np.outer(there, there) & ~np.eye(9, dtype=bool)
        assert torch.equal(lost.matrix(t)[off], both.matrix(t)[off])


def rows_of(run: RunSpec, compiled: bool) -> list[Tensor]:
    """The parameters after each round, from the start on."""
    fleet, seen = Fleet([run], compiled=compiled, replay=False), []
    step = fleet.algorithm.step

    def watched(state: Any, r: Any) -> Any:
        seen.extend([state["x"].clone()] if not seen else [])
        after = step(state, r)
        seen.append(after["x"].clone())
        return after

    fleet.algorithm.step = watched  # type: ignore[method-assign]
    fleet.advance()
    return seen


@compiled
@pytest.mark.parametrize("name", LEAVING)
def test_nobody_who_is_away_changes(name: str, compiled: bool) -> None:
    run = spec(name, away={"share": 0.3, "spell": 10}, weight_decay=0.1)
    seen, left = rows_of(run, compiled), absence(Away(share=0.3, spell=10), 0, 6)
    assert len(left) == 2 * BLOCK
    for t, (before, after) in enumerate(itertools.pairwise(seen)):
        gone = torch.from_numpy(left[t % len(left)] > 0)
        assert torch.equal(before[gone], after[gone])
        if t > 0:
            assert (before != after).any(1)[~gone].all()


@compiled
def test_the_mean_moves_by_the_steps_of_those_present_alone(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W is symmetric: gossip among those who are there keeps their mean."""
    run = spec(away=AWAY)
    gradients, gradient = [], FleetRound.gradient

    def watched(self: FleetRound, x: Tensor, step: int = 0) -> Tensor:
        gradients.append(gradient(self, x, step).clone())
        return gradients[-1]

    monkeypatch.setattr(FleetRound, "gradient", watched)
    seen, left = rows_of(run, compiled), absence(Away(**AWAY), 0, 6)
    for t, (before, after) in enumerate(itertools.pairwise(seen)):
        there = torch.from_numpy(left[t % len(left)] == 0)
        step = (before - 0.05 * gradients[t])[there].sum(0)
        torch.testing.assert_close(after[there].sum(0), step, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("share", [0.1, 0.45, 0.9])
def test_nodes_are_drawn_among_those_present(name: str, share: float) -> None:
    """Where too few are there all of them are drawn, and those who are back first."""
    away = Away(share=share, spell=12)
    run, left = spec(name, nodes=7, active=4, away=away), absence(away, 0, 7)
    short = 0
    for block in range(6):
        for i, holders in enumerate(run.holders(block)):
            waits = left[(block * BLOCK + i) % len(left)]
            assert len(set(holders.tolist())) == 4
            assert sorted(waits[holders]) == sorted(waits)[:4]
            short += int((waits[holders] > 0).any())
    assert (short == 0) == (share == 0.1)


def test_every_node_that_is_there_is_drawn_as_often() -> None:
    away, draws, chances = Away(**AWAY), np.zeros(9), np.zeros(9)
    variance = np.zeros(9)
    for seed in range(20):
        run = spec("teleportation", nodes=9, active=2, seed=seed, away=away)
        left = absence(away, seed, 9)
        for block in range(4):
            for i, holders in enumerate(run.holders(block)):
                there = left[i] == 0
                if there.sum() > 2:
                    draws[holders] += 1
                    p = there * 2 / there.sum()
                    chances, variance = chances + p, variance + p * (1 - p)
    assert (abs(draws - chances) < SHARP * variance**0.5).all()


@compiled
@pytest.mark.parametrize("name", [*LEAVING, *DRAWN])
def test_runs_with_nodes_away_advance_together_as_alone(name: str, compiled: bool) -> None:
    runs = [
        spec(name, away=AWAY, loss=loss, lr=lr, seed=seed, nodes=nodes)
        for loss, lr, seed, nodes in [
            (0.0, 0.05, 0, 6),
            (0.0 if name == "fedavg" else 0.2, 0.02, 0, 6),
            (0.0, 0.05, 1, 8),
        ]
    ]
    assert len(group([*runs, spec(name)])) == 2
    together = curves(*runs, compiled=compiled)
    for run, curve in zip(runs, together, strict=True):
        (alone,) = curves(run, compiled=compiled)
        for axis, values in alone.items():
            assert curve[axis] == (values if compiled else pytest.approx(values, rel=1e-3)), axis


@pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")
@pytest.mark.parametrize("name", ["local_sgd", "teleportation"])
@pytest.mark.parametrize("spell", [4, 10])
def test_engines_leave_out_the_same_nodes(name: str, spell: float) -> None:
    run = spec(name, away={"share": 0.3, "spell": spell}, rounds=4 * BLOCK, schedule="cosine")
    fleet = Fleet([run], compiled=True)
    (replayed,) = [outcome.curves for outcome in fleet.advance()]
    assert fleet.tapes
    (plain,) = curves(run, compiled=False)
    graphed = Fleet([run])
    graphed.graphs = Graphs(graphed)
    assert [outcome.curves for outcome in graphed.advance()] == [plain]
    for axis, values in plain.items():
        assert replayed[axis] == pytest.approx(values, rel=1e-3, abs=1e-6), axis


def test_gradients_and_bytes_are_those_of_who_is_there() -> None:
    away = Away(share=0.3, spell=10)
    run, left = spec("local_sgd", away=away, rounds=300, eval_every=7), absence(away, 0, 6)
    (curve,) = curves(run)
    there = left == 0
    gradients, messages = [0], [0]
    for t in range(300):
        here = there[t % len(there)]
        gradients.append(gradients[-1] + run.build_algorithm().local_steps * int(here.sum()))
        messages.append(messages[-1] + 2 * int((here & np.roll(here, 1)).sum()))
    rounds = [int(t) for t in curve["rounds"]]
    assert curve["gradients"] == [gradients[t] for t in rounds]
    assert curve["bytes_total"] == [4 * 6 * messages[t] for t in rounds]


def test_conditions_that_do_not_hold_are_settings_to_compare_by_but_not_in_the_name() -> None:
    sound, rough = spec(), spec(loss=0.2, away=AWAY)
    assert not {"loss", "away"} & sound.model_dump().keys()
    assert settings_of(sound).items() >= {"loss": 0.0, "away.share": 0.0}.items()
    assert settings_of(rough).items() >= {"loss": 0.2, "away.share": 0.3, "away.spell": 4.0}.items()
    source = {
        "title": "t",
        "run": sound.model_dump(exclude={"algorithm", "active", "stop", "share"}),
        "grid": {"*": [{"loss": 0.0}, {"loss": 0.2}, {"away": AWAY}]},
        "method": [{"algorithm": "dsgd", "label": "{loss:g}, {away[share]:g}"}],
        "table": [{"name": "t", "values": ["consensus"], "pivot": "loss"}],
    }
    runs = Suite.from_source("s", source).all_runs()
    assert [run.label for run in runs] == ["0, 0", "0.2, 0", "0, 0.3"]


def test_nobody_away_is_no_condition() -> None:
    none = spec(away={"share": 0.0, "spell": 5})
    assert none == spec()
    assert none.id == spec().id
    assert spec("allreduce", momentum=0.5, away={"share": 0, "spell": 5}).away is None


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("dsgd", {"momentum": 0.5}, "momentum of a node that is away would change"),
        ("gradient_tracking", {}, "keeps more than parameters"),
        ("allreduce", {}, "takes all nodes in every round"),
        ("dsgd", {"away": {"share": 0.6, "spell": 1}}, "more than spell / .1 . spell. = 0.5"),
        ("dsgd", {"away": {"share": 0.5, "spell": 0.5}}, "greater than or equal to 1"),
        ("dsgd", {"away": {"share": 0.5, "spel": 3}}, "did you mean 'spell'"),
    ],
)
def test_where_nodes_cannot_be_away_it_is_said(name: str, given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spec(name, **({"away": AWAY} | given))

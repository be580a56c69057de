"""The messages of a round, counted by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teleport_bench.network import messages
from teleport_bench.registry import TOPOLOGIES
from teleport_bench.topologies import Topology, topology
from teleport_kernels import Mixing

PERIOD_THREE = Topology(
    [
        Mixing.identity(3),
        Mixing.from_dense(torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]])),
        Mixing.from_dense(torch.full((3, 3), 1 / 3)),
    ]
)
"""0, 2 and 6 messages."""


def holders(*rounds):
    return np.array(rounds, dtype=np.int64)


def stay(n, rounds):
    return np.tile(np.arange(n), (rounds, 1))


def count(topology, moves, before, start):
    return messages(topology, moves, np.array(before), start).tolist()


@settings(deadline=None)
@given(
    st.sampled_from(["ring", "star", "exponential", "one_peer_exponential"]),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(0, 9),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_a_round_sends_a_message_for_each_move_and_each_entry_off_the_diagonal(
    name, k, rounds, start, seed, data
):
    rng = np.random.default_rng(seed)
    nodes = np.stack([rng.permutation(k + 2)[:k] for _ in range(rounds + 1)])
    t = topology(name, k)
    expected = []
    for r in range(rounds):
        W = t.matrix(start + r)
        sent = sum(1 for a in range(k) for b in range(k) if a != b and W[a, b] != 0)
        if start + r > 0:
            sent += sum(1 for a in range(k) if nodes[r + 1][a] != nodes[r][a])
        expected.append(sent)
    whole = messages(t, nodes[1:], nodes[0], start)
    assert whole.tolist() == expected

    cut = data.draw(st.integers(1, rounds))
    parts = [messages(t, nodes[1 : cut + 1], nodes[0], start)]
    if cut < rounds:
        parts.append(messages(t, nodes[cut + 1 :], nodes[cut], start + cut))
    assert np.concatenate(parts).tolist() == expected


@pytest.mark.parametrize("name", TOPOLOGIES.names())
def test_one_node_alone_sends_nothing(name):
    assert count(topology(name, 1), stay(1, 3), [0], 0) == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "n", "sent"),
    [
        ("ring", 8, 16),
        ("ring", 3, 6),
        ("ring", 2, 2),
        ("star", 8, 14),
        ("complete", 5, 20),
        ("torus", 9, 36),
        ("exponential", 8, 24),
        ("one_peer_exponential", 8, 8),
    ],
)
def test_dsgd_sends_to_every_neighbour_in_every_round(name, n, sent):
    assert count(topology(name, n), stay(n, 4), range(n), 0) == [sent] * 4


def test_a_single_token_is_sent_whenever_its_holder_changes():
    moves = holders([3], [3], [5], [2])
    assert count(topology("ring", 1), moves, [0], 4) == [1, 0, 1, 1]
    assert count(topology("ring", 1), moves, [3], 4) == [0, 0, 1, 1]


def test_nothing_is_fetched_in_round_zero():
    moves = holders([3], [5])
    assert count(topology("ring", 1), moves, [0], 0) == [0, 1]
    assert count(topology("ring", 4), holders([9, 8, 7, 6]), [0, 1, 2, 3], 0) == [8]


def test_tokens_move_and_then_gossip():
    moves = holders([4, 1, 7, 2], [4, 3, 7, 0], [4, 3, 7, 0])
    assert count(topology("ring", 4), moves, [4, 1, 2, 7], 6) == [8 + 2, 8 + 2, 8]


def test_two_nodes_that_swap_their_tokens_send_both():
    assert count(topology("ring", 2), holders([6, 5]), [5, 6], 1) == [2 + 2]


def test_a_time_varying_graph_sends_what_its_round_asks_for():
    assert count(PERIOD_THREE, stay(3, 7), range(3), 0) == [0, 2, 6, 0, 2, 6, 0]
    assert count(PERIOD_THREE, stay(3, 4), range(3), 64) == [2, 6, 0, 2]


def test_counting_leaves_the_holders_as_they_were():
    moves, before = holders([1, 0], [0, 1]), np.array([0, 1])
    messages(topology("ring", 2), moves, before, 0)
    assert moves.tolist() == [[1, 0], [0, 1]]
    assert before.tolist() == [0, 1]

"""The graphs: doubly stochastic, edges in the right direction, the known spectral gaps."""

import math
import re

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from teleport_bench.errors import UserError
from teleport_bench.registry import TOPOLOGIES
from teleport_bench.topologies import Topology, topology
from teleport_bench.topologies.random_regular import random_regular
from teleport_bench.topologies.spectrum import spectral_gap
from teleport_kernels import Mixing

NAMES = TOPOLOGIES.names()
DIRECTED = ["exponential", "one_peer_exponential"]
SYMMETRIC = ["complete", "random_regular", "ring", "star", "torus"]
N = [*range(1, 41), 64, 81, 97]
UNIT = 2.0**-53


def graph(name, n):
    """The topology of that name on n nodes; n x degree must be even for a regular graph."""
    options = {"degree": 3 + n % 2} if name == "random_regular" else {}
    return topology(name, n, **options)


def hops(n):
    return [2**j for j in range(math.ceil(math.log2(n)))]


def support(W):
    return {(i, j) for i, j in W.nonzero().tolist() if i != j}


def edges(g):
    """Both directions of every edge of an undirected networkx graph, loops apart."""
    return {(i, j) for a, b in g.edges for i, j in ((a, b), (b, a)) if i != j}


def hears(n, offsets):
    return {(i, (i + offset) % n) for i in range(n) for offset in offsets}


def all_equal(values, number):
    return torch.equal(values, torch.full_like(values, number))


def J(n):  # noqa: N802 - as in the paper
    return torch.full((n, n), 1 / n, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_every_matrix_is_doubly_stochastic(name):
    for n in N:
        t = graph(name, n)
        assert t.n_nodes == n
        for r in range(t.period):
            W = t.matrix(r)
            assert W.shape == (n, n)
            assert W.dtype == torch.float64
            assert bool((W >= 0).all())
            # weights and the rest that stays at home: one rounding each, of parts of 1
            for line in (*W.tolist(), *W.T.tolist()):
                assert abs(math.fsum(line) - 1) <= (n + 1) * UNIT


@pytest.mark.parametrize("name", SYMMETRIC)
def test_undirected_graphs_have_symmetric_matrices(name):
    for n in N:
        W = graph(name, n).matrix()
        assert torch.equal(W, W.T)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_the_schedule_repeats_after_its_period(name, n):
    t = graph(name, n)
    for r in range(3 * t.period):
        assert torch.equal(t.matrix(r), t.matrix(r + 5 * t.period))
        assert torch.equal(t.mixing(r).dense(), t.matrix(r))


@pytest.mark.parametrize("name", [*SYMMETRIC, "exponential"])
def test_a_static_graph_has_period_one(name):
    assert graph(name, 12).period == 1


@pytest.mark.parametrize("name", NAMES)
def test_one_node_keeps_its_value(name):
    t = graph(name, 1)
    assert t.period == 1
    assert torch.equal(t.matrix(), J(1))
    assert t.spectral_gap() == 1


@pytest.mark.parametrize("name", [*SYMMETRIC, *DIRECTED])
def test_two_nodes_take_half_of_each_other(name):
    t = graph(name, 2)
    assert t.period == 1
    assert torch.equal(t.matrix(), J(2))
    assert t.spectral_gap() == 1


@pytest.mark.parametrize("name", ["ring", "torus", "complete", "exponential", "random_regular"])
def test_three_nodes_are_a_complete_graph(name):
    assert torch.allclose(graph(name, 3).matrix(), J(3), rtol=0, atol=2 * UNIT)


def test_three_nodes_of_a_star_meet_in_its_centre():
    expected = torch.tensor([[1, 1, 1], [1, 2, 0], [1, 0, 2]]).double() / 3
    assert torch.allclose(topology("star", 3).matrix(), expected, rtol=0, atol=2 * UNIT)


def test_three_nodes_of_a_one_peer_graph_hear_one_neighbour_and_then_the_other():
    t = topology("one_peer_exponential", 3)
    assert torch.equal(t.matrix(0) * 2, torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 1]]).double())
    assert torch.equal(t.matrix(1) * 2, torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1]]).double())


def test_a_ring_is_a_cycle_with_equal_weights():
    for n in N:
        W = topology("ring", n).matrix()
        assert support(W) == edges(nx.cycle_graph(n))
        assert all_equal(W[W > 0], 1 / min(n, 3))


def test_a_complete_graph_averages_in_one_round():
    for n in N:
        t = topology("complete", n)
        assert support(t.matrix()) == edges(nx.complete_graph(n))
        assert torch.equal(t.matrix(), J(n))
        assert t.spectral_gap() == 1


def test_a_star_has_its_centre_at_node_zero_and_weights_1_over_n():
    for n in N:
        W = topology("star", n).matrix()
        assert support(W) == edges(nx.star_graph(n - 1))
        assert all_equal(W[0, 1:], 1 / n)


def test_a_torus_is_the_most_square_grid_that_wraps_around():
    for n in N:
        a, b = min(((a, n // a) for a in range(1, n + 1) if n % a == 0), key=sum)
        grid = nx.grid_2d_graph(a, b, periodic=True)
        links = topology("torus", n).matrix().fill_diagonal_(0)
        assert a <= b
        assert support(links) == {(r * b + c, s * b + d) for (r, c), (s, d) in edges(grid)}
        degree = (min(a, 3) - 1) + (min(b, 3) - 1)
        assert all_equal(links[links > 0], 1 / (degree + 1))


def test_an_exponential_graph_hears_every_power_of_two_ahead_with_equal_weights():
    for n in N:
        W = topology("exponential", n).matrix()
        assert support(W) == hears(n, hops(n))
        assert all_equal(W[W > 0], 1 / (len(hops(n)) + 1))


def test_a_one_peer_exponential_graph_hears_one_power_of_two_ahead_a_round():
    for n in N:
        t = topology("one_peer_exponential", n)
        assert t.period == max(1, len(hops(n)))
        for r, hop in enumerate(hops(n)):
            W = t.matrix(r)
            assert support(W) == hears(n, [hop])
            assert all_equal(W[W > 0], 1 / 2)


@pytest.mark.parametrize("name", DIRECTED)
@pytest.mark.parametrize("n", [6, 8, 12])
def test_a_value_reaches_those_who_listen_to_it_and_not_those_it_listens_to(name, n):
    W = topology(name, n).matrix()
    x = torch.zeros(n, dtype=torch.float64)
    x[3] = 1
    received = W @ x
    assert received[2] > 0
    assert received[4] == 0


@pytest.mark.parametrize("n", [2, 4, 8, 16, 32, 64])
def test_a_one_peer_exponential_graph_on_a_power_of_two_agrees_after_one_period(n):
    t = topology("one_peer_exponential", n)
    for start in range(t.period):
        product = torch.eye(n, dtype=torch.float64)
        for r in range(start, start + t.period):
            assert not torch.equal(product, J(n))
            product = t.matrix(r) @ product
        assert torch.equal(product, J(n))
    assert t.spectral_gap() == 1


@pytest.mark.parametrize("n", [3, 5, 6, 7, 12, 24, 25])
def test_a_one_peer_exponential_graph_elsewhere_does_not_agree_in_one_period(n):
    assert 0 < topology("one_peer_exponential", n).spectral_gap() < 1


@pytest.mark.parametrize(
    ("name", "n", "printed"),
    [
        ("ring", 4, "0.889"),
        ("ring", 8, "0.352"),
        ("ring", 16, "0.0989"),
        ("ring", 32, "0.0255"),
        ("ring", 64, "0.0064"),
        ("exponential", 4, "0.889"),
        ("exponential", 8, "0.75"),
        ("exponential", 16, "0.64"),
        ("exponential", 32, "0.556"),
        ("exponential", 64, "0.490"),
    ],
)
def test_the_spectral_gap_is_the_known_value_to_every_printed_digit(name, n, printed):
    digits = len(printed) - len("0.")
    assert f"{topology(name, n).spectral_gap():.{digits}f}" == printed


@pytest.mark.parametrize("n", [32, 64, 128, 256])
def test_the_spectral_gap_of_a_large_ring_is_8_pi2_over_3_n2(n):
    # p = 1 - (1/3 + 2/3 cos a)^2 = 2 a^2 / 3 - a^4 / 6 + .., a = 2 pi / n
    ratio = topology("ring", n).spectral_gap() / (8 * math.pi**2 / (3 * n**2))
    assert 1 - (2 * math.pi / n) ** 2 / 4 <= ratio < 1


def spectral(value, n):
    """Equal up to the backward error of a dense solver, a few units of roundoff a row."""
    return pytest.approx(value, abs=8 * n * UNIT, rel=0)


@pytest.mark.parametrize("n", range(3, 41))
def test_the_spectral_gap_of_a_star_is_that_of_two_leaves_that_disagree(n):
    assert topology("star", n).spectral_gap() == spectral(1 - (1 - 1 / n) ** 2, n)


@pytest.mark.parametrize("name", SYMMETRIC)
@pytest.mark.parametrize("n", [3, 4, 8, 15, 25])
def test_the_spectral_gap_of_a_symmetric_graph_comes_from_its_second_eigenvalue(name, n):
    t = graph(name, n)
    eigenvalues = np.sort(np.abs(np.linalg.eigvalsh(t.matrix().numpy())))
    assert t.spectral_gap() == spectral(1 - eigenvalues[-2] ** 2, n)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 20), seed=st.integers(0, 2**32 - 1))
def test_one_period_shrinks_the_distance_to_consensus_at_the_rate_of_the_gap(name, n, seed):
    t = graph(name, n)
    p = t.spectral_gap()
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, 1)))
    y = x
    for r in range(t.period):
        y = t.matrix(r) @ y
    before, after = (float(((v - v.mean()) ** 2).sum()) for v in (x, y))
    assert 0 < p <= 1
    assert after <= (1 - p) ** t.period * before + 8 * n * t.period * UNIT * float((x**2).sum())


def test_matrices_that_never_mix_have_no_spectral_gap():
    assert spectral_gap([torch.eye(3)]) == spectral(0, 3)
    pairs = torch.eye(4)[[1, 0, 3, 2]]
    assert Topology((Mixing.from_dense(pairs),)).spectral_gap() == spectral(0, 4)


def test_the_spectral_gap_of_a_schedule_is_a_rate_a_round():
    W = topology("ring", 8).matrix()
    once, thrice, lazy = spectral_gap([W]), spectral_gap([W] * 3), spectral_gap([W, torch.eye(8)])
    assert thrice == spectral(once, 8)
    assert spectral_gap([W] * 400) == spectral(once, 8)  # the product is below any rounding
    assert 1 - lazy == spectral(math.sqrt(1 - once), 8)


@pytest.mark.parametrize("degree", [2, 3, 4, 7])
@pytest.mark.parametrize("n", [10, 16, 31, 40, 64])
def test_a_random_regular_graph_is_regular_and_connected(n, degree):
    if n * degree % 2:
        with pytest.raises(UserError, match=f"no graph on {n} nodes has degree {degree}"):
            topology("random_regular", n, degree=degree)
        return
    for seed in range(5):
        links = topology("random_regular", n, degree=degree, seed=seed).matrix().fill_diagonal_(0)
        assert all_equal((links > 0).sum(1), degree)
        assert all_equal(links[links > 0], 1 / (degree + 1))
        assert nx.is_connected(nx.from_numpy_array(links.numpy()))


@pytest.mark.parametrize("degree", [2, 3, 4, 7])
def test_a_random_regular_graph_is_the_same_for_one_seed_and_another_for_another(degree):
    drawn = [random_regular(24, degree=degree, seed=seed).matrix() for seed in range(8)]
    again = [random_regular(24, degree=degree, seed=seed).matrix() for seed in range(8)]
    for W, V in zip(drawn, again, strict=True):
        assert torch.equal(W, V)
    assert len({tuple(W.flatten().tolist()) for W in drawn}) == len(drawn)


def test_a_random_regular_graph_has_degree_three_and_seed_zero_unless_told():
    expected = topology("random_regular", 16, degree=3, seed=0)
    assert torch.equal(topology("random_regular", 16).matrix(), expected.matrix())


@pytest.mark.parametrize("n", range(1, 6))
def test_up_to_degree_plus_one_nodes_a_random_regular_graph_is_complete(n):
    W = topology("random_regular", n, degree=4).matrix()
    assert torch.allclose(W, J(n), rtol=0, atol=n * UNIT)


@pytest.mark.parametrize(("n", "degree"), [(5, 3), (7, 5), (25, 3), (101, 7)])
def test_an_odd_number_of_edge_ends_is_refused_with_advice_that_works(n, degree):
    with pytest.raises(UserError, match="nodes x degree must be even") as error:
        topology("random_regular", n, degree=degree)
    advice = re.search(r"take degree (\d+) or (\d+), or one node more", str(error.value))
    for works in advice.groups():
        assert topology("random_regular", n, degree=int(works)).n_nodes == n
    assert topology("random_regular", n + 1, degree=degree).n_nodes == n + 1


def test_degree_one_is_refused_for_it_cannot_connect():
    with pytest.raises(UserError, match="degree 1 on 8 nodes is not connected: take degree 2"):
        topology("random_regular", 8, degree=1)


@pytest.mark.parametrize(
    ("wrong", "right"), [("rnig", "ring"), ("tours", "torus"), ("one_peer", "one_peer_exponential")]
)
def test_an_unknown_topology_is_refused_and_the_nearest_named(wrong, right):
    with pytest.raises(UserError, match=f"unknown topology '{wrong}'; did you mean '{right}'"):
        topology(wrong, 8)


def test_a_topology_like_no_other_is_refused_with_all_names():
    with pytest.raises(UserError) as error:
        topology("xyzzy", 8)
    assert "did you mean" not in str(error.value)
    assert str(error.value).endswith(f"Known: {', '.join(NAMES)}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [0, -1, 2.5, "8"])
def test_a_number_of_nodes_that_is_none_is_refused(name, n):
    message = "a topology needs at least 1 node, a whole number of them, got"
    with pytest.raises(UserError, match=message):
        topology(name, n)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_refused(name):
    with pytest.raises(ValidationError, match="unknown key 'degre'"):
        topology(name, 8, degre=3)


@pytest.mark.parametrize(
    "options", [{"degree": 0}, {"degree": -2}, {"degree": 2.5}, {"seed": -1}, {"degree": "many"}]
)
def test_an_option_that_is_not_valid_is_refused_and_named(options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        topology("random_regular", 8, **options)


def test_a_choice_may_be_a_table_as_in_a_suite():
    table = topology({"name": "random_regular", "degree": 4, "seed": 1}, 16)
    assert torch.equal(table.matrix(), topology("random_regular", 16, degree=4, seed=1).matrix())


def test_options_beside_a_table_are_not_dropped_in_silence():
    try:
        t = topology({"name": "random_regular"}, 16, degree=4)
    except ValueError:
        return
    assert torch.equal(t.matrix(), topology("random_regular", 16, degree=4).matrix())

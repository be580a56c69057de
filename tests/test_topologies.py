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

from teleport_bench import theory
from teleport_bench.algorithms import Algorithm
from teleport_bench.errors import ComponentError, UserError
from teleport_bench.registry import ALGORITHMS, TOPOLOGIES
from teleport_bench.spec import RunSpec
from teleport_bench.topologies import Topology, _build, topology
from teleport_bench.topologies.equi import _matching, equi_static
from teleport_bench.topologies.random_regular import random_regular
from teleport_bench.topologies.spectrum import spectral_gap
from teleport_bench.topologies.stochastic import TOLERANCE, checked
from teleport_kernels import Mixing

NAMES = TOPOLOGIES.names()
DIRECTED = ["exponential", "one_peer_exponential"]
SYMMETRIC = ["complete", "erdos_renyi", "random_regular", "ring", "star", "torus"]
FINITE_TIME = ["base", "hyper_hypercube", "simple_base"]
N = [*range(1, 41), 64, 81, 97]
UNIT = 2.0**-53


def graph(name, n):
    """The topology of that name on n nodes; n x degree must be even for a regular graph, and n a
    product of numbers up to degree + 1 for a hyper-hypercube."""
    options = {
        "random_regular": {"degree": 3 + n % 2},
        "hyper_hypercube": {"degree": max(1, largest_prime(n) - 1)},
        "equi_dyn": {"period": 12},
    }
    return topology(name, n, **options.get(name, {}))


def largest_prime(n):
    """The largest prime factor of n; 1 has none and gives 1."""
    prime = next((p for p in range(2, n) if n % p == 0), n)
    return prime if prime == n else max(prime, largest_prime(n // prime))


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
    if t.period is None:  # drawn afresh
        assert any(not torch.equal(t.matrix(r), t.matrix(r + 64)) for r in range(8)) == (n > 2)
    for r in range(3 * (t.period or 50)):
        if t.period:
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


def rounds_of(t):
    return [t.matrix(r) for r in range(t.period or 64)]


def product(matrices):
    """Of all rounds, the first on the right."""
    result = torch.eye(matrices[0].shape[0], dtype=torch.float64)
    for W in matrices:
        result = W @ result
    return result


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
@pytest.mark.parametrize("name", FINITE_TIME)
def test_finite_time_graphs_agree_exactly_after_one_period_for_every_n(name, degree):
    for n in range(1, 100):
        if name == "hyper_hypercube" and largest_prime(n) > degree + 1:
            with pytest.raises(UserError, match="take the topology 'base'"):
                topology(name, n, degree=degree)
            continue
        t = topology(name, n, degree=degree)
        for W in rounds_of(t):
            assert torch.equal(W, W.T)
            assert bool((W >= 0).all())
            assert float((W.sum(1) - 1).abs().max()) <= n * UNIT
            assert int((W.fill_diagonal_(0) > 0).sum(1).max()) <= degree
        torch.testing.assert_close(product(rounds_of(t)), J(n), rtol=0, atol=1e-12)
        assert t.spectral_gap() == 1


@pytest.mark.parametrize(
    ("degree", "n", "simple", "shortest"),
    [
        (1, 5, 5, 5),
        (1, 6, 5, 4),
        (1, 8, 3, 3),
        (1, 20, 9, 7),
        (1, 24, 9, 6),
        (1, 25, 9, 9),
        (1, 32, 5, 5),
        (1, 50, 11, 10),
        (4, 25, 2, 2),
    ],
)
def test_finite_time_graphs_are_as_long_as_is_known(degree, n, simple, shortest):
    assert topology("simple_base", n, degree=degree).period == simple
    assert topology("base", n, degree=degree).period == shortest


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_a_simple_base_graph_takes_two_rounds_a_digit_and_a_base_graph_no_more(degree):
    for n in (*range(2, 34), 63, 64, 65, 80, 81, 82, 99):
        simple = topology("simple_base", n, degree=degree).period
        assert topology("base", n, degree=degree).period <= simple
        if largest_prime(n) <= degree + 1:
            assert simple == topology("hyper_hypercube", n, degree=degree).period
        else:
            top = max(p for p in range(8) if (degree + 1) ** p <= n)
            leading = n // (degree + 1) ** top
            assert simple == 2 * top + 1 + (leading > 1)


@pytest.mark.parametrize("n", [2, 4, 8, 16, 64])
def test_a_hyper_hypercube_of_degree_one_is_the_hypercube_one_dimension_a_round(n):
    t = topology("hyper_hypercube", n)
    assert 2**t.period == n
    for r, W in enumerate(rounds_of(t)):
        assert support(W) == {(i, i ^ 2**r) for i in range(n)}
        assert all_equal(W[W > 0], 1 / 2)


def test_a_hyper_hypercube_agrees_from_any_round_on():
    matrices = rounds_of(topology("hyper_hypercube", 30, degree=4))
    for start in range(len(matrices)):
        turned = product(matrices[start:] + matrices[:start])
        torch.testing.assert_close(turned, J(30), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", FINITE_TIME)
@pytest.mark.parametrize("n", [2, 3, 7, 12])
def test_with_enough_neighbours_a_finite_time_graph_is_complete(name, n):
    for degree in (n - 1, n, 10**12):
        t = topology(name, n, degree=degree)
        assert t.period == 1
        assert torch.equal(t.matrix(), J(n))


def average(n, *groups):
    """Each group averages, all others keep their value."""
    W = torch.eye(n, dtype=torch.float64)
    for group in groups:
        for i in group:
            W[i, group] = 1 / len(group)
    return W


def linked(W, weight, *pairs):
    """Pairs hear each other with that weight, the second node of a pair perhaps several."""
    for i, j in pairs:
        W[i, j] = W[j, i] = weight
        W[i, i] -= weight
        W[j, j] -= weight
    return W


@pytest.mark.parametrize(
    ("degree", "n", "by_hand"),
    [
        (1, 3, [average(3, [0, 1]), linked(average(3), 2 / 3, (1, 2)), average(3, [0, 1])]),
        (
            1,
            7,
            [
                average(7, [0, 1], [2, 3], [4, 5]),
                average(7, [0, 2], [1, 3], [4, 5]),
                linked(average(7), 4 / 7, (3, 6), (2, 4), (1, 5)),
                linked(average(7, [0, 1], [2, 3]), 2 / 3, (5, 6)),
                average(7, [0, 2], [1, 3], [4, 5]),
            ],
        ),
        (
            2,
            5,
            [
                average(5, [0, 1, 2], [3, 4]),
                linked(average(5), 3 / 5, (2, 3), (1, 4)),
                average(5, [0, 1, 2], [3, 4]),
            ],
        ),
        (
            2,
            7,
            [
                average(7, [0, 1], [2, 3], [4, 5]),
                average(7, [0, 2, 4], [1, 3, 5]),
                linked(average(7, [0, 1, 3]), 3 / 7, (2, 6), (5, 6)),
                average(7, [0, 1, 2], [3, 4, 5]),
            ],
        ),
    ],
)
def test_small_simple_base_graphs_are_those_built_by_hand(degree, n, by_hand):
    built = rounds_of(topology("simple_base", n, degree=degree))
    for W, expected in zip(built, by_hand, strict=True):
        torch.testing.assert_close(W, expected, rtol=0, atol=2 * UNIT)


def test_a_base_graph_is_simple_base_graphs_and_then_hypercubes_across():
    triple = rounds_of(topology("simple_base", 3))
    blocks = [torch.block_diag(*[W] * 4) for W in triple]
    across = [
        average(12, *([j + s, j + s + d] for s in starts for j in range(3)))
        for d, starts in ((3, (0, 6)), (6, (0, 3)))
    ]
    for W, expected in zip(rounds_of(topology("base", 12)), blocks + across, strict=True):
        torch.testing.assert_close(W, expected, rtol=0, atol=2 * UNIT)


def test_a_number_of_nodes_that_has_no_hyper_hypercube_is_refused_with_advice_that_works():
    with pytest.raises(UserError, match="without prime factors above 2, got 50, a multiple of 5"):
        topology("hyper_hypercube", 50)
    assert topology("base", 50).n_nodes == 50


def squared_distance(x):
    return float(((x - x.mean(0)) ** 2).sum())


def hoeffding(samples):
    """How far the mean of independent numbers in [0, 1] exceeds its expectation, but for one case
    in 10^9."""
    return math.sqrt(9 * math.log(10) / (2 * samples))


@pytest.mark.parametrize("degree", [1, 2, 5, 40])
@pytest.mark.parametrize("n", [3, 4, 12, 25, 64])
def test_an_equi_static_graph_hears_the_same_few_shifts_everywhere(n, degree):
    for seed in range(5):
        W = equi_static(n, degree=degree, seed=seed).matrix()
        first = W[0]
        for i in range(n):
            assert torch.equal(W[i], first.roll(i))
        assert first[0] == 1 / n
        shares = first[1:] * degree * n / (n - 1)
        torch.testing.assert_close(shares, shares.round(), rtol=0, atol=1e-12)
        assert round(float(shares.sum())) == degree
        assert math.gcd(n, *(a + 1 for a in shares.nonzero().flatten().tolist())) == 1


def test_an_equi_static_graph_is_directed_and_as_dense_as_an_exponential_one_unless_told():
    for n in (5, 16, 33, 100):
        W = topology("equi_static", n).matrix()
        expected = topology("equi_static", n, degree=len(hops(n)), seed=0).matrix()
        assert torch.equal(W, expected)
        assert not torch.equal(W, W.T)


@pytest.mark.parametrize("n", [3, 5, 7, 11, 13])
def test_one_random_shift_contracts_by_exactly_n_minus_2_over_n_on_average(n):
    # n is prime, so that every shift is connected and none is drawn again
    drawn = [equi_static(n, degree=1, seed=seed).matrix() for seed in range(20 * n)]
    each = {int(W[0, 1:].argmax()): W for W in drawn}
    assert len(each) == n - 1
    mean = torch.stack(list(each.values())).mean(0)
    square = torch.stack([W.T @ W for W in each.values()]).mean(0)
    torch.testing.assert_close(mean, J(n), rtol=0, atol=1e-15)
    expected = (n - 2) / n * (torch.eye(n) - J(n)) + J(n)
    torch.testing.assert_close(square, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("n", [5, 17, 64, 257])
@pytest.mark.parametrize("degree", [4, 8])
def test_equi_static_graphs_contract_by_1_over_their_degree_whatever_n(n, degree):
    # Drawing again leaves the bound (n-2)/(nM) / P(connected), below 1/M for these n: 64 nodes
    # have even shifts alone with probability (31/63)^M, the others are prime.
    seeds = 400
    x = torch.from_numpy(np.random.default_rng(n).standard_normal((n, 1)))
    rates = []
    for seed in range(seeds):
        W = equi_static(n, degree=degree, seed=seed).mixing(0)
        y = torch.zeros_like(x).index_add_(0, W.rows, W.weights[:, None] * x[W.indices])
        assert float(y.mean()) == pytest.approx(float(x.mean()), abs=n * UNIT)
        rates.append(squared_distance(y) / squared_distance(x))
    assert np.mean(rates) <= 1 / degree + hoeffding(seeds)


def greedy_matching(n, shift, start):
    """Song et al. 2022, the loop of OU-EquiDyn."""
    peer = {}
    for i in [(start + m) % n for m in range(n)]:
        j = (i + shift) % n
        if i not in peer and j not in peer:
            peer |= {i: j, j: i}
    return frozenset(peer.items())


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 9, 12, 17])
def test_matchings_of_equi_dyn_are_the_greedy_ones_and_contract_by_2_over_3(n):
    draws = [(a, s) for a in range(1, n) for s in range(n)]
    matrices = [_matching(n, a, s).dense() for a, s in draws]
    expected = sorted(sorted(greedy_matching(n, a, s)) for a, s in draws)
    assert sorted(sorted(support(W)) for W in matrices) == expected
    for W in matrices:
        assert all_equal(W[~torch.eye(n, dtype=torch.bool) & (W > 0)], (n - 1) / (2 * n))
        assert len(support(W)) >= 2 * n / 3
    square = torch.stack([W.T @ W for W in matrices]).mean(0)
    rate = float(torch.linalg.matrix_norm(square - J(n), ord=2))
    w = (n - 1) / (2 * n)
    assert rate <= 1 - 4 / 3 * w * (1 - w) * n / (n - 1) + n * UNIT
    assert rate <= 2 / 3


@pytest.mark.parametrize("n", [3, 16, 100])
def test_every_round_of_equi_dyn_has_one_peer_at_most_and_the_rate_is_that_of_any_n(n):
    t = topology("equi_dyn", n, period=500, seed=3)
    assert t.period == 500
    x = torch.from_numpy(np.random.default_rng(n).standard_normal((n, 1)))
    rates = []
    for W in rounds_of(t):
        assert torch.equal(W, W.T)
        assert int((W > 0).sum(1).max()) <= 2
        y = W @ x
        assert float(y.mean()) == pytest.approx(float(x.mean()), abs=n * UNIT)
        rates.append(squared_distance(y) / squared_distance(x))
    assert np.mean(rates) <= 2 / 3 + hoeffding(t.period)
    # by Markov, 1 - p > 0.72 in less than n (2/3 / 0.72)^500 of all cases, one in 10^14
    assert t.spectral_gap() > 0.28


@pytest.mark.parametrize("n", [2, 3, 8, 15, 40])
def test_the_gap_of_equi_dyn_is_that_of_the_expectation(n):
    """E[W^T W], exactly, against draws; and what one round leaves of any x by it."""
    t, rounds = topology("equi_dyn", n), 64 * 100
    drawn = torch.stack([t.matrix(r) for r in range(rounds)])
    mean = torch.einsum("tij,tik->jk", drawn, drawn) / rounds
    assert (mean - t.moment()).abs().max() < 6 * 0.5 / rounds**0.5
    norm = float(torch.linalg.matrix_norm(t.moment() - J(n), ord=2))
    assert t.spectral_gap() == pytest.approx(1 - norm)
    assert t.consensus() == (1, t.spectral_gap())
    w = (n - 1) / (2 * n)
    assert t.spectral_gap() >= 4 / 3 * w * (1 - w) * n / (n - 1) - 1e-9
    for W in drawn[:64]:
        assert torch.equal(W, W.T)
        assert int((W > 0).sum(1).max()) <= 2
        torch.testing.assert_close(W.sum(0), torch.ones(n).double())


def test_equi_dyn_on_two_nodes_halves_their_difference_in_every_round():
    for period in (1, 64, 500):
        assert topology("equi_dyn", 2, period=period).spectral_gap() == spectral(3 / 4, period)


@pytest.mark.parametrize("name", ["equi_dyn", "equi_static", "erdos_renyi"])
def test_a_random_graph_is_the_same_for_one_seed_and_another_for_another(name):
    build = TOPOLOGIES[name].component
    drawn = [torch.stack(rounds_of(build(20, seed=seed))) for seed in range(4)]
    for seed, W in enumerate(drawn):
        assert torch.equal(W, torch.stack(rounds_of(build(20, seed=seed))))
    assert len({tuple(W.flatten().tolist()) for W in drawn}) == len(drawn)


def test_a_longer_period_of_equi_dyn_begins_as_the_shorter_one():
    short, long = (topology("equi_dyn", 24, period=period) for period in (16, 64))
    assert topology("equi_dyn", 24).period is None
    for W, V in zip(rounds_of(short), rounds_of(long), strict=False):
        assert torch.equal(W, V)


@pytest.mark.parametrize("options", [{}, {"p": 0.3}, {"degree": 5.5}])
@pytest.mark.parametrize("n", [2, 10, 50])
def test_an_erdos_renyi_graph_is_connected_with_weights_by_degree(n, options):
    for seed in range(5):
        links = topology("erdos_renyi", n, seed=seed, **options).matrix().fill_diagonal_(0)
        assert nx.is_connected(nx.from_numpy_array(links.numpy()))
        degree = (links > 0).sum(1)
        expected = 1 / (1 + torch.maximum(degree[:, None], degree).double())
        assert torch.equal(links, torch.where(links > 0, expected, 0.0))


@pytest.mark.parametrize(
    ("options", "degree"), [({}, 2 * math.log(200)), ({"p": 0.1}, 19.9), ({"degree": 12}, 12)]
)
def test_nodes_of_an_erdos_renyi_graph_have_the_mean_degree_that_was_asked_for(options, degree):
    # 2 edges / n, with edges binomial: the mean over seeds strays by less than six deviations;
    # fewer than one draw in 100 is not connected and drawn again
    n, seeds = 200, 50
    drawn = [topology("erdos_renyi", n, seed=seed, **options).mixing(0) for seed in range(seeds)]
    mean = np.mean([(W.nnz - n) / n for W in drawn])
    assert abs(mean - degree) < 6 * math.sqrt(2 * degree / (n * seeds))


def test_an_erdos_renyi_graph_of_every_pair_is_complete():
    for options in ({"p": 1}, {"degree": 7}, {"degree": 1e9}):
        W = topology("erdos_renyi", 8, **options).matrix()
        assert torch.allclose(W, J(8), rtol=0, atol=8 * UNIT)


@pytest.mark.parametrize("n", [10, 30, 300])
@pytest.mark.parametrize("sparse", [{"p": 0.001}, {"degree": 0.5}])
def test_a_graph_that_is_never_connected_is_refused_with_advice_that_works(n, sparse):
    with pytest.raises(UserError, match=f"of 100 random graphs .* on {n} nodes was con") as error:
        topology("erdos_renyi", n, **sparse)
    (enough,) = re.search(r"take degree (\d+) or more", str(error.value)).groups()
    for seed in range(3):
        assert topology("erdos_renyi", n, degree=int(enough), seed=seed).n_nodes == n


def test_both_p_and_a_degree_are_refused():
    with pytest.raises(UserError, match="p or the mean degree, not both"):
        topology("erdos_renyi", 8, p=0.5, degree=3)


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
    assert f". Known: {', '.join(NAMES)}; " in str(error.value)


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
    ("name", "options"),
    [
        *(
            (name, {"degree": value})
            for name in [*FINITE_TIME, "equi_static", "random_regular"]
            for value in (0, -2, 2.5, "many")
        ),
        *(
            (name, {"seed": -1})
            for name in ["equi_dyn", "equi_static", "erdos_renyi", "random_regular"]
        ),
        *(("erdos_renyi", option) for option in ({"p": 0}, {"p": 1.5}, {"degree": 0})),
        ("equi_dyn", {"period": 0}),
    ],
)
def test_an_option_that_is_not_valid_is_refused_and_named(name, options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        topology(name, 8, **options)


def test_a_choice_may_be_a_table_as_in_a_suite():
    table = topology({"name": "random_regular", "degree": 4, "seed": 1}, 16)
    assert torch.equal(table.matrix(), topology("random_regular", 16, degree=4, seed=1).matrix())


def test_options_beside_a_table_are_not_dropped_in_silence():
    try:
        t = topology({"name": "random_regular"}, 16, degree=4)
    except ValueError:
        return
    assert torch.equal(t.matrix(), topology("random_regular", 16, degree=4).matrix())


def test_a_random_graph_that_is_never_connected_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("networkx.is_connected", lambda _: False)
    with pytest.raises(UserError, match="random graphs of degree 3 on 8 nodes was connected"):
        topology("random_regular", 8, degree=3, seed=12345)


# Graphs of a user's own


@pytest.fixture
def register():
    """Registers a component for the test alone: register(TOPOLOGIES, "mine", function)."""
    kinds = (TOPOLOGIES, ALGORITHMS)
    before = [(kind, kind.entries()) for kind in kinds if kind.names()]

    def add(kind, name, component):
        kind.register(name)(component)

    yield add
    for kind, entries in before:
        kind.restore(entries)
    _build.cache_clear()
    theory._consensus.cache_clear()


def spread(n):
    """The torus of one fifth each on a square number of nodes, where neighbours may coincide."""
    s = math.isqrt(n)
    W = torch.eye(n, dtype=torch.float64)
    for i, j in np.ndindex(s, s):
        for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            W[i * s + j, (i + a) % s * s + (j + b) % s] = 1
    return W / 5


def dense(*matrices):
    return Topology([Mixing.from_dense(W) for W in matrices])


def eye(n):
    return torch.eye(n, dtype=torch.float64)


BROKEN = {
    # what a function of n gives: what is said of it on 4 nodes
    "rows of 3/5": (lambda n: dense(spread(n)), ": row 0 of W sums to 0.6, expected 1"),
    "twice the identity": (lambda n: dense(2 * eye(n)), ": row 0 of W sums to 2, expected 1"),
    "a row of nothing": (
        lambda n: dense(eye(n) * (torch.arange(n) != 2)),
        ": row 2 of W sums to 0, expected 1",
    ),
    "columns that do not sum to 1": (
        lambda n: dense(eye(n), eye(n)[[0, 0, 2, 3]]),
        ", round 1: column 0 of W sums to 2, expected 1",
    ),
    "negative weights": (
        lambda n: dense(2 * eye(n) - eye(n).roll(1, 0)),
        ": W[0, 3] = -1, expected a weight of 0 or more",
    ),
    "a little too much": (
        lambda n: dense((1 + 2 * TOLERANCE) * eye(n)),
        ": row 0 of W sums to 1.000002, expected 1",
    ),
    "another size": (lambda n: dense(eye(n + 1)), ": W is 5 x 5, expected 4 x 4: one row a node"),
    "another built-in": (lambda n: topology("ring", n - 1), ": W is 3 x 3, expected 4 x 4"),
    "matrices of two sizes": (
        lambda n: dense(eye(n), eye(n), eye(2)),
        ", round 2: W is 2 x 2, expected 4 x 4",
    ),
    "nothing": (lambda _: None, " gives None, expected a Topology"),
    "a tensor": (eye, " gives a Tensor, expected a Topology"),
    "a list": (lambda n: [Mixing.identity(n)], " gives a list, expected a Topology"),
    "no matrix": (lambda _: Topology([]), " has no mixing matrix: give Topology one for each"),
    "a dense matrix": (lambda n: Topology([eye(n)]), ": W is a Tensor, expected a Mixing: make"),
    "one matrix, not a list": (
        lambda n: Topology(Mixing.identity(n)),
        " has a Mixing, expected a list of Mixings",
    ),
    "a generator": (
        lambda _: Topology(iter([])),
        " has a list_iterator, expected a list of Mixings: [W]",
    ),
    "a matrix elsewhere": (
        lambda n: Topology([Mixing.identity(n).to("meta")]),
        ": W lies on meta, expected the CPU",
    ),
}


@pytest.mark.parametrize(("build", "words"), BROKEN.values(), ids=BROKEN)
def test_a_graph_that_is_not_doubly_stochastic_on_its_nodes_is_refused_everywhere(
    register, build, words
):
    register(TOPOLOGIES, "mine", lambda n_nodes: build(n_nodes))
    expected = re.escape(f"topology 'mine' on 4 nodes{words}")
    settings = {"nodes": 4, "lr": 0.1, "rounds": 2, "problem": "quadratic"}
    with pytest.raises(ComponentError, match=expected):
        topology("mine", 4)
    with pytest.raises(ComponentError, match=expected):
        theory.spectral_gaps("mine", [4])  # and not left out, as a graph that is not there
    with pytest.raises(ValidationError, match=expected):
        RunSpec(algorithm="dsgd", topology="mine", **settings)
    with pytest.raises(ValidationError, match=expected):
        RunSpec(algorithm="teleportation", active=4, topology="mine", **settings | {"nodes": 9})


def test_weights_that_are_no_numbers_are_refused_where_the_matrix_is_made(register):
    register(
        TOPOLOGIES, "mine", lambda n: Topology([Mixing.from_dense(torch.full((n, n), math.nan))])
    )
    with pytest.raises(UserError, match="topology 'mine': mixing weights must be finite, got NaN"):
        topology("mine", 4)


@pytest.mark.parametrize(("build", "words"), BROKEN.values(), ids=BROKEN)
def test_a_graph_that_an_algorithm_makes_itself_is_refused_likewise(register, build, words):
    class Mine(Algorithm):
        label = "mine"

        def graphs(self, choice, n_tokens, seed):
            return build(n_tokens)

        def step(self, state, r):
            return state

    register(ALGORITHMS, "mine", Mine)
    make = lambda: RunSpec(algorithm="mine", nodes=4, lr=0.1, rounds=2, problem="quadratic")  # noqa: E731
    if "column" in words:
        assert make()  # columns may sum to 1 in expectation only
    else:
        with pytest.raises(
            ValidationError, match=re.escape(f"'mine': its graph on 4 nodes{words}")
        ):
            make()


@given(n=st.integers(1, 40), seed=st.integers(0, 2**31), period=st.integers(1, 4))
def test_mixtures_of_permutations_pass_in_float32_too_and_are_checked_once(n, seed, period):
    rng = torch.Generator().manual_seed(seed)
    shares = torch.rand(period, 3, generator=rng)
    shares /= shares.sum(1, keepdim=True)
    mixtures = [
        sum(s * torch.eye(n)[torch.randperm(n, generator=rng)] for s in share) for share in shares
    ]
    t = dense(*mixtures)
    assert checked(t, "t", n) is t
    t.mixings[0].weights.zero_()  # none looks again
    assert checked(t, "t", n) is t


def test_a_function_that_raises_is_named_with_its_line_and_one_that_refuses_is_left_out(register):
    def odd(n_nodes: int) -> Topology:
        if n_nodes % 2 == 0:
            raise ValueError("no graph on an even number of nodes")
        return dense(J(n_nodes))

    register(TOPOLOGIES, "raises", lambda n_nodes: 1 // (n_nodes - n_nodes))
    register(TOPOLOGIES, "odd", odd)
    words = r"topology 'raises': test_topologies\.py, line \d+: ZeroDivisionError"
    with pytest.raises(ComponentError, match=words):
        theory.spectral_gaps("raises", [4])
    with pytest.raises(UserError, match="topology 'odd': no graph on an even number of nodes"):
        topology("odd", 4)
    assert theory.spectral_gaps("odd", [3, 4, 5]) == {3: 1.0, 5: 1.0}

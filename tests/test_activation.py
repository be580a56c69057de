"""Who is active: distinct nodes, every choice equally likely, every round on its own.

The seeds are fixed, so the tests are deterministic; a correct sampler fails a chi-square test below
for at most `ERROR` of all seeds.
"""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from teleport_bench.activation import BLOCK, draw_holders, sample_distinct

ERROR = 1e-6
BOTH_BRANCHES = [(17, 1), (16, 1), (33, 2), (32, 2), (6, 3)]  # n > 16 k, and n <= 16 k


def fits(counts, expected):
    """Whether counts follow a multinomial distribution with these expectations."""
    counts = np.asarray(counts, dtype=float)
    assert expected > 5, "too few draws for the chi-square distribution"
    return ((counts - expected) ** 2 / expected).sum() < stats.chi2.isf(ERROR, counts.size - 1)


def blocks(seed, n, k, numbers):
    return np.stack([draw_holders("uniform", seed, n, k, b) for b in numbers])


@settings(deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_a_round_draws_distinct_nodes_of_all_nodes(data, k, seed):
    n = data.draw(st.sampled_from([k, k + 1, 16 * k, 16 * k + 1, 1000 * k]))
    drawn = sample_distinct(np.random.default_rng(seed), n, k, 20)
    assert drawn.shape == (20, k)
    assert drawn.dtype == np.int64
    assert drawn.min() >= 0
    assert drawn.max() < n
    assert all(len(set(row)) == k for row in drawn.tolist())


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_all_of_the_nodes_are_a_permutation(n):
    drawn = sample_distinct(np.random.default_rng(0), n, n, 10)
    assert np.array_equal(np.sort(drawn, 1), np.tile(np.arange(n), (10, 1)))


def test_drawing_from_a_million_million_nodes_costs_no_more_than_the_draws():
    drawn = sample_distinct(np.random.default_rng(0), 10**12, 5, 20)
    assert drawn.max() > 10**11


@pytest.mark.parametrize(("n", "k"), BOTH_BRANCHES)
def test_every_ordered_choice_is_equally_likely(n, k):
    choices = math.perm(n, k)
    rounds = 30 * choices
    drawn = sample_distinct(np.random.default_rng(1), n, k, rounds)
    code = drawn @ n ** np.arange(k)
    every = np.array(list(itertools.permutations(range(n), k))) @ n ** np.arange(k)
    counts = np.bincount(code, minlength=n**k)[every]
    assert counts.sum() == rounds
    assert fits(counts, rounds / choices)


@pytest.mark.parametrize(("n", "k"), [(10, 3), (64, 4), (65, 4), (200, 12), (193, 12)])
def test_each_node_is_active_k_over_n_of_the_time(n, k):
    rounds = BLOCK * 60
    drawn = blocks(2, n, k, range(60))
    counts = np.bincount(drawn.ravel(), minlength=n)
    # the indicators of one round have covariance p (1 - p) n / (n - 1) (I - J), of rank n - 1
    p = k / n
    statistic = ((counts - rounds * p) ** 2).sum() / (rounds * p * (1 - p) * n / (n - 1))
    assert statistic < stats.chi2.isf(ERROR, n - 1)


@pytest.mark.parametrize(("n", "k"), [(10, 3), (64, 4), (65, 4)])
def test_each_token_visits_every_node_equally_often(n, k):
    drawn = blocks(3, n, k, range(60)).reshape(-1, k)
    for token in drawn.T:
        assert fits(np.bincount(token, minlength=n), len(token) / n)


@pytest.mark.parametrize(("n", "k"), [(3, 2), (17, 1)])
def test_consecutive_rounds_are_independent_within_and_across_blocks(n, k):
    drawn = blocks(4, n, k, range(2000)) @ n ** np.arange(k)  # one number for each ordered choice
    choices = math.perm(n, k)
    code = np.unique(drawn, return_inverse=True)[1].reshape(drawn.shape)
    assert code.max() == choices - 1

    def pairs(before, after):
        return np.bincount(before.ravel() * choices + after.ravel(), minlength=choices**2)

    within = pairs(code[:, 0::2], code[:, 1::2])
    assert fits(within, within.sum() / choices**2)
    across = pairs(code[:-1, -1], code[1:, 0])
    assert fits(across, across.sum() / choices**2)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10**6),
    st.integers(1, 8),
    st.sampled_from([1, 5, 40]),
    st.permutations(range(6)),
)
def test_a_block_is_the_same_drawn_alone_in_sequence_or_in_any_order(seed, k, more, order):
    n = k * more
    sequence = blocks(seed, n, k, range(6))
    for b in order:
        assert np.array_equal(draw_holders("uniform", seed, n, k, b), sequence[b])


def test_the_draw_depends_on_seed_nodes_active_nodes_and_block():
    draws = [
        draw_holders("uniform", seed, n, k, block)[:, 0].tolist()
        for seed, n, k, block in itertools.product((0, 1), (100, 101), (4, 5), (0, 1))
    ]
    assert len({tuple(d) for d in draws}) == len(draws)


@pytest.mark.parametrize("n", [1, 7, 40])
def test_all_active_is_the_identity_in_every_round_of_every_block(n):
    for block in (0, 3):
        holders = draw_holders("all", 5, n, n, block)
        assert holders.dtype == np.int64
        assert np.array_equal(holders, np.tile(np.arange(n), (BLOCK, 1)))


def test_fixed_holders_are_the_first_k_nodes():
    assert np.array_equal(draw_holders("all", 5, 9, 4, 0), np.tile(np.arange(4), (BLOCK, 1)))


@pytest.mark.parametrize("k", [1, 3])
def test_a_block_has_a_row_for_each_of_its_rounds(k):
    assert draw_holders("uniform", 0, 9, k, 0).shape == (BLOCK, k)


@settings(deadline=None)
@given(st.integers(2, 70), st.integers(0, 2**32 - 1))
def test_parts_of_a_draw_share_a_network(n, seed):
    """All powers of two below the largest fit into n nodes together: 1 + 2 + .. < n."""
    largest = 2 ** (n.bit_length() - 1)
    parts = [2**j for j in range(largest.bit_length() - 1)]
    among = sum(parts)
    assert among < n
    drawn = [draw_holders("uniform", seed, n, k, 3, share=(k - 1, among)) for k in parts]
    assert [d.shape[1] for d in drawn] == parts
    assert np.array_equal(np.concatenate(drawn, 1), draw_holders("uniform", seed, n, among, 3))

"""Partitions: disjoint equal shards, the same from the same seed, as uneven as alpha says.

Statistical tests draw from fixed seeds; the probability that a right implementation fails them for
seeds drawn at random is below 1e-9 each, by the bound that stands beside the tolerance.
"""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from teleport_bench.data import load
from teleport_bench.data.partition import _deal_classes, check_split, deal, label_histogram
from teleport_bench.errors import UserError
from teleport_bench.registry import PARTITIONS

ERROR = 1e-9

alphas = st.floats(-3, 6).map(lambda e: 10.0**e)
DIRICHLET = ["dirichlet", "dirichlet_groups"]
choices = st.one_of(
    st.just({"name": "iid"}),
    st.builds(lambda name, a: {"name": name, "alpha": a}, st.sampled_from(DIRICHLET), alphas),
)
label_lists = st.lists(st.integers(0, 9), min_size=1, max_size=150).map(np.array)
seeds = st.integers(0, 2**63)


def dirichlet(alpha, name="dirichlet"):
    return PARTITIONS.resolve({"name": name, "alpha": alpha})


def groups(alpha):
    return dirichlet(alpha, "dirichlet_groups")


def histogram(choice, labels, n_nodes, seed, n_classes=10):
    return label_histogram(labels, deal(choice, labels, n_nodes, seed), n_classes)


def assert_valid(shards, n_samples, n_nodes):
    assert shards.shape == (n_nodes, n_samples // n_nodes)
    assert shards.dtype == np.int64
    assert shards.min() >= 0
    assert shards.max() < n_samples
    assert len(np.unique(shards)) == shards.size


@settings(deadline=None)
@given(labels=label_lists, choice=choices, seed=seeds, data=st.data())
def test_shards_are_equal_disjoint_and_use_each_sample_at_most_once(labels, choice, seed, data):
    n_nodes = data.draw(st.integers(1, len(labels)))
    shards = deal(choice, labels, n_nodes, seed)
    assert_valid(shards, len(labels), n_nodes)
    assert (deal(choice, labels, n_nodes, seed) == shards).all()


@pytest.mark.parametrize(
    "choice", [{"name": "iid"}, *(dirichlet(a, name) for a in (1e-3, 1e6) for name in DIRICHLET)]
)
@pytest.mark.parametrize("n_nodes", [1, 2, 7, 250, 1749, 1750, 1751, 3499, 3500])
def test_mnist5k_is_dealt_out_to_any_number_of_nodes(choice, n_nodes):
    labels = load({"name": "mnist5k"}).train.labels
    assert_valid(deal(choice, labels, n_nodes, 0), 3500, n_nodes)


@settings(deadline=None)
@given(labels=label_lists, choice=choices, seed=seeds)
def test_as_many_nodes_as_samples_get_one_sample_each(labels, choice, seed):
    shards = deal(choice, labels, len(labels), seed)
    assert sorted(shards.ravel().tolist()) == list(range(len(labels)))


@settings(deadline=None)
@given(labels=label_lists, choice=choices, seed=seeds, more=st.integers(1, 100))
def test_more_nodes_than_samples_is_an_error_that_names_both_numbers(labels, choice, seed, more):
    n_nodes = len(labels) + more
    with pytest.raises(UserError, match=rf"\b{len(labels)}\b.*\b{n_nodes}\b"):
        deal(choice, labels, n_nodes, seed)
    with pytest.raises(UserError, match=rf"\b{len(labels)}\b.*\b{n_nodes}\b"):
        check_split(choice, len(labels), n_nodes)


@pytest.mark.parametrize("choice", [{"name": "iid"}, dirichlet(0.1), dirichlet(1e6), groups(0.1)])
def test_the_seed_and_the_number_of_nodes_each_change_the_partition(choice):
    labels = load({"name": "digits"}).train.labels
    shards = deal(choice, labels, 10, seed=0)
    # two independent partitions agree with probability below 1/100!
    assert (deal(choice, labels, 10, seed=1) != shards).any()
    assert (deal(choice, labels, 9, seed=0)[0, :100] != shards[0, :100]).any()


def test_the_partition_does_not_depend_on_global_random_state():
    labels = load({"name": "digits"}).train.labels
    before = deal(dirichlet(0.1), labels, 10, 0)
    np.random.seed(0)  # noqa: NPY002 - the global state is what is tested
    assert (deal(dirichlet(0.1), labels, 10, 0) == before).all()


@pytest.mark.parametrize("name", DIRICHLET)
@pytest.mark.parametrize("alpha", [0, -1, -1e-9, math.nan, math.inf, -math.inf, None, "small"])
def test_an_alpha_that_is_not_a_positive_number_is_refused_by_the_options(alpha, name):
    with pytest.raises(ValidationError, match="alpha"):
        dirichlet(alpha, name)


@pytest.mark.parametrize("name", DIRICHLET)
def test_dirichlet_has_no_default_alpha(name):
    with pytest.raises(ValidationError, match=r"alpha\s+Field required"):
        PARTITIONS.resolve(name)


def test_iid_takes_no_alpha():
    with pytest.raises(ValidationError, match="unknown key 'alpha'"):
        PARTITIONS.resolve({"name": "iid", "alpha": 1.0})


@pytest.mark.parametrize("name", DIRICHLET)
@pytest.mark.parametrize("alpha", [5e-324, 1e-310, 1e-300, 1e-100, 1e18, 1e100, 1e300, 1.7e308])
def test_an_extreme_alpha_is_refused_by_the_options_or_deals_out_valid_shards(alpha, name):
    try:
        choice = dirichlet(alpha, name)
    except ValidationError:
        return
    assert_valid(deal(choice, np.repeat(np.arange(10), 20), 30, 0), 200, 30)


@settings(deadline=None)
@given(
    labels=label_lists, choice=choices, seed=seeds, n_classes=st.integers(10, 12), data=st.data()
)
def test_the_label_histogram_is_a_count_and_sums_to_the_shard_size(
    labels, choice, seed, n_classes, data
):
    n_nodes = data.draw(st.integers(1, len(labels)))
    shards = deal(choice, labels, n_nodes, seed)
    found = label_histogram(labels, shards, n_classes)
    naive = [[Counter(labels[s].tolist())[c] for c in range(n_classes)] for s in shards]
    assert found.tolist() == naive
    assert (found.sum(1) == len(labels) // n_nodes).all()


@pytest.mark.parametrize("choice", [{"name": "iid"}, dirichlet(1e12)])
def test_for_large_alpha_every_node_sees_the_labels_of_the_whole(choice):
    labels = np.repeat(np.arange(10), 20_000)
    found = histogram(choice, labels, n_nodes=2, seed=0)
    # A node's count of a class is Binomial(m, 1/10), or hypergeometric and less spread (iid;
    # Hoeffding 1963), and the other node has the rest. Bernstein, a union over the 10 classes:
    # P(|count - mean| >= t) <= 2 exp(-t^2 / (2 mean + 2t/3)). For alpha = 1e12 each share is 1/10
    # to within 2e-5 of itself but for a probability of exp(-100): the mean moves by less than 1.
    mean, log = 10_000, math.log(2 * 10 / ERROR)
    t = math.sqrt(2 * mean * log) + 2 * log / 3
    assert t < 0.08 * mean
    assert np.abs(found - mean).max() <= t + 1


@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0, 10.0])
def test_class_shares_have_the_moments_of_a_symmetric_dirichlet(alpha):
    """E q_c = 1/C and E sum_c q_c^2 = (alpha + 1) / (C alpha + 1), seen through m draws a node."""
    n_nodes, shard_size, n_classes = 10_000, 20, 10
    # pools that cannot run out, so that the nodes are independent
    labels = np.repeat(np.arange(n_classes), n_nodes * shard_size)
    rng = np.random.default_rng(0)
    shards = PARTITIONS.build(dirichlet(alpha), labels, n_nodes, shard_size, rng)
    share = label_histogram(labels, shards, n_classes) / shard_size
    second = (alpha + 1) / (n_classes * alpha + 1)
    # Hoeffding for means of independent numbers in [0, 1], a union over 11 statistics
    t = math.sqrt(math.log(2 * 11 / ERROR) / (2 * n_nodes))
    assert t < 0.04
    assert np.abs(share.mean(0) - 1 / n_classes).max() <= t
    expected = 1 / shard_size + (1 - 1 / shard_size) * second
    assert abs((share**2).sum(1).mean() - expected) <= t


@settings(deadline=None)
@given(
    n_classes=st.integers(1, 8),
    nodes_a_class=st.integers(1, 8),
    shard_size=st.integers(1, 12),
    seed=seeds,
)
def test_as_alpha_vanishes_every_node_holds_one_class_where_shards_fit_the_classes(
    n_classes, nodes_a_class, shard_size, seed
):
    labels = np.repeat(np.arange(n_classes), nodes_a_class * shard_size)
    found = histogram(dirichlet(1e-300), labels, n_classes * nodes_a_class, seed, n_classes)
    assert (found.max(1) == shard_size).all()


@pytest.mark.parametrize(("alpha", "n_nodes"), [(0.001, 10), (0.001, 50), (0.01, 100)])
def test_a_small_alpha_gives_nearly_one_class_a_node(alpha, n_nodes):
    labels = load({"name": "mnist5k"}).train.labels
    shares = []
    for seed in range(50):
        found = histogram(dirichlet(alpha), labels, n_nodes, seed)
        shares.append((found.max(1) / found.sum(1)).mean())
    # Were no class ever used up, the mean would be at least E sum q^2, 0.991 and 0.918. Over 300
    # seeds it is 0.989, 0.985 and 0.933; the limit is 15 standard errors of 50 seeds away or more.
    assert np.mean(shares) > 0.9


@pytest.mark.parametrize("name", DIRICHLET)
@pytest.mark.parametrize("n_nodes", [8, 25, 100])
def test_heterogeneity_falls_with_alpha(name, n_nodes):
    labels = load({"name": "mnist5k"}).train.labels

    def largest_share(alpha):
        found = [histogram(dirichlet(alpha, name), labels, n_nodes, seed) for seed in range(20)]
        return np.mean([(h.max(1) / h.sum(1)).mean() for h in found])

    shares = [largest_share(alpha) for alpha in (0.001, 0.1, 1.0, 10.0, 1e6)]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("choice", [{"name": "iid"}, dirichlet(0.05), dirichlet(1.0), groups(1.0)])
@pytest.mark.parametrize("extra", [0, 1])
def test_every_sample_is_as_likely_at_one_node_as_at_any_other(choice, extra):
    n_nodes, labels, trials = 4, np.repeat(np.arange(2), 10 + extra), 1000
    counts = np.zeros((n_nodes, len(labels)))
    for seed in range(trials):
        shards = deal(choice, labels, n_nodes, seed)
        np.put_along_axis(counts, shards, np.take_along_axis(counts, shards, 1) + 1, 1)
    # Hoeffding, a union over all nodes and samples
    t = math.sqrt(trials * math.log(2 * counts.size / ERROR) / 2)
    assert np.abs(counts - trials * (len(labels) // n_nodes) / len(labels)).max() <= t


def test_no_node_is_always_left_with_the_remainder():
    # Seven shards of 50 from classes of 35: who chooses early has few classes, who chooses late
    # gets what is left of many. The order is random, so first and last node win equally often.
    labels = np.repeat(np.arange(10), 35)
    wins = losses = 0
    for seed in range(400):
        purity = (histogram(dirichlet(0.01), labels, 7, seed) ** 2).sum(1)
        wins += int(purity[0] > purity[-1])
        losses += int(purity[0] < purity[-1])
    # a sum of fair signs: Hoeffding
    decided = wins + losses
    assert decided > 300
    assert abs(wins - losses) <= math.sqrt(2 * decided * math.log(2 / ERROR))


@pytest.mark.parametrize("n_nodes", [1, 9, 10, 11, 20, 45])
@pytest.mark.parametrize("alpha", [1e-3, 0.1, 10.0])
def test_every_group_of_ten_nodes_holds_a_random_part_whatever_alpha_is(n_nodes, alpha):
    labels = np.repeat(np.arange(10), 900)
    found = histogram(groups(alpha), labels, n_nodes, seed=0)
    for first in range(0, n_nodes, 10):
        part = found[first : first + 10].sum(0)
        # each class's count is hypergeometric: Hoeffding (1963), a union over 5 groups, 10 classes
        t = math.sqrt(part.sum() * math.log(2 * 50 / ERROR) / 2)
        assert np.abs(part - part.sum() / 10).max() <= t


def test_within_a_group_large_alpha_deals_every_class_out_evenly():
    labels = np.repeat(np.arange(10), 1000)
    found = histogram(groups(1e15), labels, 10, seed=0)
    assert (np.abs(found - 100) <= 1).all()  # the group is all of the data: only rounding is left


@pytest.mark.parametrize("n_classes", [1, 2, 3, 30])
def test_a_group_is_dealt_out_where_no_draw_fills_every_node(n_classes):
    # At this alpha every class goes to one node: with fewer classes than nodes some stay empty
    # however often one draws, and the cut into equal shards fills them.
    labels = np.repeat(np.arange(n_classes), 300)
    found = histogram(groups(1e-300), labels, 10, 0, n_classes)
    assert (found.sum(1) == 30 * n_classes).all()
    # a row of runs of one class each, cut at nine places: at most nine runs are in two shards
    assert np.count_nonzero(found) <= n_classes + 9


@pytest.mark.parametrize("n_nodes", [2, 10])
def test_a_class_is_dealt_out_by_dirichlet_shares_over_the_nodes(n_nodes):
    """E q = 1/n and Var q = (1/n)(1 - 1/n) / (n alpha + 1), with 400 classes seen as 400 draws."""
    alpha, draws, m = 5.0, 400, 10_000
    rng = np.random.default_rng(0)
    # no node is ever full
    dealt = _deal_classes(np.full((1, draws), m), n_nodes, draws * m, alpha, rng)[0]
    assert (dealt.sum(1) == m).all()
    share = dealt / m
    deviation = share - 1 / n_nodes
    variance = (1 / n_nodes) * (1 - 1 / n_nodes) / (n_nodes * alpha + 1)
    five = 5 / (draws * n_nodes) ** 0.5  # standard deviations of a mean
    assert abs((deviation[:, 0]).mean()) <= 5 * (variance / draws) ** 0.5
    assert (deviation**2).mean() == pytest.approx(variance, abs=five * (deviation**2).std() * 2)


def test_overlapping_shards_serve_more_nodes_than_there_are_samples() -> None:
    labels = np.repeat(np.arange(5), [30, 10, 0, 20, 40])
    choice = PARTITIONS.resolve({"name": "overlapping", "samples": 8})
    shards = deal(choice, labels, 1000, 0)
    assert shards.shape == (1000, 8)
    assert shards.dtype == np.int32
    assert set(shards.ravel()) == set(range(100))
    shares = label_histogram(labels, shards, 5).sum(0) / 8000
    # five standard deviations of a share of 8,000 draws
    np.testing.assert_allclose(shares, [0.3, 0.1, 0.0, 0.2, 0.4], atol=5 * (0.25 / 8000) ** 0.5)


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 10.0])
def test_overlapping_shards_follow_their_own_class_shares(alpha: float) -> None:
    labels = np.repeat(np.arange(4), 50)
    choice = PARTITIONS.resolve({"name": "overlapping", "samples": 400, "alpha": alpha})
    shards = deal(choice, labels, 500, 1)
    share = label_histogram(labels, shards, 4) / 400
    # Dirichlet(alpha, ..): mean 1/4, and a second moment that the draws of labels add to
    second = (alpha + 1) / (4 * (4 * alpha + 1))
    expected = second + (0.25 - second) / 400
    spread = (share**2).mean(1).std() / 500**0.5
    assert (share**2).mean() == pytest.approx(expected, abs=5 * spread + 1e-9)
    assert (deal(choice, labels, 500, 1) == shards).all()


def test_too_many_nodes_are_pointed_to_overlapping_shards() -> None:
    with pytest.raises(UserError, match="overlapping"):
        check_split({"name": "iid"}, 10, 11)
    assert check_split({"name": "overlapping", "samples": 4}, 10, 11) == 4


@pytest.mark.parametrize("samples", [10**9, 10**30])
def test_more_samples_than_can_be_kept_are_refused_at_once(samples):
    with pytest.raises(
        UserError, match=rf"{samples:,} samples for each of 13 nodes, expected at most"
    ):
        check_split(PARTITIONS.resolve({"name": "overlapping", "samples": samples}), 200, 13)


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e300, 1.7e308])
@pytest.mark.parametrize("name", [*DIRICHLET, "overlapping"])
def test_any_positive_alpha_deals_out_samples_that_are_there(name, alpha):
    labels = np.r_[np.arange(80) % 4, np.full(20, 6)]
    shards = deal(PARTITIONS.resolve({"name": name, "alpha": alpha}), labels, 13, 0)
    assert 0 <= shards.min() <= shards.max() < 100
    assert name == "overlapping" or len(np.unique(shards)) == shards.size

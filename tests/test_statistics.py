"""Paired comparisons and censored values: intervals that cover, bounds that stay bounds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from teleport_bench.report.statistics import (
    Comparison,
    Result,
    compare,
    compare_choices,
    summarise,
)

POSITIVE = st.floats(0.01, 1e4)
PAIRS = st.lists(st.tuples(POSITIVE, POSITIVE), min_size=2, max_size=12)


def exact(values):
    return [Result(v) for v in values]


def sides(pairs):
    a, b = zip(*pairs, strict=True)
    return exact(a), exact(b)


def clear(pairs, scale=float):
    """Whether the differences vary by more than rounding does."""
    d = [scale(y) - scale(x) for x, y in pairs]
    return np.std(d) > 1e-6 * max(abs(v) for pair in pairs for v in map(scale, pair))


# Intervals


@given(PAIRS.filter(clear))
def test_the_interval_of_a_difference_is_that_of_the_paired_t_test(pairs):
    found = compare(*sides(pairs), "lower")
    a, b = np.array(pairs).T
    expected = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert found.effect == pytest.approx(np.mean(b - a), rel=1e-9, abs=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(expected), rel=1e-6, abs=1e-6)


@given(PAIRS.filter(lambda pairs: clear(pairs, math.log)))
def test_the_interval_of_a_ratio_is_that_of_the_logarithms(pairs):
    found = compare(*sides(pairs), "lower", log=True)
    a, b = np.log(np.array(pairs)).T
    expected = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert math.log(found.effect) == pytest.approx(np.mean(b - a), rel=1e-9, abs=1e-9)
    if abs(expected.high) < 700 and abs(expected.low) < 700:
        ends = (math.log(found.low), math.log(found.high))
        assert ends == pytest.approx(tuple(expected), rel=1e-6, abs=1e-6)


def covers(draws, truth, log, n):
    """Share of n-seed comparisons whose interval has the truth: draws() -> a, b by row."""
    a, b = draws()
    found = [
        compare(exact(x), exact(y), "lower", log)
        for x, y in zip(a.reshape(-1, n), b.reshape(-1, n), strict=True)
    ]
    return np.mean([c.low <= truth <= c.high for c in found])


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("log", [False, True])
def test_95_percent_of_the_intervals_cover_the_truth(n, log):
    repeats = 3000
    rng = np.random.default_rng(n)

    def draws():
        seeds = 5 * rng.normal(size=repeats * n)  # what a seed does to both methods
        a = seeds + rng.normal(size=repeats * n)
        b = seeds + 1.0 + rng.normal(size=repeats * n)
        return (np.exp(a), np.exp(b)) if log else (a, b)

    share = covers(draws, math.e if log else 1.0, log, n)
    # four standard deviations of a binomial share: wrong in 1 of 16,000 draws of the seed
    assert share == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / repeats))


def test_the_lower_end_under_censoring_is_below_the_truth_as_often_as_it_says():
    """Cut off at a bound, the interval's lower end holds for the effect as it would have been."""
    rng = np.random.default_rng(0)
    repeats, n, truth = 3000, 5, 1.0
    below = []
    for _ in range(repeats):
        a, b = rng.normal(size=n), truth + rng.normal(size=n)
        limit = 1.5
        than = [Result(math.exp(min(y, limit)), bool(y > limit)) for y in b]
        found = compare(exact(np.exp(a)), than, "lower", log=True)
        below.append(found.low <= math.exp(truth))
    assert np.mean(below) >= 0.975 - 4 * math.sqrt(0.975 * 0.025 / repeats)


@given(PAIRS, st.sampled_from(["lower", "higher"]), st.booleans())
def test_exchanging_the_methods_exchanges_everything(pairs, better, log):
    a, b = sides(pairs)
    one, other = compare(a, b, better, log), compare(b, a, better, log)
    assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)
    assert one.p == other.p
    turn = (lambda v: 1 / v if v else math.inf) if log else (lambda v: -v)
    assert one.effect == pytest.approx(turn(other.effect), rel=1e-6)
    assert one.low == pytest.approx(turn(other.high), rel=1e-6, abs=1e-300)


@given(PAIRS, st.sampled_from(["lower", "higher"]))
def test_which_way_is_better_only_turns_the_sign(pairs, better):
    a, b = sides(pairs)
    minus = [[Result(-r.value) for r in side] for side in (a, b)]
    other = "higher" if better == "lower" else "lower"
    assert compare(a, b, better) == compare(*minus, other)


@given(PAIRS, st.lists(st.integers(-1000, 1000), min_size=12, max_size=12))
def test_what_a_seed_adds_to_both_methods_does_not_count(pairs, shifts):
    a, b = sides(pairs)
    moved = [[Result(r.value + s) for r, s in zip(side, shifts, strict=False)] for side in (a, b)]
    found, other = compare(a, b, "lower"), compare(*moved, "lower")
    assert found.effect == pytest.approx(other.effect, rel=1e-6, abs=1e-6)
    assert found.low == pytest.approx(other.low, rel=1e-6, abs=1e-6)


@given(PAIRS, st.floats(1e-3, 1e3))
def test_a_ratio_has_no_unit(pairs, unit):
    a, b = sides(pairs)
    other = [[Result(r.value * unit) for r in side] for side in (a, b)]
    found = compare(*other, "lower", log=True)
    assert found.effect == pytest.approx(compare(a, b, "lower", log=True).effect, rel=1e-6)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_the_sign_test_is_the_exact_binomial_one_without_ties(pairs):
    found = compare(*sides(pairs), "higher")
    wins, losses = (sum(sign * (x - y) > 0 for x, y in pairs) for sign in (1, -1))
    assert (found.wins, found.losses, found.n) == (wins, losses, len(pairs))
    assert found.ties == len(pairs) - wins - losses
    if wins + losses:
        assert found.p == pytest.approx(stats.binomtest(wins, wins + losses).pvalue)
    else:
        assert found.p == 1


# Censored pairs

OVER = Result(300.0, censored=True)
WORST = Result(math.inf, censored=True)


def test_a_pair_of_which_only_the_other_is_censored_is_a_win_and_a_lower_bound():
    found = compare(exact([100, 150]), [OVER, OVER], "lower", log=True)
    assert (found.wins, found.ties, found.losses) == (2, 0, 0)
    assert found.effect == pytest.approx(math.sqrt(3 * 2))
    assert found.high == math.inf
    assert 0 < found.low < found.effect


def test_a_pair_of_which_only_the_first_is_censored_is_a_loss_and_an_upper_bound():
    found = compare([OVER, OVER], exact([100, 150]), "lower", log=True)
    assert (found.wins, found.ties, found.losses) == (0, 0, 2)
    assert found.effect == pytest.approx(1 / math.sqrt(3 * 2))
    assert found.low == 0
    assert found.effect < found.high < math.inf


@given(PAIRS, st.floats(0.1, 100))
def test_a_bound_of_the_effect_is_never_above_the_effect(pairs, limit):
    a, b = sides(pairs)
    cut = [Result(min(r.value, limit), r.value > limit) for r in b]
    assert compare(a, cut, "lower", log=True).effect <= compare(a, b, "lower", log=True).effect * (
        1 + 1e-9
    )


def test_seeds_censored_on_both_sides_give_no_interval_and_no_sign():
    found = compare([OVER, Result(100)], [OVER, OVER], "lower", log=True)
    assert (found.wins, found.ties, found.losses, found.unknown) == (1, 0, 0, 1)
    assert (found.effect, found.low, found.high) == (None, None, None)
    assert found.p == 1


def test_a_bound_on_the_wrong_side_of_the_other_value_says_nothing():
    """One method stopped at 300 rounds; the other reached the target after 500."""
    found = compare(exact([500, 500]), [OVER, OVER], "lower", log=True)
    assert found.unknown == 2


def test_a_diverged_run_loses_without_a_number():
    found = compare(exact([1.0] * 6), [WORST, *exact([2.0] * 5)], "lower", log=True)
    assert (found.wins, found.effect, found.low) == (6, None, None)
    assert found.p == 2 / 2**6
    assert found.exceeds() is True
    found = compare(exact([0.5, 0.5]), [Result(-math.inf, True)] * 2, "higher")
    assert (found.wins, found.effect) == (2, None)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_value_without_logarithm_has_its_sign_counted(value):
    found = compare(exact([value, 1.0]), exact([2.0, 2.0]), "lower", log=True)
    assert (found.wins, found.effect) == (2, None)
    assert compare(exact([value, 1.0]), exact([2.0, 2.0]), "lower").effect is not None


def test_one_seed_has_no_interval():
    assert compare(exact([1.0]), exact([2.0]), "lower").low is None


@pytest.mark.parametrize(
    ("low", "high", "margin", "exceeds"),
    [
        (1.1, 2.0, None, True),
        (0.9, 2.0, None, None),
        (0.5, 0.9, None, False),
        (1.0, 2.0, None, None),  # no effect is not excluded
        (1.1, 2.0, 1.5, None),
        (1.1, 1.4, 1.5, False),
        (0.95, 2.0, 0.9, True),
        (2.0, math.inf, 1.5, True),
        (1.2, math.inf, 1.5, None),
        (0.0, 0.8, None, False),
    ],
)
def test_an_effect_exceeds_what_its_interval_excludes(low, high, margin, exceeds):
    found = Comparison(5, 5, 0, 0, True, 0.0625, 1.3, low, high)
    assert found.exceeds(margin) is exceeds


@pytest.mark.parametrize(
    ("wins", "losses", "margin", "exceeds"),
    [(6, 0, None, True), (0, 6, None, False), (5, 0, None, None), (6, 0, 1.5, None)],
)
def test_without_interval_the_sign_test_decides_unless_there_is_a_margin(
    wins, losses, margin, exceeds
):
    p = stats.binomtest(wins, wins + losses).pvalue
    assert Comparison(6, wins, 0, losses, True, p).exceeds(margin) is exceeds


# Censored summaries


@given(st.lists(st.tuples(POSITIVE, st.booleans()), min_size=1, max_size=8))
def test_a_censored_value_never_enters_a_mean(runs):
    values, censored = map(list, zip(*runs, strict=True))
    found = summarise(values, ["finished"] * len(runs), censored)
    assert found.censored == sum(censored)
    assert (found.mean is None) == any(censored)
    assert (found.bound is None) == (not any(censored))
    if any(censored):
        assert found.std is None
        assert found.bound == pytest.approx(np.mean(values))  # each below its truth
        assert found.text("{:.0f}").startswith("> ")
        assert "not reached" in found.text("{:.0f}")


@pytest.mark.parametrize(
    ("values", "censored", "text"),
    [
        ([4000, 1800, 2000, 4000, 3800], [1, 0, 0, 1, 0], "> 3120 (2 of 5 not reached)"),
        ([4000, 4000], [1, 1], "> 4000 (not reached)"),
        ([10, 30], [0, 0], "20 ± 14"),
    ],
)
def test_a_summary_says_what_was_not_reached(values, censored, text):
    found = summarise(values, ["finished"] * len(values), [bool(c) for c in censored])
    assert found.text("{:.0f}") == text


def test_a_diverged_run_wins_over_a_censored_one():
    found = summarise([4000, float("nan")], ["finished", "diverged"], [True, False])
    assert found.text("{:.0f}") == "diverged (1 of 2)"
    assert (found.bound, found.censored) == (None, 0)


def test_an_interval_of_factors_may_reach_to_infinity() -> None:
    found = compare(exact([1e-300, 1e300]), exact([1.0, 1.0]), "lower", log=True)
    assert found.high == math.inf


# Several choices


@given(PAIRS.filter(clear), st.floats(0.1, 10))
def test_one_choice_is_a_plain_comparison_whatever_its_weight(pairs, weight):
    assert compare_choices([(weight, *sides(pairs))], "lower") == compare(*sides(pairs), "lower")
    twice = compare_choices([(weight, *sides(pairs))] * 2, "lower")
    plain = compare(*sides(pairs), "lower")
    for name in ("effect", "low", "high"):
        assert getattr(twice, name) == pytest.approx(getattr(plain, name), rel=1e-6, abs=1e-6)


def test_the_interval_over_choices_has_the_quantiles_of_the_mixture():
    rng = np.random.default_rng(0)
    weights = [0.5, 0.3, 0.2]
    choices = [
        (w, exact(rng.normal(m, s, 6)), exact(rng.normal(0, s, 6)))
        for w, m, s in zip(weights, (1.0, 3.0, -2.0), (0.5, 1.0, 0.2), strict=True)
    ]
    found = compare_choices(choices, "higher")
    drawn = []
    for w, a, b in choices:
        d = np.array([x.value - y.value for x, y in zip(a, b, strict=True)])
        t = rng.standard_t(5, size=round(w * 1_000_000))
        drawn.append(d.mean() + t * d.std(ddof=1) / math.sqrt(6))
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)
    singles = [compare(a, b, "higher") for _, a, b in choices]
    effects = [w * one.effect for w, one in zip(weights, singles, strict=True)]
    assert found.effect == pytest.approx(sum(effects))
    assert (found.wins, found.losses) == (singles[0].wins, singles[0].losses)


@given(st.lists(PAIRS.filter(lambda p: len(p) >= 5), min_size=2, max_size=3), st.booleans())
def test_exchanging_the_methods_exchanges_the_choices_too(every, log):
    choices = [(i + 1.0, *sides(pairs[:5])) for i, pairs in enumerate(every)]
    found = compare_choices(choices, "lower", log)
    back = compare_choices([(w, b, a) for w, a, b in choices], "lower", log)
    assert (found.wins, found.losses) == (back.losses, back.wins)
    turn = (lambda v: 1 / v) if log else (lambda v: -v)
    assert found.effect == pytest.approx(turn(back.effect), rel=1e-6, abs=1e-6)
    if (min(found.low, back.low, 1) > 1e-200 and max(found.high, back.high) < 1e200) or not log:
        ends = turn(back.high), turn(back.low)
        assert (found.low, found.high) == pytest.approx(ends, rel=1e-6, abs=1e-6)


def test_a_choice_without_a_value_leaves_no_interval():
    fine = (0.9, exact([1.0, 2.0]), exact([3.0, 5.0]))
    found = compare_choices([fine, (0.1, [WORST, WORST], exact([3.0, 5.0]))], "lower")
    assert (found.wins, found.effect, found.low) == (2, None, None)


# Values that are known to lie between two


def test_what_lies_between_two_values_counts_where_they_are_apart():
    early, late = Result(20.0, best=10.0), Result(30.0, best=20.0)
    found = compare([early, early, late], [late, early, early], "lower", log=True)
    assert (found.wins, found.ties, found.losses, found.unknown) == (1, 0, 1, 1)
    assert compare([early], [Result(20.0)], "lower").wins == 0  # up to 20, which it may be
    assert compare([Result(20.0)], [late], "lower").wins == 1  # it is more than 20
    over = Result(25.0, censored=True)
    assert compare([early], [over], "lower").wins == 1
    assert compare([late], [over], "lower").unknown == 1


@given(PAIRS.filter(clear), st.lists(st.floats(0, 1), min_size=24, max_size=24), st.data())
def test_an_interval_contains_that_of_every_truth_in_between(pairs, shares, data):
    """The ends allow for where in between each truth lies, given how the truths vary."""
    width = data.draw(st.floats(0.01, 0.5))
    a, b = ([Result(v, best=v * (1 - width)) for v in side] for side in zip(*pairs, strict=True))
    found = compare(a, b, "lower", log=True)
    assert found.low <= compare(*sides(pairs), "lower", log=True).low
    assert found.high >= compare(*sides(pairs), "lower", log=True).high
    moved = [
        [Result(r.value * (1 - width * s)) for r, s in zip(side, shares[k::2], strict=False)]
        for k, side in enumerate((a, b))
    ]
    truth = compare(*moved, "lower", log=True)
    assert found.wins <= truth.wins
    assert found.losses <= truth.losses


def test_a_time_that_may_be_nothing_has_no_bound_on_its_side():
    start = [Result(20.0, best=0.0)] * 2
    found = compare(start, [Result(40.0, best=30.0), Result(50.0, best=40.0)], "lower", log=True)
    assert found.low > 0
    assert found.high == math.inf

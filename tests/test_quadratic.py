"""The synthetic quadratics: their definition (shared paper notes, section 4), optimum and noise.

Statistical tests draw from fixed seeds; the probability that a right implementation fails them for
seeds drawn at random is below 1e-9 each, by the bound that stands beside the tolerance.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from teleport_bench.activation import BLOCK
from teleport_bench.errors import UserError
from teleport_bench.problems import Member
from teleport_bench.registry import PROBLEMS

CPU = torch.device("cpu")
LOG = math.log(1e9)
U32, U64 = 2.0**-24, 2.0**-53
FAMILIES = ["curvature", "spectrum"]


def quadratic(**options):
    return PROBLEMS.build(PROBLEMS.resolve({"name": "quadratic", **options}))


def single(problem, seed, n_nodes):
    """The problem for one run with all nodes active, and its world."""
    return problem.fleet([Member(seed, n_nodes, n_nodes)], CPU), problem.world(seed, n_nodes)


def gamma(n, u):
    """Relative error of n rounded operations in a row (Higham 2002, section 3.1)."""
    return n * u / (1 - n * u)


def chi2_slack(m):
    """X ~ chi-squared(m): P(|X - m| >= 2 sqrt(m L) + 2 L) <= 2 exp(-L) (Laurent and Massart 2000).

    L leaves room for a union over a thousand.
    """
    log = LOG + math.log(2000)
    return 2 * math.sqrt(m * log) + 2 * log


class Functions:
    """The f_i of a world by their definition, term by term in float64, without their constants."""

    def __init__(self, problem, seed, n_nodes):
        fleet, self.world = single(problem, seed, n_nodes)
        self.curvature, self.n, self.d = problem.family == "curvature", n_nodes, problem.dim
        self.a = np.arange(1, n_nodes + 1)[:, None] / math.sqrt(n_nodes)  # A_i = a_i I
        if self.curvature:
            # grad f_i(0) = -A_i b_i, as the problem itself says
            zero, node = torch.zeros(n_nodes, problem.dim), torch.arange(n_nodes)
            self.b = -fleet.gradient(zero, node, zero).double().numpy() / self.a
        self.fleet = fleet

    def value(self, i, x):
        if self.curvature:
            return 0.5 * ((self.a[i] * x - self.b[i]) ** 2).sum()
        away = x - self.world.optimum
        return 0.5 * away @ self.world.hessian[i] @ away + self.world.v[i] @ away

    def gradient(self, i, x):
        """Central differences: exact for a quadratic, whatever the step."""
        steps = np.eye(self.d)
        return np.array([(self.value(i, x + e) - self.value(i, x - e)) / 2 for e in steps])

    def magnitude(self, i, x):
        """(d,): the sum of the sizes of all terms of a gradient, which is what rounding acts on."""
        x = np.abs(x)
        if self.curvature:
            return self.a[i] ** 2 * x + np.abs(self.a[i] * self.b[i])
        return np.abs(self.world.hessian[i]) @ x + np.abs(self.world.v[i])

    def difference_error(self, i, x):
        """What rounding in float64 costs the central differences."""
        x = np.abs(x) + 1
        if self.curvature:
            size = ((self.a[i] * x + np.abs(self.b[i])) ** 2).sum()
        else:
            size = x @ np.abs(self.world.hessian[i]) @ x + np.abs(self.world.v[i]) @ x
        return gamma(4 * self.d + 10, U64) * size


shapes = {"n_nodes": st.integers(2, 8), "dim": st.integers(1, 6), "seed": st.integers(0, 2**32)}


# The functions


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=30)
@given(**shapes, scale=st.sampled_from([0.0, 1.0, 100.0]))
def test_the_gradient_is_the_derivative_of_the_definition(family, n_nodes, dim, seed, scale):
    f = Functions(quadratic(family=family, dim=dim), seed, n_nodes)
    x = scale * torch.from_numpy(np.random.default_rng(seed).standard_normal((n_nodes, dim)))
    x = x.float()
    found = f.fleet.gradient(x, torch.arange(n_nodes), torch.zeros(n_nodes, dim)).double()
    for i in range(n_nodes):
        at = x[i].double().numpy()
        # dim products and sums, the rounded Hessian and linear term, a difference, a sum
        rounding = gamma(dim + 6, U32) * f.magnitude(i, at)
        error = np.abs(found[i].numpy() - f.gradient(i, at))
        assert (error <= rounding + f.difference_error(i, at)).all()


@settings(deadline=None, max_examples=30)
@given(**shapes)
def test_the_curvature_family_has_hessians_i2_over_n(n_nodes, dim, seed):
    world = quadratic(family="curvature", dim=dim).world(seed, n_nodes)
    for i in range(n_nodes):
        assert world.hessian[i] == pytest.approx((i + 1) ** 2 / n_nodes, rel=4 * U64)


def test_the_curvature_family_draws_b_i_with_variance_zeta2_over_i2():
    n_nodes, dim, zeta2 = 8, 4000, 3.0
    f = Functions(quadratic(family="curvature", dim=dim, zeta2=zeta2), 0, n_nodes)
    standard = f.b * np.arange(1, n_nodes + 1)[:, None] / math.sqrt(zeta2)
    assert chi2_slack(dim) < 0.2 * dim
    assert np.abs((standard**2).sum(1) - dim).max() <= chi2_slack(dim)
    # means of standard normals, and a sum over pairs of different nodes (half a difference of two
    # chi-squared numbers): no bias, and nothing in common
    assert np.abs(standard.mean(1)).max() <= math.sqrt(2 * (LOG + math.log(16)) / dim)
    products = np.triu(standard @ standard.T, 1)
    assert np.abs(products).max() <= chi2_slack(dim)


@settings(deadline=None, max_examples=30)
@given(**shapes, mu=st.floats(1e-3, 1), condition=st.floats(1, 1e3))
def test_the_spectrum_family_has_the_given_eigenvalues_at_every_node(
    n_nodes, dim, seed, mu, condition
):
    L = mu * condition
    world = quadratic(family="spectrum", dim=dim, mu=mu, L=L).world(seed, n_nodes)
    steps = np.arange(dim) / max(1, dim - 1)
    expected = np.sort(mu * (L / mu) ** steps) if dim > 1 else np.array([L])
    # rotations that are orthogonal to c d^2.5 roundings (Higham 2002, theorem 19.4), two products
    # and an eigensolver, each small beside L
    tolerance = 20 * dim**2.5 * U64 * L
    for hessian in world.hessian:
        assert np.abs(hessian - hessian.T).max() <= tolerance
        assert np.abs(np.linalg.eigvalsh(hessian) - expected).max() <= tolerance


def test_the_hessians_of_the_spectrum_family_differ_from_node_to_node():
    hessian = quadratic(dim=5).world(0, 6).hessian
    apart = np.abs(hessian[:, None] - hessian[None]).max((2, 3))
    assert (apart[~np.eye(6, dtype=bool)] > 0.01).all()


@settings(deadline=None, max_examples=60)
@given(**shapes, zeta2=st.sampled_from([0.0, 1e-6, 0.5, 1.0, 1e4]))
def test_the_spectrum_family_has_exactly_the_given_heterogeneity(n_nodes, dim, seed, zeta2):
    """(1/n) sum_i ||grad f_i(x*)||^2 = zeta2, from the gradients that the rounds use too."""
    problem = quadratic(family="spectrum", dim=dim, zeta2=zeta2)
    fleet, world = single(problem, seed, n_nodes)
    found = (world.v**2).sum(1).mean()
    assert abs(found - zeta2) <= gamma(2 * n_nodes * dim + 10, U64) * zeta2
    at = torch.from_numpy(np.broadcast_to(world.optimum, (n_nodes, dim)).copy()).float()
    gradient = fleet.gradient(at, torch.arange(n_nodes), torch.zeros(n_nodes, dim)).double()
    assert not at.any()  # x* is exact in float32, so that only v is rounded
    assert abs((gradient**2).sum(1).mean() - zeta2) <= gamma(4, U32) * zeta2


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=20)
@given(n_nodes=st.integers(2, 8), seed=st.integers(0, 2**32))
def test_the_gradients_at_the_optimum_sum_to_zero(family, n_nodes, seed):
    f = Functions(quadratic(family=family, dim=50), seed, n_nodes)
    best = f.world.optimum
    total = sum(f.gradient(i, best) for i in range(n_nodes))
    error = sum(f.difference_error(i, best) for i in range(n_nodes))
    if f.curvature:  # b was read back through float32
        error = error + gamma(4, U32) * sum(f.magnitude(i, best) for i in range(n_nodes))
        size = sum(f.magnitude(i, best) for i in range(n_nodes))
    else:
        # Normals, below 8, were centred and then scaled, at n = 2 by less than 1/2 but for a
        # chi-squared(50) below 8, which has a probability below 1e-12; at larger n by less still.
        size = n_nodes * 8 / 2
    assert (np.abs(total) <= error).all()
    assert (np.abs(f.world.v.sum(0)) <= gamma(4 * n_nodes + 10, U64) * size).all()


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=30)
@given(**shapes)
def test_v_is_the_gradient_at_the_optimum(family, n_nodes, dim, seed):
    problem = quadratic(family=family, dim=dim)
    f = Functions(problem, seed, n_nodes)
    for i in range(n_nodes):
        rounding = gamma(dim + 6, U32) * f.magnitude(i, f.world.optimum)
        error = np.abs(f.gradient(i, f.world.optimum) - f.world.v[i])
        assert (error <= rounding + f.difference_error(i, f.world.optimum)).all()
    said = problem.describe(seed, n_nodes)
    assert said["parameters"] == dim
    naive = sum(float(v @ v) for v in f.world.v) / n_nodes
    assert abs(said["zeta2_at_optimum"] - naive) <= gamma(2 * n_nodes * dim, U64) * naive


# Metrics


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=30)
@given(**shapes)
def test_the_metrics_are_those_of_the_mean_function(family, n_nodes, dim, seed):
    f = Functions(quadratic(family=family, dim=dim), seed, n_nodes)
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((1, dim))).float()
    zero = torch.zeros(1, dtype=torch.int64)
    found = f.fleet.evaluate(x, x, zero, zero)
    at, best = x[0].double().numpy(), f.world.optimum
    nodes = range(n_nodes)
    gap = np.mean([f.value(i, at) - f.value(i, best) for i in nodes])
    gradient = np.mean([f.gradient(i, at) for i in nodes], axis=0)
    # the curvature family's b was read back through float32
    size = np.mean([f.magnitude(i, np.abs(at) + np.abs(best)) for i in nodes], axis=0)
    lost = np.mean([f.difference_error(i, np.abs(at) + np.abs(best)) for i in nodes])
    error = gamma(4, U32) * size * f.curvature + 2 * lost
    assert abs(found["objective_gap"].item() - gap) <= (error * np.abs(at - best)).sum() + 2 * lost
    norm = np.linalg.norm(gradient)
    tolerance = 2 * np.linalg.norm(error) * norm + error @ error + gamma(dim + 4, U64) * norm**2
    assert abs(found["gradient_norm2"].item() - gradient @ gradient) <= tolerance


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=30)
@given(**shapes, size=st.sampled_from([1e-6, 1.0, 1e6]))
def test_the_metrics_vanish_at_the_optimum_and_are_positive_elsewhere(
    family, n_nodes, dim, seed, size
):
    fleet, world = single(quadratic(family=family, dim=dim), seed, n_nodes)
    zero = torch.zeros(1, dtype=torch.int64)
    best = torch.from_numpy(world.optimum)[None]
    at_best = fleet.evaluate(best, best, zero, zero)
    assert at_best["objective_gap"].item() == 0
    assert at_best["gradient_norm2"].item() == 0
    away = best + size * torch.from_numpy(np.random.default_rng(seed).standard_normal((1, dim)))
    for value in fleet.evaluate(away, away, zero, zero).values():
        assert value.item() > 0


def test_the_metrics_are_those_that_the_problem_announces():
    problem = quadratic(dim=3)
    fleet, _ = single(problem, 0, 4)
    zero, x = torch.zeros(1, dtype=torch.int64), torch.ones(1, 3)
    assert set(fleet.evaluate(x, x, zero, zero)) == set(problem.metrics)


@pytest.mark.parametrize("n_nodes", [1, 3, 50])
def test_an_epoch_is_one_gradient_a_node(n_nodes):
    assert quadratic().epochs(n_nodes, 7 * n_nodes) == 7


# Runs in a fleet


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_sees_the_same_functions_noise_and_metrics_alone_and_in_a_fleet(family):
    problem = quadratic(family=family, dim=4)
    members = [Member(5, 3, 2), Member(0, 7, 7), Member(5, 3, 3), Member(5, 4, 2)]
    fleet = problem.fleet(members, CPU)
    offset = {(5, 3): 0, (0, 7): 3, (5, 4): 10}  # nodes are counted through the worlds
    order = list(offset)
    rng = np.random.default_rng(0)
    for i, m in enumerate(members):
        alone = problem.fleet([m], CPU)
        world = m.seed, m.nodes
        x = torch.from_numpy(rng.standard_normal((m.nodes, 4), dtype=np.float32))
        data, node = torch.zeros_like(x), torch.arange(m.nodes)
        expected = alone.gradient(x, node, data)
        assert torch.equal(fleet.gradient(x, node + offset[world], data), expected)
        holders = np.tile(np.arange(m.active), (BLOCK, 1))
        for block in (0, 1):
            assert (fleet.draw(i, block, holders) == alone.draw(0, block, holders)).all()
        assert torch.equal(fleet.initial(m.seed), alone.initial(m.seed))
        mean, run = x[:1], torch.zeros(1, dtype=torch.int64)
        in_fleet = fleet.evaluate(mean, mean, run, torch.tensor([order.index(world)]))
        for name, value in alone.evaluate(mean, mean, run, run).items():
            assert torch.equal(in_fleet[name], value)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_run_of_a_fleet_is_evaluated_in_its_own_world(family):
    problem = quadratic(family=family, dim=3)
    members = [Member(0, 4, 4), Member(1, 5, 5)]
    fleet = problem.fleet(members, CPU)
    mean = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 3), dtype=np.float32))
    together = fleet.evaluate(mean, mean, torch.arange(3), torch.tensor([1, 0, 1]))
    for run, m in enumerate([members[1], members[0], members[1]]):
        zero = torch.zeros(1, dtype=torch.int64)
        alone = problem.fleet([m], CPU).evaluate(mean[[run]], mean[[run]], zero, zero)
        for name, value in alone.items():
            # sums of three numbers, whose order may differ
            assert together[name][run].item() == pytest.approx(value.item(), rel=gamma(20, U64))


def test_the_functions_depend_on_the_seed_and_on_the_number_of_nodes():
    problem = quadratic(dim=3)
    v = problem.world(0, 5).v
    assert (quadratic(dim=3).world(0, 5).v == v).all()
    assert (problem.world(1, 5).v != v).all()
    assert (problem.world(0, 6).v[:5] != v).all()


# Noise and start


def noise(problem, member, blocks):
    fleet = problem.fleet([member], CPU)
    holders = np.tile(np.arange(member.active), (BLOCK, 1))
    drawn = [fleet.draw(0, block, holders) for block in range(blocks)]
    return np.stack(drawn)


@pytest.mark.parametrize("sigma2", [1.0, 0.01, 9.0])
@pytest.mark.parametrize("dim", [1, 50])
def test_the_noise_has_no_mean_and_variance_sigma2_shared_by_the_coordinates(sigma2, dim):
    drawn = noise(quadratic(dim=dim, sigma2=sigma2), Member(3, 5, 4), blocks=400 // dim)
    standard = drawn.astype(float) / math.sqrt(sigma2 / dim)
    for axis in (None, *range(standard.ndim)):  # as a whole, and by block, round, row, coordinate
        others = tuple(i for i in range(standard.ndim) if i != axis) if axis is not None else None
        squares, sums = (standard**2).sum(others), standard.sum(others)
        m = standard.size // squares.size
        # sums of m standard normals, and of their squares; float32 is lost in the slack
        assert np.abs(squares - m).max() <= chi2_slack(m)
        assert np.abs(sums).max() <= math.sqrt(2 * m * (LOG + math.log(2000)))
    assert chi2_slack(standard.size) < 0.1 * standard.size
    # E ||noise||^2 = sigma2
    power = (drawn.astype(float) ** 2).sum(-1).mean()
    assert abs(power - sigma2) <= sigma2 * chi2_slack(standard.size) / standard.size


def test_the_noise_of_different_rounds_rows_coordinates_seeds_and_blocks_is_independent():
    problem = quadratic(dim=20)
    first = noise(problem, Member(0, 8, 8), blocks=2).astype(float) * math.sqrt(20)
    pairs = {
        "blocks": (first[0], first[1]),
        "rounds": (first[:, ::2], first[:, 1::2]),
        "rows": (first[:, :, ::2], first[:, :, 1::2]),
        "coordinates": (first[..., ::2], first[..., 1::2]),
    }
    for name, member in {"seed": Member(1, 8, 8), "nodes": Member(0, 9, 8)}.items():
        pairs[name] = first, noise(problem, member, blocks=2).astype(float) * math.sqrt(20)
    for name, (a, b) in pairs.items():
        # ab = ((a + b)^2 - (a - b)^2)/4: half a difference of two chi-squared numbers
        assert abs((a * b).sum()) <= chi2_slack(a.size), name
        assert chi2_slack(a.size) < 0.2 * a.size


@pytest.mark.parametrize("family", FAMILIES)
def test_the_noise_is_added_to_the_exact_gradient(family):
    fleet, _ = single(quadratic(family=family, dim=6), 0, 5)
    rng = np.random.default_rng(0)
    x, data = (torch.from_numpy(rng.standard_normal((5, 6), dtype=np.float32)) for _ in range(2))
    node = torch.tensor([4, 0, 0, 2, 1])
    exact = fleet.gradient(x, node, torch.zeros_like(x))
    assert torch.equal(fleet.gradient(x, node, data), exact + data)


def test_without_variance_there_is_no_noise():
    assert not noise(quadratic(dim=3, sigma2=0), Member(0, 4, 4), blocks=1).any()


def test_the_start_is_standard_normal_and_depends_on_the_seed_alone():
    dim = 20_000
    problem = quadratic(family="curvature", dim=dim)
    fleet, _ = single(problem, 0, 2)
    x = fleet.initial(7)
    assert x.shape == (dim,)
    assert x.dtype == torch.float32
    assert abs(float((x.double() ** 2).sum()) - dim) <= chi2_slack(dim)
    assert abs(float(x.double().sum())) <= math.sqrt(2 * dim * (LOG + math.log(2)))
    assert torch.equal(single(problem, 3, 5)[0].initial(7), x)
    assert (fleet.initial(8) != x).any()


# What cannot be posed


def test_one_node_alone_has_no_heterogeneity():
    with pytest.raises(UserError, match=r"zeta2=0\.5: set zeta2 = 0"):
        quadratic(family="spectrum", zeta2=0.5).check(1)
    quadratic(family="spectrum", zeta2=0).check(1)
    quadratic(family="spectrum", zeta2=0.5).check(2)
    quadratic(family="curvature", zeta2=0.5).check(1)


@pytest.mark.parametrize(("family", "zeta2"), [("spectrum", 0.0), ("curvature", 1.0)])
def test_one_node_alone_has_its_optimum_where_its_gradient_vanishes(family, zeta2):
    _, world = single(quadratic(family=family, dim=4, zeta2=zeta2), 0, 1)
    # one product and one difference
    assert (np.abs(world.v) <= 4 * U64 * np.abs(world.hessian[0] * world.optimum)).all()


def test_the_smallest_curvature_may_not_be_above_the_largest():
    with pytest.raises(UserError, match=r"mu=2\.0 > L=1\.0"):
        quadratic(mu=2.0, L=1.0)
    assert quadratic(mu=1.0, L=1.0).world(0, 2).hessian.shape == (2, 50, 50)


@pytest.mark.parametrize(
    "option",
    [
        {"family": "spektrum"},
        {"dim": 0},
        {"zeta2": -1.0},
        {"zeta2": math.inf},
        {"sigma2": -1.0},
        {"sigma2": math.nan},
        {"mu": 0.0},
        {"mu": math.nan},
        {"L": 0.0},
        {"L": math.inf},
        {"zeta": 1.0},
    ],
    ids=str,
)
def test_an_option_outside_its_range_is_refused_by_name(option):
    (name,) = option
    with pytest.raises(ValidationError, match=name):
        quadratic(**option)

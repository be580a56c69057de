"""The ops against their equations: exactly where numbers allow it, bit by bit where they do not.

Every lane runs this file: see lanes.py and test_lanes.py.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lanes import DTYPES, INTERPRETED, tk

from teleport_kernels import Mixing

SIZES = [0, 1, 63, 64, 65]
NAN = float("nan")

seeds = st.integers(0, 2**32 - 1)
sizes = st.sampled_from(SIZES)
dtypes = st.sampled_from(DTYPES)


def accumulator(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def bits(x):
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.contiguous().view(integer)


def same_bits(a, b):
    return a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def directed(rng, k, entries):
    """A directed (k, k) matrix, about a third of it entries, one row in five without any."""
    W = entries * (rng.random((k, k)) < rng.uniform(0.1, 0.6))
    W[rng.random(k) < 0.2] = 0
    return W


def normal(rng, *shape, dtype=torch.float32):
    return torch.from_numpy(rng.standard_normal(shape)).to(dtype)


def integers(rng, *shape, dtype=torch.float32):
    return torch.from_numpy(rng.integers(-8, 9, size=shape)).to(dtype)


def dyadic(rng, k):
    """Weights that are multiples of 1/4: with small integers, every sum is exact in float32."""
    return directed(rng, k, rng.integers(-8, 9, size=(k, k)) / 4)


def rounded_once(exact, dtype):
    """An exact float64 result as the op stores it; float32 holds it exactly on the way."""
    assert torch.equal(exact.float().double(), exact)
    return exact.float().to(dtype)


def ordered(W, x, dtype):
    """W x by the book: neighbours ascending, every product and every sum rounded on its own."""
    x = x.to(accumulator(dtype)).numpy()
    W = W.astype(x.dtype)
    out = np.zeros((W.shape[0], x.shape[1]), x.dtype)
    for i in range(W.shape[0]):
        for position, j in enumerate(np.flatnonzero(W[i])):
            term = W[i, j] * x[j]
            out[i] = out[i] + term if position else term
    return torch.from_numpy(out).to(dtype)


def ordered_descent(x, grad, lr, momentum, beta, nesterov, weight_decay):
    """(y, momentum): the local step of `sgd_mix`, one rounding an operation; lr: (k,)."""
    acc = accumulator(x.dtype)
    x, d = x.to(acc).numpy(), grad.to(acc).numpy()
    real = x.dtype.type
    if weight_decay:
        d = d + real(weight_decay) * x
    if momentum is not None:
        m = real(beta) * momentum.to(acc).numpy() + d
        d, momentum = (d + real(beta) * m if nesterov else m), torch.from_numpy(m)
    return torch.from_numpy(x - lr.astype(real)[:, None] * d), momentum


def mix(W):
    return Mixing.from_dense(torch.from_numpy(W))


@settings(deadline=None, max_examples=80)
@given(seeds, st.integers(0, 12), sizes, dtypes)
def test_gossip_is_the_matrix_product_rounded_once_where_sums_are_exact(seed, k, n_params, dtype):
    rng = np.random.default_rng(seed)
    W, x = dyadic(rng, k), integers(rng, k, n_params, dtype=dtype)
    expected = rounded_once(torch.from_numpy(W) @ x.double(), dtype)
    got = tk.gossip_mix(x, mix(W))
    assert got.dtype == dtype
    assert torch.equal(got, expected)


@settings(deadline=None, max_examples=80)
@given(seeds, st.integers(1, 12), sizes, dtypes)
def test_gossip_rounds_every_product_and_sum_in_ascending_order(seed, k, n_params, dtype):
    rng = np.random.default_rng(seed)
    W = directed(rng, k, rng.standard_normal((k, k)))
    x = normal(rng, k, n_params, dtype=dtype)
    assert same_bits(tk.gossip_mix(x, mix(W)), ordered(W, x, dtype))


@settings(deadline=None, max_examples=80)
@given(seeds, st.integers(1, 12), sizes, dtypes)
def test_gossip_is_within_the_error_bound_of_a_dense_float64_product(seed, k, n_params, dtype):
    rng = np.random.default_rng(seed)
    W = torch.from_numpy(directed(rng, k, rng.standard_normal((k, k))))
    x = normal(rng, k, n_params, dtype=dtype)

    def gamma(operations, acc):
        u = torch.finfo(acc).eps / 2
        return operations * u / (1 - operations * u)

    # Weight, product and d - 1 additions are rounded; and the oracle's sum of k terms.
    degree = (W != 0).sum(1, keepdim=True)
    expected = W @ x.double()
    bound = (gamma(degree + 1, accumulator(dtype)) + gamma(k, torch.float64)) * (
        W.abs() @ x.double().abs()
    )
    if dtype != accumulator(dtype):
        store = torch.finfo(dtype)
        bound += store.eps / 2 * (expected.abs() + bound + store.smallest_normal)
    assert bool(((tk.gossip_mix(x, Mixing.from_dense(W)).double() - expected).abs() <= bound).all())


@settings(deadline=None, max_examples=80)
@given(seeds, st.integers(0, 8), st.integers(1, 8), st.integers(0, 8), sizes, dtypes)
def test_teleport_reads_source_rows_and_writes_target_rows_alone(
    seed, k, n, spare, n_params, dtype
):
    rng = np.random.default_rng(seed)
    W, x = dyadic(rng, k), integers(rng, n, n_params, dtype=dtype)
    source = torch.from_numpy(rng.integers(n, size=k))
    target = torch.from_numpy(rng.permutation(k + spare)[:k])
    out = torch.full((k + spare, n_params), NAN, dtype=dtype)
    returned = tk.teleport_mix(x, mix(W), source=source, target=target, out=out)
    expected = torch.full_like(out, NAN)
    for a in range(k):
        row = sum((W[a, b] * x[source[b]].double() for b in range(k)), torch.zeros(n_params))
        expected[target[a]] = rounded_once(row.double(), dtype)
    assert returned is out
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.nan_to_num(), expected.nan_to_num())


@settings(deadline=None, max_examples=120)
@given(
    seeds,
    st.integers(1, 8),
    sizes,
    dtypes,
    st.sampled_from([None, "heavy ball", "nesterov"]),
    st.sampled_from([0.0, 0.25]),
    st.booleans(),
)
def test_sgd_mix_is_its_equation_rounded_once_where_sums_are_exact(
    seed, k, n_params, dtype, kind, weight_decay, per_row
):
    rng = np.random.default_rng(seed)
    n = k + 3
    W, x = dyadic(rng, k), integers(rng, n, n_params, dtype=dtype)
    grad = integers(rng, k, n_params, dtype=dtype)
    lr = torch.from_numpy(0.5 ** rng.integers(0, 4, size=k)) if per_row else 0.25
    m = integers(rng, k, n_params, dtype=dtype) if kind else None
    source = torch.from_numpy(rng.integers(n, size=k))
    target = torch.from_numpy(rng.permutation(n)[:k])
    out = torch.full((n, n_params), NAN, dtype=dtype)

    x_a = x[source].double()
    d = grad.double() + weight_decay * x_a
    if m is not None:
        expected_m = 0.5 * m.double() + d
        d = d + 0.5 * expected_m if kind == "nesterov" else expected_m
    step = lr[:, None] * d if per_row else lr * d
    expected = torch.full_like(out, NAN)
    expected[target] = rounded_once(torch.from_numpy(W) @ (x_a - step), dtype)

    returned = tk.sgd_mix(
        x,
        grad,
        mix(W),
        lr=lr,
        momentum=m,
        beta=0.5 if kind else 0.0,
        nesterov=kind == "nesterov",
        weight_decay=weight_decay,
        source=source,
        target=target,
        out=out,
    )
    assert returned is out
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.nan_to_num(), expected.nan_to_num())
    if m is not None:
        assert torch.equal(m, rounded_once(expected_m, dtype))


@settings(deadline=None, max_examples=120)
@given(
    seeds,
    st.integers(1, 8),
    sizes,
    dtypes,
    st.sampled_from([None, "heavy ball", "nesterov"]),
    st.sampled_from([0.0, 5e-4]),
)
def test_sgd_mix_rounds_every_operation_on_its_own(seed, k, n_params, dtype, kind, weight_decay):
    rng = np.random.default_rng(seed)
    W = directed(rng, k, rng.standard_normal((k, k)))
    x, grad = (normal(rng, k, n_params, dtype=dtype) for _ in range(2))
    m = normal(rng, k, n_params, dtype=dtype) if kind else None
    lr = rng.uniform(0.01, 1, size=k)
    nesterov = kind == "nesterov"
    y, expected_m = ordered_descent(x, grad, lr, m, 0.9, nesterov, weight_decay)
    got = tk.sgd_mix(
        x,
        grad,
        mix(W),
        lr=torch.from_numpy(lr),
        momentum=m,
        beta=0.9 if kind else 0.0,
        nesterov=nesterov,
        weight_decay=weight_decay,
    )
    assert same_bits(got, ordered(W, y, dtype))
    if m is not None:
        assert same_bits(m, expected_m.to(dtype))


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.5, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.25])
def test_one_row_alone_takes_the_steps_of_torch_sgd(momentum, nesterov, weight_decay):
    rng = np.random.default_rng(0)
    start = integers(rng, 1, 65, dtype=torch.float64)
    parameter = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.SGD(
        [parameter], lr=0.25, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
    )
    x, m = start, torch.zeros_like(start) if momentum else None
    for _ in range(5):  # powers of two and small integers: five steps fit into 53 bits
        grad = integers(rng, 1, 65, dtype=torch.float64)
        parameter.grad = grad
        optimiser.step()
        x = tk.sgd_mix(
            x,
            grad,
            Mixing.identity(1),
            lr=0.25,
            momentum=m,
            beta=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
        )
        assert torch.equal(x, parameter.detach())


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1, 8), st.sampled_from(SIZES[1:]), dtypes)
def test_one_number_as_step_size_is_that_number_for_every_row(seed, k, n_params, dtype):
    rng = np.random.default_rng(seed)
    x, grad = (normal(rng, k, n_params, dtype=dtype) for _ in range(2))
    m, lr = mix(directed(rng, k, rng.standard_normal((k, k)))), float(rng.uniform(0.01, 1))
    number = tk.sgd_mix(x, grad, m, lr=lr)
    for tensor in (
        torch.tensor(lr, dtype=torch.float64),
        torch.full((k,), lr, dtype=torch.float64),
    ):
        assert same_bits(tk.sgd_mix(x, grad, m, lr=tensor), number)


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1, 8), st.sampled_from(SIZES[1:]), dtypes)
def test_a_step_of_size_zero_leaves_the_teleport(seed, k, n_params, dtype):
    rng = np.random.default_rng(seed)
    n = k + 2
    x, grad = normal(rng, n, n_params, dtype=dtype), normal(rng, k, n_params, dtype=dtype)
    m = mix(directed(rng, k, rng.standard_normal((k, k))))
    source = torch.from_numpy(rng.permutation(n)[:k])
    assert same_bits(
        tk.sgd_mix(x, grad, m, lr=0.0, source=source), tk.teleport_mix(x, m, source=source)
    )


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1, 12), st.sampled_from(SIZES[1:]), dtypes)
def test_the_identity_moves_rows_without_changing_a_bit(seed, k, n_params, dtype):
    rng = np.random.default_rng(seed)
    x = normal(rng, k, n_params, dtype=dtype)
    source, target = (torch.from_numpy(rng.permutation(k)) for _ in range(2))
    out = torch.full_like(x, NAN)
    tk.teleport_mix(x, Mixing.identity(k), source=source, target=target, out=out)
    assert same_bits(out[target], x[source])


@settings(deadline=None, max_examples=50)
@given(seeds, st.lists(st.integers(1, 5), min_size=2, max_size=4), dtypes)
def test_a_block_gives_the_same_bits_alone_and_stacked(seed, rows, dtype):
    rng = np.random.default_rng(seed)
    blocks = [mix(directed(rng, k, rng.standard_normal((k, k)))) for k in rows]
    x, grad = ([normal(rng, k, 65, dtype=dtype) for k in rows] for _ in range(2))
    lr = [torch.from_numpy(rng.uniform(0.01, 1, size=k)) for k in rows]
    stacked = tk.sgd_mix(torch.cat(x), torch.cat(grad), tk.block_diag(blocks), lr=torch.cat(lr))
    alone = [tk.sgd_mix(*each, lr=size) for *each, size in zip(x, grad, blocks, lr, strict=True)]
    assert same_bits(stacked, torch.cat(alone))


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1, 8), st.integers(0, 200), st.integers(1, 65))
def test_a_parameter_gives_the_same_bits_whatever_stands_beside_it(seed, k, first, width):
    rng = np.random.default_rng(seed)
    m, x = mix(directed(rng, k, rng.standard_normal((k, k)))), normal(rng, k, 265)
    cut = slice(first, first + width)
    assert same_bits(tk.gossip_mix(x[:, cut], m), tk.gossip_mix(x, m)[:, cut])


def test_the_number_of_threads_does_not_change_a_bit():
    rng = np.random.default_rng(0)
    m = mix(directed(rng, 8, rng.standard_normal((8, 8))))
    x, grad = normal(rng, 8, 100_000), normal(rng, 8, 100_000)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(tk.sgd_mix(x, grad, m, lr=0.1))
    finally:
        torch.set_num_threads(threads)
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


@settings(deadline=None, max_examples=50)
@given(seeds, st.lists(st.integers(1, 5), min_size=2, max_size=4), st.sampled_from([NAN, np.inf]))
def test_a_block_that_is_not_finite_never_reaches_another(seed, rows, bad):
    rng = np.random.default_rng(seed)
    m = tk.block_diag([mix(directed(rng, k, rng.standard_normal((k, k)))) for k in rows])
    block = torch.repeat_interleave(torch.tensor(rows))
    x, grad = normal(rng, len(block), 65), normal(rng, len(block), 65)
    sick = block == rng.integers(len(rows))
    ill_x, ill_grad = x.clone(), grad.clone()
    ill_x[sick], ill_grad[sick] = bad, bad
    well = tk.sgd_mix(x, grad, m, lr=0.1)
    assert same_bits(tk.sgd_mix(ill_x, ill_grad, m, lr=0.1)[~sick], well[~sick])
    assert same_bits(tk.gossip_mix(ill_x, m)[~sick], tk.gossip_mix(x, m)[~sick])
    ill_mean, ill_distance = tk.consensus(ill_x, block)
    mean, distance = tk.consensus(x, block)
    others = torch.arange(len(rows)) != block[sick][0]
    assert same_bits(ill_mean[others], mean[others])
    assert same_bits(ill_distance[others], distance[others])


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1, 16), st.sampled_from(SIZES[1:]))
def test_doubly_stochastic_mixing_preserves_the_mean_and_never_drives_rows_apart(seed, k, n_params):
    rng = np.random.default_rng(seed)
    W = sum(np.eye(k)[rng.permutation(k)] for _ in range(4)) / 4  # Birkhoff's theorem
    x = integers(rng, k, n_params, dtype=torch.float64)
    y = tk.gossip_mix(x, mix(W))
    assert torch.equal(y.sum(0), x.sum(0))
    assert (y**2).sum() <= (x**2).sum()  # with equal means: the spread around them


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_receives_along_the_direction_of_its_own_row_of_the_matrix(dtype):
    W = np.array([[0.5, 0.25, 0], [0, 1, 0], [0, 0, 0]])
    x = torch.tensor([[4.0], [8.0], [NAN]], dtype=dtype)
    out = torch.full_like(x, NAN)
    assert torch.equal(
        tk.gossip_mix(x, mix(W), out=out), torch.tensor([[4.0], [8.0], [0.0]], dtype=dtype)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_precision_accumulates_terms_that_alone_would_round_away(dtype):
    x = torch.full((65, 1), 2**-11, dtype=dtype)
    x[0] = 1
    row, col = torch.zeros(65, dtype=torch.int64), torch.arange(65)
    got = tk.gossip_mix(x, Mixing.from_edges(65, row, col, torch.ones(65)))
    assert got[0] == 1 + 2**-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [1, 16])
def test_rows_may_lie_apart(dtype, gap):
    rng = np.random.default_rng(0)
    m = mix(directed(rng, 5, rng.standard_normal((5, 5))))
    x, grad, buf = (normal(rng, 5, 64 + gap, dtype=dtype)[:, :64] for _ in range(3))
    nodes = torch.full((5, 2 * gap + 64), NAN, dtype=dtype)
    out = nodes[:, gap:-gap]
    copy = buf.clone()
    expected = tk.sgd_mix(
        x.clone(), grad.clone(), m, lr=0.1, momentum=copy, beta=0.9, weight_decay=0.1
    )
    tk.sgd_mix(x, grad, m, lr=0.1, momentum=buf, beta=0.9, weight_decay=0.1, out=out)
    assert same_bits(out, expected)
    assert same_bits(buf, copy)
    assert nodes.isnan().sum() == 5 * 2 * gap
    assert same_bits(tk.consensus(x)[0], tk.consensus(x.clone())[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_left_as_they_were(dtype):
    rng = np.random.default_rng(0)
    m = mix(directed(rng, 5, rng.standard_normal((5, 5))))
    x, grad, buf = (normal(rng, 5, 65, dtype=dtype) for _ in range(3))
    before = x.clone(), grad.clone()
    tk.gossip_mix(x, m)
    tk.gossip_mix(x, Mixing.identity(5)).zero_()
    tk.sgd_mix(x, grad, m, lr=0.1, momentum=buf, beta=0.9, nesterov=True, weight_decay=0.1)
    tk.sgd_mix(x, grad, Mixing.identity(5), lr=0.0).zero_()
    tk.consensus(x)
    assert same_bits(x, before[0])
    assert same_bits(grad, before[1])


@settings(deadline=None, max_examples=50)
@given(seeds, st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=4), sizes, dtypes)
def test_consensus_is_exact_where_sums_are(seed, rows, n_params, dtype):
    rng = np.random.default_rng(seed)
    groups = torch.repeat_interleave(torch.tensor(rows))
    x = integers(rng, len(groups), n_params, dtype=dtype)
    parts = x.double().split(rows)
    expected_mean = torch.stack([part.mean(0) for part in parts])
    expected = torch.stack([((part - part.mean(0)) ** 2).sum() for part in parts])
    mean, distance = tk.consensus(x, groups)
    assert mean.dtype == distance.dtype == accumulator(dtype)
    assert torch.equal(mean.double(), expected_mean)
    assert torch.equal(distance.double(), expected)
    one_mean, one_distance = tk.consensus(x[: rows[0]])
    assert torch.equal(one_mean, mean[0])
    assert torch.equal(one_distance, distance[0])


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1, 40), sizes, dtypes, st.sampled_from([0.0, 1000.0]))
def test_consensus_is_within_its_error_bound_far_from_zero_too(seed, k, n_params, dtype, offset):
    rng = np.random.default_rng(seed)
    x = (offset + normal(rng, k, n_params, dtype=torch.float64)).to(dtype)
    exact = x.numpy().astype(np.longdouble) if dtype == torch.float64 else x.double().numpy()
    expected_mean = exact.mean(0)
    expected = ((exact - expected_mean) ** 2).sum()
    mean, distance = tk.consensus(x)
    u = torch.finfo(accumulator(dtype)).eps / 2
    # k - 1 additions and a division; the oracle has at least as many bits
    mean_bound = 2 * (k + 1) * u * np.abs(exact).mean(0)
    assert bool((np.abs(mean.numpy() - expected_mean) <= mean_bound).all())
    # sum (x - m - e)^2 = sum (x - m)^2 + k e^2, then rounded k P additions, a square, a difference
    drift = k * (mean_bound**2).sum()
    bound = drift + 2 * (k * n_params + 3) * u * (expected + drift)
    assert abs(distance.item() - expected) <= bound


@settings(deadline=None, max_examples=50)
@given(seeds, st.sampled_from([1, 2]), sizes, dtypes)
def test_one_row_and_two_equal_rows_are_their_own_mean_at_no_distance(seed, k, n_params, dtype):
    row = normal(np.random.default_rng(seed), 1, n_params, dtype=dtype)
    mean, distance = tk.consensus(row.repeat(k, 1))
    assert torch.equal(mean, row[0].to(accumulator(dtype)))
    assert distance == 0


def test_the_example_of_the_readme_runs():
    readme = (Path(__file__).parents[2] / "kernels" / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names = {}
    exec(compile(example.replace("1_000_000", "1000"), "README.md", "exec"), names)
    assert names["x"].shape == (8, 1000)


@pytest.mark.skipif(not INTERPRETED, reason="every other lane rounds bfloat16 to nearest")
@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 12), sizes)
def test_the_interpreter_cuts_bfloat16_off_at_most_one_step_away(seed, k, n_params):
    rng = np.random.default_rng(seed)
    W = directed(rng, k, rng.standard_normal((k, k)))
    x = normal(rng, k, n_params, dtype=torch.bfloat16)
    found, expected = tk.gossip_mix(x, mix(W)), ordered(W, x, torch.bfloat16)
    steps = bits(found).int() - bits(expected).int()
    assert bool(((steps == 0) | (steps == -1)).all()), "towards zero, by one step"

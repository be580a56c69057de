"""The sparse mixing matrix: what it stores is the matrix it was given."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from teleport_kernels import Mixing, block_diag

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def matrices(draw, min_size=0, max_size=7):
    """Square float64 matrices, half of their entries zero."""
    n = draw(st.integers(min_size, max_size))
    return torch.from_numpy(draw(hnp.arrays("float64", (n, n), elements=st.just(0.0) | FINITE)))


def fields(m):
    return m.indptr, m.indices, m.weights


@settings(deadline=None, max_examples=50)
@given(matrices())
def test_dense_gives_back_the_matrix_it_was_made_from(W):
    m = Mixing.from_dense(W)
    assert torch.equal(m.dense(), W)
    assert m.n_rows == W.shape[0]
    assert m.nnz == W.count_nonzero()


@settings(deadline=None, max_examples=50)
@given(matrices())
def test_columns_strictly_ascend_within_every_row(W):
    m = Mixing.from_dense(W)
    for i in range(m.n_rows):
        columns = m.indices[m.indptr[i] : m.indptr[i + 1]]
        assert torch.equal(columns, W[i].nonzero().squeeze(1))


@settings(deadline=None, max_examples=50)
@given(matrices(), st.randoms(use_true_random=False))
def test_entries_may_come_in_any_order(W, random):
    row, col = W.nonzero(as_tuple=True)
    order = list(range(len(row)))
    random.shuffle(order)
    shuffled = Mixing.from_edges(W.shape[0], row[order], col[order], W[row, col][order])
    for got, expected in zip(fields(shuffled), fields(Mixing.from_dense(W)), strict=True):
        assert torch.equal(got, expected)


@settings(deadline=None, max_examples=50)
@given(matrices())
def test_rows_and_degrees_describe_the_entries(W):
    m = Mixing.from_dense(W)
    assert torch.equal(m.degrees, (W != 0).sum(1))
    assert torch.equal(m.rows, W.nonzero()[:, 0])


@settings(deadline=None, max_examples=50)
@given(st.lists(matrices(max_size=4), min_size=1, max_size=4))
def test_block_diag_is_the_block_diagonal_of_the_dense_blocks(blocks):
    joined = block_diag([Mixing.from_dense(W) for W in blocks])
    # torch.block_diag counts an empty matrix as a 1 x 0 one
    expected = torch.block_diag(*[W for W in blocks if W.numel()]).double()
    if not expected.numel():
        expected = expected.reshape(0, 0)
    for got, whole in zip(fields(joined), fields(Mixing.from_dense(expected)), strict=True):
        assert torch.equal(got, whole)


@pytest.mark.parametrize("n", [0, 1, 2, 9])
def test_identity_is_the_unit_matrix(n):
    assert torch.equal(Mixing.identity(n).dense(), torch.eye(n, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_weights_of_any_number_type_are_kept_as_float64(dtype):
    W = torch.tensor([[0, 3], [-2, 1]], dtype=dtype)
    m = Mixing.from_dense(W)
    assert m.weights.dtype == torch.float64
    assert torch.equal(m.dense(), W.double())


def test_an_entry_named_with_weight_zero_stays_an_entry():
    zero = Mixing.from_edges(2, torch.tensor([1]), torch.tensor([0]), torch.tensor([0.0]))
    assert zero.nnz == 1
    assert torch.equal(zero.degrees, torch.tensor([0, 1]))


def test_to_the_device_it_is_on_is_the_matrix_itself():
    m = Mixing.identity(3)
    assert m.to("cpu") is m


def test_to_moves_every_part():
    moved = Mixing.identity(3).to("meta")
    assert moved.device.type == "meta"
    assert {part.device.type for part in moved.tensors()} == {"meta"}
    assert moved.n_rows == moved.nnz == 3


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (4,), (2, 2, 2), ()])
def test_a_matrix_that_is_not_square_is_refused(shape):
    with pytest.raises(ValueError, match=r"a mixing matrix is square, got shape \("):
        Mixing.from_dense(torch.ones(shape))


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_refused(weight):
    W = torch.eye(3)
    W[1, 2] = weight
    with pytest.raises(ValueError, match="must be finite"):
        Mixing.from_dense(W)


def test_an_entry_given_twice_is_refused_by_name():
    row, col = torch.tensor([0, 2, 1, 2]), torch.tensor([0, 1, 1, 1])
    with pytest.raises(ValueError, match=r"entry \(2, 1\) is given more than once"):
        Mixing.from_edges(3, row, col, torch.ones(4))


@pytest.mark.parametrize(
    ("row", "col", "message"),
    [
        ([0, 3], [0, 0], r"row 3 is out of range, expected 0\.\.2"),
        ([0, -1], [0, 0], r"row -1 is out of range"),
        ([0, 0], [0, 3], r"column 3 is out of range, expected 0\.\.2"),
        ([0, 0], [0, -1], r"column -1 is out of range"),
    ],
)
def test_an_entry_outside_the_matrix_is_refused_by_name(row, col, message):
    with pytest.raises(ValueError, match=message):
        Mixing.from_edges(3, torch.tensor(row), torch.tensor(col), torch.ones(2))


@pytest.mark.parametrize("lengths", [(2, 2, 1), (2, 1, 2), (1, 2, 2)])
def test_rows_columns_and_weights_of_different_lengths_are_refused(lengths):
    row, col, weight = (torch.zeros(n) for n in lengths)
    with pytest.raises(ValueError, match="must be vectors of one length"):
        Mixing.from_edges(2, row, col, weight)


def test_block_diag_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one block"):
        block_diag([])


@pytest.mark.parametrize(
    ("W", "runs"),
    [
        (torch.ones(4, 4), [0, 4]),
        (torch.eye(3), [0, 1, 2, 3]),
        (torch.zeros(3, 3), [0, 3]),
        (torch.zeros(0, 0), [0]),
        (torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 1, 1]]), [0, 2, 3]),
        (torch.tensor([[1.0, 1, 0], [1, 2, 0], [1, 2, 0]]), [0, 1, 3]),
        (torch.tensor([[0.0, 1, 0], [0, 0, 1], [0, 0, 0]]), [0, 1, 2, 3]),
    ],
)
def test_rows_alike_and_side_by_side_are_one_run(W, runs):
    one = Mixing.from_dense(W)
    assert one.runs.tolist() == runs
    if W.any():  # rows of two blocks never have the same entries, unless they have none
        twice = runs[:-1] + [len(W) + run for run in runs]
        assert block_diag([one, one]).runs.tolist() == twice


def closed(W, begin, end):
    """Whether no entry leaves rows and columns begin .. end - 1."""
    inside = torch.zeros(len(W), dtype=torch.bool)
    inside[begin:end] = True
    return not W[inside][:, ~inside].any() and not W[~inside][:, inside].any()


@settings(deadline=None, max_examples=100)
@given(st.lists(matrices(max_size=5), min_size=1, max_size=4), st.integers(0, 5))
def test_blocks_are_the_smallest_ranges_that_no_entry_leaves(parts, cut):
    m = block_diag([Mixing.from_dense(W) for W in parts])
    W, n = m.dense() != 0, m.n_rows
    borders = [b for b in range(n + 1) if closed(W, 0, b)]
    assert m.blocks.tolist() == borders
    assert m.block_rows == max((b - a for a, b in itertools.pairwise(borders)), default=0)
    assert set(itertools.accumulate(map(len, parts), initial=0)) <= set(borders)
    again = Mixing.from_tensors(m.transposed())
    assert torch.equal(again.blocks, m.blocks)
    assert torch.equal(Mixing.from_dense(again.dense()).blocks, m.blocks)
    if n:  # rows and columns in another order, the same for both
        shifted = Mixing.from_dense(m.dense().roll((cut, cut), (0, 1)))
        assert shifted.blocks.tolist() == [
            b for b in range(n + 1) if closed(shifted.dense() != 0, 0, b)
        ]


@settings(deadline=None, max_examples=50)
@given(matrices())
def test_the_parts_of_the_transposed_matrix_are_those_of_the_dense_one(W):
    parts = Mixing.from_dense(W).transposed()
    expected = Mixing.from_dense(W.T)
    again = Mixing.from_tensors(parts)
    assert torch.equal(again.dense(), W.T.double())
    assert torch.equal(again.indices, expected.indices)
    assert torch.equal(again.weights32, expected.weights32)

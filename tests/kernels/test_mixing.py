"""The sparse mixing matrix: what it stores is the matrix it was given."""

import copy
import itertools
import pickle
import warnings

import networkx as nx
import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from teleport_kernels import Mixing, block_diag, gossip_mix

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


W = np.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.125, 0.0, 0.875]])
T = torch.from_numpy(W)
with warnings.catch_warnings():  # torch's, of its sparse tensors
    warnings.simplefilter("ignore")
    AS_THE_FIELD_HAS_THEM = {
        "array": W,
        "column by column": np.asfortranarray(W),
        "read only": np.broadcast_to(W[:, :, None], (3, 3, 2))[:, :, 0],
        "reversed twice": W[::-1].copy()[::-1],
        "big endian": W.astype(">f8"),
        "float32": W.astype(np.float32),
        "longdouble": W.astype(np.longdouble),
        "lists": W.tolist(),
        "np.matrix": np.asmatrix(W),
        "transposed view": T.T.contiguous().T,
        "negative view": torch._neg_view(-T),
        "torch COO": T.to_sparse(),
        "torch COO with parts": torch.sparse_coo_tensor(
            torch.tensor([[0, 0, 0, 0, 1, 2, 2], [0, 0, 1, 2, 1, 0, 2]]),
            torch.tensor([0.25, 0.25, 0.25, 0.25, 1, 0.125, 0.875]),
        ),
        "torch CSR": T.to_sparse_csr(),
        "torch CSC": T.to_sparse_csc(),
        "torch BSR": T.to_sparse_bsr((1, 1)),
        "torch hybrid": T.to_sparse(1),
        **{
            f"SciPy {form}": getattr(scipy.sparse.csr_array(W), f"to{form}")()
            for form in ("csr", "csc", "coo", "lil", "dok", "dia", "bsr")
        },
        "networkx's": nx.to_scipy_sparse_array(
            nx.from_numpy_array(W, create_using=nx.DiGraph), nodelist=range(3)
        ),
    }


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta:UserWarning")
@pytest.mark.parametrize("name", AS_THE_FIELD_HAS_THEM)
def test_a_matrix_is_taken_as_the_field_has_it(name):
    m = Mixing.from_dense(AS_THE_FIELD_HAS_THEM[name])
    assert torch.equal(m.dense(), T)
    assert torch.equal(m.indices, Mixing.from_dense(T).indices)


@pytest.mark.parametrize("index", [np.int32, np.int64, np.uint8])
@pytest.mark.parametrize("weight", [np.float32, np.float64, np.float16])
def test_the_parts_of_scipy_s_matrix_are_converted(index, weight):
    csr = scipy.sparse.csr_array(W)
    parts = csr.indptr.astype(index), csr.indices.astype(index), csr.data.astype(weight)
    for some in (parts, [torch.from_numpy(part) for part in parts], [p.tolist() for p in parts]):
        m = Mixing(*some)
        assert [part.dtype for part in fields(m)] == [torch.int64, torch.int64, torch.float64]
        assert torch.equal(m.dense(), T)
        x = torch.randn(3, 5, dtype=torch.float64)
        assert torch.equal(gossip_mix(x, m), gossip_mix(x, Mixing.from_dense(T)))


BAD_PARTS = {
    "column 9 is out of range": ([0, 1, 2], [0, 9], [1.0, 1]),
    "column -1 is out of range": ([0, 1, 2], [0, -1], [1.0, 1]),
    "got 0 after 1 in row 0: give Mixing.from_edges": ([0, 2, 4], [1, 0, 0, 1], [1.0] * 4),
    "got 1 after 1 in row 1": ([0, 0, 2], [1, 1], [1.0, 1]),
    "indptr must ascend from 0 to 2, the number of indices, got [1, 1, 2]": (
        [1, 1, 2],
        [0, 1],
        [1.0, 1],
    ),
    "got [0, 2, 1, 2]": ([0, 2, 1, 2], [0, 1], [1.0, 1]),
    "got [0, 1, 1]": ([0, 1, 1], [0, 1], [1.0, 1]),
    "indptr must have one number more than there are rows": ([], [], []),
    "each of 2 indices must have a weight, got 1": ([0, 1, 2], [0, 1], [1.0]),
    "indices must be whole numbers, got torch.float64": ([0, 1, 2], [0.0, 1], [1.0, 1]),
    "indices must be whole numbers, got torch.bool": ([0, 1, 2], [False, True], [1.0, 1]),
    "indptr must be a vector, got shape (1, 3)": ([[0, 1, 2]], [0, 1], [1.0, 1]),
    "mixing weights must be finite": ([0, 1, 2], [0, 1], [1.0, float("nan")]),
    "mixing weights must be real": ([0, 1, 2], [0, 1], [1j, 1]),
    "indptr must be an array of numbers, got None": (None, None, None),
    "indptr must be an array of numbers, got 'ab'": ("ab", [0], [1.0]),
    "weights must be an array of numbers, got [[1], [1, 2]]": ([0, 1], [0], [[1], [1, 2]]),
    "indptr is on meta": (torch.zeros(2, device="meta"), [0], [1.0]),
    "no derivative with respect to weights": ([0, 1], [0], torch.ones(1, requires_grad=True)),
    "indices must be dense": ([0, 1], torch.zeros(1).to_sparse(), [1.0]),
}


@pytest.mark.parametrize("message", BAD_PARTS)
def test_parts_that_are_no_matrix_are_refused_by_name(message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        Mixing(*BAD_PARTS[message])
    assert message in str(error.value)


BAD = {
    "W must be an array of numbers, got 'ring'": lambda: Mixing.from_dense("ring"),
    "W must be an array of numbers, got None": lambda: Mixing.from_dense(None),
    "W must be an array of numbers, got Graph": lambda: Mixing.from_dense(nx.path_graph(2)),
    "W must be an array of numbers, got [[1, 2], [3]]": lambda: Mixing.from_dense([[1, 2], [3]]),
    "W must be an array of numbers, got object": lambda: Mixing.from_dense(object()),
    "square, got shape ()": lambda: Mixing.from_dense(float("nan")),
    "square, got shape (2, 3)": lambda: Mixing.from_dense(scipy.sparse.eye_array(2, 3)),
    "square, got shape (1, 3, 3)": lambda: Mixing.from_dense(T[None].to_sparse()),
    "mixing weights must be real": lambda: Mixing.from_dense(1j * W),
    "must have all its entries": lambda: Mixing.from_dense(np.ma.masked_equal(W, 0)),
    "W is on meta": lambda: Mixing.from_dense(T.to("meta")),
    "with respect to W": lambda: Mixing.from_dense(torch.nn.Parameter(T)),
    "W needs 72 bytes of its storage, which has 0": lambda: Mixing.from_dense(without_memory()),
    "must be a whole number, got '3'": lambda: Mixing.identity("3"),
    "must be a whole number, got 2.5": lambda: Mixing.identity(2.5),
    "must be in 0..2147483648, got -1": lambda: Mixing.identity(-1),
    "must be in 0..2147483648, got 1099511627776": lambda: Mixing.identity(2**40),
    "must be a whole number, got None": lambda: Mixing.from_edges(None, [0], [0], [1.0]),
    "row must be an array of numbers, got '0'": lambda: Mixing.from_edges(2, "0", "1", "1"),
    "all parts must be on one device": lambda: block_diag(
        [Mixing.identity(1), Mixing.identity(1).to("meta")]
    ),
    "block_diag needs a list of Mixings": lambda: block_diag(Mixing.identity(1)),
    "no device 'nowhere'": lambda: Mixing.identity(1).to("nowhere"),
    "no device None": lambda: Mixing.identity(1).to(None),
    "no device dtype": lambda: Mixing.identity(1).to(torch.float32),
    "cannot go from meta to cpu": lambda: Mixing.identity(1).to("meta").to("cpu"),
}


def without_memory():
    kept = T.clone()
    kept.untyped_storage().resize_(0)
    return kept


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_matrix_is_refused(message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        BAD[message]()
    assert message in str(error.value)


@pytest.mark.parametrize("part", ["indptr", "indices", "weights", "weights32", "runs", "blocks"])
def test_a_matrix_that_was_changed_in_place_is_refused(part):
    for m in (Mixing.from_dense(T), copy.deepcopy(Mixing.from_dense(T))):
        getattr(m, part)[0] = 99
        for use in (
            lambda m=m: gossip_mix(torch.ones(3, 2), m),
            lambda m=m: block_diag([m]),
            lambda m=m: m.to("meta"),
        ):
            with pytest.raises(ValueError, match="changed in place: make a new Mixing"):
                use()


def test_a_matrix_has_memory_of_its_own():
    parts = [part.clone() for part in fields(Mixing.from_dense(T))]
    m = Mixing(*parts)
    for part in parts:
        part.zero_()
    assert torch.equal(m.dense(), T)


def test_copies_and_pickles_are_the_matrix():
    m = Mixing.from_dense(T)
    for again in (copy.copy(m), copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert torch.equal(again.dense(), T)
        assert torch.equal(gossip_mix(T, again), gossip_mix(T, m))

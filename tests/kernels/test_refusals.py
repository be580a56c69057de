"""What the ops refuse, and what they say."""

from fractions import Fraction

import numpy as np
import pytest
import torch

import teleport_kernels as tk
from teleport_kernels import Mixing

X, M = torch.ones(3, 4), Mixing.identity(3)
G, B = torch.ones(3, 4), torch.ones(3, 4)
NAN = float("nan")


def index(*values):
    return torch.tensor(values, dtype=torch.int64)


def resized(tensor):
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(8)
    return tensor


ROOM = torch.zeros(100)
WORDS = torch.zeros(3, 4, dtype=torch.int64)
BAD = {
    "x must be (rows, n_params), got shape (3,)": lambda: tk.gossip_mix(torch.ones(3), M),
    "x must be one of float32, bfloat16, float16, float64, got torch.int64": lambda: tk.gossip_mix(
        X.long(), M
    ),
    "a (3, 3) mixing matrix needs 3 rows, got 2": lambda: tk.gossip_mix(X[:2], M),
    "the mixing matrix is on meta and x on cpu": lambda: tk.gossip_mix(X, M.to("meta")),
    "out shares memory with x": lambda: tk.gossip_mix(X, M, out=X),
    "out shares memory": lambda: tk.gossip_mix(X[:, :2], M, out=X[:, 1:3]),
    # rows between rows, of unlike strides: no element in common, which is more than is looked for
    "out shares memory with x, which is still needed": lambda: tk.gossip_mix(
        ROOM.as_strided((3, 4), (10, 1)), M, out=ROOM.as_strided((3, 4), (20, 1), 5)
    ),
    "out shares memory with grad": lambda: tk.sgd_mix(X, G, M, lr=0.1, out=G),
    "out shares memory with momentum": lambda: tk.sgd_mix(X, G, M, lr=0.1, momentum=B, out=B),
    "momentum shares memory with x": lambda: tk.sgd_mix(X, G, M, lr=0.1, momentum=X),
    "momentum shares memory with grad": lambda: tk.sgd_mix(X, G, M, lr=0.1, momentum=G),
    "the rows of out overlap, got strides (0, 1) for 4 columns": lambda: tk.gossip_mix(
        X, M, out=torch.ones(4).expand(3, 4)
    ),
    "the last dimension of x must be contiguous, got strides (8, 2): give x.contiguous()": (
        lambda: tk.gossip_mix(torch.ones(3, 8)[:, ::2], M)
    ),
    "the last dimension of out must be contiguous": lambda: tk.gossip_mix(
        X, M, out=torch.ones(4, 3).T
    ),
    "the last dimension of grad must be contiguous": lambda: tk.sgd_mix(
        X, torch.ones(4, 3).T, M, lr=0.1
    ),
    "grad must be rows of 4 torch.float32 values on cpu, got (3, 4) torch.bfloat16": (
        lambda: tk.sgd_mix(X, G.bfloat16(), M, lr=0.1)
    ),
    "lr must be a number or have shape (3,) on cpu, got (3,) on meta": lambda: tk.sgd_mix(
        X, G, M, lr=torch.ones(3, device="meta")
    ),
    "mixing weights must be finite, got NaN": lambda: Mixing.from_dense(torch.full((3, 3), NAN)),
    'unknown backend "cuda" in the argument, expected one of triton, cpu, reference': (
        lambda: tk.gossip_mix(X, M, backend="cuda")
    ),
    'backend "triton" on CPU tensors runs in Triton\'s interpreter alone': lambda: tk.gossip_mix(
        X, M, backend="triton"
    ),
    "a mix into out has no derivative": lambda: tk.gossip_mix(
        X.clone().requires_grad_(), M, out=torch.ones(3, 4)
    ),
    "out must be rows of 4 torch.float32 values on cpu, got (3, 5)": lambda: tk.gossip_mix(
        X, M, out=torch.ones(3, 5)
    ),
    "got (3, 4) torch.float64": lambda: tk.gossip_mix(X, M, out=X.double()),
    "out must be (rows, n_params), got shape (4,)": lambda: tk.gossip_mix(X, M, out=torch.ones(4)),
    "out must have 3 rows, got 4": lambda: tk.gossip_mix(X, M, out=torch.ones(4, 4)),
    "target names rows of out: give out as well": lambda: tk.teleport_mix(
        X, M, target=index(0, 1, 2)
    ),
    "target names a row twice": lambda: tk.teleport_mix(
        X, M, target=index(0, 3, 0), out=torch.ones(5, 4)
    ),
    "target 5 is out of range, expected 0..4": lambda: tk.teleport_mix(
        X, M, target=index(0, 1, 5), out=torch.ones(5, 4)
    ),
    "target -1 is out of range": lambda: tk.teleport_mix(
        X, M, target=index(0, 1, -1), out=torch.ones(5, 4)
    ),
    "target must be (3,) int64 on cpu, got (2,) torch.int64 on cpu": lambda: tk.teleport_mix(
        X, M, target=index(0, 1), out=torch.ones(5, 4)
    ),
    "target must be (3,) int64 on cpu, got (3,) torch.int32": lambda: tk.teleport_mix(
        X, M, target=index(0, 1, 2).int(), out=torch.ones(5, 4)
    ),
    "source 3 is out of range, expected 0..2": lambda: tk.teleport_mix(X, M, source=index(0, 1, 3)),
    "source -1 is out of range": lambda: tk.teleport_mix(X, M, source=index(0, 1, -1)),
    "source must be (3,) int64 on cpu, got (4,)": lambda: tk.teleport_mix(
        X, M, source=index(0, 1, 2, 0)
    ),
    "source must be (3,) int64 on cpu, got (3,) torch.float32": lambda: tk.teleport_mix(
        X, M, source=torch.zeros(3)
    ),
    "grad must have 3 rows, got 2": lambda: tk.sgd_mix(X, G[:2], M, lr=0.1),
    "grad must be rows of 4 torch.float32 values on cpu, got (3, 4) torch.float32 on meta": (
        lambda: tk.sgd_mix(X, G.to("meta"), M, lr=0.1)
    ),
    "momentum must be rows of 4 torch.float32 values on cpu, got (3, 5)": lambda: tk.sgd_mix(
        X, G, M, lr=0.1, momentum=torch.ones(3, 5)
    ),
    "lr must be a number or have shape (3,) on cpu, got (2,)": lambda: tk.sgd_mix(
        X, G, M, lr=torch.ones(2)
    ),
    "got (3, 1)": lambda: tk.sgd_mix(X, G, M, lr=torch.ones(3, 1)),
    "the mean of no rows is undefined": lambda: tk.consensus(torch.ones(0, 4)),
    "groups must have shape (3,) on cpu, got (2,)": lambda: tk.consensus(X, index(0, 0)),
    "groups must be ids 0..g-1 in ascending order": lambda: tk.consensus(X, index(0, 1, 0)),
    "in ascending order with none left out": lambda: tk.consensus(X, index(0, 0, 2)),
    "groups must be ids 0..g-1": lambda: tk.consensus(X, index(1, 1, 2)),
    "groups must be ids": lambda: tk.consensus(torch.ones(0, 4), index()),
    # differences of uint8 wrap: 255, 0 would ascend by one
    "in ascending order with none left out, got [0, 1, 2": lambda: tk.consensus(
        torch.ones(257, 1), torch.arange(257).to(torch.uint8)
    ),
    "groups must be whole numbers, got torch.bool": lambda: tk.consensus(X, index(0, 0, 1).bool()),
    "groups must be a tensor, got list": lambda: tk.consensus(X, [0, 0, 1]),
    "lr must be a number or a tensor, got '0.1'": lambda: tk.sgd_mix(X, G, M, lr="0.1"),
    "must be a number or a tensor, got [0.1, 0.1, 0.1]": lambda: tk.sgd_mix(X, G, M, lr=[0.1] * 3),
    "must be a number that torch.float32 holds, got 1e+300": lambda: tk.sgd_mix(X, G, M, lr=1e300),
    "must be a number that torch.float32 holds, got 10000": lambda: tk.sgd_mix(X, G, M, lr=10**400),
    "lr must be real numbers, got torch.complex64": lambda: tk.sgd_mix(
        X, G, M, lr=torch.ones(3, dtype=torch.complex64)
    ),
    "lr must be dense": lambda: tk.sgd_mix(X, G, M, lr=torch.ones(3).to_sparse()),
    "beta must be a number, got '0.9'": lambda: tk.sgd_mix(X, G, M, lr=0.1, momentum=B, beta="0.9"),
    "weight_decay must be a number, got None": lambda: tk.sgd_mix(
        X, G, M, lr=0.1, weight_decay=None
    ),
    "nesterov must be True or False, got 'yes'": lambda: tk.sgd_mix(
        X, G, M, lr=0.1, momentum=B, nesterov="yes"
    ),
    'unknown backend "3" in the argument': lambda: tk.gossip_mix(X, M, backend=3),
    "give x.resolve_neg()": lambda: tk.gossip_mix(torch._neg_view(X), M),
    "give out.resolve_neg()": lambda: tk.gossip_mix(X, M, out=torch._neg_view(torch.ones(3, 4))),
    "x needs 48 bytes of its storage, which has 8": lambda: tk.gossip_mix(resized(X), M),
    "source needs 24 bytes of its storage": lambda: tk.teleport_mix(
        X, M, source=resized(index(0, 1, 2))
    ),
    "lr needs 12 bytes of its storage": lambda: tk.sgd_mix(X, G, M, lr=resized(torch.ones(3))),
    "out shares memory with source": lambda: tk.teleport_mix(
        X.double(), M, source=WORDS[0, :3], out=WORDS.view(torch.float64)
    ),
    "momentum shares memory with lr": lambda: tk.sgd_mix(
        X[:, :1], G[:, :1], M, lr=ROOM[:3], momentum=ROOM[1:4].unsqueeze(1)
    ),
    "source must be dense": lambda: tk.teleport_mix(X, M, source=index(0, 1, 2).to_sparse()),
    "mixing must be a Mixing, got Tensor": lambda: tk.gossip_mix(X, X),
}


@pytest.mark.parametrize("message", BAD)
def test_an_argument_that_does_not_fit_is_refused_and_named(message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        BAD[message]()
    assert message in str(error.value)


NUMBERS = [np.float32(0.25), np.float64(0.25), Fraction(1, 4), torch.tensor(0.25).double()]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: type(n).__name__)
def test_a_number_of_any_library_is_a_number(number):
    expected = tk.sgd_mix(X, G, M, lr=0.25, momentum=B.clone(), beta=0.25, weight_decay=0.25)
    beta = float(number)
    if not isinstance(number, torch.Tensor):
        beta = number
    found = tk.sgd_mix(X, G, M, lr=number, momentum=B.clone(), beta=beta, weight_decay=beta)
    assert torch.equal(found, expected)
    assert torch.equal(
        tk.sgd_mix(X, G, M, lr=np.int32(1), momentum=B.clone(), nesterov=np.bool_(True)),
        tk.sgd_mix(X, G, M, lr=1, momentum=B.clone(), nesterov=True),
    )


def test_indices_may_lie_apart():
    apart, x = index(4, 9, 0, 9, 2)[::2], torch.randn(5, 4)
    expected = torch.zeros(5, 4)
    expected[[4, 0, 2]] = x[[4, 0, 2]]
    for backend in ("cpu", "reference"):
        out = torch.zeros(5, 4)
        tk.teleport_mix(x, M, source=apart, target=apart, out=out, backend=backend)
        assert torch.equal(out, expected)
        one = tk.teleport_mix(x, M, source=torch.tensor(3).expand(3), backend=backend)
        assert torch.equal(one, x[[3, 3, 3]])


def test_a_refused_step_leaves_momentum_and_out_as_they_were():
    momentum, out = torch.ones(3, 4), torch.full((5, 4), 7.0)
    with pytest.raises(ValueError, match="target 5 is out of range"):
        tk.sgd_mix(X, G, M, lr=0.1, momentum=momentum, beta=0.9, target=index(0, 1, 5), out=out)
    assert torch.equal(momentum, torch.ones(3, 4))
    assert torch.equal(out, torch.full((5, 4), 7.0))


@pytest.mark.parametrize(
    ("rows", "columns"), [(slice(3), slice(4)), (slice(3, 6), slice(4)), (slice(3), slice(4, 8))]
)
def test_rows_or_columns_of_one_buffer_may_be_mixed_into_others(rows, columns):
    buffer = torch.randn(6, 8)
    out = buffer[rows, columns]
    x = buffer[:3, 4:] if columns.start is None else buffer[:3, :4]
    expected = x.clone()
    assert torch.equal(tk.gossip_mix(x, M, out=out), expected)
    assert torch.equal(out, expected)

"""Mixing kernels against what a user would write, each beside a copy of as many bytes.

    pytest suites/bench/test_kernels.py --benchmark-json=kernels.json
    teleport-bench kernels --json kernels.json

Every case is checked before it is timed. Buffers rotate, so that none is found in a cache, and
before each timed call a plain copy is timed: a share of the bandwidth compares neighbours in time,
which matters on a machine that others use as well.
"""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from graphs import graph
from torch import Tensor

import teleport_kernels as tk
from teleport_kernels import Mixing, reference
from teleport_kernels.roofline import bytes_moved, seconds

pytestmark = pytest.mark.filterwarnings("ignore")  # sparse tensors and the compiler warn a lot

SHAPES = {
    "cpu": [(8, 1_000_000), (64, 250_000), (1024, 30_000), (4096, 5_000), (25_000, 50)],
    "cuda": [(8, 8_388_608), (64, 1_048_576), (1024, 65_536), (4096, 16_384)],
    "small": [(8, 1000), (64, 250)],
}
GRAPHS = ("ring", "exponential", "regular", "base", "complete")
ROTATED = 160 * 2**20
"""Bytes that rotating inputs take together, beyond the caches of today's processors."""
LR, BETA = 0.1, 0.9


class Inputs(NamedTuple):
    """What an op takes. Everything is on the device; x, grad, momentum and out: (rows, params)."""

    x: Tensor
    grad: Tensor
    momentum: Tensor
    out: Tensor
    mixing: Mixing
    source: Tensor
    target: Tensor


Call = Callable[[Inputs], Any]


# ---- what a user would write: mixing alone --------------------------------------------------


def dense(i: Inputs) -> Call:
    W = i.mixing.dense().to(i.x.dtype)
    return lambda i: W @ i.x


def csr(i: Inputs) -> Call:
    m = i.mixing
    weights, shape = m.weights.to(i.x.dtype), (m.n_rows, m.n_rows)
    W = torch.sparse_csr_tensor(m.indptr, m.indices, weights, shape)
    return lambda i: W @ i.x


def embedding_bag(i: Inputs) -> Call:
    m, weights = i.mixing, i.mixing.weights.to(i.x.dtype)
    bag = torch.nn.functional.embedding_bag
    return lambda i: bag(m.indices, i.x, m.indptr[:-1], mode="sum", per_sample_weights=weights)


def gather(i: Inputs) -> Call:
    columns, weights = padded(i)
    return lambda i: gathered(i.x, columns, weights)


def compiled_gather(i: Inputs) -> Call:
    columns, weights = padded(i)
    compiled = torch.compile(gathered, dynamic=False)
    return lambda i: compiled(i.x, columns, weights)


def state_dicts(i: Inputs) -> Call:
    """One dictionary of ten tensors a node, as models have."""
    parts = [len(part) for part in torch.arange(i.x.shape[1]).tensor_split(10)]
    m = i.mixing
    bounds, columns, weights = m.indptr.tolist(), m.indices.tolist(), m.weights.tolist()

    def mixed(i: Inputs) -> list[dict[int, Tensor]]:
        models = [dict(enumerate(row.split(parts))) for row in i.x]
        result = []
        for first, last in itertools.pairwise(bounds):
            entries = [(models[columns[e]], weights[e]) for e in range(first, last)]
            result.append(
                {name: sum(w * model[name] for model, w in entries) for name in models[0]}
            )
        return result

    return mixed


def padded(i: Inputs) -> tuple[Tensor, Tensor]:
    """(degree, rows) neighbours and (degree, rows, 1) weights, zero where there is none."""
    m, degrees = i.mixing, i.mixing.degrees
    slot = torch.arange(m.nnz, device=i.x.device) - m.indptr[:-1][m.rows]
    columns = torch.zeros(int(degrees.max()), m.n_rows, dtype=torch.int64, device=i.x.device)
    weights = torch.zeros(*columns.shape, 1, dtype=i.x.dtype, device=i.x.device)
    columns[slot, m.rows] = m.indices
    weights[slot, m.rows, 0] = m.weights.to(i.x.dtype)
    return columns, weights


def gathered(x: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    total = x[columns[0]] * weights[0]
    for d in range(1, columns.shape[0]):
        total = total + x[columns[d]] * weights[d]
    return total


# ---- what a user would write: the whole round -----------------------------------------------


def unfused(i: Inputs) -> Call:
    columns, weights = padded(i)
    return lambda i: round_by_parts(i.x, i.grad, i.momentum, i.source, columns, weights)


def compiled(i: Inputs) -> Call:
    columns, weights = padded(i)
    program = torch.compile(round_by_parts, dynamic=False)
    return lambda i: program(i.x, i.grad, i.momentum, i.source, columns, weights)


def unfused_csr(i: Inputs) -> Call:
    mix = csr(i)

    def round_(i: Inputs) -> Tensor:
        i.momentum.mul_(BETA).add_(i.grad)
        return mix(i._replace(x=i.x[i.source] - LR * i.momentum))

    return round_


def round_by_parts(
    x: Tensor, grad: Tensor, momentum: Tensor, source: Tensor, columns: Tensor, weights: Tensor
) -> Tensor:
    momentum.mul_(BETA).add_(grad)
    return gathered(x[source] - LR * momentum, columns, weights)


# ---- ours -----------------------------------------------------------------------------------

OURS: dict[str, Call] = {
    "gossip_mix": lambda i: tk.gossip_mix(i.x, i.mixing, out=i.out),
    "teleport_mix": lambda i: tk.teleport_mix(
        i.x, i.mixing, source=i.source, target=i.target, out=i.out, validate=False
    ),
    "sgd_mix": lambda i: tk.sgd_mix(
        i.x,
        i.grad,
        i.mixing,
        lr=LR,
        momentum=i.momentum,
        beta=BETA,
        source=i.source,
        out=i.out,
        validate=False,
    ),
    "consensus": lambda i: tk.consensus(i.x),
}
THEIRS: dict[str, dict[str, Callable[[Inputs], Call]]] = {
    "gossip_mix": {
        "dense matmul": dense,
        "sparse CSR": csr,
        "embedding_bag": embedding_bag,
        "gather + sum": gather,
        "gather + sum, compiled": compiled_gather,
        "state dicts": state_dicts,
    },
    "sgd_mix": {
        "unfused, eager": unfused,
        "unfused, sparse CSR": unfused_csr,
        "unfused, compiled": compiled,
    },
    "consensus": {"mean, then distance": lambda _: lambda i: by_parts(i.x)},
}


def by_parts(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(0)
    return mean, ((x - mean) ** 2).sum()


def cases() -> Iterator[Any]:
    """op, who, place of the shape, graph, dtype."""
    f32, bf16, f16, f64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
    for place in range(4):
        for name in GRAPHS:
            for dtype in (f32, bf16):
                yield "gossip_mix", "teleport_kernels", place, name, dtype
                yield "sgd_mix", "teleport_kernels", place, name, dtype
            yield "teleport_mix", "teleport_kernels", place, name, f32
        for dtype in (f16, f64):
            yield "gossip_mix", "teleport_kernels", place, "exponential", dtype
        for dtype in (f32, bf16):
            yield "consensus", "teleport_kernels", place, "-", dtype
        yield "consensus", "mean, then distance", place, "-", f32
        for name in ("ring", "exponential"):
            for op in ("gossip_mix", "sgd_mix"):
                for who in THEIRS[op]:
                    yield op, who, place, name, f32
    for op in ("gossip_mix", "sgd_mix"):
        for place in (1, 3, 4):
            for dtype in (f32, bf16):
                yield op, "teleport_kernels", place, "fleet", dtype
            for who in THEIRS[op]:
                if who not in ("dense matmul", "state dicts"):  # too large, and too many parts
                    yield op, who, place, "fleet", f32


def identity(case: tuple[Any, ...]) -> str:
    op, who, place, name, dtype = case
    return f"{op}-{who}-shape{place}-{name}-{str(dtype).removeprefix('torch.')}".replace(" ", "_")


@pytest.mark.parametrize("case", list(cases()), ids=identity)
def test_kernel(benchmark: Any, case: Any, device: torch.device, scale: str) -> None:
    op, who, place, name, dtype = case
    shapes = SHAPES[scale if scale == "small" else device.type]
    if place >= len(shapes):
        pytest.skip("fewer shapes at the small scale, and on CUDA")
    k, width = shapes[place]
    if who == "state dicts" and device.type == "cuda" and k > 64:
        pytest.skip("minutes, for one launch an entry and tensor")
    sets = inputs(k, width, name, dtype, device, rotated=ROTATED if scale == "full" else 1)
    torch.compiler.reset()
    call = OURS[op] if who == "teleport_kernels" else THEIRS[op][who](sets[0])
    check(op, who, call, sets[0])

    at = itertools.cycle(sets)
    repeat = 20 if device.type == "cuda" and scale == "full" else 1
    once = seconds(lambda: call(next(at)), device)
    rounds = 1 if scale == "small" else max(3, min(15, int(0.7 / (once * repeat + 1e-9))))
    copies: list[float] = []

    def copy() -> None:
        i = next(at)
        i.out.copy_(i.x)

    def before() -> None:
        copies.append(seconds(copy, device, repeat))

    def timed() -> None:
        taken.append(seconds(lambda: call(next(at)), device, repeat))

    taken: list[float] = []
    benchmark.pedantic(timed, setup=before, rounds=rounds, warmup_rounds=1)
    moved = bytes_moved(op, k, width, dtype.itemsize, momentum=True)
    copied = bytes_moved("gossip_mix", k, width, dtype.itemsize)
    pairs = list(zip(taken, copies, strict=True))[1:] or [(taken[0], copies[0])]
    benchmark.extra_info |= {
        "op": op,
        "who": who,
        "backend": tk.backends.choose(device) if who == "teleport_kernels" else "torch",
        "rows": k,
        "params": width,
        "graph": name,
        "nnz": sets[0].mixing.nnz,
        "dtype": str(dtype).removeprefix("torch."),
        "bytes": moved,
        "operations": operations(op, sets[0].mixing, width),
        "calls_a_round": repeat,
        "seconds": statistics.median(t for t, _ in pairs),
        "gb_per_s": moved / statistics.median(t for t, _ in pairs) / 1e9,
        "copy_gb_per_s": copied / statistics.median(c for _, c in pairs) / 1e9,
        "times_copy": statistics.median(t / c for t, c in pairs),
        "times_copy_range": [min(t / c for t, c in pairs), max(t / c for t, c in pairs)],
        "share": statistics.median(moved / t / (copied / c) for t, c in pairs),
    }


def operations(op: str, mixing: Mixing, width: int) -> int:
    """Of floats: two an entry of the matrix's distinct rows, and four a value for a step with
    momentum or for the consensus."""
    entries = 0 if op == "consensus" else int(mixing.degrees[mixing.runs[:-1]].sum())
    step = 4 * mixing.n_rows * (op in ("sgd_mix", "consensus"))
    return (2 * entries + step) * width


def inputs(
    k: int, width: int, name: str, dtype: torch.dtype, device: torch.device, rotated: int
) -> list[Inputs]:
    """Sets of arguments that are used in turn."""
    mixing = graph("ring" if name == "-" else name, k).to(device)
    count = max(2, -(-rotated // (4 * k * width * dtype.itemsize)))
    source, target = torch.randperm(k).to(device), torch.randperm(k).to(device)
    sets = buffers(k, width, dtype, device, count)
    return [Inputs(*rows, mixing, source, target) for rows in sets]


@functools.lru_cache(maxsize=2)
def buffers(
    k: int, width: int, dtype: torch.dtype, device: torch.device, count: int
) -> list[tuple[Tensor, ...]]:
    """x, grad, momentum and out of each set, kept for the next graph: drawing them takes longer
    than mixing them."""
    rows = torch.randn(k, width, device=device).to(dtype)
    return [tuple(rows.roll(4 * s + i, 0) for i in range(4)) for s in range(count)]


def check(op: str, who: str, call: Call, i: Inputs) -> None:
    """The result is the definition's, in the first and last columns: ours in every bit."""
    for columns in (slice(0, 100), slice(-100, None)):
        before = i._replace(momentum=i.momentum.clone())
        result = call(before)
        part = [t[:, columns] for t in (i.x, i.grad, i.momentum)]
        if op == "consensus":
            expected = reference.consensus(part[0], torch.tensor([0, len(i.x)], device=i.x.device))
            found, wanted = result[0][columns], expected[0][0]
        else:
            if who == "state dicts":
                result = torch.stack([torch.cat(list(model.values())) for model in result])
            found, wanted = result[:, columns], torch.empty_like(part[0])
            if op == "sgd_mix":
                lr = torch.full((len(i.x),), LR, device=i.x.device)
                lr = lr.to(reference.accumulation_dtype(i.x.dtype))
                how = {"grad": part[1], "momentum": part[2].clone(), "lr": lr, "beta": BETA}
                reference.mix(part[0], i.mixing, wanted, **how, source=i.source)
            else:
                teleport = op == "teleport_mix"
                to = {"source": i.source, "target": i.target} if teleport else {}
                reference.mix(part[0], i.mixing, wanted, **to)
        if who == "teleport_kernels":
            assert torch.equal(found, wanted), "the kernel's bits are not the definition's"
        else:
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)

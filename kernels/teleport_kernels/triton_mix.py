"""The Triton kernels, for CUDA and AMD devices, and their launchers.

The design is that of cpu_mix.cpp. A program owns ranges of columns, all rows of each: first it
takes the local steps of its columns into a scratch of its own, then it mixes them. So neighbours
are read from the cache of its multiprocessor, and memory is read once and written once at any
degree; momentum is updated in place without a race, since nobody else reads these columns; and one
launch does it all.

A range is narrower the more rows there are (`configuration`), so that it stays in that cache, and
programs are few and take one range after another, so that all scratch stays in the second-level
cache. Nothing waits for the host, and no size is compiled in but those of `Configuration`.
"""

from __future__ import annotations

import contextlib
import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from teleport_kernels.mixing import Mixing
from teleport_kernels.reference import accumulation_dtype, sum_columns

VECTOR_BYTES = 16
"""The widest access of one thread."""
CACHE_BYTES = 192 * 1024
"""What a multiprocessor keeps of its programs' ranges (its cache: 192 KiB on A100, 256 on H100)."""
PROGRAMS = 4
"""Programs a multiprocessor at most: while one waits for its steps, others mix."""
THREADS = 128
"""Threads of a program: 4 warps of 32, or 2 of an AMD device's 64."""
TILE = 8 * THREADS
"""Values that a program works on at once: one or two of a thread's widest accesses."""


class Configuration(NamedTuple):
    """What a kernel is compiled for."""

    block: int
    """Columns of a range."""
    rows: int
    """Rows that a program works on at once."""
    unroll: int
    """Neighbours that it loads at once."""


def configuration(k: int, n_runs: int, itemsize: int) -> Configuration:
    """A small table instead of a tuner: k rows of which n_runs are distinct, itemsize in bytes of
    the accumulation type."""
    fitting = CACHE_BYTES // PROGRAMS // (max(1, k) * itemsize)
    block = min(1024, max(32, triton.next_power_of_2(fitting + 1) // 2))
    tile = TILE if itemsize == 4 else TILE // 4  # float64 takes two registers a value
    rows = min(triton.next_power_of_2(max(1, n_runs)), max(1, tile // block))
    return Configuration(block, rows, unroll=2)  # four, and ptxas spills on A100


def consensus_block(itemsize: int) -> int:
    """Columns of a program of `consensus_kernel`: one widest access a thread."""
    return THREADS * VECTOR_BYTES // itemsize


SIZES = ("x_stride", "grad_stride", "momentum_stride", "out_stride", "k", "n_runs", "begin", "end")


@triton.jit(do_not_specialize=SIZES)
def mix_kernel(
    x,
    grad,
    momentum,
    lr,
    scratch,
    out,
    indptr,
    indices,
    weights,
    runs,
    source,
    target,
    x_stride,
    grad_stride,
    momentum_stride,
    out_stride,
    k,
    n_runs,
    begin,
    end,
    BETA: tl.constexpr,
    DECAY: tl.constexpr,
    NESTEROV: tl.constexpr,
    HAS_GRAD: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    HAS_SOURCE: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """out[target[a]] = sum_j W[a, j] y_j over the columns begin .. end - 1, where y_j is the row
    x[source[j]] after its local step, if there is one. Strides, begin and end count ALIGN elements.
    """
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    beta = tl.full((), BETA, ACC)
    decay = tl.full((), DECAY, ACC)
    # a row's number is int64 before it meets its stride
    x_stride = x_stride.to(tl.int64) * ALIGN
    grad_stride = grad_stride.to(tl.int64) * ALIGN
    momentum_stride = momentum_stride.to(tl.int64) * ALIGN
    out_stride = out_stride.to(tl.int64) * ALIGN
    begin = begin.to(tl.int64) * ALIGN
    end = end.to(tl.int64) * ALIGN
    program = tl.program_id(0)
    y = scratch + program.to(tl.int64) * k * BLOCK
    column = tl.arange(0, BLOCK)[None, :]
    slot = tl.arange(0, ROWS)

    for tile in range(program, tl.cdiv(end - begin, BLOCK), tl.num_programs(0)):
        first = begin + tile * BLOCK  # the bounds of tile make it int64
        inside = column < end - first

        if HAS_GRAD:
            for b in range(0, k, ROWS):
                row = (b + slot).to(tl.int64)
                there = row < k
                here = there[:, None] & inside
                origin = tl.load(source + row, mask=there, other=0) if HAS_SOURCE else row
                v = tl.load(x + first + (origin * x_stride)[:, None] + column, mask=here).to(ACC)
                d = tl.load(grad + first + (row * grad_stride)[:, None] + column, mask=here).to(ACC)
                if DECAY != 0:
                    d = d + decay * v
                if HAS_MOMENTUM:
                    m_at = momentum + first + (row * momentum_stride)[:, None] + column
                    m = beta * tl.load(m_at, mask=here).to(ACC) + d
                    tl.store(m_at, m.to(momentum.dtype.element_ty), mask=here)
                    d = d + beta * m if NESTEROV else m
                step = tl.load(lr + row, mask=there, other=0.0)[:, None]
                tl.store(y + (row * BLOCK)[:, None] + column, v - step * d, mask=here)
            tl.debug_barrier()

        for r in range(0, n_runs, ROWS):
            run = r + slot
            there = run < n_runs
            row = tl.load(runs + run, mask=there, other=0)
            next_row = tl.load(runs + run + 1, mask=there, other=0)
            entry = tl.load(indptr + row, mask=there, other=0)
            degree = tl.load(indptr + row + 1, mask=there, other=0) - entry
            total = tl.full((ROWS, BLOCK), -0.0, ACC)  # -0 + v is v, for every v
            for e in range(0, tl.max(degree, 0), UNROLL):
                for u in tl.static_range(UNROLL):
                    has = e + u < degree
                    # a row that has no more looks at an entry that is there, for nothing
                    at = tl.maximum(entry + tl.minimum(e + u, degree - 1), 0)
                    j = tl.load(indices + at)
                    w = tl.load(weights + at)
                    here = has[:, None] & inside
                    if HAS_GRAD:
                        v = tl.load(y + (j * BLOCK)[:, None] + column, mask=here)
                    else:
                        origin = tl.load(source + j) if HAS_SOURCE else j
                        x_at = x + first + (origin * x_stride)[:, None] + column
                        v = tl.load(x_at, mask=here).to(ACC)
                    total = tl.where(has[:, None], total + w[:, None] * v, total)
            total = tl.where((degree == 0)[:, None], 0.0, total)
            for i in range(0, tl.max(next_row - row, 0)):
                to = row + i
                writes = to < next_row
                place = tl.load(target + to, mask=writes, other=0) if HAS_TARGET else to
                out_at = out + first + (place * out_stride)[:, None] + column
                result = total.to(out.dtype.element_ty)
                tl.store(out_at, result, mask=writes[:, None] & inside)
        if HAS_GRAD:
            tl.debug_barrier()  # before the next range overwrites the scratch


@triton.jit(do_not_specialize=("x_stride", "width", "out_stride"))
def consensus_kernel(
    x,
    starts,
    mean,
    squares,
    x_stride,
    width,
    out_stride,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """mean and sum of squared distances of every column over the rows of one group: program
    (range of columns, group). Strides and width count ALIGN elements."""
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    x_stride = x_stride.to(tl.int64) * ALIGN
    out_stride = out_stride.to(tl.int64) * ALIGN
    width = width.to(tl.int64) * ALIGN
    group = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    column = tl.arange(0, BLOCK)
    inside = column < width - first
    begin = tl.load(starts + group)
    end = tl.load(starts + group + 1)
    rows = x + first + column
    total = tl.full((BLOCK,), -0.0, ACC)
    for i in range(begin, end, UNROLL):
        for u in tl.static_range(UNROLL):
            there = end - i > u
            here = column < tl.where(there, width - first, 0)
            v = tl.load(rows + (i + u) * x_stride, mask=here).to(ACC)
            total = tl.where(there, total + v, total)
    size = tl.full((BLOCK,), 0.0, ACC) + (end - begin).to(ACC)
    m = total / size if ACC is tl.float64 else tl.div_rn(total, size)
    tl.store(mean + group * out_stride + first + column, m, mask=inside)
    distance = tl.full((BLOCK,), 0.0, ACC)
    for i in range(begin, end, UNROLL):
        for u in tl.static_range(UNROLL):
            there = end - i > u
            here = column < tl.where(there, width - first, 0)
            v = tl.load(rows + (i + u) * x_stride, mask=here).to(ACC)
            d = v - m
            distance = tl.where(there, distance + d * d, distance)
    tl.store(squares + group * out_stride + first + column, distance, mask=inside)


def mix(
    x: Tensor,
    mixing: Mixing,
    out: Tensor,
    *,
    grad: Tensor | None = None,
    lr: Tensor | None = None,
    momentum: Tensor | None = None,
    beta: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    source: Tensor | None = None,
    target: Tensor | None = None,
) -> None:
    """`reference.mix` on checked arguments in one launch (two where the last columns of aligned
    rows do not fill a vector)."""
    k, width, dtype = mixing.n_rows, x.shape[1], accumulation_dtype(x.dtype)
    if not k or not width:
        return
    n_runs = mixing.runs.numel() - 1
    c = configuration(k, n_runs, dtype.itemsize)
    rows = [t for t in (x, grad, momentum, out) if t is not None]
    kept = CACHE_BYTES // (k * c.block * dtype.itemsize)
    with _on(x):
        programs = min(max(1, kept), PROGRAMS) * _multiprocessors(x.device)
        programs = min(programs, triton.cdiv(width, c.block))
        scratch = x if grad is None else x.new_empty(programs * k * c.block, dtype=dtype)
        for align, begin, end in _cuts(rows, width):
            mix_kernel[(min(programs, triton.cdiv(end - begin, c.block)),)](
                x,
                x if grad is None else grad,
                x if momentum is None else momentum,
                x if lr is None else lr,
                scratch,
                out,
                mixing.indptr,
                mixing.indices,
                mixing.weights_as(dtype),
                mixing.runs,
                mixing.indices if source is None else source,
                mixing.indices if target is None else target,
                x.stride(0) // align,
                0 if grad is None else grad.stride(0) // align,
                0 if momentum is None else momentum.stride(0) // align,
                out.stride(0) // align,
                k,
                n_runs,
                begin // align,
                end // align,
                BETA=beta,
                DECAY=weight_decay,
                NESTEROV=nesterov,
                HAS_GRAD=grad is not None,
                HAS_MOMENTUM=momentum is not None,
                HAS_SOURCE=source is not None,
                HAS_TARGET=target is not None,
                ALIGN=align,
                BLOCK=c.block,
                ROWS=c.rows,
                UNROLL=c.unroll,
                num_warps=_warps(),
                enable_fp_fusion=False,
            )


def consensus(x: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """`reference.consensus` in one launch, and a few small ones that add up the columns."""
    groups, width, dtype = starts.numel() - 1, x.shape[1], accumulation_dtype(x.dtype)
    mean = x.new_empty(groups, width, dtype=dtype)
    squares = torch.empty_like(mean)
    if width:
        align = _alignment([x, mean, squares], width)
        block = consensus_block(x.element_size())
        with _on(x):
            consensus_kernel[(triton.cdiv(width, block), groups)](
                x,
                starts,
                mean,
                squares,
                x.stride(0) // align,
                width // align,
                width // align,
                ALIGN=align,
                BLOCK=block,
                UNROLL=4,
                num_warps=_warps(),
                enable_fp_fusion=False,
            )
    return mean, sum_columns(squares)


def _alignment(rows: list[Tensor], *lengths: int) -> int:
    """Elements of the widest access that all row starts, and the lengths, are multiples of."""
    vector = VECTOR_BYTES // min(t.element_size() for t in rows)
    aligned = all(
        t.data_ptr() % VECTOR_BYTES == 0 and t.stride(0) % vector == 0 for t in rows
    ) and all(length % vector == 0 for length in lengths)
    return vector if aligned else 1


def _cuts(rows: list[Tensor], width: int) -> list[tuple[int, int, int]]:
    """(alignment, first column, last column + 1) of each launch."""
    align = _alignment(rows)
    whole = width // align * align
    cuts = [(align, 0, whole), (1, whole, width)]
    return [cut for cut in cuts if cut[1] < cut[2]]


def _warps() -> int:
    return THREADS // (64 if torch.version.hip else 32)


def _on(x: Tensor) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type == "cpu":  # the interpreter
        return 1
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count

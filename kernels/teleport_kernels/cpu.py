"""The CPU path: one pass over memory in C++, compiled once with the machine's own compiler."""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teleport_kernels import checks, compiler, reference
from teleport_kernels.mixing import Mixing
from teleport_kernels.reference import BLOCK, accumulation_dtype

MIX = compiler.Library(
    Path(__file__).with_name("cpu_mix.cpp"),
    ("-fopenmp", "-ffp-contract=off"),
    includes=compiler.LENT,
    optional=("-DTK_HALF",),  # not every compiler has _Float16
)
CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

TILE_BYTES = 128 * 1024
"""Accumulated values of all rows in a tile: leaves room for the inputs in a core's second-level
cache, 256 KiB or more on machines of the last ten years."""
RUN = 128
"""Columns of a tile at least, however many rows: shorter runs of memory are not fetched ahead."""
PAST_CACHE = 16 * 2**20
"""Bytes of results from which they are written past the cache, as the next reader would not find
them there: saves the read of what is overwritten."""
EAGER_TILE = 2**18
"""Elements of a tile without a compiler: more calls cost more than the cache saves."""
PARALLEL, POOLED = 2**15, 2**12
"""Elements below which one thread is faster than waking torch's others, or than sharing with those
of the pool, which are awake."""


_forked = False
"""Whether this process is a fork, where OpenMP would wait for threads that only its parent has.
Loops then go to the pool, which begins anew, and torch's own operations to one thread, as in its
data loaders."""


def _is_a_fork() -> None:
    global _forked
    _forked = True
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_is_a_fork)


class _Mix(ctypes.Structure):
    """`Mix` of mixing.hpp, and the tensors that it points into."""

    tensors: tuple[object, ...]
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "k", "width")),
        *((name, ctypes.c_void_p) for name in ("indptr", "indices")),
        ("n_runs", ctypes.c_int64),
        ("runs", ctypes.c_void_p),
        ("n_blocks", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("blocks", "weights", "x")),
        ("x_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("source", "grad")),
        ("grad_stride", ctypes.c_int64),
        ("momentum", ctypes.c_void_p),
        ("momentum_stride", ctypes.c_int64),
        ("lr", ctypes.c_void_p),
        *((name, ctypes.c_double) for name in ("beta", "decay")),
        ("nesterov", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("out_stride", ctypes.c_int64),
        ("target", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("tile", "rows", "threads", "past", "pool")),
    )


def available() -> bool:
    """Whether the compiled path is there; the first call compiles it, or warns why it cannot."""
    return _library() is not None


def function(name: str = "mix") -> Any:
    """The C function `teleport_kernels_NAME`, where `available()`; "mix" takes a pointer to what
    `prepare` gives."""
    return getattr(_library(), f"teleport_kernels_{name}")


def prepare(
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
    pool: int = 0,
) -> _Mix:
    """What `function` takes for `mix` of these arguments, as often as it is called: their shapes,
    types and memory are checked here, once; out may be x.

    pool: so many threads of `parallel.hpp`, for loops without torch; 0: torch's own threads.
    Raises ValueError on a bad shape, dtype, device or stride, or a vector that is not contiguous.
    """
    checks.check_shapes(x, mixing, source, target, out, grad, momentum)
    checks.check_step(x, grad, lr, mixing.n_rows)
    vectors = {"lr": lr, "source": source, "target": target}
    checks.check_memories(x=x, out=out, grad=grad, momentum=momentum, **vectors)
    checks.check_contiguous(**vectors)
    if x.device.type != "cpu":
        raise ValueError(f"the CPU path takes tensors on the CPU, got them on {x.device}")
    return _prepared(
        x,
        mixing,
        out,
        grad=grad,
        lr=lr,
        momentum=momentum,
        beta=beta,
        nesterov=nesterov,
        weight_decay=weight_decay,
        source=source,
        target=target,
        pool=pool,
    )


def _prepared(
    x: Tensor,
    mixing: Mixing,
    out: Tensor,
    *,
    grad: Tensor | None,
    lr: Tensor | None,
    momentum: Tensor | None,
    beta: float,
    nesterov: bool,
    weight_decay: float,
    source: Tensor | None,
    target: Tensor | None,
    pool: int,
) -> _Mix:
    """`prepare` of checked arguments."""
    if _forked and not pool:
        pool = torch.get_num_threads()
    k, width, dtype = mixing.n_rows, x.shape[1], accumulation_dtype(x.dtype)
    threads = _threads(k * width, pool)
    past = k * width * x.element_size() >= PAST_CACHE
    arguments = _Mix(
        CODES[x.dtype],
        k,
        width,
        mixing.indptr.data_ptr(),
        mixing.indices.data_ptr(),
        mixing.runs.numel() - 1,
        mixing.runs.data_ptr(),
        mixing.blocks.numel() - 1,
        mixing.blocks.data_ptr(),
        mixing.weights_as(dtype).data_ptr(),
        x.data_ptr(),
        x.stride(0),
        _address(source),
        _address(grad),
        0 if grad is None else grad.stride(0),
        _address(momentum),
        0 if momentum is None else momentum.stride(0),
        _address(lr),
        beta,
        weight_decay,
        nesterov,
        out.data_ptr(),
        out.stride(0),
        _address(target),
        *_tile(mixing, width, dtype.itemsize, threads),
        threads,
        past,
        pool > 0,
    )
    arguments.tensors = x, mixing, out, grad, lr, momentum, source, target
    return arguments


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
    """`reference.mix` on checked arguments, by the compiled pass or else tile by tile in torch."""
    library = _library()
    if library is not None:
        arguments = _prepared(
            x,
            mixing,
            out,
            grad=grad,
            lr=lr,
            momentum=momentum,
            beta=beta,
            nesterov=nesterov,
            weight_decay=weight_decay,
            source=source,
            target=target,
            pool=0,
        )
        if not library.teleport_kernels_mix(ctypes.byref(arguments)):
            return
    tile = max(RUN, EAGER_TILE // max(1, mixing.n_rows))
    for first in range(0, x.shape[1], tile):  # what a tile needs stays in the cache
        cut = slice(first, first + tile)
        reference.mix(
            x[:, cut],
            mixing,
            out[:, cut],
            grad=None if grad is None else grad[:, cut],
            lr=lr,
            momentum=None if momentum is None else momentum[:, cut],
            beta=beta,
            nesterov=nesterov,
            weight_decay=weight_decay,
            source=source,
            target=target,
        )


def consensus(x: Tensor, starts: Tensor, *, pool: int = 0) -> tuple[Tensor, Tensor]:
    """`reference.consensus`, by the compiled pass where there is one; pool: as in `prepare`."""
    checks.check_starts(x, starts)
    groups, (rows, width), dtype = starts.numel() - 1, x.shape, accumulation_dtype(x.dtype)
    library = _library() if width else None
    if library is not None:
        if _forked and not pool:
            pool = torch.get_num_threads()
        mean = torch.empty(groups, width, dtype=dtype, device="cpu")
        distance = torch.empty(groups, dtype=dtype, device="cpu")
        tile = max(1, TILE_BYTES // (-(-rows // groups) * x.element_size()) // BLOCK) * BLOCK
        failed = library.teleport_kernels_consensus(
            CODES[x.dtype],
            groups,
            width,
            starts.data_ptr(),
            x.data_ptr(),
            x.stride(0),
            mean.data_ptr(),
            distance.data_ptr(),
            BLOCK,
            min(tile, -(-width // BLOCK) * BLOCK),
            _threads(rows * width, pool),
            int(pool > 0),
        )
        if not failed:
            return mean, distance
    return reference.consensus(x, starts)


def _tile(mixing: Mixing, width: int, itemsize: int, threads: int) -> tuple[int, int]:
    """Columns of a tile, a multiple of 64, and rows that it has at most: of the largest block, or
    of smaller ones together where they fill the cache only then."""
    values, largest = TILE_BYTES // itemsize, max(1, mixing.block_rows)
    columns = min(max(RUN, values // largest), width)
    if largest > mixing.n_rows // threads:  # too few blocks for all threads: as many tiles
        columns = min(columns, -(-width // threads))
    columns = max(1, -(-columns // 64)) * 64
    parts = -(-mixing.n_rows // max(1, values // columns))
    parts = max(1, -(-parts // threads)) * threads  # as many for each thread
    return columns, max(largest, -(-mixing.n_rows // parts))


def _threads(elements: int, pool: int) -> int:
    if pool:
        return pool if elements >= POOLED else 1
    return torch.get_num_threads() if elements >= PARALLEL else 1


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        library = MIX.load()
    except compiler.FAILURES as error:
        detail = getattr(error, "stderr", None) or error
        warnings.warn(
            f"teleport_kernels: no C++ compiler for the fast CPU path ({detail}); mixing uses "
            "torch, several times slower, with the same results. Install g++ to change that.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    library.teleport_kernels_mix.argtypes = (ctypes.POINTER(_Mix),)
    library.teleport_kernels_mix.restype = ctypes.c_int
    word, pointer = ctypes.c_int64, ctypes.c_void_p
    library.teleport_kernels_consensus.argtypes = (
        *(word, word, word, pointer, pointer, word, pointer, pointer, word, word, word),
        word,
    )
    library.teleport_kernels_consensus.restype = ctypes.c_int
    return library

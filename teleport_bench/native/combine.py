"""Linear combinations of rows for the library."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from torch import Tensor

from teleport_bench.errors import UserError
from teleport_bench.native.calls import POINTER, WORD, Call, checked, structure
from teleport_bench.native.library import library
from teleport_kernels.cpu import POOLED

_TermStruct = structure(
    "Term",
    x=POINTER,
    x_stride=WORD,
    factor=ctypes.c_float,
    power=ctypes.c_int32,
)
_SumStruct = structure(
    "Sum",
    **dict.fromkeys(("rows", "width", "n_terms"), WORD),
    **dict.fromkeys(("terms", "lr", "out"), POINTER),
    out_stride=WORD,
    threads=WORD,
)


def combine(
    terms: Sequence[tuple[float, int, Tensor]], lr: Tensor, out: Tensor, threads: int
) -> Call:
    """out <- sum_j factor_j lr^power_j x_j, in order; lr^-1 is 0 for lr = 0.

    terms: (factor, power, x), power -1, 0 or 1, x: (rows, P); lr: (rows,); out: (rows, P), apart.
    """
    if not terms:
        raise UserError("a sum needs at least one term, got none")
    rows, width = out.shape
    out, lr = checked("out", out, (rows, width), rows=True), checked("lr", lr, (rows,))
    terms = [(c, p, checked("a term", x, (rows, width), rows=True)) for c, p, x in terms]
    table = (_TermStruct * len(terms))(
        *(_TermStruct(x.data_ptr(), x.stride(0), factor, power) for factor, power, x in terms)
    )
    loaded = library()
    assert loaded is not None
    arguments = _SumStruct(
        rows,
        width,
        len(terms),
        ctypes.addressof(table),
        lr.data_ptr(),
        out.data_ptr(),
        out.stride(0),
        threads if out.numel() >= POOLED else 1,
    )
    return Call(loaded.teleport_combine, arguments, "mix", (table, terms, lr, out))

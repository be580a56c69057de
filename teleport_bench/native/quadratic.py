"""Quadratics for the library."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from teleport_bench.native.calls import POINTER, WORD, Call, Rows, RowsStruct, checked, structure
from teleport_bench.native.library import library

_QuadraticStruct = structure(
    "Quadratic",
    rows=RowsStruct,
    dim=WORD,
    pitch=WORD,
    hessian=POINTER,
    linear=POINTER,
    noise=POINTER,
    node=POINTER,
)

LANES = 16
"""Lines of a matrix begin where a register of any machine may."""


class NativeQuadratic:
    """grad f_i(x) = H_i x - linear_i + noise; hessian: (n, 1) or (n, d, d); linear: (n, d)."""

    def __init__(self, hessian: Tensor, linear: Tensor) -> None:
        n, self.dim = linear.shape
        square = (n, self.dim, self.dim) if hessian.ndim == 3 else (n, 1)
        hessian = checked("hessian", hessian.contiguous(), square)
        linear = checked("linear", linear.contiguous(), (n, self.dim))
        self.pitch = 0
        if hessian.ndim == 3:
            self.pitch = -(-self.dim // LANES) * LANES
            hessian = F.pad(hessian, (0, self.pitch - self.dim))
        self.hessian, self.linear = hessian, linear
        loaded = library()
        assert loaded is not None
        self._function = loaded.teleport_quadratic

    def gradient(self, rows: Rows, x: Tensor, grad: Tensor, node: Tensor, noise: Tensor) -> Call:
        """grad <- every row's gradient. node: (members,) int64, in 0..n-1; noise: (members, d)."""
        members = max(rows.members, len(node))
        node = checked("node", node, (members,), torch.int64)
        noise = checked("noise", noise, (members, self.dim))
        arguments = _QuadraticStruct(
            rows.struct(x, grad, self.dim),
            self.dim,
            self.pitch,
            self.hessian.data_ptr(),
            self.linear.data_ptr(),
            noise.data_ptr(),
            node.data_ptr(),
        )
        return Call(self._function, arguments, "gradient", (self, rows, x, grad, node, noise))

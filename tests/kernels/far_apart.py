"""Rows so far apart that 32 bits do not count the elements between them, of which few are touched.

Run as a program, with a backend as its argument: prints the op and whether its bits are right.
"""

from __future__ import annotations

import sys

import torch

import teleport_kernels as tk
from teleport_kernels import reference

STRIDE = 2**30 + 16
"""Elements from row to row: the third row begins beyond 2^31."""


def far(rows: int, width: int) -> torch.Tensor:
    """Rows of NaN, in memory that is asked for and, between them, never touched."""
    memory = torch.empty((rows - 1) * STRIDE + width, dtype=torch.float16)
    x = memory.as_strided((rows, width), (STRIDE, 1))
    return x.fill_(float("nan"))


def main(backend: str) -> bool:
    width = 70
    near = torch.randn(4, width).half()
    W = torch.tensor([[0.5, 0, 0.25, 0.25], [0, 0, 0, 1], [0.25, 0.25, 0.5, 0], [1, 0, 0, 0]])
    mixing, lr = tk.Mixing.from_dense(W), torch.full((4,), 0.1)
    x, grad, momentum, out = (far(4, width) for _ in range(4))
    order = torch.tensor([3, 0, 2, 1])
    x[order], grad[:], momentum[:] = near, near.flip(0), near.flip(1)
    with tk.backend(backend):
        tk.sgd_mix(
            x, grad, mixing, lr=lr, momentum=momentum, beta=0.5, source=order, target=order, out=out
        )
        mean, distance = tk.consensus(x)
    y, m = reference.descend(near, near.flip(0), lr[:, None], near.flip(1), 0.5, False, 0.0)
    assert m is not None
    expected = reference.consensus(near[order.argsort()], torch.tensor([0, 4]))
    return (
        torch.equal(out[order], reference.gossip(y, mixing).half())
        and torch.equal(momentum, m.half())
        and torch.equal(mean, expected[0][0])
        and torch.equal(distance, expected[1][0])
    )


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1]))

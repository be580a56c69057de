"""The definition of every op in plain torch: slow on purpose nowhere, clever nowhere.

On any device, for float64, float32, bfloat16 and float16. Accumulation is in float32 (float64 for
float64), neighbours in ascending column order, every product and every sum rounded on its own (no
fused multiply-add), and one rounding at the end to the dtype of x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from teleport_kernels.mixing import Mixing

BLOCK = 256
"""Columns whose squared distances are summed first: part of the definition of `consensus`."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def gossip(x: Tensor, mixing: Mixing) -> Tensor:
    """(k, P) -> (k, P): row i becomes sum_j W[i, j] x_j, in the accumulation dtype."""
    x = x.to(accumulation_dtype(x.dtype))
    out: Tensor | None = None
    for slot in mixing.slots(x.dtype):
        term = x[slot.columns] * slot.weights
        if slot.rows is None:
            out = term if out is None else out.add_(term)
        else:
            if out is None:  # a row may have no entry at all: it becomes zero
                out = torch.zeros_like(x)
                out[slot.rows] = term
            else:
                out[slot.rows] += term
    return torch.zeros_like(x) if out is None else out


def descend(
    x: Tensor,
    grad: Tensor,
    lr: float | Tensor,
    momentum: Tensor | None,
    beta: float,
    nesterov: bool,
    weight_decay: float,
) -> tuple[Tensor, Tensor | None]:
    """The local step: (y, new momentum) in the accumulation dtype. lr: a number, (k, 1) or ().

    d = grad + weight_decay x;  m <- beta m + d;  u = d + beta m (Nesterov) or m, or d without
    momentum;  y = x - lr u.
    """
    dtype = accumulation_dtype(x.dtype)
    x, d = x.to(dtype), grad.to(dtype)
    if weight_decay:
        d = d + weight_decay * x
    m = None
    if momentum is not None:
        m = beta * momentum.to(dtype) + d
        d = d + beta * m if nesterov else m
    return x - lr * d, m


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
    """`ops.sgd_mix`, or `ops.teleport_mix` without grad, into out; lr: (k,)."""
    y = x if source is None else x[source]
    if grad is not None and lr is not None:
        y, m = descend(y, grad, lr.unsqueeze(1), momentum, beta, nesterov, weight_decay)
        if momentum is not None and m is not None:
            momentum.copy_(m)
    mixed = gossip(y, mixing)
    if target is None:
        out.copy_(mixed)
    else:
        out[target] = mixed.to(out.dtype)


def consensus(x: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, P) -> (g, P) mean row and (g,) sum of squared distances to it, for the groups of rows
    starts[i] .. starts[i + 1] - 1; starts: (g + 1,) int64, no group empty.

    Rows are added in ascending order; columns by `sum_columns`.
    """
    x = x.to(accumulation_dtype(x.dtype))
    sizes = starts.diff()
    places = [(sizes > p).nonzero().squeeze(1) for p in range(int(sizes.max()))]
    mean = x[starts[:-1]]
    for p, has in enumerate(places[1:], 1):
        mean[has] += x[starts[has] + p]
    mean /= sizes.unsqueeze(1)
    squares = torch.zeros_like(mean)
    for p, has in enumerate(places):
        squares[has] += (x[starts[has] + p] - mean[has]).square()
    return mean, sum_columns(squares)


def sum_columns(x: Tensor) -> Tensor:
    """(g, P) -> (g,): blocks of BLOCK columns by halving, then the sums of the blocks likewise."""
    if not x.shape[1]:
        return x.sum(1)
    blocks = -(-x.shape[1] // BLOCK)
    padded = torch.nn.functional.pad(x, (0, blocks * BLOCK - x.shape[1]))
    return _halved(_halved(padded.view(-1, blocks, BLOCK)))


def _halved(x: Tensor) -> Tensor:
    """Sum over the last dimension: add its second half to its first, again and again."""
    while (n := x.shape[-1]) > 1:
        half = (n + 1) // 2
        x = torch.cat((x[..., : n - half] + x[..., half:], x[..., n - half : half]), -1)
    return x.squeeze(-1)

"""The definition of every op in plain torch: slow on purpose nowhere, clever nowhere.

Out of place, on any device, for float64, float32, bfloat16 and float16. Accumulation is in float32
(float64 for float64), neighbours in ascending column order, every product and every sum rounded on
its own (no fused multiply-add), and one rounding at the end to the dtype of x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from teleport_kernels.mixing import Mixing


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
    """The local step: (y, new momentum) in the accumulation dtype.

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


def consensus(x: Tensor, groups: Tensor, n_groups: int) -> tuple[Tensor, Tensor]:
    """(rows, P), (rows,) -> (n_groups, P) mean row, (n_groups,) sum of squared distances to it."""
    x = x.to(accumulation_dtype(x.dtype))
    sizes = torch.bincount(groups, minlength=n_groups).to(x.dtype).unsqueeze(1)
    mean = torch.zeros(n_groups, x.shape[1], dtype=x.dtype, device=x.device)
    mean.index_add_(0, groups, x).div_(sizes)
    distance = (x - mean[groups]).square_().sum(1)
    return mean, torch.zeros(n_groups, dtype=x.dtype, device=x.device).index_add_(
        0, groups, distance
    )

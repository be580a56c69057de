"""How fast a sequence of mixing matrices forgets differences between nodes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def spectral_gap(matrices: Sequence[Tensor]) -> float:
    """p = 1 - ||W^(m-1) ... W^(0) - J||_2^(2/m), J = 11^T/n: one round shrinks the squared
    distance to consensus by 1 - p, on average over the period m.

    matrices: m doubly stochastic (n, n) tensors. p = 1 means exact consensus after one period,
    p = 0 none at all; n = 1 has p = 1. For one matrix this is the p of Koloskova et al. 2020
    (their Assumption 4 with tau = 1).
    """
    n = matrices[0].shape[0]
    product = torch.eye(n, dtype=torch.float64)
    for W in matrices:
        product = W.double() @ product
    norm = float(torch.linalg.matrix_norm(product - 1 / n, ord=2)) if n > 1 else 0.0
    # The norm of an exact zero comes out as rounding, about n * 1e-16.
    rate: float = (norm if norm > 1e-12 else 0.0) ** (2 / len(matrices))
    return 1 - rate

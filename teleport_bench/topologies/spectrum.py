"""How fast a sequence of mixing matrices forgets differences between nodes."""

from __future__ import annotations

import math
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
    n, exponent = matrices[0].shape[0], 0
    product = torch.eye(n, dtype=torch.float64)
    for W in matrices:
        product = (W.double() - 1 / n) @ product
        # Scaled back to about 1 in every round, what is left tells an exact zero, which comes out
        # as rounding, about n * 1e-16, from the small product of a long period.
        size = float(torch.linalg.matrix_norm(product))
        if size <= 1e-12:
            return 1.0
        power = math.frexp(size)[1]
        product, exponent = product * 2.0**-power, exponent + power
    norm = float(torch.linalg.matrix_norm(product, ord=2))
    return 1 - float(norm ** (2 / len(matrices)) * 2 ** (2 * exponent / len(matrices)))

"""How fast a sequence of mixing matrices forgets differences between nodes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Consensus(NamedTuple):
    """How fast a schedule agrees, as rates take it (Koloskova et al. 2020, Assumption 4): over the
    tau rounds from s on, a multiple of tau, E ||W^(s+tau-1) .. W^(s) - J||_2^2 <= 1 - p.
    """

    tau: int
    p: float

    @property
    def rate(self) -> float:
        """p / tau, all that rates depend on: tau rounds for a gap of p."""
        return self.p / self.tau


def best_window(period: int, windows: Callable[[int], Sequence[Callable[[], float]]]) -> Consensus:
    """The tau with the largest p / tau among the divisors of the period; ties to the largest tau.

    windows: of a tau, one function a window of tau rounds in the period, which gives its p.
    """
    best = Consensus(period, max(0.0, windows(period)[0]()))
    for tau in (d for d in range(period // 2, 0, -1) if period % d == 0):
        p = 1.0
        for window in windows(tau):
            p = min(p, window())
            if p / tau <= best.rate * (1 + 1e-9):  # rounding is no reason to split a period
                break
        else:
            best = Consensus(tau, p)
    return best


def consensus(matrices: Sequence[Tensor]) -> Consensus:
    """That of a period of doubly stochastic (n, n) matrices, by `best_window`; and of 2, 4, ..
    periods, up to n of them, where a product is not normal and may need these to contract at all.
    """
    n, period = matrices[0].shape[0], len(matrices)
    J = torch.full((n, n), 1 / n, dtype=torch.float64)

    def gap(product: Tensor) -> float:
        if float(torch.linalg.matrix_norm(product - J)) <= 1e-12 * n:  # exact, and n = 1
            return 1.0
        p = 1 - float(torch.linalg.matrix_norm(product - J, ord=2)) ** 2
        return p if p > 1e-15 * n else 0.0

    def product(start: int, tau: int) -> Tensor:
        return functools.reduce(lambda P, W: W.double() @ P, matrices[start : start + tau], eye)

    def windows(tau: int) -> list[Callable[[], float]]:
        starts = range(0, period, tau)
        return [functools.partial(lambda s: gap(product(s, tau)), s) for s in starts]

    eye = torch.eye(n, dtype=torch.float64)
    best, P, periods = best_window(period, windows), product(0, period), 1
    normal = bool(((P @ P.T - P.T @ P).abs() < 1e-12).all())
    while not normal and periods < n and 1 / (2 * periods * period) > best.rate:
        P, periods = P @ P, 2 * periods
        best = max(best, Consensus(periods * period, gap(P)), key=lambda c: c.rate)
    return best


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

"""Rates of D-SGD and TELEPORTATION, the number of active nodes that is best by them, spectral gaps.

Everything here is derived, and upper bounds on an average of ||grad f||^2 over T rounds up to a
constant factor: D-SGD's after Koloskova et al. 2020, TELEPORTATION's with the heterogeneity as
noise, since holders are drawn afresh. None of it is quoted from Takezawa and Stich 2025.

Symbols: f_i is L-smooth on each of n nodes, sigma2 the variance of a stochastic gradient, zeta2 the
mean of ||grad f_i - grad f||^2 over the nodes, r0 = f(x0) - min f, D = L r0, V = sigma2 + zeta2,
and p_k the spectral gap 1 - ||W - J||_2^2 of the topology on k nodes. Graphs that change from round
to round contract by 1 - p over tau rounds (`topologies.spectrum.Consensus`); one that is the same
in every round has tau = 1.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Annotated, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import AfterValidator, Field

from teleport_bench.errors import ComponentError, UserError
from teleport_bench.registry import TOPOLOGIES, Choice, StrictModel
from teleport_bench.topologies import Topology, topology
from teleport_bench.topologies.spectrum import Consensus, best_window
from teleport_kernels import Mixing

Floats = NDArray[np.float64]
T = TypeVar("T")


def _ascending(values: list[int]) -> list[int]:
    return sorted(set(values))


# of nodes, every graph of these is built; of rounds, floats are taken
Listed = Annotated[list[T], Field(min_length=1, max_length=100), AfterValidator(_ascending)]
Sizes = Listed[Annotated[int, Field(gt=0, le=2**20)]]
Rounds = Listed[Annotated[int, Field(gt=0, le=10**18)]]


def _moderate(value: float) -> float:
    if value > 1e50:  # products of several are floats
        raise UserError(f"expected at most 1e50, got {value}")
    return value


Positive = Annotated[float, Field(gt=0), AfterValidator(_moderate)]
NonNegative = Annotated[float, Field(ge=0), AfterValidator(_moderate)]


class Constants(StrictModel):
    """Of the problem: L, r0 = f(x0) - min f, gradient noise sigma2, heterogeneity zeta2."""

    L: Positive = 1.0
    r0: Positive = 1.0
    sigma2: NonNegative = 1.0
    zeta2: NonNegative = 1.0


ONES = Constants()


class TheorySpec(Constants):
    """What the tables and the figure of the theory are about."""

    nodes: Sizes = [8, 32, 128]
    rounds: Rounds = [100, 10_000, 1_000_000]
    topologies: Annotated[list[TOPOLOGIES.field()], Field(min_length=1, max_length=100)] = [  # type: ignore[valid-type]
        "ring",
        "torus",
        "exponential",
        "complete",
    ]


@np.errstate(divide="ignore")  # no bound where p = 0
def dsgd_bound(
    p: ArrayLike, n: ArrayLike, T: ArrayLike, c: Constants = ONES, tau: ArrayLike = 1
) -> Floats:
    """D-SGD after T rounds on n nodes that contract by 1 - p_n over tau rounds, p = p_n; arguments
    are broadcast:

    sqrt(D sigma2 / (n T)) + (D^2 (tau sigma2 / p + tau^2 zeta2 / p^2) / T^2)^(1/3) + tau D / (p T).

    Koloskova et al. 2020, Theorem 2, non-convex: T = O(sigma2 / (n e^2) + (zeta tau + sigma
    sqrt(p tau)) / (p e^(3/2)) + tau / (p e)) L r0 rounds for an error e, solved for e. p and tau
    enter as p / tau alone.
    """
    p, n, T, tau = (np.asarray(v, dtype=float) for v in (p, n, T, tau))
    D, rate = c.L * c.r0, p / tau
    agreement = np.cbrt(D**2 * (rate * c.sigma2 + c.zeta2) / (rate * T) ** 2)
    bound: Floats = np.sqrt(D * c.sigma2 / (n * T)) + agreement + D / (rate * T)
    return bound


@np.errstate(divide="ignore")
def teleportation_bound(
    p: ArrayLike,
    k: ArrayLike,
    n: float,
    T: ArrayLike,
    c: Constants = ONES,
    tau: ArrayLike = 1,
) -> Floats:
    """TELEPORTATION after T rounds, k of n nodes active, which contract by 1 - p_k over tau rounds,
    p = p_k; p, k, T and tau are broadcast:

    sqrt(D (sigma2 + (1-(k-1)/(n-1)) zeta2) / (k T)) + (D^2 V tau / (p T^2))^(1/3) + D tau / (p T).

    What a round's k nodes differ from the mean vanishes at k = n. n may be infinite. Derived: the
    terms of D-SGD's with the heterogeneity as noise, so that it parts the nodes with tau / p, where
    a heterogeneity that stays at its nodes does with tau^2 / p^2.
    """
    p, k, T, tau = (np.asarray(v, dtype=float) for v in (p, k, T, tau))
    D, V, rate = c.L * c.r0, c.sigma2 + c.zeta2, p / tau
    left_out = 1.0 if math.isinf(n) else (n - k) / max(n - 1, 1)
    sampling = np.sqrt(D * (c.sigma2 + left_out * c.zeta2) / (k * T))
    bound: Floats = sampling + np.cbrt(D**2 * V / (rate * T**2)) + D / (rate * T)
    return bound


def candidates(n: int) -> list[int]:
    """1, 2, 4, .. up to n: the numbers of active nodes among which a search chooses."""
    return [2**j for j in range(n.bit_length())]


class Best(NamedTuple):
    """The number of active nodes with the smallest bound, and that bound."""

    k: int
    bound: float


def best_k(
    graph: str | Choice,
    n: int,
    T: float,
    c: Constants = ONES,
    among: Iterable[int] | None = None,
) -> Best:
    """The k of `among` (default: the candidates of a search) with the smallest bound after T rounds
    on n nodes, by the spectral gaps of the real graphs; ties to the smaller. A k for which there is
    no such graph is left out.
    """
    found = consensus(graph, candidates(n) if among is None else among)
    if not found:
        raise UserError(f"topology {graph} has no graph on any of the numbers of active nodes")
    k = np.array(sorted(found))
    p, tau = [[getattr(found[int(i)], name) for i in k] for name in ("p", "tau")]
    bounds = teleportation_bound(p, k, n, T, c, tau)
    best = int(bounds.argmin())
    return Best(int(k[best]), float(bounds[best]))


def consensus(graph: str | Choice, sizes: Iterable[int]) -> dict[int, Consensus]:
    """tau and p by number of nodes, of those sizes for which there is such a graph."""
    choice = json.dumps(TOPOLOGIES.resolve(graph), sort_keys=True)
    every = {size: _consensus(choice, size) for size in sizes}
    return {size: one for size, one in every.items() if one is not None}


def spectral_gaps(graph: str | Choice, sizes: Iterable[int]) -> dict[int, float]:
    """p / tau by number of nodes, of those sizes for which there is such a graph: p of a graph that
    stays, and what there is of p for each of the tau rounds of one that changes."""
    return {size: one.rate for size, one in consensus(graph, sizes).items()}


@functools.lru_cache(maxsize=4096)
def _consensus(choice: str, n: int) -> Consensus | None:
    try:
        graph = topology(json.loads(choice), n)
    except ComponentError:  # there is a graph, and it is wrong
        raise
    except UserError:
        return None
    quick = consensus_by_fourier(graph.mixings) if isinstance(graph, Topology) else None
    return quick or graph.consensus()


def consensus_by_fourier(mixings: Iterable[Mixing]) -> Consensus | None:
    """tau and p of matrices that are invariant under the shifts of one a x b grid that wraps around
    (ring, torus, exponential, complete), in O(n log n); None for any other.

    Such matrices share their eigenvectors, the characters of Z_a x Z_b, and are normal: the norm of
    a product is the largest product of moduli of eigenvalues.
    """
    mixings = list(mixings)
    n, period = mixings[0].n_rows, len(mixings)
    a = next(d for d in range(math.isqrt(n), 0, -1) if n % d == 0)
    for shape in dict.fromkeys([(1, n), (a, n // a)]):
        kernels = [_kernel(mixing, shape) for mixing in mixings]
        moduli = [
            np.abs(np.fft.fft2(kernel)).ravel()[1:] for kernel in kernels if kernel is not None
        ]
        if len(moduli) < period:
            continue
        with np.errstate(divide="ignore"):
            logs = np.log(np.where(np.greater(moduli, 1e-12), moduli, 0.0))

        def windows(tau: int, logs: Floats = logs) -> list[Callable[[], float]]:
            together = logs.reshape(period // tau, tau, n - 1).sum(1).max(1, initial=-np.inf)
            # 0 where nothing contracts, which rounding would make a little more or less
            gaps = np.maximum(-np.expm1(2 * together), 0.0)
            gaps[gaps < 1e-15 * n] = 0.0
            return [functools.partial(float, gap) for gap in gaps]

        return best_window(period, windows)
    return None


def _kernel(mixing: Mixing, shape: tuple[int, int]) -> Floats | None:
    """(a, b): W[i, j] by the difference j - i on the grid; None where it depends on more."""
    rows, cols, weights = mixing.rows.numpy(), mixing.indices.numpy(), mixing.weights.numpy()
    grid = zip(np.unravel_index(cols, shape), np.unravel_index(rows, shape), shape, strict=True)
    shift = np.ravel_multi_index(tuple((c - r) % size for c, r, size in grid), shape)
    n = mixing.n_rows
    kernel = np.zeros(n)
    kernel[shift] = weights
    complete = np.isin(np.bincount(shift, minlength=n), (0, n)).all()
    if not complete or np.abs(kernel[shift] - weights).max() > 1e-12:
        return None
    return kernel.reshape(shape)


class Rate(NamedTuple):
    """How a topology's gap goes with k, and what follows for the best k and the bound at it."""

    gap: Callable[[Floats], Floats]
    """p_k for large k, of a graph that changes p_k / tau_k."""
    best_k: Fraction | None
    """Exponent of T in the best k, up to logarithms; None where all n nodes are best."""
    bound: Fraction
    """Exponent of T in the bound at the best k while that is below n, up to logarithms."""


RATES = {
    "ring": Rate(lambda k: 8 * np.pi**2 / (3 * k**2), Fraction(1, 7), Fraction(-4, 7)),
    "torus": Rate(lambda k: 8 * np.pi**2 / (5 * k), Fraction(1, 5), Fraction(-3, 5)),
    "exponential": Rate(
        lambda k: 4 * np.log2(k) / (1 + np.log2(k)) ** 2, Fraction(1, 3), Fraction(-2, 3)
    ),
    "base": Rate(lambda k: 1 / np.log2(k), Fraction(1, 3), Fraction(-2, 3)),
    "complete": Rate(np.ones_like, None, Fraction(-2, 3)),
}
"""Topologies whose gap is known in closed form. The base graph's: tau_k = log2 k rounds to exact
consensus for degree 1 and k a power of two, among which a search chooses; at most 2 log_(d+1) k + 2
for degree d and any k (Takezawa et al. 2023)."""


class Exponents(NamedTuple):
    best_k: float | None
    bound: float


DECADES = 30.0, 60.0
"""Of T, in which exponents are measured: so far out since logarithms die slowly."""


def exponents(name: str, decades: tuple[float, float] = DECADES) -> Exponents:
    """Exponents of T in the best k and in the bound at it, by minimising the bound over real k.

    Of infinitely many nodes, with the gap of large k and all constants 1: slopes of a line through
    10^decades[0] <= T <= 10^decades[1] on logarithmic axes, by least squares. Where p = 1 the
    smallest bound is in the limit of large k.
    """
    T = np.logspace(*decades, 31)
    k = np.geomspace(2, 10.0 ** (decades[1] / 2), 100_001)
    p = np.minimum(RATES[name].gap(k), 1.0)
    found = [teleportation_bound(p, k, math.inf, t) for t in T]
    best = np.array([bound.argmin() for bound in found])
    least = np.array([bound[i] for bound, i in zip(found, best, strict=True)])

    def slope(values: Floats) -> float:
        return float(np.polyfit(np.log(T), np.log(values), 1)[0])

    at_end = (best == len(k) - 1).all()
    return Exponents(None if at_end else slope(k[best]), slope(least))

"""EquiTopo: random graphs whose consensus rate does not depend on n (Song et al. 2022)."""

from __future__ import annotations

import math

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt

from teleport_bench.errors import UserError
from teleport_bench.registry import TOPOLOGIES
from teleport_bench.topologies.schedule import MOST_PERIOD, Topology, check_size, static
from teleport_kernels import Mixing


@TOPOLOGIES.register("equi_static")
def equi_static(
    n_nodes: int, *, degree: PositiveInt | None = None, seed: NonNegativeInt = 0
) -> Topology:
    """Directed, random: node i hears i + a for `degree` shifts a, by default ceil(log2 n) of them.

    W = mean over the shifts a of I/n + (n-1)/n P_a, P_a the permutation i <- i + a mod n. Shifts
    are uniform in 1..n-1 and may coincide, their weights then add up; all are drawn again until the
    graph is connected. W is doubly stochastic, E[W] = J, and where nothing is drawn again

        E ||W x - J x||^2 = (n-2) / (n M) ||x - J x||^2 < 1/M ||x - J x||^2,  M = degree.

    Source: D-EquiStatic, Song et al. 2022; the equality is derived from E[P_a] = (n J - I)/(n-1).
    """
    n, random = n_nodes, np.random.default_rng(seed)
    if n == 1:
        return static(Mixing.identity(1))
    check_size(n, degree or 0)
    shifts = np.zeros(degree or (n - 1).bit_length(), dtype=np.int64)
    while math.gcd(n, *shifts.tolist()) > 1:
        shifts = random.integers(1, n, size=len(shifts))
    offset, times = np.unique(np.append(0, shifts), return_counts=True)
    check_size(n, n * len(offset))
    weight = times * (n - 1) / (n * len(shifts))
    weight[0] = 1 / n
    row = np.arange(n).repeat(len(offset))
    col = (np.arange(n)[:, None] + offset) % n
    every = (torch.from_numpy(part) for part in (row, col.ravel(), np.tile(weight, n)))
    return static(Mixing.from_edges(n, *every))


@TOPOLOGIES.register("equi_dyn")
def equi_dyn(n_nodes: int, *, period: PositiveInt = 64, seed: NonNegativeInt = 0) -> Topology:
    """One random peer a round, undirected; `period` matchings are drawn and then come again.

    In a round W = I - w L, L the Laplacian of a matching: W is symmetric and doubly stochastic for
    0 <= w <= 1. The matching is greedy: from a uniform node s on, every node i that is free takes
    i + a, if that is free too, for a shift a uniform in 1..n-1. It has at least n/3 edges, so that

        E ||W x - J x||^2 <= (1 - 4/3 w (1-w) n/(n-1)) ||x - J x||^2 <= 2/3 ||x - J x||^2

    with the weight w = (n-1)/(2n) of Song et al. 2022 (OU-EquiDyn with eta = 1/2). The expectation
    is over the draw of a round; a period of few rounds may not connect all nodes.
    """
    if n_nodes == 1:
        return static(Mixing.identity(1))
    check_size(n_nodes, 2 * n_nodes * period)
    if period > MOST_PERIOD:
        raise UserError(f"period = {period:,}, expected at most {MOST_PERIOD:,} rounds")
    random = np.random.default_rng(seed)
    draws = random.integers([1, 0], n_nodes, size=(period, 2))
    return Topology([_matching(n_nodes, int(a), int(s)) for a, s in draws])


def _matching(n: int, shift: int, start: int) -> Mixing:
    """The greedy matching of nodes `shift` apart, from node start on, with EquiTopo's weights.

    Shifts a and n - a link the same pairs and only begin elsewhere, and the start is uniform: the
    shorter one is taken. Then even blocks of that many nodes take the odd ones after them.
    """
    shift = min(shift, n - shift)
    place = torch.arange(n - shift)
    first = (start + place[place // shift % 2 == 0]) % n
    second = (first + shift) % n
    pairs = torch.full((len(first),), (n - 1) / (2 * n), dtype=torch.float64)
    home = torch.ones(n, dtype=torch.float64)
    home[torch.cat([first, second])] = (n + 1) / (2 * n)
    every = torch.arange(n)
    return Mixing.from_edges(
        n,
        torch.cat([every, first, second]),
        torch.cat([every, second, first]),
        torch.cat([home, pairs, pairs]),
    )

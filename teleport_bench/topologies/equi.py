"""EquiTopo: random graphs whose consensus rate does not depend on n (Song et al. 2022)."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from teleport_bench.errors import UserError
from teleport_bench.registry import TOPOLOGIES
from teleport_bench.seeds import BLOCK, generator
from teleport_bench.topologies.drawn import AnyTopology, Block, RandomTopology, packed
from teleport_bench.topologies.schedule import MOST_PERIOD, Topology, check_size, static
from teleport_kernels import Mixing


@TOPOLOGIES.register("equi_static")
def equi_static(
    n_nodes: int, *, degree: PositiveInt | None = None, seed: NonNegativeInt | None = None
) -> Topology:
    """Directed, random: node i hears i + a for `degree` shifts a, by default ceil(log2 n) of them.

    W = mean over the shifts a of I/n + (n-1)/n P_a, P_a the permutation i <- i + a mod n. Shifts
    are uniform in 1..n-1 and may coincide, their weights then add up; all are drawn again until the
    graph is connected. W is doubly stochastic, E[W] = J, and where nothing is drawn again

        E ||W x - J x||^2 = (n-2) / (n M) ||x - J x||^2 < 1/M ||x - J x||^2,  M = degree.

    seed: None is that of the run. Source: D-EquiStatic, Song et al. 2022; the equality is derived
    from E[P_a] = (n J - I)/(n-1).
    """
    n, random = n_nodes, np.random.default_rng(seed or 0)
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
def equi_dyn(
    n_nodes: int, *, period: PositiveInt | None = None, seed: NonNegativeInt | None = None
) -> AnyTopology:
    """One random peer a round, undirected; with a `period`, so many matchings that come again.

    In a round W = I - w L, L the Laplacian of a matching: W is symmetric and doubly stochastic for
    0 <= w <= 1. The matching is greedy: from a uniform node s on, every node i that is free takes
    i + a, if that is free too, for a shift a uniform in 1..n-1. It has at least n/3 edges, so that

        E ||W x - J x||^2 <= (1 - 4/3 w (1-w) n/(n-1)) ||x - J x||^2 <= 2/3 ||x - J x||^2

    with the weight w = (n-1)/(2n) of Song et al. 2022 (OU-EquiDyn with eta = 1/2). The expectation
    is over the draw of a round; a period of few rounds may not connect all nodes. seed: None is
    that of the run.
    """
    if n_nodes == 1:
        return static(Mixing.identity(1))
    check_size(n_nodes, 2 * n_nodes * (period or BLOCK))
    if period is None:
        draw = functools.partial(_matchings, n_nodes, seed or 0)
        return RandomTopology(n_nodes, 2 * n_nodes, draw, functools.partial(_moment, n_nodes))
    if period > MOST_PERIOD:
        raise UserError(f"period = {period:,}, expected at most {MOST_PERIOD:,} rounds")
    random = np.random.default_rng(seed or 0)
    draws = random.integers([1, 0], n_nodes, size=(period, 2))
    return Topology([_matching(n_nodes, int(a), int(s)) for a, s in draws])


def _matchings(n: int, seed: int, block: int) -> Block:
    """Those of a block of rounds."""
    random = generator(seed, "equi_dyn", nodes=n, block=block)
    draws = random.integers([1, 0], n, size=(BLOCK, 2))
    partner = np.tile(np.arange(n), (BLOCK, 1))
    for i, (shift, start) in enumerate(draws.tolist()):
        first, second = _pairs(n, shift, start)
        partner[i, first], partner[i, second] = second, first
    every = np.broadcast_to(np.arange(n), partner.shape)
    alone = partner == every
    columns = np.sort(np.stack([every, partner], 2), axis=2)
    weights = np.where(columns == every[:, :, None], (n + 1) / (2 * n), (n - 1) / (2 * n))
    weights[alone] = 1
    keep = np.stack([np.ones_like(alone), ~alone], 2)
    flat = (BLOCK, 2 * n)
    return packed(keep.reshape(flat), 2 - alone, columns.reshape(flat), weights.reshape(flat))


def _moment(n: int) -> Tensor:
    """E[W^T W] = I - 2 w (1-w) E[L]: two nodes with a distance of d meet with the probability
    2/(n-1) edges(d)/n, since the start of a matching is uniform."""
    distance = torch.arange(n)
    edges = torch.tensor([0, *(len(_pairs(n, d, 0)[0]) for d in range(1, n))], dtype=torch.float64)
    meet = 2 * edges / (n * (n - 1))
    square = (n - 1) * (n + 1) / (2 * n * n)  # 2 w (1 - w)
    kernel = square * meet
    kernel[0] = 1 - kernel.sum()
    return kernel[(distance[:, None] - distance) % n]


def _matching(n: int, shift: int, start: int) -> Mixing:
    """The matching of these pairs, with EquiTopo's weights."""
    first, second = map(torch.from_numpy, _pairs(n, shift, start))
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


def _pairs(n: int, shift: int, start: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The greedy matching of nodes `shift` apart, from node start on: both ends of each edge.

    Shifts a and n - a link the same pairs and only begin elsewhere, and the start is uniform: the
    shorter one is taken. Then even blocks of that many nodes take the odd ones after them.
    """
    shift = min(shift, n - shift)
    place = np.arange(n - shift)
    first = (start + place[place // shift % 2 == 0]) % n
    return first, (first + shift) % n

"""What every topology is: a periodic sequence of mixing matrices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from teleport_bench.errors import UserError
from teleport_bench.topologies.spectrum import Consensus, consensus, spectral_gap
from teleport_kernels import Mixing


@dataclass(frozen=True, eq=False)
class Topology:
    """A periodic schedule of doubly stochastic mixing matrices W^(0) .. W^(period - 1) on n nodes.

    Row i receives: `x_i <- sum_j W[i, j] x_j`. A static graph has period 1.
    """

    mixings: Sequence[Mixing]

    @property
    def n_nodes(self) -> int:
        return self.mixings[0].n_rows

    @property
    def period(self) -> int:
        """Rounds after which the sequence of graphs repeats."""
        return len(self.mixings)

    def mixing(self, t: int) -> Mixing:
        """W^(t mod period) as a sparse matrix."""
        return self.mixings[t % self.period]

    def matrix(self, t: int = 0) -> Tensor:
        """W^(t mod period) as an (n, n) float64 tensor."""
        check_size(self.n_nodes, self.n_nodes**2)
        return self.mixing(t).dense()

    def spectral_gap(self) -> float:
        """p = 1 - ||W - J||_2^2 a round, J = 11^T/n; see `spectrum.spectral_gap`."""
        return spectral_gap([self.matrix(t) for t in range(self.period)])

    def consensus(self) -> Consensus:
        """tau and p of the rates, of the best window of tau rounds; see `spectrum.consensus`."""
        return consensus([self.matrix(t) for t in range(self.period)])


MOST_PERIOD = 2**16
"""Rounds that are drawn, each with a matrix of its own."""

Period = Annotated[int, Field(gt=0, le=MOST_PERIOD)]

MOST_ENTRIES = 2**27
"""Of a mixing matrix, of 24 bytes each: what is larger is a mistake, and would take all memory."""


def check_size(n: int, entries: float) -> None:
    """UserError, before anything is made of them, for more entries than a graph may have."""
    if entries > MOST_ENTRIES:
        raise UserError(
            f"a graph on {n:,} nodes with {entries:.2g} entries in its mixing matrix, expected at "
            f"most {MOST_ENTRIES:,}: take fewer nodes, fewer active ones, or a sparser graph"
        )


def static(mixing: Mixing) -> Topology:
    """A graph that is the same in every round."""
    return Topology((mixing,))


def metropolis_hastings(n: int, edges: Iterable[tuple[int, int]]) -> Mixing:
    """Metropolis-Hastings weights on an undirected graph: 1 / (1 + max(deg i, deg j)) on an edge.

    The rest of each row stays at home, so W is symmetric and doubly stochastic. An edge may be
    given twice or in both directions; loops are ignored. Source: Xiao, Boyd and Kim 2007.
    """
    undirected = sorted({(min(i, j), max(i, j)) for i, j in edges if i != j})
    pairs = torch.tensor(undirected, dtype=torch.int64).reshape(-1, 2)
    i, j = torch.cat([pairs, pairs.flip(1)]).T
    degree = torch.bincount(i, minlength=n)
    weight = 1.0 / (1 + torch.maximum(degree[i], degree[j])).double()
    home = 1 - torch.zeros(n, dtype=torch.float64).index_add_(0, i, weight)
    home[home.abs() < 1e-12] = 0.0  # rounding of a full row is no self-loop
    every, keeps = torch.arange(n), home != 0
    return Mixing.from_edges(
        n,
        torch.cat([i, every[keeps]]),
        torch.cat([j, every[keeps]]),
        torch.cat([weight, home[keeps]]),
    )


def circulant(n: int, offsets: Sequence[int]) -> Mixing:
    """Row i receives equal shares of itself and of the nodes i + offset mod n, each once."""
    check_size(n, n * (1 + min(len(offsets), n - 1)))
    distinct = torch.tensor(sorted({0, *(offset % n for offset in offsets)}))
    row = torch.arange(n).repeat_interleave(len(distinct))
    col = (row.reshape(n, -1) + distinct).remainder(n).flatten()
    weight = torch.full((row.numel(),), 1 / len(distinct), dtype=torch.float64)
    return Mixing.from_edges(n, row, col, weight)

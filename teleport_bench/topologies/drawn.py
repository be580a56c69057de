"""Graphs that are drawn afresh in every round, a block of rounds at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teleport_bench.seeds import BLOCK
from teleport_bench.topologies.schedule import Topology, check_size
from teleport_bench.topologies.spectrum import Consensus
from teleport_kernels import Mixing

Ints = NDArray[np.int64]
Floats = NDArray[np.floating]

SAMPLED = 16
"""Blocks over which E[W^T W] is averaged where it is not known."""


class Block(NamedTuple):
    """The matrices of BLOCK rounds, a row of each array a round, as in `Mixing`.

    indptr: (BLOCK, n + 1); indices, weights: (BLOCK, most), of which a round has indptr[i, -1].
    """

    indptr: Ints
    indices: Ints
    weights: Floats

    @property
    def there(self) -> NDArray[np.bool_]:
        """(BLOCK, most): what is an entry, and no room for more of them in another round."""
        there: NDArray[np.bool_] = np.arange(self.indices.shape[1]) < self.indptr[:, -1:]
        return there

    @property
    def rows(self) -> Ints:
        """(BLOCK, most): the row of each entry; n where there is none."""
        rounds, width = len(self.indptr), self.indices.shape[1] + 1
        ends = np.arange(rounds)[:, None] * width + self.indptr[:, 1:]
        ended = np.bincount(ends.ravel(), minlength=rounds * width).reshape(rounds, width)
        return ended.cumsum(1)[:, :-1]

    def mixing(self, i: int) -> Mixing:
        """The matrix of one of its rounds."""
        size = int(self.indptr[i, -1])
        parts = self.indptr[i], self.indices[i, :size], self.weights[i, :size]
        return Mixing(*(torch.from_numpy(part.copy()) for part in parts))


def packed(keep: NDArray[np.bool_], degrees: Ints, indices: Ints, weights: Floats) -> Block:
    """The entries to keep, (BLOCK, most) each, in their order; degrees: (BLOCK, n), kept by row."""
    indptr = np.zeros((len(degrees), degrees.shape[1] + 1), dtype=np.int64)
    degrees.cumsum(1, out=indptr[:, 1:])
    if keep.all():
        return Block(indptr, indices, weights)
    sizes = indptr[:, -1:]
    mask = np.arange(int(sizes.max(initial=0))) < sizes
    columns, values = np.zeros(mask.shape, np.int64), np.zeros(mask.shape, weights.dtype)
    columns[mask], values[mask] = indices[keep], weights[keep]
    return Block(indptr, columns, values)


def stacked(mixings: Sequence[Mixing]) -> Block:
    """The matrices of BLOCK rounds as a block."""
    shape = len(mixings), max(W.nnz for W in mixings)
    indices, weights = np.zeros(shape, dtype=np.int64), np.zeros(shape)
    for i, W in enumerate(mixings):
        indices[i, : W.nnz], weights[i, : W.nnz] = W.indices.numpy(), W.weights.numpy()
    return Block(np.stack([W.indptr.numpy() for W in mixings]), indices, weights)


def with_diagonal(block: Block) -> Block:
    """The same matrices, with an entry on the diagonal in every row, of weight 0 where there was
    none."""
    n = block.indptr.shape[1] - 1
    if (block.there & (block.rows == block.indices)).sum() == len(block.indptr) * n:
        return block
    every = torch.arange(n)
    filled = []
    for W in map(block.mixing, range(len(block.indptr))):
        has = torch.zeros(n, dtype=torch.bool)
        has[W.rows[W.rows == W.indices]] = True
        lacks = every[~has]
        parts = (W.rows, lacks), (W.indices, lacks), (W.weights, torch.zeros(len(lacks)).double())
        filled.append(Mixing.from_edges(n, *map(torch.cat, parts)))
    return stacked(filled)


@dataclass(frozen=True, eq=False)
class RandomTopology:
    """Mixing matrices W^(0), W^(1), .. on n nodes that are drawn afresh, without a period.

    draw: of a block of BLOCK rounds, a function of its number: any of them can be drawn without
    those before. most: entries of a round at most. moment: E[W^T W], (n, n), where it is known.
    """

    n_nodes: int
    most: int
    draw: Callable[[int], Block]
    moment: Callable[[], Tensor] | None = None

    period = None
    """They never come again."""

    def mixing(self, t: int) -> Mixing:
        """W^(t) as a sparse matrix."""
        return _kept(self, t // BLOCK).mixing(t % BLOCK)

    def matrix(self, t: int = 0) -> Tensor:
        """W^(t) as an (n, n) float64 tensor."""
        check_size(self.n_nodes, self.n_nodes**2)
        block, i, n = _kept(self, t // BLOCK), t % BLOCK, self.n_nodes
        size = int(block.indptr[i, -1])
        W = np.zeros((n, n))
        row = np.arange(n).repeat(np.diff(block.indptr[i]))
        W[row, block.indices[i, :size]] = block.weights[i, :size]
        return torch.from_numpy(W)

    def spectral_gap(self) -> float:
        """p = 1 - ||E[W^T W] - J||_2: E ||W x - J x||^2 <= (1 - p) ||x - J x||^2 in every round."""
        n = self.n_nodes
        if self.moment:
            moment = self.moment()
        else:
            matrices = [self.matrix(t) for t in range(SAMPLED * BLOCK)]
            moment = sum((W.T @ W for W in matrices), torch.zeros(n, n).double()) / len(matrices)
        return 1 - float(torch.linalg.matrix_norm(moment - 1 / n, ord=2))

    def consensus(self) -> Consensus:
        """tau = 1 and that gap: the rates ask for no more than the expectation of a round."""
        p = self.spectral_gap()
        return Consensus(1, p if p > 1e-12 else 0.0)


AnyTopology = Topology | RandomTopology


@functools.lru_cache(maxsize=8)
def _kept(graphs: RandomTopology, block: int) -> Block:
    return graphs.draw(block)


@functools.lru_cache(maxsize=64)
def _of_period(graphs: Topology, start: int) -> Block:
    return stacked([graphs.mixing(t) for t in range(start, start + BLOCK)])


def block_of(graphs: AnyTopology, block: int) -> Block:
    """The matrices of a block of rounds, whether they are drawn or come again."""
    if isinstance(graphs, RandomTopology):
        return graphs.draw(block)
    return _of_period(graphs, block * BLOCK % graphs.period)


def entries(graphs: AnyTopology) -> int:
    """Entries of a round at most."""
    if isinstance(graphs, RandomTopology):
        return graphs.most
    return max(W.nnz for W in graphs.mixings)


def changed(graphs: AnyTopology, change: Callable[[Block, int], Block]) -> RandomTopology:
    """The graphs after `change(block, its number)`, whose matrices have all of their diagonal."""
    return RandomTopology(
        graphs.n_nodes,
        entries(graphs) + graphs.n_nodes,
        lambda b: change(with_diagonal(block_of(graphs, b)), b),
    )


class Diagonal:
    """The block-diagonal matrices of all runs of a fleet, where some are drawn."""

    def __init__(self, graphs: Sequence[AnyTopology]) -> None:
        self._graphs = graphs
        sizes = [g.n_nodes for g in graphs]
        self._starts = np.cumsum([0, *sizes[:-1]]).tolist()
        self.width = sum(map(entries, graphs))
        """Entries of a round at most."""
        self.n_rows = sum(sizes)

    def block(self, block: int) -> tuple[Ints, Ints, NDArray[np.float32]]:
        """(BLOCK, rows + 1), (BLOCK, width), (BLOCK, width): those of a block of rounds."""
        drawn = {graphs: block_of(graphs, block) for graphs in dict.fromkeys(self._graphs)}
        parts = [drawn[graphs] for graphs in self._graphs]
        indices = [p.indices + start for p, start in zip(parts, self._starts, strict=True)]
        weights = [p.weights.astype(np.float32) for p in drawn.values()]
        light = dict(zip(drawn, weights, strict=True))
        there = {graphs: part.there for graphs, part in drawn.items()}
        whole = packed(
            np.concatenate([there[graphs] for graphs in self._graphs], axis=1),
            np.concatenate([np.diff(p.indptr, axis=1) for p in parts], axis=1),
            np.concatenate(indices, axis=1),
            np.concatenate([light[graphs] for graphs in self._graphs], axis=1),
        )
        shape = BLOCK, self.width
        columns, values = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        columns[:, : whole.indices.shape[1]] = whole.indices
        values[:, : whole.weights.shape[1]] = whole.weights
        return whole.indptr, columns, values

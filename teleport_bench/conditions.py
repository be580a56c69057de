"""What goes wrong in a run at random: messages are lost, and nodes are away.

Both are drawn in advance for a period of rounds, of the run's seed, and then come again: rounds can
be replayed, and runs that differ in nothing but their step size meet the same misfortunes.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from teleport_bench.activation import BLOCK
from teleport_bench.seeds import generator
from teleport_bench.topologies import Topology
from teleport_kernels import Mixing


def period(graphs: Topology, loss: float) -> int:
    """Rounds after which the matrices of `conditioned` come again: periods of the graphs, and at
    least BLOCK where anything is drawn."""
    return graphs.period * math.ceil(BLOCK / graphs.period) if loss else graphs.period


@functools.lru_cache(maxsize=64)
def conditioned(graphs: Topology, loss: float, seed: int) -> Topology:
    """The graphs as a run meets them: what a row does not receive, it keeps of its own.

    loss = q: every message W[i, j], j != i, is lost with probability q, independently. Then
      x_i <- sum_j W'_ij x_j,  W'_ij = 0 and W'_ii = W_ii + sum of W_ij over the j that are lost,
    so that rows sum to 1, and E[W'] = (1 - q) W + q diag(W 1). Columns sum to 1 only in
    expectation: the mean over the rows wanders, and methods whose theory needs a doubly stochastic
    W (gradient tracking, D^2, exact diffusion) agree on another point than the minimum. Of larger q
    the losses contain those of a smaller one. An entry that is lost stays in the matrix, with
    weight 0: it has been sent.

    Alternatives that were not taken: weights divided by what arrived (E[W'] is no longer in W's
    family); both directions of a link lost at once (W' stays doubly stochastic, but a sender would
    have to know); push-sum, which is another algorithm. O(period x entries) time and memory.
    """
    if not loss:
        return graphs
    random = generator(seed, "loss", nodes=graphs.n_nodes)
    rounds = []
    for t in range(period(graphs, loss)):
        W = graphs.mixing(t)
        lost = torch.from_numpy(random.random(W.nnz) < loss)
        rounds.append(_without(W, lost & (W.rows != W.indices)))
    return Topology(rounds)


def _without(W: Mixing, lost: Tensor) -> Mixing:
    """W with the weight of some of its entries, (nnz,) bool, none on the diagonal, kept at home."""
    off = W.rows != W.indices
    home = torch.zeros(W.n_rows, dtype=torch.float64)
    kept = ~off | lost
    home.index_add_(0, W.rows[kept], W.weights[kept])
    own = (home != 0).nonzero().squeeze(1)
    return Mixing.from_edges(
        W.n_rows,
        torch.cat([W.rows[off], own]),
        torch.cat([W.indices[off], own]),
        torch.cat([W.weights.masked_fill(lost, 0.0)[off], home[own]]),
    )

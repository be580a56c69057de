"""Exact diffusion."""

import functools

import torch

from teleport_bench.algorithms.d2 import D2
from teleport_bench.registry import ALGORITHMS, Choice
from teleport_bench.topologies import AnyTopology, RandomTopology, Topology
from teleport_bench.topologies.drawn import Block, changed
from teleport_kernels import Mixing


@ALGORITHMS.register("exact_diffusion")
class ExactDiffusion(D2):
    """Exact diffusion: D^2 with (W + I)/2, which has no eigenvalue that is too small.

      psi = x - eta g                        (adapt)
      x  <- (W + I)/2 (psi + x - psi_old)    (correct and combine), psi_old = x in round 0

    Its rate is that of a graph with half the spectral gap. With exact gradients all nodes converge
    to the minimum whatever their data, for every symmetric W that is the same in every round.
    Source: Yuan, Ying, Zhao and Sayed 2019.
    """

    label = "Exact diffusion"

    def graphs(self, choice: Choice, n_tokens: int, seed: int) -> AnyTopology:
        return _lazy(super().graphs(choice, n_tokens, seed))


@functools.lru_cache(maxsize=256)
def _lazy(topology: AnyTopology) -> AnyTopology:
    """(W^(t) + I)/2 in every round."""
    if isinstance(topology, RandomTopology):
        return changed(topology, _lazy_block)
    every = torch.arange(topology.n_nodes)
    halves = []
    for W in topology.mixings:
        home = W.rows == W.indices
        own = torch.zeros(topology.n_nodes, dtype=torch.float64)
        own[W.rows[home]] = W.weights[home]
        halves.append(
            Mixing.from_edges(
                topology.n_nodes,
                torch.cat([W.rows[~home], every]),
                torch.cat([W.indices[~home], every]),
                torch.cat([W.weights[~home] / 2, (own + 1) / 2]),
            )
        )
    return Topology(halves)


def _lazy_block(block: Block, _: int) -> Block:
    weights = block.weights / 2
    weights[block.there & (block.rows == block.indices)] += 0.5
    return block._replace(weights=weights)

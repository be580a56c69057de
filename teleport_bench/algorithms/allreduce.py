"""All-reduce SGD."""

import numpy as np

from teleport_bench.algorithms.base import Algorithm, Round, State
from teleport_bench.network import Collective, Ints
from teleport_bench.registry import ALGORITHMS
from teleport_bench.topologies import Topology


@ALGORITHMS.register("allreduce")
class AllReduce(Algorithm):
    """All-reduce SGD: x <- x - eta (1/n) sum_i grad F_i(x), the same x at every node.

    Parallel SGD with n batches, the centralized method that decentralized ones are held against.
    With momentum it is that of the mean gradient. Computed as D-SGD on the complete graph, which it
    equals as all nodes start from the same x.

    Counted as a ring all-reduce: n - 1 steps in which every node sends 1/n of the vector to the
    next one and adds up what it gets, and n - 1 in which the sums go round: 2 (n-1)/n of a vector
    a node and round, 2 (n-1) in all, the least that any all-reduce sends. Its time is 2 (n-1) times
    1/n of the slowest link of the ring 0, 1, .., n - 1, in both modes of a network.
    Source: Patarasuk and Yuan 2009.
    """

    label = "All-reduce SGD"
    graph = "complete"
    exact = True
    gossips = False

    def step(self, state: State, r: Round) -> State:
        x = r.fetch(state["x"])
        return state | {"x": r.sgd_mix(x, r.gradient(x), state.get("momentum"))}

    def sent(self, graphs: Topology, holders: Ints, before: Ints, start: int) -> Ints:
        return np.full(len(holders), 2 * (graphs.n_nodes - 1))

    def collective(self, n_nodes: int) -> Collective:
        every = np.arange(n_nodes)
        return Collective(every, (every + 1) % n_nodes, steps=2 * (n_nodes - 1), parts=n_nodes)

"""Federated averaging."""

import numpy as np
from pydantic import PositiveInt

from teleport_bench.algorithms.base import Algorithm, Round, State
from teleport_bench.errors import UserError
from teleport_bench.network import Collective, Ints
from teleport_bench.registry import ALGORITHMS
from teleport_bench.topologies import Topology


@ALGORITHMS.register("fedavg")
class FedAvg(Algorithm):
    """FedAvg: the server's model goes to k sampled nodes, which take E local steps; their mean.

      x_a <- x                           for k = active distinct nodes, drawn afresh each round
      x_a <- x_a - eta grad F_a(x_a)     E = local_steps times, each on a fresh batch
      x   <- (1/k) sum_a x_a

    Shards are of one size, so the mean is not weighted. No momentum: nodes keep nothing between
    rounds. Counted are k vectors up and k down a round, none down in round 0, as all know the
    start; the server is a machine of its own, and bytes a node are means over the n nodes. With
    k = n and one step it is all-reduce SGD; it is also TELEPORTATION on the complete graph.
    Source: McMahan et al. 2017.
    """

    label = "FedAvg"
    partial = True
    activation = "uniform"
    graph = "complete"
    momentum = nesterov = gossips = False

    def __init__(self, *, local_steps: PositiveInt = 4) -> None:
        self.local_steps = local_steps

    def step(self, state: State, r: Round) -> State:
        x, last = r.fetch(state["x"]), self.local_steps - 1
        for e in range(last):
            x = r.sgd_step(x, r.gradient(x, e), None)
        return {"x": r.sgd_mix(x, r.gradient(x, last), None)}

    def sent(self, graphs: Topology, holders: Ints, before: Ints, start: int) -> Ints:
        vectors = np.full(len(holders), 2 * graphs.n_nodes)
        if start == 0:
            vectors[0] = graphs.n_nodes
        return vectors

    def collective(self, n_nodes: int) -> Collective:
        raise UserError(
            "the simulated time of fedavg is not modelled: its server is no node of the network; "
            "compare at equal rounds, gradients or bytes"
        )

"""Federated averaging."""

from teleport_bench.algorithms.base import Algorithm, LocalSteps, Round, State
from teleport_bench.registry import ALGORITHMS


@ALGORITHMS.register("fedavg")
class FedAvg(Algorithm):
    """FedAvg: the server's model goes to k sampled nodes, which take E local steps; their mean.

      x_a <- x                           for k = active distinct nodes, drawn afresh each round
      x_a <- x_a - eta grad F_a(x_a)     E = local_steps times, each on a fresh batch
      x   <- (1/k) sum_a x_a

    Shards are of one size, so the mean is not weighted. No momentum: nodes keep nothing between
    rounds. Counted are k vectors down and k up a round: `network.sent`. With k = n and one step it
    is all-reduce SGD; its iterates are those of TELEPORTATION on the complete graph.
    Source: McMahan et al. 2017.
    """

    label = "FedAvg"
    partial = True
    activation = "uniform"
    graph = "complete"
    communication = "server"
    momentum = nesterov = False

    def __init__(self, *, local_steps: LocalSteps = 4) -> None:
        self.local_steps = local_steps

    def step(self, state: State, r: Round) -> State:
        x, last = r.fetch(state["x"]), self.local_steps - 1
        for e in range(last):
            x = r.sgd_step(x, r.gradient(x, e), None)
        return {"x": r.sgd_mix(x, r.gradient(x, last), None)}

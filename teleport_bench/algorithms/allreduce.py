"""All-reduce SGD."""

from teleport_bench.algorithms.base import Algorithm, Round, State
from teleport_bench.registry import ALGORITHMS


@ALGORITHMS.register("allreduce")
class AllReduce(Algorithm):
    """All-reduce SGD: x <- x - eta (1/n) sum_i grad F_i(x), the same x at every node.

    Parallel SGD with n batches, the centralized method that decentralized ones are held against.
    With momentum it is that of the mean gradient. Computed as D-SGD on the complete graph, which it
    equals as all nodes start from the same x.

    What is counted is a ring all-reduce, 2 (n-1)/n of a vector a node and round: `network.sent`.
    """

    label = "All-reduce SGD"
    graph = "complete"
    communication = "all_reduce"
    exact = True

    def step(self, state: State, r: Round) -> State:
        x = r.fetch(state["x"])
        return state | {"x": r.sgd_mix(x, r.gradient(x), state.get("momentum"))}

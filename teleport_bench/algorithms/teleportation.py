"""TELEPORTATION."""

from typing import Literal

from teleport_bench.algorithms.base import Algorithm, Round, State
from teleport_bench.registry import ALGORITHMS


@ALGORITHMS.register("teleportation")
class Teleportation(Algorithm):
    """TELEPORTATION: k of n nodes a round fetch the last active nodes' parameters, step, gossip.

    In each round k distinct nodes are drawn; the a-th drawn holds token a, and then
      x_a <- the parameters of the node that held token a in the last round   (teleport)
      y_a  = x_a - eta grad F_holder(a)(x_a)                                  (local step)
      x_a <- sum_b W_ab y_b, W on the k tokens                                (gossip)

    With momentum (an assumption, not the paper's) the buffer belongs to the token and travels with
    it. `holders = "fixed"` leaves token a at node a, the same method without teleports.
    Source: Takezawa and Stich 2025, Algorithm 1.
    """

    label = "TELEPORTATION"
    partial = True

    def __init__(self, *, holders: Literal["uniform", "fixed"] = "uniform") -> None:
        self.activation = "uniform" if holders == "uniform" else "all"

    def step(self, state: State, r: Round) -> State:
        x = r.fetch(state["x"])
        g = r.gradient(x)
        return state | {"x": r.sgd_mix(x, g, state.get("momentum"))}

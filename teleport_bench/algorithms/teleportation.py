"""TELEPORTATION."""

from typing import Annotated, Literal

from pydantic import Field

from teleport_bench.algorithms.base import Algorithm, LocalSteps, Round, State
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
    `local_steps` = H (not the paper's either) takes H local steps before the gossip.
    Source: Takezawa and Stich 2025, Algorithm 1.
    """

    label = "TELEPORTATION"
    partial = True

    def __init__(
        self,
        *,
        holders: Literal["uniform", "fixed"] = "uniform",
        # one is left out of a run's settings, whose hash is its name in records
        local_steps: Annotated[LocalSteps, Field(exclude_if=lambda steps: steps == 1)] = 1,
    ) -> None:
        self.activation = "uniform" if holders == "uniform" else "all"
        self.local_steps = local_steps

    def step(self, state: State, r: Round) -> State:
        x, m, last = r.fetch(state["x"]), state.get("momentum"), self.local_steps - 1
        for h in range(last):
            x = r.sgd_step(x, r.gradient(x, h), m)
        return state | {"x": r.sgd_mix(x, r.gradient(x, last), m)}

"""Decentralized SGD."""

from teleport_bench.algorithms.base import Algorithm, Round, State
from teleport_bench.registry import ALGORITHMS


@ALGORITHMS.register("dsgd")
class DSGD(Algorithm):
    """Decentralized SGD, adapt then combine: x_i <- sum_j W_ij (x_j - eta grad F_j(x_j)).

    With momentum (heavy ball or Nesterov) the buffer stays at its node; only parameters are mixed.
    Source: Lian et al. 2017.
    """

    label = "D-SGD"

    def step(self, state: State, r: Round) -> State:
        x = r.fetch(state["x"])  # every node at its own token: nothing moves
        g = r.gradient(x)
        return state | {"x": r.sgd_mix(x, g, state.get("momentum"))}

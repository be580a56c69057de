"""Gradient tracking."""

from teleport_bench.algorithms.base import Algorithm, Round, State
from teleport_bench.registry import ALGORITHMS


@ALGORITHMS.register("gradient_tracking")
class GradientTracking(Algorithm):
    """Gradient tracking: x <- W (x - eta y), y <- W y + g_new - g_old, with y = g in round 0.

    y_i tracks the mean gradient, (1/n) sum y_i = (1/n) sum g_i, so that with exact gradients all
    nodes converge to the minimum whatever their data. Two tensors are mixed and sent. W may be any
    doubly stochastic matrix, directed or not. Weight decay is added to y, not tracked.
    Source: DIGing of Nedic, Olshevsky and Shi 2017, adapt then combine; with noise: Pu and Nedic
    2021.
    """

    label = "Gradient tracking"
    momentum = nesterov = at_nodes = False
    exact = True
    vectors = 2

    def step(self, state: State, r: Round) -> State:
        x = state["x"]
        g = y = r.gradient(x)
        if "mixed_y" in state:
            y = r.combine((1, state["mixed_y"]), (1, g), (-1, state["g"]))
        return {"x": r.sgd_mix(x, y, None), "mixed_y": r.mix(y), "g": g}

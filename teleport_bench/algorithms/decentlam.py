"""DecentLaM."""

import torch
from torch import Tensor

from teleport_bench.algorithms.base import Algorithm, Round, State
from teleport_bench.registry import ALGORITHMS


@ALGORITHMS.register("decentlam")
class DecentLaM(Algorithm):
    """DecentLaM: h = (x - W (x - eta g)) / eta, m <- beta m + h, x <- x - eta m.

    The momentum of D-SGD, beta = `momentum`, over what a gossip moves as well, so that the bias of
    D-SGD is not enlarged by 1/(1-beta)^2. Without momentum it is D-SGD. eta = 0 makes m zero.
    Source: Yuan et al. 2021.
    """

    label = "DecentLaM"
    nesterov = at_nodes = False

    def start(self, x: Tensor, *, momentum: bool) -> State:
        return {"x": x, "m": torch.zeros_like(x)}

    def step(self, state: State, r: Round) -> State:
        x, m = state["x"], state["m"]
        z = r.sgd_mix(x, r.gradient(x), None)
        new = r.combine((1, z), (-r.beta * r.lr, m))  # as x - eta h = z
        return {"x": new, "m": r.combine((1 / r.lr, x), (-1 / r.lr, new))}

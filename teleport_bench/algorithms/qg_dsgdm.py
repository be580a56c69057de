"""D-SGD with quasi-global momentum."""

import torch
from torch import Tensor

from teleport_bench.algorithms.base import Algorithm, Round, State
from teleport_bench.registry import ALGORITHMS


@ALGORITHMS.register("qg_dsgdm")
class QGDSGDm(Algorithm):
    """QG-DSGDm: h = W (x - eta (beta m + g)), m <- beta m + (1-beta) (x - h)/eta, x <- h.

    Momentum, beta = `momentum`, of how the gossiped parameters move and not of local gradients:
    nodes with one-sided data then do not pull each on its own. Without momentum it is D-SGD.
    eta = 0 adds nothing to m. Source: Lin, Karimireddy, Stich and Jaggi 2021.
    """

    label = "QG-DSGDm"
    nesterov = at_nodes = False

    def start(self, x: Tensor, *, momentum: bool) -> State:
        return {"x": x, "m": torch.zeros_like(x)}

    def step(self, state: State, r: Round) -> State:
        x, m = state["x"], state["m"]
        h = r.sgd_mix(x, r.combine((r.beta, m), (1, r.gradient(x))), None)
        rate = (1 - r.beta) / r.lr
        return {"x": h, "m": r.combine((r.beta, m), (rate, x), (-rate, h))}

"""D^2."""

from torch import Tensor

from teleport_bench.algorithms.base import Algorithm, Round, State
from teleport_bench.registry import ALGORITHMS


@ALGORITHMS.register("d2")
class D2(Algorithm):
    """D^2: x <- W (2 x - x_old - eta g + eta_old g_old), after x <- W (x - eta g) in round 0.

    With psi = x - eta g that is x <- W (psi + x - psi_old), and psi_old = x in round 0: two
    iterates are kept, one is mixed. With exact gradients all nodes converge to the minimum whatever
    their data, if W is symmetric, the same in every round, and has no eigenvalue of -1/3 or below:
    rings of an even number of nodes have -1/3 itself. `exact_diffusion` has no such bound.
    Source: Tang et al. 2018.
    """

    label = "D²"
    momentum = nesterov = at_nodes = False
    exact = True

    def start(self, x: Tensor, *, momentum: bool) -> State:
        return {"x": x, "psi": x}

    def step(self, state: State, r: Round) -> State:
        x = state["x"]
        psi = r.sgd_step(x, r.gradient(x), None)
        # what is zero in round 0 comes first: then the sum is psi itself
        return {"x": r.mix(r.combine((1, x), (-1, state["psi"]), (1, psi))), "psi": psi}

"""D^2."""

from torch import Tensor

from teleport_bench.algorithms.base import Algorithm, Round, State
from teleport_bench.registry import ALGORITHMS


@ALGORITHMS.register("d2")
class D2(Algorithm):
    """D^2: x <- W (2 x - x_old - eta g + eta_old g_old), after x <- W (x - eta g) in round 0.

    With z = 2 x - (x_old - eta_old g_old), which is x in round 0, that is x <- W (z - eta g): two
    tensors are kept, one is mixed. With exact gradients all nodes converge to the minimum whatever
    their data, if W is symmetric, the same in every round, and has no eigenvalue of -1/3 or below:
    rings of an even number of nodes have -1/3 itself. `exact_diffusion` has no such bound.
    Roundings of all rounds add up in z: after t rounds the minimum is met to at most about
    t 2^-24 |x*| / (eta mu) in float32. Source: Tang et al. 2018.
    """

    label = "D²"
    momentum = nesterov = at_nodes = False
    exact = True

    def start(self, x: Tensor, *, momentum: bool) -> State:
        return {"x": x, "z": x}

    def step(self, state: State, r: Round) -> State:
        x = state["x"]
        g = r.decayed(r.gradient(x), x)
        new = r.mix(state["z"], g)
        return {"x": new, "z": r.combine((2, new), (-1, x), (r.lr, g))}

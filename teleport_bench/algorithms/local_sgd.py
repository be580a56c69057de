"""Local SGD."""

from teleport_bench.algorithms.base import Algorithm, LocalSteps, Round, State
from teleport_bench.registry import ALGORITHMS


@ALGORITHMS.register("local_sgd")
class LocalSGD(Algorithm):
    """Local SGD: H SGD steps at every node between two gossips, on any topology.

      x_i <- x_i - eta grad F_i(x_i)     H = local_steps times, each on a fresh batch
      x_i <- sum_j W_ij x_j

    With momentum the buffer stays at its node and is not mixed. One local step is D-SGD; on the
    complete graph it is the method that is usually meant. Source: Stich 2019; any topology:
    Koloskova et al. 2020.
    """

    label = "Local SGD"

    def __init__(self, *, local_steps: LocalSteps = 4) -> None:
        self.local_steps = local_steps

    def step(self, state: State, r: Round) -> State:
        x, m, last = r.fetch(state["x"]), state.get("momentum"), self.local_steps - 1
        for h in range(last):
            x = r.sgd_step(x, r.gradient(x, h), m)
        return state | {"x": r.sgd_mix(x, r.gradient(x, last), m)}

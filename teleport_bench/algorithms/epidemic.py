"""Epidemic Learning."""

import functools

import torch
from pydantic import PositiveInt

from teleport_bench.activation import sample_distinct
from teleport_bench.algorithms.base import Algorithm, Round, State
from teleport_bench.registry import ALGORITHMS, Choice
from teleport_bench.seeds import generator
from teleport_bench.topologies import Topology
from teleport_bench.topologies.schedule import Period, check_size
from teleport_kernels import Mixing


@ALGORITHMS.register("epidemic")
class Epidemic(Algorithm):
    """Epidemic Learning: after its step every node sends to s random others; all average.

      y_i  = x_i - eta grad F_i(x_i)
      x_i <- the mean of y_i and of the y_j of those nodes that have drawn i this round

    s = `out_degree` (n - 1 where n is smaller) distinct others are drawn uniformly by every node:
    EL-Local. Rows of W sum to 1, columns only in expectation: the mean over the nodes wanders.
    `period` rounds are drawn, of the run's seed, and then come again: what differing data add to
    the error of the mean falls no further than to what it is after `period` rounds. With momentum
    the buffer stays at its node. Source: de Vos et al. 2023.
    """

    label = "Epidemic Learning"
    graph = "complete"

    def __init__(self, *, out_degree: PositiveInt = 2, period: Period = 64) -> None:
        self.out_degree, self.period = out_degree, period

    def graphs(self, choice: Choice, n_tokens: int, seed: int) -> Topology:
        check_size(n_tokens, n_tokens * (1 + min(self.out_degree, n_tokens)) * self.period)
        return _draw(n_tokens, min(self.out_degree, n_tokens - 1), self.period, seed)

    def step(self, state: State, r: Round) -> State:
        x = r.fetch(state["x"])
        return state | {"x": r.sgd_mix(x, r.gradient(x), state.get("momentum"))}


@functools.lru_cache(maxsize=256)
def _draw(n: int, out_degree: int, period: int, seed: int) -> Topology:
    """W[i, j] = 1 / (1 + nodes that send to i), where i = j or j sends to i."""
    random = generator(seed, "epidemic", nodes=n, out_degree=out_degree)
    sender, every = torch.arange(n).repeat_interleave(out_degree), torch.arange(n)
    rounds = []
    for _ in range(period):
        # of n - 1 others: those from the sender's own number on are one further
        others = torch.from_numpy(sample_distinct(random, n - 1, out_degree, n)).flatten()
        receiver = others + (others >= sender)
        weight = 1 / (1 + torch.bincount(receiver, minlength=n)).double()
        row, col = torch.cat([receiver, every]), torch.cat([sender, every])
        rounds.append(Mixing.from_edges(n, row, col, weight[row]))
    return Topology(rounds)

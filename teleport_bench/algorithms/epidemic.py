"""Epidemic Learning."""

import functools

import numpy as np
import torch
from pydantic import PositiveInt

from teleport_bench.activation import sample_distinct
from teleport_bench.algorithms.base import Algorithm, Round, State
from teleport_bench.registry import ALGORITHMS, Choice
from teleport_bench.seeds import BLOCK, generator
from teleport_bench.topologies import AnyTopology, RandomTopology, Topology
from teleport_bench.topologies.drawn import Block, packed
from teleport_bench.topologies.schedule import Period, check_size
from teleport_kernels import Mixing


@ALGORITHMS.register("epidemic")
class Epidemic(Algorithm):
    """Epidemic Learning: after its step every node sends to s random others; all average.

      y_i  = x_i - eta grad F_i(x_i)
      x_i <- the mean of y_i and of the y_j of those nodes that have drawn i this round

    s = `out_degree` (n - 1 where n is smaller) distinct others are drawn uniformly by every node:
    EL-Local. Rows of W sum to 1, columns only in expectation: the mean over the nodes wanders.
    They are drawn afresh in every round, of the run's seed. With a `period`, so many rounds are
    drawn and then come again: what differing data add to the error of the mean then falls no
    further than to what it is after `period` rounds. With momentum the buffer stays at its node.
    Source: de Vos et al. 2023.
    """

    label = "Epidemic Learning"
    graph = "complete"

    def __init__(self, *, out_degree: PositiveInt = 2, period: Period | None = None) -> None:
        self.out_degree, self.period = out_degree, period

    def graphs(self, choice: Choice, n_tokens: int, seed: int) -> AnyTopology:
        out_degree = min(self.out_degree, n_tokens - 1)
        if self.period:
            check_size(n_tokens, n_tokens * (1 + out_degree) * self.period)
            return _periodic(n_tokens, out_degree, self.period, seed)
        return _afresh(n_tokens, out_degree, seed)

    def step(self, state: State, r: Round) -> State:
        x = r.fetch(state["x"])
        return state | {"x": r.sgd_mix(x, r.gradient(x), state.get("momentum"))}


@functools.lru_cache(maxsize=256)
def _afresh(n: int, out_degree: int, seed: int) -> RandomTopology:
    check_size(n, n * (1 + out_degree))
    return RandomTopology(n, n * (1 + out_degree), functools.partial(_block, n, out_degree, seed))


def _block(n: int, out_degree: int, seed: int, block: int) -> Block:
    """W[i, j] = 1 / (1 + nodes that send to i), where i = j or j sends to i; a block of rounds."""
    random = generator(seed, "epidemic", nodes=n, out_degree=out_degree, block=block)
    every = np.arange(n)
    sender = np.tile(every.repeat(out_degree), (BLOCK, 1))
    # of n - 1 others: those from the sender's own number on are one further
    others = sample_distinct(random, n - 1, out_degree, BLOCK * n).reshape(sender.shape)
    receiver = others + (others >= sender)
    home = np.tile(every * (n + 1), (BLOCK, 1))
    row, column = np.divmod(np.sort(np.concatenate([receiver * n + sender, home], 1), axis=1), n)
    flat = np.arange(BLOCK)[:, None] * n + row
    degrees = np.bincount(flat.ravel(), minlength=BLOCK * n)
    weights = 1 / degrees[flat]
    return packed(np.ones_like(row, dtype=bool), degrees.reshape(BLOCK, n), column, weights)


@functools.lru_cache(maxsize=256)
def _periodic(n: int, out_degree: int, period: int, seed: int) -> Topology:
    """As `_block`, of a period of rounds."""
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

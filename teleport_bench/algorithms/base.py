"""What an algorithm sees of a round, and what the round loop asks of an algorithm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from teleport_bench.errors import UserError
from teleport_bench.network import Communication
from teleport_bench.registry import Choice
from teleport_bench.topologies import AnyTopology, of_seed, topology

State = dict[str, Tensor]
"""Flat tensors that an algorithm keeps between rounds, by name; "x" holds the parameters."""

LocalSteps = Annotated[int, Field(gt=0, le=10_000)]
"""Each is a call in every round, and a batch of every active node in every block of rounds."""

Activation = Literal["all", "uniform"]
"""Who is active: every node, token a at node a; or k distinct nodes, drawn afresh each round."""


@dataclass(frozen=True)
class Rate:
    """factor eta^power, of each row's step size eta in a round; 1 / eta is 0 for eta = 0.

    What `Round.lr` gives, for coefficients of `Round.combine`: -r.lr, 0.5 * r.lr, 0.1 / r.lr.
    """

    factor: float = 1.0
    power: int = 1

    def __neg__(self) -> Rate:
        return -1.0 * self

    def __mul__(self, factor: float) -> Rate:
        if isinstance(factor, Tensor) and factor.ndim:
            raise UserError(
                "every row has a step size of its own, so r.lr is no number that multiplies a "
                "tensor: give both to r.combine, as in r.combine((1, x), (-r.lr, g))"
            )
        return Rate(factor * self.factor, self.power)

    __rmul__ = __mul__

    def __rtruediv__(self, factor: float) -> Rate:
        return Rate(factor / self.factor, -self.power)


class Round(Protocol):
    """One round over stacked rows: row a is token a, at the node that holds it in this round.

    Tensors that it is given are float32 rows, (rows, P), on the run's device, contiguous but for a
    distance between rows; anything else is a UserError, whatever executes the round.
    """

    @property
    def t(self) -> int:
        """Which round it is, from 0. Whoever asks is called in every round: nothing is replayed."""

    @property
    def lr(self) -> Rate:
        """eta, the step size of this round: each row's own."""

    @property
    def beta(self) -> float:
        """The run's momentum, 0 without."""

    def fetch(self, x: Tensor) -> Tensor:
        """(rows, P): x_a, brought from the node that held token a in the last round."""

    def gradient(self, x: Tensor, step: int = 0) -> Tensor:
        """(rows, P): the stochastic gradient at x_a on the data of the holder of token a.

        step: which of the `Algorithm.local_steps` batches (or noises) of the round it takes.
        """

    def sgd_step(self, x: Tensor, grad: Tensor, momentum: Tensor | None) -> Tensor:
        """x_a - eta u_a, with u as in `tk.sgd_mix`: weight decay, momentum (updated), Nesterov."""

    def sgd_mix(self, x: Tensor, grad: Tensor, momentum: Tensor | None) -> Tensor:
        """x_a <- sum_b W[a, b] (x_b - eta u_b), stored at the holders: `tk.sgd_mix`."""

    def mix(self, x: Tensor, direction: Tensor | None = None) -> Tensor:
        """sum_b W[a, b] x_b, or sum_b W[a, b] (x_b - eta d_b) with d as it is given."""

    def decayed(self, grad: Tensor, x: Tensor) -> Tensor:
        """grad + weight_decay x: for what does not go through `sgd_step` or `sgd_mix`."""

    def combine(self, *terms: tuple[float | Rate, Tensor]) -> Tensor:
        """c_1 x_1 + c_2 x_2 + .. of (c, x) terms, in fp32: coefficient, product and sum are rounded
        each on its own, sums from left to right."""


class Algorithm(ABC):
    """A decentralized optimization method on rows."""

    label: ClassVar[str]
    """Its name in tables and figures."""

    partial: ClassVar[bool] = False
    """Whether a run says how many of its nodes are active (`active = k`)."""

    activation: Activation = "all"

    local_steps: int = 1
    """Gradients that a row takes in a round."""

    momentum: ClassVar[bool] = True
    """Whether it uses the run's `momentum`."""

    nesterov: ClassVar[bool] = True
    """Whether that may be Nesterov's."""

    at_nodes: ClassVar[bool] = True
    """Whether tokens may be stored at nodes (`storage = "nodes"`) and nodes be away: steps begin
    with `fetch` and end with `sgd_mix`, and parameters and momentum are all that is kept."""

    exact: ClassVar[bool] = False
    """Whether all rows converge to the minimum itself, on nodes whose minima differ, with a
    constant step size and exact gradients; otherwise they stay away from it by a bias."""

    graph: ClassVar[str | None] = None
    """The topology of all its runs, where it is not theirs to choose."""

    communication: ClassVar[Communication] = "gossip"
    """Between whom vectors are sent; see `network.sent`."""

    vectors: ClassVar[int] = 1
    """Parameter vectors in a message of its gossip: the tensors that it mixes in a round."""

    def graphs(self, choice: Choice, n_tokens: int, seed: int) -> AnyTopology:
        """What it mixes with in a run on that topology, of that seed."""
        return topology(of_seed(choice, seed), n_tokens)

    def carried(self, *, momentum: bool) -> int:
        """Parameter vectors that a token takes along to another node: all its state."""
        return len(self.start(torch.zeros(1, 1), momentum=momentum))

    def start(self, x: Tensor, *, momentum: bool) -> State:
        """The state before round 0. x: (rows, P), every token's initial parameters."""
        return {"x": x, "momentum": torch.zeros_like(x)} if momentum else {"x": x}

    @abstractmethod
    def step(self, state: State, r: Round) -> State:
        """One round. What is done may depend on which tensors the state has (the first round may
        lack some), and otherwise outside of tensors on nothing that changes from round to round:
        calls of `r` may be recorded in one round and made again in any later one. What prevents
        that is seen, and costs time: operations of torch, `r.t`, attributes of the algorithm that
        change, and random numbers of the generators that Python and NumPy share. Not seen is what
        Python keeps anywhere else, as in a variable of the module or a closure, or a clock."""

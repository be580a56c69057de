"""What an algorithm sees of a round, and what the round loop asks of an algorithm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

State = dict[str, Tensor]
"""Flat tensors that an algorithm keeps between rounds, by name; "x" holds the parameters."""

Activation = Literal["all", "uniform"]
"""Who is active: every node, token a at node a; or k distinct nodes, drawn afresh each round."""


class Round(Protocol):
    """One round over stacked rows: row a is token a, at the node that holds it in this round."""

    def fetch(self, x: Tensor) -> Tensor:
        """(rows, P): x_a, brought from the node that held token a in the last round."""

    def gradient(self, x: Tensor) -> Tensor:
        """(rows, P): the stochastic gradient at x_a on the data of the holder of token a."""

    def sgd_mix(self, x: Tensor, grad: Tensor, momentum: Tensor | None) -> Tensor:
        """x_a <- sum_b W[a, b] (x_b - lr u_b), stored at the holders: `tk.sgd_mix`."""


class Algorithm(ABC):
    """A decentralized optimization method on rows."""

    label: ClassVar[str]
    """Its name in tables and figures."""

    partial: ClassVar[bool] = False
    """Whether a run says how many of its nodes are active (`active = k`)."""

    activation: Activation = "all"

    def start(self, x: Tensor, *, momentum: bool) -> State:
        """The state before round 0. x: (rows, P), every token's initial parameters."""
        return {"x": x, "momentum": torch.zeros_like(x)} if momentum else {"x": x}

    @abstractmethod
    def step(self, state: State, r: Round) -> State:
        """One round. What is done may depend on which tensors the state has (the first round may
        lack some) and on nothing else outside of tensors: calls of `r` may be recorded in one block
        of rounds and replayed in the next. Operations of torch are allowed, and prevent that."""

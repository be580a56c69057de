"""What the round loop asks of a problem."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teleport_bench.errors import ComponentError, UserError, nearest
from teleport_bench.metrics import METRICS
from teleport_bench.native.calls import Call, Rows


class Member(NamedTuple):
    """What the random choices of a run may depend on. Runs of a fleet that agree in it share them:
    two step sizes see the same nodes, samples and noise.

    share: (first, among), the part of a larger draw of nodes; None for a draw of its own.
    """

    seed: int
    nodes: int
    active: int
    share: tuple[int, int] | None = None


class FleetProblem(ABC):
    """One problem for the stacked rows of a fleet, on one device."""

    in_order: bool = True
    """Whether a block of random choices depends on those before it, so that a run that goes on from
    a checkpoint must draw them again."""

    @abstractmethod
    def initial(self, seed: int) -> Tensor:
        """(P,): the initial parameters of all nodes; depends on the seed alone."""

    @abstractmethod
    def draw(self, member: int, block: int, holders: NDArray[np.int64]) -> NDArray[Any]:
        """(BLOCK s, k, ...): the random choices of one member; blocks come in order, from 0.

        holders: (BLOCK s, k), who is active: each round comes s times, once for each of the local
        steps of an algorithm (s = 1 for most). Step 0 draws from the same stream whatever s is.
        """

    @abstractmethod
    def gradient(self, x: Tensor, node: Tensor, data: Tensor) -> Tensor:
        """(rows, P): row a's stochastic gradient of f_node[a] at x[a]. data: (rows, ...)."""

    def compile(self, rows: Rows) -> bool:
        """Get ready for `call` on these rows; False where the library does not have the problem."""
        return False

    def call(self, x: Tensor, grad: Tensor, node: Tensor, data: Tensor) -> Call:
        """grad <- what `gradient` gives. node: (member rows,), data: (member rows, ...), as drawn.

        After `compile` alone.
        """
        raise NotImplementedError

    @abstractmethod
    def evaluate(self, x: Tensor, mean: Tensor, run: Tensor, world: Tensor) -> dict[str, Tensor]:
        """(runs,) values by metric. x: (rows, P); run: (rows,), each row's run, ascending;
        mean: (runs, P), the mean row of each run; world: (runs,), index into the worlds."""

    def at_mean(self, metric: str, mean: Tensor) -> Tensor | None:
        """(runs,): a metric that depends on the mean rows alone, to the bit as `evaluate` gives it;
        None of any other. Looks at a target then cost no pass over all rows."""
        return None

    def gradient_norm2(self, mean: Tensor, decay: float) -> Tensor:
        """(runs,) ||grad f(x) + decay x||^2 at the rows of mean, of the objective on all data and
        its l2 regulariser decay/2 ||x||^2, where `Problem.on_request` has it."""
        raise NotImplementedError


class Problem(ABC):
    """A problem with its options. `worlds` lists the (seed, nodes) pairs that fix each f_i."""

    @property
    @abstractmethod
    def n_params(self) -> int:
        """P, the length of a parameter row."""

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Metrics that `evaluate` reports: first the objective that nodes minimise, by which a run
        is found to diverge, then the headline, which the progress bar shows."""

    on_request: ClassVar[tuple[str, ...]] = ()
    """Methods of its fleet that are metrics as well, evaluated for the runs whose target they are:
    they take as long as many rounds."""

    @abstractmethod
    def check(self, n_nodes: int) -> None:
        """UserError where the problem cannot be posed for n nodes."""

    @abstractmethod
    def operations(self) -> int:
        """Floating-point operations of one stochastic gradient."""

    def drawn(self) -> int:
        """Numbers of four bytes that an active node draws in a round, about."""
        return 0

    def memory(
        self, members: Sequence[Member], rows: int, device: torch.device, *, compiled: bool
    ) -> int:
        """Bytes that `fleet(members, device)` takes for so many rows, about: of what it lays out,
        and of what a gradient of all rows or an evaluation takes besides (rows, P) tensors."""
        return 0

    @abstractmethod
    def fleet(self, members: Sequence[Member], device: torch.device) -> FleetProblem:
        """The problem for the distinct members of a fleet."""

    @abstractmethod
    def describe(self, seed: int, n_nodes: int) -> dict[str, Any]:
        """What a record says of the problem: data and partition, constants."""

    @abstractmethod
    def epochs(self, n_nodes: int, gradients: int) -> float:
        """How often that many gradients go over the data."""


def check_metrics(problem: Problem) -> tuple[str, ...]:
    """The problem's metrics, two or more that are known by name."""
    names = problem.metrics
    if not isinstance(names, tuple | list) or len(set(names)) != len(names) or len(names) < 2:
        raise UserError(
            f"metrics of a problem are two names or more, each once, got {names!r}: the objective, "
            "and what the progress bar shows"
        )
    for name in names:
        if name not in METRICS or name == "consensus":
            raise UserError(
                f"unknown metric '{name}' of the problem{nearest(str(name), METRICS)}; one of your "
                "own is to be added to teleport_bench.metrics.METRICS"
            )
    return tuple(names)


def described(problem: Problem, seed: int, n_nodes: int) -> dict[str, Any]:
    """What the problem says of itself for a record, which has to hold it.

    Raises ComponentError where it raises, or gives anything but a table of plain values.
    """
    what = f"problem '{type(problem).__name__}': describe"
    try:
        said = problem.describe(seed, n_nodes)
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise ComponentError(f"{what} raises {type(error).__name__}: {error}") from error
    if not isinstance(said, dict):
        raise ComponentError(f"{what} gives a {type(said).__name__}, expected a dict")
    if fault := _not_plain(said):
        raise ComponentError(
            f"{what} gives {fault}, expected texts, numbers, truth values, None, and lists and "
            "dicts of them, as JSON has them: convert it, as by float(..) or .tolist()"
        )
    expected = {"data": dict, "parameters": int, "label_histogram": list}
    for key, kind in expected.items():
        if key in said and not isinstance(said[key], kind):
            message = f"{said[key]!r:.80} as {key}, expected: {kind.__name__}"
            raise ComponentError(f"{what} gives {message}")
    for row in said.get("label_histogram", ()):
        if not isinstance(row, list | tuple) or not all(isinstance(n, int) for n in row):
            message = f"{row!r:.80} in label_histogram, expected lists of whole numbers"
            raise ComponentError(f"{what} gives {message}")
    return said


def _not_plain(value: Any, key: str = "", depth: int = 0) -> str | None:
    """The first thing in it that JSON has not, in words; None where there is none."""
    at = f" as {key}" if key else ""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}{at}"
    if value is None or isinstance(value, str | int | float):
        return None
    if depth > MOST_DEPTH or not isinstance(value, dict | list | tuple):
        return f"{type(value).__name__} {value!r:.80}{at}"
    if isinstance(value, dict):
        for inner, one in value.items():
            if not isinstance(inner, str):
                return f"the key {inner!r:.80}{at}"
            if fault := _not_plain(one, f"{key}.{inner}" if key else inner, depth + 1):
                return fault
        return None
    return next((f for one in value if (f := _not_plain(one, key, depth + 1))), None)


MOST_DEPTH = 20
"""Of what a problem says of itself: a list may hold itself."""


def worlds_of(members: Sequence[Member]) -> list[tuple[int, int]]:
    """The distinct (seed, nodes) of the members, in order of first appearance."""
    return list(dict.fromkeys((m.seed, m.nodes) for m in members))

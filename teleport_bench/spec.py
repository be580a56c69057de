"""RunSpec: everything that decides the result of a run, checked and complete."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, model_validator

from teleport_bench.activation import BLOCK, draw_holders
from teleport_bench.algorithms import Algorithm
from teleport_bench.ambient import plain
from teleport_bench.conditions import Away, absence, conditioned, tries
from teleport_bench.errors import ComponentError, UserError, nearest
from teleport_bench.problems import Member, Problem
from teleport_bench.registry import (
    ALGORITHMS,
    PROBLEMS,
    ROUNDS,
    SCHEDULES,
    TOPOLOGIES,
    Choice,
    StrictModel,
    error_at,
    python_scalar,
)
from teleport_bench.schedules import Factor
from teleport_bench.topologies import AnyTopology, RandomTopology
from teleport_bench.topologies.drawn import entries
from teleport_bench.topologies.stochastic import checked

MOST = 2**31 - 1
"""Of nodes, and of rounds."""
Count = Annotated[int, Field(gt=0, le=MOST, strict=True)]

MOST_SEED = 2**63 - 1
MOST_DRAWN = 2**28
"""Of what conditions draw at once: nodes times rounds of absence, and the weights of a block."""

MOST_LOOKS = 100_000
"""Evaluations of a run, and looks at its target: each is a number in memory and in the record."""

EVALUATIONS = 20
"""Evaluations in a run that does not say `eval_every`."""


class Share(StrictModel):
    """Which part of a larger draw is active: first .. first + k - 1 of `among` distinct nodes.

    Runs of one seed whose parts of the same `among` are disjoint are never active at one node: they
    share a network. Each of them still sees k nodes that are drawn uniformly.
    """

    first: NonNegativeInt
    among: Count


class Stop(StrictModel):
    """A target: a run has reached it in the first round from which on `window` looks in a row have
    a mean of the metric that is no worse than `value`; then it is over.

    A mean and not the first value: noise alone carries a run across a target for a moment. Looks
    are taken every `every` rounds; without it after every round up to the 64th, and from there on
    at distances of a 64th part.
    """

    metric: str
    value: float
    window: Count = 10
    every: Annotated[Count, ROUNDS] | None = None


LOOKS = 64
"""Rounds that are all looked at, and the inverse of the relative distance of later looks."""


class RunSpec(StrictModel):
    """One run. A component (algorithm, topology, problem, schedule) is a name, or a table with one.

    nodes: n. active: k, the nodes that are active in a round; only for algorithms that choose them.
    share: of a larger draw, for runs that share a network; see `Share`. stop: a target; see `Stop`.
    topology: on the k active tokens; an algorithm with a graph of its own has that one, whatever is
    asked for. lr: step size eta. momentum: beta of heavy ball or Nesterov.
    rounds: T. eval_every: rounds between evaluations; round 0 and the last are always evaluated.
    storage: "slots" keeps a row a token, "nodes" a row a node with gather and scatter; same floats.
    loss: probability q that a message is lost. One of a gossip stays so, see
    `conditions.conditioned`; it counts as sent, and a receiver waits for it as long as it would
    have taken. A teleport is sent again until it arrives: each time counts, and takes as long as
    the first (`conditions.tries`). away: spells in which nodes are not there; see `Away`.

    Raises pydantic.ValidationError (a ValueError) that names each key and what it should be.
    """

    algorithm: ALGORITHMS.field()  # type: ignore[valid-type]
    nodes: Count
    active: Count | None = None
    share: Share | None = None
    topology: TOPOLOGIES.field() = "ring"  # type: ignore[valid-type]
    problem: PROBLEMS.field()  # type: ignore[valid-type]
    lr: NonNegativeFloat
    schedule: SCHEDULES.field() = "constant"  # type: ignore[valid-type]
    momentum: float = Field(default=0.0, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 0.0
    rounds: Annotated[Count, ROUNDS]
    eval_every: Annotated[Count, ROUNDS] | None = None
    stop: Stop | None = None
    seed: int = Field(default=0, ge=0, le=MOST_SEED, strict=True)
    storage: Literal["slots", "nodes"] = "slots"
    # conditions that do not hold are left out of the settings that name a run
    loss: float = Field(default=0.0, ge=0, lt=1, exclude_if=lambda q: q == 0)
    away: Away | None = Field(default=None, exclude_if=lambda away: away is None)
    losses: Literal["afresh"] | None = Field(default=None, exclude_if=lambda losses: losses is None)
    """How messages are lost, where they are: by a draw in every round. Not to be chosen, but part
    of the name of a run, since there are records of losses that came again after 64 rounds."""

    @model_validator(mode="after")
    def _complete(self) -> RunSpec:
        method = build_algorithm(self.algorithm)
        name = self.algorithm["name"]
        active = self.active
        if active is None:
            if method.partial:
                raise error_at(("active", f"{name} needs active, the nodes of a round: give 1..n"))
            active = self.nodes
        elif active > self.nodes:
            raise error_at(("active", f"active = {active} is more than nodes = {self.nodes}"))
        elif not method.partial and active != self.nodes:
            raise error_at(
                (
                    "active",
                    f"{name} has all nodes active, got {active} of {self.nodes}: leave it out",
                )
            )
        if self.share and method.activation == "all":
            raise error_at(("share", f"{name} draws no nodes here, so it cannot share a draw"))
        if self.share and not self.share.first + active <= self.share.among <= self.nodes:
            raise error_at(
                (
                    "share",
                    f"needs first + active <= among <= nodes, got {self.share.first} + {active}, "
                    f"{self.share.among} and {self.nodes}",
                )
            )
        for key in ("momentum", "nesterov"):
            if getattr(self, key) and not getattr(method, key):
                raise error_at((key, f"{name} has no {key}: leave it out"))
        if self.storage == "nodes" and not method.at_nodes:
            message = f'{name} keeps more than a node\'s parameters: it has storage = "slots" alone'
            raise error_at(("storage", message))
        if self.nesterov and not self.momentum:
            raise error_at(("nesterov", "nesterov = true needs momentum > 0, got momentum = 0"))
        if self.loss and method.communication != "gossip":
            message = f"{name} has no gossip whose messages could be lost: leave loss out"
            raise error_at(("loss", message))
        object.__setattr__(self, "losses", "afresh" if self.loss else None)
        if self.away and not self.away.share:  # frozen for users, completed here
            object.__setattr__(self, "away", None)
        if self.away and (fault := self._never_away(method)):
            raise error_at(("away", f"{fault}: leave away out"))
        object.__setattr__(self, "active", active)
        if method.graph:
            object.__setattr__(self, "topology", TOPOLOGIES.resolve(method.graph))
        object.__setattr__(self, "eval_every", self.eval_every or usual_eval_every(self.rounds))
        for key, every in (
            ("eval_every", self.eval_every),
            ("stop", self.stop and self.stop.every),
        ):
            if every and self.rounds // every > MOST_LOOKS:
                message = (
                    f"one every {every} of {self.rounds} rounds is more than {MOST_LOOKS:,}: take "
                    f"every {-(-self.rounds // MOST_LOOKS)} or more"
                )
                raise error_at((key, message))
        for key, build in (
            ("topology", self._graphs),
            ("problem", self.build_problem),
            ("schedule", self.build_schedule),
        ):
            try:
                with plain():
                    build()
            except UserError as error:
                raise error_at((key, str(error))) from None
        if too_long := self._too_long():
            raise error_at(too_long)
        if self.stop and self.stop.metric not in (known := self.known_metrics()):
            message = f"unknown metric '{self.stop.metric}'{nearest(self.stop.metric, known)}"
            raise error_at(("stop", message))
        return self

    @property
    def n_active(self) -> int:
        """k: the number of tokens, and of rows."""
        assert self.active is not None
        return self.active

    @property
    def member(self) -> Member:
        """What its random choices depend on."""
        share = (self.share.first, self.share.among) if self.share else None
        return Member(self.seed, self.nodes, self.n_active, share)

    def varied(self, **changes: Any) -> RunSpec:
        """The same run with other values, which must be valid: sweeps make thousands of these."""
        return self.model_copy(update={key: python_scalar(value) for key, value in changes.items()})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> RunSpec:
        """As pydantic has it, and the copy has the id of its own settings."""
        other = super().model_copy(update=update, deep=deep)
        other.__dict__.pop("id", None)
        return other

    def validated(self) -> RunSpec:
        """The same run, its settings checked again: `model_copy` takes whatever it is given."""
        return RunSpec.model_validate({key: getattr(self, key) for key in RunSpec.model_fields})

    @functools.cached_property
    def id(self) -> str:
        """12 hex digits that identify the run: a hash of every setting, defaults included."""
        return id_of(self.model_dump(mode="json"))

    @plain()
    def check(self) -> None:
        """UserError where the problem cannot be posed for these nodes; reads the data."""
        self.build_problem().check(self.nodes)

    def settings(self, exclude: set[str] | None = None) -> dict[str, Any]:
        """All settings as plain values, also those conditions that do not hold."""
        none = {"loss": 0.0, "away": {"share": 0.0}}
        return none | self.model_dump(mode="json", exclude={"losses"} | (exclude or set()))

    def evaluations(self) -> list[int]:
        """Rounds after which metrics are taken: 0, every eval_every, and the last."""
        assert self.eval_every is not None
        return sorted({*range(0, self.rounds + 1, self.eval_every), self.rounds})

    def looks(self) -> list[int]:
        """Rounds after which the target is looked at, ascending; none without a target."""
        if self.stop is None:
            return []
        if self.stop.every:
            return [*range(0, self.rounds + 1, self.stop.every)]
        rounds = [0]
        while rounds[-1] < self.rounds:
            rounds.append(rounds[-1] + max(1, rounds[-1] // LOOKS))
        return rounds if rounds[-1] == self.rounds else rounds[:-1]

    def known_metrics(self) -> tuple[str, ...]:
        """The metrics that are evaluated along the run."""
        problem = self.build_problem()
        asked = self.stop and self.stop.metric
        return (*problem.metrics, *(m for m in problem.on_request if m == asked), "consensus")

    def holders(self, block: int) -> NDArray[np.int64]:
        """(BLOCK, k): the node that holds token a in each round of the block."""
        activation = self.build_algorithm().activation
        away = absence(self.away, self.seed, self.nodes) if self.away else None
        return draw_holders(activation, *self.member[:3], block, self.member.share, away)

    def build_algorithm(self) -> Algorithm:
        return build_algorithm(self.algorithm)

    @plain()
    def build_topology(self) -> AnyTopology:
        """The matrices that the run mixes with, its conditions included."""
        return conditioned(self._graphs(), self.loss, self._rows_away, self.seed, self.nodes)

    def build_links(self) -> AnyTopology:
        """The matrices whose entries are the messages that are sent, whether they arrive or not."""
        return conditioned(self._graphs(), 0.0, self._rows_away, self.seed, self.nodes)

    @property
    def period(self) -> int | None:
        """That of `build_topology`, for which nothing is drawn; None where its matrices are drawn
        afresh."""
        graphs, away = self._graphs(), self._rows_away
        if self.loss or isinstance(graphs, RandomTopology):
            return None
        return math.lcm(graphs.period, away.period) if away else graphs.period

    def tries(self, block: int) -> NDArray[np.int64] | None:
        """(BLOCK, k): how often each token is sent until it arrives at another node, in each round
        of the block; None where all arrive, or none moves."""
        if not self.loss or self.build_algorithm().activation == "all":
            return None
        return tries(self.loss, self.member, block)

    def there(self) -> NDArray[np.bool_] | None:
        """(period, k): whether each row's node is there; None where rows move, or all always are.
        The period is a multiple of BLOCK."""
        if not (away := self._rows_away):
            return None
        there: NDArray[np.bool_] = absence(away, self.seed, self.nodes)[:, : self.n_active] == 0
        return there

    @property
    def _rows_away(self) -> Away | None:
        """Where rows stay at their nodes, they are away with them."""
        return self.away if self.build_algorithm().activation == "all" else None

    def _too_long(self) -> tuple[str, str] | None:
        """The key of a condition whose period is more than can be drawn, and the message."""
        if self.away and self.away.period * self.nodes > MOST_DRAWN:
            return "away", (
                f"{self.away.period} rounds of {self.nodes} nodes are drawn for spells of "
                f"{self.away.spell:g} rounds, expected at most {MOST_DRAWN:,} together: take "
                "shorter spells or fewer nodes"
            )
        if not self.loss and not self._rows_away:
            return None
        drawn = BLOCK * entries(self._graphs())
        if drawn > MOST_DRAWN:
            return "away" if self._rows_away else "loss", (
                f"{drawn:.2g} weights are drawn for {BLOCK} rounds of these conditions, expected "
                f"at most {MOST_DRAWN:,}: take fewer nodes or a sparser graph"
            )
        return None

    def _never_away(self, method: Algorithm) -> str | None:
        """Why nodes cannot be away, in words."""
        name = self.algorithm["name"]
        if method.activation == "uniform":
            return None
        if method.communication != "gossip":
            return f"{name} takes all nodes in every round"
        if not method.at_nodes:
            return f"{name} keeps more than parameters, which would change at a node that is away"
        return "the momentum of a node that is away would change" if self.momentum else None

    def _graphs(self) -> AnyTopology:
        graphs = self.build_algorithm().graphs(self.topology, self.n_active, self.seed)
        # columns of an algorithm's own graphs may sum to 1 in the mean only, as Epidemic Learning's
        what = f"algorithm '{self.algorithm['name']}': its graph"
        return checked(graphs, what, self.n_active, columns=False)

    def build_schedule(self) -> Factor:
        factor: Factor = SCHEDULES.build(self.schedule, self.rounds)
        if not callable(factor):
            raise ComponentError(
                f"schedule '{self.schedule['name']}' gives {factor!r:.80}, expected a function of "
                "the round that gives the factor on the step size"
            )
        return factor

    def build_problem(self) -> Problem:
        return build_problem(canonical(self.problem))


def usual_eval_every(rounds: int) -> int:
    """Rounds between the evaluations of a run that does not say."""
    return max(1, rounds // EVALUATIONS)


def canonical(value: Any) -> str:
    """JSON with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def id_of(settings: dict[str, Any]) -> str:
    """The id of the run with these settings, all of them."""
    return hashlib.sha256(canonical(settings).encode()).hexdigest()[:12]


def build_algorithm(choice: Choice) -> Algorithm:
    algorithm: Algorithm = ALGORITHMS.build(choice)
    return algorithm


@functools.lru_cache(maxsize=32)
@plain()
def build_problem(choice: str) -> Problem:
    problem: Problem = PROBLEMS.build(json.loads(choice))
    return problem

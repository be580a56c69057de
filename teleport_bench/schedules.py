"""Step-size schedules: the factor on the step size in round t of T."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from teleport_bench.registry import ROUNDS, SCHEDULES

Factor = Callable[[int], float]
Fraction = Annotated[float, Field(ge=0, le=1)]
Warmup = Annotated[NonNegativeInt, ROUNDS]
Milestone = Annotated[PositiveInt, ROUNDS]


def constant_factor(t: int) -> float:  # noqa: ARG001
    """1 in every round: who finds this one need not ask it again."""
    return 1.0


def _warmed(factor: Factor, warmup: int) -> Factor:
    """Linear warm-up: rounds 0 .. warmup - 1 take (t + 1) / (warmup + 1) of the step size."""
    return lambda t: (t + 1) / (warmup + 1) if t < warmup else factor(t)


@SCHEDULES.register("constant")
def constant(rounds: int, *, warmup: Warmup = 0) -> Factor:  # noqa: ARG001
    """The same step size in every round, after a linear warm-up of that many rounds."""
    return _warmed(constant_factor, warmup) if warmup else constant_factor


@SCHEDULES.register("cosine")
def cosine(rounds: int, *, warmup: Warmup = 0, final: Fraction = 0.0) -> Factor:
    """From 1 at the end of the warm-up along half a cosine to `final` at the end of the run."""
    span = max(1, rounds - warmup)

    def factor(t: int) -> float:
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (t - warmup) / span))

    return _warmed(factor, warmup)


@SCHEDULES.register("step")
def step(
    rounds: int,  # noqa: ARG001
    *,
    milestones: tuple[Milestone, ...],
    factor: Fraction = 0.1,
    warmup: Warmup = 0,
) -> Factor:
    """Times `factor` from each milestone (a round) on, after a linear warm-up."""
    return _warmed(lambda t: factor ** sum(t >= m for m in milestones), warmup)

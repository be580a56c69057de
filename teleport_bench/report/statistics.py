"""Summaries over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

NO_STEP_SIZE = "no step size"
STATES = ("diverged", "failed", NO_STEP_SIZE, "missing")
"""Why a run has no result. "no step size": no value of the grid worked for its method."""


@dataclass(frozen=True)
class Summary:
    """The runs of one cell over its seeds.

    mean and std (sample standard deviation, n - 1) are there only when every run finished: the mean
    of the runs that happened to survive would flatter the method.
    """

    n: int
    states: tuple[tuple[str, int], ...]
    """How many runs did not finish, by status, most severe first."""
    mean: float | None
    std: float | None

    def text(self, form: str) -> str:
        """`0.912 ± 0.004`, the mean alone for one run, or what became of the runs instead."""
        if self.mean is None:
            return ", ".join(
                state if count == self.n else f"{state} ({count} of {self.n})"
                for state, count in self.states
            )
        if self.std is None:
            return form.format(self.mean)
        return f"{form.format(self.mean)} ± {form.format(self.std)}"


def summarise(values: Sequence[float], states: Sequence[str]) -> Summary:
    """values: one a run, NaN unless it finished; states: the status of each run."""
    n = len(states)
    bad = tuple((state, count) for state in STATES if (count := sum(s == state for s in states)))
    if bad or n == 0:
        return Summary(n, bad or (("missing", 0),), None, None)
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(n, (), mean, None)
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    return Summary(n, (), mean, math.sqrt(variance))

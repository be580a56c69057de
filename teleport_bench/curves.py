"""The curves of all runs of a fleet, and which of them diverged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teleport_bench.metrics import AXES

DIVERGED = 1e4
"""A run has diverged when its objective is not finite, or more than this times what it was at the
start (or than this, where it started below 1)."""


@dataclass
class Outcome:
    """What a run leaves: its curves up to the last sound evaluation, and where it diverged."""

    curves: dict[str, list[float]]
    diverged_at: int | None
    phases: dict[str, float]
    """Seconds by phase, the run's share of the fleet's by rows."""


class Curves:
    """Evaluations of runs that advance together; each is a row of values by run.

    objective: the metric by which a run is found to diverge.
    """

    def __init__(self, n_runs: int, objective: str) -> None:
        self._objective = objective
        self._points: list[dict[str, NDArray[np.float64]]] = []
        self._limit = np.full(n_runs, np.inf)
        self._diverged_at = np.full(n_runs, -1)

    @property
    def alive(self) -> NDArray[np.bool_]:
        """(runs,): those that have not diverged."""
        return self._diverged_at < 0

    def add(self, t: int, values: dict[str, NDArray[np.float64]]) -> None:
        """The values of all runs after t rounds, by axis and metric."""
        objective = values[self._objective]
        if not self._points:
            self._limit = DIVERGED * np.maximum(1.0, objective)
        metrics = [value for name, value in values.items() if name not in AXES]
        sound = np.isfinite(metrics).all(0) & ~(objective > self._limit)
        self._diverged_at[self.alive & ~sound] = t
        self._points.append(values)

    def outcomes(self, phases: Sequence[dict[str, float]]) -> list[Outcome]:
        """One a run."""
        names = list(self._points[0])
        table = np.array([[point[name] for name in names] for point in self._points])
        rounds = self._points_at("rounds")
        outcomes = []
        for run, (diverged, spent) in enumerate(zip(self._diverged_at, phases, strict=True)):
            kept = len(rounds) if diverged < 0 else int(np.searchsorted(rounds, diverged))
            columns = table[:kept, :, run].T.tolist() if kept else [[] for _ in names]
            curves = dict(zip(names, columns, strict=True)) if kept else {}
            outcomes.append(Outcome(curves, None if diverged < 0 else int(diverged), spent))
        return outcomes

    def _points_at(self, axis: str) -> NDArray[np.float64]:
        return np.array([point[axis][0] for point in self._points])

"""The curves of all runs of a fleet, and which of them diverged."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teleport_bench.metrics import AXES, METRICS

DIVERGED = 1e4
"""A run has diverged when its objective is not finite, or more than this times what it was at the
start (or than this, where it started below 1)."""


@dataclass
class Outcome:
    """What a run leaves: its curves up to the last sound evaluation, where it diverged, and where
    it reached its target."""

    curves: dict[str, list[float]]
    diverged_at: int | None
    reached_at: int | None
    phases: dict[str, float]
    """Seconds by phase, the run's share of the fleet's by rows."""


class Target:
    """Which of the runs that advance together have reached a metric's value: see `spec.Stop`."""

    def __init__(self, metric: str, value: float, window: int, n_runs: int) -> None:
        self.metric = metric
        self._sign = METRICS[metric].sign
        self._value = value
        self._looks: deque[tuple[int, NDArray[np.float64]]] = deque(maxlen=window)
        self.reached_at = np.full(n_runs, -1)

    @property
    def over(self) -> NDArray[np.bool_]:
        """(runs,): those that have reached it."""
        return self.reached_at >= 0

    def look(self, t: int, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(runs,): those of which it is known since this look, after t rounds."""
        self._looks.append((t, values))
        if len(self._looks) < (self._looks.maxlen or 1):
            return np.zeros_like(self.over)
        mean = np.mean([values for _, values in self._looks], axis=0)
        new: NDArray[np.bool_] = ~self.over & (self._sign * mean >= self._sign * self._value)
        self.reached_at[new] = self._looks[0][0]
        return new

    def keep(self) -> dict[str, Any]:
        """What `restore` needs."""
        return {"looks": [list(look) for look in self._looks], "reached_at": self.reached_at}

    def restore(self, kept: dict[str, Any]) -> None:
        self._looks.extend((t, values) for t, values in kept["looks"])
        self.reached_at = kept["reached_at"]


class Curves:
    """Evaluations of runs that advance together; each is a row of values by run.

    objective: the metric by which a run is found to diverge.
    """

    def __init__(self, n_runs: int, objective: str) -> None:
        self._objective = objective
        self._points: list[dict[str, NDArray[np.float64]]] = []
        self._whose: list[NDArray[np.bool_]] = []
        self._limit = np.full(n_runs, np.inf)
        self._diverged_at = np.full(n_runs, -1)

    @property
    def diverged(self) -> NDArray[np.bool_]:
        """(runs,)"""
        return self._diverged_at >= 0

    def add(self, t: int, values: dict[str, NDArray[np.float64]], whose: NDArray[np.bool_]) -> None:
        """The values of the runs whose they are after t rounds, by axis and metric."""
        objective = values[self._objective]
        if not self._points:
            self._limit = DIVERGED * np.maximum(1.0, objective)
        metrics = [value for name, value in values.items() if name not in AXES]
        sound = np.isfinite(metrics).all(0) & ~(objective > self._limit)
        self._diverged_at[whose & ~self.diverged & ~sound] = t
        self._points.append(values)
        self._whose.append(whose & ~self.diverged)

    def keep(self) -> dict[str, Any]:
        """What `restore` needs."""
        return {
            "names": list(self._points[0]),
            "table": self._table,
            "whose": np.array(self._whose),
            "limit": self._limit,
            "diverged_at": self._diverged_at,
        }

    def restore(self, kept: dict[str, Any]) -> None:
        self._points = [dict(zip(kept["names"], row, strict=True)) for row in kept["table"]]
        self._whose = list(kept["whose"])
        self._limit, self._diverged_at = kept["limit"], kept["diverged_at"]

    @property
    def _table(self) -> NDArray[np.float64]:
        """(points, names, runs)"""
        return np.array([list(point.values()) for point in self._points])

    def outcomes(
        self, phases: Sequence[dict[str, float]], target: Target | None = None
    ) -> list[Outcome]:
        """One a run."""
        names, table = list(self._points[0]), self._table
        whose = np.array(self._whose)
        outcomes = []
        for run, (diverged, spent) in enumerate(zip(self._diverged_at, phases, strict=True)):
            kept = whose[:, run]
            columns = table[kept, :, run].T.tolist()
            curves = dict(zip(names, columns, strict=True)) if kept.any() else {}
            reached = target is not None and target.over[run]
            outcomes.append(
                Outcome(
                    curves,
                    None if diverged < 0 else int(diverged),
                    int(target.reached_at[run]) if target is not None and reached else None,
                    spent,
                )
            )
        return outcomes

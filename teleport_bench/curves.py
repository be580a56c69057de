"""The curves of all runs of a fleet, and which of them diverged."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from teleport_bench.kept import array, expect, fields, whole
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

    def restore(self, kept: Any, looks: Sequence[int]) -> NDArray[np.int64]:
        """Take what was kept after the last of these looks; UnfitError where it is not that.

        Returns (runs,): the look at which it was known that a run had reached the target; the end
        of int64 for one of which it is not.
        """
        kept, n = fields(kept, ("looks", "reached_at"), "its target"), len(self.reached_at)
        window = self._looks.maxlen or 1
        found, last = kept["looks"], looks[-window:]
        right = type(found) is list and all(type(x) is list and len(x) == 2 for x in found)
        expect(right and [t for t, _ in found] == last, f"its last looks are not those of {last}")
        for t, values in found:
            values = array(values, torch.float64, (n,), "a look at its target")
            self._looks.append((whole(t, 0, looks[-1], "a look"), values))
        reached_at = array(kept["reached_at"], torch.int64, (n,), "the rounds of its targets")
        known = np.full(n, np.iinfo(np.int64).max)
        for run in np.flatnonzero(reached_at != -1):
            at = bisect.bisect_left(looks, int(reached_at[run]))
            expect(
                at + window <= len(looks) and looks[at] == reached_at[run],
                "a target was reached in a round that was not looked at",
            )
            known[run] = looks[at + window - 1]
        self.reached_at = reached_at
        return known

    @property
    def latest(self) -> NDArray[np.float64]:
        """(runs,): what was looked at last."""
        return self._looks[-1][1]

    def sound(self, runs: NDArray[np.bool_]) -> bool:
        """Whether what was looked at is finite in these runs."""
        return all(np.isfinite(values[runs]).all() for _, values in self._looks)


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
            self._limit = self._limit_of(values)
        metrics = [value for name, value in values.items() if name not in AXES]
        sound = np.isfinite(metrics).all(0) & ~(objective > self._limit)
        self._diverged_at[whose & ~self.diverged & ~sound] = t
        self._points.append(values)
        self._whose.append(whose & ~self.diverged)

    def keep(self) -> dict[str, Any]:
        """What `restore` needs: by name (points, runs), NaN where a run has no such point."""
        whose = np.array(self._whose)
        some = whose.any(1)
        points = {
            name: np.where(whose, [point[name] for point in self._points], np.nan)[some]
            for name in self._points[0]
        }
        return {"points": points, "diverged_at": self._diverged_at}

    def restore(
        self, kept: Any, names: Sequence[str], due: Sequence[int], known: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Take what was kept, with points of these names; UnfitError where runs of which it is
        `known` at those rounds that they are over, and others at none, would not have kept that.

        due: the rounds, up to now, after which all runs are evaluated. Returns (points,): the round
        of each.
        """
        kept, n = fields(kept, ("points", "diverged_at"), "its curves"), len(self._diverged_at)
        points = fields(kept["points"], names, "the points of its curves")
        size = tuple(getattr(points["rounds"], "shape", ()))
        expect(len(size) == 2 and 0 < size[0] <= len(due) + n, "its curves have no points")
        table = {name: array(points[name], torch.float64, (size[0], n), name) for name in names}
        whose = np.isfinite(table["rounds"])
        expect(whose.any(1).all(), "its curves have points of no run")
        rounds = np.nanmax(table["rounds"], axis=1)
        expect((np.diff(rounds) > 0).all() and set(due) <= set(rounds), "its points are not due")
        regular = np.isin(rounds, due)
        diverged_at = array(kept["diverged_at"], torch.int64, (n,), "rounds of divergence")
        diverged = diverged_at != -1
        seen = np.isin(diverged_at, due) | (diverged_at == known)
        expect((seen & (diverged_at <= known) | ~diverged).all(), "a run diverged unseen")
        end = np.where(diverged, diverged_at, np.iinfo(np.int64).max)
        at = rounds[:, None]
        expected = (regular[:, None] | (at == known)) & (at <= known) & (at < end)
        expect((whose == expected).all(), "its points are not those of its runs")
        expect((table["rounds"] == at)[whose].all(), "its points are of several rounds")
        expect(
            all((np.isfinite(values) == whose).all() for values in table.values()),
            "its curves are not finite",
        )
        self._points = [{name: table[name][i] for name in names} for i in range(size[0])]
        self._whose = list(whose)
        self._limit = self._limit_of(self._points[0])
        self._diverged_at = diverged_at
        at_rounds: NDArray[np.int64] = rounds.astype(np.int64)
        return at_rounds

    def _limit_of(self, first: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """(runs,): the objective above which a run has diverged."""
        limit: NDArray[np.float64] = DIVERGED * np.maximum(1.0, first[self._objective])
        return limit

    def last(self, name: str) -> NDArray[np.float64]:
        """(runs,): the value of each run's last point, NaN without one."""
        values = np.full(len(self._diverged_at), np.nan)
        for point, whose in zip(self._points, self._whose, strict=True):
            values[whose] = point[name][whose]
        return values

    def column(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """(points, runs): all values of a name, and whose they are."""
        return np.array([point[name] for point in self._points]), np.array(self._whose)

    @property
    def _table(self) -> NDArray[np.float64]:
        """(points, names, runs)"""
        names = list(self._points[0])
        return np.array([[point[name] for name in names] for point in self._points])

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

"""The choice of step sizes, and of k, from the records of the tuning runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from teleport_bench.metrics import METRICS, ROUNDS_TO_TARGET
from teleport_bench.record import Record
from teleport_bench.suite import PlannedRun, Suite

CENSORED = 2
"""A run that did not reach its target counts as this many times its rounds: the score that the
field of algorithm configuration calls PAR2."""


@dataclass(frozen=True)
class Choice:
    """The step size of one cell: scores by value (the mean over the tuning seeds; None where a run
    diverged or failed), and the best, None where no value has a score.

    lost: the status of the runs behind each None. by_active: the scores of each k, where k is
    chosen too; `scores` are then the best of any k, and `active` is the k of the best.
    """

    scores: dict[float, float | None]
    lr: float | None
    lost: dict[float, str]
    active: int | None = None
    by_active: dict[int, dict[float, float | None]] | None = None

    @property
    def at_edge(self) -> bool:
        """Whether the best value is the smallest or the largest tried, so that a wider grid might
        have found a better one."""
        return self.lr is not None and self.lr in (min(self.scores), max(self.scores))


def choose(suite: Suite, records: Mapping[str, Record]) -> dict[str, Choice]:
    """The best step size of every cell whose tuning runs all have records, by run id."""
    tune = suite.spec.tune
    if tune is None:
        return {}
    trials: dict[str, list[PlannedRun]] = defaultdict(list)
    for run in suite.tuning:
        trials[run.cell].append(run)
    return {
        cell: _choice(runs, [records[run.spec.id] for run in runs], tune.metric)
        for cell, runs in trials.items()
        if all(run.spec.id in records for run in runs)
    }


def _choice(runs: Sequence[PlannedRun], records: Sequence[Record], metric: str) -> Choice:
    """runs, records: all trials of one cell."""
    tried: dict[tuple[int, float], list[Record]] = defaultdict(list)
    for run, record in zip(runs, records, strict=True):
        tried[run.spec.n_active, run.spec.lr].append(record)
    scored = {setting: _score(tried[setting], metric) for setting in sorted(tried)}
    sound = {setting: score for setting, score in scored.items() if score is not None}
    sign = METRICS[metric].sign
    # the smallest k and the smallest step size among the best: settings ascend
    best = max(sound, key=lambda s: (sign * sound[s][0], sound[s][1])) if sound else None
    by_active: dict[int, dict[float, float | None]] = defaultdict(dict)
    for (k, lr), score in scored.items():
        by_active[k][lr] = None if score is None else score[0]
    scores, lost = {}, {}
    for lr in sorted({lr for _, lr in scored}):
        found = [by_lr[lr] for by_lr in by_active.values()]
        values = [value for value in found if value is not None]
        scores[lr] = sign * max(sign * value for value in values) if values else None
        if not values:
            states = [r.status for k in by_active for r in tried[k, lr]]
            lost[lr] = "failed" if "failed" in states else "diverged"
    searched = runs[0].search is not None
    return Choice(
        scores,
        best[1] if best else None,
        lost,
        best[0] if best and searched else None,
        dict(by_active) if searched else None,
    )


def step_sizes(choices: Mapping[str, Choice]) -> dict[str, dict[str, Any]]:
    """The chosen settings of every cell that has a choice, for `Suite.reported`."""
    return {
        cell: {"lr": choice.lr} | ({} if choice.active is None else {"active": choice.active})
        for cell, choice in choices.items()
        if choice.lr is not None
    }


def chosen(suite: Suite, records: Mapping[str, Record]) -> dict[str, dict[str, Any]]:
    """The settings that `choose` finds."""
    return step_sizes(choose(suite, records))


def _score(tried: Sequence[Record], metric: str) -> tuple[float, float] | None:
    """The mean of the metric, and what decides between equal means: among runs of which none
    reached its target, how close they came. None where a run diverged or failed."""
    if any(record.status != "finished" for record in tried):
        return None
    if metric != ROUNDS_TO_TARGET:
        return math.fsum(record.final(metric) for record in tried) / len(tried), 0.0
    rounds, close = [], []
    for record in tried:
        stop = record.spec["stop"]
        reached = record.reached_at
        rounds.append(CENSORED * record.spec["rounds"] if reached is None else reached)
        if reached is None:
            close.append(METRICS[stop["metric"]].sign * record.final(stop["metric"]))
    return math.fsum(rounds) / len(rounds), math.fsum(close)

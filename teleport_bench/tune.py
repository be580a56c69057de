"""The choice of step sizes from the records of the tuning runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from teleport_bench.metrics import METRICS
from teleport_bench.record import Record
from teleport_bench.suite import Suite


@dataclass(frozen=True)
class Choice:
    """The step size of one cell: scores by value (the mean over the tuning seeds; None where a run
    diverged or failed), and the best, None where no value has a score.

    lost: the status of the runs behind each None.
    """

    scores: dict[float, float | None]
    lr: float | None
    lost: dict[float, str]

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
    trials: dict[str, dict[float, list[Record | None]]] = defaultdict(lambda: defaultdict(list))
    for run in suite.tuning:
        trials[run.cell][run.spec.lr].append(records.get(run.spec.id))
    sign = 1 if METRICS[tune.metric].better == "higher" else -1
    choices = {}
    for cell, by_lr in trials.items():
        if any(record is None for tried in by_lr.values() for record in tried):
            continue
        scores = {lr: _score(tried, tune.metric) for lr, tried in sorted(by_lr.items())}
        sound = {lr: sign * score for lr, score in scores.items() if score is not None}
        # the smallest step size among the best: scores ascend in lr
        best = max(sound, key=lambda lr: sound[lr]) if sound else None
        choices[cell] = Choice(
            scores, best, {lr: _lost(by_lr[lr]) for lr in scores if scores[lr] is None}
        )
    return choices


def step_sizes(choices: Mapping[str, Choice]) -> dict[str, float]:
    """The step size of every cell that has one, for `Suite.reported`."""
    return {cell: choice.lr for cell, choice in choices.items() if choice.lr is not None}


def chosen(suite: Suite, records: Mapping[str, Record]) -> dict[str, float]:
    """The step sizes that `choose` finds."""
    return step_sizes(choose(suite, records))


def _lost(tried: list[Record | None]) -> str:
    states = [record.status for record in tried if record]
    return "failed" if "failed" in states else "diverged"


def _score(tried: list[Record | None], metric: str) -> float | None:
    values = [r.final(metric) for r in tried if r is not None and r.status == "finished"]
    if len(values) < len(tried):
        return None
    return math.fsum(values) / len(values)

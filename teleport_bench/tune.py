"""The choice of step sizes, and of k, from the records of the tuning runs."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teleport_bench.metrics import METRICS, ROUNDS_TO_TARGET
from teleport_bench.record import Record
from teleport_bench.seeds import generator
from teleport_bench.suite import PlannedRun, Suite

CENSORED = 2
"""A run that did not reach its target counts as this many times its rounds: the score that the
field of algorithm configuration calls PAR2."""

MOST_RESAMPLES = 2000
"""Resamples of the tuning seeds: all that there are, or this many drawn ones."""

RUNNER_UP = 0.05
"""Share of the resamples from which on a value that they choose is worth a look."""

Setting = tuple[int, float]
"""k and a step size."""


@dataclass(frozen=True)
class Choice:
    """The step size of one cell: scores by value (the mean over the tuning seeds; None where a run
    diverged or failed), and the best, None where no value has a score.

    lost: the status of the runs behind each None. by_active: the scores of each k, where k is
    chosen too; `scores` are then the best of any k, and `active` is the k of the best.

    resampled: what each of the `resamples` of its seeds would have chosen; None where no value has
    a score.
    """

    scores: dict[float, float | None]
    lr: float | None
    lost: dict[float, str]
    active: int | None = None
    by_active: dict[int, dict[float, float | None]] | None = None
    resampled: tuple[Setting | None, ...] = ()
    n_seeds: int = 0

    @property
    def shares(self) -> dict[Setting, float]:
        """In which part of the resamples each setting is chosen, the most frequent first."""
        found: dict[Setting, float] = defaultdict(float)
        for setting, weight in zip(self.resampled, resamples(self.n_seeds)[1], strict=True):
            if setting is not None:
                found[setting] += weight
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

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
        _resampled({s: [_trial(r, metric) for r in tried[s]] for s in sorted(tried)}, sign),
        len(next(iter(tried.values()))),
    )


@functools.lru_cache(maxsize=32)
def resamples(n_seeds: int) -> tuple[NDArray[np.float64], tuple[float, ...]]:
    """((resamples, n_seeds), weights): how often each resample has each seed, and its probability.

    A resample draws as many seeds as there are, with replacement. All of them are gone through
    while they are few (up to 7 seeds), so that shares are exact; else they are drawn, of a stream
    of their own, the same in every report.
    """
    if math.comb(2 * n_seeds - 1, n_seeds) > MOST_RESAMPLES:
        drawn = generator(0, "resamples", seeds=n_seeds).multinomial(
            n_seeds, np.full(n_seeds, 1 / n_seeds), size=MOST_RESAMPLES
        )
        return drawn.astype(float), (1 / MOST_RESAMPLES,) * MOST_RESAMPLES
    every = [
        np.bincount(picked, minlength=n_seeds)
        for picked in itertools.combinations_with_replacement(range(n_seeds), n_seeds)
    ]
    ways = [
        math.factorial(n_seeds) / math.prod(math.factorial(int(c)) for c in counts)
        for counts in every
    ]
    return np.array(every, dtype=float), tuple(way / n_seeds**n_seeds for way in ways)


def _resampled(
    trials: Mapping[Setting, Sequence[tuple[float, float] | None]], sign: int
) -> tuple[Setting | None, ...]:
    """The choice of each resample of the seeds; trials: of each setting, by seed, ascending."""
    counts, _ = resamples(len(next(iter(trials.values()))))
    settings = list(trials)
    values, close, out = np.zeros((3, len(settings), counts.shape[1]))
    for i, tried in enumerate(trials.values()):
        for j, trial in enumerate(tried):
            if trial is None:
                out[i, j] = 1
            else:
                values[i, j], close[i, j] = trial
    sums = np.where(counts @ out.T > 0, -np.inf, sign * (counts @ values.T))
    # of equal values the one that came closest to the target, and of these the smallest
    near = np.where(_best(sums), counts @ close.T, -np.inf)
    first = _best(near).argmax(1).tolist()
    sound = np.isfinite(sums).max(1).tolist()
    return tuple(settings[i] if any_ else None for i, any_ in zip(first, sound, strict=True))


def _best(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of each row are its largest, but for the rounding of sums."""
    most = values.max(1, keepdims=True)
    best: NDArray[np.bool_] = values >= most - 1e-12 * np.abs(most)
    return best


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


def runners_up(suite: Suite, choices: Mapping[str, Choice]) -> list[dict[str, dict[str, Any]]]:
    """What else may have been chosen, as settings by cell: the first of every cell, the second, ..;
    none without `[tune] runners_up`."""
    if not suite.spec.tune or not suite.spec.tune.runners_up:
        return []
    found: list[dict[str, dict[str, Any]]] = []
    for cell, choice in choices.items():
        if choice.lr is None:
            continue
        others = [
            {"lr": lr} | ({} if choice.active is None else {"active": k})
            for (k, lr), share in choice.shares.items()
            if share >= RUNNER_UP and (lr, k) != (choice.lr, choice.active or k)
        ]
        for i, other in enumerate(others):
            if i == len(found):
                found.append({})
            found[i][cell] = other
    return found


def decided(suite: Suite, records: Mapping[str, Record]) -> list[PlannedRun]:
    """The reported runs at the settings that tuning chose, and at those of `runners_up`."""
    choices = choose(suite, records)
    every = [step_sizes(choices), *runners_up(suite, choices)]
    return [run for settings in every for run in suite.reported(settings)]


def _score(tried: Sequence[Record], metric: str) -> tuple[float, float] | None:
    """The mean of the metric, and what decides between equal means: among runs of which none
    reached its target, how close they came. None where a run diverged or failed."""
    trials = [trial for record in tried if (trial := _trial(record, metric))]
    if len(trials) < len(tried):
        return None
    values, close = zip(*trials, strict=True)
    return math.fsum(values) / len(tried), math.fsum(close)


def _trial(record: Record, metric: str) -> tuple[float, float] | None:
    """What a run contributes to `_score`."""
    if record.status != "finished":
        return None
    if metric != ROUNDS_TO_TARGET:
        return record.final(metric), 0.0
    if record.reached_at is not None:
        return record.reached_at, 0.0
    by = record.spec["stop"]["metric"]
    return CENSORED * record.spec["rounds"], METRICS[by].sign * record.final(by)


@dataclass(frozen=True)
class Cost:
    """What tuning a method took: trials, rounds of the network, and gradients.

    Candidates of a search that share the network run in the same rounds, which count once. A run
    that ended early, as it reached its target or diverged, counts as far as it went.
    """

    trials: int = 0
    rounds: int = 0
    gradients: int = 0


def costs(suite: Suite, records: Mapping[str, Record]) -> dict[str, Cost]:
    """What tuning has cost, by the label of the method, over the trials that have records."""
    found: dict[str, Cost] = {}
    together: Counter[tuple[Any, ...]] = Counter()
    for run in suite.tuning:
        cost = found.setdefault(run.label, Cost())
        record = records.get(run.spec.id)
        if record is None or record.status == "failed":
            continue
        spec, rounds = run.spec, record.diverged_at
        if rounds is None:
            rounds = int(record.curves["rounds"][-1])
        gradients = rounds * spec.n_active * spec.build_algorithm().local_steps
        if spec.share:
            at = (run.cell, spec.lr, spec.seed)
            rounds, together[at] = max(0, rounds - together[at]), max(rounds, together[at])
        found[run.label] = dataclasses.replace(
            cost,
            trials=cost.trials + 1,
            rounds=cost.rounds + rounds,
            gradients=cost.gradients + gradients,
        )
    return found
